"""A Dask on this machine, as wide and as large as it is told."""

from contextlib import contextmanager

import dask
from dask.distributed import Client, wait


@contextmanager
def client(options, clock):
    """Yield a client, and a function that ends a step and computes now what is to be timed."""
    # A worker counts its pages of files as well: what a limit does not count is room for the scheduler.
    memory = options.memory // options.workers if options.memory else "auto"
    cluster = {"n_workers": options.workers, "threads_per_worker": 1, "memory_limit": memory}
    with Client(**cluster, dashboard_address=None) as started:

        def finish(step, values):
            if clock.steps:
                (values,) = dask.persist(values)
                wait(values)
            clock.mark(step)
            return values

        clock.mark("start-up")
        yield started, finish
    # What it takes to end counts as what it takes to start.
    clock.mark("start-up")
