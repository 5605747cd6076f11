"""Which pixels of an exposure are no part of the static sky: the method, on arrays.

Each exposure is brought to the seeing of the worst by a round gaussian, and held against the median of all.
What the noise does not explain, nor a share of the light nearby, is a hit; hits that hang together are an
artifact if few exposures have them there. What is too faint for that may be a straight trail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.sky.tiles import BIN, MESH, overlap
from mpiimg.engine.boxes import Box, box_shape, box_slices

#: Pixels with these hold no light of the sky; those with the latter as well are never artifacts.
UNUSABLE, NEVER = ("NO_DATA", "BAD", "EDGE"), ("NO_DATA", "BAD", "EDGE", "SAT")

#: Exposures are matched to this times the worst FWHM, and that is at most this times the median.
WORST, WIDEST = 1.08, 1.5

#: Standard deviations that a hit stands out by, and the share of the light nearby that it has to exceed.
HIT_SIGMA, GUARD = 5.0, 0.5

#: The wings of a star, of given flux, grow by this power of its FWHM (Moffat's beta of 3): a gaussian that
#: matches cores does not match them, and so much of the light at a pixel is forgiven.
WING_POWER = 4

#: Least FWHM, in pixels, that the width of the guard goes by: what is narrower is not sampled.
MIN_FWHM = 2.0

#: Offsets are measured on one of so many rows and columns, where the median is below so many sigma; on all
#: pixels where there are fewer of these.
SKY_STEP, SOURCE_SIGMA, FEW_SKY = 8, 5.0, 4

#: What is known of each warp when its artifacts have been found.
WARP_STATS = ("hit", "compared", "spared", "rejected", "trails")

#: More of an exposure than this cannot be artifacts: it is another thing that differs.
MAX_HIT = 0.05


@dataclass(frozen=True)
class Matching:
    """How the exposures of a patch are brought to one seeing.

    Parameters
    ----------
    target : float
        FWHM that they are brought to, in pixels.
    sigmas : tuple of float
        Of the gaussian that brings each there; 0 for none.
    members : tuple of bool
        Whether each has a part in the median: those that are wider have none.
    wings : tuple of float
        By which share the wings of its stars are brighter or fainter than in the median exposure.
    """

    target: float
    sigmas: tuple[float, ...]
    members: tuple[bool, ...]
    wings: tuple[float, ...]

    @classmethod
    def of(cls, fwhm: Sequence[float]) -> Matching:
        """Return how exposures of these FWHM are matched; NaN where it is not known.

        Such a one is taken to have the median of the others; where none is known, none is blurred.
        """
        widths = np.array(fwhm, float)
        known = widths[np.isfinite(widths) & (widths > 0)]
        if not known.size:
            return cls(2 * MIN_FWHM, (0.0,) * len(widths), (True,) * len(widths), (0.0,) * len(widths))
        typical = float(np.median(known))
        widths[~(np.isfinite(widths) & (widths > 0))] = typical
        target = min(WORST * float(widths.max()), WIDEST * typical)
        sigmas = np.sqrt(np.maximum(target**2 - widths**2, 0)) / np.sqrt(8 * np.log(2))
        wings = np.abs((widths / typical) ** WING_POWER - 1)
        return cls(target, *(tuple(values.tolist()) for values in (sigmas, widths <= target, wings)))

    def of_some(self, places: Sequence[int]) -> Matching:
        """Return the same for some of the exposures."""
        chosen = (tuple(values[k] for k in places) for values in (self.sigmas, self.members, self.wings))
        return Matching(self.target, *chosen)

    @property
    def radius(self) -> float:
        """Of the disc in which light is forgiven, in pixels."""
        return max(self.target, MIN_FWHM)

    @property
    def halo(self) -> int:
        """Pixels on all sides that a hit depends on."""
        from mpiimg.astro.kernels.compare import gaussian

        return int(self.radius) + max((len(gaussian(sigma)) // 2 for sigma in self.sigmas), default=0)


def max_epochs(inputs: np.ndarray) -> np.ndarray:
    """Return in how many of so many exposures an artifact may be, at most: 0 for one or two."""
    return np.minimum(2 * inputs // 5, (200 + 3 * inputs) // 100)


def compare_tile(
    box: Box,
    around: Box,
    boxes: Sequence[Box],
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    variances: Sequence[float],
    matching: Matching,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Compare the exposures of a tile.

    Parameters
    ----------
    box, around : Box
        The tile, whose corner lies between meshes, and what was read around it.
    boxes : sequence of Box
        Of each exposure, within `around`.
    images, masks : sequences of (rows, columns) float32 and int32
        What lies there.
    variances : sequence of float
        Of the sky of each, per pixel in sums over many.
    matching : Matching
        Of these exposures.

    Returns
    -------
    codes : list of (rows, columns) uint8
        Of the pixels of the tile: HIT, FEW and COMPARED of :mod:`mpiimg.astro.kernels.compare`.
    bins : list of (rows of bins, columns of bins) float32
        What is left in standard deviations, as its function `hits` returns it.
    """
    from mpiimg.astro.kernels import compare as kernels

    tile = box_slices(box, around)
    matched = np.empty((len(images), *box_shape(around)), np.float32)
    noise = np.empty(len(images))
    for k, (own, image, mask) in enumerate(zip(boxes, images, masks, strict=True)):
        taps = kernels.gaussian(matching.sigmas[k])
        noise[k] = variances[k] * np.sum(taps.astype(float) ** 2) ** 2
        if own == around:
            kernels.match(image, mask, bits(*UNUSABLE), taps, matched[k])
        else:
            matched[k] = np.nan
            matched[k][box_slices(own, around)] = kernels.match(image, mask, bits(*UNUSABLE), taps)
    model, floor, dark = (plane[tile] for plane in _model(matched, noise, matching))
    model, floor = np.ascontiguousarray(model), np.ascontiguousarray(floor)
    sampled = model[::SKY_STEP, ::SKY_STEP], dark[::SKY_STEP, ::SKY_STEP].copy()
    codes, bins = [], []
    counts = np.zeros(model.shape, np.int16), np.zeros(model.shape, np.int16)
    corner = tile[0].start, tile[1].start
    planes = np.empty(model.shape, np.float32), np.empty(model.shape, np.int32)
    for k, (own, image, mask) in enumerate(zip(boxes, images, masks, strict=True)):
        _lay(planes, box, own, image, mask)
        sky = _offsets(matched[k][tile][::SKY_STEP, ::SKY_STEP], *sampled)
        numbers = noise[k], matching.wings[k] / HIT_SIGMA, HIT_SIGMA
        found, left = kernels.hits(
            matched[k], corner, sky, MESH, model, floor, planes, bits(*NEVER), numbers, *counts
        )
        codes.append(found)
        bins.append(left)
    epochs, inputs = (number.astype(np.int32) for number in counts)
    limit = max_epochs(inputs)
    few = np.where((epochs <= limit) & (limit > 0), np.uint8(kernels.FEW), np.uint8(0))
    for found in codes:
        found |= few
    return codes, bins


