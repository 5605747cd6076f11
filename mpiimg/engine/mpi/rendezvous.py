"""Before a collective call all ranks compare what they are about to do; where they differ all end alike.

All ranks of a script build the same graph and make the same calls in the same order. One that skips a call,
makes one more, or leaves the script early would have the others wait for ever. So each public collective call
begins with a rendezvous, and the end of the process is one too.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import FrameType

import numpy as np

from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.runtime import world_rank
from mpiimg.engine.mpi.waiting import soft_barrier, wait_until
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

#: What a rank that ends its script does, in place of a call.
END = "end"

#: What to do about calls that differ.
ADVICE = "every rank must make the same calls in the same order"

#: What to do about graphs that differ.
SAME_GRAPH = "every rank must read the same files and pass the same values"

#: Bytes of the digest of a call. A message is that and its complement: the minimum of all tells whether all
#: are equal, and a reduction costs the same for any number of ranks.
_DIGEST = 16

#: Most ranks that a message names.
_NAMED = 4


@dataclass(frozen=True)
class Call:
    """What a rank is about to do.

    Parameters
    ----------
    kind : str
        Name of the call, such as "write"; END for the end of the process.
    digest : str
        Of the graph, or of why the process ends.
    site : str
        File and line in the user's code.
    number : int
        How many calls over this communicator came before.
    why : str
        Of an end: what it is in words, as in "rank 2 ...".
    status : int
        Of an end: the exit status that it asks for.
    rank : int
        Of the process, among all.
    said : str
        Of an end by an error that ranks have raised since their calls differed: that error.
    """

    kind: str
    digest: str
    site: str
    number: int = 0
    why: str = ""
    status: int = 0
    rank: int = 0
    said: str = ""

    @property
    def message(self) -> np.ndarray:
        """The bytes that ranks compare."""
        # Ranks may end at different lines.
        what = (self.kind, self.digest, "" if self.kind == END else self.site, str(self.number))
        digest = hashlib.blake2b("\0".join(what).encode(errors="surrogatepass"), digest_size=_DIGEST).digest()
        mine = np.frombuffer(digest, np.uint8)
        return np.concatenate([mine, ~mine])

    @property
    def words(self) -> str:
        """What this rank does, as in "rank 2 ..."."""
        return self.why if self.kind == END else f"called mi.{self.kind} at {self.site}"


#: What a rank that ends its script does if it speaks for all: called with the error that the others raise.
Speak = Callable[[Exception], None]


class Channel:
    """What the ranks of a communicator compare their calls over: a duplicate, which nobody else uses."""

    def __init__(self, comm, meanwhile: Callable[[], object] | None = None):
        soft_barrier(comm, meanwhile)
        self.comm = comm.Dup()
        #: Calls so far.
        self.count = 0
        #: What all ranks raised, once they differed.
        self.error: Exception | None = None
        #: Whether a rank that ended its script has said so.
        self.said = False

    def post(self, call: Call) -> tuple:
        """Begin to compare; returns the request and where its outcome goes."""
        from mpi4py import MPI

        mine, least = call.message, np.empty(2 * _DIGEST, np.uint8)
        return self.comm.Iallreduce(mine, least, MPI.MIN), least, mine

    def judge(self, call: Call, least: np.ndarray, speak: Speak | None = None) -> Exception | None:
        """Return what all ranks raise if their calls differ. Collective, once the request is done."""
        self.count += 1
        if np.array_equal(least[:_DIGEST], ~least[_DIGEST:]):
            return None
        calls = self.comm.allgather(call)
        self.error = difference(calls)
        # A rank that failed shows its own traceback; else it is rank 0 that speaks.
        speaker = next((rank for rank, one in enumerate(calls) if one.kind == END and one.status), 0)
        if calls[speaker].kind == END:
            if speaker == self.comm.rank and speak is not None:
                speak(self.error)
            soft_barrier(self.comm)  # whoever ends first ends the job, and nothing more is printed
            self.said = True
        return self.error

    def free(self) -> None:
        """Release the duplicate. Collective."""
        if self.comm is not None:
            self.comm.Free()
            self.comm = None


#: The channels of this process, in the order in which they were made.
_channels: list[Channel] = []
_keyval: int | None = None
#: The process that has made calls; none yet.
_process: int | None = None

#: Where this process made its last call, for words.
_last = ""


def rendezvous(comm, kind: str, digest: str) -> None:
    """Go on if all ranks make this same call; else raise the same error on all. Collective.

    The first act of each public collective call. It waits for the other ranks without taking a core from
    them. Over one rank it costs some microseconds and never raises for what other ranks do.

    Parameters
    ----------
    comm : communicator
        Of the ranks that make the call.
    kind : str
        Name of the call, such as "compute" or "write".
    digest : str
        Of all that the call is given: the graph, and what else must be alike on all ranks.

    Raises
    ------
    BadInput
        The ranks do not make the same call from the same line, or one has left the script; or this thread or
        process is none that may call.
    RunFailed
        A rank has left the script by an error of its own.
    RunStopped
        A rank has left it since a signal asked for it.
    """
    global _last, _process
    refuse_elsewhere(kind)
    _process = os.getpid()
    site = call_site()
    _last = f"mi.{kind} at {site}"
    if comm.size == 1:
        return
    watchdog = lifetime().watchdog
    watchdog(f"mi.{kind} at {site}, waits for the other ranks to call it", waits=True)
    channel = _channel(comm)
    if channel.error is not None:
        raise channel.error.with_traceback(None)
    call = Call(kind, digest, site, channel.count, rank=world_rank())
    request, least, _ = channel.post(call)
    wait_until(request.Test)
    error = channel.judge(call, least)
    watchdog(f"mi.{kind} at {site}")
    if error is not None:
        raise error


def farewell(
    comm,
    why: str,
    status: int,
    speak: Speak,
    *,
    digest: str = "",
    patience: float | None = None,
) -> Exception | None:
    """Tell the other ranks that this one makes no further call. Collective over all communicators in use.

    Parameters
    ----------
    comm : communicator
        Of all ranks; that of each call that was made comes in too.
    why : str
        What this rank does, as in "rank 2 ...".
    status : int
        The exit status that it asks for.
    speak : callable
        Called with what the others raise, if this rank speaks for all.
    digest : str
        Of why it ends: ranks that end for the same reason do so alike.
    patience : float, optional
        Seconds that this rank waits for the others; by default as long as it takes.

    Returns
    -------
    Exception or None
        What all ranks that still made calls have raised; None if all have ended alike.

    Raises
    ------
    TimeoutError
        The others did not come.
    """
    until = None if patience is None else time.monotonic() + patience

    def in_time() -> None:
        if until is not None and time.monotonic() > until:
            raise TimeoutError

    _channel(comm, in_time)
    found = shared_error()
    said = str(found) if found is not None and status else ""
    pending = []
    for channel in _channels:
        if channel.error is None:
            call = Call(END, digest, "", channel.count, why, status, world_rank(), said)
            pending.append((channel, call, *channel.post(call)))

    def some_done() -> bool:
        in_time()
        return any(request.Test() for _, _, request, _, _ in pending)

    while pending:
        wait_until(some_done)
        # Tested before, a request is null, and tests as done again.
        for entry in [one for one in pending if one[2].Test()]:
            channel, call, _, least, _ = entry
            pending.remove(entry)
            error = channel.judge(call, least, speak)
            found = found or error
    return found


def last_call() -> str:
    """Return the last call of this process and where it was, as "mi.write at script.py:12"; empty if none."""
    return _last


def open_channels() -> bool:
    """Say whether this process has made calls together with other ranks."""
    return os.getpid() == _process and bool(_channels)


def was_said(error: BaseException) -> bool:
    """Say whether another rank has printed this error, which all have raised."""
    return any(channel.error is error and channel.said for channel in _channels)


def all_know(comm, error: BaseException) -> bool:
    """Say whether it is all ranks of a communicator that have raised this error."""
    return _channel(comm).error is error


def shared_error() -> Exception | None:
    """Return the error that the ranks have raised since their calls differed; None where they did not."""
    return next((channel.error for channel in _channels if channel.error is not None), None)


def refuse_elsewhere(kind: str) -> None:
    """Refuse a call from where no rank may call.

    Raises
    ------
    BadInput
        It is made in a thread, or in a process that a rank has started.
    """
    if threading.current_thread() is not threading.main_thread():
        raise BadInput(
            f"mi.{kind} at {call_site()}: called in a thread; "
            "it is the main thread of each rank that must call it"
        )
    multiprocessing = sys.modules.get("multiprocessing.process")
    is_forked = _process not in (None, os.getpid())
    if is_forked or (multiprocessing and multiprocessing.parent_process() is not None):
        raise BadInput(
            f"mi.{kind} at {call_site()}: called in a process that a rank has started, which is no rank "
            "itself; call it in the script, and keep the script's own code below if __name__ == '__main__'"
        )


def call_site() -> str:
    """Return file and line of the innermost frame that is not ours, the same on all ranks."""
    frame = sys._getframe(1)
    while frame is not None and not is_users(frame):
        frame = frame.f_back
    return site_of(frame.f_code.co_filename, frame.f_lineno) if frame is not None else "?"


def is_users(frame: FrameType) -> bool:
    """Say whether a frame is of code that is not ours, nor of what wraps ours."""
    return frame.f_globals.get("__name__", "").partition(".")[0] not in ("mpiimg", "contextlib")


def site_of(file: str, line: int) -> str:
    """Return a place as all ranks and nodes call it.

    A file beside the script, or below it, is named from there; another by its last two components, since
    nodes may have the same files in other folders.
    """
    path = PurePath(file)
    if path.is_absolute():
        folder = PurePath(os.path.abspath(program())).parent
        path = path.relative_to(folder) if folder in path.parents else PurePath(*path.parts[-2:])
    return f"{path}:{line}"


def program() -> str:
    """Return the path of the program that Python runs; none where it is a line of commands."""
    # At the end of the interpreter, the module no longer says.
    return getattr(sys.modules.get("__main__"), "__file__", None) or (sys.argv or [""])[0]


def difference(calls: Sequence[Call]) -> Exception:
    """Return the error of ranks that do not make the same call.

    Parameters
    ----------
    calls : sequence of Call
        By rank.
    """
    ends = [call for call in calls if call.kind == END and call.status]
    kind = BadInput
    if any(call.status == Exit.STOPPED for call in ends):
        kind = RunStopped
    elif any(call.status != Exit.BAD_INPUT for call in ends):
        kind = RunFailed
    if said := next((call.said for call in ends if call.said), ""):
        return kind(said)
    groups: dict[bytes, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.message.tobytes(), []).append(call)
    # Those whom most ranks agree with are in the right, or else the first.
    *odd, usual = sorted(groups.values(), key=lambda group: (len(group), -group[0].rank))
    odd.sort(key=lambda group: (group[0].kind != END, group[0].rank))
    one, others = odd[0][0], usual[0]
    who = "the others" if len(usual) > 1 else _ranks(usual)
    if one.kind == others.kind != END and one.site == others.site:
        return kind(f"{_ranks(odd[0])} {one.words} with another graph than {who}: {SAME_GRAPH}")
    more = "".join(f", {_ranks(group)} {group[0].words}" for group in odd[1 : _NAMED - 1])
    text = f"{_ranks(odd[0])} {one.words}{more} where {who} {others.words}"
    return kind(text if ends else f"{text}: {ADVICE}")


def _ranks(group: Sequence[Call]) -> str:
    """Return "rank 2", "ranks 2, 5 and 7", or "ranks 2, 5, 7, 9 and 12 others"."""
    ranks = [call.rank for call in group]
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = len(ranks) - _NAMED
    named = [str(rank) for rank in (ranks[:_NAMED] if more > 1 else ranks)]
    last = f"{more} others" if more > 1 else named.pop()
    return f"ranks {', '.join(named)} and {last}"


def _channel(comm, meanwhile: Callable[[], object] | None = None) -> Channel:
    """Return the channel of a communicator; make it in its first call. Collective there."""
    from mpi4py import MPI

    global _keyval
    if _keyval is None:
        _keyval = MPI.Comm.Create_keyval(delete_fn=_forget)
    channel = comm.Get_attr(_keyval)
    if channel is None:
        channel = Channel(comm, meanwhile)
        comm.Set_attr(_keyval, channel)
        _channels.append(channel)
    return channel


def _forget(comm, keyval, channel: Channel) -> None:
    """Free the channel of a communicator that its owner frees."""
    if channel in _channels:
        _channels.remove(channel)
        channel.free()
