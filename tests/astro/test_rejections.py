"""What comparison takes out of coadds, and what it leaves: artifacts go, light of stars stays."""

from __future__ import annotations

import numpy as np
import pytest
import sep
from astropy.table import Table
from scipy import ndimage
from support.stacks import add_stars, some_stars, whole

from mpiimg.astro import catalogue, trails
from mpiimg.astro.comparison import artifacts_of
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.kernels import compare as kernels
from mpiimg.astro.photometry.cores import flag_cores
from mpiimg.astro.rejections import COLUMNS, describe, head

#: Counts: noise of the sky in a pixel, and electrons per count.
NOISE, GAIN = 8.0, 4.0

SHAPE = (400, 400)


def visits(fwhm, stars, seed=0, shape=SHAPE, depth=1.0, shift=0.0, zero_point=0.0, gradient=0.0, **about):
    """Exposures of stars, and the variance of their sky; `depth` is the ratio of the extreme variances."""
    rng = np.random.default_rng(seed)
    images, variances = [], (NOISE**2 * np.geomspace(1, depth, len(fwhm))).tolist()
    for width, variance in zip(fwhm, variances, strict=True):
        clean = np.zeros(shape)
        add_stars(clean, stars, width, shift=shift * rng.normal(size=2), **about)
        clean *= 1 + zero_point * rng.normal()
        clean += np.linspace(-0.5, 0.5, shape[1]) * gradient * rng.normal()
        sigma = np.sqrt(variance + np.maximum(clean, 0) / GAIN)
        images.append((clean + rng.normal(size=shape) * sigma).astype(np.float32))
    return images, variances


def left_out(images, variances, fwhm, masks=None):
    """Return which pixels of each exposure are artifacts, and their WARP_STATS."""
    masks = masks or [np.zeros(image.shape, np.int32) for image in images]
    codes, bins = whole(images, masks, variances, fwhm)
    found = [artifacts_of(*one, (0, 0), width) for *one, width in zip(codes, bins, fwhm, strict=True)]
    return np.array([pixels != 0 for pixels, _ in found]), [stats for _, stats in found]


def weighted_mean(images, variances, out):
    weights = (1 / np.array(variances))[:, None, None] * ~out
    return (weights * np.array(images)).sum(axis=0) / weights.sum(axis=0)


def paired(images, variances, out, stars, fwhm, radius):
    """By how many percent of a star's flux a coadd differs from the mean of all, in `radius` FWHM."""
    inside = np.all((stars[:, :2] > 25) & (stars[:, :2] < np.array(images[0].shape) - 26), axis=1)
    change = weighted_mean(images, variances, out) - weighted_mean(images, variances, np.zeros_like(out))
    y, x, flux = stars[inside].T
    return 100 * sep.sum_circle(change, x, y, radius * np.median(fwhm))[0] / flux, flux


@pytest.mark.parametrize("n", [3, 5, 24])
@pytest.mark.parametrize(
    "sky",
    [
        {},
        {"beta": 2.5},
        {"shift": 0.1, "zero_point": 0.01, "gradient": 5.0},
        {"depth": 3.0},
    ],
    ids=["plain", "wings", "errors", "depths"],
)
def test_stars_keep_their_light(n, sky):
    fwhm = np.linspace(3.0, 5.0, n)
    stars = some_stars(SHAPE, 60, seed=n, fluxes=(1e3, 1e7))
    images, variances = visits(fwhm, stars, seed=n, **sky)
    out, _ = left_out(images, variances, fwhm)
    for radius in (0.5, 2.0):
        change, flux = paired(images, variances, out, stars, fwhm, radius)
        for low in (1e3, 1e4, 1e5, 1e6):
            own = np.abs(change[(flux >= low) & (flux < 10 * low)])
            assert np.median(own) < 0.05
            assert np.percentile(own, 95) < 0.2


@pytest.mark.parametrize("n", [3, 24])
def test_a_sharp_exposure_keeps_its_stars(n):
    """One of 0.66 among those of 0.95 to 1.3, which clipping takes 1 to 3 % of all stars for."""
    fwhm = np.array([0.66, *np.linspace(0.95, 1.3, n - 1)]) / 0.263
    stars = some_stars(SHAPE, 60, seed=5, fluxes=(1e3, 1e6))
    images, variances = visits(fwhm, stars, seed=5)
    out, _ = left_out(images, variances, fwhm)
    for radius in (0.5, 2.0):
        change, _ = paired(images, variances, out, stars, fwhm, radius)
        assert np.abs(np.median(change)) < 5e-4 and np.percentile(np.abs(change), 95) < 0.2


