"""Services whose clock is wrong."""

import shutil
import subprocess
import time
from pathlib import Path

import jwt
import pytest

from tests.support.world import KEY

_SOURCE = Path(__file__).with_name("shifted_clock.c")


def shifted_clock(folder: Path, seconds: int) -> dict[str, str]:
    """The environment of a program whose clock is ahead by so much. Only the time of day is shifted."""
    library = folder / "shifted_clock.so"
    if not library.exists():
        if shutil.which("cc") is None:
            pytest.skip("needs a C compiler")
        command = ["cc", "-O2", "-D_GNU_SOURCE", "-shared", "-fPIC", "-o", str(library), str(_SOURCE)]
        subprocess.run(command, check=True, timeout=60)
    return {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(seconds)}


def token(soeid: str, *, good_for: float, issued: float | None = None) -> str:
    """A token that is good for so many seconds from now by this machine's clock; issued: from now, too."""
    claims = {"sub": soeid, "exp": int(time.time() + good_for)}
    if issued is not None:
        claims["iat"] = int(time.time() + issued)
    return jwt.encode(claims, KEY.key, algorithm=KEY.algorithm)
