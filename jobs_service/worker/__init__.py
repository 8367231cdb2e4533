"""The worker kit: handlers for run types, and everything between them and the Jobs Service."""

from jobs_service.worker.outcomes import Release, Result, Retry, UserError
from jobs_service.worker.task import Cancelled, StopReason, Task

__all__ = ["Cancelled", "Release", "Result", "Retry", "StopReason", "Task", "UserError"]
