"""The one home of COMM_WORLD: start, agreed failure, signals, exit."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from mpiimg.engine.mpi.job import launched_rank
from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.nodes import processes_of_node
from mpiimg.engine.mpi.processes import mapped_files
from mpiimg.engine.mpi.stale_shm import remove_left_behind, remove_stale_segments
from mpiimg.engine.names import shown
from mpiimg.engine.system_errors import answer
from mpiimg.errors import BadInput, Exit, RunFailed, RunStopped

log = logging.getLogger("mpiimg")


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
    libraries = {
        os.path.realpath(path)
        for path in mapped_files(maps)
        if os.path.basename(path).startswith(("libmpi.so", "libmpich.so"))
    }
    if len(libraries) > 1:
        raise BadInput(
            f"two MPI libraries in one process ({', '.join(sorted(libraries))}): "
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
    """Start MPI and return the communicator of all ranks. Collective."""
    comm = start_world()
    settle(comm)
    return comm


def start_world():
    """Start MPI, where it has not been started, and return the communicator of all ranks.

    Raises
    ------
    BadInput
        There is no MPI library.
    """
    avoid_long_addresses()
    remove_stale_segments()
    remove_left_behind()
    life = lifetime()
    life.watchdog("the start of MPI")
    with life.stop.held_back():
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise BadInput(
                f"MPI cannot be loaded ({str(error).splitlines()[-1]}): pip install 'mpiimg[mpich]' brings "
                "one; for that of a site, load the modules that mpi4py was built with"
            ) from None
    life.watchdog("the start")
    refuse_singletons(MPI.COMM_WORLD.size)
    return MPI.COMM_WORLD


def settle(comm) -> None:
    """Look at how the ranks were started, and let each know the processes of the others. Collective."""
    life = lifetime()
    life.mpi_has_started(processes_of_node(comm))
    refuse_two_mpi_libraries()
    if lets_a_death_hang(comm.size) and log.isEnabledFor(logging.WARNING):
        say(
            comm,
            "mpiimg: warning: SLURM_KILL_BAD_EXIT is not 1: if a rank dies, the others may wait for it until "
            "the time limit; export SLURM_KILL_BAD_EXIT=1, or srun --kill-on-bad-exit=1",
        )


def world_rank() -> int:
    """Return the rank of this process among all."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank


def has_started() -> bool:
    """Say whether MPI runs in this process."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return MPI.Is_initialized() and not MPI.Is_finalized()


def has_ended() -> bool:
    """Say whether MPI has run in this process, and does no longer."""
    return "mpi4py.MPI" in sys.modules and not has_started()


def end_world() -> None:
    """End MPI, if it has been started: here, where a hang is noticed, as it is not once Python is gone."""
    if has_started():
        from mpi4py import MPI

        lifetime().watchdog("the end of MPI")
        MPI.Finalize()


def guard(comm, function: Callable[[], int | None]) -> int:
    """Run `function` on every rank and return the exit status; speak once.

    BadInput, RunFailed and RunStopped are raised by all ranks alike. Anything
    else, a SystemExit too, is an error inside an exchange, in which the others may wait for ever:
    print it, in one line where the system refused something, and abort the job.
    """
    try:
        return int(function() or Exit.DONE)
    except (BadInput, RunFailed, RunStopped) as error:
        status, line = verdict(error)
        say(comm, line)
        return status
    except BaseException as error:
        who, refused = f"rank {comm.rank} on {socket.gethostname()}", answer(error)
        if refused:
            put(f"mpiimg: failed: {who}: {refused}", sys.stderr)
        else:
            put(f"mpiimg: {who} aborts the job:\n{traceback.format_exc().rstrip()}", sys.stderr)
        abort(comm, Exit.FAILED)


def verdict(error: BadInput | RunFailed | RunStopped) -> tuple[Exit, str]:
    """Return the exit status of what has ended so, and the line that says why."""
    if isinstance(error, BadInput):
        return Exit.BAD_INPUT, f"mpiimg: error: {shown(error)}"
    if isinstance(error, RunFailed):
        return Exit.FAILED, f"mpiimg: failed: {error}"
    return Exit.STOPPED, f"mpiimg: stopped: {error}"


def refused(error: BadInput) -> int:
    """Say why nothing is begun, once for all processes that were launched, and return the exit status.

    It is for where there is no communicator yet; a :func:`guard` speaks where there is one.
    """
    status, line = verdict(error)
    if launched_rank() == 0:
        put(line, sys.stderr)
    return status


def abort(comm, status: int) -> NoReturn:
    """End all ranks, once what was printed is on its way."""
    time.sleep(0.2)  # a launcher that is told to abort drops what it has not passed on yet
    lifetime().exits.disarm()  # MPI ends the process by exit(), and there it is the run's own end
    comm.Abort(status)
    # Abort may return before this process is ended, and one traceback is enough.
    raise SystemExit(int(status)) from None


def say(comm, text: str, stream=None) -> None:
    """Print `text` once for all ranks; on stderr, where nothing else is said."""
    if comm.rank == 0:
        put(text, stream or sys.stderr)


def put(text: str, stream, made_fit: bool = False) -> bool:
    """Print `text`, also where whoever reads, such as head, has seen enough and is gone.

    Whatever it was made of, a terminal shows it and takes no command from it, unless it was `made_fit` for a
    terminal before. Where it cannot be printed, as on a full disk, the work goes on;
    :func:`check_printed` fails where that was an answer.

    Returns
    -------
    bool
        Whether it could be printed.
    """
    global _unprinted
    if _aside is not None:
        _aside()
    try:
        print(text if made_fit else shown(text, lines=True), file=stream, flush=True)
        return True
    except OSError as error:
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            _unprinted = error.strerror
        # What is still in the stream's buffer goes nowhere too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False


#: Called before anything is printed: what is drawn on the terminal leaves its line.
_aside: Callable[[], None] | None = None


def steps_aside(function: Callable[[], None] | None) -> None:
    """Call a function before anything is printed from here on; None to call none."""
    global _aside
    _aside = function


#: Why an answer could not be printed.
_unprinted: str | None = None


def check_printed(status: int) -> int:
    """Return the status of a tool that ended with this one: it failed if its answer could not be printed."""
    if _unprinted is None or status != Exit.DONE:
        return status
    put(f"mpiimg: failed: standard output: {_unprinted}; send it elsewhere", sys.stderr)
    return Exit.FAILED


def over_ranks(comm, sums: Mapping[str, float], maxima: Mapping[str, float]) -> dict[str, float]:
    """Return numbers combined over all ranks: the sums of some, the maxima of others. Collective.

    No rank gets a list of what every rank has, which would grow with their number. Sums of integers are exact
    below 2**53.
    """
    from mpi4py import MPI

    combined = {}
    for numbers, operation in ((sums, MPI.SUM), (maxima, MPI.MAX)):
        values = np.array(list(numbers.values()), dtype=np.float64)
        comm.Allreduce(MPI.IN_PLACE, values, operation)
        combined |= dict(zip(numbers, values.tolist(), strict=True))
    return combined
