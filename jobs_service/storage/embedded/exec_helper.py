"""A script that turns into another program: as another user, in a view of the files, ended with its parent.

    python -I -S exec_helper.py PARENT UID GID MOUNT_SOURCE MOUNT_POINT FOLDER [PROGRAM ARGUMENT...]

PARENT is the process id to die with. UID and GID, and MOUNT_SOURCE and MOUNT_POINT, may be "-": no change.
Without a PROGRAM it ends with 0 where it would have started one: a trial. It is a script and not a function
between fork and exec because a process that has used gRPC must not run Python code after a fork.
"""

import ctypes
import os
import signal
import sys
from typing import NoReturn

# Exit codes for what failed; the programs that are started this way use none of them.
PARENT_GONE = 121
NO_MOUNT = 122
NO_ACCOUNT = 123
NO_FOLDER = 124
NO_PROGRAM = 125

_CLONE_NEWNS = 0x00020000
_MS_BIND = 4096
_MS_REC = 16384
_MS_PRIVATE = 1 << 18
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _mount(source: str, mount_point: str) -> None:
    # A namespace of its own: nobody else sees the mount, and it goes with the last process that does.
    _checked(_libc.unshare(_CLONE_NEWNS))
    _checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    flags = ctypes.c_ulong(_MS_BIND | _MS_REC)
    _checked(_libc.mount(os.fsencode(source), os.fsencode(mount_point), None, flags, None))


def _become(uid: int, gid: int) -> None:
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)


def _die_with(parent: int) -> None:
    # After the change of user, which clears it; and the parent may have ended before it was set.
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGINT)))
    if os.getppid() != parent:
        sys.exit(PARENT_GONE)


def _fail(code: int, what: str, error: OSError) -> NoReturn:
    print(f"{what}: {error.strerror}", file=sys.stderr)
    sys.exit(code)


def main(arguments: list[str]) -> None:
    parent, uid, gid, mount_source, mount_point, folder, *program = arguments
    # Python ignores SIGPIPE, and what is ignored stays so in the next program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if mount_source != "-":
            _mount(mount_source, mount_point)
    except OSError as error:
        _fail(NO_MOUNT, f"cannot mount {mount_source} on {mount_point}", error)
    try:
        if uid != "-":
            _become(int(uid), int(gid))
        _die_with(int(parent))
    except OSError as error:
        _fail(NO_ACCOUNT, f"cannot become user {uid}", error)
    try:
        os.chdir(folder)
    except OSError as error:
        _fail(NO_FOLDER, f"cannot enter {folder}", error)
    if program:
        try:
            os.execvp(program[0], program)
        except OSError as error:
            _fail(NO_PROGRAM, f"cannot run {program[0]}", error)


if __name__ == "__main__":
    main(sys.argv[1:])
