"""What a survey's files hold: every card, plane and column, as astropy reads them; compressed and not."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from support import astro_data, warm
from support.astro_data import CROWDED, TRACT, catalogue, exposure_table
from support.subjects import PATIENCE, digests

from mpiimg.astro.fits.maskplanes import MASK_PLANES, bits

pytestmark = pytest.mark.tool

EXTRA = ("WEIGHT", "SEGMENTATION", "BACKGROUND")
FLUXES = tuple(
    f"{kind}_{name}{error}"
    for kind in ("flux", "mag")
    for name in ("small", "large", "auto")
    for error in ("", "_err")
)

#: Columns of the catalogue and their units.
UNITS = {
    **dict.fromkeys(("ra", "dec", "ra_err", "dec_err", "theta"), "deg"),
    **dict.fromkeys(("x", "y", "x_err", "y_err", "fwhm", "a", "b"), "pix"),
    **{name: "ct" if name.startswith("flux") else "mag" for name in FLUXES},
    **dict.fromkeys(("background", "peak"), "ct"),
    **dict.fromkeys(f"replaced_{name}" for name in ("small", "large", "auto")),
    **dict.fromkeys(
        (
            "id",
            "patch",
            "band",
            "n_image",
            "flags",
            "mask_flags",
            "parent",
            "is_primary",
            "npix",
            "star_galaxy",
        )
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return astro_data.crowded_results(tmp_path_factory)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The same survey with all planes, compressed."""
    exposures = astro_data.crowded(tmp_path_factory).exposures
    out = tmp_path_factory.mktemp("everything") / "out"
    flags = ("--compress", *(f"--{name.lower()}" for name in EXTRA))
    warm.run_tool("mpiimg-astro", *exposures, "--out", out, *TRACT, *flags, timeout=PATIENCE)
    return out


def patches(out):
    found = sorted(out.glob("patch-*.fits*"))
    assert len(found) == 6
    return found


def test_sums_of_all_extensions_are_right(plain, everything):
    for path in patches(plain) + patches(everything):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # astropy warns of sums that fail
            with fits.open(path, checksum=True, disable_image_compression=True) as hdus:
                assert len(hdus) == (9 if path.suffix == ".fz" else 6)
                for hdu in hdus:
                    assert {"CHECKSUM", "DATASUM"} <= set(hdu.header)
                    hdu.verify("exception")


def test_a_patch_says_what_it_is(plain):
    names = [f"sim-{visit:04d}-{sensor:03d}" for visit in range(CROWDED.visits) for sensor in range(2)]
    for path in patches(plain):
        with fits.open(path) as hdus:
            head = hdus[0].header
            inputs = [head[card] for card in head if card.startswith("INP")]
            assert 0 < len(inputs) == head["NCOMBINE"] and inputs == [n for n in names if n in inputs]
            assert head["EXPTIME"] == pytest.approx(90 * len(inputs))
            assert hdus["NIMAGE"].data.max() <= len(inputs)
            assert (head["BUNIT"], head["MAGZERO"], head["FILTER"]) == ("ct", 27.0, CROWDED.bands[0])
            assert 0 < head["MJD-END"] - head["MJD-BEG"] < 1
            assert 0.5 < head["NOISCORR"] < 2 and 2 < head["FWHM"] < 6
            history = " ".join(line.split(": ", 1)[1] for line in head["HISTORY"])
            for word in (
                "sigclip 4.5",
                "meshes of 17 arcsec",
                "Lanczos-3",
                "stands out by 5 sigma",
                "threshold 3.75 sigma of the filtered image",
            ):
                assert word in history
            place = np.array([head["TRACTX"], head["TRACTY"]])
            assert (head["PATCHX"], head["PATCHY"]) == tuple(map(int, path.stem.split("-")[1:]))
            for hdu in hdus[1:]:
                wcs = WCS(hdu.header)
                assert wcs.has_celestial and wcs.wcs.radesys == "ICRS"
            assert {card: bit for card, bit in hdus["MASK"].header.items() if card.startswith("MP_")} == {
                f"MP_{name}": bit for name, bit in MASK_PLANES.items()
            }
            assert (hdus["IMAGE"].header["BUNIT"], hdus["VARIANCE"].header["BUNIT"]) == ("ct", "ct2")
            # What the catalogue says of the patch's sources lies where its WCS has it.
            table = catalogue(plain)
            table = table[np.asarray(table["patch"], str) == path.stem]
            assert len(table) > 5
            found = WCS(hdus["IMAGE"].header).all_world2pix(table["ra"], table["dec"], 0) + place[:, None]
            np.testing.assert_allclose(found, [table["x"], table["y"]], atol=1e-6)


