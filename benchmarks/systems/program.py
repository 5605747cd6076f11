"""What the programs of all systems share: their command line, and the clock that tells their steps apart."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Options:
    """What a program is told.

    Parameters
    ----------
    source, out : folders of the input and of the results
    workers : processes or threads that work at once
    threads : threads of each call of a library
    memory : bytes for the whole system, None for what it takes by itself
    sigma : noise level of the diffusion images, as in the simulated subject
    block_radius : voxels around one in which denoising looks for patches
    function : for TensorFlow: call dipy by its escape for Python functions
    kernels : for programs that can do their work by other functions: the module that has them
    """

    source: Path
    out: Path
    workers: int
    threads: int
    memory: int | None
    sigma: float
    block_radius: int
    function: bool
    kernels: ModuleType | None

    @property
    def memory_per_worker(self) -> int | None:
        """Bytes of each process or thread that works."""
        return None if self.memory is None else self.memory // self.workers


class Clock:
    """Notes when each step of a pipeline ends.

    Where `steps` is true, a lazy system is to finish each step before the
    next one begins, so that they can be told apart; else it runs as it likes.
    """

    def __init__(self, steps: bool):
        self.steps = steps
        self.marks: list[tuple[str, float]] = []

    def mark(self, step: str) -> None:
        self.marks.append((step, time.monotonic()))


def run(pipeline: Callable[[Options, Clock], None], kernels: str | None = None) -> None:
    """Run a pipeline as the command line says, and leave the times of its steps in OUT/steps.json.

    Parameters
    ----------
    kernels : module of the functions that do its work, unless --kernels names another
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--sigma", type=float, default=40.0)
    parser.add_argument("--block-radius", type=int, default=5)
    parser.add_argument("--function", action="store_true")
    parser.add_argument("--kernels", default=kernels)
    parser.add_argument("--steps", action="store_true")
    given = vars(parser.parse_args())
    clock = Clock(given.pop("steps"))
    name = given.pop("kernels")
    options = Options(**given, kernels=importlib.import_module(name) if name else None)
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline(options, clock)
    if clock.marks:
        (options.out / "steps.json").write_text(json.dumps(clock.marks))


# Ranks, workers and tasks are what runs at once; libraries start no threads beside them.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
