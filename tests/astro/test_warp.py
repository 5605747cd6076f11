"""Warp: a loop reference, bits in bands, light and place of stars, noise; the peers SWarp and reproject."""

import itertools
import shutil
import subprocess

import numpy as np
import pytest
from astropy.io import fits
from support import headers, reference

from mpiimg.astro.kernels.bad_pixels import interpolate_bad
from mpiimg.astro.kernels.footprint_sums import TAPS
from mpiimg.astro.kernels.lanczos import lanczos
from mpiimg.astro.kernels.places import NODE_SPACING, Nodes
from mpiimg.astro.kernels.warp import resample
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.sky.wcs import (
    directions,
    footprint,
    footprint_box,
    read_wcs,
    source_grid,
    to_pixels,
    to_sky,
)

NO_DATA = 256

#: x, y and flux of stars far enough from each other and from the edge.
STARS = [(60.3, 55.8, 1e5), (150.0, 60.5, 3e5), (70.71, 140.14, 2e5), (165.25, 150.9, 1e5)]
SHAPE = (200, 230)
SWARP = shutil.which("SWarp") or shutil.which("swarp")


def curved(x, y):
    """A map of output to source pixels that cubics hold exactly, and its Jacobian."""
    u, v = x - 100.0, y - 90.0
    sx = 111.3 + 0.83 * u + 0.31 * v + 2e-4 * u * u - 1e-4 * u * v + 1e-7 * v**3
    sy = 96.7 - 0.29 * u + 0.87 * v + 1e-4 * u * u + 2e-4 * v * v - 1e-7 * u**3
    dxdu, dxdv = 0.83 + 4e-4 * u - 1e-4 * v, 0.31 - 1e-4 * u + 3e-7 * v**2
    dydu, dydv = -0.29 + 2e-4 * u - 3e-7 * u**2, 0.87 + 4e-4 * v
    return sx, sy, np.abs(dxdu * dydv - dxdv * dydu)


