"""Output pixels larger than the source's: loop references, bits in bands, light; noise of many pixels."""

import math

import numpy as np
import pytest
from support import reference

from mpiimg.astro.kernels.places import NODE_SPACING, Nodes
from mpiimg.astro.kernels.warp import PLAIN, STRETCHED, resample

NO_DATA, BAD = 256, 1
SHAPE = (150, 160)


def shrinking(s, turn=0.3):
    """A map of output to source pixels that cubics hold exactly, about `s` source pixels a pixel, turned."""
    cosine, sine = s * math.cos(turn), s * math.sin(turn)

    def places(x, y):
        bend = 2e-4 * s
        sx = 40.3 + cosine * x - sine * y + bend * x * x - bend * x * y
        sy = 3.7 + sine * x + cosine * y + bend * y * y
        return sx, sy

    def area(x, y):
        bend = 2e-4 * s
        dxdu, dxdv = cosine + 2 * bend * x - bend * y, -sine - bend * x
        dydu, dydv = sine, cosine + 2 * bend * y
        return np.abs(dxdu * dydv - dxdv * dydu)

    return places, area


def nodes_of(places, box):
    """The coarse grid of a map for a box of output pixels."""
    spans = [np.arange(start // NODE_SPACING - 1, (stop - 1) // NODE_SPACING + 3) for start, stop in box]
    y, x = np.meshgrid(*(span * float(NODE_SPACING) for span in spans), indexing="ij")
    return Nodes(*places(x, y), spans[0][0], spans[1][0])


@pytest.fixture(scope="module")
def planes():
    """Noise with a gradient, a variance of its own, sparse flags; values without number here and there."""
    rng = np.random.default_rng(11)
    image = (rng.normal(0, 30, SHAPE) + np.arange(SHAPE[1])).astype(np.float32)
    variance = rng.uniform(50, 150, SHAPE).astype(np.float32)
    mask = (np.int32(1) << rng.integers(0, 8, SHAPE, dtype=np.int32)) * (rng.random(SHAPE) < 0.01)
    image[40, 50], image[130, 88], variance[99, 140] = np.nan, np.inf, np.inf
    return image, variance, mask.astype(np.int32)


@pytest.mark.parametrize("s", [1.06, 1.27, 2.5, 4.0])
def test_stretched_against_the_loop_reference(planes, s):
    box = ((-3, int(100 / s)), (-5, int(90 / s)))
    places, area = shrinking(s)
    y, x = np.mgrid[slice(*box[0]), slice(*box[1])].astype(float)
    image, variance, mask, variance_ls = reference.warp(
        *(p.astype(float) for p in planes[:2]), planes[2], *places(x, y), area(x, y), NO_DATA, stretch=s
    )
    ours = resample(*planes, nodes_of(places, box), box, no_data=NO_DATA, shrink=s)
    known = np.isfinite(image)
    assert 0.3 < known.mean() < 0.99
    np.testing.assert_array_equal(np.isnan(ours.image), ~known)
    np.testing.assert_array_equal(ours.mask, mask)
    # Float32 sums of up to 576 numbers of up to 300, then times up to 16.
    np.testing.assert_allclose(ours.image[known], image[known], atol=3e-4 * s * s)
    np.testing.assert_allclose(ours.variance[known], variance[known], rtol=1e-5)
    np.testing.assert_allclose(ours.variance_ls[known], variance_ls[known], rtol=1e-5)


@pytest.mark.parametrize("s", [4.3, 9.8])
def test_by_area_against_polygons(planes, s):
    box = ((-1, int(100 / s)), (-1, int(90 / s)))
    places, _ = shrinking(s)
    image, variance, mask = (plane[:60, :80] for plane in planes)
    mask = mask.copy()
    mask[20:28, 50:70] = BAD
    whole = reference.area_sums(image.astype(float), variance.astype(float), mask, places, BAD, NO_DATA)
    chosen = [(y, x) for y in range(*box[0], 2) for x in range(*box[1], 3)]
    expected = np.array([whole(y, x) for y, x in chosen])
    contiguous = (np.ascontiguousarray(plane) for plane in (image, variance, mask))
    ours = resample(*contiguous, nodes_of(places, box), box, no_data=NO_DATA, shrink=s, excluded=BAD)
    y, x = (np.array(chosen) - (box[0][0], box[1][0])).T
    known = np.isfinite(expected[:, 0])
    assert 0.15 < known.mean() < 0.95
    np.testing.assert_array_equal(ours.mask[y, x], expected[:, 2].astype(int))
    for plane, column in ((ours.image, 0), (ours.variance, 1), (ours.variance_ls, 3)):
        np.testing.assert_allclose(plane[y, x], expected[:, column], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("s", [1.27, 3.0, 6.0])
def test_bits_do_not_depend_on_the_box(planes, s):
    box = ((-3, int(110 / s)), (-5, int(130 / s)))
    places, _ = shrinking(s)
    how = {"scale": 1.7, "no_data": NO_DATA, "shrink": s, "excluded": BAD}
    whole = resample(*planes, nodes_of(places, box), box, **how)
    assert np.isfinite(whole.image).mean() > 0.2
    for rows in (7, 32):
        for y0 in range(*box[0], rows):
            for x0 in range(*box[1], 19):
                part = (y0, min(y0 + rows, box[0][1])), (x0, min(x0 + 19, box[1][1]))
                band = resample(*planes, nodes_of(places, part), part, **how)
                inside = tuple(slice(a - b[0], c - b[0]) for (a, c), b in zip(part, box, strict=True))
                for piece, all_ in zip(band, whole, strict=True):
                    assert piece.tobytes() == np.ascontiguousarray(all_[inside]).tobytes()


def test_the_way_is_chosen_by_scale_alone(planes):
    """The two limits belong to the finer way."""
    box = ((2, 20), (2, 30))
    places, _ = shrinking(1.0)
    grid = nodes_of(places, box)
    ways = {s: resample(*planes, grid, box, no_data=NO_DATA, shrink=s).image.tobytes() for s in (1.0, PLAIN)}
    assert len(set(ways.values())) == 1
    beyond = [resample(*planes, grid, box, shrink=s).image.tobytes() for s in (1.06, STRETCHED, 4.01)]
    assert len({*ways.values(), *beyond}) == 4


# --- Light --------------------------------------------------------------------------------------------------


def stars(shape, fwhm, places, fluxes):
    """Gaussian stars, their value at the centre of each pixel."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    width = fwhm / 2.3548
    image = np.zeros(shape)
    for (sx, sy), flux in zip(places, fluxes, strict=True):
        image += flux / (2 * np.pi * width**2) * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * width**2))
    return image.astype(np.float32)


@pytest.mark.parametrize("s", [1.27, 2.0, 3.6, 10.8])
def test_sharp_stars_keep_their_light(s):
    """Stars of 3 pixels FWHM: each within 1e-3, and 2e-3 where less than an output pixel wide.

    Plain Lanczos-3 loses up to 5e-3 at 1.27, and most of them from 2 on.
    """
    rng = np.random.default_rng(9)
    side = int(130 * s)
    turned, _ = shrinking(s, 0.21)
    box = ((0, 110), (0, 110))
    ones = np.ones((side, side), np.float32)
    for _ in range(2):
        tx, ty = rng.uniform(30, 80, 2)
        sx, sy = turned(tx, ty)
        image = stars((side, side), 3.0, [(sx, sy)], [1e5])
        out = resample(image, ones, np.zeros(image.shape, np.int32), nodes_of(turned, box), box, shrink=s)
        y, x = np.mgrid[:110, :110]
        near = np.hypot(x - tx, y - ty) < 25
        values = out.image[near].astype(float)
        assert np.isfinite(values).all()
        assert values.sum() == pytest.approx(1e5, rel=1e-3 if s < 3 else 2e-3)
        # A star inside one pixel is in the middle of it.
        off = np.hypot(values @ (x[near] - tx), values @ (y[near] - ty)) / 1e5
        assert off < (0.02 if s < 3 else 0.6)


@pytest.mark.parametrize("s", [1.5, 4.0, 7.7])
def test_constant_light_is_the_area(s):
    places, area = shrinking(s)
    box = ((2, int(60 / s)), (4, int(60 / s)))
    ones = np.full(SHAPE, 3.0, np.float32)
    out = resample(ones, ones, np.zeros(SHAPE, np.int32), nodes_of(places, box), box, shrink=s)
    y, x = np.mgrid[slice(*box[0]), slice(*box[1])]
    known = np.isfinite(out.image)
    assert known.mean() > 0.4
    np.testing.assert_allclose(out.image[known], 3 * area(x, y)[known], rtol=2e-6)
    np.testing.assert_allclose(out.variance_ls[known], 3 * area(x, y)[known], rtol=2e-6)


# --- Noise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [0.8, 1.0, 1.27, 3.1, 5.3])
@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
def test_filters_of_the_size_of_a_star_have_the_noise_that_variance_ls_says(s, shift):
    """Within 3 %, where the variance of single pixels is off by up to half, by phase and scale."""
    rng = np.random.default_rng(2)
    fwhm = 4.5 / s if s < 3 else 2.5
    box = ((0, 96), (0, 96))
    shape = (int(96 * s) + 30,) * 2
    grid = nodes_of(lambda x, y: (s * x + 12 + shift, s * y + 12 + shift), box)
    mask, level = np.zeros(shape, np.int32), np.full(shape, 7.0, np.float32)
    y, x = np.mgrid[-10:11, -10:11]
    psf = np.exp(-(x**2 + y**2) / (2 * (fwhm / 2.3548) ** 2))
    psf /= psf.sum()
    transfer = np.conj(np.fft.rfft2(psf, (80, 80)))
    values = []
    for _ in range(60 if s < 3 else 30):
        noise = (rng.standard_normal(shape, dtype=np.float32) * np.sqrt(level)).astype(np.float32)
        out = resample(noise, level, mask, grid, box, shrink=s)
        filtered = np.fft.irfft2(np.fft.rfft2(out.image[8:88, 8:88]) * transfer, (80, 80))
        values.append(filtered[:56, :56])
    measured = np.mean(np.square(values))
    said = np.sum(psf**2) * out.variance_ls[30, 30]
    assert math.sqrt(measured / said) == pytest.approx(1.0, abs=0.03)
