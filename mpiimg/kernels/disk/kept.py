"""One compiled kernel in one file, with a checksum, so that what is not as it was written is not run.

A file holds a line that names its form, the SHA-256 of all that follows, the pickled types that the kernel
was compiled for, and the compiled code, pickled by numba. Unpickling runs code, and one bit in machine code
may change results: so a file is read only where nobody else can have written it (trust.py), and unpickled
only with its checksum. Whatever is wrong with one, it counts as not there: the kernel is compiled anew, and
the file replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import uuid
from pathlib import Path

from mpiimg.kernels.disk import trust

#: First line of a file.
FORM = b"mpiimg kernel 1\n"

#: What names end with.
ENDING = ".nbc"

_DIGEST_SIZE = hashlib.sha256().digest_size


class Damaged(Exception):
    """A file is not as it was written."""


def read(path: Path) -> bytes:
    """Return what was given to :func:`write`.

    Raises
    ------
    Damaged
        It is not as it was written.
    OSError
        There is none, it cannot be read, or it may be somebody else's.
    """
    data = trust.read_file(path)
    start = len(FORM) + _DIGEST_SIZE
    if not data.startswith(FORM) or hashlib.sha256(data[start:]).digest() != data[len(FORM) : start]:
        raise Damaged(f"{path} is not as it was written")
    return data[start:]


def is_whole(path: Path) -> bool:
    """Say whether a file can be used."""
    try:
        read(path)
    except (OSError, Damaged):
        return False
    return True


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that nobody else may write to, whole, or leave what was there.

    Raises
    ------
    OSError
        It cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(FORM + hashlib.sha256(content).digest() + content)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def packed(types: tuple, compiled) -> bytes:
    """Return the content of a file: the types of the arguments, and what numba compiled for them."""
    from numba.core.serialize import dumps

    return dumps((types, compiled._reduce()))


def unpacked(content: bytes, types: tuple, target):
    """Return what numba compiled, ready for use; None if that is for other types.

    It may raise anything: the libraries that the content was pickled with may have changed.
    """
    from numba.core.compiler import CompileResult

    kept_types, reduced = pickle.loads(content)
    return CompileResult._rebuild(target, *reduced) if kept_types == types else None
