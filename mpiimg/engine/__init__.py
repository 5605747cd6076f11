"""Arrays, ranks and files: what runs a recipe, and knows no format and no science.

What a domain is declared with is found here: `from mpiimg.engine import Array, Compute, Part, Step`.
"""

#: Where that is: loaded when it is used.
_PLACES = {
    **dict.fromkeys(("Array", "Packing", "Ragged"), "array"),
    **dict.fromkeys(("ChunkGrid", "box_shape", "box_slices"), "boxes"),
    **dict.fromkeys(("Input", "stream_input"), "inputs"),
    **dict.fromkeys(("At", "Chunk", "Part", "Pieces", "Rows"), "needs"),
    **dict.fromkeys(("Index", "RecordsOf"), "record_index"),
    **dict.fromkeys(("Compute", "Digested", "Files", "Found", "PlacedSink"), "stage"),
    **dict.fromkeys(("Records", "Reduce", "Sink", "Stream"), "stage"),
    **dict.fromkeys(("extended", "trimmed"), "halo"),
    **dict.fromkeys(("Argument", "Domain", "Inspection", "Output", "Pipeline"), "step"),
    **dict.fromkeys(("Source", "State", "Step", "declare_step", "steps_in"), "step"),
    "parameter": "parameters",
}

__all__ = list(_PLACES)


def __getattr__(name: str):
    """Load what a declaration uses."""
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"mpiimg.engine.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'mpiimg.engine' has no attribute {name!r}")
