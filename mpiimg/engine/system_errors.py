"""Errors of the system, such as a full disk: said in one line, with the file and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mpiimg.engine.names import shown

#: What to do about an error of the system, by its number.
ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there, or ask for more",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or use another file system",
    errno.EROFS: "have the file system made writable, or choose another --out",
    errno.EIO: "have the disk or the file server looked at",
    errno.ESTALE: "have the file server looked at",
    errno.ETIMEDOUT: "have the file server looked at",
    errno.ENOTCONN: "have the file server looked at",
    errno.EREMOTEIO: "have the file server looked at",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "have the limit on open files of this node raised",
    errno.EACCES: "let yourself read and write there (chmod), or choose another --out",
    errno.EPERM: "let yourself read and write there (chmod), or choose another --out",
}

#: Of these, what is of the place that the user chose, and stays so until another is chosen.
OF_PLACE = frozenset((errno.EROFS, errno.EACCES, errno.EPERM))

#: How HDF5 says the number of an error.
_OF_HDF5 = re.compile(r"errno = (\d+)")

_NAME_IN_HDF5 = re.compile(r"name = '([^']*)'")


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Let errors of the system say which file they are about, where only its descriptor is known."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def answer(error: BaseException) -> str | None:
    """Return in one line what the system refused, and what to do; None where the error is none of its.

    Parameters
    ----------
    error : BaseException
        What was raised, or what led to that.
    """
    one: BaseException | None = error
    while one is not None:
        number = _number(one)
        if number in ADVICE:
            file = shown(_file(one) or "a file")
            return f"{file}: {os.strerror(number)}; {ADVICE[number]}, then give the same command again"
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return None


def _number(error: BaseException) -> int | None:
    if not isinstance(error, OSError):
        return None
    if error.errno is not None:
        return error.errno
    said = _OF_HDF5.search(str(error))
    return int(said[1]) if said else None


def _file(error: OSError) -> str | Path | None:
    if error.filename is not None:
        return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    said = _NAME_IN_HDF5.search(str(error))
    return said[1] if said else None
