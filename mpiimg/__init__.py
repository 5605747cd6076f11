"""mpiimg runs scientific image pipelines as MPI programs: see docs/primitives.md and docs/architecture.md."""

import atexit as _atexit

#: Where what a script uses is: loaded when it is used, since importing mpiimg itself loads nothing.
_PLACES = {
    **dict.fromkeys(("Result", "run"), "mpiimg.tools.api"),
    "udf": "mpiimg.functions.declare",
    "__version__": "mpiimg.version",
    "Array": "mpiimg.arrays.array",
    **dict.fromkeys(("read", "from_array", "from_reader"), "mpiimg.arrays.sources"),
    **dict.fromkeys(("map_blocks", "map_overlap", "apply_gufunc"), "mpiimg.arrays.calls"),
    "reduction": "mpiimg.arrays.reducing",
    **dict.fromkeys(("items", "Items", "Groups"), "mpiimg.arrays.items"),
    **dict.fromkeys(("where", "stack", "concatenate"), "mpiimg.arrays.joining"),
    **dict.fromkeys(
        ("compute", "persist", "write", "plan", "iterate", "session", "check_halo"), "mpiimg.arrays.session"
    ),
    **dict.fromkeys(("BadInput", "RunFailed", "RunStopped"), "mpiimg.errors"),
    "command": "mpiimg.arrays.command",
    "read_table": "mpiimg.arrays.tables",
}

__all__ = sorted({*_PLACES} - {"__version__"})


def __getattr__(name: str):
    """Load what a script uses."""
    if name in _PLACES:
        from importlib import import_module

        if name != "__version__":
            from mpiimg.engine.mpi import scripts

            scripts.used()
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mpiimg' has no attribute {name!r}")


@_atexit.register
def _end() -> None:
    """Let the other ranks know where this one leaves its script, however little of us it has used."""
    import sys

    from mpiimg.engine.mpi import job

    if "mpiimg.engine.mpi.scripts" in sys.modules or job.launched_size() > 1:
        from mpiimg.engine.mpi import scripts

        scripts.at_exit()
