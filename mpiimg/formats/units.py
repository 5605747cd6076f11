"""Units of length and time in microscopy's formats, and as :class:`mpiimg.formats.space.Affine` has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpiimg.formats.space import Affine

#: Units that an affine has, in micrometres.
_KEPT = {"meter": 1e6, "mm": 1e3, "micron": 1.0}

#: By any name: a unit that an affine has, and how many of it one is.
_LENGTHS = {
    "meter": ("meter", 1.0), "m": ("meter", 1.0), "metre": ("meter", 1.0),
    "millimeter": ("mm", 1.0), "millimetre": ("mm", 1.0), "mm": ("mm", 1.0),
    "centimeter": ("mm", 10.0), "centimetre": ("mm", 10.0), "cm": ("mm", 10.0),
    "micrometer": ("micron", 1.0), "micrometre": ("micron", 1.0),
    "micron": ("micron", 1.0), "microns": ("micron", 1.0),
    "um": ("micron", 1.0), "µm": ("micron", 1.0), "μm": ("micron", 1.0),
    "nanometer": ("micron", 1e-3), "nanometre": ("micron", 1e-3), "nm": ("micron", 1e-3),
    "angstrom": ("micron", 1e-4), "Å": ("micron", 1e-4),
    "picometer": ("micron", 1e-6), "pm": ("micron", 1e-6),
    "kilometer": ("meter", 1e3), "km": ("meter", 1e3), "inch": ("mm", 25.4), "in": ("mm", 25.4),
}  # fmt: skip

#: Seconds by the name of a unit.
_TIMES = {
    "second": 1.0, "seconds": 1.0, "s": 1.0, "sec": 1.0, "millisecond": 1e-3, "ms": 1e-3, "msec": 1e-3,
    "microsecond": 1e-6, "µs": 1e-6, "us": 1e-6, "usec": 1e-6, "nanosecond": 1e-9, "ns": 1e-9,
    "minute": 60.0, "min": 60.0, "hour": 3600.0, "h": 3600.0, "day": 86400.0, "d": 86400.0,
}  # fmt: skip

#: As OME-Zarr and OME-XML name those of an affine.
IN_NGFF = {"meter": "meter", "mm": "millimeter", "micron": "micrometer"}
IN_OME = {"meter": "m", "mm": "mm", "micron": "µm"}


def length_unit(name: str | None) -> tuple[str, float]:
    """Return the unit that an affine has for one of this name, and how many of it one is."""
    return _LENGTHS.get(str(name), ("unknown", 1.0))


def seconds(value: float | None, unit: str | None) -> float | None:
    """Return a time in seconds; None where there is none, or of no known unit."""
    return None if value is None or str(unit) not in _TIMES else value * _TIMES[str(unit)]


def affine_of_sizes(
    sizes: Mapping[str, tuple[float | None, str | None]],
    step: float | None = None,
    origin: Mapping[str, float] | None = None,
    first: float = 0.0,
) -> Affine | None:
    """Return the affine of an image whose axes lie along those of space.

    Parameters
    ----------
    sizes : mapping of str to (float or None, str or None)
        Of a pixel along x, y and z, with its unit; 1 where nobody says.
    step : float, optional
        Seconds between images along t.
    origin : mapping of str to float, optional
        Where the first pixel lies along x, y and z, in the units of `sizes`.
    first : float
        When the first image was taken, in seconds.

    Returns
    -------
    Affine or None
        In the unit of x, or the first one known; None where nothing is said.
    """
    if all(size is None for size, _ in sizes.values()) and step is None:
        return None
    units = {axis: length_unit(unit) for axis, (size, unit) in sizes.items() if size is not None}
    known = [unit for unit, _ in units.values() if unit != "unknown"]
    common = known[0] if known and len(known) == len(units) else "unknown"
    matrix = np.eye(4)
    for column, axis in enumerate("xyz"):
        size = sizes.get(axis, (None, None))[0]
        unit, factor = units.get(axis, (common, 1.0))
        if unit != common and "unknown" not in (unit, common):
            factor *= _KEPT[unit] / _KEPT[common]
        matrix[column, column] = (1.0 if size is None else size) * factor
        matrix[column, 3] = (origin or {}).get(axis, 0.0) * factor
    steps = () if step is None else (("t", step, first),)
    return Affine(("x", "y", "z"), matrix, (common, "sec" if steps else "unknown"), (1, 1), steps=steps)
