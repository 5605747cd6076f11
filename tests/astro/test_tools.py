"""The astro tools one by one: a chain gives the bits of mpiimg-astro; each refuses what it cannot use."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from astropy.io import fits
from support import warm
from support.astro_data import astro, exposure_table, observe
from support.subjects import PATIENCE, record

from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.search import find_exposures
from mpiimg.errors import BadInput, Exit
from mpiimg.simulate.astro import SimulatedSurvey
from mpiimg.tools import cli, registry

pytestmark = pytest.mark.tool

#: Two filters, DECam's three files an exposure, and no zero points: they are solved from overlaps.
SURVEY = SimulatedSurvey(4, 1, (300, 340), seed=5, bands=("g", "r"), density=90.0, magzero=False)
TRACT = ("--patch", 160, "--border", 20)

PLANES = {
    "patch": ("IMAGE", "VARIANCE", "MASK", "NIMAGE", "VARIANCE_LS", "WEIGHT"),
    "warp": ("IMAGE", "VARIANCE", "MASK", "VARIANCE_LS"),
}
MAPS = ("SEGMENTATION", "BACKGROUND")


def tool(name, *words, timeout=PATIENCE, **how):
    return warm.run_tool(f"mpiimg-{name}", *words, timeout=timeout, **how)


def chain(exposures, tract, out, ranks):
    """Run all four tools, each on what the one before wrote, on so many ranks; None for no launcher."""
    calibrate, warp, coadd, detect = ranks
    tool("calibrate", *exposures, "--out", out / "calibrated", ranks=calibrate)
    calibrated = sorted((out / "calibrated").glob("*.fits"))
    tool("warp", *calibrated, "--tract", tract, "--out", out / "warps", ranks=warp)
    tool("coadd", out / "warps", "--weight", "--out", out / "patches", ranks=coadd)
    wanted = ("--segmentation", "--background", "--out", out / "sources" / "catalogue.fits")
    tool("detect", out / "patches", *wanted, ranks=detect)
    return out


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return observe(tmp_path_factory.mktemp("tools") / "night", SURVEY, "triplet")


@pytest.fixture(scope="module")
def at_once(night, tmp_path_factory):
    """What one run of mpiimg-astro makes of the survey, all that it can write included."""
    wanted = ("--calibrated", "--warps", "--weight", "--segmentation", "--background")
    return astro(night.exposures, tmp_path_factory.mktemp("tools") / "at-once", *TRACT, *wanted)


@pytest.fixture(scope="module")
def in_steps(night, at_once, tmp_path_factory):
    """What the four tools make of it, in turn on three ranks and on one process."""
    return chain(
        night.exposures, at_once / "tract.toml", tmp_path_factory.mktemp("tools"), (3, None, 3, None)
    )


def assert_same_results(steps, at_once):
    """Assert that patches have the same pixels and cards, and that the tables have the same bytes."""
    patches = sorted(path.name for path in at_once.glob("*patch-*.fits"))
    assert len(patches) >= 2 * 4 and {name[0] for name in patches} == {"g", "r"}
    assert sorted(path.name for path in (steps / "patches").glob("*patch-*.fits")) == patches
    for name in patches:
        with fits.open(at_once / name) as expected, fits.open(steps / "patches" / name) as found:
            for plane in PLANES["patch"]:
                assert found[plane].data.tobytes() == expected[plane].data.tobytes(), (name, plane)
            # Detection measures these, and the sum is over them.
            cards = {"NOISCORR", "FWHM", "CHECKSUM", "HISTORY"}
            headers = [
                {k: v for k, v in hdus[0].header.items() if k not in cards and not k.startswith("INP")}
                for hdus in (found, expected)
            ]
            assert headers[0] == headers[1]
            history = [list(hdus[0].header["HISTORY"]) for hdus in (found, expected)]
            assert [line for line in history[1] if " detect: " not in line] == history[0]
            steps_done = ("calibrate", "warp", "coadd", "detect")
            assert [line.split()[2] for line in dict.fromkeys(history[1])][-1] == "detect:"
            assert {line.split()[2].rstrip(":") for line in history[1]} == set(steps_done)
        with (
            fits.open(at_once / name) as expected,
            fits.open(steps / "sources" / name.replace("patch", "detection")) as found,
        ):
            assert [hdu.name for hdu in found] == ["PRIMARY", *MAPS]
            for plane in MAPS:
                assert found[plane].data.tobytes() == expected[plane].data.tobytes(), (name, plane)
                assert found[plane].header["CRPIX1"] == expected[plane].header["CRPIX1"]
            for card in ("NOISCORR", "FWHM", "FILTER", "TRACTX", "PATCHY"):
                assert found[0].header[card] == expected[0].header[card]
            assert list(found[0].header["HISTORY"]) == list(expected[0].header["HISTORY"])
    for name in ("catalogue.fits", "catalogue.reg"):
        assert (steps / "sources" / name).read_bytes() == (at_once / name).read_bytes(), name
    for band in ("g", "r"):
        expected = (at_once / f"{band}-mosaic.fits").read_bytes()
        for name in (f"sources/{band}-catalogue-mosaic.fits", f"patches/{band}-mosaic.fits"):
            assert (steps / name).read_bytes() == expected, name
    figures = ("sources/catalogue-depth.tsv", "patches/depth.tsv", "sources/catalogue-counts.tsv")
    for name in (*figures, "calibrated/calibration.tsv", "calibrated/residuals.json"):
        whole = at_once / name.partition("/")[2].removeprefix("catalogue-")
        assert (steps / name).read_bytes() == whole.read_bytes(), name
    for folder in ("warps", "patches"):
        assert (steps / folder / "tract.toml").read_bytes() == (at_once / "tract.toml").read_bytes()
    table = steps / "calibrated" / "exposures.ecsv"
    assert table.read_bytes() == (at_once / "exposures.ecsv").read_bytes()


def test_a_chain_gives_the_bits_of_one_run(in_steps, at_once):
    assert_same_results(in_steps, at_once)
    assert len(fits.getdata(in_steps / "sources" / "catalogue.fits")) > 50
    ran = ("calibrated/run-calibrate.json", "warps/run-warp.json", "patches/run-coadd.json")
    assert [record(in_steps, name)["ranks"] for name in ran] == [3, 1, 3]


def test_one_run_writes_on_request_what_the_tools_write(in_steps, at_once):
    for path in at_once.glob("calibrated/*"):
        assert (in_steps / "calibrated" / path.name).read_bytes() == path.read_bytes(), path.name
    warps = sorted(path.name for path in at_once.glob("warps/*"))
    made = (path for path in in_steps.glob("warps/*") if path.is_file() and path.suffix != ".json")
    assert warps == sorted(path.name for path in made)
    for name in warps:
        if name == "tract.toml":
            continue
        # Their primary headers differ: the names of exposures are those of the files.
        with fits.open(at_once / "warps" / name) as expected, fits.open(in_steps / "warps" / name) as found:
            for plane in PLANES["warp"]:
                assert found[plane].data.tobytes() == expected[plane].data.tobytes(), (name, plane)


@pytest.mark.long
def test_so_it_does_where_the_other_tools_have_three_ranks(night, at_once, in_steps, tmp_path):
    out = chain(night.exposures, at_once / "tract.toml", tmp_path, (None, 3, None, 3))
    assert_same_results(out, at_once)
    for path in in_steps.glob("*/*.fits"):
        assert (out / path.relative_to(in_steps)).read_bytes() == path.read_bytes(), path.name


def test_calibrated_exposures_carry_what_the_warp_needs(night, at_once, in_steps):
    before = find_exposures(night.exposures)
    after = find_exposures(sorted((in_steps / "calibrated").glob("*.fits")))
    assert len(after) == len(before) == 4
    for old, new in zip(before, after, strict=True):
        for fact in ("wcs", "shape", "band", "visit", "sensor", "exptime", "mjd"):
            assert getattr(new, fact) == getattr(old, fact), fact
        frame, calibrated = read_exposure(old), read_exposure(new)
        # The sky is gone, and nothing else: what cosmic rays did not touch lost a smooth surface.
        header = fits.getheader(new.image.path)
        kept = (calibrated.mask & (1 << header_bit(new, "CR"))) == 0
        sky = (frame.image - calibrated.image)[kept]
        assert abs(np.median(sky) / header["SKYLEVEL"] - 1) < 0.01
        assert np.ptp(sky) < 0.2 * header["SKYLEVEL"]
        np.testing.assert_array_equal(calibrated.variance, frame.variance)
        assert 0 < header["CRPIXELS"] < 0.02 * frame.image.size
        assert header["CRPIXELS"] == np.count_nonzero(~kept & ((frame.mask & 8) == 0))
    table = exposure_table(at_once)
    assert list(table["zero_point"]) == [ref.magzero for ref in after]
    assert {fits.getheader(ref.image.path)["ZPTYPE"] for ref in after} == {"RELATIVE"}


def header_bit(ref, plane):
    return fits.getheader(ref.mask.path, ref.mask.hdu)[f"MP_{plane}"]


def test_warps_say_where_they_lie(in_steps, at_once):
    """In the patch whose name they have: WCS and pixel numbers agree with those of the patch."""
    from astropy.wcs import WCS

    paths = sorted((in_steps / "warps").glob("*_warp.fits"))
    assert len(paths) > 12
    for path in paths[::3]:
        with fits.open(path) as warp:
            card = warp[0].header
            name = f"{card['FILTER']}-patch-{card['PATCHX']}-{card['PATCHY']}"
            assert path.name == f"{card['EXPNAME'].replace('ooi', 'calibrated')}_{name[2:]}_warp.fits"
            with fits.open(at_once / f"{name}.fits") as patch:
                outer = patch[0].header
                x, y = card["TRACTX"] - outer["TRACTX"], card["TRACTY"] - outer["TRACTY"]
                (ny, nx), (height, width) = warp["IMAGE"].shape, patch["IMAGE"].shape
                assert x >= 0 and y >= 0 and x + nx <= width and y + ny <= height
                there = WCS(patch["IMAGE"].header).wcs_pix2world([[x + 3, y + 5]], 0)
                here = WCS(warp["IMAGE"].header).wcs_pix2world([[3, 5]], 0)
                np.testing.assert_allclose(here, there, rtol=0, atol=1e-10)


# --- What cannot be used ------------------------------------------------------------------------------------


def refused(name, *words) -> str:
    """Return what a tool says of input that it refuses for what headers tell."""
    values = vars(cli.parser(f"mpiimg-{name}").parse_args([str(word) for word in words]))
    with pytest.raises(BadInput) as error:
        registry.tool(f"mpiimg-{name}").inspect(values)
    assert "\n" not in str(error.value)
    return str(error.value)


def copied(in_steps, folder, tmp_path):
    return shutil.copytree(in_steps / folder, tmp_path / folder)


def test_folders_that_hold_nothing_to_work_on(in_steps, tmp_path):
    out = ("--out", tmp_path / "out.fits")
    for name in ("coadd", "detect"):
        assert "is no folder; name the one that" in refused(name, tmp_path / "nowhere", *out)
    (tmp_path / "empty").mkdir()
    assert "holds no warps (*_warp.fits); make them with mpiimg-warp" in refused(
        "coadd", tmp_path / "empty", *out
    )
    assert "holds no patches" in refused("detect", tmp_path / "empty", *out)
    assert "holds no patches" in refused("detect", in_steps / "warps", *out)
    assert "holds no warps" in refused("coadd", in_steps / "patches", *out)


def test_a_folder_with_and_without_large_scale_variances_is_refused(in_steps, tmp_path):
    """Files without them are as good, as long as all are alike."""
    here, out = copied(in_steps, "patches", tmp_path), ("--out", tmp_path / "out.fits")
    paths = sorted(here.glob("*patch-*.fits"))
    for number, path in enumerate(paths):
        with fits.open(path) as hdus:
            plain = fits.HDUList([hdu.copy() for hdu in hdus if hdu.name != "VARIANCE_LS"])
        plain.writeto(path, overwrite=True, checksum=True)
        if number == 0:
            message = refused("detect", here, *out)
            assert f"{path}: mixed planes: it has no VARIANCE_LS, which {paths[1].name} has" in message
    warm.run_tool("mpiimg-detect", here, *out, timeout=PATIENCE)
    assert (tmp_path / "out.fits").exists()


@pytest.mark.parametrize("name, folder", [("coadd", "warps"), ("detect", "patches")])
def test_files_that_do_not_belong_together(in_steps, tmp_path, name, folder):
    here, out = copied(in_steps, folder, tmp_path), ("--out", tmp_path / "out.fits")
    tract = here / "tract.toml"
    text = tract.read_text()
    tract.write_text(re.sub(r"pixel_scale = [\d.]+", "pixel_scale = 0.4", text))
    assert "mixed pixels: it was made for tract" in refused(name, here, *out)
    tract.write_text("patch =")
    assert str(tract) in refused(name, here, *out)
    tract.unlink()
    assert "no tract.toml" in refused(name, here, *out)
    tract.write_text(text)
    path = sorted(here.glob("*patch-*.fits"))[1]
    twin = path.with_name("a-patch-9-9_warp.fits" if folder == "warps" else "a-patch-9-9.fits")
    shutil.copy(path, twin)
    assert f"duplicate: holds the same as {twin}" in refused(name, here, *out)
    twin.unlink()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    assert f"{path}: truncated" in refused(name, here, *out)
    path.write_bytes(whole)
    fits.delval(path, "PATCHX")
    assert "does not say where its pixels lie" in refused(name, here, *out)


def test_exposures_without_zero_points_are_not_warped(night, in_steps, tmp_path):
    said = refused("warp", *night.exposures, "--out", tmp_path / "out")
    assert "has no zero point (MAGZERO); run mpiimg-calibrate, or give --zero-point" in said


def test_no_result_replaces_an_input(in_steps):
    calibrated = sorted((in_steps / "calibrated").glob("*.fits"))
    patch = sorted((in_steps / "patches").glob("*patch-*.fits"))[0]
    for words in (
        ("calibrate", *calibrated, "--out", in_steps / "calibrated"),
        ("detect", in_steps / "patches", "--out", patch),
    ):
        before = (calibrated[0].read_bytes(), patch.read_bytes())
        ended = tool(*words, "--force", check=False)
        assert ended.returncode == Exit.BAD_INPUT and ended.stderr.count("\n") == 1
        assert "is an input, which the result would replace" in ended.stderr
        assert (calibrated[0].read_bytes(), patch.read_bytes()) == before
    assert "a catalogue ends in" in refused(
        "detect", in_steps / "patches", "--out", patch.with_suffix(".txt")
    )


def corrupted(path):
    """Change one pixel: the file's sums tell."""
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name, folder, keyword", [("coadd", "warps", "TRACTX"), ("detect", "patches", "MAGZERO")]
)
def test_a_card_that_is_not_as_the_tool_before_wrote_it(in_steps, tmp_path, name, folder, keyword):
    """Where the pixels of a warp lie, and what a count is worth, no plane's sum covers."""
    here, out = copied(in_steps, folder, tmp_path), ("--out", tmp_path / "out.fits")
    path = sorted(here.glob("*patch-*.fits"))[1]
    data = bytearray(path.read_bytes())
    data[data.index(keyword.ljust(8).encode() + b"=") + 29] ^= 1
    path.write_bytes(data)
    assert f"{path}: its primary header fails the CHECKSUM" in refused(name, here, *out)


