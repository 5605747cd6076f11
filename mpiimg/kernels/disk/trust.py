"""Whose a folder or a file is: what is run or believed must have been put there by nobody else.

Compiled kernels are code, and a shared place such as /tmp lets anybody make a folder of any name first.
Trusted are this user, root, and the owner of this package, whose code runs already. Nothing here changes or
removes what it does not trust.
"""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

#: Our own package.
PACKAGE = Path(__file__).parents[2]

#: Write permission of the group, and of everybody.
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def trusted(folder: Path) -> bool:
    """Say whether only trusted users can have put anything into a folder, which need not exist."""
    return not distrust(folder)


def distrust(folder: Path, base: Path | None = None, above: bool = True) -> str:
    """Say why a folder is not trusted; nothing where it is.

    The folders from `base` down to `folder` must be folders and no links, of a trusted owner, and not
    writable by a group or by others. Those above, to which links may lead, must not let others put another
    folder in the place of `base`: one that everybody may write to has to be sticky, as /tmp is.

    Parameters
    ----------
    folder : Path
        Need not exist; what is not there is not looked at.
    base : Path, optional
        The uppermost folder that was made for the purpose; by default `folder`.
    above : bool
        Look at the folders above `base` too. Not so within our package: who may change that has its code.

    Returns
    -------
    str
        Such as "/tmp/kernels belongs to user 1001".
    """
    folder = Path(os.path.abspath(folder))
    base = folder if base is None else Path(os.path.abspath(base))
    made = [base, *reversed([path for path in folder.parents if base in path.parents])]
    made += [folder] if folder != base else []
    if above:
        real = Path(os.path.realpath(base.parent))
        for path in (*reversed(real.parents), real):
            if problem := _problem(path, _owners() | _owner_of("/"), sticky=True):
                return problem
    return next(filter(None, (_problem(path, _owners()) for path in made)), "")


def read_file(path: Path, by_group: bool = False) -> bytes:
    """Return the content of a file that only trusted users can have written; links are not followed.

    Parameters
    ----------
    path : Path
    by_group : bool
        A group may write to it too, as by an umask of 002.

    Raises
    ------
    FileNotFoundError
        There is no file.
    PermissionError
        It may be somebody else's.
    OSError
        It cannot be read.
    """
    # A pipe is not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(f"{path} is no file")
        if status.st_uid not in _owners():
            raise PermissionError(f"{path} belongs to user {status.st_uid}")
        if status.st_mode & (stat.S_IWOTH if by_group else OTHERS_WRITE):
            raise PermissionError(f"others may write to {path}")
        return file.read()


def make_folder(folder: Path, base: Path, mode: int) -> None:
    """Make a folder, and those from `base` down to it with this mode, whatever the umask lets others do.

    Raises
    ------
    OSError
        It cannot be made.
    """
    if not folder.is_dir():
        if folder == base:
            folder.parent.mkdir(parents=True, exist_ok=True)
        else:
            make_folder(folder.parent, base, mode)
        folder.mkdir(mode, exist_ok=True)


def _problem(path: Path, owners: frozenset[int], sticky: bool = False) -> str:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a link"
    if status.st_uid not in owners:
        return f"{path} belongs to user {status.st_uid}"
    if sticky:
        # A group above is let be: of what is below, the files too are looked at when they are open.
        is_open = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    else:
        is_open = status.st_mode & OTHERS_WRITE
    return f"others may write to {path}" if is_open else ""


def _owners() -> frozenset[int]:
    return frozenset({os.geteuid(), 0}) | (_owner_of(str(PACKAGE)) - _nobody())


@functools.cache
def _owner_of(path: str) -> frozenset[int]:
    """Return the owner of a folder that was there before this process."""
    return frozenset({os.stat(path).st_uid})


@functools.cache
def _nobody() -> frozenset[int]:
    """Return the number by which a container names all users that it does not know."""
    try:
        return frozenset({int(Path("/proc/sys/kernel/overflowuid").read_text())})
    except (OSError, ValueError):
        return frozenset({65534})