def test_every_column_is_there_with_its_unit(plain):
    table = catalogue(plain)
    assert {name: str(table[name].unit) if table[name].unit else None for name in table.colnames} == UNITS
    assert table.meta["MAGZERO"] == 27.0 and table.meta["PIXSCALE"] == 0.333
    stars = table[(table["flags"] == 0) & (table["mask_flags"] & bits("SAT") == 0)]
    for name in UNITS:
        if stars[name].dtype.kind == "f":
            assert np.isfinite(stars[name]).mean() > 0.9, name
    np.testing.assert_allclose(stars["mag_auto"], 27 - 2.5 * np.log10(stars["flux_auto"]), rtol=1e-5)


def test_the_table_of_exposures(plain):
    table = exposure_table(plain)
    assert list(table["name"]) == [
        f"sim-{visit:04d}-{sensor:03d}" for visit in range(CROWDED.visits) for sensor in range(2)
    ]
    assert (table["zero_point"].unit, table["fwhm"].unit) == ("mag", "pix")
    assert set(table["status"]) == {"used"} and set(table["zero_point_type"]) == {"CARD"}
    for name in ("zero_point", "sky", "noise", "fwhm", "correction", "cosmic_ray_pixels", "stars"):
        assert (table[name] > 0).all(), name


def test_compression_keeps_what_is_promised(plain, everything):
    """Integers exactly, floats within a sixteenth of the noise; and what is found is the same."""
    for path, whole in zip(patches(everything), patches(plain), strict=True):
        assert path.name == whole.name + ".fz" and path.stat().st_size < whole.stat().st_size / 1.5
        with fits.open(path) as found, fits.open(whole) as expected:
            for plane in ("MASK", "NIMAGE"):
                np.testing.assert_array_equal(found[plane].data, expected[plane].data)
            image, noise = expected["IMAGE"].data, np.sqrt(expected["VARIANCE"].data)
            known = np.isfinite(image)
            np.testing.assert_array_equal(np.isfinite(found["IMAGE"].data), known)
            np.testing.assert_array_equal(np.isfinite(found["VARIANCE"].data), known)
            steps = (found["IMAGE"].data - image)[known] / noise[known]
            assert np.percentile(np.abs(steps), 99) < 1 / 16 and abs(steps.mean()) < 1e-3
            ratio = found["VARIANCE"].data[known] / expected["VARIANCE"].data[known]
            assert abs(np.median(ratio) - 1) < 1e-3
            for card in ("NCOMBINE", "NOISCORR", "FWHM", "MJD-BEG"):
                assert found[0].header[card] == expected[0].header[card]
            assert list(found[0].header["HISTORY"]) == list(expected[0].header["HISTORY"])
    same = {name: digest for name, digest in digests(plain).items() if not name.startswith("patch")}
    assert {name: digest for name, digest in digests(everything).items() if name in same} == same


def test_planes_on_request(plain, everything):
    table = catalogue(everything)
    for path in patches(everything):
        with fits.open(path) as hdus, fits.open(plain / path.stem) as whole:
            variance, weight = whole["VARIANCE"].data, hdus["WEIGHT"].data
            known = np.isfinite(variance)
            assert (weight[~known] == 0).all()
            assert np.percentile(np.abs(weight[known] * variance[known] - 1), 99) < 0.02
            labels = hdus["SEGMENTATION"].data
            head = hdus[0].header
            own = table[np.asarray(table["patch"], str) == path.name.split(".")[0]]
            numbers = np.asarray(own["id"]) & 0xFFFFFFFF
            assert set(np.unique(labels)) - {-1, 0} == set(numbers)
            counts = np.bincount(labels[labels > 0], minlength=numbers.max() + 1)
            np.testing.assert_array_equal(counts[numbers], own["npix"])
            x = np.rint(own["x"]).astype(int) - head["TRACTX"]
            y = np.rint(own["y"]).astype(int) - head["TRACTY"]
            assert (labels[y, x] == numbers).mean() > 0.95
            np.testing.assert_allclose(hdus["BACKGROUND"].data[y, x], own["background"], rtol=1e-3, atol=0.05)


