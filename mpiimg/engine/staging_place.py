"""Where a run stages its arrays: in its work folder, or in a folder elsewhere that a link there leads to.

Marks, leases and unfinished results stay in the work folder, beside the results. So whoever goes on with a
run finds what it has staged without being told where; and if that has been removed, as scratch disks are
cleaned, its marks go too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
from pathlib import Path

from mpiimg.errors import BadInput

log = logging.getLogger("mpiimg")

#: Name of the link in the work folder.
LINK = "staged"

#: Names of the folder of marks.
MARKS = "journal"


def place_staged(work: Path, elsewhere: Path | None) -> Path:
    """Return the folder that a run stages its arrays in, and make it.

    Where the last run of this work folder has left something, that is gone on with where it lies.

    Parameters
    ----------
    work : Path
        The work folder, of which this run has the lease.
    elsewhere : Path, optional
        The folder that a user wants staged arrays in; all nodes share it.

    Raises
    ------
    BadInput
        Nothing can be written there.
    """
    link = work / LINK
    if link.is_symlink() and not link.is_dir():
        log.warning(
            "%s is gone, where the last run had staged its arrays: they are made again", _target(link)
        )
        link.unlink()
        shutil.rmtree(work / MARKS, ignore_errors=True)
    place = link if link.is_symlink() else work
    if elsewhere is None:
        return place
    wanted = _name_of(work, elsewhere)
    if place == link or any((work / MARKS).glob("*")):
        there = _target(link) if place == link else work
        if there != wanted:
            log.warning("%s: the run goes on there, where the last one left it, and not in --work-dir", there)
        return place
    try:
        if wanted.exists():
            shutil.rmtree(wanted)  # of a work folder that was removed by hand
        wanted.mkdir(parents=True)
        link.symlink_to(wanted)
    except OSError as error:
        raise BadInput(f"--work-dir {elsewhere}: cannot write there: {error.strerror}") from None
    return link


def _name_of(work: Path, elsewhere: Path) -> Path:
    """Return the folder that belongs to a work folder, and to no other."""
    digest = hashlib.sha256(os.fsencode(work.resolve())).hexdigest()[:12]
    return elsewhere.resolve() / f"{work.name}-{digest}"


def _target(link: Path) -> Path:
    return Path(os.readlink(link))


def check_shared(staged: Path, elsewhere: Path, comm) -> None:
    """Refuse a folder that not all ranks see. Collective.

    Raises
    ------
    BadInput
        It lies on a disk of one node.
    """
    blind = [host for host in comm.allgather("" if _is_seen(staged) else socket.gethostname()) if host]
    if blind:
        raise BadInput(
            f"--work-dir {elsewhere}: {blind[0]} does not see there what another node has made; name a "
            "folder that all nodes share"
        )


def _is_seen(staged: Path) -> bool:
    return staged.is_dir()


def remove_staged_elsewhere(work: Path) -> None:
    """Remove what the run of a work folder has staged elsewhere, if it has."""
    link = work / LINK
    if link.is_symlink():
        shutil.rmtree(_target(link), ignore_errors=True)
