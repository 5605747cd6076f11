"""How fast this machine is: CPU-seconds per unit of work, which predictions of time are made from.

A stage declares what it costs in units of a rate (voxels times offsets, pixels, bytes); its step declares the
rate. The defaults were measured on one core of an AMD EPYC (Zen 4). `mpiimg-doctor --rates` measures the
machine it runs on, and stores the rates in the user's cache, by CPU model and version of mpiimg. Only the
times that a plan prints depend on rates: a run with wrong ones gives the same results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mpiimg.engine.mpi.job import cache_folder
from mpiimg.engine.records import parsed, write_record
from mpiimg.engine.stage import Compute, Reduce
from mpiimg.version import __version__

Rates = dict[str, float]

#: What is timed: returns the work, and how many units it is.
RateSample = Callable[[], tuple[Callable[[], object], float]]

#: CPU-seconds per unit of what the engine itself does.
DEFAULTS: Rates = {
    # what somebody else has timed, such as the trial of a user's function
    "second": 1.0,
    # bytes that are read and written, sent and received, staged, sent between nodes
    "pass": 1.0e-9,
    "move": 1.0e-9,
    "stage": 1.0e-9,
    "network": 1.0e-9,
}


def cpu_model(information: str = "/proc/cpuinfo") -> str:
    """Return the model of this machine's CPU, as the kernel names it."""
    with contextlib.suppress(OSError):
        for line in Path(information).read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def rates_file() -> Path:
    """Return the file that measured rates are kept in.

    Raises
    ------
    FileNotFoundError
        This user has no folder for it.
    """
    return cache_folder() / "rates.json"


def load_rates() -> Rates:
    """Return the rates of this machine: those that were measured, and the engine's defaults for its own."""
    try:
        measured = {name: float(rate) for name, rate in _stored()[_key()].items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return dict(DEFAULTS)
    return DEFAULTS | {name: rate for name, rate in measured.items() if 0 < rate < 1}


def store_rates(rates: Rates) -> Path:
    """Store the rates of this machine in the user's cache, beside those of others; return the file.

    Raises
    ------
    OSError
        It cannot be written.
    """
    file = rates_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_record(file, {**_stored(), _key(): rates})
    return file


def _stored() -> dict[str, Rates]:
    """Return what is stored, by machine; nothing where it is damaged, or somebody else's."""
    from mpiimg.kernels.disk import trust

    try:
        return parsed(trust.read_file(rates_file(), by_group=True))
    except (OSError, ValueError):
        return {}


def _key() -> str:
    return f"{cpu_model()}, mpiimg {__version__}"


def measure_rates(samples: Mapping[str, RateSample]) -> Rates:
    """Time one chunk of each kind of work on this core, once it is compiled; takes some seconds.

    Parameters
    ----------
    samples : mapping of str to callable
        By name of the rate; each returns the work to time, and how many units it is.
    """
    rates = {name: _rate(*sample()) for name, sample in samples.items()}
    return {name: float(f"{rate:.3g}") for name, rate in rates.items()}


def _rate(work: Callable[[], object], units: float) -> float:
    """Return CPU-seconds per unit, the better of two after one that compiles."""
    work()
    taken = []
    for _ in range(2):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return max(min(taken), 1e-6) / units


def chunk_sample(stage: Compute | Reduce, number: int, *blocks) -> tuple[Callable[[], object], float]:
    """Return the work on a chunk, and how many units of its stage's rate that is."""
    weights = stage.weights or (1,) * len(stage.grid)
    units = stage.cost[1] * weights[number] / sum(weights)
    return lambda: stage.work(stage.chunk(number), *blocks), units
