"""Files in place of others: pointers of git-annex and Git LFS, web pages, links that lead nowhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mpiimg.engine.names import shown

#: Bytes that tell what a file is.
START = 1024

_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
_XML_ERROR = re.compile(rb"\s*<\?xml[^>]*>\s*<Error>.*?(<Code>(\w+)</Code>|$)", re.DOTALL)


def stand_in(path: Path, start: bytes) -> str:
    """Say of a file that stands for another what it is and how to get the other; "" of any other file.

    Parameters
    ----------
    path : Path
    start : bytes
        What it begins with, at least :data:`START` of them where it has as many.
    """
    if start.startswith(b"/annex/objects/"):
        return _not_here(path)
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "is a pointer of Git LFS, and not the file itself: get it with: git lfs pull --include "
            f"{path.name}"
        )
    if _HTML.match(start):
        return (
            "is a page of a web site (HTML), which a download leaves that needs a login or went wrong: "
            "download it again"
        )
    error = _XML_ERROR.match(start)
    if error:
        code = f": {error[2].decode()}" if error[2] else ""
        return f"is an answer of a web server (XML, an error{code}): download it again"
    return ""


def dangling(path: Path) -> str:
    """Say of a link that leads nowhere what it leads to; "" of what is no such link."""
    path = Path(path)
    if not path.is_symlink() or path.exists():
        return ""
    target = os.readlink(path)
    if "annex/objects/" in target:
        return _not_here(path)
    return f"is a link to {shown(target)}, which is not there"


def _not_here(path: Path) -> str:
    return (
        f"is a file of git-annex whose content is not here: get it with: datalad get {path} "
        f"(or git annex get {path})"
    )
