"""What is left between stars of exposures and a reference, or each other, is what was put between them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.stats import mad_std

from mpiimg.astro.photometry import residuals
from mpiimg.astro.photometry.overlaps import Catalogue

RADIUS = 1.0


@pytest.fixture
def field():
    """Stars of a field at declination 60, well apart."""
    rng = np.random.default_rng(4)
    rows, columns = np.divmod(np.arange(400), 20)
    ra, dec = (
        210.0 + columns / 60 + rng.uniform(0, 0.004, 400),
        60.0 + rows / 120 + rng.uniform(0, 0.002, 400),
    )
    return Catalogue(ra, dec, rng.uniform(16, 21, 400), np.full(400, 0.01))


def seen(field, seed, dmag=0.0, dra=0.0, ddec=0.0, scatter=0.01):
    """The field as an exposure measures it: brighter by -dmag, off by dra and ddec arcsec on the sky."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, scatter, (3, len(field.ra)))
    ra = field.ra + (dra + noise[0]) / 3600 / np.cos(np.radians(field.dec))
    dec = field.dec + (ddec + noise[1]) / 3600
    return Catalogue(ra, dec, field.magnitude + dmag + noise[2], field.error)


def test_offsets_to_a_reference_are_those_of_astropy(field):
    exposure = seen(field, 1, 0.03, 0.2, -0.1)
    found = residuals.compare_stars([exposure], field, RADIUS)
    assert len(found.dmag) == 400 and set(found.owner) == {0}
    order = np.argsort(found.magnitude)
    expected = np.argsort(field.magnitude)
    places, true = (SkyCoord(one.ra, one.dec, unit="deg")[expected] for one in (exposure, field))
    east, north = (one.to_value(units.arcsec) for one in true.spherical_offsets_to(places))
    np.testing.assert_allclose(found.dra[order], east, atol=1e-6)
    np.testing.assert_allclose(found.ddec[order], north, atol=1e-6)
    np.testing.assert_allclose(found.dmag[order], (exposure.magnitude - field.magnitude)[expected])


def test_figures_are_medians_and_robust_deviations(field):
    exposures = [seen(field, 1, 0.03), seen(field, 2, -0.05, dra=0.3)]
    found = residuals.compare_stars(exposures, field, RADIUS)
    for number, figures in enumerate(residuals.by_exposure(found, 3)[:2]):
        own = found.dmag[found.owner == number]
        assert figures["stars"] == len(own) == 400
        assert figures["dmag"] == np.median(own)
        assert figures["dmag_scatter"] == pytest.approx(mad_std(own), rel=1e-4)
    assert residuals.by_exposure(found, 3)[2] == {"stars": 0}
    first, second = residuals.by_exposure(found, 2)
    assert first["dmag"] == pytest.approx(0.03, abs=0.003) and second["dra"] == pytest.approx(0.3, abs=0.003)


def test_exposures_are_compared_with_each_other(field):
    """Of five exposures one is off; scatter is that of one measurement."""
    exposures = [seen(field, seed, scatter=0.02) for seed in range(4)] + [seen(field, 9, 0.1, scatter=0.02)]
    found = residuals.compare_stars(exposures, None, RADIUS)
    figures = residuals.by_exposure(found, 5)
    assert all(one["stars"] == 400 for one in figures)
    factor = np.sqrt(4 / 5)
    assert figures[4]["dmag"] == pytest.approx(0.1 * factor, abs=0.004)
    for one in figures[:4]:
        assert one["dmag"] == pytest.approx(-0.1 / 4 * factor, abs=0.004)
        assert one["dmag_scatter"] == pytest.approx(0.02, rel=0.15)
        assert one["dra_scatter"] == pytest.approx(0.02, rel=0.15)


def test_an_exposure_alone_has_nothing_to_agree_with(field):
    found = residuals.compare_stars([field], None, RADIUS)
    assert residuals.rows_of_band("r", "exposures", found) == [
        {"band": "r", "against": "exposures", "by": "all", "stars": 0}
    ]
    empty = Catalogue(*(np.zeros(0) for _ in range(4)))
    assert len(residuals.compare_stars([empty, empty], None, RADIUS).dmag) == 0


def test_rows_are_bins_of_magnitude_and_cells_of_the_sky(field):
    """A slope with magnitude, and an offset in the north, show where they are."""
    north = field.dec > np.median(field.dec)
    exposure = seen(field, 3, dmag=0.02 * (field.magnitude - 18.5) + 0.1 * north, scatter=1e-3)
    rows = residuals.rows_of_band("r", "reference", residuals.compare_stars([exposure], field, RADIUS))
    by = {kind: [row for row in rows if row["by"] == kind] for kind in ("all", "magnitude", "sky")}
    assert [row["stars"] for row in by["all"]] == [400]
    for row in by["magnitude"]:
        inside = np.abs(field.magnitude - row["mag"]) < residuals.BIN / 2
        assert row["stars"] == inside.sum()
        assert row["dmag"] == pytest.approx(np.median((exposure.magnitude - field.magnitude)[inside]))
    assert sum(row["stars"] for row in by["sky"]) == 400
    assert 20 < len(by["sky"]) <= residuals.MAX_CELLS**2
    for row in by["sky"]:
        if abs(row["dec"] - np.median(field.dec)) > 0.02:
            assert row["dmag"] == pytest.approx(0.1 * (row["dec"] > np.median(field.dec)), abs=0.06)
        assert 210 <= row["ra"] <= 210.4 and 60 <= row["dec"] <= 60.2


def test_of_very_many_exposures_the_brightest_stars_are_compared(field, monkeypatch):
    monkeypatch.setattr(residuals, "MAX_STARS", 100)
    found = residuals.compare_stars([seen(field, seed) for seed in range(4)], field, RADIUS)
    assert residuals.residual_bytes(4, 500) == 4 * 25 * residuals.BYTES_PER_STAR
    assert len(found.dmag) == 100
    assert found.magnitude.max() < np.sort(field.magnitude)[30]


def test_a_field_around_the_pole_or_all_over_the_sky():
    rng = np.random.default_rng(5)
    for low, high in ((89.5, 90.0), (-90.0, 90.0)):
        stars = Catalogue(
            rng.uniform(0, 360, 300),
            rng.uniform(low, high, 300),
            rng.uniform(16, 20, 300),
            np.full(300, 0.01),
        )
        rows = residuals.rows_of_band("r", "reference", residuals.compare_stars([stars], stars, RADIUS))
        assert rows[0]["stars"] == 300 and rows[0]["dra"] == rows[0]["ddec"] == 0
        cells = [row for row in rows if row["by"] == "sky"]
        assert (len(cells) > 10) == (low > 0)
        assert all(row["dec"] > 89 for row in cells)
