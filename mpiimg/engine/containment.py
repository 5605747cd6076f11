"""Containment: an error in the work on one unit leaves that unit out, and the others go on.

A unit is what a run can do without: an exposure, a patch, a subject. Whatever the work on it raises, the run
records and goes on, but for what is not of this unit:

- memory that ran out, staged bytes that are not what was written, and errors of the file system
  (:func:`ends_run`): they would meet the next unit too;
- one type of error at one line in more than a tenth of the units (:func:`systematic`): that is a fault of the
  program, and not of the data.

:class:`~mpiimg.errors.BadInput` says what is wrong with the data, and never counts as a fault of the program.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, DamagedData, RunFailed

#: So many units may always fail alike, and where there are many, this share of them.
MIN_ALIKE, SHARE_ALIKE = 3, 10

#: Errors of the system that are about one file: it is gone, closed to us, or makes readers ask for nonsense.
OF_ONE_FILE = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EOVERFLOW,
    )
)

#: The file whose frames are called by the rank, host and chunk that is worked on.
NAMES_THE_RANK = os.path.join("engine", "log", "logbook.py")

#: Most letters of a traceback that are recorded, the last ones.
MAX_TRACEBACK = 10_000


@dataclass(frozen=True)
class Units:
    """What the chunks of a stage are parts of.

    Parameters
    ----------
    name_of : callable
        Called as name_of(number); returns the name of the unit that a chunk belongs to.
    count : int
        How many units there are.
    kind : str
        What they are, for messages: "exposure", "patch".
    strict : bool
        One that fails ends the run.
    kept : bool
        What was made of the others stays when the run is over, for the run that takes up what was left out.
    """

    name_of: Callable[[int], str]
    count: int
    kind: str
    strict: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Fault:
    """Why a unit is left out.

    Parameters
    ----------
    unit : str
        Its name.
    stage : str
        What was done with it.
    reason : str
        One line.
    place : str
        Type of the error and the line that raised it; empty for :class:`BadInput`.
    traceback : str
        Likewise.
    """

    unit: str
    stage: str
    reason: str
    place: str = ""
    traceback: str = ""

    def as_record(self) -> dict[str, str]:
        """Return it as run.json has it."""
        return asdict(self)


def ends_run(error: BaseException) -> bool:
    """Say whether an error is not of the unit that it met: it is of the memory, or of the file system.

    An OSError that a reader raises about what it reads has no errno.
    """
    one: BaseException | None = error
    while one is not None:
        of_system = isinstance(one, OSError) and one.errno is not None and one.errno not in OF_ONE_FILE
        if isinstance(one, MemoryError | DamagedData) or of_system or not isinstance(one, Exception):
            return True
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return False


def place_of(error: BaseException) -> str:
    """Return the type of an error and where it was raised, by module and line: the same on every machine."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" at {frame.tb_frame.f_globals.get('__name__', '?')}:{frame.tb_lineno}" if frame else ""
    return f"{type(error).__qualname__}{where}"


def fault_of(error: BaseException, unit: str, stage: str) -> Fault:
    """Return the fault that an error in the work on a unit is.

    Parameters
    ----------
    error : BaseException
        For which :func:`ends_run` is False.
    unit : str
        Name of the unit.
    stage : str
        What was done with it.
    """
    if isinstance(error, BadInput):
        return Fault(unit, stage, shown(error))
    text = " ".join(str(error).split())
    reason = f"{unit}: {type(error).__qualname__}{': ' * bool(text)}{text} ({stage})"
    return Fault(unit, stage, shown(reason), place_of(error), _traceback(error)[-MAX_TRACEBACK:])


def _traceback(error: BaseException) -> str:
    """Return the traceback of an error: the same on any ranks, so without the frame that names one."""
    report = traceback.TracebackException.from_exception(error)
    one: traceback.TracebackException | None = report
    while one is not None:
        kept = [frame for frame in one.stack if not frame.filename.endswith(NAMES_THE_RANK)]
        one.stack = traceback.StackSummary.from_list(kept)
        one = one.__cause__ or one.__context__
    return "".join(report.format()).rstrip()


def systematic(faults: Iterable[Fault], units: int) -> Fault | None:
    """Return the first fault of a kind that more than max(3, a tenth) of the units have, or None.

    Parameters
    ----------
    faults : iterable of Fault
        In an order that does not depend on the ranks.
    units : int
        How many units there are.
    """
    alike: dict[str, dict[str, Fault]] = {}
    for fault in faults:
        if fault.place:
            alike.setdefault(fault.place, {}).setdefault(fault.unit, fault)
    many = max(MIN_ALIKE, units / SHARE_ALIKE)
    return next((next(iter(same.values())) for same in alike.values() if len(same) > many), None)


def refuse_systematic(faults: Sequence[Fault], units: int, kind: str) -> None:
    """End the run where its faults are alike in too many of the units.

    Raises
    ------
    RunFailed
        They are; with the traceback of the first.
    """
    first = systematic(faults, units)
    if first is not None:
        count = len({fault.unit for fault in faults if fault.place == first.place})
        raise RunFailed(
            f"{first.place} in {count} of {units} {kind}s: a fault of the program, rather than of the data; "
            f"the first of them, {first.unit}, {first.stage}:\n{first.traceback}",
            first.place,
        )


def refuse_all_lost(faults: Sequence[Fault], units: int) -> None:
    """End the run where no unit is left, for the reason of the first.

    Raises
    ------
    BadInput
        None is, and the first cannot be used.
    RunFailed
        None is, and the work on the first failed.
    """
    if faults and len({fault.unit for fault in faults}) >= units:
        raise_first(faults)


def raise_first(faults: Sequence[Fault]) -> None:
    """End the run for the reason of the first fault."""
    first = faults[0]
    if first.place:
        raise RunFailed(f"{first.unit}, {first.stage}:\n{first.traceback}", first.place)
    raise BadInput(first.reason)


class Containment:
    """The faults of a run, on all ranks.

    Parameters
    ----------
    comm : communicator
        Of the ranks.
    faults : sequence of Fault
        Those that were met before the run, in headers.
    """

    def __init__(self, comm, faults: Sequence[Fault] = ()):
        self._comm = comm
        #: The same on all ranks, in the order of stages and chunks.
        self.faults = list(faults)
        self._lost: dict[str, list[Fault]] = {}
        self._own: list[tuple[int, Fault]] = []

    def contain(self, stage: Any, number: int, error: Exception) -> bool:
        """Note that a unit fails in a chunk of a stage; return False where the error is not the unit's."""
        if stage.units is None or ends_run(error):
            return False
        self._own.append((number, fault_of(error, stage.units.name_of(number), f"stage {stage.name}")))
        return True

    def end_stage(self, stage: Any) -> Mapping[int, str]:
        """Return which chunks of a stage failed, and why; the same on all ranks. Collective.

        Raises
        ------
        BadInput, RunFailed
            On all ranks alike: a unit failed and the units are strict, too many failed alike, or all did.
        """
        own, self._own = self._own, []
        if stage.units is None or not self._comm.allreduce(len(own)):
            return {}
        parts = self._comm.gather(own)
        if parts is not None:
            parts = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
        together = self._comm.bcast(parts)
        new = [fault for _, fault in together]
        units = stage.units
        if units.strict:
            raise_first(new)
        lost = self._lost.setdefault(units.kind, [])
        lost += new
        refuse_systematic(lost, units.count, units.kind)
        refuse_all_lost(lost, units.count)
        first: dict[str, Fault] = {}
        for fault in new:
            first.setdefault(fault.unit, fault)
        self.faults += first.values()
        return {number: fault.reason for number, fault in together}
