"""Catalogues of several bands: one row an object, with columns for each band.

Sources that were found on all bands together have the same places and shapes, in the same order, in each:
what they share stands once, and what was measured in a band under its name, as ``r_flux_auto``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from mpiimg.astro import catalogue
from mpiimg.astro.photometry.profiles import Moffat
from mpiimg.astro.sky.layout import Patch

#: What a source has once, whatever the band.
SHARED = (
    *("id", "parent", "is_primary", "patch", "ra", "dec", "ra_err", "dec_err", "x", "y", "x_err", "y_err"),
    *("a", "b", "theta", "npix"),
)

#: Errors of places: those of all bands together are the inverse-variance ones.
_ERRORS = ("ra_err", "dec_err", "x_err", "y_err")

#: Full widths at half maximum of two bands that differ by more than this share make colours unsure.
MAX_WIDTH_RATIO = 1.1

#: Letters of a band's name that its columns begin with: names of columns in FITS have 68 at most.
MAX_PREFIX = 16

#: From blue to red, as far as one letter tells; other names follow in alphabetical order.
BLUE_TO_RED = "uUBgVrRiIzZyYJHK"


def prefixes(bands: Sequence[str]) -> dict[str, str]:
    """Return what the columns of each band begin with: its name in letters, digits and _, cut, each once."""
    found: dict[str, str] = {}
    for band in bands:
        plain = re.sub(r"\W", "_", catalogue.text(band), flags=re.ASCII)[:MAX_PREFIX]
        if not plain or plain[0].isdigit() or f"{plain}_".startswith(catalogue.COLOUR):
            plain = f"band_{plain}"
        number, name = 1, plain
        while name in found.values():
            number += 1
            name = f"{plain}_{number}"
        found[band] = name
    return found


def blue_to_red(bands: Sequence[str]) -> list[str]:
    """Return bands by wavelength as far as their names tell it, and else by name."""

    def place(band):
        known = len(band) == 1 and band in BLUE_TO_RED
        return (not known, BLUE_TO_RED.index(band) if known else 0, band)

    return sorted(dict.fromkeys(bands), key=place)


def one_row_an_object(
    table: np.ndarray,
    patches: Sequence[Patch],
    stars: Mapping[str, Moffat],
    radius: float,
    matched: bool = False,
) -> np.ndarray:
    """Return a table with a row for each object, of one with a row for each object and band.

    Parameters
    ----------
    table : structured array
        Rows of :data:`mpiimg.astro.catalogue.ROW_TYPE`, of bands that were detected together; ids tell the
        patch and the row in it.
    patches : sequence of Patch
        Of all bands.
    stars : mapping of str to Moffat
        Profile of the stars of each band, as fluxes were measured; NaN where not known.
    radius : float
        Of the large aperture, pixels, to which mag_small is corrected. For colours it is corrected by what
        the profile of each band has beyond.
    matched : bool
        All bands were brought to one seeing.

    Returns
    -------
    structured array
        In the order of the patches of the first band that has each; of bands without an object's patch NaN.
    """
    bands = blue_to_red([patch.band for patch in patches])
    names = prefixes(bands)
    numbers = _numbered(table["id"], patches)
    ids, place = np.unique(numbers, return_inverse=True)
    objects = np.zeros(len(ids), _row_type(table.dtype, [names[band] for band in bands]))
    for name in objects.dtype.names:
        if objects.dtype[name].kind == "f":
            objects[name] = np.nan
    of_patch = np.array([bands.index(patch.band) for patch in patches], np.int64)
    of_row = of_patch[table["id"] >> 32]
    for number, band in enumerate(bands):
        rows = np.flatnonzero(of_row == number)
        here, part = place[rows], table[rows]
        for name in table.dtype.names:
            if name != "band":
                objects[name if name in SHARED else f"{names[band]}_{name}"][here] = part[name]
        objects["n_bands"][here] += part["n_image"] > 0
    objects["id"] = ids
    objects["parent"][place] = np.where(table["parent"] > 0, _numbered(table["parent"], patches), 0)
    for name in _ERRORS:
        objects[name] = _together(table[name].astype(np.float64), place, len(ids))
    for blue, red in pairwise(bands):
        colour = f"{catalogue.COLOUR}{names[blue]}_{names[red]}"
        one, other = (objects[f"{names[band]}_mag_small"] for band in (blue, red))
        beyond = _beyond(stars[blue], radius) - _beyond(stars[red], radius)
        objects[colour] = one - other - np.float32(beyond)
        one, other = (objects[f"{names[band]}_mag_small_err"] for band in (blue, red))
        objects[f"{colour}_err"] = np.hypot(one, other)
        widths = np.array([stars[blue].fwhm, stars[red].fwhm])
        objects[f"{colour}_flag"] = not (matched or widths.max() <= MAX_WIDTH_RATIO * widths.min())
    return objects


def _numbered(ids: np.ndarray, patches: Sequence[Patch]) -> np.ndarray:
    """Return ids as those of the first band that has the patch: the same for an object in all bands."""
    first: dict[tuple[int, int], int] = {}
    for number, patch in enumerate(patches):
        first.setdefault(patch.index, number)
    base = np.array([first[patch.index] for patch in patches], np.int64)
    return (base[ids >> 32] << 32) + (ids & 0xFFFFFFFF)


def _together(errors: np.ndarray, place: np.ndarray, count: int) -> np.ndarray:
    """Return the errors of means by inverse variance, of the rows at each place; NaN where none is known."""
    known = np.isfinite(errors) & (errors > 0)
    weight = np.zeros(count)
    np.add.at(weight, place[known], errors[known] ** -2)
    return np.where(weight > 0, 1 / np.sqrt(np.where(weight > 0, weight, 1)), np.nan)


def _row_type(rows: np.dtype, names: Sequence[str]) -> np.dtype:
    shared = [(name, rows[name]) for name in rows.names if name in SHARED]
    own = [name for name in rows.names if name not in SHARED and name != "band"]
    fields = [*shared, (catalogue.N_BANDS.name, catalogue.N_BANDS.dtype)]
    fields += [(f"{prefix}_{name}", rows[name]) for prefix in names for name in own]
    for blue, red in pairwise(names):
        colour = f"{catalogue.COLOUR}{blue}_{red}"
        fields += [(f"{colour}{ending}", one.dtype) for ending, one in catalogue.COLOUR_COLUMNS.items()]
    return np.dtype(fields)


def _beyond(stars: Moffat, radius: float) -> float:
    """Return by how many magnitudes stars are brighter than what is within a radius."""
    share = stars.beyond(radius)
    return float(-2.5 * np.log10(1 - share)) if np.isfinite(share) else 0.0
