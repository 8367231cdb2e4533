"""A newer release as far as the schema knows one: this release's migrations and those written here.

python -m tests.e2e.migrator URL FOLDER [OLDEST_RELEASE] migrates to the first of them, or to the second,
which says that OLDEST_RELEASE is the oldest that can run on it.
"""

import shutil
import sys
from pathlib import Path

from jobs_service.storage import schema
from jobs_service.storage.driver_errors import MigrationHeldUp
from tests.support.postgres import open_database

LOCKED = 9
"""The exit code where somebody holds a table for too long."""
_ADDS = '''"""What a release that the running ones survive may add."""

from alembic import op

revision = "8001"
down_revision = "{head}"


def upgrade() -> None:
    op.execute("ALTER TABLE jobs ADD COLUMN added TEXT")
    op.execute("ALTER TABLE job_events ADD COLUMN added JSONB DEFAULT '{{}}'")
    op.execute("CREATE TABLE added (job_id UUID PRIMARY KEY)")
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY ix_jobs_added ON jobs (added) WHERE added IS NOT NULL")
'''
_ENDS = '''"""What no older release survives."""

from alembic import op

revision = "8002"
down_revision = "8001"


def upgrade() -> None:
    op.execute("UPDATE schema_info SET oldest_release = '{oldest}'")
'''


def main(url: str, folder: Path, oldest: str | None = None) -> int:
    """Migrate; the exit code."""
    shutil.copytree(schema._MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    _, head = schema._revisions()
    schema._revisions.cache_clear()
    (folder / "versions/8001_adds.py").write_text(_ADDS.format(head=head))
    if oldest:
        (folder / "versions/8002_ends.py").write_text(_ENDS.format(oldest=oldest))
    schema._MIGRATIONS = folder
    database = open_database(url)
    try:
        schema.migrate(database.engine)
    except MigrationHeldUp:
        return LOCKED
    finally:
        database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
