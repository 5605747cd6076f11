"""Sources on simulated coadds against the truth, a mosaic against one image, source-extractor beside it."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import erf
from support import reference

from mpiimg.astro import catalogue
from mpiimg.astro.photometry import apertures, extraction, seams
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.photometry.sources import DetectionSettings
from mpiimg.astro.sky.layout import Patch
from mpiimg.astro.sky.tract import Tract

pytest.importorskip("sep", reason="detection stands on sep")

NO_DATA, SAT = 1 << 8, 1 << 1
REAL = sorted((pathlib.Path(__file__).parents[3] / "shared/data/decam-testcase3").glob("*_ooi_*.fits"))
FWHM = 4.0
SIGMA = FWHM / detection.FWHM_OF_SIGMA
NOISE = 2.0

#: Bands and columns of patches side by side.
PLACES = (("g", (0, 50)), ("g", (50, 100)), ("r", (50, 100)))


def star(shape, x, y, flux, sigma=SIGMA):
    """A Gaussian star, integrated over pixels, as (rows, columns)."""

    def inside(centre, length):
        edges = (np.arange(length + 1) - 0.5 - centre) / (np.sqrt(2) * sigma)
        return np.diff(erf(edges)) / 2

    return flux * np.outer(inside(y, shape[0]), inside(x, shape[1]))


def draw(image, x, y, flux, sigma=SIGMA, reach=40):
    """Add a star to an image."""
    top, left = max(round(y) - reach, 0), max(round(x) - reach, 0)
    part = image[top : round(y) + reach + 1, left : round(x) + reach + 1]
    part += star(part.shape, x - left, y - top, flux, sigma)


def share_in_circle(x, y, radius, parts=11):
    """The share of a star's light that pixels have inside a circle; they are cut into parts x parts."""
    x, y, side = x % 1 + 15, y % 1 + 15, 31
    fine = (np.arange(side * parts) + 0.5) / parts - 0.5
    disc = np.hypot(fine[:, None] - y, fine[None] - x) < radius
    share = disc.reshape(side, parts, side, parts).mean(axis=(1, 3))
    return (share * star((side, side), x, y, 1.0)).sum()


def lattice_of_stars(shape, step, seed):
    """Positions on a jittered lattice: isolated stars."""
    rng = np.random.default_rng(seed)
    y, x = (
        grid.ravel().astype(float)
        for grid in np.mgrid[step : shape[0] - step / 2 : step, step : shape[1] - step / 2 : step]
    )
    return x + rng.uniform(-5, 5, x.size), y + rng.uniform(-5, 5, y.size)


def planes(light, seed, noise=NOISE, gain=5.0):
    """Planes of a coadd: light with its own and the sky's noise, variance, empty mask, 7 exposures."""
    variance = noise**2 + light / gain
    image = light + np.random.default_rng(seed).normal(size=light.shape) * np.sqrt(variance)
    shape = light.shape
    return image.astype("f4"), variance.astype("f4"), np.zeros(shape, "i4"), np.full(shape, 7, "i2")


#: Five standard deviations of a pixel, as the study had it; tests of the threshold are in test_threshold.py.
PIXEL = {"threshold": 5.0, "threshold_noise": "pixel"}


def find(image, variance, mask, nimage, origin=(0, 0), sky=None, **settings):
    sky = np.zeros_like(image) if sky is None else sky
    return detection.find_sources(
        image, variance, mask, nimage, sky, origin, NO_DATA, DetectionSettings(**{**PIXEL, **settings})
    )


def nearest(table, x, y, radius=2.0):
    """For each position the row of the table within a radius, or -1."""
    distance = np.hypot(table["x"][None] - x[:, None], table["y"][None] - y[:, None])
    best = distance.argmin(axis=1)
    return np.where(distance[np.arange(len(x)), best] < radius, best, -1)


@pytest.fixture(scope="module")
def sky_with_stars():
    """800 x 800 pixels with isolated stars in eight magnitudes, and what was found on it."""
    shape = (800, 800)
    x, y = lattice_of_stars(shape, 40, 1)
    flux = NOISE * 10 ** np.linspace(1.7, 4.2, 8)[np.arange(x.size) % 8]
    light = np.zeros(shape)
    for place in zip(x, y, flux, strict=True):
        draw(light, *place)
    data = planes(light, 2)
    table, segmentation = find(*data)
    return x, y, flux, data, table, segmentation


def test_complete_and_pure_by_magnitude(sky_with_stars):
    x, y, flux, _, table, _ = sky_with_stars
    row = nearest(table, x, y)
    # What is above the threshold: the peak of the filtered star, at 5 sigma a pixel.
    centre = star((9, 9), 4, 4, 1.0)
    smooth = (centre[3:6, 3:6] * np.array(detection.FILTER) / 16).sum()
    for level in np.unique(flux):
        found = (row[flux == level] >= 0).mean()
        if level * smooth > 1.5 * 5 * NOISE:
            assert found == 1, f"{level}: {found} found"
        if level * smooth < 0.7 * 5 * NOISE:
            assert found == 0, f"{level}: {found} found"
    assert len(table) == (row >= 0).sum(), "every detection is a star"
    assert len(np.unique(row[row >= 0])) == (row >= 0).sum()


