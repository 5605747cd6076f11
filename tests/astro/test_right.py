"""What mpiimg-astro finds in simulated surveys, against the truth, astropy and sep; and real exposures."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from scipy.ndimage import minimum_filter
from support import astro_data, launch, warm
from support.astro_data import CROWDED, TRACT, Night, astro, catalogue, exposure_table, observe, separations
from support.subjects import record

from mpiimg.astro.fits.maskplanes import MASK_PLANES, bits
from mpiimg.astro.sky.tract import Tract
from mpiimg.simulate.astro import SimulatedSurvey

pytestmark = pytest.mark.tool

#: Real exposures, outside this repository.
DECAM = launch.REPOSITORY.parent / "shared" / "data" / "decam-testcase3"

#: Radius of the large aperture, pixels of the tract.
LARGE = 10


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return astro_data.crowded(tmp_path_factory)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return astro_data.crowded_results(tmp_path_factory)


@dataclasses.dataclass(frozen=True)
class Truth:
    """The stars of a survey as its tract sees them."""

    survey: SimulatedSurvey
    out: object

    @functools.cached_property
    def stars(self) -> dict:
        return self.survey.catalogue()

    @functools.cached_property
    def tract(self) -> Tract:
        return Tract.from_toml((self.out / "tract.toml").read_text())

    @functools.cached_property
    def nimage(self) -> np.ndarray:
        """Exposures at each pixel of the tract."""
        whole = np.zeros(self.tract.pixels, int)
        for path in self.out.glob("patch-*.fits"):
            (y0, y1), (x0, x1) = self.tract.outer(tuple(map(int, path.stem.split("-")[1:])))
            whole[y0:y1, x0:x1] = fits.getdata(path, "NIMAGE")
        return whole

    def deep(self, least: int, around: int) -> np.ndarray:
        """Return which stars have at least so many exposures at all pixels as near as `around`."""
        deep = minimum_filter(self.nimage, 2 * around + 1, mode="constant") >= least
        x, y = self.tract.wcs.all_world2pix(self.stars["ra"], self.stars["dec"], 0)
        column, row = np.rint(x).astype(int), np.rint(y).astype(int)
        inside = (row >= 0) & (row < deep.shape[0]) & (column >= 0) & (column < deep.shape[1])
        return inside & deep[row * inside, column * inside]

    def lonely(self, radius: float, faint: float) -> np.ndarray:
        """Return which stars have less than `faint` of their light from others within a radius (arcsec)."""
        ra, dec = self.stars["ra"], self.stars["dec"]
        east = (ra - ra.mean()) * np.cos(np.radians(dec.mean())) * 3600
        near = np.hypot(east - east[:, None], (dec - dec[:, None]) * 3600) < radius
        np.fill_diagonal(near, False)
        return near @ self.stars["flux"] < faint * self.stars["flux"]


@pytest.fixture(scope="module")
def truth(night, results):
    return Truth(night.survey, results)


def primary(out, name="catalogue.fits") -> Table:
    table = catalogue(out, name)
    return table[table["is_primary"]]


# --- the catalogue ------------------------------------------------------------------------------------------


def test_ids_are_unique_and_in_patch_order(results):
    table = catalogue(results)
    assert np.all(np.diff(table["id"]) > 0)
    patches = list(dict.fromkeys(table["patch"]))
    assert patches == [f"patch-{x}-{y}" for y in range(3) for x in range(2)]
    assert np.array_equal(table["id"] >> 32, [patches.index(name) for name in table["patch"]])


def test_complete(results, truth):
    """Every lonely star of a signal to noise above ten, where four exposures overlap, is found once."""
    table = primary(results)
    # Nothing can be seen through the wings of much brighter stars.
    lonely = truth.lonely(4, 0.1) & truth.lonely(8, 20)
    wanted = truth.deep(4, 4) & lonely & (truth.stars["mag"] < 22)
    assert wanted.sum() > 60
    ra, dec = truth.stars["ra"][wanted], truth.stars["dec"][wanted]
    _, distance = separations(table, ra, dec)
    assert np.all(distance < 0.333)


def test_complete_to_half_at_the_limit(results, truth):
    """Nine in ten down to the faintest, which have a signal to noise of 8."""
    table = primary(results)
    found = separations(table, truth.stars["ra"], truth.stars["dec"])[1] < 0.5
    deep, magnitude = truth.deep(4, 4) & truth.lonely(3, 1), truth.stars["mag"]

    def share(bright, faint):
        return found[deep & (magnitude >= bright) & (magnitude < faint)].mean()

    assert share(20, 21) > 0.9
    assert share(21, 22) > 0.85
    assert share(22, 23.5) > 0.9


def test_pure(results, truth):
    """Each source is a star of the truth, or lies among some of them; cosmic rays and seams make none."""
    table = primary(results)
    stars = {"ra": truth.stars["ra"], "dec": truth.stars["dec"]}
    _, distance = separations(stars, table["ra"], table["dec"])
    assert np.count_nonzero(distance > 0.8) <= 0.02 * len(table)
    assert np.all(distance[table["n_image"] >= 3] < 1.3)


def test_no_source_twice(results):
    """Of the two detections of a star at a seam one is primary; no two sources lie closer than a pixel."""
    table = primary(results)
    place = np.column_stack([table["x"], table["y"]])
    apart = np.hypot(*(place[:, None] - place).T)
    np.fill_diagonal(apart, np.inf)
    assert apart.min() > 1
    others = catalogue(results)[~catalogue(results)["is_primary"]]
    for row in others:
        assert np.hypot(table["x"] - row["x"], table["y"] - row["y"]).min() < 1


def matched_stars(out, truth, least, radius, faint, bright, dim):
    """Return rows of the catalogue, true magnitudes and distances of lonely stars seen by `least`."""
    table = primary(out)
    usable = truth.deep(least, LARGE + 1) & truth.lonely(radius, faint)
    index, distance = separations(truth_table(truth), table["ra"], table["dec"])
    magnitude = truth.stars["mag"][index]
    kept = usable[index] & (distance < 0.5) & (magnitude > bright) & (magnitude < dim)
    kept &= np.asarray(table["mask_flags"] & bits("SAT")) == 0
    return table[kept], magnitude[kept], distance[kept]


def truth_table(truth):
    return {"ra": truth.stars["ra"], "dec": truth.stars["dec"]}


def test_positions(results, truth):
    """Below a tenth of a pixel (rms) at high signal to noise, without an offset, and as sure as they say."""
    table, _, distance = matched_stars(results, truth, 2, 5, 0.01, 14, 20.5)
    assert len(table) > 20
    assert np.sqrt(np.mean(distance**2)) < 0.1 * 0.333
    index, _ = separations(truth_table(truth), table["ra"], table["dec"])
    north = (np.asarray(table["dec"]) - truth.stars["dec"][index]) * 3600 / 0.333
    assert abs(north.mean()) < 0.02


def expected_loss(out, survey) -> float:
    """Return the part of a star's light outside the large aperture, by Moffat's formula.

    Exposures weigh as their skies do; the kernel of the warp hardly widens a profile.
    """
    table = exposure_table(out)
    seeing = np.array([survey.visit(visit).seeing for visit in range(survey.visits)]).repeat(survey.sensors)
    weights = (table["noise"] * 10 ** (-0.4 * (table["zero_point"] - 27))) ** -2.0
    alpha = seeing / (2 * np.sqrt(2 ** (1 / survey.beta) - 1))
    lost = (1 + (LARGE * 0.333 / alpha) ** 2) ** (1 - survey.beta)
    return float(np.average(lost, weights=weights))


def test_large_aperture(results, truth):
    """Unbiased but for the light outside it, which profiles tell, to 3 millimagnitudes."""
    table, magnitude, _ = matched_stars(results, truth, 3, 2 * LARGE * 0.333, 0.005, 14, 19)
    assert len(table) >= 5
    offset = np.median(table["mag_large"] - magnitude)
    lost = -2.5 * np.log10(1 - expected_loss(results, truth.survey))
    assert 0.007 < lost < 0.013
    assert abs(offset - lost) < 0.003


#: Bright stars without wings, none saturated, under seeing from 0.8 to 1.4 arcsec.
BRIGHT = SimulatedSurvey(
    3, 1, (640, 660), seed=29, density=14.0, magnitudes=(16.2, 18.5), profile="gaussian", dither=15.0
)


def test_bright_stars_keep_their_light_whatever_the_seeing(tmp_path):
    """To two in a thousand, from raw exposures to the catalogue, where nothing is clipped."""
    night = observe(tmp_path / "in", BRIGHT)
    out = astro(night.exposures, tmp_path / "out", *TRACT, "--statistic", "mean")
    assert np.ptp([BRIGHT.visit(number).seeing for number in range(3)]) > 0.5
    truth = Truth(BRIGHT, out)
    table, magnitude, _ = matched_stars(out, truth, 3, 5.5, 0.0005, 16.2, 18.5)
    # What is repaired in one exposure has the shape of its neighbours, not the star's.
    sound = np.asarray(table["mask_flags"]) == 0
    table, magnitude = table[sound], magnitude[sound]
    assert len(table) >= 12
    ratio = np.asarray(table["flux_large"]) / 10 ** (0.4 * (27 - magnitude))
    error = np.median(table["flux_large_err"] / table["flux_large"]) / np.sqrt(len(table))
    assert error < 0.0005
    assert abs(np.median(ratio) - 1) < 0.002
    assert abs(np.mean(ratio) - 1) < 0.002


def test_errors_of_fluxes_in_empty_apertures(results, truth):
    """The scatter of what apertures hold where no star is, is what VARIANCE and NOISCORR say."""
    import sep

    rng = np.random.default_rng(2)
    pulls = []
    for path in results.glob("patch-*.fits"):
        with fits.open(path) as hdus:
            image, variance = (hdus[name].data.astype(float) for name in ("IMAGE", "VARIANCE"))
            known, correction = hdus["NIMAGE"].data >= 3, hdus[0].header["NOISCORR"]
        (y0, _), (x0, _) = truth.tract.outer(tuple(map(int, path.stem.split("-")[1:])))
        sx, sy = truth.tract.wcs.all_world2pix(truth.stars["ra"], truth.stars["dec"], 0)
        # A star of magnitude 23.5 is lost in the noise; brighter ones shine farther.
        reach = 8 + 6 * np.clip(22 - truth.stars["mag"], 0, None)
        x, y = (rng.uniform(8, n - 8, 400) for n in image.shape[::-1])
        near = np.hypot(x[:, None] + x0 - sx, y[:, None] + y0 - sy) < reach
        whole = minimum_filter(known, 21, mode="constant")[np.rint(y).astype(int), np.rint(x).astype(int)]
        image, variance = np.where(known, image, 0), np.where(known, variance, 0)
        background = sep.Background(image, mask=~known)
        chosen = whole & ~near.any(axis=1)
        flux, error, _ = sep.sum_circle(
            image - background.back(), x[chosen], y[chosen], 4.0, var=variance, subpix=0
        )
        pulls.append(flux / (error * correction))
    pulls = np.concatenate(pulls)
    assert len(pulls) > 150
    assert 0.85 < 1.4826 * np.median(np.abs(pulls - np.median(pulls))) < 1.15


def test_stars_at_seams_are_found_once(results, truth):
    """Neither lost nor doubled, where inner boxes of two patches meet."""
    table = primary(results)
    x, y = truth.tract.wcs.all_world2pix(truth.stars["ra"], truth.stars["dec"], 0)
    side = TRACT[1]
    seam = (np.abs(x % side - side + 0.5) < 12) | (np.abs(y % side - side + 0.5) < 12)
    seam |= (x % side < 12) | (y % side < 12)
    wanted = seam & truth.deep(3, 4) & truth.lonely(4, 0.1) & truth.lonely(8, 20) & (truth.stars["mag"] < 22)
    assert wanted.sum() >= 5
    for column, row in zip(x[wanted], y[wanted], strict=True):
        assert np.count_nonzero(np.hypot(table["x"] - column, table["y"] - row) < 2) == 1


@pytest.mark.parametrize(("bright", "faint"), [(14, 18), (18, 20), (20, 21), (21, 22)])
def test_pure_in_each_magnitude(results, truth, bright, faint):
    """What is measured as bright as this, where three exposures overlap, is a star about as bright."""
    table = primary(results)
    chosen = table[(table["mag_small"] >= bright) & (table["mag_small"] < faint) & (table["n_image"] >= 3)]
    assert len(chosen) >= 10
    index, distance = separations(truth_table(truth), chosen["ra"], chosen["dec"])
    assert np.mean(distance < 0.8) > 0.97
    off = np.asarray(chosen["mag_small"]) - truth.stars["mag"][index]
    assert np.mean(np.abs(off) < 0.75) > 0.9


def test_small_aperture_is_corrected_to_the_large_one(results, truth):
    # What the sky takes for its own of the light of all stars shows in the large aperture of fainter ones.
    table, _, _ = matched_stars(results, truth, 3, LARGE * 0.333, 0.01, 14, 18.5)
    assert len(table) >= 8
    assert abs(np.median(table["mag_small"] - table["mag_large"])) < 0.005


def test_errors_of_fluxes(results, truth):
    """Faint stars scatter about the truth as their errors say."""
    table, magnitude, _ = matched_stars(results, truth, 2, 4, 0.02, 19.5, 22)
    assert len(table) >= 20
    pulls = (table["mag_small"] - magnitude - 0.01) / table["mag_small_err"]
    scatter = 1.4826 * np.median(np.abs(pulls - np.median(pulls)))
    assert 0.6 < scatter < 1.6


def test_units_and_depth(results, truth):
    table = catalogue(results)
    assert table["ra"].unit == units.deg
    assert table["flux_large"].unit == units.count
    assert table["mag_large"].unit == units.mag
    x, y = np.rint(table["x"]).astype(int), np.rint(table["y"]).astype(int)
    np.testing.assert_array_equal(table["n_image"], truth.nimage[y, x])


# --- zero points --------------------------------------------------------------------------------------------

#: Bright stars enough for a zero point in every exposure, and a drift of a tenth of a magnitude.
DRIFTING = SimulatedSurvey(3, 1, (420, 460), seed=5, density=40.0, magnitudes=(16.0, 21.0), magzero=False)


@pytest.fixture(scope="module")
def drifting(tmp_path_factory) -> Night:
    """A survey whose headers tell no zero points."""
    return observe(tmp_path_factory.mktemp("drifting") / "in", DRIFTING)


def offsets_from_truth(out, survey) -> np.ndarray:
    table = exposure_table(out)
    assert list(table["status"]) == ["used"] * len(table)
    return np.asarray(table["zero_point"]) - survey.zeropoints().ravel()


def test_zero_points_from_cards(results):
    table = exposure_table(results)
    assert set(table["zero_point_type"]) == {"CARD"}
    np.testing.assert_allclose(table["zero_point"], CROWDED.zeropoints().ravel(), atol=1e-6)
    assert not [text for text in record(results)["warnings"] if "relative" in text]


def test_a_number_as_zero_point(drifting, tmp_path):
    out = astro(drifting.exposures, tmp_path / "out", *TRACT, "--zero-point", 30)
    table = exposure_table(out)
    assert set(table["zero_point"]) == {30.0}
    assert set(table["zero_point_type"]) == {"CARD"}


def test_relative_zero_points(drifting, tmp_path):
    """Without cards the drift is found from overlaps, but for a common offset, and the run says so."""
    out = astro(drifting.exposures, tmp_path / "out", *TRACT)
    found = offsets_from_truth(out, DRIFTING)
    assert np.ptp(DRIFTING.zeropoints()) > 0.05
    np.testing.assert_allclose(found - found.mean(), 0, atol=0.01)
    table = exposure_table(out)
    assert set(table["zero_point_type"]) == {"RELATIVE"}
    assert abs(table["zero_point"].mean() - 27) < 1e-9
    assert any("relative" in text for text in record(out)["warnings"])


def test_zero_points_from_a_reference(drifting, tmp_path):
    """Stars of known magnitude give the zero points themselves, to a hundredth of a magnitude."""
    stars = DRIFTING.catalogue()
    Table({"ra": stars["ra"], "dec": stars["dec"], "mag": stars["mag"]}).write(tmp_path / "ref.ecsv")
    out = astro(drifting.exposures, tmp_path / "out", *TRACT, "--reference", tmp_path / "ref.ecsv")
    assert set(exposure_table(out)["zero_point_type"]) == {"REFERENCE"}
    np.testing.assert_allclose(offsets_from_truth(out, DRIFTING), 0, atol=0.015)


def with_cards(night: Night, folder, numbers) -> list:
    """Copy a survey without cards and give some exposures theirs; return the files."""
    shutil.copytree(night.folder, folder)
    paths = [folder / path.name for path in night.exposures]
    for number in numbers:
        fits.setval(paths[number], "MAGZERO", value=night.survey.zeropoints()[number, 0], extname="IMAGE")
    return paths


def test_an_exposure_without_a_card_is_matched_to_the_others(drifting, tmp_path):
    exposures, out = with_cards(drifting, tmp_path / "in", [0, 2]), tmp_path / "out"
    said = warm.run_tool("mpiimg-calibrate", *exposures, "--out", out, "--verbose").stderr
    assert "zero points in r: 2 from cards or --zero-point, 1 by stars shared with those" in said
    assert list(exposure_table(out)["zero_point_type"]) == ["CARD", "MATCHED", "CARD"]
    np.testing.assert_allclose(offsets_from_truth(out, DRIFTING), 0, atol=0.01)
    assert fits.getheader(out / exposures[1].name)["ZPTYPE"] == "MATCHED"


@pytest.mark.parametrize(("numbers", "kind"), [([0, 1], "CARD"), ([], "RELATIVE")])
def test_an_exposure_that_shares_no_stars_fails_alone(drifting, tmp_path, numbers, kind):
    """Whether the others have cards or are relative to each other."""
    exposures, out = with_cards(drifting, tmp_path / "in", numbers), tmp_path / "out"
    with fits.open(exposures[2], mode="update") as hdus:
        for hdu in hdus[1:]:
            hdu.header["CRVAL2"] += 1.0
    assert warm.run_tool("mpiimg-calibrate", *exposures, "--out", out, check=False).returncode == 3
    table = exposure_table(out)
    assert list(table["zero_point_type"]) == [kind, kind, "NONE"]
    assert "--zero-point" in table["status"][2]
    assert drifting.names[2] in table["status"][2]
    assert sorted(path.stem for path in out.glob("sim*.fits")) == drifting.names[:2]


def test_a_reference_wins_over_cards(drifting, tmp_path):
    exposures, out = with_cards(drifting, tmp_path / "in", [1, 2]), tmp_path / "out"
    stars = DRIFTING.catalogue()
    Table({"ra": stars["ra"], "dec": stars["dec"], "mag": stars["mag"] + 1}).write(tmp_path / "ref.ecsv")
    options = ("--reference", tmp_path / "ref.ecsv", "--verbose")
    said = warm.run_tool("mpiimg-calibrate", *exposures, "--out", out, *options).stderr
    assert "zero points in r: 3 from --reference; cards are not used" in said
    np.testing.assert_allclose(offsets_from_truth(out, DRIFTING), 1, atol=0.015)


# --- coadds -------------------------------------------------------------------------------------------------


def test_files_are_sound(results):
    """Checksums as astropy computes them, planes of one shape, cards for the mask, and what went in."""
    for path in sorted(results.glob("patch-*.fits")):
        with fits.open(path, checksum=True) as hdus:
            names = ["IMAGE", "VARIANCE", "MASK", "NIMAGE", "VARIANCE_LS"]
            assert [hdu.name for hdu in hdus[1:]] == names
            assert all(hdu.verify_checksum() == hdu.verify_datasum() == 1 for hdu in hdus)
            header, mask = hdus[0].header, hdus["MASK"].header
            assert {name: mask[f"MP_{name}"] for name in MASK_PLANES} == MASK_PLANES
            assert (header["MAGZERO"], header["FILTER"], header["BUNIT"]) == (27, "r", "ct")
            members = [header[card] for card in header if card.startswith("INP0")]
            assert header["NCOMBINE"] == len(members) == len(set(members))
            assert header["EXPTIME"] == 90 * len(members)
            assert header["MJD-BEG"] <= header["MJD-END"]
            assert 0 < hdus["NIMAGE"].data.max() <= len(members)
            assert 0.7 < header["NOISCORR"] < 1.4
            none = hdus["NIMAGE"].data == 0
            np.testing.assert_array_equal(none, np.isnan(hdus["IMAGE"].data))
            np.testing.assert_array_equal(none, hdus["MASK"].data & bits("NO_DATA") != 0)


def test_world_coordinates_of_patches(results, truth):
    """A place has the same pixel by the WCS of a patch as by the tract's, less the patch's corner."""
    for path in results.glob("patch-*.fits"):
        wcs = WCS(fits.getheader(path, "IMAGE"))
        (y0, _), (x0, _) = truth.tract.outer(tuple(map(int, path.stem.split("-")[1:])))
        ra, dec = truth.stars["ra"], truth.stars["dec"]
        x, y = truth.tract.wcs.all_world2pix(ra, dec, 0)
        np.testing.assert_allclose(wcs.all_world2pix(ra, dec, 0), (x - x0, y - y0), atol=1e-6)
        np.testing.assert_allclose(wcs.all_pix2world(x - x0, y - y0, 0), (ra, dec), rtol=0, atol=1e-10)


def test_borders_of_patches_agree(results, truth):
    """What two patches share is the same but for the weights of exposures, which are a patch's own."""
    one, other = ((results / f"patch-0-{y}.fits") for y in (0, 1))
    (low, _), _ = truth.tract.outer((0, 1))
    shared = np.s_[low:, :], np.s_[: truth.tract.outer((0, 0))[0][1] - low, :]
    counts = [fits.getdata(path, "NIMAGE")[part] for path, part in zip((one, other), shared, strict=True)]
    np.testing.assert_array_equal(*counts)
    images = [fits.getdata(path, "IMAGE")[part] for path, part in zip((one, other), shared, strict=True)]
    noise = np.sqrt(fits.getdata(one, "VARIANCE")[shared[0]])
    apart = np.abs(images[0] - images[1]) / noise
    assert np.nanpercentile(apart, 99) < 0.2


