"""The one way in which small and whole files are written: complete under another name, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mpiimg.engine.system_errors import naming


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let a file be written under a name that no other process uses, and then take the place of `path`.

    What others find at `path` is whole, old or new, also after a power loss. Where writing fails nothing is
    left.

    Parameters
    ----------
    path : Path
        Of the file, which need not exist.

    Yields
    ------
    Path
        To write to, in the same folder.

    Raises
    ------
    OSError
        It cannot be written.
    """
    path = Path(path)
    part = path.with_name(unique(f".{path.name}.part"))
    try:
        yield part
        sync(part)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file; see :func:`replacing`."""
    with naming(path), replacing(path) as part:
        part.write_bytes(data)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that nobody looks at yet; it would survive a power loss, its name may not.

    Raises
    ------
    OSError
        It cannot be written.
    """
    with naming(path), open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; their names would survive a power loss.

    Raises
    ------
    OSError
        It cannot be made.
    """
    path = Path(path)
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    # Who may make a folder in another one may not always read that one, as in drop boxes.
    with contextlib.suppress(PermissionError):
        sync(path.parent)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, would survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unique(name: str) -> str:
    """Return a name that no other process uses."""
    return f"{name}.{socket.gethostname()}-{os.getpid()}"
