"""Whole jobs, many at once: no more of them than fit into an answer."""

from collections.abc import Sequence

from jobs_service.model.job import Job, JobView
from jobs_service.storage.database import Transaction

PAGE_BYTES = 3 * 1024 * 1024
"""run_parameters and output_summaries of an answer, as compact JSON, together (the first job always fits)."""


def fitting(sizes: Sequence[int]) -> int:
    """Return how many of the first fit together in PAGE_BYTES."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > PAGE_BYTES:
            return max(count, 1)
    return len(sizes)


def in_full(tx: Transaction, jobs: Sequence[Job]) -> list[Job]:
    """Return jobs that were read in this snapshot, in view FULL. How many fit has been decided."""
    whole = tx.jobs.read([job.job_id for job in jobs], JobView.FULL)
    return [whole[job.job_id] for job in jobs]
