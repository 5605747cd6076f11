"""How two results of one function on the same data differ."""

from __future__ import annotations

import numpy as np

#: Rounding errors of the type of a result that are no difference, relative to its largest value.
DIGITS = 100


def beyond_rounding(one: np.ndarray, other: np.ndarray) -> tuple[float, float] | None:
    """Return by how much two results differ where that is more than rounding, and in what share of items.

    Parameters
    ----------
    one, other : ndarray
        Of one shape. Integers and booleans are not rounded at all.

    Returns
    -------
    (largest, share) : tuple of float, or None
        None where they are the same but for rounding. Not a number is the same as itself.
    """
    if np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"):
        return None
    a, b = one.astype(np.complex128), other.astype(np.complex128)
    digits = 0.0 if one.dtype.kind in "biu" else DIGITS * float(np.finfo(one.dtype).eps)
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    wrong = ~np.isclose(a, b, rtol=digits, atol=digits * scale, equal_nan=True)
    if not wrong.any():
        return None
    with np.errstate(invalid="ignore"):
        largest = np.nanmax(np.abs(a - b)[wrong], initial=0.0)
    return float(largest), float(wrong.mean())