def test_sources_are_found_on_compressed_patches(everything, tmp_path):
    """Those that stand out do not mind the steps."""
    warm.run_tool("mpiimg-detect", everything, "--out", tmp_path / "again.fits", timeout=PATIENCE)
    first, again = catalogue(everything), Table.read(tmp_path / "again.fits", hdu=1)
    bright = first[(first["flux_large"] > 20 * first["flux_large_err"]) & (first["flags"] == 0)]
    index, distance = astro_data.separations(again, bright["ra"], bright["dec"])
    assert len(bright) > 30 and (distance < 0.1).mean() > 0.99
    ratio = again["flux_large"][index] / bright["flux_large"]
    assert abs(np.median(ratio) - 1) < 1e-3


def test_the_mosaic_is_the_coadd_in_blocks(plain):
    """Each of its pixels is the mean of those of a patch that lie there on the sky."""
    with fits.open(plain / "mosaic.fits") as mosaic, fits.open(plain / "patch-1-1.fits") as patch:
        assert [hdu.name for hdu in mosaic] == ["PRIMARY", "IMAGE", "VARIANCE_LS", "NIMAGE"]
        step = mosaic[0].header["BLOCK"]
        assert (mosaic[0].header["FILTER"], mosaic[0].header["PIXSCALE"]) == ("r", 0.333) and step > 1
        rows, columns = patch["IMAGE"].data.shape
        # Where the patch overlaps with others, these have weights of their own.
        blocks = np.array([[y, x] for y in range(110, rows - 110, 31) for x in range(110, columns - 110, 27)])
        place, wcs = WCS(mosaic["IMAGE"].header), WCS(patch["IMAGE"].header)
        at = place.all_world2pix(*wcs.all_pix2world(blocks[:, 1], blocks[:, 0], 0), 0)
        column, row = (np.rint(one).astype(int) for one in at)
        corner = wcs.all_world2pix(*place.all_pix2world(column - 0.5, row - 0.5, 0), 0)
        left, top = (np.rint(one + 0.5).astype(int) for one in corner)
        for plane in ("IMAGE", "VARIANCE_LS", "NIMAGE"):
            for k in range(len(blocks)):
                pixels = patch[plane].data[top[k] : top[k] + step, left[k] : left[k] + step]
                finite = pixels[np.isfinite(pixels)]
                expected = finite.mean(dtype=np.float64) if finite.size else np.nan
                found = mosaic[plane].data[row[k], column[k]]
                np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=plane)


def test_the_depth_is_that_of_the_variance(plain):
    """Five deviations of the sum over a circle of 2 arcsec, where half of the field is deeper."""
    table = Table.read(plain / "depth.tsv", format="ascii.tab")
    with fits.open(plain / "mosaic.fits") as mosaic:
        variance, inputs, step = (*(mosaic[k].data for k in (2, 3)), mosaic[0].header["BLOCK"])
    there = inputs > 0
    noise = np.sqrt(np.pi * np.median(variance[there]) / 0.333**2)
    assert table["depth"] == pytest.approx(27 - 2.5 * np.log10(5 * noise), abs=1e-4)
    assert table["depth_10"] < table["depth"] < table["depth_90"]
    assert table["area"] == pytest.approx(there.sum() * (step * 0.333 / 60) ** 2, rel=1e-5)
    assert (table["inputs"], table["inputs_max"]) == (np.median(inputs[there]), inputs.max())
    rows = json.loads((plain / "depth.json").read_text())["rows"]
    assert rows == [{name: table[name][0] for name in table.colnames}]
