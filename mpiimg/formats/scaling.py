"""Numbers in files that stand for others: number * slope + inter."""

from __future__ import annotations

import numpy as np

#: What scaled values become by the type of the numbers in the file; of all others float32.
_WIDE = {np.dtype(np.float64): np.dtype(np.float64), np.dtype(np.complex128): np.dtype(np.complex128)}


def scaled_type(dtype: np.dtype) -> np.dtype:
    """Return the type of scaled values: float32, and float64 or complex where the numbers are."""
    dtype = np.dtype(dtype).newbyteorder("=")
    return _WIDE.get(dtype, np.dtype(np.complex64 if dtype.kind == "c" else np.float32))


def scaled(block: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Return the values that numbers stand for.

    Without scaling the block itself; with it :func:`scaled_type`, computed in double precision and rounded
    once.
    """
    if slope == 1 and inter == 0:
        return block
    values = block.astype(np.complex128 if block.dtype.kind == "c" else np.float64)
    values *= slope
    values += inter
    return values.astype(scaled_type(block.dtype), copy=False)
