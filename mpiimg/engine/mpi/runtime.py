"""The one home of COMM_WORLD: start, agreed failure, signals, exit."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.mpi.stale_shm import remove_stale_segments
from mpiimg.engine.mpi.waiting import soft_barrier, wait_until
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

log = logging.getLogger("mpiimg")

#: Tag of the message by which a rank warns the others that it cannot go on.
WARNING_TAG = 75

#: Environment variables by which launchers tell a process its rank, before MPI is initialised.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


def launched_rank() -> int:
    """Return this process's rank as its launcher says, without starting MPI; 0 where nothing launched it."""
    for name in RANK_VARIABLES:
        if name in os.environ:
            return int(os.environ[name])
    return 0


def refuse_singletons(size: int, environment=os.environ) -> None:
    """Refuse to run as many separate copies where one job of many ranks was meant.

    With an --mpi that does not fit, srun starts every rank as a world of its
    own, without a word. Serial runs, mpiexec inside sbatch and real one-rank
    steps are left alone.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    told_alone = "1" in (environment.get("PMI_SIZE"), environment.get("OMPI_COMM_WORLD_SIZE"))
    if size == 1 and tasks > 1 and not told_alone:
        raise BadInput(
            f"srun started {tasks} tasks, but MPI sees each as a run of its own; "
            "use srun --mpi=pmi2 with the MPI from the wheel, --mpi=pmix with the site's Open MPI"
        )


def lets_a_death_hang(size: int, environment=os.environ) -> bool:
    """Say whether srun started this job and may let ranks wait for one that died.

    Under mpiexec in a batch job the tasks of the step are launchers, not ranks. What srun's own option
    --kill-on-bad-exit asks for is not to be seen from here.
    """
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    by_mpiexec = "MPI_LOCALNRANKS" in environment or "OMPI_COMM_WORLD_SIZE" in environment
    return size == tasks > 1 and not by_mpiexec and environment.get("SLURM_KILL_BAD_EXIT", "") in ("", "0")


def refuse_two_mpi_libraries(maps: str = "/proc/self/maps") -> None:
    """Refuse to run where two MPI libraries share the process."""
    try:
        with open(maps) as lines:
            paths = {line.split()[-1] for line in lines if ".so" in line}
    except OSError:
        return
    found = {
        os.path.realpath(p) for p in paths if os.path.basename(p).startswith(("libmpi.so", "libmpich.so"))
    }
    if len(found) > 1:
        raise BadInput(
            f"two MPI libraries in one process ({', '.join(sorted(found))}): "
            "build mpi4py and h5py against one of them (see docs/install.md)"
        )


def avoid_long_addresses(environment=os.environ, prefix: str = sys.prefix) -> None:
    """Let the MPI of the wheel use libfabric where srun started it by pmi2, before MPI starts.

    By UCX its ranks tell each other 4 KiB of address in pieces that, where they do not compress, are longer
    than the 1024 bytes that SLURM's pmi2 reads at once: now and then MPI_Init hangs or fails.
    """
    by_pmi2 = "SLURM_STEP_NUM_TASKS" in environment and "PMI_FD" in environment
    by_mpiexec = "MPI_LOCALNRANKS" in environment
    if by_pmi2 and not by_mpiexec and Path(prefix, "lib", "libmpi.so.12").exists():
        environment.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")


def world():
    """Start MPI and return the communicator of all ranks."""
    avoid_long_addresses()
    remove_stale_segments()
    from mpi4py import MPI

    refuse_singletons(MPI.COMM_WORLD.size)
    refuse_two_mpi_libraries()
    if lets_a_death_hang(MPI.COMM_WORLD.size) and log.isEnabledFor(logging.WARNING):
        say(
            MPI.COMM_WORLD,
            "mpiimg: warning: SLURM_KILL_BAD_EXIT is not 1: if a rank dies, the others may wait for it until "
            "the time limit; export SLURM_KILL_BAD_EXIT=1, or srun --kill-on-bad-exit=1",
        )
    return MPI.COMM_WORLD


def on_root(comm, function: Callable, *arguments, where: str | None = None) -> Any:
    """Call `function` on rank 0 and return its result on every rank. Collective.

    Raises
    ------
    BadInput : the function did
    RunFailed : it raised anything else
    """
    outcome = None
    if comm.rank == 0:
        try:
            outcome = function(*arguments), None
        except BadInput as error:
            outcome = None, error
        except Exception as error:
            outcome = None, RunFailed(_report(comm, where or getattr(function, "__name__", "start"), error))
    soft_barrier(comm)
    result, error = comm.bcast(outcome)
    if error is not None:
        raise error
    return result


def _ranks_of_this_node(comm):
    """Return a communicator of the ranks that share this rank's node; to be freed. Collective."""
    from mpi4py import MPI

    soft_barrier(comm)
    return comm.Split_type(MPI.COMM_TYPE_SHARED)


