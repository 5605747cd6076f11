"""mpiimg runs scientific image pipelines as MPI programs. See docs/primitives.md, docs/architecture.md and docs/udf.md."""

#: Where what a script uses is: loaded when it is used, since importing mpiimg itself loads nothing.
_PLACES = {
    **dict.fromkeys(("Result", "run"), "mpiimg.tools.api"),
    "udf": "mpiimg.functions.declare",
    "__version__": "mpiimg.version",
    "Array": "mpiimg.arrays.array",
    **dict.fromkeys(("read", "from_array", "from_reader"), "mpiimg.arrays.sources"),
    **dict.fromkeys(("map_blocks", "map_overlap", "apply_gufunc", "reduction"), "mpiimg.arrays.calls"),
    **dict.fromkeys(("items", "Items", "Groups"), "mpiimg.arrays.items"),
    **dict.fromkeys(("where", "stack", "concatenate"), "mpiimg.arrays.joining"),
    **dict.fromkeys(("compute", "persist", "write", "plan", "iterate", "session"), "mpiimg.arrays.session"),
    "items": "mpiimg.arrays.items",
    "command": "mpiimg.arrays.command",
    "read_table": "mpiimg.arrays.tables",
}

__all__ = sorted({*_PLACES} - {"__version__"})


def __getattr__(name: str):
    """Load what a script uses."""
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mpiimg' has no attribute {name!r}")
