"""Comparison of exposures: kernels against scipy, the method against a plain one, and stars that stay."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from support.stacks import add_stars, some_stars, whole

from mpiimg.astro.comparison import Matching, compare_tile, max_epochs
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.kernels import compare as kernels
from mpiimg.astro.kernels import rejections
from mpiimg.astro.sky.layout import Footprint, Layout, Patch
from mpiimg.astro.sky.tiles import BIN, MESH, Tiling, overlap
from mpiimg.engine.boxes import box_size

SQUARE = np.ones((3, 3), bool)


# --- Kernels ----------------------------------------------------------------------------------------------


def holed(shape, seed=0):
    """Noise with masked and NaN pixels, and a corner without data."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=shape).astype(np.float32)
    image[rng.random(shape) < 0.01] = np.nan
    image[:30, :40] = np.nan
    return image, (rng.random(shape) < 0.01).astype(np.int32)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.7])
def test_matching_is_a_normalised_convolution(sigma):
    image, mask = holed((150, 310))
    taps = kernels.gaussian(sigma)
    there = np.isfinite(image) & (mask == 0)

    def blurred(plane):
        once = ndimage.convolve1d(plane.astype(float), taps, axis=0, mode="constant")
        return ndimage.convolve1d(once, taps, axis=1, mode="constant")

    share = blurred(there)
    seen = there & (share >= 0.75)
    expected = np.full(image.shape, np.nan)
    expected[seen] = (blurred(np.where(there, image, 0))[seen]) / share[seen]
    np.testing.assert_allclose(kernels.match(image, mask, 1, taps), expected, atol=1e-4)


def test_a_matched_value_depends_on_what_is_near_alone():
    image, mask = holed((150, 310))
    taps = kernels.gaussian(2.0)
    radius = len(taps) // 2
    whole = kernels.match(image, mask, 1, taps)
    part = kernels.match(image[20:120, 15:300], mask[20:120, 15:300], 1, taps)
    inner = (slice(radius, -radius),) * 2
    np.testing.assert_array_equal(part[inner], whole[20:120, 15:300][inner])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 24, 35])
def test_the_median_is_that_of_numpy(n):
    rng = np.random.default_rng(n)
    stack = rng.normal(size=(n, 9, 300)).astype(np.float32)
    stack[rng.random(stack.shape) < 0.2] = np.nan
    stack[:, 0, 0] = np.nan
    middle, total = kernels.median(stack, np.ones(n, np.float32))
    there = np.isfinite(stack)
    with pytest.warns(RuntimeWarning, match="All-NaN"):
        np.testing.assert_array_equal(middle, np.nanmedian(stack, axis=0))
    np.testing.assert_array_equal(total, there.sum(axis=0))


@pytest.mark.parametrize("radius", [2.0, 4.7, 9.3])
def test_dilation_is_by_a_disc(radius):
    image = np.random.default_rng(0).normal(size=(60, 170)).astype(np.float32)
    y, x = np.mgrid[-int(radius) : int(radius) + 1, -int(radius) : int(radius) + 1]
    disc = x**2 + y**2 <= radius**2
    expected = ndimage.grey_dilation(np.maximum(image, 0), footprint=disc, mode="constant")
    np.testing.assert_array_equal(kernels.dilate(image, radius), expected)


def rejected_by_scipy(codes):
    """Hits grown by one pixel; of what then hangs together, what was hit in few exposures for a half."""
    labels, number = ndimage.label(ndimage.binary_dilation(codes & kernels.HIT, SQUARE), SQUARE)
    few = ndimage.mean((codes & kernels.FEW) != 0, labels, np.arange(1, number + 1))
    return np.isin(labels, 1 + np.flatnonzero(np.asarray(few) >= 0.5))


def test_artifacts_hang_together():
    rng = np.random.default_rng(4)
    codes = (rng.random((150, 310)) < 0.03).astype(np.uint8) * kernels.HIT
    codes |= (rng.random(codes.shape) < 0.5).astype(np.uint8) * np.uint8(kernels.FEW)
    np.testing.assert_array_equal(rejections.rejected(codes) != 0, rejected_by_scipy(codes))


