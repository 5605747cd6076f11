"""mpiimg runs scientific image pipelines as MPI programs. See docs/architecture.md and docs/udf.md."""

__version__ = "0.1.0"

__all__ = ["Result", "run", "udf"]


def __getattr__(name: str):
    """Load what a script uses when it uses it: importing mpiimg itself loads nothing, MPI least of all."""
    if name in __all__:
        from mpiimg.tools import api

        return getattr(api, name)
    raise AttributeError(f"module 'mpiimg' has no attribute {name!r}")