def test_positions_and_their_errors(sky_with_stars):
    x, y, flux, _, table, _ = sky_with_stars
    row = nearest(table, x, y)
    bright = (row >= 0) & (flux > NOISE * 10**3)
    off = np.concatenate([table["x"][row] - x, table["y"][row] - y])
    error = np.concatenate([table["x_err"][row], table["y_err"][row]])
    bright = np.tile(bright, 2)
    assert np.sqrt(np.mean(off[bright] ** 2)) < 0.05
    assert abs(off[bright].mean()) < 0.005
    for level in np.unique(flux[row >= 0]):
        these = np.tile((row >= 0) & (flux == level), 2)
        assert 0.8 < np.sqrt(np.mean((off[these] / error[these]) ** 2)) < 1.25, level


def test_aperture_fluxes_are_unbiased_and_their_errors_right(sky_with_stars):
    x, y, flux, _, table, _ = sky_with_stars
    row = nearest(table, x, y)
    seen = row >= 0
    row, flux, x, y = row[seen], flux[seen], x[seen], y[seen]
    inside = {}
    for name, radius in zip(("small", "large"), DetectionSettings().radii, strict=True):
        inside[name] = np.array([share_in_circle(*place, radius) for place in zip(x, y, strict=True)])
        pull = (table[f"flux_{name}"][row] - flux * inside[name]) / table[f"flux_{name}_err"][row]
        assert abs(pull.mean()) < 4 / np.sqrt(len(pull)), name
        assert 0.85 < pull.std() < 1.15, name
    bright = flux > NOISE * 10**3.5
    ratio = table["flux_auto"][row][bright] / flux[bright]
    assert abs(np.median(ratio) - 1) < 0.01
    corrected = apertures.aperture_correction(table, SAT, DetectionSettings().radii[1])
    assert abs(corrected - np.median(inside["large"] / inside["small"])) < 3e-3


