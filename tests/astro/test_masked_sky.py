"""The sky between objects: large galaxies and faint stars keep their light; sky is followed elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import sep

from mpiimg.astro.photometry import masked_sky, object_masks
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.photometry import stars as photometry

NOISE = 8.0

#: Pixels: of a mesh, and that hold half of the light of a large galaxy.
MESH, HALF_LIGHT = 64, 45.6

#: Counts of such a galaxy.
LIGHT = 10**6.8


def galaxy(shape, x, y, scale=1.0):
    """A galaxy of de Vaucouleurs' profile."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    radius = np.hypot(columns - x, rows - y) / (scale * HALF_LIGHT)
    # Its light at the half-light radius is that of all over 22.67 radii squared.
    return LIGHT / 22.67 / HALF_LIGHT**2 * np.exp(-7.669 * (np.fmax(radius, 0.02) ** 0.25 - 1))


def star(image, x, y, flux, fwhm=3.8):
    """Add a star of Moffat's profile, beta 3."""
    reach = 60
    rows, columns = (slice(max(round(v) - reach, 0), round(v) + reach + 1) for v in (y, x))
    bottom, left = rows.start, columns.start
    grid = np.mgrid[bottom : min(rows.stop, image.shape[0]), left : min(columns.stop, image.shape[1])]
    core = (fwhm / 2) ** 2 / (2 ** (1 / 3) - 1)
    image[rows, columns] += (
        flux * 2 / (np.pi * core) * (1 + ((grid[1] - x) ** 2 + (grid[0] - y) ** 2) / core) ** -3.0
    )


def noisy(light, seed=1, noise=NOISE):
    return (light + np.random.default_rng(seed).normal(0, noise, light.shape)).astype(np.float32)


def measured(image, bad=None, sky="objects-masked", origin=(0, 0)):
    bad = np.zeros(image.shape, bool) if bad is None else bad
    return detection.mesh_background(image, bad, origin, MESH, sky=sky)


@pytest.fixture(scope="module")
def large():
    """A large galaxy on a sky with a gradient of 5 % and a ghost of 300 pixels: image, galaxy, sky."""
    shape = (2048, 2048)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    sky = 250 + 12.5 * columns / 2048 + 5.0 * (np.hypot(columns - 500, rows - 1500) < 150)
    light = galaxy(shape, 1023.5, 1023.5)
    stars = np.zeros(shape)
    rng = np.random.default_rng(3)
    for x, y, flux in zip(*rng.uniform(70, 1978, (2, 150)), 10 ** rng.uniform(3, 5, 150), strict=True):
        star(stars, x, y, flux)
    return noisy(light + sky + stars), light, sky


def kept(light, sky, found, reach=152):
    """The share of a galaxy's light within 152 pixels that stays when a sky is taken off."""
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
    inside = np.hypot(columns - 1023.5, rows - 1023.5) < reach
    return (light + sky - found)[inside].sum() / light[inside].sum()


def test_a_large_galaxy_keeps_its_light_and_the_sky_is_followed(large):
    image, light, sky = large
    found, noise = measured(image)
    assert found.dtype == np.float32
    assert kept(light, sky, found) > 0.98
    assert kept(light, sky, measured(image, sky="plain")[0]) < 0.8, "what this is for"
    assert noise == pytest.approx(NOISE, rel=0.02)
    rows, columns = np.mgrid[:2048, :2048]
    ghost = np.hypot(columns - 500, rows - 1500)
    away = (np.hypot(columns - 1023.5, rows - 1023.5) > 500) & (ghost > 250)
    off = found - sky
    # Meshes about bright stars on the ghost are filled, by the sky beside it too.
    assert abs(np.median(off[ghost < 100])) < 0.2 * 5.0
    # Far out the galaxy's own wings are seen as sky.
    assert abs((off - light)[away].mean()) < 0.01 * NOISE and off[away].std() < 0.03 * NOISE


def test_exposures_keep_it_too(large):
    image, light, sky = large
    variance, nothing = np.full(image.shape, NOISE**2, np.float32), np.zeros(image.shape, bool)
    found, stars = photometry.measure_frame(image, variance, nothing, nothing, how="objects-masked")
    assert kept(light, sky, found.map) > 0.98
    assert found.noise == pytest.approx(NOISE, rel=0.02)
    assert stars.fwhm == pytest.approx(3.8, rel=0.05)


def test_a_saturated_middle_is_no_hole_in_the_mask(large):
    image, light, sky = large
    rows, columns = np.mgrid[:2048, :2048]
    saturated = np.hypot(columns - 1023.5, rows - 1023.5) < 60
    found, _ = measured(np.where(saturated, np.float32(np.nan), image), saturated)
    assert kept(light, sky, found) > 0.98


