"""One catalogue from overlapping patches: what each keeps, what two have seen at a seam, places on the sky.

Positions are tract pixels: x is a column, y a row, and centres of pixels are integers. Boxes are (rows,
columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpiimg.astro import catalogue
from mpiimg.astro.sky.layout import Patch
from mpiimg.engine.boxes import Box

#: Pixels within which the detections of two patches are one source.
SEAM = 1.0


def keep_inner(table: np.ndarray, inner: Box, margin: float = SEAM) -> np.ndarray:
    """Return the sources centred in the half-open inner box [first - 0.5, last - 0.5), grown by `margin`.

    The centroids of one source on two patches differ a little: at a seam it
    could be in both boxes, or in neither. So a patch also keeps what lies
    within a margin of its box, and :func:`match_seams` decides.
    """
    keep = np.ones(len(table), bool)
    for axis, (first, last) in zip("yx", inner, strict=True):
        keep &= (table[axis] >= first - 0.5 - margin) & (table[axis] < last - 0.5 + margin)
    return table[keep]


def number(table: np.ndarray, patch: int, name: str, band: str) -> np.ndarray:
    """Return the sources of a patch with their ids, parents, and the names of patch and band.

    Parameters
    ----------
    table : structured array
        What :func:`keep_inner` kept of :func:`~mpiimg.astro.photometry.sources.find_sources`'s.
    patch : int
        Number of the patch among all patches of all bands.
    name, band : str
        As the catalogue has them; what is beyond 12 and 16 letters is cut here.
    """
    table = table.copy()
    table["id"] = (int(patch) << 32) + np.arange(1, len(table) + 1)
    _, first, group = np.unique(table["parent"], return_index=True, return_inverse=True)
    table["parent"] = np.where(table["parent"] > 0, table["id"][first][group], 0) if len(table) else 0
    # Whole names are written when all is joined: mosaic.joined_rows.
    table["patch"], table["band"] = name, catalogue.text(band)
    return table


def match_seams(
    tables: Sequence[np.ndarray], inners: Sequence[Box], radius: float = SEAM
) -> list[np.ndarray]:
    """Mark all but one of the detections of each source at the seams of the patches of one band.

    Pairs from different patches are matched nearest first, one detection per
    patch; the lowest patch keeps its own. What only one patch has found is kept.

    Parameters
    ----------
    tables : sequence of structured array
        Of :func:`keep_inner` with a margin of `radius`, in patch order.
    inners : sequence of Box
        Inner boxes of the patches.
    radius : float
        Tract pixels.

    Returns
    -------
    list of structured array
        The tables with `is_primary` set.
    """
    from scipy.spatial import cKDTree

    near = [np.flatnonzero(~_far_inside(t, box, 2 * radius)) for t, box in zip(tables, inners, strict=True)]
    patch = np.concatenate([np.full(len(rows), k) for k, rows in enumerate(near)] or [[]]).astype(int)
    tables = [table.copy() for table in tables]
    for table in tables:
        table["is_primary"] = True
    if not len(patch):
        return tables
    places = [np.column_stack((t["x"][rows], t["y"][rows])) for t, rows in zip(tables, near, strict=True)]
    place = np.concatenate(places)
    pairs = cKDTree(place).query_pairs(radius, output_type="ndarray")
    pairs = pairs[patch[pairs[:, 0]] != patch[pairs[:, 1]]]
    distance = np.hypot(*(place[pairs[:, 0]] - place[pairs[:, 1]]).T)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0], distance))]
    first = _groups(pairs, patch)
    primary = first == np.arange(len(patch))
    for k, table in enumerate(tables):
        table["is_primary"][near[k]] = primary[patch == k]
    return tables


def joined(patches: Sequence[Patch], counts: Sequence[int], data: np.ndarray) -> np.ndarray:
    """Return one table of the sources of all patches, in which one at a seam is primary once.

    Parameters
    ----------
    patches : sequence of Patch
    counts : sequence of int
        Sources of each.
    data : (bytes,) uint8
        Rows of the catalogue of all patches, one patch after the other.
    """
    table = data.view(catalogue.ROW_TYPE).copy()
    parts = np.split(table, np.cumsum(counts)[:-1])
    for band in dict.fromkeys(patch.band for patch in patches):
        members = [number for number, patch in enumerate(patches) if patch.band == band]
        inners = [patches[number].inner for number in members]
        matched = match_seams([parts[number] for number in members], inners)
        for number, of_patch in zip(members, matched, strict=True):
            parts[number]["is_primary"] = of_patch["is_primary"]
    return table


def _far_inside(table, inner: Box, distance: float) -> np.ndarray:
    """Return which sources lie farther than `distance` inside the borders of the inner box."""
    far = np.ones(len(table), bool)
    for axis, (first, last) in zip("yx", inner, strict=True):
        far &= (table[axis] > first - 0.5 + distance) & (table[axis] < last - 0.5 - distance)
    return far


def _groups(pairs, patch) -> np.ndarray:
    """Join pairs in their order, never two of one patch; return the first member of each one's group."""
    first = np.arange(len(patch))
    members = {}
    for pair in pairs.tolist():
        one, other = sorted(first[list(pair)].tolist())
        joined = members.get(one, [one]) + members.get(other, [other])
        if one != other and len(set(patch[joined])) == len(joined):
            members[one] = joined
            first[joined] = one
    return first


def locate(table: np.ndarray, wcs: Any) -> np.ndarray:
    """Return the sources with sky positions and their errors.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        That of the tract (0-based pixel (0, 0) is the tract's first), celestial, ICRS, degrees.

    Notes
    -----
    Errors follow from those of x and y, taken as independent, through differences over one pixel.
    """
    table = table.copy()
    if not len(table):
        return table
    x, y = table["x"], table["y"]
    table["ra"], table["dec"] = wcs.pixel_to_world_values(x, y)
    variances = np.zeros((2, len(table)))
    for dx, dy, error in ((0.5, 0.0, table["x_err"]), (0.0, 0.5, table["y_err"])):
        ahead, behind = wcs.pixel_to_world_values(x + dx, y + dy), wcs.pixel_to_world_values(x - dx, y - dy)
        east, north = (np.asarray(a) - np.asarray(b) for a, b in zip(ahead, behind, strict=True))
        east = (east + 180) % 360 - 180
        variances += np.square([east * np.cos(np.radians(table["dec"])) * error, north * error])
    table["ra_err"], table["dec_err"] = np.sqrt(variances)
    return table