def test_noise_is_what_variance_says(results):
    """In single pixels of the sky."""
    from astropy.stats import mad_std, sigma_clip

    for path in results.glob("patch-*.fits"):
        with fits.open(path) as hdus:
            image, variance = (hdus[name].data for name in ("IMAGE", "VARIANCE"))
            pulls = sigma_clip((image / np.sqrt(variance))[hdus["NIMAGE"].data > 0], 3).compressed()
            assert pulls.size > 10_000
            assert 0.85 < mad_std(pulls) < 1.15


def test_coadd_is_astropys_of_single_exposures(drifting, tmp_path):
    """Warps, which are coadds of one exposure, clipped and averaged by astropy, give the coadd."""
    from astropy.stats import sigma_clip

    chosen = drifting.exposures
    options = ("--zero-point", 30, "--statistic", "clip", "--sigma", 1.35)
    together = astro(chosen, tmp_path / "all", *TRACT, *options)
    tract = ("--tract", together / "tract.toml")
    name = "patch-0-0.fits"
    planes, found = {"IMAGE": [], "VARIANCE": [], "MASK": []}, fits.getdata(together / name, "NIMAGE")
    for number, path in enumerate(chosen):
        out = tmp_path / str(number)
        astro([path], out, *tract, "--zero-point", 30, "--statistic", "mean")
        assert record(out)["warnings"] == [], "a mean has nothing to say of clipping"
        for plane, layers in planes.items():
            layers.append(fits.getdata(out / name, plane))
    values = np.array(planes["IMAGE"], float)
    variances = np.where(np.isfinite(values), planes["VARIANCE"], np.nan).astype(float)
    clipped = sigma_clip(
        np.ma.masked_invalid(values), sigma=1.35, maxiters=2, cenfunc="mean", stdfunc="std", axis=0
    )
    kept = ~np.ma.getmaskarray(clipped)
    np.testing.assert_array_equal(kept.sum(axis=0), found)
    rejected = fits.getdata(together / name, "MASK") & bits("CLIPPED") != 0
    np.testing.assert_array_equal(rejected, (~kept & np.isfinite(values)).any(axis=0))
    weights = fitted_weights(values, kept, fits.getdata(together / name, "IMAGE"))
    expected = 1 / np.nanmedian(variances, axis=(1, 2))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=0.03)
    total = np.where(kept, weights[:, None, None], 0)
    image = np.where(kept, values, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total * image).sum(axis=0) / total.sum(axis=0)
        variance = (total**2 * np.where(kept, variances, 0)).sum(axis=0) / total.sum(axis=0) ** 2
    np.testing.assert_allclose(fits.getdata(together / name, "IMAGE"), mean, rtol=1e-4, atol=1e-3)
    known = found > 0
    np.testing.assert_allclose(fits.getdata(together / name, "VARIANCE")[known], variance[known], rtol=1e-3)


