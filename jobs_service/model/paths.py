"""How a place inside of a request is written in an error."""

import json
import re
from collections.abc import Iterable

MAX_PATH = 120
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def field_path(root: str, parts: Iterable[str | int]) -> str:
    """Return root.key[0]["odd key"], at most MAX_PATH characters, ASCII whatever the keys are."""
    path = root
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN_KEY.match(part):
            path += f".{part}"
        else:
            path += f"[{json.dumps(part)}]"
        if len(path) > MAX_PATH:
            break
    return _cut(path)


def nested_path(outer: str, inner: str) -> str:
    """Return the path of what stands within another, at most MAX_PATH characters."""
    return _cut(f"{outer}.{inner}")


def _cut(path: str) -> str:
    return path if len(path) <= MAX_PATH else path[: MAX_PATH - 3] + "..."
