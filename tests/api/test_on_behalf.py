"""Who may be named in the on-behalf header, by whom."""

import pytest

from jobs.v1 import jobs_pb2
from jobs_service.model.caller import Level, Role
from tests.support.matrix import ROLE_REQUIRED, SENDERS, answer, assert_none
from tests.support.world import World

INVALID_HEADER = "INVALID_ARGUMENT INVALID_FIELD field=x-on-behalf-of"
USER_NOT_FOUND = "NOT_FOUND USER_NOT_FOUND user_soeid=<them>"
# Who is named: what a user, what a service or an admin that names them is answered.
NAMED = {
    "itself": ("OK", "OK"),
    "itself, in capitals": ("OK", "OK"),
    "a user": (ROLE_REQUIRED, "OK"),
    "a user, in capitals": (ROLE_REQUIRED, "OK"),
    "a service": (ROLE_REQUIRED, ROLE_REQUIRED),
    "an admin": (ROLE_REQUIRED, ROLE_REQUIRED),
    "nobody": (ROLE_REQUIRED, USER_NOT_FOUND),
    "a user who is gone": (ROLE_REQUIRED, USER_NOT_FOUND),
    "no SOEID": (INVALID_HEADER, INVALID_HEADER),
}


@pytest.mark.parametrize("rpc", ["CreateJob", "ListJobs", "GetJob", "GetJobStatus", "CancelJob"])
@pytest.mark.parametrize("role", Role)
def test_on_behalf_calls_are_for_programs_and_users_alone(world: World, role: Role, rpc: str) -> None:
    dataset = world.dataset()
    grants = {dataset: Level.WRITE}
    sender, user, gone = world.user(role, grants), world.user(grants=grants), world.user()
    service, admin = world.user(Role.SERVICE, grants), world.user(Role.ADMIN, grants)
    world.sql.execute("DELETE FROM users WHERE user_id = %s", (gone.user_id,))
    headers = {
        "itself": sender.soeid,
        "itself, in capitals": sender.soeid.upper(),
        "a user": user.soeid,
        "a user, in capitals": user.soeid.upper(),
        "a service": service.soeid,
        "an admin": admin.soeid,
        "nobody": "zz99999",
        "a user who is gone": gone.soeid,
        "no SOEID": "somebody",
    }
    maker = world.client(user)

    def ask(header: str) -> str:
        client = world.client(sender, on_behalf_of=header)
        if rpc in {"CreateJob", "ListJobs"}:
            _ = client.create(dataset_id=dataset) if rpc == "CreateJob" else client.list()
        else:
            message = getattr(jobs_pb2, f"{rpc}Request")(job_id=maker.create(dataset_id=dataset).job.job_id)
            client.call(rpc, message)
        return "OK"

    wrong = []
    for named, header in headers.items():
        got = answer(lambda header=header: ask(header), {header: "<them>"})  # type: ignore[misc] # mypy infers no type for a default
        expected = NAMED[named][role in SENDERS]
        if got != expected:
            wrong.append(f"{rpc} of {role} for {named}: got '{got}', expected '{expected}'")
    assert_none(wrong)
