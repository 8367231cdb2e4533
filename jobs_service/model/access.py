"""What can be changed about users, data sets and permissions, as their history names it."""

from enum import StrEnum


class AccessEventType(StrEnum):
    """What happened. Each is recorded only where something changed."""

    USER_PUT = "USER_PUT"
    USER_DELETED = "USER_DELETED"
    DATASET_PUT = "DATASET_PUT"
    DATASET_DELETED = "DATASET_DELETED"
    DATASET_LIMITED = "DATASET_LIMITED"
    PERMISSION_GRANTED = "PERMISSION_GRANTED"
    PERMISSION_REVOKED = "PERMISSION_REVOKED"
    RUN_TYPE_GRANTED = "RUN_TYPE_GRANTED"
    RUN_TYPE_REVOKED = "RUN_TYPE_REVOKED"
