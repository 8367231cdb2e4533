"""Payloads of many jobs at once: no more of them than fit into an answer."""

from collections.abc import Sequence
from dataclasses import replace

from jobs_service.model.job import Job
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


def with_payloads(tx: Transaction, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with their payloads. How many fit has been decided."""
    payloads = tx.job_list.payloads([job.job_id for job in jobs])
    return [
        replace(job, run_parameters=payloads[job.job_id][0], output_summary=payloads[job.job_id][1])
        for job in jobs
    ]
