"""A database with a million jobs, made within the server; what it holds is the same every time.

Data sets are as uneven as in life: data set d has about JOBS / d / 9 jobs, so the first has 75,000
and the last ten. Half of the jobs belong evenly to all owners, the others as unevenly. What ended
badly is where it hurts most: failures are spread thin, and nothing of late was cancelled.
"""

import psycopg

JOBS = 1_000_000
DATASETS = 10_000
OWNERS = 2_500
PROGRAMS = range(OWNERS + 1, OWNERS + 21)
HOT_OWNER, RARE_OWNER = 1, OWNERS
HOT_DATASET, RARE_DATASET = 1, DATASETS - 1

OWNER, CREATOR = RARE_OWNER, PROGRAMS[0]
READER_OF_RARE, READER_OF_HOT, READER_OF_50, READER_OF_500_RARE, READER_OF_5000, STRANGER = range(
    OWNERS + 30, OWNERS + 36
)
VIEWERS: dict[str, int | None] = {
    "admin": None,
    "owner without a permission": OWNER,
    "owner of 4 %": HOT_OWNER,
    "program that made jobs for others": CREATOR,
    "reader of a rare data set": READER_OF_RARE,
    "reader of the hot data set": READER_OF_HOT,
    "reader of 50 data sets": READER_OF_50,
    "reader of 500 rare data sets": READER_OF_500_RARE,
    "reader of 5,000 data sets": READER_OF_5000,
    "stranger": STRANGER,
}
"""Every kind of caller, by user id; None sees everything."""

