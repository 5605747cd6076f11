"""The lock on a run's work folder: of two runs at once one is refused, and what a dead one left is free.

It is a claim in that folder (mpiimg.engine.lease), so that it goes where the folder goes: a run that ends
well renames the folder, and the lock with it, before it removes what is in there.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpiimg.engine import lease as claims
from mpiimg.engine.atomic import unique
from mpiimg.engine.lease import Kind, State
from mpiimg.engine.mpi.runtime import on_root
from mpiimg.errors import BadInput, RunFailed, RunStopped

#: Seconds for which a run waits for another to be gone: a launcher may end before the last of its ranks.
PATIENCE = 3.0


@dataclass(frozen=True)
class Lock:
    """What a run holds: claim `number` in the folder `work`, signed with the word `run`.

    Without these two it stands for a lock that is not needed, since a job holds the scan that is in work.
    """

    work: Path
    number: int = 0
    run: str = ""

    @property
    def is_first(self) -> bool:
        """Whether no other run has had the folder."""
        return self.number <= 1

    def release(self, how: Kind) -> None:
        """Let others have the folder, if it still is the one that was locked."""
        if self.number and claims.read_owner(self.work, self.number).get("run") == self.run:
            with contextlib.suppress(OSError):  # a full disk, say; then it is free once this process is gone
                claims.end(self.work, self.number, how)


@contextlib.contextmanager
def held(lock: Lock, comm) -> Iterator[None]:
    """Release a lock where what is done under it fails or is stopped on all ranks. Collective."""
    try:
        yield
    except (RunFailed, RunStopped) as error:
        on_root(comm, lock.release, Kind.STOPPED if isinstance(error, RunStopped) else Kind.FAILED)
        raise


def take(work: Path, events: Path, out: Path, timeout: float) -> Lock:
    """Lock the folder `work`, made if missing, of a run that writes its events to `events`.

    Raises
    ------
    BadInput : another run is at work there
    OSError : nothing can be written there
    """
    run = uuid.uuid4().hex
    deadline = time.monotonic() + PATIENCE
    while True:
        state = claims.read_state(work, [*events.glob("*.jsonl"), *work.glob("journal/*.jsonl")])
        if not _is_held(state):
            number = claims.take(work, state, claims.sign(run, timeout))
            if number is not None:
                return Lock(work, number, run)
        if time.monotonic() > deadline:
            raise BadInput(_refusal(state, work, out))
        time.sleep(0.1)


def _is_held(state: State) -> bool:
    """Say whether a run is at work; what this process itself has left behind is over."""
    return state.kind is Kind.IN_WORK and not claims.is_this_process(state.owner)


def _refusal(state: State, work: Path, out: Path) -> str:
    since = f", since {state.owner['claimed']}" if state.owner else ""
    return (
        f"{out}: another run is at work there ({claims.who(state.owner)}{since}); wait until it has ended or "
        f"choose another --out; if you know that it is dead, remove {work / claims.CLAIMS}"
    )


def remove(work: Path) -> None:
    """Remove a work folder and its lock, and the folder of all of them where that was the last."""
    mark = f"{work.name}.removed"
    _remove_all(work.parent, mark)  # what a run left that died while it removed
    with contextlib.suppress(FileNotFoundError):
        work.replace(work.with_name(unique(mark)))
        _remove_all(work.parent, mark)
    with contextlib.suppress(OSError):
        work.parent.rmdir()


def _remove_all(folder: Path, mark: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        for path in [path for path in folder.iterdir() if path.name.startswith(mark)]:
            shutil.rmtree(path, ignore_errors=True)