def _lay(planes: tuple[np.ndarray, np.ndarray], box: Box, own: Box, image, mask) -> None:
    """Lay the image and mask of an exposure on those of a tile, without data where it does not reach."""
    shared = overlap(box, own)
    for plane, pixels, nothing in zip(planes, (image, mask), (np.nan, bits("NO_DATA")), strict=True):
        if shared != box:
            plane[:] = nothing
        plane[box_slices(shared, box)] = pixels[box_slices(shared, own)]


def _model(matched: np.ndarray, noise: np.ndarray, matching: Matching) -> tuple[np.ndarray, ...]:
    """Return the median of the matched exposures, what is forgiven, and where there is no source.

    What is forgiven whichever exposure is held against the median is a variance: that of the median, and a
    share of the light nearby.
    """
    from mpiimg.astro.kernels import compare as kernels

    members = np.array(matching.members, bool)
    stack = matched if members.all() else matched[members]
    model, total = kernels.median(stack, 1 / noise[members])
    with np.errstate(divide="ignore"):
        floor = np.float32(np.pi / 2) / total
        dark = model <= np.float32(SOURCE_SIGMA) * np.sqrt(floor)
    guard = kernels.dilate(model, matching.radius)
    guard *= np.float32(GUARD / HIT_SIGMA)
    floor += guard * guard
    return model, floor, dark


def _offsets(matched: np.ndarray, model: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """Return by how much the sky of an exposure is off, in meshes, (meshes, meshes) float32.

    All are given at every SKY_STEP-th pixel. Residuals of sky are no artifacts, and no light of sources.
    """
    left = matched - model
    side = MESH // SKY_STEP
    offsets = np.zeros(tuple(-(-length // side) for length in left.shape), np.float32)
    for i, j in np.ndindex(offsets.shape):
        mesh = slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side)
        values = left[mesh]
        there = values[dark[mesh] & (values == values)]
        if there.size < FEW_SKY:
            there = values[values == values]
        if there.size:
            offsets[i, j] = np.partition(there, there.size // 2)[there.size // 2]
    return offsets


# --- An exposure ------------------------------------------------------------------------------------------


def artifacts_of(
    codes: np.ndarray, bins: np.ndarray, corner: tuple[int, int], fwhm: float
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return which pixels of an exposure are left out, and its WARP_STATS.

    Parameters
    ----------
    codes : (h, w) uint8
        Of its pixels, as :func:`compare_tile` returns them.
    bins : (rows, columns) float32
        Likewise.
    corner : (int, int)
        Row and column of the first pixel of the first bin.
    fwhm : float
        Of its stars, in pixels.
    """
    from mpiimg.astro import trails
    from mpiimg.astro.kernels import compare as kernels
    from mpiimg.astro.kernels import rejections

    hit = np.count_nonzero(codes & kernels.HIT)
    compared = np.count_nonzero(codes & kernels.COMPARED)
    if hit > MAX_HIT * compared:
        return np.zeros(codes.shape, np.uint8), (hit, compared, 1.0, 0, 0)
    out = rejections.rejected(codes)
    found = trails.find_trails(bins)
    few = (codes & kernels.FEW) != 0
    for trail in found:
        near = trails.band(trails.in_pixels(trail, BIN, corner), codes.shape, fwhm + BIN / 2)
        out[near & few] |= rejections.ON_TRAIL
    return out, (hit, compared, 0.0, np.count_nonzero(out), len(found))
