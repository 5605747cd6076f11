"""The threshold in standard deviations of the filtered image, on white and correlated noise, beside peers."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from scipy.ndimage import convolve, shift

from mpiimg.astro import band_stages
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.photometry.filtered_noise import filtered, filtered_variance, noise_ratio
from mpiimg.astro.photometry.sources import DetectionSettings
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.survey import Survey

pytest.importorskip("sep", reason="detection stands on sep")

NO_DATA, SIDE = 1 << 8, 700
KERNEL = np.array(detection.FILTER) / 16
NOISE = 3.0


def white(seed=1, side=SIDE):
    return np.random.default_rng(seed).normal(0, NOISE, (side, side)).astype(np.float32)


def correlated(seed=1):
    """Noise as of a warp by half a pixel, of the same variance."""
    image = shift(white(seed).astype(float), 0.5, order=1, mode="wrap")
    return (image * NOISE / image.std()).astype(np.float32)


def with_stars(image, seed=2):
    """144 isolated stars."""
    image = image.copy()
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[-12:13, -12:13]
    spot = np.exp(-(rows**2 + columns**2) / 5)
    places = 40 + 56 * np.mgrid[:12, :12].reshape(2, -1) + rng.integers(-12, 13, (2, 144))
    for x, y, flux in zip(*places, 10 ** rng.uniform(2, 5, 144), strict=True):
        image[y - 12 : y + 13, x - 12 : x + 13] += flux * spot / spot.sum()
    return image


def test_the_filtered_image_and_its_variance_are_those_of_the_kernel():
    image, variance = white(side=60), np.random.default_rng(3).uniform(1, 4, (60, 60)).astype(np.float32)
    bad = np.random.default_rng(4).random(image.shape) < 0.1
    np.testing.assert_allclose(filtered(image), convolve(image, KERNEL, mode="constant"), atol=1e-5)
    expected = convolve(np.where(bad, 0, variance), KERNEL**2, mode="constant")
    np.testing.assert_allclose(filtered_variance(variance, bad), expected, rtol=1e-5)


@pytest.mark.parametrize("noise", [white, correlated])
def test_the_noise_of_the_filtered_image_is_measured_beside_sources(noise):
    image = noise()
    variance, bad = np.full_like(image, NOISE**2), np.zeros(image.shape, bool)
    bad[200:230] = True
    smooth = convolve(image.astype(float), KERNEL)
    expected = smooth.var() / (NOISE**2 * (KERNEL**2).sum())
    assert (expected > 1.3) == (noise is correlated)
    pixels, ratio = noise_ratio(image, variance, bad)
    assert ratio == pytest.approx(expected, rel=0.03) and pixels > 20_000
    crowded, same = noise_ratio(with_stars(image), variance, bad)
    assert same == pytest.approx(ratio, rel=0.03) and crowded < pixels


def test_too_few_pixels_tell_no_noise():
    image = white(side=40)
    assert noise_ratio(image, np.ones_like(image), np.zeros(image.shape, bool)) == (0, 1.0)
    assert noise_ratio(image, np.ones_like(image), np.ones(image.shape, bool)) == (0, 1.0)


def find(image, ratio=1.0, **settings):
    variance, mask = np.full_like(image, NOISE**2), np.zeros(image.shape, np.int32)
    return detection.find_sources(
        image,
        variance,
        mask,
        np.ones(image.shape, np.int16),
        np.zeros_like(image),
        (0, 0),
        NO_DATA,
        DetectionSettings(**settings),
        ratio,
    )


def test_on_white_noise_it_is_a_threshold_of_pixels_over_the_norm_of_the_kernel():
    image = with_stars(white())
    norm = float(np.sqrt((KERNEL**2).sum()))
    table, segments = find(image, threshold=4.0)
    plain, same = find(image, threshold=4.0 * norm, threshold_noise="pixel")
    inside = np.s_[1:-1, 1:-1]
    assert np.array_equal(segments[inside] > 0, same[inside] > 0) and len(table) == len(plain) > 100
    # Errors are those of the noise of pixels, whatever the threshold is in.
    for name in ("x_err", "y_err", "flux_small_err", "flux_auto_err"):
        np.testing.assert_allclose(table[name], plain[name], rtol=1e-5)


def test_correlated_noise_raises_it():
    image = correlated()
    _, ratio = noise_ratio(image, np.full_like(image, NOISE**2), np.zeros(image.shape, bool))
    cases = ((image, 1.0), (image, ratio), (white(), 1.0))
    too_many, share, expected = [(find(*case, threshold=2.0, min_area=1)[1] > 0).mean() for case in cases]
    assert share == pytest.approx(expected, rel=0.05)
    assert too_many > 1.3 * share
    assert len(find(-image, ratio=ratio)[0]) == 0


SEX = shutil.which("source-extractor") or shutil.which("sex")


@pytest.mark.skipif(SEX is None, reason="source-extractor is NOT INSTALLED (Debian: source-extractor)")
def test_source_extractor_finds_the_same_at_its_default(tmp_path):
    """Its 1.5 is of pixels; on white noise that is 4 of the filtered image."""
    from astropy.io import fits

    image = with_stars(white())
    fits.writeto(tmp_path / "image.fits", image)
    fits.writeto(tmp_path / "rms.fits", np.full_like(image, NOISE))
    (tmp_path / "columns").write_text("X_IMAGE\nY_IMAGE\nISOAREAF_IMAGE\n")
    rows = "\n".join(" ".join(f"{value:g}" for value in row) for row in detection.FILTER)
    (tmp_path / "filter").write_text(f"CONV NORM\n{rows}\n")
    words = (
        "-CATALOG_NAME out.cat -PARAMETERS_NAME columns -FILTER_NAME filter -DETECT_THRESH 1.5 "
        "-ANALYSIS_THRESH 1.5 -DETECT_MINAREA 5 -WEIGHT_TYPE MAP_RMS -WEIGHT_IMAGE rms.fits "
        "-BACK_TYPE MANUAL -BACK_VALUE 0.0 -CLEAN N -VERBOSE_TYPE QUIET"
    )
    subprocess.run(
        [SEX, "image.fits", "-c", "/dev/null", *words.split()], cwd=tmp_path, check=True, timeout=60
    )
    theirs = np.loadtxt(tmp_path / "out.cat", ndmin=2)
    table, _ = find(image, threshold=4.0)
    distance = np.hypot(theirs[:, :1] - 1 - table["x"], theirs[:, 1:2] - 1 - table["y"])
    assert len(theirs) == len(table) > 100 and distance.min(axis=1).max() < 1
    assert np.mean(theirs[:, 2] == table["npix"][distance.argmin(axis=1)]) > 0.95


def survey():
    patches = [Patch(band, (0, 0), ((0, SIDE), (0, SIDE)), ((20, 680), (20, 680))) for band in "gr"]
    layout = Layout((), tuple(patches))
    return Survey(layout=layout, patches=layout.patch_planes(), lost_patches=frozenset())


def test_each_band_has_one_number_which_is_said():
    stage = band_stages.measure_noise(survey(), DetectionSettings())
    mask = np.zeros((1, SIDE, SIDE), np.int32)
    variance = np.full((1, SIDE, SIDE), NOISE**2, np.float32)
    rows = [
        stage.work(stage.chunk(number), image[None], variance, mask)
        for number, image in enumerate((white() + 50, correlated() + 50))
    ]
    found = stage.finish(np.array(rows))
    assert found.value["g"] == pytest.approx(1, rel=0.05) and found.value["r"] > 1.3
    assert [note[:4] for note in found.notes] == ["in g", "in r"] and not found.warnings
    # VARIANCE that is four times too small, and a patch that says nothing, are warned of.
    rows = [stage.work(stage.chunk(0), white()[None], variance / 4, mask), (0.0, 1.0)]
    found = stage.finish(np.array(rows))
    assert found.value["g"] == pytest.approx(4, rel=0.05) and found.value["r"] == 1
    assert [warning[:4] for warning in found.warnings] == ["in g", "in r"]


def test_the_number_of_a_band_is_that_of_all_its_pixels():
    stage = band_stages.measure_noise(survey(), DetectionSettings())
    layout = survey().layout
    two = Layout((), (layout.patches[0], layout.patches[0]))
    stage = band_stages.measure_noise(Survey(layout=two, patches=two.patch_planes()), DetectionSettings())
    assert stage.finish(np.array([(100.0, 1.0), (300.0, 2.0)])).value == {"g": 1.75}