# --- What is no sky -----------------------------------------------------------------------------------------


def trail(shape, angle, centre, ridge, fwhm, length=np.inf):
    """A straight trail, as wide as a star."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    across = (x - centre[1]) * np.sin(angle) - (y - centre[0]) * np.cos(angle)
    along = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
    return ridge * np.exp(-(across**2) / (2 * (fwhm / 2.355) ** 2)) * (np.abs(along) < length / 2)


def test_a_trail_in_one_of_five_leaves_nothing():
    """It is 25 sigma of the coadd there without comparison, and stays below 0.5 with it."""
    fwhm = np.linspace(3.4, 4.6, 5)
    images, variances = visits(fwhm, some_stars(SHAPE, 40, seed=2, fluxes=(1e3, 1e5)), seed=2)
    light = trail(SHAPE, 0.7, (200, 190), 25 * np.sqrt(5) * NOISE, fwhm[1])
    images[1] += light.astype(np.float32)
    out, stats = left_out(images, variances, fwhm)
    noise = NOISE / np.sqrt(5)
    left = weighted_mean([*images[:1], images[1] - light, *images[2:]], variances, out)
    residual = (weighted_mean(images, variances, out) - left) / noise
    on_trail = light > 0.02 * light.max()
    assert np.abs(residual[on_trail]).max() < 0.5
    assert weighted_mean(images, variances, np.zeros_like(out))[on_trail].max() / noise > 20
    assert not any(spared for _, _, spared, *_ in stats)


def test_what_moves_and_what_was_missed_are_left_out():
    """An asteroid that moves by 1.5 FWHM a visit, and cosmic rays on the pixels of one exposure."""
    n, rng = 8, np.random.default_rng(7)
    fwhm = np.full(n, 4.0)
    images, variances = visits(fwhm, some_stars(SHAPE, 30, seed=7, fluxes=(1e3, 1e5)), seed=7)
    static = [image.copy() for image in images]
    for k in range(n):
        add_stars(images[k], [(200, 100 + 6 * k, 6000.0)], fwhm[k])
        for y, x in rng.integers(10, 390, (12, 2)):
            images[k][y, x : x + 3] += 600
    out, _ = left_out(images, variances, fwhm)
    change = weighted_mean(images, variances, out) - weighted_mean(static, variances, out)
    naive = weighted_mean(images, variances, np.zeros_like(out)) - weighted_mean(static, variances, out)
    noise = NOISE / np.sqrt(n)
    # Within the light of a star no more than half of it is told from how it varies.
    dark = ndimage.grey_dilation(np.median(static, axis=0), size=11) < 30
    assert dark.mean() > 0.5 and naive[dark].max() / noise > 20
    assert np.percentile(np.abs(change[dark]) / noise, 99.9) < 1 and change[dark].max() / noise < 4


@pytest.mark.parametrize("n", [1, 2])
def test_of_one_or_two_nothing_is_rejected(n):
    images, variances = visits([4.0] * n, [], seed=1)
    images[0][100:120, 100:120] += 1000
    out, _ = left_out(images, variances, [4.0] * n)
    assert not out.any()


def test_an_exposure_that_differs_as_a_whole_is_spared():
    images, variances = visits([4.0] * 4, [], seed=1)
    images[2][:200] += np.where(np.arange(400) % 40 < 20, 30, -30).astype(np.float32)
    out, stats = left_out(images, variances, [4.0] * 4)
    assert not out[2].any() and [row[2] for row in stats] == [0, 0, 1, 0]


def test_a_sky_that_is_off_is_no_artifact():
    images, variances = visits([4.0] * 5, [], seed=1)
    images[0] += 20
    images[1] += np.linspace(0, 15, 400, dtype=np.float32)
    assert left_out(images, variances, [4.0] * 5)[0].mean() < 1e-4


def test_saturated_pixels_are_never_hit():
    images, variances = visits([4.0] * 4, [], seed=1)
    masks = [np.zeros(SHAPE, np.int32) for _ in images]
    images[3][50:60, 50:60] += 5000
    masks[3][50:60, 50:60] = bits("SAT")
    codes, _ = whole(images, masks, variances, [4.0] * 4)
    assert not (codes[3][50:60, 50:60] & kernels.HIT).any()


# --- Faint trails -------------------------------------------------------------------------------------------


def residual(rng, shape, n, fwhm=4.0, light=0.0):
    """What is left of an exposure in bins, and the codes of its pixels, against the median of n."""
    images = rng.normal(size=shape).astype(np.float32) + light
    taps = kernels.gaussian(fwhm * np.sqrt(1.2**2 - 1) / 2.355)
    mask = np.zeros(shape, np.int32)
    matched = kernels.match(images.astype(np.float32), mask, 1, taps)
    noise = float(np.sum(taps.astype(float) ** 2) ** 2)
    floor = np.full(shape, noise * np.pi / 2 / n, np.float32)
    sky = np.zeros((-(-shape[0] // 128), -(-shape[1] // 128)), np.float32)
    counts = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    return kernels.hits(
        matched, (0, 0), sky, 128, 0 * matched, floor, (matched, mask), 1, (noise, 0.0, 5.0), *counts
    )


def test_faint_trails_are_found():
    """With a ridge of half the noise of a pixel, 700 pixels long, in any direction: 9 of 10."""
    rng, shape, found = np.random.default_rng(3), (900, 900), 0
    for _ in range(10):
        light = trail(shape, rng.uniform(0, np.pi), rng.uniform(400, 500, 2), 0.5, 4.0, 700)
        codes, bins = residual(rng, shape, 24, light=light)
        codes |= np.uint8(kernels.FEW)
        out, _ = artifacts_of(codes, bins, (0, 0), 4.0)
        covered = (out != 0)[light > 0.25].mean() if light.any() else 0
        found += covered > 0.8
        assert (out != 0).sum() < 6 * (light > 0.06).sum() + 500
    assert found >= 9


def test_noise_has_no_trails():
    rng = np.random.default_rng(4)
    assert not any(trails.find_trails(residual(rng, (600, 600), 5)[1]) for _ in range(20))


def test_a_crowded_field_has_no_trails():
    """Residuals of stars lie side by side there: 300 stars in a square arcminute, under all seeing."""
    shape = (500, 500)
    stars = some_stars(shape, 1440, seed=8, fluxes=(1e3, 1e6))
    fwhm = np.linspace(3.0, 5.3, 5)
    images, variances = visits(fwhm, stars, seed=8, shape=shape, shift=0.1, zero_point=0.01)
    out, stats = left_out(images, variances, fwhm)
    assert [trails for *_, trails in stats] == [0] * 5 and out.mean() < 0.005


@pytest.mark.parametrize("angle", np.arange(0.05, np.pi, 0.5))
def test_sums_along_lines_are_those_of_their_pixels(angle):
    """A bright line of one bin's width is found where it is."""
    bins = np.random.default_rng(0).normal(size=(200, 260)).astype(np.float32)
    light = trail(bins.shape, angle, (100, 130), 2.0, 1.5)
    best = max(trails.find_trails((bins + light).astype(np.float32)), key=lambda one: one.score)
    assert light[trails.band(best, bins.shape, 0.5)].mean() > 1.2


