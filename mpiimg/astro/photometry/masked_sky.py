"""The sky of an image between its objects, which are masked before meshes are measured."""

from __future__ import annotations

import numpy as np

from mpiimg.astro.photometry import object_masks
from mpiimg.astro.photometry.object_masks import (
    LARGE_BIN,
    SMALL_BIN,
    binned,
    surface_of_bins,
    unbinned,
)

#: How the sky can be measured: between objects, or by sep's modes of meshes as they are.
SKIES = ("objects-masked", "plain")

#: A mesh with less than this share of its pixels free of objects is filled from so many others.
MIN_MESH, NEIGHBOURS = 0.2, 12

#: In a crowded field fewer meshes than this share of those with data are measured, or the sky between masks
#: is brighter than sep's modes of meshes as they are, by more than this share of the noise: light of objects
#: has been left. The modes are nearer to the truth then.
MIN_MEASURED, MAX_BRIGHTER = 0.78, 0.1

#: Pixels beyond so many standard deviations do not count.
CLIP = 4.0


def masked_background(
    image: np.ndarray,
    bad: np.ndarray,
    before: tuple[int, int],
    mesh: int,
    window: int = 3,
    sources: np.ndarray | None = None,
) -> tuple[np.ndarray, float] | None:
    """Measure the sky in meshes, from pixels without objects.

    Each mesh has the clipped mean of its pixels. One that is nearly all masked is filled: by a surface of the
    second order through all meshes, and the deviations from it of those that are near. Between meshes sep
    draws splines, as it does for its own.

    Parameters
    ----------
    image, bad : arrays
        (rows, columns) float32 and bool; two meshes high and wide at least.
    before : (int, int)
        Rows and columns between the border of a mesh and the first pixel.
    mesh : int
        Side of a mesh, pixels.
    window : int
        Side of the median filter over meshes, in meshes.
    sources : (rows, columns) bool, optional
        Pixels of sources that are known. They are no sky, but show where large objects are.

    Returns
    -------
    sky : (rows, columns) float32
    noise : float
        Standard deviation of pixels about it, the median of meshes.
    None
        Objects leave too little of the image, or too much of their light.
    """
    import sep

    padding = [(low, 0) for low in before]
    bad = np.pad(bad, padding, constant_values=True)
    image = np.pad(image, padding)
    if bad.all():
        return None
    # Squares of what is left lose nothing.
    level = np.median(image[~bad][::16])
    image = np.where(bad, np.float32(0), image - level)
    having = binned(image, bad, mesh)[1] >= MIN_MESH
    known = bad if sources is None else bad | np.pad(sources, padding)
    masked = known | unbinned(object_masks.object_mask(image, bad), LARGE_BIN, image.shape)
    measured = _measure(image, masked, having, mesh, window)
    if measured is None:
        return None
    above = image - measured[0]
    masked |= unbinned(object_masks.source_mask(above, masked), SMALL_BIN, image.shape)
    masked |= np.abs(above) > CLIP * measured[1]
    measured = _measure(image, masked, having, mesh, window)
    if measured is None:
        return None
    sky, noise = measured
    if not known.all():
        modes = sep.Background(image, mask=known, bw=mesh, bh=mesh)
        if np.median(sky[::8, ::8]) > modes.globalback + MAX_BRIGHTER * modes.globalrms:
            return None
    return np.ascontiguousarray(sky[before[0] :, before[1] :] + level), noise


def _measure(image, masked, having, mesh, window):
    """Return sky and noise from the pixels that are not masked; None where meshes that have any are few."""
    mean, share = binned(image, masked, mesh)
    square, _ = binned(image * image, masked, mesh)
    good = share >= MIN_MESH
    if not np.count_nonzero(good) >= max(MIN_MEASURED * np.count_nonzero(having), 1):
        return None
    noise = np.median(np.sqrt(np.maximum(square - mean**2, 0)[good]))
    return _splined(_filled(mean, good), mesh, window, image.shape), float(noise)


def _filled(mean: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Return the means of meshes, with those that are not good filled from the others."""
    from scipy.spatial import cKDTree

    if good.all():
        return mean
    surface = surface_of_bins(mean, good)
    places, off = np.argwhere(good), (mean - surface)[good]
    away, nearest = cKDTree(places).query(np.argwhere(~good), k=min(NEIGHBOURS, len(places)))
    away, nearest = (one.reshape(len(one), -1) for one in (away, nearest))
    weight = away**-2.0
    filled = mean.copy()
    filled[~good] = surface[~good] + (weight * off[nearest]).sum(axis=1) / weight.sum(axis=1)
    return filled


def _splined(means: np.ndarray, mesh: int, window: int, shape: tuple[int, int]) -> np.ndarray:
    """Return what sep draws between meshes, whose mode of equal pixels is their value: (rows, columns)."""
    import sep

    pixels = np.repeat(np.repeat(means.astype(np.float32), mesh, axis=0), mesh, axis=1)
    drawn = sep.Background(pixels, bw=mesh, bh=mesh, fw=window, fh=window).back(dtype=np.float32)
    return drawn[: shape[0], : shape[1]]