def nodes_of(function, box):
    """The coarse grid of a map for a box of output pixels."""
    spans = [np.arange(start // NODE_SPACING - 1, (stop - 1) // NODE_SPACING + 3) for start, stop in box]
    y, x = np.meshgrid(*(span * float(NODE_SPACING) for span in spans), indexing="ij")
    return Nodes(*function(x, y)[:2], spans[0][0], spans[1][0])


@pytest.fixture(scope="module")
def planes():
    """Noise with a gradient, a variance of its own, sparse flags; values without number here and there."""
    rng = np.random.default_rng(11)
    image = (rng.normal(0, 30, SHAPE) + np.arange(SHAPE[1])).astype(np.float32)
    variance = rng.uniform(50, 150, SHAPE).astype(np.float32)
    mask = (np.int32(1) << rng.integers(0, 8, SHAPE, dtype=np.int32)) * (rng.random(SHAPE) < 0.01)
    image[40, 50], image[130, 88], variance[99, 140] = np.nan, np.inf, np.inf
    return image, variance, mask.astype(np.int32)


BOX = ((-17, 107), (-5, 141))


def test_against_the_loop_reference(planes):
    y, x = np.mgrid[slice(*BOX[0]), slice(*BOX[1])].astype(float)
    sx, sy, area = curved(x, y)
    image, variance, mask, variance_ls = reference.warp(
        *(p.astype(float) for p in planes[:2]), planes[2], sx, sy, area, NO_DATA
    )
    ours = resample(*planes, nodes_of(curved, BOX), BOX, no_data=NO_DATA)
    assert ours.image.dtype == ours.variance.dtype == np.float32 and ours.mask.dtype == np.int32
    known = np.isfinite(image)
    assert 0.5 < known.mean() < 0.99
    np.testing.assert_array_equal(np.isnan(ours.image), ~known)
    np.testing.assert_array_equal(np.isposinf(ours.variance), ~known)
    np.testing.assert_array_equal(ours.mask, mask)
    # Float32 sums of 36 numbers of up to 300.
    np.testing.assert_allclose(ours.image[known], image[known], atol=2e-4)
    np.testing.assert_allclose(ours.variance[known], variance[known], rtol=3e-6)
    np.testing.assert_array_equal(np.isposinf(ours.variance_ls), ~known)
    np.testing.assert_allclose(ours.variance_ls[known], variance_ls[known], rtol=4e-6)


def test_scale_is_a_factor_of_the_image_and_a_square_of_the_variance(planes):
    plain, scaled = (resample(*planes, nodes_of(curved, BOX), BOX, scale, NO_DATA) for scale in (1.0, 0.37))
    np.testing.assert_allclose(scaled.image, 0.37 * plain.image, rtol=1e-6)
    np.testing.assert_allclose(scaled.variance, 0.37**2 * plain.variance, rtol=1e-6)
    np.testing.assert_array_equal(scaled.mask, plain.mask)


@pytest.mark.parametrize("rows", [[7], [32], [-16, 0, 31, 32, 33, 100], list(range(-16, 107, 5))])
@pytest.mark.parametrize("columns", [[], [-4, 0, 33, 64, 127]])
def test_bits_do_not_depend_on_the_box(planes, rows, columns):
    """Bands and tiles cut anywhere, with the whole's grid or one of their own."""
    whole = resample(*planes, nodes_of(curved, BOX), BOX, 1.7, NO_DATA)
    row_edges, column_edges = (
        [start, *cuts, stop] for (start, stop), cuts in zip(BOX, (rows, columns), strict=True)
    )
    for y0, y1 in itertools.pairwise(row_edges):
        for x0, x1 in itertools.pairwise(column_edges):
            part = (y0, y1), (x0, x1)
            grid = nodes_of(curved, BOX if y0 % 2 else part)
            band = resample(*planes, grid, part, 1.7, NO_DATA)
            for piece, all_ in zip(band, whole, strict=True):
                same = all_[y0 - BOX[0][0] : y1 - BOX[0][0], x0 - BOX[1][0] : x1 - BOX[1][0]]
                assert piece.tobytes() == np.ascontiguousarray(same).tobytes()


def shifted(dx, dy):
    return lambda x, y: (x + dx, y + dy)


def test_whole_pixels_are_copied_exactly(planes):
    image, variance, mask = planes[0].copy(), planes[1].copy(), planes[2] * 0
    image[~np.isfinite(image)], variance[~np.isfinite(variance)] = 0, 1
    out = resample(
        image, variance, mask, nodes_of(shifted(7, 11), ((0, 150), (0, 180))), ((0, 150), (0, 180))
    )
    np.testing.assert_array_equal(out.image, image[11:161, 7:187])
    np.testing.assert_array_equal(out.variance, variance[11:161, 7:187])


def test_the_edge_of_the_source(planes):
    """A pixel is known where its 6 x 6 footprint lies in the source, and only there."""
    image = np.ones(SHAPE, np.float32)
    box = ((0, SHAPE[0]), (0, SHAPE[1]))
    out = resample(image, image, planes[2] * 0, nodes_of(shifted(0.5, 0.0), box), box, no_data=NO_DATA)
    known = np.zeros(SHAPE, bool)
    known[2:-3, 2:-3] = True
    np.testing.assert_array_equal(np.isfinite(out.image), known)
    np.testing.assert_array_equal(out.mask, np.where(known, 0, NO_DATA))
    assert np.isnan(out.image[~known]).all() and np.isposinf(out.variance[~known]).all()


def test_nodes_without_numbers_are_outside():
    ones = np.ones((100, 100), np.float32)
    grid = nodes_of(shifted(0.25, 0.25), ((0, 90), (0, 90)))
    grid.x[-1, -1] = np.nan
    out = resample(ones, ones, np.zeros((100, 100), np.uint16), grid, ((0, 90), (0, 90)), no_data=NO_DATA)
    assert out.mask.dtype == np.uint16
    assert np.isnan(out.image[65:, 65:]).all() and np.isfinite(out.image[2:64, 2:64]).all()


def test_a_far_coarser_output_pixel_still_finds_its_source():
    """One cell may cover the whole source."""
    rng = np.random.default_rng(5)
    image = rng.normal(size=(300, 310)).astype(np.float32)
    box = ((0, 20), (0, 20))
    grid = nodes_of(lambda x, y: (14.2 * x + 3.4, 13.9 * y + 2.6), box)
    out = resample(image, np.ones_like(image), np.zeros(image.shape, np.int32), grid, box)
    y, x = np.mgrid[:20, :20].astype(float)
    area = np.full(x.shape, 14.2 * 13.9)
    exact = reference.warp(
        image, np.ones_like(image), np.zeros(image.shape, int), 14.2 * x + 3.4, 13.9 * y + 2.6, area, 0
    )
    np.testing.assert_allclose(out.image, exact[0], atol=1e-3)


def test_what_does_not_fit_is_refused(planes):
    grid = nodes_of(curved, ((0, 64), (0, 64)))
    with pytest.raises(ValueError, match="do not surround"):
        resample(*planes, grid, ((0, 65), (0, 64)))
    with pytest.raises(ValueError, match="do not surround"):
        resample(*planes, grid, ((0, 64), (-1, 64)))
    with pytest.raises(ValueError, match="different shapes"):
        resample(planes[0], planes[1][:-1], planes[2], grid, ((0, 64), (0, 64)))
    assert resample(*planes, grid, ((5, 5), (0, 64))).image.shape == (0, 64)


def test_weights():
    """Each shift's six weights add up to one, squares beside them, and those between pixels are Lanczos'."""
    rows = lanczos().weights.reshape(-1, 16)
    weights, squares = rows[:, 0 : 2 * TAPS : 2], rows[:, 1 : 2 * TAPS : 2]
    np.testing.assert_allclose(weights.sum(axis=1, dtype=float), 1.0, atol=2e-7)
    np.testing.assert_array_equal(squares, weights * weights)
    assert not rows[:, 2 * TAPS :].any()
    for shift in (0, 1, 1000, 2048, 4095, 4096):
        exact = np.array([reference.lanczos(shift / 4096 - tap) for tap in range(-2, 4)])
        np.testing.assert_allclose(weights[shift], exact / exact.sum(), atol=1e-7)


# --- Light, places, noise -----------------------------------------------------------------------------------


def sky_with_stars(shape, stars, fwhm):
    """Gaussian stars (x, y, flux), their value at the centre of each pixel, without noise."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    image = np.zeros(shape)
    width = fwhm / 2.3548
    for sx, sy, flux in stars:
        image += flux / (2 * np.pi * width**2) * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * width**2))
    return image.astype(np.float32)


def frame_and_target(kind, shape, scale):
    """A frame's WCS, a tract's around it, and the box of its pixels that the frame reaches."""
    if kind == "sip":
        wcs = read_wcs(headers.sip(shape, angle=20.0), kind)
    else:
        wcs = read_wcs(headers.decam(shape, angle={"tpv": 90.05, "turned": 12.0}[kind]), kind)
    tract = Tract.around([footprint(wcs, shape)], pixel_scale=scale, patch=100, border=10)
    return wcs, tract.wcs, footprint_box(wcs, shape, tract.wcs)


def warp_frame(wcs, target, box, image, variance=None, mask=None):
    variance = np.ones_like(image) if variance is None else variance
    mask = np.zeros(image.shape, np.int32) if mask is None else mask
    return resample(image, variance, mask, source_grid(wcs, target, box, NODE_SPACING), box, no_data=NO_DATA)


def pixel_area(wcs, x, y):
    """Return the area on the sky (square arcseconds) of the pixels at x and y, distortion included."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    right, left = (directions(*to_sky(wcs, x + d, y)) for d in (0.5, -0.5))
    above, below = (directions(*to_sky(wcs, x, y + d)) for d in (0.5, -0.5))
    area = np.linalg.norm(np.cross(right - left, above - below, axis=0), axis=0)
    return area * np.degrees(1.0) ** 2 * 3600**2


@pytest.mark.parametrize("scale", [0.263, 0.333])
@pytest.mark.parametrize("kind", ["tpv", "sip"])
def test_constant_brightness_comes_out_constant(kind, scale):
    """Input pixels that hold flux in proportion to their area on the sky."""
    wcs, target, box = frame_and_target(kind, SHAPE, scale)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    brightness = 250.0  # a square arcsecond
    out = warp_frame(wcs, target, box, (brightness * pixel_area(wcs, x, y)).astype(np.float32))
    ty, tx = np.mgrid[slice(*box[0]), slice(*box[1])]
    expected = brightness * pixel_area(target, tx, ty)
    known = np.isfinite(out.image)
    assert known.mean() > 0.4
    np.testing.assert_allclose(out.image[known], expected[known], rtol=5e-6)


def misplacement():
    """How far the kernel itself puts light off its place at the worst of shifts: 0.02 pixel."""
    weights = lanczos().weights.reshape(-1, 16)[:, 0 : 2 * TAPS : 2].astype(float)
    return np.abs(weights @ (np.arange(TAPS) - 2.0) - np.arange(4097) / 4096).max()


def star_errors(header, scale, fwhm, rounds=4):
    """Relative errors of flux in a large aperture, and of places (pixels), of stars at random shifts."""
    wcs, target, box = frame_and_target(header, SHAPE, scale)
    y, x = np.mgrid[slice(*box[0]), slice(*box[1])]
    rng = np.random.default_rng(9)
    fluxes, places = [], []
    for _ in range(rounds):
        stars = [(sx + rng.random(), sy + rng.random(), flux) for sx, sy, flux in STARS]
        out = warp_frame(wcs, target, box, sky_with_stars(SHAPE, stars, fwhm))
        for sx, sy, flux in stars:
            tx, ty = to_pixels(target, *to_sky(wcs, sx, sy))
            aperture = np.hypot(x - tx, y - ty) < 28
            values = out.image[aperture].astype(float)
            fluxes.append(values.sum() / flux - 1)
            places.append((values @ np.stack([x[aperture] - tx, y[aperture] - ty], axis=1)) / values.sum())
    return np.array(fluxes), np.array(places)


@pytest.mark.parametrize("scale", [0.263, 0.333])
@pytest.mark.parametrize("fwhm", [3.0, 4.5, 6.0])
@pytest.mark.parametrize("kind", ["turned", "sip"])
def test_stars_keep_their_light_and_place(kind, fwhm, scale):
    """Flux to 1e-3 and each place to 0.01 pixel of the WCS's.

    Stars as sharp as 3 pixels, on pixels of 1.27 times the size, are aliased by Lanczos-3: up to 5e-3 a star,
    but not on the average.
    """
    fluxes, places = star_errors(kind, scale, fwhm)
    sharp = fwhm / (scale / 0.263) < 3
    assert np.abs(fluxes).max() < (5e-3 if sharp else 1.5e-3)
    assert abs(fluxes.mean()) < 1e-3
    assert np.abs(places).max() < 0.01


@pytest.mark.parametrize("fwhm", [3.0, 6.0])
def test_stars_on_pixels_that_fall_in_step(fwhm):
    """Same scale, turned by ninety degrees: one shift for a whole star, the kernel's own error in full."""
    fluxes, places = star_errors("tpv", 0.263, fwhm)
    assert np.abs(fluxes).max() < 1e-3
    assert 0.015 < np.abs(places).max() < misplacement() + 1e-3 < 0.022
    fluxes, places = star_errors("tpv", 0.333, fwhm)
    assert abs(fluxes.mean()) < 2e-3 and np.abs(places).max() < 0.01


def test_variance_is_that_of_many_realisations():
    """Single pixels, with a noise level that varies, at the native scale and a coarser one."""
    rng = np.random.default_rng(2)
    shape, trials = (60, 70), 1500
    level = np.linspace(3.0, 12.0, shape[1], dtype=np.float32) ** 2 + np.zeros(shape, np.float32)
    for scale in (0.263, 0.333):
        wcs, target, box = frame_and_target("tpv", shape, scale)
        grid, mask = source_grid(wcs, target, box, NODE_SPACING), np.zeros(shape, np.int32)
        sums = squares = 0.0
        for _ in range(trials):
            noise = rng.standard_normal(shape, dtype=np.float32) * np.sqrt(level)
            out = resample(noise, level, mask, grid, box)
            sums, squares = sums + out.image, squares + out.image.astype(float) ** 2
        ratio = (squares / trials - (sums / trials) ** 2) / out.variance
        known = np.isfinite(ratio)
        # Each pixel's own estimate scatters by sqrt(2 / trials) = 3.7 %; neighbours are correlated.
        assert np.mean(ratio[known]) == pytest.approx(1.0, abs=0.005)
        assert np.std(ratio[known]) < 0.045


@pytest.mark.parametrize("kind", ["tpv", "sip"])
def test_bands_of_a_patch_with_grids_of_their_own(kind):
    """From header to pixels: each band makes its own coarse grid, and the bits are those of the whole."""
    wcs, target, box = frame_and_target(kind, SHAPE, 0.333)
    rng = np.random.default_rng(8)
    image, mask = rng.normal(100, 9, SHAPE).astype(np.float32), np.eye(*SHAPE, dtype=np.int32)
    source = image, np.full_like(image, 81), mask
    whole = resample(*source, source_grid(wcs, target, box, NODE_SPACING), box, no_data=NO_DATA)
    assert np.isfinite(whole.image).mean() > 0.4
    for rows in (1, 32, 50):
        for start in range(*box[0], rows):
            band = (start, min(start + rows, box[0][1])), box[1]
            part = resample(*source, source_grid(wcs, target, band, NODE_SPACING), band, no_data=NO_DATA)
            for piece, all_ in zip(part, whole, strict=True):
                assert piece.tobytes() == all_[band[0][0] - box[0][0] : band[0][1] - box[0][0]].tobytes()


def test_a_warp_over_bad_pixels_has_its_flag_and_no_trace_of_their_value():
    """INTRP, set by the caller where pixels were replaced, goes to each pixel whose footprint has one."""
    intrp = 4
    image = np.full((64, 64), 10.0, np.float32)
    image[30, 30] = np.nan
    filled, noise, replaced = interpolate_bad(image, np.ones_like(image), np.zeros(image.shape, bool))
    box = ((0, 58), (0, 58))
    mask = np.where(replaced, np.int32(intrp), np.int32(0))
    out = resample(filled, noise, mask, nodes_of(shifted(2.25, 2.75), box), box, no_data=NO_DATA)
    flagged = {tuple(map(int, place)) for place in np.argwhere(out.mask & intrp)}
    assert flagged == {(y, x) for y in range(25, 31) for x in range(25, 31)}
    np.testing.assert_allclose(out.image[out.mask & NO_DATA == 0], 10.0, rtol=1e-6)


# --- Peers --------------------------------------------------------------------------------------------------


def centroid(image, x, y, radius=28):
    yy, xx = np.mgrid[: image.shape[0], : image.shape[1]]
    values = np.where((np.hypot(xx - x, yy - y) < radius) & np.isfinite(image), image, 0.0).astype(float)
    return values.sum(), (values * xx).sum() / values.sum(), (values * yy).sum() / values.sum()


@pytest.mark.parametrize("kind", ["tpv", "sip"])
def test_places_are_those_of_reproject(kind):
    """Centroids of the same stars within 0.01 pixel."""
    reproject = pytest.importorskip("reproject", reason="the peer reproject is not installed")
    wcs, target, box = frame_and_target(kind, SHAPE, 0.28)
    image = sky_with_stars(SHAPE, STARS, 4.0)
    ours = warp_frame(wcs, target, box, image).image
    (y0, y1), (x0, x1) = box
    shifted_target = target.deepcopy()
    shifted_target.wcs.crpix -= (x0, y0)
    peer, _ = reproject.reproject_interp(
        (image, wcs), shifted_target, shape_out=(y1 - y0, x1 - x0), order="bicubic"
    )
    for sx, sy, _ in STARS:
        tx, ty = to_pixels(shifted_target, *to_sky(wcs, sx, sy))
        _, *place = centroid(ours, tx, ty)
        _, *peer_place = centroid(peer, tx, ty)
        np.testing.assert_allclose(place, peer_place, atol=0.01)


@pytest.mark.skipif(SWARP is None, reason="the peer SWarp (Debian: swarp) is not installed")
@pytest.mark.parametrize("scale", [0.263, 0.333])
def test_agreement_with_swarp(tmp_path, scale):
    """On the same grid, with pixel areas that vary: light to 1e-3, residuals far below the noise."""
    wcs, target, box = frame_and_target("tpv", SHAPE, scale)
    rng = np.random.default_rng(4)
    noise = 12.0
    image = sky_with_stars(SHAPE, STARS, 4.0) + rng.normal(0, noise, SHAPE).astype(np.float32)
    ours = warp_frame(wcs, target, box, image, np.full(SHAPE, noise**2, np.float32))
    peer, weight = run_swarp(tmp_path, image, noise, target, box)
    known = np.isfinite(ours.image) & (weight > 0)
    assert known.mean() > 0.4
    difference = (peer - ours.image)[known]
    assert np.std(difference) < 0.1 * np.sqrt(np.median(ours.variance[known]))
    bright = known & (ours.image > 20 * noise)
    assert np.sum(peer[bright]) / np.sum(ours.image[bright]) == pytest.approx(1.0, abs=1e-3)
    # Its weights are inverse variances, interpolated in another way.
    np.testing.assert_allclose(np.median(1 / weight[known] / ours.variance[known]), 1.0, atol=0.5)


def run_swarp(folder, image, noise, target, box):
    """Resample with SWarp onto `box` of `target`; return image and weight."""
    (y0, y1), (x0, x1) = box
    fits.writeto(folder / "in.fits", image, headers.decam(SHAPE, angle=90.05))
    fits.writeto(folder / "in.weight.fits", np.full(SHAPE, noise**-2, np.float32))
    # SWarp takes the matrix from CD alone.
    head = headers.tan((y1 - y0, x1 - x0), tuple(target.wcs.crval), scale=target.wcs.cdelt[1] * 3600)
    head["CRPIX1"], head["CRPIX2"] = target.wcs.crpix - (x0, y0)
    (folder / "out.head").write_text(head.tostring(sep="\n") + "\nEND\n")
    options = {
        "IMAGEOUT_NAME": "out.fits",
        "WEIGHTOUT_NAME": "out.weight.fits",
        "WEIGHT_TYPE": "MAP_WEIGHT",
        "COMBINE": "N",
        "RESAMPLE_SUFFIX": ".warp.fits",
        "RESAMPLING_TYPE": "LANCZOS3",
        "OVERSAMPLING": "1",
        "FSCALASTRO_TYPE": "VARIABLE",
        "SUBTRACT_BACK": "N",
        "PROJECTION_ERR": "0",
        "DELETE_TMPFILES": "N",
        "WRITE_XML": "N",
        "NTHREADS": "1",
        "VERBOSE_TYPE": "QUIET",
    }
    flags = [word for key, value in options.items() for word in (f"-{key}", value)]
    subprocess.run([SWARP, "in.fits", *flags], cwd=folder, check=True, timeout=60)
    place = fits.getheader(folder / "in.warp.fits")
    ny, nx = y1 - y0, x1 - x0
    planes = []
    for name in ("in.warp.fits", "in.warp.weight.fits"):
        # SWarp writes only the part of the output that the exposure covers; CRPIX says which.
        part = fits.getdata(folder / name)
        top, left = (round(head[f"CRPIX{axis}"] - place[f"CRPIX{axis}"]) for axis in (2, 1))
        whole = np.zeros((ny + 100, nx + 100))
        whole[50 + top : 50 + top + part.shape[0], 50 + left : 50 + left + part.shape[1]] = part
        planes.append(whole[50 : 50 + ny, 50 : 50 + nx])
    return planes