def test_a_calibrated_exposure_whose_zero_point_is_another_is_left_out(in_steps, tmp_path):
    here = copied(in_steps, "calibrated", tmp_path)
    paths = sorted(here.glob("*.fits"))
    data = bytearray(paths[1].read_bytes())
    data[data.index(b"MAGZERO =") + 15] ^= 1
    paths[1].write_bytes(data)
    ended = tool("warp", *paths, "--out", tmp_path / "warps", check=False)
    assert ended.returncode == Exit.PARTIAL
    assert f"left out: {paths[1]}: its primary header fails the CHECKSUM" in ended.stderr


def test_an_exposure_that_cannot_be_read_is_left_out_of_the_warps(in_steps, at_once, tmp_path):
    here = copied(in_steps, "calibrated", tmp_path)
    paths = sorted(here.glob("*.fits"))
    corrupted(paths[1])
    words = (*paths[:3], "--tract", at_once / "tract.toml", "--out", tmp_path / "warps", "--force")
    # An earlier run could read it.
    stale = next(in_steps.glob(f"warps/{paths[1].stem}_*"))
    (tmp_path / "warps").mkdir()
    shutil.copy(stale, tmp_path / "warps")
    ended = tool("warp", *words, ranks=2, check=False)
    assert ended.returncode == Exit.PARTIAL
    assert f"left out: {paths[1]}" in ended.stderr and "fails its" in ended.stderr
    made = {path.name for path in (tmp_path / "warps").glob("*.fits")}
    wanted = {
        path.name
        for path in (in_steps / "warps").glob("*.fits")
        if path.name.startswith((f"{paths[0].stem}_", f"{paths[2].stem}_"))
    }
    assert made == wanted and len(made) > 4
    for name in made:
        assert (tmp_path / "warps" / name).read_bytes() == (in_steps / "warps" / name).read_bytes()
    ended = tool("warp", *words, "--strict", check=False)
    assert ended.returncode == Exit.BAD_INPUT and "fails its" in ended.stderr


def test_a_corrupt_warp_is_left_out_as_if_it_were_not_there(in_steps, tmp_path):
    here = copied(in_steps, "warps", tmp_path)
    path = sorted(here.glob("*_warp.fits"))[2]
    corrupted(path)
    done = tool("coadd", here, "--out", tmp_path / "patches", check=False)
    assert done.returncode == Exit.PARTIAL
    assert f"left out: {path}" in done.stderr and "fails its" in done.stderr
    (reason,) = record(tmp_path / "patches", "run-coadd.json")["left_out"].values()
    assert "fails its" in reason
    path.unlink()
    tool("coadd", here, "--out", tmp_path / "without")
    patches = sorted((tmp_path / "without").glob("*patch-*.fits"))
    assert patches
    for patch in patches:
        assert (tmp_path / "patches" / patch.name).read_bytes() == patch.read_bytes()