def test_how_many_exposures_may_have_an_artifact():
    n = np.arange(301)
    expected = [int(min(0.4 * k, 2 + 0.03 * k) + 1e-9) for k in n]
    np.testing.assert_array_equal(max_epochs(n), expected)
    assert max_epochs(np.array([0, 1, 2, 3, 4, 5, 33, 34])).tolist() == [0, 0, 0, 1, 1, 2, 2, 3]


# --- The method -------------------------------------------------------------------------------------------


def plain(images, masks, variances, fwhm):
    """Compare exposures of one patch with NumPy and scipy.

    Returns by how much each pixel of each exposure exceeds the bound, as a ratio, and where few do.
    """
    n, shape = len(images), images[0].shape
    widths = np.array(fwhm, float)
    target = min(1.08 * widths.max(), 1.5 * np.median(widths))
    matched, noise, members = np.empty((n, *shape)), np.empty(n), []
    for k in range(n):
        sigma = np.sqrt(max(target**2 - widths[k] ** 2, 0)) / np.sqrt(8 * np.log(2))
        taps = kernels.gaussian(sigma)
        matched[k] = kernels.match(images[k], masks[k], bits("NO_DATA", "BAD", "EDGE"), taps)
        noise[k] = variances[k] * (taps.astype(float) ** 2).sum() ** 2
        if widths[k] <= target:
            members.append(k)
    model = np.nanmedian(matched[members], axis=0)
    total = (np.isfinite(matched[members]) / noise[members][:, None, None]).sum(axis=0)
    r = int(max(target, 2))
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    disc = x**2 + y**2 <= max(target, 2) ** 2
    guard = ndimage.grey_dilation(np.nan_to_num(np.maximum(model, 0)), footprint=disc, mode="constant")
    spread = np.pi / 2 / total
    ratio, inputs = np.zeros((n, *shape)), np.zeros(shape, int)
    for k in range(n):
        left = matched[k] - model
        for top in range(0, shape[0], MESH):
            for start in range(0, shape[1], MESH):
                cell = slice(top, top + MESH), slice(start, start + MESH)
                dark = (model <= 5 * np.sqrt(spread))[cell][::8, ::8]
                sample = np.sort(left[cell][::8, ::8][dark & np.isfinite(left[cell][::8, ::8])])
                left[cell] -= sample[len(sample) // 2] if len(sample) else 0
        able = (masks[k] & bits("NO_DATA", "BAD", "EDGE", "SAT")) == 0
        wings = ((widths[k] / np.median(widths)) ** 4 - 1) * np.maximum(model, 0)
        bound = 25 * (noise[k] + spread) + (0.5 * guard) ** 2 + wings**2
        ratio[k] = able * np.nan_to_num(left**2 / bound)
        inputs += able & np.isfinite(images[k])
    limit = np.floor(np.minimum(0.4 * inputs, 2 + 0.03 * inputs) + 1e-9)
    few = ((ratio > 1).sum(axis=0) <= limit) & (limit >= 1)
    return ratio, few


def sky(n, shape, fwhm, stars, seed=0, noise=8.0, gain=4.0):
    """Exposures of stars with their noise, float32, and the variance of their sky."""
    rng = np.random.default_rng(seed)
    depth = np.broadcast_to(noise, n).astype(float)
    images = []
    for k in range(n):
        clean = np.zeros(shape)
        add_stars(clean, stars, fwhm[k])
        sigma = np.sqrt(depth[k] ** 2 + clean / gain)
        images.append((clean + rng.normal(size=shape) * sigma).astype(np.float32))
    return images, (depth**2).tolist()


def scene(n=6, shape=(300, 280), seed=3):
    """Exposures with stars, masks of all kinds, a gradient, cosmic rays, and one that ends within."""
    rng = np.random.default_rng(seed)
    fwhm = np.linspace(3.0, 4.5, n)
    images, variances = sky(n, shape, fwhm, some_stars(shape, 40, seed), seed)
    masks = []
    for k, image in enumerate(images):
        mask = np.zeros(shape, np.int32)
        for name in ("BAD", "EDGE", "SAT", "INTRP"):
            mask |= np.int32(bits(name)) * (rng.random(shape) < 0.002)
        image += np.linspace(-2, 3, shape[1], dtype=np.float32) * (k == 1)
        for y, x in rng.integers(0, 280, (6, 2)):
            image[y, x] += 400
        image[100 + k : 105 + k, 150:160] += 60
        masks.append(mask)
    images[2][200:], masks[2][200:] = np.nan, bits("NO_DATA")
    return images, masks, variances, fwhm.tolist()


@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:divide by zero")
@pytest.mark.parametrize("worst", [4.5, 9.0])
def test_hits_are_those_of_the_plain_method(worst):
    """Also where the worst exposure is too wide to be in the median."""
    images, masks, variances, fwhm = scene()
    fwhm[-1] = worst
    codes, _ = whole(images, masks, variances, fwhm)
    ratio, few = plain(images, masks, variances, fwhm)
    found = np.array([(one & kernels.HIT) != 0 for one in codes])
    # Where a value lies at the bound but for its rounding to float32, either is right.
    clear = np.abs(ratio - 1) > 1e-3
    assert clear.mean() > 0.9999
    np.testing.assert_array_equal(found[clear], ratio[clear] > 1)
    assert found.any(axis=(1, 2)).all()
    sure = clear.all(axis=0)
    np.testing.assert_array_equal(((codes[0] & kernels.FEW) != 0)[sure], few[sure])


def test_tiles_are_no_more_than_pieces():
    """The same bits in one tile, and in many, whichever exposures meet them."""
    images, masks, variances, fwhm = scene()
    outer = ((1000, 1300), (2000, 2280))
    boxes = [outer] * len(images)
    boxes[2], boxes[4] = ((1000, 1200), (2000, 2280)), ((1007, 1300), (2139, 2280))
    cut = [[slice(a - c, b - c) for (a, b), (c, _) in zip(box, outer, strict=True)] for box in boxes]
    parts = [(image[tuple(c)], mask[tuple(c)]) for image, mask, c in zip(images, masks, cut, strict=True)]
    matching = Matching.of(fwhm)
    expected = compare_tile(outer, outer, boxes, *zip(*parts, strict=True), variances, matching)
    patch = Patch("r", (0, 0), outer, outer)
    layout = Layout((), (patch,), tuple(Footprint(k, 0, box) for k, box in enumerate(boxes)))
    tiling = Tiling(layout, matching.halo)
    codes = [np.full((box[0][1] - box[0][0], box[1][1] - box[1][0]), 99, np.uint8) for box in boxes]
    for top in range(1000, 1300, MESH):
        for left in range(2000, 2280, MESH):
            tile = tiling._tile(0, ((top, min(top + MESH, 1300)), (left, min(left + MESH, 2280))), range(6))
            reads = [
                tuple(
                    plane[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(read, boxes[k], strict=True))]
                    for plane in parts[k]
                )
                for k, read in zip(tile.footprints, tile.reads, strict=True)
            ]
            found, left_over = compare_tile(
                tile.box,
                tile.around,
                tile.reads,
                *zip(*reads, strict=True),
                [variances[k] for k in tile.footprints],
                matching.of_some(tile.footprints),
            )
            for place, k in enumerate(tile.footprints):
                shared = overlap(boxes[k], tile.box)
                if not box_size(shared):
                    continue
                own = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(shared, boxes[k], strict=True))
                inside = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(shared, tile.box, strict=True))
                codes[k][own] = found[place][inside]
                first = (top - 1000) // BIN, (left - 2000) // BIN
                bins = expected[1][k][first[0] :, first[1] :][
                    : left_over[place].shape[0], : left_over[place].shape[1]
                ]
                np.testing.assert_array_equal(left_over[place], bins)
    for k, box in enumerate(boxes):
        own = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, outer, strict=True))
        np.testing.assert_array_equal(codes[k], expected[0][k][own])
