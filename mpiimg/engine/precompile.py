"""Compile kernels ahead of use, so that ranks find them in numba's cache.

python -m mpiimg.engine.precompile [--portable] [MODULE:FUNCTION ...]

With --portable it compiles for the CPU that runs with --portable use. What is named is compiled in this very
process, as ranks ask for; without names those of all steps that are not compiled yet are, on all cores.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from mpiimg.engine.mpi.job import environment_of_no_rank
from mpiimg.engine.plugins import kernels as kernels_of_all_steps
from mpiimg.engine.plugins import load_object
from mpiimg.engine.records import DamagedRecord, read_record, write_record
from mpiimg.kernels import cache, jit
from mpiimg.kernels.disk import kept

#: Seconds between looks whether compiling is still of use.
LOOK = 0.1

#: Processes that compile at a time; each takes some 300 MB, and the longest kernel a fifth of the whole.
MAX_PROCESSES = 6


def missing(kernels: Iterable[str]) -> list[str]:
    """Return which of `kernels` are not kept, whole, for this CPU, where this process looks for them.

    Parameters
    ----------
    kernels : iterable of str
        "module:function" of functions that call kernels on tiny inputs, as steps declare them.
    """
    folders = cache.ours().folders()
    return [kernel for kernel in kernels if not _is_kept(kernel, folders)]


def untrusted() -> list[str]:
    """Say of each place for kernels that is passed over why somebody else may have put code there."""
    return cache.ours().problems()


def compile_here(kernels: Iterable[str]) -> None:
    """Compile `kernels`, or load them where they are compiled, and note in which files they are."""
    for kernel in kernels:
        load_object(kernel)()
        # Without the note the next run calls the kernels once more, which then costs half a second.
        with contextlib.suppress(OSError):
            folder = cache.ours().make_folder()
            write_record(folder / _note(kernel), {"files": sorted(cache.used_files)})


def compile_apart(kernels: Iterable[str], interrupted: Callable[[], bool] = lambda: False) -> None:
    """Compile `kernels` in a process of its own: what the compiler takes, a rank would keep to its end.

    Where that process cannot be started, or leaves something undone, this one compiles. That process is ended
    once `interrupted` says that there is nothing to compile for any more.
    """
    kernels = list(kernels)
    portable = ["--portable"] if jit.cpu_target() == jit.PORTABLE_CPU else []
    with contextlib.suppress(OSError):
        compiler = subprocess.Popen(
            # Not what lies in the folder that the run was started in.
            [sys.executable, "-P", "-m", "mpiimg.engine.precompile", *portable, *kernels],
            env=environment_of_no_rank(Path(__file__).parents[2]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while compiler.poll() is None:
            if interrupted():
                compiler.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                compiler.wait(LOOK)
    if not interrupted():
        compile_here(missing(kernels))


def _is_kept(kernel: str, folders: list[Path]) -> bool:
    """Say whether the files that `kernel` was noted to be in are there, and as they were written.

    A rank that found one damaged would compile, which takes memory that no plan counts.
    """
    for folder in folders:
        with contextlib.suppress(OSError, DamagedRecord, KeyError, TypeError):
            note = read_record(folder / _note(kernel))
            if note is not None and all(_is_whole(name, folders) for name in note["files"]):
                return True
    return False


def _is_whole(name: str, folders: list[Path]) -> bool:
    return any(kept.is_whole(folder / name) for folder in folders)


def _note(kernel: str) -> str:
    """Return the name of the file that says which files `kernel` is in: it lies with them."""
    return f"compiled-{kernel.replace(':', '.')}"


def compile_all(kernels: Iterable[str]) -> None:
    """Compile `kernels` on all cores, each in a process of its own: what is noted of one is what it uses.

    What all of them need of the compiler is loaded once, before the processes are forked. They live for
    seconds: to look for garbage would take a tenth of their time. The large ones come first, so that none is
    left over at the end, and what small ones share with them is compiled by then.
    """
    import numba
    import numpy as np

    gc.disable()
    numba.njit(lambda block: np.zeros(block.shape) + block)(np.ones((2, 2)))
    processes = min(len(os.sched_getaffinity(0)), MAX_PROCESSES)
    ordered = sorted(kernels, key=_size_of_source, reverse=True)
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(compile_here, [[kernel] for kernel in ordered]):
            pass


def _size_of_source(kernel: str) -> int:
    found = importlib.util.find_spec(kernel.split(":")[0])
    return Path(found.origin).stat().st_size if found and found.origin else 0


def main() -> None:
    """Compile what is named, or everything, and say how long that took."""
    words = sys.argv[1:]
    if "--portable" in words:
        jit.pin_target()
    named = [word for word in words if ":" in word]
    if named:
        return compile_here(named)
    started = time.perf_counter()
    lacking = missing(kernels_of_all_steps())
    if not lacking:
        return None
    print("compiling kernels (make install WARM=0 leaves them to the first run)", flush=True)
    compile_all(lacking)
    print(f"kernels ready in {time.perf_counter() - started:.1f} s: {cache.ours().folder()}")
    for problem in untrusted():
        print(f"not taken, since others can put code there: {problem}")
    return None


if __name__ == "__main__":
    main()