def test_apertures_against_plain_summing(sky_with_stars):
    *_, (image, variance, *_), table, segmentation = sky_with_stars
    for row in table[:: len(table) // 5]:
        seen = segmentation * (segmentation != segmentation[round(row["y"]), round(row["x"])]) == 0
        for name, radius in zip(("small", "large"), DetectionSettings().radii, strict=True):
            flux, error = reference.aperture_sum(image, variance, seen, row["x"], row["y"], radius)
            assert abs(row[f"flux_{name}"] - flux) < 2e-3 * abs(flux) + 0.02 * error
            assert row[f"flux_{name}_err"] == pytest.approx(error, rel=2e-3)


def test_shapes_and_what_is_read_at_the_centre(sky_with_stars):
    x, y, flux, _, table, segmentation = sky_with_stars
    row = nearest(table, x, y)
    bright = row[(row >= 0) & (flux > NOISE * 10**3)]
    # The width that a pixel adds to a Gaussian is small but measurable.
    expected = detection.FWHM_OF_SIGMA * np.sqrt(SIGMA**2 + 1 / 12)
    assert abs(np.median(table["fwhm"][bright]) / expected - 1) < 0.03
    assert table["fwhm"][bright].std() / expected < 0.06
    assert np.all(table["n_image"] == 7) and np.all(table["background"] == 0)
    assert np.all(table["parent"] == 0) and np.all(table["is_primary"])
    assert np.array_equal(np.bincount(segmentation.ravel())[1:], table["npix"])


@pytest.mark.parametrize("angle", [-60.0, 20.0, 89.9])
def test_elongated_source(angle):
    rows, columns = np.mgrid[:61, :61] - 30.0
    along = columns * np.cos(np.radians(angle)) + rows * np.sin(np.radians(angle))
    across = rows * np.cos(np.radians(angle)) - columns * np.sin(np.radians(angle))
    light = 5000.0 * np.exp(-0.5 * ((along / 4) ** 2 + (across / 2) ** 2))
    table, _ = find(*planes(light, 1))
    assert len(table) == 1
    off = (table["theta"][0] - angle + 90) % 180 - 90
    assert abs(off) < 2
    assert table["a"][0] / table["b"][0] == pytest.approx(2, rel=0.1)


def test_masks_are_read_over_the_whole_source():
    light = np.zeros((120, 120))
    draw(light, 40, 40, 30000)
    draw(light, 80, 80, 30000)
    image, variance, mask, nimage = planes(light, 3)
    mask[41, 42] |= SAT
    mask[38, 40] |= 4
    nimage[80, 80] = 3
    table, _ = find(image, variance, mask, nimage)
    table = table[np.argsort(table["x"])]
    assert table["mask_flags"].tolist() == [SAT | 4, 0]
    assert table["n_image"].tolist() == [7, 3]


def test_pixels_without_data_do_no_harm():
    light = np.zeros((200, 200))
    for x, y in ((50, 50), (150, 60), (100, 150)):
        draw(light, x, y, 20000)
    image, variance, mask, nimage = planes(light, 4)
    image[:20] = np.nan
    variance[:20] = np.nan
    image[150:160, 20:30] = 1e6
    mask[150:160, 20:30] = NO_DATA
    variance[100:110, 100:110] = np.inf
    image[120:125, 10:15] = 1e5
    variance[120:125, 10:15] = 0
    image[60, 152] = np.inf
    table, segmentation = find(image, variance, mask, nimage)
    assert len(table) == 3
    assert all(np.isfinite(table[name]).all() for name in ("x", "y", "flux_large", "flux_auto", "fwhm"))
    assert not segmentation[:20].any()
    hurt = table[np.argmax(table["x"])]
    assert hurt["flags"] & 32, "masked pixels inside the aperture"
    # Its lost pixel counts as the mean of the others.
    assert hurt["flux_large"] == pytest.approx(20000, rel=0.1)


def test_nothing_to_find():
    shape = (70, 90)
    table, segmentation = find(*planes(np.zeros(shape), 5))
    assert len(table) == 0 and table.dtype == catalogue.ROW_TYPE and not segmentation.any()
    assert len(seams.number(seams.keep_inner(table, ((0, 70), (0, 90))), 3, "0-1", "r")) == 0
    assert seams.match_seams([table, table], [((0, 70), (0, 90))] * 2)[1].size == 0
    dark = np.full(shape, np.nan, "f4")
    table, segmentation = find(dark, dark, np.full(shape, NO_DATA, "i4"), np.zeros(shape, "i2"))
    assert len(table) == 0 and not segmentation.any()
    sky, rms = detection.mesh_background(dark, np.ones(shape, bool), (0, 0))
    assert not sky.any() and rms == 0


def test_blends_are_split_and_name_their_parent():
    light = np.zeros((150, 150))
    for x, y, flux in ((50, 50, 40000), (58, 52, 30000), (110, 100, 20000)):
        draw(light, x, y, flux)
    data = planes(light, 6)
    table, _ = find(*data)
    table = seams.number(seams.keep_inner(table, ((0, 150), (0, 150))), 5, "1-2", "g")
    assert len(table) == 3
    assert table["id"].tolist() == [(5 << 32) + k for k in (1, 2, 3)]
    pair = table[table["x"] < 80]
    assert len(pair) == 2 and len(set(pair["parent"])) == 1 and pair["parent"][0] in pair["id"]
    assert np.all(pair["flags"] & 1)
    assert table["parent"][table["x"] > 80].tolist() == [0]
    assert len(find(*data, deblend=False)[0]) == 2


def barycentres(image, variance, **settings):
    """What sep measures on the pixels of each source."""
    bad = ~np.isfinite(image)
    data = np.where(bad, np.float32(0), image)
    kernel = np.array(detection.FILTER, np.float32)
    return detection._extract(data, variance, bad, DetectionSettings(**{**PIXEL, **settings}), kernel)[0]


def test_a_centroid_that_goes_astray_is_left_for_the_barycentre():
    """Of two stars in one, the window would settle on the brighter, more than a pixel away."""
    light = np.zeros((100, 100))
    draw(light, 50, 50, 20000)
    draw(light, 56, 50, 12000)
    image, variance, mask, nimage = planes(light, 8)
    table, _ = find(image, variance, mask, nimage, deblend=False)
    (barycentre,) = barycentres(image, variance, deblend=False)
    assert barycentre["x"] > 51.5
    assert (table["x"][0], table["y"][0]) == (barycentre["x"], barycentre["y"])


def test_members_of_a_blend_keep_their_barycentres():
    light = np.zeros((150, 150))
    for x, y, flux in ((50, 50, 40000), (58, 52, 30000), (110.3, 100.2, 20000)):
        draw(light, x, y, flux)
    image, variance, mask, nimage = planes(light, 6)
    table, _ = find(image, variance, mask, nimage)
    objects = barycentres(image, variance)
    assert len(table) == 3
    assert ((table["x"] == objects["x"]) == (table["parent"] > 0)).all(), "only that of the third is windowed"


def test_a_source_beside_pixels_without_data_keeps_its_barycentre():
    light = np.zeros((100, 100))
    draw(light, 50.3, 50.2, 20000)
    image, variance, mask, nimage = planes(light, 6)
    image[:, 54:56], mask[:, 54:56] = np.nan, NO_DATA
    table, _ = find(image, variance, mask, nimage)
    objects = barycentres(image, variance)
    assert table["x"][0] == objects["x"][0] and table["y"][0] == objects["y"][0]
    assert 0 < table["x_err"][0] < 0.2, "they do not count in its error either"


def test_a_window_reaches_no_farther_than_the_large_aperture(monkeypatch):
    light = np.zeros((200, 200))
    draw(light, 100, 100, 2e6, sigma=15, reach=90)
    seen = []
    plain = detection._window_variances
    monkeypatch.setattr(
        detection,
        "_window_variances",
        lambda x, y, sigma, planes: seen.append(sigma) or plain(x, y, sigma, planes),
    )
    table, _ = find(*planes(light, 8), deblend=False)
    assert table["fwhm"].max() > 20 and np.concatenate(seen).max() == DetectionSettings().radii[1] / 4


def test_an_angle_that_rounding_carried_beyond_a_quarter_turn_is_taken():
    light = star((60, 60), 30, 30, 20000)
    image, variance, *_ = planes(light, 8)
    nothing = np.zeros(image.shape, bool)
    kernel = np.array(detection.FILTER, np.float32)
    objects, segmentation, _ = detection._extract(image, variance, nothing, DetectionSettings(), kernel)
    objects["theta"] = np.nextafter(np.pi / 2, 4)
    table = catalogue.new(len(objects))
    parts = apertures.AperturePlanes(image, variance, nothing, segmentation)
    apertures.measure_fluxes(table, objects, objects["x"], objects["y"], parts, DetectionSettings().radii)
    assert np.isfinite(table["flux_auto"]).all()


def test_a_frame_full_of_light_is_no_overflow():
    """More pixels above the threshold than sep takes by itself, in one blend of many parts."""
    light = np.full((600, 600), 500.0)
    for x, y in zip(*lattice_of_stars(light.shape, 40, 3), strict=True):
        draw(light, x, y, 4000)
    image, variance, mask, nimage = planes(light, 7, gain=1e9)
    table, segmentation = find(image, variance, mask, nimage, contrast=1e-7)
    assert (segmentation > 0).sum() > 350_000
    assert len(table) > 150


def test_a_blend_of_more_parts_than_sep_can_number_is_not_split(monkeypatch):
    import sep

    light = np.full((150, 150), 20.0)
    for x, y in zip(*lattice_of_stars(light.shape, 30, 3), strict=True):
        draw(light, x, y, 4000)
    data = planes(light, 7)
    assert len(find(*data, contrast=1e-4)[0]) > 9
    limit = sep.set_sub_object_limit
    monkeypatch.setattr(sep, "set_sub_object_limit", lambda parts: limit(4))
    table, _ = find(*data, contrast=1e-4)
    assert len(table) == 1 and table["flags"][0] & detection.OVERFLOW


def test_the_settings_of_sep_are_those_of_before(monkeypatch):
    """They are a whole process's, which a user's function may have set, also where sep needs more."""
    import sep

    before = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    monkeypatch.setattr(extraction, "FIRST_PIXELS", 50)
    monkeypatch.setattr(extraction, "FIRST_PARTS", 2)
    light = np.full((150, 150), 20.0)
    for x, y in zip(*lattice_of_stars(light.shape, 30, 3), strict=True):
        draw(light, x, y, 4000)
    image, variance, *_ = data = planes(light, 7)
    try:
        sep.set_extract_pixstack(123_456)
        sep.set_sub_object_limit(77)
        table, _ = find(*data, contrast=1e-4)
        assert len(table) > 9
        assert (sep.get_extract_pixstack(), sep.get_sub_object_limit()) == (123_456, 77)
        with pytest.raises(extraction.TooManyParts):
            extraction.extract(image, 5.0, variance, image < 0, 5, 4, deblend_cont=1e-4)
        assert (sep.get_extract_pixstack(), sep.get_sub_object_limit()) == (123_456, 77)
    finally:
        sep.set_extract_pixstack(before[0])
        sep.set_sub_object_limit(before[1])


def test_same_bits_again(sky_with_stars):
    *_, data, table, segmentation = sky_with_stars
    find(*(plane[:300, :500].copy() for plane in data))
    again, segments = find(*data)
    assert again.tobytes() == table.tobytes() and segments.tobytes() == segmentation.tobytes()


def slope(shape, origin):
    """A sky that curves, by tract pixels."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    x, y = columns + origin[1], rows + origin[0]
    return 100 + 0.002 * x - 0.004 * y + np.sin(x / 300) * np.cos(y / 250)


def test_background_of_overlapping_patches_agrees():
    """To the bit in the meshes; in pixels to 1e-3 of the noise four meshes inside the overlap."""
    whole = slope((900, 1000), (0, 0)) + np.random.default_rng(8).normal(0, NOISE, (900, 1000))
    x, y = lattice_of_stars(whole.shape, 100, 9)
    for place in zip(x, y, strict=True):
        draw(whole, *place, 3000)
    whole = whole.astype("f4")
    boxes = [((37, 800), (11, 720)), ((50, 888), (100, 1000))]
    skies = np.full((2, *whole.shape), np.nan, "f4")
    for sky, box in zip(skies, boxes, strict=True):
        part = tuple(slice(*side) for side in box)
        bad = np.zeros_like(whole[part], bool)
        sky[part], rms = detection.mesh_background(whole[part], bad, tuple(side[0] for side in box))
        assert rms == pytest.approx(NOISE, rel=0.05)
    off = np.abs(skies[0] - skies[1]) / NOISE
    overlap = off[50:800, 100:720]
    deep = off[50 + 256 : 800 - 256, 100 + 256 : 720 - 256]
    assert overlap.shape == (750, 620) and deep.size > 10_000
    assert deep.max() < 1e-3
    # At the seam of two patches with borders of 100 pixels.
    assert overlap[100:-100, 100:-100].max() < 0.05
    assert overlap.max() < 0.5
    # Without the alignment they differ there by far more.
    shifted = [
        detection.mesh_background(
            whole[rows[0] : rows[1], columns[0] : columns[1]],
            np.zeros((rows[1] - rows[0], columns[1] - columns[0]), bool),
            (0, 0),
        )[0]
        for rows, columns in boxes
    ]
    apart = (
        shifted[0][306 - 37 : 544 - 37, 356 - 11 : 464 - 11]
        - shifted[1][306 - 50 : 544 - 50, 356 - 100 : 464 - 100]
    )
    assert np.abs(apart).max() / NOISE > 10 * deep.max()


def test_background_follows_the_sky():
    shape = (400, 448)
    truth = slope(shape, (64, 128))
    image = (truth + np.random.default_rng(1).normal(0, NOISE, shape)).astype("f4")
    bad = np.zeros(shape, bool)
    bad[100:180, 200:300] = True
    image[bad] = np.nan
    sky, rms = detection.mesh_background(image, bad, (64, 128))
    inside = ~bad
    assert np.sqrt(np.mean((sky - truth)[inside] ** 2)) < 0.15 * NOISE
    assert rms == pytest.approx(NOISE, rel=0.03)


@pytest.mark.parametrize("shape", [(41, 51), (127, 600)])
def test_background_of_a_small_frame_is_constant(shape):
    image = np.random.default_rng(1).normal(300, NOISE, shape).astype("f4")
    draw(image, 20, 20, 1e5)
    bad = np.zeros(shape, bool)
    bad[0] = True
    image[0] = np.nan
    sky, rms = detection.mesh_background(image, bad, (7, 9))
    assert np.ptp(sky) == 0 and sky.dtype == np.float32
    assert abs(sky[0, 0] - 300) < 0.5
    assert rms == pytest.approx(NOISE, rel=0.15)


@pytest.mark.parametrize("lost", [0.6, 0.9, 0.999])
def test_background_where_no_mesh_is_half_full(lost):
    """sep would answer 0: the light of the sky would count as sources."""
    rng = np.random.default_rng(2)
    image = rng.normal(300, NOISE, (256, 256)).astype("f4")
    bad = rng.random(image.shape) < lost
    image[bad] = np.nan
    sky, rms = detection.mesh_background(image, bad, (0, 0))
    assert np.ptp(sky) == 0 and abs(sky[0, 0] - 300) < 1
    assert rms == pytest.approx(NOISE, rel=0.3)


def mosaic(data, inner, border, background=False, **settings):
    """Sources of 2 x 2 patches with borders, cut from one image, matched at the seams."""
    shape = data[0].shape
    tables, inners = [], []
    for j in range(2):
        for i in range(2):
            box = tuple((k * inner, (k + 1) * inner) for k in (j, i))
            outer = tuple(
                (max(a - border, 0), min(b + border, n)) for (a, b), n in zip(box, shape, strict=True)
            )
            parts = [plane[outer[0][0] : outer[0][1], outer[1][0] : outer[1][1]] for plane in data]
            origin = (outer[0][0], outer[1][0])
            sky = detection.mesh_background(parts[0], np.isnan(parts[0]), origin)[0] if background else None
            table, _ = find(*parts, origin=origin, sky=sky, **settings)
            table = seams.keep_inner(table, box)
            tables.append(seams.number(table, len(tables), f"{i}-{j}", "r"))
            inners.append(box)
    return np.concatenate(seams.match_seams(tables, inners))


def crowd_at_seams(inner, seed):
    """Stars everywhere, and a row of them on each seam of 2 x 2 patches, at all offsets from it."""
    shape = (2 * inner, 2 * inner)
    x, y = lattice_of_stars(shape, 40, seed)
    far = (np.abs(x - inner) > 25) & (np.abs(y - inner) > 25)
    along = np.arange(30.0, 2 * inner - 20, 25)
    along = along[np.abs(along - inner) > 20]
    across = inner - 0.5 + np.linspace(-1.5, 1.5, along.size)
    across[:9] = inner - 0.5 + np.linspace(-1e-4, 1e-4, 9)
    x = np.concatenate([x[far], along, across, [inner - 0.5]])
    y = np.concatenate([y[far], across, along, [inner - 0.5]])
    flux = np.random.default_rng(seed).choice([4000.0, 12000.0, 60000.0], x.size)
    light = np.zeros(shape)
    for place in zip(x, y, flux, strict=True):
        draw(light, *place)
    return x, y, light


@pytest.mark.parametrize("background", [False, True])
def test_patches_give_the_sources_of_one_image(background):
    inner = 320
    x, y, light = crowd_at_seams(inner, 11)
    data = planes(light + (slope(light.shape, (0, 0)) if background else 0), 12, gain=1e9)
    sky = detection.mesh_background(data[0], np.isnan(data[0]), (0, 0))[0] if background else None
    whole, _ = find(*data, sky=sky)
    found = mosaic(data, inner, 100, background)
    kept = found[found["is_primary"]]
    assert len(np.unique(found["id"])) == len(found)
    assert np.all(nearest(whole, x, y) >= 0), "the whole image shows all stars"
    row = nearest(kept, whole["x"], whole["y"], 0.5)
    assert len(kept) == len(whole), "no source twice"
    assert np.array_equal(np.sort(row), np.arange(len(kept))), "and none lost"
    off = np.hypot(kept["x"][row] - whole["x"], kept["y"][row] - whole["y"])
    assert off.max() < (1e-3 if background else 1e-9)
    if not background:
        assert np.array_equal(kept["flux_small"][row], whole["flux_small"])
    # At the corner all four patches saw one star.
    corner = np.hypot(found["x"] - inner + 0.5, found["y"] - inner + 0.5) < 1
    assert corner.sum() == 4 and found["is_primary"][corner].tolist() == [True, False, False, False]


def test_half_open_boxes():
    table = catalogue.new(5)
    table["y"] = 10
    table["x"] = [-0.5, 99.4999, 99.5, -0.5001, 100.4]
    inner = ((0, 100), (0, 100))
    assert seams.keep_inner(table, inner, 0)["x"].tolist() == [-0.5, 99.4999]
    assert seams.keep_inner(table, inner)["x"].tolist() == table["x"].tolist()
    neighbour = ((0, 100), (100, 200))
    assert seams.keep_inner(table, neighbour, 0)["x"].tolist() == [99.5, 100.4]


def random_tables(seed):
    """Sources seen by up to four patches each, with centroids that differ a little."""
    rng = np.random.default_rng(seed)
    inners = [((j, j + 50), (i, i + 50)) for j in (0, 50) for i in (0, 50)]
    true = np.stack(np.meshgrid(np.arange(2, 100, 4.0), np.arange(2, 100, 4.0)), -1).reshape(-1, 2)
    true += rng.uniform(-0.4, 0.4, true.shape)
    tables = []
    for inner in inners:
        table = catalogue.new(len(true))
        table["x"], table["y"] = (true + rng.normal(0, 0.05, true.shape)).T
        tables.append(seams.keep_inner(table, inner))
    return true, tables, inners


@pytest.mark.parametrize("seed", range(3))
def test_seams_against_a_plain_loop(seed):
    true, tables, inners = random_tables(seed)
    matched = seams.match_seams(tables, inners)
    expected = reference.primary_at_seams([np.column_stack((t["x"], t["y"])) for t in tables], 1.0)
    assert [t["is_primary"].tolist() for t in matched] == [list(flags) for flags in expected]
    assert sum(t["is_primary"].sum() for t in matched) == len(true)
    assert sum(map(len, tables)) > len(true), "some were seen twice"


def test_a_source_that_one_patch_alone_saw_is_kept():
    inners = [((0, 50), (0, 50)), ((0, 50), (50, 100))]
    tables = [catalogue.new(2), catalogue.new(1)]
    tables[0]["x"], tables[0]["y"] = [49.8, 50.2], [10, 30]
    tables[1]["x"], tables[1]["y"] = [49.2], [10]
    one, other = seams.match_seams(tables, inners)
    assert one["is_primary"].tolist() == [True, True] and other["is_primary"].tolist() == [False]
    assert tables[1]["is_primary"].all(), "what was given stays as it was"


def test_a_patch_has_one_detection_of_a_source_at_a_seam():
    """Two that one patch has split are not joined by what its neighbour sees between them."""
    inners = [((0, 50), (0, 50)), ((0, 50), (50, 100))]
    tables = [catalogue.new(2), catalogue.new(1)]
    tables[0]["x"], tables[0]["y"] = [49.2, 49.7], 10
    tables[1]["x"], tables[1]["y"] = 49.5, 10
    one, other = seams.match_seams(tables, inners)
    assert one["is_primary"].tolist() == [True, True] and other["is_primary"].tolist() == [False]


def test_bands_are_matched_apart_at_a_seam():
    """What is seen in two bands at one place is a source of each."""
    patches = [Patch(band, (k, 0), ((0, 60), box), ((0, 50), box)) for k, (band, box) in enumerate(PLACES)]
    tables = [catalogue.new(1) for _ in patches]
    for table in tables:
        table["x"], table["y"] = 49.5, 10
    rows = np.frombuffer(b"".join(table.tobytes() for table in tables), np.uint8)
    assert seams.joined(patches, [1, 1, 1], rows)["is_primary"].tolist() == [True, False, True]


def test_errors_of_sky_positions_across_ra_0():
    table = catalogue.new(1)
    tract = Tract(0.0, 0.0, (1, 1), pixel_scale=0.36, patch=101, border=0)
    table["x"], table["y"], table["x_err"], table["y_err"] = 50, 50, 0.1, 0.1
    located = seams.locate(table, tract.wcs)
    assert located["ra_err"][0] == pytest.approx(1e-5) and located["dec_err"][0] == pytest.approx(1e-5)


def test_errors_of_empty_apertures():
    """White noise needs no correction; smoothed noise needs what its autocorrelation says."""
    shape, radius = (600, 600), 4.0
    rng = np.random.default_rng(13)
    bad = np.zeros(shape, bool)
    bad[:40] = True
    white = rng.normal(0, NOISE, shape)
    variance = np.full(shape, NOISE**2, "f4")
    nothing = np.zeros(shape, "i4")
    assert apertures.noise_correction(white.astype("f4"), variance, bad, nothing, radius) == pytest.approx(
        1, abs=0.06
    )
    kernel = gaussian_filter(np.pad([[1.0]], 20), 1.0)
    smooth = gaussian_filter(white, 1.0, mode="wrap") / np.sqrt((kernel**2).sum())
    factor = apertures.noise_correction(smooth.astype("f4"), variance, bad, nothing, radius)
    rows, columns = np.mgrid[-20:21, -20:21]
    disc = (np.hypot(rows, columns) < radius).astype(float)
    spread = np.sqrt((gaussian_filter(disc, 1.0) ** 2).sum() / (kernel**2).sum() / disc.sum())
    assert factor == pytest.approx(spread, rel=0.08)
    assert (
        apertures.noise_correction(
            smooth[:60, :60].astype("f4"), variance[:60, :60], bad[:60, :60], nothing[:60, :60], radius
        )
        == 1
    )


def test_scaled_errors_hold_on_noise_that_is_correlated(sky_with_stars):
    """Apertures at random empty places scatter as their scaled errors say, next to stars too."""
    import sep

    x, y, flux, (image, variance, mask, nimage), _, _ = sky_with_stars
    light = np.zeros(image.shape)
    for place in zip(x, y, flux, strict=True):
        draw(light, *place)
    noise = gaussian_filter(np.random.default_rng(3).normal(size=image.shape), 0.8, mode="wrap")
    image = (light + NOISE * noise / noise.std()).astype("f4")
    variance = np.full_like(variance, NOISE**2)
    table, segmentation = find(image, variance, mask, nimage)
    radius = DetectionSettings().radii[0]
    factor = apertures.noise_correction(image, variance, mask > 0, segmentation, radius)
    assert factor > 1.5
    scaled = apertures.scale_errors(table, factor)
    assert np.allclose(scaled["flux_auto_err"], table["flux_auto_err"] * factor)
    free = np.hypot(*(np.array([x, y]) - 20)) > 0
    places = np.column_stack((x[free] + 20, y[free] + 20))
    places = places[(places < 790).all(axis=1)]
    sums, errors, _ = sep.sum_circle(image, *places.T, radius, var=variance, subpix=0)
    assert np.std(sums / (errors * factor)) == pytest.approx(1, abs=0.15)


def test_magnitudes():
    magnitude, error = apertures.ab_magnitudes(
        np.array([1.0, 100.0, 0.0, -3.0]), np.array([0.1, 1.0, 1.0, 1.0])
    )
    assert (
        magnitude[:2].tolist() == [27.0, 22.0] and np.isnan(magnitude[2:]).all() and np.isnan(error[2:]).all()
    )
    assert error[1] == pytest.approx(0.010857, rel=1e-4)
    brighter, same = apertures.ab_magnitudes(np.array([100.0]), np.array([1.0]), correction=10.0)
    assert brighter[0] == pytest.approx(19.5) and same[0] == pytest.approx(error[1])
    table = catalogue.new(2)
    for name in ("small", "large", "auto"):
        table[f"flux_{name}"], table[f"flux_{name}_err"] = [100, -1], [1, 1]
    table = apertures.add_magnitudes(table, 10.0)
    assert table["mag_small"][0] == pytest.approx(19.5) and table["mag_large"][0] == pytest.approx(22)
    assert np.isnan(table["mag_auto"][1])


def test_sky_positions_and_errors():
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix, wcs.wcs.crval = [51, 41], [0.001, 60.0]
    wcs.wcs.cdelt = [-0.3 / 3600, 0.2 / 3600]
    table = catalogue.new(2)
    table["x"], table["y"] = [50, 90], [40, 10]
    table["x_err"], table["y_err"] = 0.1, 0.3
    table = seams.locate(table, wcs)
    assert table["ra"][0] == pytest.approx(0.001, abs=1e-9) and table["dec"][0] == pytest.approx(60, abs=1e-9)
    assert 359.9 < table["ra"][1] < 360
    assert table["ra_err"] == pytest.approx(0.03 / 3600, rel=1e-3)
    assert table["dec_err"] == pytest.approx(0.06 / 3600, rel=1e-3)


@pytest.mark.skipif(not REAL, reason="the real DECam cut-outs of ../shared/data are MISSING")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_cut_outs(path):
    """51 x 41 pixels about one source: it is found in the middle, once."""
    from astropy.io import fits

    with fits.open(path) as images, fits.open(path.with_name(path.name.replace("ooi", "oow"))) as weights:
        image, weight = images[1].data.astype("f4"), weights[1].data.astype("f4")
    with np.errstate(divide="ignore"):
        variance = 1 / weight
    mask = np.zeros(image.shape, "i4")
    sky, _ = detection.mesh_background(image, detection.unusable(image, variance, mask, NO_DATA), (0, 0))
    table, _ = find(image, variance, mask, np.ones(image.shape, "i2"), sky=sky, threshold=1.5)
    middle = np.hypot(table["x"] - 20.5, table["y"] - 26.5) < 2
    assert middle.sum() == 1
    assert table["flux_small"][middle] > 20 * table["flux_small_err"][middle]


SEX = shutil.which("source-extractor") or shutil.which("sex")

SEX_COLUMNS = [
    "X_IMAGE",
    "Y_IMAGE",
    "XWIN_IMAGE",
    "YWIN_IMAGE",
    "FLUX_APER(2)",
    "FLUXERR_APER(2)",
    "FLUX_AUTO",
    "FWHM_IMAGE",
    "ISOAREAF_IMAGE",
]


@pytest.mark.skipif(SEX is None, reason="source-extractor is NOT INSTALLED (Debian: source-extractor)")
def test_against_source_extractor(sky_with_stars, tmp_path):
    """Same settings, same image: the same sources, positions and fluxes."""
    from astropy.io import ascii, fits

    # With the noise of the sky alone: source-extractor filters a map of it too.
    x, y, flux, *_ = sky_with_stars
    light = np.zeros((800, 800))
    for place in zip(x, y, flux, strict=True):
        draw(light, *place)
    image, variance, mask, nimage = planes(light, 5, gain=1e9)
    table, _ = find(image, variance, mask, nimage)
    fits.writeto(tmp_path / "image.fits", image)
    fits.writeto(tmp_path / "rms.fits", np.sqrt(variance))
    (tmp_path / "columns").write_text("\n".join(SEX_COLUMNS) + "\n")
    rows = "\n".join(" ".join(f"{value:g}" for value in row) for row in detection.FILTER)
    (tmp_path / "filter").write_text(f"CONV NORM\n{rows}\n")
    settings = DetectionSettings(**PIXEL)
    options = {
        "CATALOG_NAME": "out.cat",
        "CATALOG_TYPE": "ASCII_HEAD",
        "PARAMETERS_NAME": "columns",
        "FILTER_NAME": "filter",
        "DETECT_THRESH": settings.threshold,
        "ANALYSIS_THRESH": settings.threshold,
        "DETECT_MINAREA": settings.min_area,
        "DEBLEND_NTHRESH": settings.levels,
        "DEBLEND_MINCONT": settings.contrast,
        "WEIGHT_TYPE": "MAP_RMS",
        "WEIGHT_IMAGE": "rms.fits",
        "WEIGHT_GAIN": "N",
        "BACK_TYPE": "MANUAL",
        "BACK_VALUE": 0.0,
        "GAIN": 0.0,
        "SATUR_LEVEL": 1e9,
        "PHOT_APERTURES": ",".join(f"{2 * radius:g}" for radius in settings.radii),
        "PHOT_AUTOPARAMS": "2.5,3.5",
        "VERBOSE_TYPE": "QUIET",
    }
    words = [str(word) for name, value in options.items() for word in (f"-{name}", value)]
    subprocess.run([SEX, "image.fits", "-c", "/dev/null", *words], cwd=tmp_path, check=True, timeout=60)
    other = ascii.read(tmp_path / "out.cat", format="sextractor")
    ours = nearest(table, np.array(other["X_IMAGE"]) - 1, np.array(other["Y_IMAGE"]) - 1, 0.5)
    assert len(other) == len(table) and sorted(ours) == list(range(len(table)))
    row = table[ours]
    # Its windows are as wide as half the light, ours as the core: one noise, weighed differently.
    for name, error in (("x", "x_err"), ("y", "y_err")):
        off = np.abs(row[name] - (other[f"{name.upper()}WIN_IMAGE"] - 1))
        assert np.mean(off < 0.1 * row[error]) > 0.9 and np.all(off < 0.5 * row[error])
        assert np.median(off) < 1e-3
    assert np.array_equal(row["npix"], other["ISOAREAF_IMAGE"])
    for name, theirs in (("small", "FLUX_APER"), ("large", "FLUX_APER_1"), ("auto", "FLUX_AUTO")):
        ratio = row[f"flux_{name}"] / other[theirs]
        assert np.median(ratio) == pytest.approx(1, abs=1e-3), name
        assert np.mean(np.abs(ratio - 1) < 0.01) > 0.9, name
    for name, theirs in (("small", "FLUXERR_APER"), ("large", "FLUXERR_APER_1")):
        assert np.max(np.abs(row[f"flux_{name}_err"] / other[theirs] - 1)) < 0.01
    bright = row["flux_small"] > NOISE * 10**3
    assert np.median((row["fwhm"] / other["FWHM_IMAGE"])[bright]) == pytest.approx(1, abs=0.03)
