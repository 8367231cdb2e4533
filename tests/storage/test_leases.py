"""The token fences every write of a worker; time only permits rescue."""

import pytest

from jobs_service.model.errors import JobsError, LeaseLost
from jobs_service.model.job import JobStatus
from jobs_service.model.work import FinishResult, LeaseState, Outcome
from tests.support.work import COMPLETED, FAILED, RELEASED, Workshop
from tests.support.world import World


@pytest.fixture
def shop(stored_world: World) -> Workshop:
    return Workshop(stored_world)


def ended(result: FinishResult | JobsError) -> FinishResult:
    assert isinstance(result, FinishResult), result
    return result


def lost(result: FinishResult | JobsError) -> dict[str, str]:
    assert isinstance(result, LeaseLost), result
    return result.metadata


OUTCOMES: dict[str, Outcome] = {"complete": COMPLETED, "fail": FAILED, "release": RELEASED}
AFTER = {"complete": JobStatus.COMPLETED, "fail": JobStatus.PENDING, "release": JobStatus.PENDING}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_who_lost_the_lease_writes_nothing_and_who_has_it_counts(shop: Workshop, kind: str) -> None:
    a = shop.claim(shop.job(), "a")
    shop.expired(a)
    b = shop.claim(a.job_id, "b")
    before = shop.get(a.job_id)
    for _ in range(2):
        for outcome in OUTCOMES.values():
            assert lost(shop.finish(a, outcome)) == {
                "job_id": str(a.job_id),
                "status": "RUNNING",
                "attempt": "2",
            }
        assert shop.heartbeat(a).state is LeaseState.LOST
    assert shop.get(a.job_id) == before
    first = ended(shop.finish(b, OUTCOMES[kind]))
    again = ended(shop.finish(b, OUTCOMES[kind]))
    assert first == again
    assert first.job.status is AFTER[kind]
    for outcome in OUTCOMES.values():
        assert lost(shop.finish(a, outcome))["status"] == AFTER[kind]
    assert [one.worker_id for one in first.job.attempts] == ["a", "b"]
    shop.check(a.job_id)


@pytest.mark.parametrize("kind", OUTCOMES)
def test_another_kind_of_call_with_the_token_that_ended_the_claim_is_refused(
    shop: Workshop, kind: str
) -> None:
    claim = shop.running()
    first = ended(shop.finish(claim, OUTCOMES[kind]))
    for name, outcome in OUTCOMES.items():
        if name != kind:
            assert lost(shop.finish(claim, outcome))["status"] == first.job.status
    assert shop.heartbeat(claim).state is LeaseState.LOST
    assert shop.get(claim.job_id) == first.job


def test_the_first_of_two_different_completes_stands(shop: Workshop) -> None:
    claim = shop.running()
    first = ended(shop.finish(claim, COMPLETED))
    second = ended(shop.finish(claim, type(COMPLETED)({"rows": 2}, 10, None)))
    assert second == first
    assert second.job.output_summary == {"rows": 1}
    assert second.job.payload_bytes == 31
