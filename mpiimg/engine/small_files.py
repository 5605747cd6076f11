"""Small files of text that the user names, read whole: tables, descriptions, pipelines."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mpiimg.engine.stand_ins import START, dangling, stand_in
from mpiimg.errors import BadInput

#: Bytes that a file of text may have: no table or description comes near, and a rank holds it several times.
MAX_BYTES = 16 << 20


def read_small(path: str | os.PathLike, what: str, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a small file.

    Parameters
    ----------
    path : path
    what : str
        Names it in messages: "b-values".
    limit : int
        Bytes that it may have.

    Raises
    ------
    BadInput
        It cannot be read, is no regular file, stands for one that is not here, or is larger than that.
    """
    try:
        check_regular(Path(path))
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot read {what}: {getattr(error, 'strerror', None) or error}") from None
    if said := stand_in(Path(path), content[:START]):
        raise BadInput(f"{path}: {said}")
    if len(content) > limit:
        raise BadInput(f"{path}: larger than {limit >> 20} MB, which {what} never are; name another file")
    return content


def read_text(path: str | os.PathLike, what: str, limit: int = MAX_BYTES) -> str:
    """Return the text of a small file in UTF-8, without a byte-order mark.

    Raises
    ------
    BadInput
        As :func:`read_small`, or it is no such text.
    """
    try:
        return read_small(path, what, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot read {what}: not text in UTF-8 ({error})") from None


def check_regular(path: Path) -> None:
    """Refuse what is no file on a disk: nothing may ever come out of a pipe, and no end of a device.

    Raises
    ------
    OSError
        It is not there, or a folder.
    BadInput
        It is a pipe, a socket or a device, or a link that leads nowhere.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if said := dangling(path):
            raise BadInput(f"{path}: {said}") from None
        raise
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise BadInput(
            f"{path}: is no file on a disk, but a pipe, as <(...) of a shell is, or a device; "
            "write its content into a file"
        )