_SKEWED = "floor(exp(random() * ln({0})))::bigint"
_FILL = (
    "SELECT setseed(0.5)",
    f"""
    INSERT INTO users (user_id, soeid, role) OVERRIDING SYSTEM VALUE
         SELECT n, 'mi' || lpad(n::text, 5, '0'),
                CASE WHEN n BETWEEN {PROGRAMS.start} AND {PROGRAMS.stop - 1} THEN 'service' ELSE 'user' END
           FROM generate_series(1, {STRANGER}) n
    """,
    f"""
    INSERT INTO datasets (dataset_id, name)
         SELECT n, 'data set ' || n FROM generate_series(1, {DATASETS}) n
    """,
    f"""
    INSERT INTO jobs (job_id, run_type, status, dataset_id, owner_id, creator_id, description, external_id,
                      priority, create_time, available_time, start_time, update_time, end_time,
                      error_type, error_message, cancelled_by_soeid, request_id, request_hash,
                      payload_bytes, run_parameters, output_summary)
         SELECT (lpad(to_hex((extract(epoch FROM create_time) * 1000)::bigint), 12, '0')
                 || '7' || substr(hash, 14, 3) || '8' || substr(hash, 18, 15))::uuid,
                run_type, status, dataset_id, owner_id,
                CASE WHEN n % 30 = 0 THEN {PROGRAMS.start} + n / 30 % {len(PROGRAMS)} ELSE owner_id END,
                'job number ' || n,
                CASE WHEN n % 20 = 0 THEN 'nightly' WHEN n % 3 = 0 THEN 'ext-' || n / 30 END,
                0, create_time, create_time,
                CASE WHEN status NOT IN ('PENDING', 'CANCELLED') THEN create_time + interval '1 min' END,
                create_time + interval '9 min',
                CASE WHEN status NOT IN ('PENDING', 'RUNNING') THEN create_time + interval '9 min' END,
                CASE status WHEN 'FAILED' THEN 'ValueError' END,
                CASE status WHEN 'FAILED' THEN 'column ' || n || ' is not there' END,
                CASE status WHEN 'CANCELLED' THEN 'mi00001' END,
                CASE WHEN n % 5 > 0 THEN hash::uuid END,
                CASE WHEN n % 5 > 0 THEN decode(hash || hash, 'hex') END,
                40 + length(large),
                jsonb_build_object('file_path', '/uploads/' || hash || '.csv', 'note', large),
                CASE status WHEN 'COMPLETED' THEN jsonb_build_object('rows', n) END
           FROM (SELECT n, md5(n::text) AS hash,
                        '2026-01-01Z'::timestamptz + n * interval '25 s' AS create_time,
                        {_SKEWED.format(DATASETS)} AS dataset_id,
                        CASE WHEN random() < 0.5 THEN ceil(random() * {OWNERS})::bigint
                             ELSE {_SKEWED.format(OWNERS)} END AS owner_id,
                        CASE WHEN n % 500 = 0
                             THEN (SELECT string_agg(md5(n::text || k), '') FROM generate_series(1, 200) k)
                             ELSE '' END AS large,
                        (ARRAY['IMPORT', 'IMPORT', 'IMPORT', 'IMPORT', 'SAMPLING', 'SAMPLING', 'SAMPLING',
                               'SQL_TRANSFORM', 'SQL_TRANSFORM', 'EXPLORATION'])[ceil(random() * 10)]
                            AS run_type,
                        CASE WHEN n > {JOBS} - 30000 AND random() < 0.06 THEN 'RUNNING'
                             WHEN n > {JOBS} - 30000 AND random() < 0.65 OR n % 1000 = 7 THEN 'PENDING'
                             WHEN random() < 0.03 THEN 'FAILED'
                             WHEN n < {JOBS} / 2 AND random() < 0.03 THEN 'CANCELLED'
                             ELSE 'COMPLETED' END AS status
                   FROM generate_series(1, {JOBS}) n) drawn
    """,
    # One of ten that are active waits for five others, and one that failed has very many dependants.
    """
    INSERT INTO job_dependencies (job_id, depends_on_job_id)
         SELECT active.job_id, other.job_id
           FROM (SELECT job_id, row_number() OVER () AS n FROM jobs
                  WHERE end_time IS NULL AND hashtext(job_id::text) % 10 = 0) active
           JOIN (SELECT job_id, row_number() OVER () AS n FROM jobs
                  WHERE end_time IS NOT NULL LIMIT 50000) other
             ON other.n BETWEEN active.n * 5 AND active.n * 5 + 4
    """,
    """
    INSERT INTO job_dependencies (job_id, depends_on_job_id)
         SELECT job_id, (SELECT job_id FROM jobs WHERE status = 'FAILED' ORDER BY job_id LIMIT 1)
           FROM jobs WHERE status = 'CANCELLED' LIMIT 10000
    """,
    """
    UPDATE jobs SET dependencies = waiting.n
      FROM (SELECT job_id, count(*) AS n FROM job_dependencies GROUP BY job_id) waiting
     WHERE waiting.job_id = jobs.job_id
    """,
    "INSERT INTO ended_dependencies (job_id) SELECT job_id FROM jobs WHERE status = 'FAILED' LIMIT 20000",
    """
    INSERT INTO job_events (type, job_id, actor_id, actor_soeid, status_before, status_after, time)
         SELECT 'CREATED', job_id, creator_id, 'mi' || lpad(creator_id::text, 5, '0'), NULL, 'PENDING',
                create_time
           FROM jobs
          UNION ALL
         SELECT 'CANCELLED', job_id, 1, 'mi00001', 'PENDING', 'CANCELLED', end_time
           FROM jobs WHERE status = 'CANCELLED'
    """,
    f"""
    INSERT INTO dataset_permissions (user_id, dataset_id, level)
         SELECT {READER_OF_RARE}, {RARE_DATASET}, 'read'
          UNION ALL SELECT {READER_OF_HOT}, {HOT_DATASET}, 'read'
          UNION ALL SELECT {READER_OF_50}, n * 200, 'read' FROM generate_series(1, 50) n
          UNION ALL SELECT {READER_OF_500_RARE}, {DATASETS} - n, 'read' FROM generate_series(1, 500) n
          UNION ALL SELECT {READER_OF_5000}, n * 2, 'read' FROM generate_series(1, 5000) n
          UNION ALL SELECT DISTINCT n % ({OWNERS} - 1) + 1, {_SKEWED.format(DATASETS)}, 'write'
                      FROM generate_series(1, 15000) n WHERE n % ({OWNERS} - 1) > 0
    """,
)
# A hundred thousand more that wait, made after all others; the last ones for a single data set.
_PEND = f"""
    INSERT INTO jobs (job_id, run_type, dataset_id, owner_id, creator_id, description, priority,
                      create_time, available_time, update_time, payload_bytes, run_parameters)
         SELECT gen_random_uuid(),
                (ARRAY['IMPORT', 'SAMPLING', 'SQL_TRANSFORM', 'EXPLORATION'])[ceil(random() * 4)],
                CASE WHEN n > 0.8 * %(pending)s THEN {HOT_DATASET} ELSE {_SKEWED.format(DATASETS)} END,
                owner_id, owner_id, 'pending number ' || n, 0, create_time, create_time, create_time, 40,
                jsonb_build_object('file_path', '/uploads/' || n || '.csv')
           FROM (SELECT n, ceil(random() * {OWNERS})::bigint AS owner_id,
                        '2026-11-01Z'::timestamptz + n * interval '1 s' AS create_time
                   FROM generate_series(1, %(pending)s) n) drawn
"""
_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes JOIN pg_class ON pg_class.oid = indexname::regclass
 WHERE tablename IN ('jobs', 'job_events')
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = pg_class.oid)
"""


def fill(connection: psycopg.Connection, *, analyze: bool = True, pending: int = 0) -> None:
    """Fill a migrated, empty database. The indexes are made after the rows, in a third of the time.

    pending: how many more jobs there are that only wait. They are in no queue.
    """
    connection.execute("SET synchronous_commit = off")
    connection.execute("SET maintenance_work_mem = '512MB'")
    indexes = connection.execute(_INDEXES).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}".encode())
    for statement in _FILL:
        connection.execute(statement.encode())
    if pending:
        connection.execute(_PEND.encode(), {"pending": pending})
    for _, definition in indexes:
        connection.execute(definition.encode())
    if analyze:
        connection.execute("VACUUM ANALYZE")


# Of ten hash values those with 0 wait for other jobs.
_CLAIMS = (
    """
    UPDATE jobs SET claims = 2, attempt = 2, max_attempts = 3, status = 'RUNNING',
                    lease_token = gen_random_uuid()
     WHERE end_time IS NULL AND dependencies = 0
    """,
    """
    INSERT INTO job_leases
         SELECT job_id, 2, 2, lease_token, 'worker', dataset_id, false, create_time, now() + random() * 60 *
                interval '1 s', interval '60 s', now() + interval '24 h'
           FROM jobs WHERE status = 'RUNNING' AND lease_token IS NOT NULL
    """,
    """
    UPDATE job_leases SET lease_expire_time = now() - interval '1 h', lease_duration = interval '1 ms'
     WHERE hashtext(job_id::text) % 10 = 1
    """,
    """
    INSERT INTO job_attempts
         SELECT job_id, 1, 1, gen_random_uuid(), 'worker', create_time, create_time, 'FAILED', 'ValueError',
                'no', true, true
           FROM jobs WHERE claims > 0
    """,
    "UPDATE jobs SET claims = 1 WHERE status = 'FAILED'",
    """
    INSERT INTO job_attempts
         SELECT job_id, 1, 1, gen_random_uuid(), 'worker', create_time, end_time, 'FAILED', 'ValueError',
                'no', true, false
           FROM jobs WHERE status = 'FAILED'
    """,
    "VACUUM ANALYZE jobs, job_leases, job_attempts",
)


def claim(connection: psycopg.Connection) -> None:
    """Let all jobs that are active and wait for no other be claimed again, a tenth of them too long ago."""
    for statement in _CLAIMS:
        connection.execute(statement.encode())