def fitted_weights(values, kept, coadd) -> np.ndarray:
    """Return the weights, of sum 1, whose mean of all exposures at whole pixels comes nearest to `coadd`."""
    whole = kept.all(axis=0)
    layers = values[:, whole].T
    differences = layers[:, 1:] - layers[:, :1]
    others, *_ = np.linalg.lstsq(differences, coadd[whole] - layers[:, 0], rcond=None)
    return np.array([1 - others.sum(), *others])


# --- DECam --------------------------------------------------------------------------------------------------


def test_triplets_give_the_catalogue_of_planes(tmp_path):
    """But at edges, which a triplet's mask calls bad: bad pixels are interpolated, edges are not."""
    survey = SimulatedSurvey(2, 1, (420, 460), seed=3, density=30.0, magnitudes=(16.0, 22.0))
    made = {}
    for layout in ("planes", "triplet"):
        night = observe(tmp_path / layout, survey, layout)
        assert len(night.exposures) == 2
        out = astro(night.exposures, tmp_path / f"{layout}-out", *TRACT, "--zero-point", "MAGZERO")
        made[layout] = primary(out)
        cards = exposure_table(out)
        assert set(cards["band"]) == {"r"}
        np.testing.assert_allclose(cards["zero_point"], survey.zeropoints().ravel(), atol=1e-6)
    one, other = made["planes"], made["triplet"]
    inner = one["n_image"] == 2
    index, distance = separations(other, one["ra"][inner], one["dec"][inner])
    assert inner.sum() > 20
    bright = np.asarray(one["flux_small"][inner] > 20 * one["flux_small_err"][inner])
    assert np.all(distance[bright] < 0.03)
    differences = np.asarray(one["mag_small"][inner] - other["mag_small"][index])[bright]
    assert np.median(np.abs(differences)) < 0.003
    assert np.percentile(np.abs(differences), 90) < 0.03


def test_real_exposures_go_through(tmp_path):
    """Cut-outs of DECam: each band is its own coadd, at its place."""
    exposures = sorted(DECAM.glob("*_ooi_*.fits"))
    if not exposures:
        pytest.skip(f"NO REAL EXPOSURES: {DECAM} is not there, and nothing is tested on them")
    out = astro(exposures, tmp_path / "out", "--zero-point", 25, "--patch", 500, "--border", 20, ranks=2)
    table = exposure_table(out)
    assert list(table["status"]) == ["used"] * len(exposures) == ["used"] * 8
    assert sorted(set(table["band"])) == ["g", "r", "z"]
    assert set(table["zero_point"]) == {25.0}
    covered = {}
    for path in out.glob("*-patch-*.fits"):
        with fits.open(path) as hdus:
            band = hdus[0].header["FILTER"]
            assert path.name.startswith(f"{band}-patch-")
            covered[band] = covered.get(band, 0) + np.count_nonzero(hdus["NIMAGE"].data)
    assert sorted(covered) == ["g", "r", "z"]
    assert min(covered.values()) > 500
    assert {f"{band}_flux_auto" for band in "grz"} <= set(catalogue(out).colnames)
