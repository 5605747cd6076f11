"""Reference catalogues: which column is the magnitude in which band, and colour terms."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from mpiimg.astro.reference import chosen_columns, colour_terms, read_references
from mpiimg.errors import BadInput

RA, DEC = [10.0, 11.0, 12.0], [1.0, 2.0, 3.0]


def table(path, **columns):
    """Write a table of three stars whose column n has the magnitudes n + 10, n + 11 and n + 12."""
    places = {"ra": RA, "dec": DEC} if not any("Mean" in name for name in columns) else {}
    magnitudes = {name: np.arange(3.0) + 10 + n for n, name in enumerate(columns)}
    Table({**places, **magnitudes, **{name: v for name, v in columns.items() if v}}).write(path)
    return path


def first(references):
    return {band: float(stars.magnitude[0]) for band, stars in references.items()}


@pytest.mark.parametrize("pattern", ["mag_{}", "{}", "{}mag", "{}_mag", "{}Mag", "{}PSFMag", "{}MeanPSFMag"])
def test_columns_by_band(tmp_path, pattern):
    """As Pan-STARRS, SDSS and VizieR call them, and our own."""
    names = {pattern.format(band): None for band in "gri"}
    if "Mean" in pattern:
        names |= {"raMean": RA, "decMean": DEC}
    found = read_references(table(tmp_path / "stars.ecsv", **names), ["r", "g", "r"])
    assert first(found) == {"g": 10, "r": 11}
    assert found["r"].ra.tolist() == RA and found["r"].dec.tolist() == DEC


def test_gaias_own_bands_and_no_others(tmp_path):
    """G of Gaia is not g."""
    names = dict.fromkeys(("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag"))
    path = table(tmp_path / "gaia.fits", **names)
    assert first(read_references(path, ["G", "BP", "RP"])) == {"G": 10, "BP": 11, "RP": 12}
    with pytest.raises(BadInput, match=r"magnitude in g\?.*--reference-mag g=COLUMN"):
        read_references(path, ["g"])
    assert first(read_references(path, ["g"], "g=phot_g_mean_mag")) == {"g": 10}
    vizier = table(tmp_path / "vizier.ecsv", Gmag=None, BPmag=None)
    with pytest.raises(BadInput, match="magnitude in g"):
        read_references(vizier, ["g"])


def test_one_column_is_of_one_band_unless_it_was_asked_for(tmp_path):
    path = table(tmp_path / "stars.ecsv", mag=None)
    assert first(read_references(path, ["r"])) == {"r": 10}
    with pytest.raises(BadInput, match=r"mag would be the magnitude in g and in r.*--reference-mag mag"):
        read_references(path, ["r", "g"])
    assert first(read_references(path, ["r", "g"], "mag")) == {"g": 10, "r": 10}
    both = table(tmp_path / "both.ecsv", mag=None, mag_g=None)
    assert first(read_references(both, ["r", "g"])) == {"g": 11, "r": 10}
    assert first(read_references(both, ["r", "g"], "g=MAG,r=mag_g")) == {"g": 10, "r": 11}
    with pytest.raises(BadInput, match="has no column rmag"):
        read_references(both, ["r"], "r=rmag")


def test_colour_terms_are_added_and_stars_without_the_colour_left_out(tmp_path):
    path = table(tmp_path / "stars.ecsv", g=None, r=[9.0, np.nan, 11.5], i=None)
    found = read_references(path, ["g", "i"], None, "g=0.5*(g-r), i = -2e-1 * (r - i)")
    np.testing.assert_allclose(found["g"].magnitude, [10 + 0.5 * 1, 12 + 0.5 * 0.5])
    np.testing.assert_allclose(found["i"].magnitude, [12 - 0.2 * (9 - 12), 14 - 0.2 * (11.5 - 14)])
    assert found["g"].ra.tolist() == [10, 12]
    with pytest.raises(BadInput, match="no exposure is in this band"):
        read_references(path, ["g"], None, "r=0.1*(g-r)")


@pytest.mark.parametrize("text", ["g=", "=mag", "g=a,g=b", "a,b", ","])
def test_columns_that_make_no_sense(text):
    with pytest.raises(ValueError, match="BAND=COLUMN"):
        chosen_columns(text)


@pytest.mark.parametrize("text", ["g", "g=1", "g=x*(g-r)", "g=1*(g)", "g=11*(g-r)", "=1*(g-r)", "g=(g-r)"])
def test_colour_terms_that_make_no_sense(text):
    with pytest.raises(ValueError, match=r"BAND=NUMBER\*\(BAND-BAND\)"):
        colour_terms(text)
