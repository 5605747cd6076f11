"""What a user's function changes of the process that it runs in, put back when it is over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """Put back the working folder, from which paths lead, and the umask, which new files follow."""
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    mask = os.umask(0o077)
    os.umask(mask)
    try:
        yield
    finally:
        os.umask(mask)
        os.fchdir(folder)
        os.close(folder)
