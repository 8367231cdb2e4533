"""Who calls, and on whose behalf."""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum

_SOEID = re.compile(r"[a-z]{2}[0-9]{5}\Z")


class Role(StrEnum):
    """What a user is. Roles are known by name."""

    ADMIN = "admin"
    SERVICE = "service"
    USER = "user"


class Level(IntEnum):
    """A permission level on a data set; a higher one includes the lower ones."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """The level as the API and the database write it."""
        return self.name.lower()


def normalized_soeid(text: str) -> str | None:
    """Return the SOEID in lower case, or None where the text is not two letters and five digits."""
    lowered = text.lower()
    # isascii first: lower() turns some letters of other scripts (the Kelvin sign) into ASCII ones.
    return lowered if text.isascii() and _SOEID.match(lowered) else None


@dataclass(frozen=True, slots=True)
class OnBehalf:
    """The user whose permissions the call has. user_id is None where nobody has that SOEID."""

    soeid: str
    user_id: int | None


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated sender of a call, as the API layer knows it: ids, never roles.

    Roles, and whether the user still exists, are read in the transaction of the operation.
    """

    soeid: str
    user_id: int
    on_behalf_of: OnBehalf | None = None

    @property
    def subject_id(self) -> int | None:
        """The user whose permissions count and who owns what is made. None: unknown on-behalf SOEID."""
        return self.user_id if self.on_behalf_of is None else self.on_behalf_of.user_id

    @property
    def subject_soeid(self) -> str:
        """The SOEID that belongs to subject_id."""
        return self.soeid if self.on_behalf_of is None else self.on_behalf_of.soeid


SYSTEM = Caller(soeid="", user_id=0)
"""The service itself, in the history of what it does on its own."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database says of a caller at this moment. None: no such user; no permission.

    level is the subject's level on the data set at hand, dataset_name that data set's name.
    """

    caller_role: Role | None
    subject_role: Role | None
    level: Level | None = None
    dataset_exists: bool = False
    dataset_name: str | None = None
