"""Bands together: one image to find sources on, one row an object, fluxes of each band at the same places."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter
from scipy.stats import norm
from support import warm
from support.astro_data import astro, catalogue, observe, separations

from mpiimg.astro import catalogue as catalogues
from mpiimg.astro import wide
from mpiimg.astro.photometry.combined import blurred, combined, equal_threshold, matching_blur
from mpiimg.astro.photometry.profiles import Moffat
from mpiimg.astro.sky.layout import Patch
from mpiimg.simulate.astro import SimulatedSurvey

# --- The image of all bands -------------------------------------------------------------------------------


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_noise_of_all_bands_is_above_a_threshold_as_often_as_that_of_one(bands):
    values = np.random.default_rng(bands).standard_normal((bands, 4_000_000), np.float32)
    image = combined(values[:, None], 2.0)
    share, due = np.mean(image > 2.0), norm.sf(2.0)
    assert abs(share - due) < 5 * np.sqrt(due / values.shape[1])
    assert equal_threshold(bands, 2.0) == pytest.approx(2.0) or bands > 1


def test_the_image_of_all_bands_is_the_root_of_squares_of_what_is_positive():
    one, other = np.array([[3.0, -5.0, 3.0, np.nan]], "f4"), np.array([[4.0, 2.0, np.nan, np.nan]], "f4")
    image = combined((one, other), 4.0)
    two = 4.0 / equal_threshold(2, 4.0)
    np.testing.assert_allclose(image, [[5 * two, 2 * two, 3.0, np.nan]], rtol=1e-6)
    np.testing.assert_allclose(
        combined((one, other), 4.0, "sum"), [[7 / np.sqrt(2), -3 / np.sqrt(2), 3.0, np.nan]], rtol=1e-6
    )


def test_a_blurred_star_is_as_wide_as_it_should_be_and_keeps_its_light():
    y, x = np.mgrid[-40:41, -40:41]
    star = np.exp(-(x**2 + y**2) / (2 * 2.0**2)).astype("f4")
    bad = np.zeros(star.shape, bool)
    wider = blurred(star, bad, 1.5)
    assert wider.sum() == pytest.approx(star.sum(), rel=1e-4)
    assert np.sqrt((wider * x**2).sum() / wider.sum()) == pytest.approx(2.5, rel=1e-3)
    bad[:, 50] = True  # what says nothing takes no light from its neighbours
    hole = blurred(star + 7, bad, 1.5)
    np.testing.assert_allclose(hole[20:60, 48:53], 7 + wider[20:60, 48:53], atol=0.02)


# --- Rows -------------------------------------------------------------------------------------------------


def patches_of(*bands):
    box = ((0, 10), (0, 10))
    return [Patch(band, (n, 0), box, box) for band in bands for n in range(2)]


def rows_of(patch: int, count: int, **values):
    table = catalogues.new(count)
    table["id"] = (patch << 32) + np.arange(1, count + 1)
    table["x"], table["n_image"] = 10 * (patch % 2) + np.arange(count), 1
    for name, value in values.items():
        table[name] = value
    return table


def test_one_row_an_object():
    """Of a patch that failed in one band the columns of the other are there; parents are objects."""
    parts = [
        rows_of(0, 2, mag_small=20.0, mag_small_err=0.3, x_err=0.3),
        rows_of(1, 1, mag_small=19.0, x_err=0.1),
        rows_of(2, 2, mag_small=19.5, mag_small_err=0.4, x_err=0.4),
    ]
    parts[2]["parent"] = parts[2]["id"][0]
    patches = patches_of("r", "g/x")
    stars = {"r": Moffat(3.0, 50.0), "g/x": Moffat(3.2, 50.0)}
    made = wide.one_row_an_object(np.concatenate(parts), patches, stars, 30.0)
    assert made["id"].tolist() == [1, 2, (1 << 32) + 1]
    assert made["parent"].tolist() == [1, 1, 0]
    assert made["x"].tolist() == [0, 1, 10]
    assert made["n_bands"].tolist() == [2, 2, 1]
    np.testing.assert_allclose(made["r_mag_small"], [20, 20, 19])
    np.testing.assert_allclose(made["g_x_mag_small"], [19.5, 19.5, np.nan])
    np.testing.assert_allclose(made["color_r_g_x"], [0.5, 0.5, np.nan])
    np.testing.assert_allclose(made["color_r_g_x_err"], [0.5, 0.5, np.nan], rtol=1e-6)
    np.testing.assert_allclose(made["x_err"], [0.24, 0.24, 0.1], rtol=1e-6)
    assert not made["color_r_g_x_flag"].any()
    stars["g/x"] = Moffat(3.4, 2.5)
    wider = wide.one_row_an_object(np.concatenate(parts), patches, stars, 10.0)
    assert wider["color_r_g_x_flag"].all()
    # Of the wider stars 3 % are beyond the aperture: integrated from the profile of Moffat.
    radius, alpha = np.arange(0.005, 4000, 0.01), 3.4 / (2 * np.sqrt(2 ** (1 / 2.5) - 1))
    light = radius * (1 + (radius / alpha) ** 2) ** -2.5
    lost = -2.5 * np.log10(light[radius < 10].sum() / light.sum())
    np.testing.assert_allclose(wider["color_r_g_x"][0], 0.5 + lost, atol=2e-4)
    assert not wide.one_row_an_object(parts[0], patches, stars, 10.0, matched=True)["color_r_g_x_flag"].any()


@pytest.mark.parametrize("unknown", ["r", "g"])
def test_a_colour_is_unsure_where_the_seeing_of_a_band_is_not_known(unknown):
    stars = dict.fromkeys("gr", Moffat(3.0, 3.0)) | {unknown: Moffat(np.nan, np.nan)}
    made = wide.one_row_an_object(rows_of(0, 2), patches_of("g", "r"), stars, 10.0)
    assert made["color_g_r_flag"].all()


def test_bands_go_from_blue_to_red_and_names_are_those_of_columns():
    assert wide.blue_to_red(["z", "F606W", "g", "r", "g"]) == ["g", "r", "z", "F606W"]
    odd = ["a b", "a/b", "r", "", "2MASS J", "color", "a long name of a filter", "a long name of another"]
    prefixes = wide.prefixes(odd)
    plain = ["a_b", "a_b_2", "r", "band_", "band_2MASS_J", "band_color"]
    assert [prefixes[name] for name in odd[:6]] == plain
    assert [prefixes[name] for name in odd[6:]] == ["a_long_name_of_a", "a_long_name_of_a_2"]


@pytest.mark.parametrize("ending", ["fits", "ecsv", "parquet", "reg"])
def test_every_column_of_every_band_says_what_it_is(ending):
    stars = dict.fromkeys(("r", "sharp_fwhm"), Moffat(np.nan, np.nan))
    made = wide.one_row_an_object(rows_of(0, 3), patches_of("r", "sharp_fwhm"), stars, 10.0)
    for name in made.dtype.names:
        about = catalogues.column(name)
        assert about.name == name and about.description
        assert about.dtype in (made.dtype[name].str[1:], "?") or made.dtype[name].kind == "S"
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    assert catalogues.encode(f"x.{ending}", made, {"PIXSCALE": 0.3})


# --- The tools --------------------------------------------------------------------------------------------

SURVEY = SimulatedSurvey(
    4, 1, (420, 420), seed=5, bands=("g", "r"), density=25.0, magnitudes=(16.0, 24.0), rotation=0.0
)


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return observe(tmp_path_factory.mktemp("bands") / "night", SURVEY)


@pytest.fixture(scope="module")
def together(night, tmp_path_factory):
    out = tmp_path_factory.mktemp("bands") / "together"
    return astro(night.exposures, out, "--patch", 260, "--border", 40)


@pytest.fixture(scope="module")
def apart(night, tmp_path_factory):
    out = tmp_path_factory.mktemp("bands") / "apart"
    return astro(night.exposures, out, "--patch", 260, "--border", 40, "--bands", "apart")


@pytest.mark.tool
def test_objects_are_those_of_both_bands_at_one_place_each(together, apart):
    """Each source that a band has for itself, brighter than a few sigma, is an object; none stands twice."""
    objects, single = catalogue(together), catalogue(apart)
    objects = objects[objects["is_primary"]]
    _, near = separations(objects, objects["ra"], objects["dec"])
    assert np.all(near == 0)
    for band in ("g", "r"):
        own = single[single["is_primary"] & (single["band"] == band) & (single["parent"] == 0)]
        own = own[own["flux_small"] > 10 * own["flux_small_err"]]
        index, distance = separations(objects, own["ra"], own["dec"])
        assert len(own) > 15 and np.mean(distance < 0.3) > 0.95
        same = np.asarray((distance < 0.3) & (own["flags"] == 0) & (objects["parent"][index] == 0))
        change = np.asarray(own["mag_small"] - objects[f"{band}_mag_small"][index])[same]
        # The seeing of the bands differs, so do centroids; not by what moves a flux.
        assert np.nanmedian(np.abs(change)) < 0.01


@pytest.mark.tool
def test_what_only_one_band_shows_has_a_row_and_an_upper_limit_in_the_other(tmp_path):
    """A drop-out: its flux in the band without it is 0 within its error."""
    night = observe(tmp_path / "night", dataclasses.replace(SURVEY, dither=0.0))
    folder = tmp_path / "in"
    folder.mkdir()
    y, x = np.mgrid[:420, :420]
    place = (205.3, 211.8)
    star = 900 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * 1.9**2))
    for path in night.exposures:
        with fits.open(path) as hdus:
            hdus[1].data = np.random.default_rng(1).normal(250, 8, (420, 420)).astype("f4")
            for n, spot in enumerate(((60, 60), (330, 90), (90, 350), (350, 340), (210, 60), (60, 210))):
                hdus[1].data += (400 + 90 * n) * np.exp(
                    -((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * 1.9**2)
                ).astype("f4")
            if hdus[1].header["FILTER"] == "r":
                hdus[1].data += star.astype("f4")
            hdus[2].data[:], hdus[3].data[:] = 64.0, 0
            hdus.writeto(folder / path.name)
    found = catalogue(astro(sorted(folder.glob("*.fits")), tmp_path / "out", "--no-cosmic-rays"))
    assert 5 < len(found) < 40
    ratio = np.asarray(found["r_flux_small"] / found["r_flux_small_err"])
    red = found[(ratio > 30) & (np.abs(found["g_flux_small"]) < 4 * found["g_flux_small_err"])]
    assert len(red) == 1 and np.isnan(red["color_g_r"][0]) == (red["g_flux_small"][0] <= 0)


@pytest.mark.parametrize("beta", [2.5, 4.0, 100.0])
def test_an_aperture_holds_as_much_of_stars_as_of_those_that_they_are_brought_to(beta):
    """Of Gaussians, which Moffat profiles of a large beta are, by the difference of squares."""
    sigma = matching_blur(Moffat(3.0, beta), Moffat(4.5, beta), 4.0)
    y, x = np.mgrid[-320:321, -320:321] / 8  # an eighth of a pixel

    def star(fwhm):
        alpha = fwhm / (2 * np.sqrt(2 ** (1 / beta) - 1))
        return (beta - 1) / (np.pi * alpha**2) * (1 + (x**2 + y**2) / alpha**2) ** -beta / 64

    inside = np.hypot(x, y) < 4.0
    blurred_star = gaussian_filter(star(3.0), 8 * sigma)
    assert blurred_star[inside].sum() == pytest.approx(star(4.5)[inside].sum(), rel=0.003)
    if beta == 100.0:
        assert sigma == pytest.approx(np.sqrt(4.5**2 - 3.0**2) / 2.3548, rel=0.02)
    assert matching_blur(Moffat(4.5, beta), Moffat(4.5, beta), 4.0) == 0


@pytest.mark.tool
def test_matched_bands_have_stars_of_one_concentration(tmp_path):
    """A visit in g whose seeing is half as wide again as that in r."""
    field = dataclasses.replace(SURVEY, visits=2, shape=(600, 600), dither=0.0, seeing=(0.8, 1.4), seed=43)
    assert field.visit(0).seeing > 1.5 * field.visit(1).seeing
    exposures = observe(tmp_path / "in", field).exposures

    def concentration(*options):
        table = catalogue(astro(exposures, tmp_path / f"out{len(options)}", "--patch", 1000, *options))
        bright = (table["g_flags"] == 0) & (table["r_flags"] == 0) & (table["r_flux_small"] > 200)
        assert bright.sum() > 10
        r, g = (
            np.asarray(table[f"{band}_flux_small"] / table[f"{band}_flux_large"])[bright] for band in "rg"
        )
        return np.median(r / g), table["color_g_r_flag"]

    ratio, flags = concentration()
    assert ratio > 1.1 and flags.all()
    ratio, flags = concentration("--match-psf")
    assert ratio == pytest.approx(1, abs=0.02) and not flags.any()


@pytest.mark.tool
def test_matching_asks_for_bands_together(night, tmp_path):
    words = (*night.exposures, "--out", tmp_path / "out", "--match-psf", "--bands", "apart")
    done = warm.run_tool("mpiimg-astro", *words, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("mpiimg: error: --match-psf goes with --bands together")


@pytest.mark.tool
def test_one_band_is_a_catalogue_as_ever(night, tmp_path):
    one = [path for path in night.exposures if fits.getheader(path, 1)["FILTER"] == "g"]
    plain = astro(one, tmp_path / "plain", "--patch", 260)
    apart = astro(one, tmp_path / "apart", "--patch", 260, "--bands", "apart")
    assert (plain / "catalogue.fits").read_bytes() == (apart / "catalogue.fits").read_bytes()
    assert set(catalogue(plain)["band"]) == {"g"}
