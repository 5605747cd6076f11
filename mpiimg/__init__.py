"""mpiimg runs scientific image pipelines as MPI programs. See docs/architecture.md and docs/udf.md."""

#: Where what a script uses is: loaded when it is used, since importing mpiimg itself loads nothing.
_PLACES = {
    "Result": "mpiimg.tools.api",
    "run": "mpiimg.tools.api",
    "udf": "mpiimg.functions.declare",
    "__version__": "mpiimg.version",
}

__all__ = ["Result", "run", "udf"]


def __getattr__(name: str):
    """Load what a script uses."""
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mpiimg' has no attribute {name!r}")
