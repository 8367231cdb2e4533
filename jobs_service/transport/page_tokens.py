"""Page tokens: a place in a list, bound to the filter and the view that it was made for.

A token carries no authority: whoever sends it sees what that caller may see. The digest is there so
that a changed argument or a damaged token is noticed, not to keep anything secret.
"""

import base64
import binascii
import hashlib
import struct
from datetime import UTC, datetime, timedelta
from uuid import UUID

from jobs_service.model.errors import InvalidPageToken, Violation
from jobs_service.model.job import JobView
from jobs_service.model.requests import Cursor, JobFilter

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# A version, the microseconds since 1970, the job id, a digest over these and the arguments.
_LAYOUT = struct.Struct(">Bq16s8s")
_VERSION = 1


def encode(cursor: Cursor, wanted: JobFilter, view: JobView) -> str:
    """Return the token for the place after this job."""
    microseconds = (cursor.create_time - _EPOCH) // _MICROSECOND
    digest = _digest(microseconds, cursor.job_id, wanted, view)
    packed = _LAYOUT.pack(_VERSION, microseconds, cursor.job_id.bytes, digest)
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode(token: str, wanted: JobFilter, view: JobView) -> Cursor:
    """Return the place that a token stands for. Raises InvalidPageToken."""
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        packed = base64.b64decode(padded, altchars=b"-_", validate=True)
        version, microseconds, job_id, digest = _LAYOUT.unpack(packed)
        cursor = Cursor(_EPOCH + microseconds * _MICROSECOND, UUID(bytes=job_id))
    except (UnicodeEncodeError, binascii.Error, struct.error, OverflowError):
        raise _invalid("is not a token of this service") from None
    if base64.urlsafe_b64encode(packed) != padded:
        # b64decode takes the letters of the other alphabet too.
        raise _invalid("is not a token of this service")
    if version != _VERSION or digest != _digest(microseconds, cursor.job_id, wanted, view):
        raise _invalid("belongs to another filter or view, or is damaged")
    return cursor


def _digest(microseconds: int, job_id: UUID, wanted: JobFilter, view: JobView) -> bytes:
    arguments = (
        microseconds,
        job_id.hex,
        view.value,
        wanted.owner_id,
        wanted.owner_soeid,
        wanted.dataset_id,
        sorted(status.value for status in wanted.statuses),
        sorted(run_type.value for run_type in wanted.run_types),
        wanted.external_id,
        wanted.create_time_from,
        wanted.create_time_to,
    )
    return hashlib.blake2b(repr(arguments).encode(), digest_size=8).digest()


def _invalid(description: str) -> InvalidPageToken:
    return InvalidPageToken([Violation("page_token", description)])