def once_a_node(comm, function: Callable[[], None], where: str) -> None:
    """Call `function` on one rank of each node, while the others sleep. Collective.

    Raises
    ------
    RunFailed : it raised on some node
    """
    node = _ranks_of_this_node(comm)
    report = None
    if node.rank == 0:
        try:
            function()
        except Exception as error:
            report = _report(comm, where, error)
    soft_barrier(comm)
    node.Free()
    failures = list(filter(None, comm.allgather(report)))
    if failures:
        raise RunFailed(failures[0])


def _report(comm, where: str, error: Exception) -> str:
    """Say who failed, where and how."""
    text = "".join(traceback.format_exception(error)).rstrip()
    return f"rank {comm.rank} on {socket.gethostname()}, {where}:\n{text}"


class Agreement:
    """What ranks must know of each other before they exchange data or go on.

    A rank that fails, or is asked by a signal to stop, warns the others with
    an empty message each; all look for one at every chunk boundary, where
    that costs nothing, and meet in :meth:`agree` before the next exchange.
    Nobody is left waiting in a collective, and all unwind together.

    Parameters
    ----------
    comm : of the ranks that agree
    outer : of the whole job, where they are one group of it: what ends another group stops this one
    """

    GO, STOP, BAD, FAIL = range(4)

    def __init__(self, comm, outer: Agreement | None = None):
        self._comm = comm.Dup()
        self._outer = outer
        self._warned = False
        self._error: Exception | None = None
        self._report = ""
        self.stop_requested = False

    def record(self, error: Exception, where: str) -> None:
        """Remember that this rank failed, and warn the others."""
        if self._error is None:
            self._error = error
            # What a group has agreed on is a report already.
            self._report = str(error) if isinstance(error, RunFailed) else _report(self._comm, where, error)
        self._warn()

    def request_stop(self) -> None:
        """Ask all ranks to stop, those of other groups too; what a signal does."""
        self.stop_requested = True
        if self._outer is not None:
            self._outer.request_stop()

    def interrupted(self) -> bool:
        """Say whether this rank should leave its chunks and agree."""
        if self._outer is not None and self._outer.interrupted():
            self.stop_requested = True
        if self.stop_requested:
            self._warn()
        return self._error is not None or self.stop_requested or self._comm.Iprobe(tag=WARNING_TAG)

    def agree(self) -> None:
        """Go on if every rank can; else raise the same exception on all. Collective.

        Raises
        ------
        BadInput : a rank met input that cannot be used
        RunFailed : a rank raised anything else
        RunStopped : a signal asked for it
        """
        if self._outer is not None and self._outer.interrupted():
            self.stop_requested = True
        state = self.GO
        if self._error is not None:
            state = self.BAD if isinstance(self._error, BadInput) else self.FAIL
        elif self.stop_requested:
            state = self.STOP
        states = np.empty(self._comm.size, dtype=np.uint8)
        mine = np.array([2 * state + self._warned], dtype=np.uint8)
        wait_until(self._comm.Iallgather(mine, states).Test)
        for _ in range(int((states & 1).sum()) - self._warned):
            self._comm.recv(tag=WARNING_TAG)
        self._warned = False
        worst = int(states.max()) >> 1
        if worst == self.GO:
            return
        if worst == self.STOP:
            raise RunStopped
        speaker = int(np.argmax(states >> 1 == worst))
        error, report = self._comm.bcast((str(self._error), self._report), speaker)
        raise BadInput(error) if worst == self.BAD else RunFailed(report)

    def wait(self) -> None:
        """Wait until all ranks are here, telling them meanwhile of a request to stop. Collective."""
        arrived = self._comm.Ibarrier()

        def ready() -> bool:
            self.interrupted()
            return arrived.Test()

        wait_until(ready)

    def close(self) -> None:
        """Release the communicator, once all ranks have agreed. Collective."""
        if self._comm is not None:
            self._comm.Free()
            self._comm = None

    def _warn(self) -> None:
        # A rank that was warned need not warn: whoever warned it has told all.
        if not self._warned and not self._comm.Iprobe(tag=WARNING_TAG):
            self._warned = True
            for other in range(self._comm.size):
                if other != self._comm.rank:
                    self._comm.isend(None, other, WARNING_TAG)


