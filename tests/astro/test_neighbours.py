"""Stars beside neighbours and masked pixels have the fluxes of others: pixels opposite the centre count."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

from mpiimg.astro.kernels.replaced import kron_radii, replacements
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.photometry.apertures import HAS_REPLACED, MOSTLY_REPLACED, alone, clean
from mpiimg.astro.photometry.sources import DetectionSettings

pytest.importorskip("sep", reason="detection stands on sep")

NO_DATA, SIDE, SIGMA, NOISE, FLUX = 1 << 8, 640, 1.7, 2.0, 40_000.0


def star(shape, x, y, flux, sigma=SIGMA):
    """A Gaussian star, integrated over pixels."""
    along = [
        np.diff(erf((np.arange(length + 1) - 0.5 - centre) / (np.sqrt(2) * sigma))) / 2
        for centre, length in ((y, shape[0]), (x, shape[1]))
    ]
    return flux * np.outer(*along)


def field(beside):
    """64 stars on a lattice: of those in every second row, `beside` changes the image and the mask."""
    rng = np.random.default_rng(1)
    y, x = (40 + 80 * np.mgrid[:8, :8] + rng.uniform(-0.5, 0.5, (2, 8, 8))).reshape(2, -1)
    spoilt = np.arange(64) // 8 % 2 == 0
    image = rng.normal(0, NOISE, (SIDE, SIDE))
    mask = np.zeros(image.shape, np.int32)
    for one in range(64):
        image += star(image.shape, x[one], y[one], FLUX)
        if spoilt[one]:
            beside(image, mask, x[one], y[one])
    return image.astype(np.float32), mask, x, y, spoilt


def find(image, mask, **settings):
    shape = image.shape
    variance, count = np.full(shape, NOISE**2, np.float32), np.ones(shape, np.int16)
    sky = np.zeros(shape, np.float32)
    settings = DetectionSettings(**settings)
    return detection.find_sources(image, variance, mask, count, sky, (0, 0), NO_DATA, settings)[0]


def neighbour(image, mask, x, y):
    image += star(image.shape, x + 8.4, y + 3.3, FLUX / 3)


def column(image, mask, x, y):
    mask[round(y) - 20 : round(y) + 21, round(x) + 6] = NO_DATA


def pixels(image, mask, x, y):
    rng = np.random.default_rng(int(x + y))
    part = mask[round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13]
    part[rng.random(part.shape) < 0.03] = NO_DATA
    part[11:14, 11:14] = 0


def corner(image, mask, x, y):
    mask[round(y) + 4 : round(y) + 14, round(x) + 4 : round(x) + 14] = NO_DATA


@pytest.mark.parametrize("beside", [neighbour, column, pixels, corner])
def test_stars_beside_something_have_the_magnitudes_of_others(beside):
    image, mask, x, y, spoilt = field(beside)
    if beside is not neighbour:
        image[mask != 0] = 1e6
    table = find(image, mask)
    distance = np.hypot(table["x"] - x[:, None], table["y"] - y[:, None])
    row = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1
    for name in ("large", "auto"):
        magnitude = -2.5 * np.log10(table[f"flux_{name}"][row] / FLUX)
        assert abs(np.median(magnitude[spoilt]) - np.median(magnitude[~spoilt])) < 0.02, name
        assert np.mean(table[f"replaced_{name}"][row[spoilt]] > 0) > 0.9
        assert np.all(table[f"replaced_{name}"][row[~spoilt]] == 0)
        scatter = np.median(table[f"flux_{name}_err"][row[spoilt]])
        assert scatter == pytest.approx(np.median(table[f"flux_{name}_err"][row[~spoilt]]), rel=0.1)
    assert np.mean(table["flags"][row[spoilt]] & HAS_REPLACED > 0) > 0.9
    # What it was before makes them too bright.
    before = find(image, mask, neighbours="mean")
    row = np.hypot(before["x"] - x[:, None], before["y"] - y[:, None]).argmin(axis=1)
    magnitude = -2.5 * np.log10(before["flux_large"][row] / FLUX)
    assert np.isnan(before["replaced_large"]).all()
    if beside in (neighbour, corner):
        assert np.median(magnitude[spoilt]) < np.median(magnitude[~spoilt]) - 0.03


def test_an_aperture_of_which_most_is_masked_has_no_flux():
    image = star((60, 60), 30, 30, FLUX).astype(np.float32)
    mask = np.zeros(image.shape, np.int32)
    mask[:, :28] = mask[:, 33:] = NO_DATA
    table = find(image, mask)
    assert len(table) == 1 and table["flags"][0] & MOSTLY_REPLACED
    assert np.isnan([table["flux_large"][0], table["flux_large_err"][0]]).all()
    assert table["replaced_large"][0] > 0.5 and np.isfinite(table["flux_small"][0])


def plain_replacements(planes, x, y, radius, sky, parts=40):
    """The same sums by loops over fine parts of all pixels."""
    image, variance, bad, labels = planes
    added = np.zeros(3)

    def foreign(j, i):
        inside = 0 <= j < image.shape[0] and 0 <= i < image.shape[1]
        return not inside or bad[j, i] or labels[j, i] > 1

    fine = (np.arange(parts) + 0.5) / parts - 0.5
    for j in range(-15, image.shape[0] + 15):
        for i in range(-15, image.shape[1] + 15):
            if foreign(j, i):
                share = (np.hypot(j + fine[:, None] - y, i + fine[None] - x) <= radius).mean()
                other = 2 * round(y) - j, 2 * round(x) - i
                value, noise = (0, sky) if foreign(*other) else (image[other], variance[other])
                if 0 <= j < image.shape[0] and 0 <= i < image.shape[1]:
                    value, noise = value - image[j, i], noise - variance[j, i]
                added += share * np.array([value, noise, 1])
    return added


@pytest.mark.parametrize("centre", [(12.3, 11.6), (2.2, 21.4)])
def test_replacements_against_plain_loops(centre):
    rng = np.random.default_rng(5)
    shape = (24, 25)
    bad = rng.random(shape) < 0.15
    labels = (rng.random(shape) < 0.2).astype(np.int32) * 2
    image, variance = (np.where(bad, 0, rng.uniform(1, 5, shape)).astype(np.float32) for _ in range(2))
    planes, (x, y), radius = (image, variance, bad, labels), centre, 7.3
    place = np.array([[x], [y]])
    added = replacements(planes, *place, np.array([[1.0, 1.0, 0.0]]), np.array([radius**2]), 2.5)[0]
    expected = plain_replacements(planes, x, y, radius, 2.5)
    np.testing.assert_allclose(added[:3], expected, rtol=5e-3, atol=0.3)
    assert added[3] == (x - radius < -0.5)


def test_kron_radii_without_neighbours_are_those_of_sep():
    import sep

    image = star((120, 120), 60, 60, FLUX, 4.0).astype(np.float32)
    nothing, labels = np.zeros(image.shape, bool), np.zeros(image.shape, np.int32)
    place, angle = (np.array([60.0]), np.array([60.0])), np.array([0.5])
    a, b = np.array([4.0]), np.array([3.0])
    expected, _ = sep.kron_radius(image, *place, a, b, angle, 6.0)
    shape = np.array([sep.ellipse_coeffs(4.0, 3.0, 0.5)])
    assert kron_radii((image, image, nothing, labels), *place, shape, 6.0) == pytest.approx(
        expected, rel=1e-4
    )
    # The light of half the image, put out, is seen in the other half.
    labels[:, 66:] = 2
    half = kron_radii((image, image, nothing, labels), *place, shape, 6.0)
    assert half == pytest.approx(expected, rel=0.01)


def test_faint_neighbours_leave_a_star_alone():
    table = detection.catalogue.new(4)
    table["x"], table["y"], table["flux_small"] = [0, 5, 100, 105], 0, [100, 1, 100, 10]
    table["flags"], table["replaced_small"], table["replaced_large"] = [0, 0, 32, 32], 0, [0, 0, 0.01, 0.3]
    assert alone(table, 20, 0.02).tolist() == [True, False, False, False]
    assert not alone(table, 20, 0.0).any() and alone(table, 4, 0.0).all()
    assert clean(table, 0.02).tolist() == [True, True, True, False]
    assert clean(table, 0.0).tolist() == [True, True, False, False]
