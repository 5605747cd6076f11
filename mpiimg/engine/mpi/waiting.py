"""Wait for other ranks without taking a core from those that still work.

MPI libraries spin while they wait: right where ranks meet within microseconds,
but a rank that waits for another's chunk would burn as much CPU time as the
chunk takes, and slow it down where ranks share cores. What may last is waited
for here; the collective that follows then finds everybody there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds for which a wait spins, as most last no longer.
SPIN = 2e-4

#: Of the time waited so far, the part that is slept before the next look; and the longest sleep in seconds.
LATENESS, LONGEST = 0.05, 0.02


def wait_until(ready: Callable[[], bool]) -> None:
    """Return once `ready` says so, a twentieth of the time waited too late at most."""
    started = time.monotonic()
    while not ready():
        waited = time.monotonic() - started
        if waited > SPIN:
            time.sleep(min(waited * LATENESS, LONGEST))


def soft_barrier(comm, meanwhile: Callable[[], object] | None = None) -> None:
    """Wait until all ranks are here; `meanwhile` is called before each look. Collective."""
    if comm.size > 1:
        arrived = comm.Ibarrier()
        wait_until(arrived.Test if meanwhile is None else lambda: (meanwhile(), arrived.Test())[1])