# --- What is said of it -------------------------------------------------------------------------------------


def test_shapes_fluxes_and_places():
    image, coadd = np.zeros((2, 200, 300), np.float32)
    artifacts = np.zeros((200, 300), np.uint8)
    artifacts[10:15, 220:225] = 1
    image[10:15, 220:225] = 4
    rows = np.arange(150)
    for width in range(-2, 3):
        artifacts[rows + 40, rows + 10 + width] = 2
    artifacts[20:60, 200:260] = 1
    image[30, 210] = np.nan
    measured = {row[3]: row for row in describe(artifacts, image, coadd, 3.0)}
    assert set(measured) == {"point", "trail", "other"}
    assert measured["point"] == (12, 222, 100, "point", 25)
    assert measured["trail"][-1] == 5 * 150 and measured["other"][2] == 0


def test_the_table_is_read_by_astropy(tmp_path):
    row = b'"a b" "1" "2" "r" 0-1 150.000001 2.5 1.00 2.00 3.5 trail 40\n'
    (tmp_path / "rejected.ecsv").write_bytes(head() + row)
    table = Table.read(tmp_path / "rejected.ecsv")
    assert table.colnames == [name for name, *_ in COLUMNS]
    assert table["exposure"][0] == "a b" and table["pixels"][0] == 40 and table["ra"].unit == "deg"


def test_sources_are_flagged_by_their_cores():
    table = catalogue.new(3)
    table["x"], table["y"] = [120, 140, 160], [110, 110, 110]
    bit, sat = bits("REJECTED"), bits("SAT")
    table["mask_flags"] = [bit, bit | sat, 0]
    mask = np.zeros((60, 80), np.int32)
    mask[10, 22], mask[10, 45], mask[12, 60] = bit, bit, bit
    flagged = flag_cores(table, mask, (100, 100), bit, 4.0)
    assert flagged["mask_flags"].tolist() == [bit, sat, bit]