def test_faint_stars_keep_their_light():
    """Within 0.02 mag, in a field with as many sources as a deep survey has; sep's mode takes 0.1 mag."""
    rng, shape, faint = np.random.default_rng(5), (900, 900), 1500.0
    light = np.full(shape, 250.0)
    places = [(x + dx, y + dy) for x in range(60, 860, 60) for y in range(60, 860, 60)
              for dx, dy in [rng.uniform(-3, 3, 2)]]  # fmt: skip
    for x, y in places:
        star(light, x, y, faint)
    for x, y, flux in zip(*rng.uniform(0, 900, (2, 180)), 10 ** rng.uniform(2, 4, 180), strict=True):
        star(light, x, y, flux)
    alone = np.full(shape, 250.0)
    for x, y in places:
        star(alone, x, y, faint)
    noise = rng.normal(0, 2.8, shape)
    x, y = np.array(places).T

    def bias(name):
        sky, _ = measured((light + noise).astype(np.float32), sky=name)
        flux, _, _ = sep.sum_circle((alone + noise - sky).astype(np.float32), x, y, 10.0)
        true, _, _ = sep.sum_circle((alone + noise - 250).astype(np.float32), x, y, 10.0)
        return 2.5 * np.log10(true.mean() / flux.mean())

    assert abs(bias("objects-masked")) < 0.02
    assert bias("plain") > 0.02


def test_noise_alone_makes_no_sky_dark():
    image = noisy(np.full((1024, 1024), 300.0), seed=7)
    sky, noise = measured(image)
    # The mean of all pixels is known within 0.008 counts.
    assert abs(sky.mean() - image.mean()) < 0.03 and noise == pytest.approx(NOISE, rel=0.02)
    assert not object_masks.object_mask(image, np.zeros(image.shape, bool)).any()


def test_pixels_far_off_count_for_nothing():
    clean = noisy(np.full((512, 512), 300.0))
    struck, dead = clean.copy(), np.random.default_rng(2).random(clean.shape) < 0.002
    struck[dead] = -1000.0
    assert np.abs(measured(struck)[0] - measured(clean)[0]).max() < 0.2 * NOISE


@pytest.mark.parametrize("lost", [0.3, 0.6, 0.95, 0.999, 1.0])
def test_an_image_full_of_bad_pixels(lost):
    image = noisy(np.full((256, 320), 300.0))
    bad = np.random.default_rng(2).random(image.shape) < lost
    image[bad] = np.nan
    sky, noise = measured(image, bad)
    assert np.isfinite(sky).all()
    assert sky == pytest.approx(0 if lost == 1 else 300, abs=2.0)
    assert noise == pytest.approx(0 if lost == 1 else NOISE, rel=0.3)


def test_small_images_take_what_they_took():
    image = noisy(np.full((127, 600), 300.0))
    assert np.array_equal(measured(image)[0], measured(image, sky="plain")[0])
    assert np.ptp(measured(noisy(np.full((128, 128), 300.0)))[0]) < NOISE


def test_a_field_without_sky_takes_the_mode_of_meshes():
    """A galaxy that is larger than the image leaves no mesh to measure."""
    image = noisy(250 + galaxy((400, 400), 200, 200, scale=3.0))
    bad = np.zeros(image.shape, bool)
    assert masked_sky.masked_background(image, bad, (0, 0), MESH) is None
    assert np.array_equal(measured(image)[0], measured(image, sky="plain")[0])


def test_a_crowded_field_has_no_worse_sky_than_plain():
    rng, shape = np.random.default_rng(6), (512, 512)
    light = np.full(shape, 250.0)
    for x, y, flux in zip(*rng.uniform(0, 512, (2, 4000)), 10 ** rng.uniform(2.5, 4.5, 4000), strict=True):
        star(light, x, y, flux)
    image = noisy(light)
    masked, plain = (np.abs(measured(image, sky=name)[0] - 250).mean() for name in masked_sky.SKIES)
    assert masked <= 1.01 * plain


def test_constant_images_are_their_own_sky():
    image = np.full((256, 256), 42.5, np.float32)
    sky, noise = measured(image)
    assert sky == pytest.approx(42.5, abs=1e-4) and noise == pytest.approx(0, abs=1e-4)


def test_overlapping_patches_have_one_sky():
    """Their meshes and bins lie alike; what differs is the surface that masked meshes are filled by."""
    shape = (900, 1000)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    light = 100 + 0.002 * columns + np.sin(columns / 300) * np.cos(rows / 250)
    rng = np.random.default_rng(9)
    for x, y, flux in zip(*rng.uniform(0, 900, (2, 150)), 10 ** rng.uniform(3, 4, 150), strict=True):
        star(light, x, y, flux)
    image = noisy(light)
    boxes = [((37, 800), (11, 720)), ((50, 888), (100, 1000))]
    skies = np.full((2, *shape), np.nan)
    for sky, box in zip(skies, boxes, strict=True):
        part = tuple(slice(*side) for side in box)
        sky[part] = measured(image[part], origin=tuple(side[0] for side in box))[0]
    apart = np.abs(skies[0] - skies[1])[150:700, 200:620] / NOISE
    assert np.median(apart) < 0.01 and apart.max() < 0.1
