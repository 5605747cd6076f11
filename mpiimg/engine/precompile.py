"""Compile kernels ahead of use, so that ranks find them in numba's cache.

python -m mpiimg.engine.precompile [--portable] [MODULE:FUNCTION ...]

With --portable it compiles for the CPU that runs with --portable use. What is named is compiled in this very
process, as ranks ask for; without names the kernels of all steps are, two at a time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from mpiimg.engine.mpi.job import environment_of_no_rank
from mpiimg.engine.plugins import kernels as kernels_of_all_steps
from mpiimg.engine.plugins import load_object
from mpiimg.kernels import cache, jit

#: Seconds between looks whether compiling is still of use.
LOOK = 0.1


def missing(kernels: Iterable[str]) -> list[str]:
    """Return which of `kernels` are not yet compiled, for this CPU, in the cache that this process reads.

    Parameters
    ----------
    kernels : iterable of str
        "module:function" of functions that call kernels on tiny inputs, as steps declare them.
    """
    return [kernel for kernel in kernels if not _marker(kernel).exists()]


def compile_here(kernels: Iterable[str]) -> None:
    """Compile `kernels`, or load them where they are compiled, and note that they are."""
    for kernel in kernels:
        load_object(kernel)()
        # Without the note the next run calls the kernels once more, which then costs half a second.
        with contextlib.suppress(OSError):
            _marker(kernel).touch()


def compile_apart(kernels: Iterable[str], interrupted: Callable[[], bool] = lambda: False) -> None:
    """Compile `kernels` in a process of its own: what the compiler takes, a rank would keep to its end.

    Where that process cannot be started, or leaves something undone, this one compiles. That process is ended
    once `interrupted` says that there is nothing to compile for any more.
    """
    kernels = list(kernels)
    portable = ["--portable"] if jit.cpu_target() == jit.PORTABLE_CPU else []
    with contextlib.suppress(OSError):
        compiler = subprocess.Popen(
            [sys.executable, "-m", "mpiimg.engine.precompile", *portable, *kernels],
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


def _marker(kernel: str) -> Path:
    """Return the file that says that `kernel` is compiled: it lies with the kernels, and is theirs alone."""
    return cache.ours().folder() / f"compiled-{kernel.replace(':', '.')}"


def main() -> None:
    """Compile what is named, or everything, and say how long that took."""
    words = sys.argv[1:]
    if "--portable" in words:
        jit.pin_target()
    named = [word for word in words if ":" in word]
    if named:
        return compile_here(named)
    started = time.perf_counter()
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        for job in [pool.submit(compile_here, [kernel]) for kernel in kernels_of_all_steps()]:
            job.result()
    print(f"kernels ready in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
