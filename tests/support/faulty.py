"""A run in which something goes wrong on one rank, at a stage and chunk that a test chooses.

python -m support.faulty RANK STAGE CHUNK FAULT WHAT -- toy NAME OUT TIMEOUT
python -m support.faulty RANK STAGE CHUNK FAULT WHAT -- mpiimg-mask ...
"""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import time
from collections.abc import Callable

import numpy as np


def die(what: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(what: str) -> None:
    """Stop, as a process on a node that hangs: no thread of it runs any more."""
    os.kill(os.getpid(), signal.SIGSTOP)


def hang_in_read(what: str) -> None:
    """Read from a pipe that nobody writes to."""
    with open(what, "rb") as pipe:
        pipe.read()


def pause(what: str) -> None:
    pathlib.Path(what).touch()
    time.sleep(0.2)


def run_out_of_memory(what: str) -> None:
    """Ask for more than this process may have."""
    limit = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit + (64 << 20), -1))
    np.empty(1 << 30, np.uint8)


def reach_a_quota(what: str) -> None:
    """Let no file grow, nor be written beyond its first bytes, as a quota does; needs no root."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, -1))


def shrink(what: str) -> None:
    """Cut a file after its header."""
    os.truncate(what, 400)


def touch(what: str) -> None:
    """Give a file another time."""
    os.utime(what)


FAULTS: dict[str, Callable[[str], None]] = {
    function.__name__: function
    for function in (die, freeze, hang_in_read, pause, run_out_of_memory, reach_a_quota, shrink, touch)
}


def main(words: list[str]) -> int:
    from mpi4py import MPI

    from mpiimg.engine.mpi import runtime

    rank, stage, chunk, fault, what, _, name, *rest = words
    comm = MPI.COMM_WORLD

    def hook(here: str, number: int) -> None:
        everywhere = stage == "any"
        if comm.rank == int(rank) % comm.size and (everywhere or (here, number) == (stage, int(chunk))):
            FAULTS[fault](what)

    if stage == "exchange":
        before_exchange(hook)
    if name == "toy":
        return runtime.guard(comm, lambda: run_toy(hook, comm, *rest))
    from mpiimg.engine.log.logbook import Logbook
    from mpiimg.tools import cli

    turn_to = Logbook.turn_to

    def turning(self, stage, number):
        hook(stage.name, number)
        turn_to(self, stage, number)

    Logbook.turn_to = turning
    return cli.main(name, rest)


def before_exchange(hook: Callable) -> None:
    """Call `hook` ahead of every exchange, numbered."""
    from mpiimg.engine.mpi import redistribute

    original, count = redistribute._alltoall, [0]

    def exchange(*arguments):
        hook("exchange", count[0])
        count[0] += 1
        return original(*arguments)

    redistribute._alltoall = exchange


def run_toy(hook: Callable, comm, name: str, out: str, timeout: str) -> int:
    from support import toy

    from mpiimg.engine.recipe import Options
    from mpiimg.engine.run import run

    options = Options(
        pathlib.Path(out), toy.PLENTY, sync_every=0.0, timeout=float(timeout), command="toy again"
    )
    run(toy.TOYS[name](hook, **toy.LONG[name]).recipe, comm, options)
    return 0
