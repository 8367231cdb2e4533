"""What a transaction did that others want to know at once, when it is committed."""

from dataclasses import dataclass, field
from uuid import UUID

from jobs_service.model.job import RunType


@dataclass(slots=True)
class News:
    """ready: run types of which there may be more jobs to claim. revoked: jobs taken from their workers."""

    ready: set[RunType] = field(default_factory=set)
    revoked: set[UUID] = field(default_factory=set)
