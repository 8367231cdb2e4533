"""Claiming: who may work on what, and the jobs that each worker gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs_service.core import permissions
from jobs_service.core.queue_heads import QueueHeads
from jobs_service.model.errors import JobsError
from jobs_service.model.job import RunType
from jobs_service.model.work import ClaimRequest, ClaimResult
from jobs_service.storage.claims import FIRST, Place
from jobs_service.storage.database import Transaction
from jobs_service.storage.job_queue import Claimed

ANSWER_BYTES = 570_000
"""Payloads of an answer as JSON (the first job always fits): as Structs they take up to 5.5 times that."""


@dataclass(frozen=True, slots=True)
class Claims:
    """A result for each request. run_types: of which jobs were left for the bytes of the answers alone."""

    results: list[ClaimResult | JobsError]
    run_types: frozenset[RunType]


def claim_jobs(tx: Transaction, requests: Sequence[ClaimRequest], heads: QueueHeads) -> Claims:
    """Claim jobs for these workers; see WorkerService.claim_jobs."""
    standings = tx.queue.begin_claims({request.caller.user_id for request in requests})
    results: dict[int, ClaimResult | JobsError] = {}
    groups: dict[frozenset[RunType], list[int]] = {}
    for n, request in enumerate(requests):
        try:
            standing = standings[request.caller.user_id]
            allowed = permissions.require_work(
                request.caller, standing.role, standing.run_types, request.run_types
            )
            groups.setdefault(allowed, []).append(n)
        except JobsError as refusal:
            results[n] = refusal
    left: set[RunType] = set()
    for allowed, members in groups.items():
        # Those who ask for the same share a statement.
        claimed = _claim(tx, heads.of(allowed), [requests[n] for n in members])
        left |= allowed if claimed.left else set()
        for n, claims in zip(members, claimed.claims, strict=True):
            results[n] = ClaimResult(
                claims,
                not_granted=requests[n].run_types - allowed,
                more=bool(claims) and (claimed.left > 0 or len(claims) == requests[n].max_jobs),
            )
    return Claims([results[n] for n in range(len(requests))], frozenset(left))


def _claim(tx: Transaction, places: Mapping[RunType, Place], requests: list[ClaimRequest]) -> Claimed:
    claimed = tx.queue.claim(places, requests, answer_bytes=ANSWER_BYTES)
    if any(claimed.claims) or set(places.values()) == {FIRST}:
        return claimed
    # That there is nothing is said only after a look at everything.
    return tx.queue.claim(dict.fromkeys(places, FIRST), requests, answer_bytes=ANSWER_BYTES)