@contextlib.contextmanager
def stop_on_signals(agreement: Agreement):
    """Turn SIGTERM, SIGUSR1 and the first SIGINT into a request to stop at the next chunk boundary.

    After any of them SIGINT ends the process at once, wherever it is: in a
    kernel or a collective no handler of Python's would run.
    """

    def request(number, frame):
        agreement.request_stop()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guard(comm, function: Callable[[], int | None]) -> int:
    """Run `function` on every rank and return the exit status; speak once.

    BadInput, RunFailed and RunStopped are raised by all ranks alike. Anything
    else is an error inside an exchange, in which the others may wait for ever:
    print it and abort the job.
    """
    try:
        return int(function() or Exit.DONE)
    except BadInput as error:
        say(comm, f"mpiimg: error: {error}")
        return Exit.BAD_INPUT
    except RunFailed as error:
        say(comm, f"mpiimg: failed: {error}")
        return Exit.FAILED
    except RunStopped as error:
        say(comm, f"mpiimg: stopped: {error}")
        return Exit.STOPPED
    except BaseException:
        where = f"mpiimg: rank {comm.rank} on {socket.gethostname()} aborts the job:\n"
        sys.stderr.write(where + traceback.format_exc())
        sys.stderr.flush()
        time.sleep(0.2)  # a launcher that is told to abort drops what it has not passed on yet
        comm.Abort(Exit.FAILED)
        # Abort may return before this process is ended, and one traceback is enough.
        raise SystemExit(int(Exit.FAILED)) from None


def say(comm, text: str, stream=None) -> None:
    """Print `text` once for all ranks; on stderr, where nothing else is said."""
    if comm.rank == 0:
        put(text, stream or sys.stderr)


def put(text: str, stream) -> None:
    """Print `text`, also where whoever reads, such as head, has seen enough and is gone."""
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # What is still in the stream's buffer goes nowhere too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def progress(comm, name: str, total: int, shown: bool):
    """Draw a line with chunks done, rate and time left, of rank 0's share; yields what to call for a step."""
    if not (shown and comm.rank == 0):
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=f"{name:<16}", unit=" chunks", mininterval=0.5) as bar:
        yield bar.update


def memory_per_rank(comm, ranks_a_node: int | None = None) -> int:
    """Return the bytes that a rank may use: its share of what SLURM, a cgroup or node gives. Collective.

    `ranks_a_node` is how many share a node; without it those of `comm` that do.
    """
    from mpi4py import MPI

    node = _ranks_of_this_node(comm)
    share = _node_memory() * 9 // 10 // (ranks_a_node or node.size)
    node.Free()
    return comm.allreduce(share, MPI.MIN)


def over_ranks(comm, sums: Mapping[str, float], most: Mapping[str, float]) -> dict[str, float]:
    """Return numbers of all ranks together: the sums of some, the largest of others. Collective.

    No rank gets a list of what every rank has, which would grow with their number. Sums of integers are exact
    below 2**53.
    """
    from mpi4py import MPI

    together = {}
    for numbers, operation in ((sums, MPI.SUM), (most, MPI.MAX)):
        values = np.array(list(numbers.values()), dtype=np.float64)
        comm.Allreduce(MPI.IN_PLACE, values, operation)
        together |= dict(zip(numbers, values.tolist(), strict=True))
    return together


def node_count(comm) -> int:
    """Return how many nodes the ranks of `comm` are on. Collective."""
    node = _ranks_of_this_node(comm)
    count = comm.allreduce(int(node.rank == 0))
    node.Free()
    return count


def _node_memory(environment=os.environ, cgroups: str = "/proc/self/cgroup") -> int:
    """Return the bytes that this job may use on this node: the least of what node, SLURM and cgroups give."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    per_node, per_cpu, cpus = (
        int(value) if (value := environment.get(name, "")).isdigit() else 0
        for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE")
    )
    # SLURM counts in MiB; 0 means all of the node.
    limits += [share << 20 for share in (per_node, per_cpu * cpus) if share]
    for path in _cgroup_limits(cgroups):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)


def _cgroup_limits(cgroups: str) -> list[Path]:
    """Return the files that may limit the memory of this process: version 2 up to its root, and version 1."""
    root = Path("/sys/fs/cgroup")
    found = [root / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in Path(cgroups).read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers:
                own = root / name.lstrip("/")
                found += [
                    folder / "memory.max" for folder in (own, *own.parents) if folder.is_relative_to(root)
                ]
    return found
