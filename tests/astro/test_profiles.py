"""The FWHM of stars of known profiles, integrated over pixels: of frames, patches and catalogues."""

from __future__ import annotations

import numpy as np
import pytest

from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.photometry import point_sources, profiles
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.photometry import stars as photometry

pytest.importorskip("sep", reason="detection stands on sep")

GAUSSIAN = np.inf
BETAS = (2.5, 3.0, 5.0, GAUSSIAN)
SIDE, STEP = 360, 60


def stamp(offset, fwhm, beta, half=28, parts=9):
    """A star of flux 1, (2 half + 1) squared pixels, each the mean of its parts."""
    fine = (np.arange((2 * half + 1) * parts) + 0.5) / parts - 0.5 - half
    square = (fine[:, None] - offset[1]) ** 2 + (fine[None] - offset[0]) ** 2
    if np.isinf(beta):
        light = np.exp(-4 * np.log(2) * square / fwhm**2) * 4 * np.log(2) / (np.pi * fwhm**2)
    else:
        width = fwhm**2 / (4 * (2 ** (1 / beta) - 1))
        light = (beta - 1) / (np.pi * width) * (1 + square / width) ** -beta
    return light.reshape(2 * half + 1, parts, 2 * half + 1, parts).mean(axis=(1, 3))


def frame_of_stars(fwhm, beta, noise=2.0, seed=1):
    """36 stars of ten magnitudes in steps on a lattice, with noise, and their places and fluxes."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, noise, (SIDE, SIDE))
    y, x = (grid.ravel() + STEP / 2 for grid in np.mgrid[0:SIDE:STEP, 0:SIDE:STEP])
    offset = rng.uniform(-0.5, 0.5, (2, x.size))
    flux = 10 ** np.linspace(3.6, 4.8, x.size)[rng.permutation(x.size)]
    for i in range(x.size):
        part = np.s_[int(y[i]) - 28 : int(y[i]) + 29, int(x[i]) - 28 : int(x[i]) + 29]
        image[part] += flux[i] * stamp(offset[:, i], fwhm, beta)
    return image.astype(np.float32), x + offset[0], y + offset[1], flux


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("fwhm", [1.5, 2.5, 4.0, 8.0])
def test_the_fwhm_of_a_frame_is_that_of_the_profile(fwhm, beta):
    image, *_ = frame_of_stars(fwhm, beta)
    nowhere = np.zeros(image.shape, bool)
    found = photometry.measure_stars(image, np.full_like(image, 4), nowhere, nowhere)
    assert found.fwhm == pytest.approx(fwhm, rel=0.03)
    if fwhm == 4 and beta == 3:
        # Of this profile the diameter of half the light is 1.262 times the FWHM.
        assert found.half_light_diameter == pytest.approx(1.262 * fwhm, rel=0.03)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("fwhm", [2.5, 5.0])
def test_the_fwhm_of_a_patch_and_of_its_stars_is_that_of_the_profile(fwhm, beta):
    image, *_ = frame_of_stars(fwhm, beta)
    variance, mask = np.full_like(image, 4), np.zeros(image.shape, np.int32)
    nowhere, count = mask != 0, np.ones(image.shape, np.int16)
    table, _ = detection.find_sources(
        image, variance, mask, count, np.zeros_like(image), (7, 9), 1, detection.DetectionSettings()
    )
    stars = point_sources.isolated_stars(table, bits("SAT"), 10.0)
    assert len(stars) > 30
    profile, ratio = point_sources.seeing(image, nowhere, table, (7, 9), stars)
    assert profile.fwhm == pytest.approx(fwhm, rel=0.03)
    assert np.median(table["fwhm"][stars] * ratio) == pytest.approx(fwhm, rel=0.03)


def test_frames_and_patches_without_stars_have_no_fwhm():
    image = np.zeros((100, 100), np.float32)
    nowhere = np.zeros(image.shape, bool)
    assert np.isnan(profiles.star_profile(image, nowhere, *np.zeros((3, 0)), 3.0).fwhm)
    few = detection.catalogue.new(3)
    assert not point_sources.isolated_stars(few, 2, 10.0).size
    profile, ratio = point_sources.seeing(image, nowhere, few, (0, 0), np.zeros(0, int))
    assert np.isnan([*profile, ratio]).all()


def test_masked_pixels_and_neighbours_leave_the_fwhm_as_it_is():
    image, x, y, flux = frame_of_stars(4.0, 3.0)
    rng = np.random.default_rng(3)
    bad = rng.random(image.shape) < 0.02
    clean = profiles.star_profile(image, np.zeros_like(bad), x, y, flux, 4.5)
    spoilt = image.copy()
    spoilt[bad] = 1e6
    half = np.flatnonzero(flux < np.median(flux))
    for i in half[:8]:
        spoilt[int(y[i]) : int(y[i]) + 3, int(x[i]) + 5 : int(x[i]) + 8] += 300
    assert profiles.star_profile(spoilt, bad, x, y, flux, 4.5).fwhm == pytest.approx(clean.fwhm, rel=0.01)


def test_pixels_of_a_profile_are_means_over_angles():
    """Against sums over fine parts of pixels at many angles."""
    radius = np.array([0.0, 0.4, 1.3, 3.0])
    mean = np.zeros(4)
    angles = (np.arange(32) + 0.5) * np.pi / 16
    for i, r in enumerate(radius):
        for angle in angles:
            mean[i] += stamp((r * np.cos(angle), r * np.sin(angle)), 2.0, 3.0, half=0, parts=31)[0, 0] / 32
    model = profiles.moffat_in_pixels(radius, 2.0, 1 / 3)
    np.testing.assert_allclose(model / model[0], mean / mean[0], rtol=3e-4)
