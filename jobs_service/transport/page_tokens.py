"""Page tokens: a place in a list, bound to the arguments that it was made for.

A token carries no authority: whoever sends it sees what that caller may see. The digest is there so
that a changed argument or a damaged token is noticed, not to keep anything secret.
"""

import base64
import binascii
import hashlib
import struct
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from jobs_service.model.access import PermissionPlace
from jobs_service.model.errors import InvalidPageToken, Violation
from jobs_service.model.job import JobView
from jobs_service.model.requests import Cursor, JobFilter

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# A version, the microseconds since 1970, the job id, a digest over these and the arguments.
_LAYOUT = struct.Struct(">Bq16s8s")
# The same of a list of permissions: a user's id, a data set's id. Its length tells it from the other.
_PERMISSION_LAYOUT = struct.Struct(">Bqq8s")
_VERSION = 1


def encode(cursor: Cursor, wanted: JobFilter, view: JobView) -> str:
    """Return the token for the place after this job."""
    microseconds = (cursor.create_time - _EPOCH) // _MICROSECOND
    digest = _digest(microseconds, cursor.job_id, wanted, view)
    packed = _LAYOUT.pack(_VERSION, microseconds, cursor.job_id.bytes, digest)
    return _text(packed)


def decode(token: str, wanted: JobFilter, view: JobView) -> Cursor:
    """Return the place that a token stands for. Raises InvalidPageToken."""
    version, microseconds, job_id, digest = _unpacked(token, _LAYOUT)
    try:
        cursor = Cursor(_EPOCH + microseconds * _MICROSECOND, UUID(bytes=job_id))
    except OverflowError:
        raise _foreign() from None
    if version != _VERSION or digest != _digest(microseconds, cursor.job_id, wanted, view):
        raise _invalid("belongs to another filter or view, or is damaged")
    return cursor


def encode_permission(place: PermissionPlace, soeid: str | None, dataset_id: int | None) -> str:
    """Return the token for the place after this permission, in the list of these arguments."""
    digest = _permission_digest(place, soeid, dataset_id)
    return _text(_PERMISSION_LAYOUT.pack(_VERSION, place.user_id, place.dataset_id, digest))


def decode_permission(token: str, soeid: str | None, dataset_id: int | None) -> PermissionPlace:
    """Return the place that a token stands for. Raises InvalidPageToken."""
    version, last_user, last_dataset, digest = _unpacked(token, _PERMISSION_LAYOUT)
    place = PermissionPlace(last_user, last_dataset)
    if version != _VERSION or digest != _permission_digest(place, soeid, dataset_id):
        raise _invalid("belongs to another user or data set, or is damaged")
    return place


def _text(packed: bytes) -> str:
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _unpacked(token: str, layout: struct.Struct) -> tuple[Any, ...]:
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        packed = base64.b64decode(padded, altchars=b"-_", validate=True)
        values = layout.unpack(packed)
    except (UnicodeEncodeError, binascii.Error, struct.error):
        raise _foreign() from None
    if base64.urlsafe_b64encode(packed) != padded:
        # b64decode takes the letters of the other alphabet too.
        raise _foreign()
    return values


def _permission_digest(place: PermissionPlace, soeid: str | None, dataset_id: int | None) -> bytes:
    arguments = ("permissions", place.user_id, place.dataset_id, soeid, dataset_id)
    return hashlib.blake2b(repr(arguments).encode(), digest_size=8).digest()


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


def _foreign() -> InvalidPageToken:
    return _invalid("is not a token of this service")


def _invalid(description: str) -> InvalidPageToken:
    return InvalidPageToken([Violation("page_token", description)])
