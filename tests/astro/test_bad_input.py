"""Bad exposures: one among many is named and left out, exit 3; where none is left, one line, exit 2."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from astropy.io import fits
from support import warm
from support.astro_data import TRACT, Night, astro, exposure_table, observe
from support.spoilt import Cases, snapshot
from support.subjects import PATIENCE, digests, record

from mpiimg.simulate.astro import SimulatedSurvey

pytestmark = pytest.mark.tool

#: Exposures large enough to be calibrated, in a field of its own.
SMALL = SimulatedSurvey(4, 1, (300, 340), seed=2, density=40.0, magnitudes=(16.0, 21.0))


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Night:
    return observe(tmp_path_factory.mktemp("small") / "in", SMALL)


class Case:
    """Sound exposures in a folder of their own, to spoil, and the command line to run on them."""

    def __init__(self, night, folder):
        self.folder, self.out = folder / "in", folder / "out"
        self.folder.mkdir()
        self.exposures = [shutil.copyfile(path, self.folder / path.name) for path in night.exposures[:2]]
        self.options = [*TRACT]

    @property
    def first(self):
        return self.exposures[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50_000])


def edit(path, change, checksum=False):
    """Rewrite an exposure after `change(hdus)`."""
    with fits.open(path) as hdus:
        hdus = fits.HDUList([hdu.copy() for hdu in hdus])
    change(hdus)
    hdus.writeto(path, overwrite=True, checksum=checksum)


def forget_coordinates(hdus):
    for hdu in hdus[1:]:
        for card in ("CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2"):
            del hdu.header[card]


def flatten(hdus):
    for hdu in hdus[1:]:
        hdu.header.update({"CD1_1": 1e-4, "CD1_2": 1e-4, "CD2_1": 1e-4, "CD2_2": 1e-4})


def forget_the_sky(hdus):
    for hdu in hdus[1:]:
        hdu.header.update({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"})


def cut_the_mask(hdus):
    hdus["MASK"].data = hdus["MASK"].data[:-10]


def keep_the_image(hdus):
    """Leave a single image, whose variance takes gain and read noise."""
    del hdus["MASK"], hdus["VARIANCE"]
    for card in ("GAIN", "RDNOISE"):
        hdus["IMAGE"].header.pop(card, None)


def set_plane(name):
    def change(hdus):
        hdus["MASK"].data[:] = 1 << hdus["MASK"].header[f"MP_{name}"]

    return change


def fill_with_nan(hdus):
    hdus["IMAGE"].data[:] = np.nan


def move_away(hdus):
    for hdu in hdus[1:]:
        hdu.header["CRVAL1"] += 5


def spoil_checksum(path):
    edit(path, lambda hdus: None, checksum=True)
    with fits.open(path) as hdus:
        place = hdus["IMAGE"].fileinfo()["datLoc"]
    data = bytearray(path.read_bytes())
    data[place + 1000] ^= 1
    path.write_bytes(data)


#: How an exposure may be bad, and words of the reason; some only its pixels tell.
BAD = {
    "cut-short": (truncate, ("truncated", "copy it again")),
    "nowhere": (lambda path: edit(path, forget_coordinates), ("has no WCS",)),
    "flat": (lambda path: edit(path, flatten), ("WCS", "singular")),
    "linear": (lambda path: edit(path, forget_the_sky), ("WCS is not celestial",)),
    "odd": (lambda path: edit(path, cut_the_mask), ("mixed shapes", "its mask")),
    "alone": (lambda path: edit(path, keep_the_image), ("no gain", "--gain")),
    "masked": (lambda path: edit(path, set_plane("BAD")), ("no pixel that can be used",)),
    "bright": (lambda path: edit(path, set_plane("SAT")), ("no pixel that can be used",)),
    "empty": (lambda path: edit(path, fill_with_nan), ("no pixel that can be used",)),
    "flipped": (spoil_checksum, ("fails its DATASUM",)),
    "twin": (lambda path: None, ("duplicate exposure", "sim-0000-000")),
    "far-off": (lambda path: edit(path, move_away), ("does not meet the tract",)),
    "text": (lambda path: path.write_text("this is not an image\n" * 200), ("not a FITS file",)),
}


@pytest.fixture(scope="module")
def bad_night(night, tmp_path_factory):
    """One run of three ranks on a night with every kind of bad exposure, and one on the sound ones."""
    folder = tmp_path_factory.mktemp("bad")
    sound = astro(night.exposures, folder / "sound", *TRACT)
    others = observe(folder / "others", SimulatedSurvey(len(BAD), 1, SMALL.shape, seed=9))
    paths = {}
    for (name, (spoil, _)), path in zip(BAD.items(), others.exposures, strict=True):
        paths[name] = folder / f"{name}.fits"
        shutil.copyfile(night.exposures[0] if name == "twin" else path, paths[name])
        edit(paths[name], lambda hdus, name=name: rename(hdus, name))
        spoil(paths[name])
    done = warm.run_tool(
        "mpiimg-astro",
        *night.exposures,
        *paths.values(),
        *("--out", folder / "out", "--tract", sound / "tract.toml"),
        ranks=3,
        check=False,
        timeout=PATIENCE,
    )
    # What serves a run after repairs.
    shutil.rmtree(folder / "out" / "work")
    return done, folder / "out", sound, paths


def rename(hdus, name):
    """Give an exposure a visit of its own, unless it is to be a twin."""
    if name != "twin":
        hdus["IMAGE"].header["EXPID"] = 1000 + list(BAD).index(name)


def test_bad_exposures_do_not_sink_the_night(bad_night):
    done, out, _, _ = bad_night
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted([*digests(out), "run.json", "events"])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_exposure_is_named_with_its_reason(bad_night, name):
    """On stderr, in run.json, and in the table of exposures."""
    done, out, _, paths = bad_night
    warnings = [line for line in done.stderr.splitlines() if line.startswith("mpiimg: warning: left out")]
    told = [line for line in warnings if paths[name].name in line]
    assert len(told) == 1, done.stderr
    noted = [text for text in record(out)["warnings"] if paths[name].name in text]
    table = exposure_table(out)
    rows = [row for row in table if name in row["name"]]
    assert len(noted) == len(rows) == 1
    for word in BAD[name][1]:
        assert word in told[0]
        assert word in noted[0]
        assert word in rows[0]["status"]
    assert np.isnan(rows[0]["zero_point"])


def test_the_sound_exposures_give_what_they_give_alone(bad_night):
    _, out, sound, _ = bad_night
    here, expected = digests(out), digests(sound)
    for names in (here, expected):
        # These list the others, too.
        for name in ("exposures.ecsv", "calibration.tsv", "calibration.json"):
            names.pop(name)
    assert here == expected
    used, alone = exposure_table(out), exposure_table(sound)
    used = used[used["status"] == "used"]
    assert len(used) == len(alone) == SMALL.visits
    for column in alone.colnames:
        np.testing.assert_array_equal(used[column], alone[column])


# --- refused ------------------------------------------------------------------------------------------------

CASES = Cases()
case = CASES.case


@case("sim-0000-000.fits", "truncated")
def strict_and_truncated(it):
    truncate(it.first)
    it.options.append("--strict")


@case("sim-0000-000", "no pixel that can be used")
def strict_and_all_nan(it):
    edit(it.first, fill_with_nan)
    it.options.append("--strict")


@case("duplicate exposure", "sim-0000-000.fits")
def strict_and_twice_the_same(it):
    it.exposures.append(it.first)
    it.options.append("--strict")


@case("no-such.fits: No such file, and so with 1 more", "@list.txt")
def mistyped_among_good_ones(it):
    """A mistake of whoever gave the name, which no night should go on without being told of."""
    it.exposures += [it.folder / "no-such.fits", it.folder / "nor-such.fits"]


@case("no-such.fits: No such file;")
def mistyped_in_a_list(it):
    (it.folder / "list.txt").write_text("\n".join(map(str, [*it.exposures, it.folder / "no-such.fits"])))
    it.exposures = [f"@{it.folder / 'list.txt'}"]


@case("in: is a folder", "@list.txt")
def a_folder(it):
    it.exposures.append(it.folder)


@case("sim-0000-000.fits", "No such file")
def none_that_can_be_read(it):
    for path in it.exposures:
        path.unlink()


@case("sim-0000-000", "no pixel that can be used")
def none_with_a_pixel(it):
    for path in it.exposures:
        edit(path, fill_with_nan)


@case("no exposures")
def an_empty_list(it):
    (it.folder / "list.txt").write_text("# nothing\n")
    it.exposures = [f"@{it.folder / 'list.txt'}"]


@case("list.txt", "No such file")
def a_missing_list(it):
    it.exposures = [f"@{it.folder / 'list.txt'}"]


@case("no exposure meets the tract", "--tract")
def far_from_the_tract(it):
    (it.folder / "t.toml").write_text(
        '[tract]\nprojection = "TAN"\ncenter = [10.0, -40.0]\npixel_scale = 0.333\n'
        "shape = [1, 1]\npatch = 400\nborder = 50\n"
    )
    it.options = ["--tract", it.folder / "t.toml"]


@case("t.toml", "not TOML")
def a_broken_tract(it):
    (it.folder / "t.toml").write_text("[tract\n")
    it.options = ["--tract", it.folder / "t.toml"]


@case("--zero-point")
def no_zero_point_and_no_overlap(it):
    for step, path in enumerate(it.exposures):

        def change(hdus, step=step):
            del hdus["IMAGE"].header["MAGZERO"]
            for hdu in hdus[1:]:
                hdu.header["CRVAL2"] += 0.04 * step

        edit(path, change)


@case("catalogue.txt", ".parquet, .fits, .ecsv")
def a_catalogue_of_another_kind(it):
    it.options += ["--catalogue", "catalogue.txt"]


@case("sub/catalogue.fits", "not a path")
def a_catalogue_elsewhere(it):
    it.options += ["--catalogue", "sub/catalogue.fits"]


@case("rejected.ecsv", "another name")
def catalogue_named_as_that_of_artifacts(it):
    it.options += ["--catalogue", "rejected.ecsv"]


@case("exposures.ecsv", "another name")
def a_catalogue_in_the_place_of_a_result(it):
    it.options += ["--catalogue", "exposures.ecsv"]


@case("--center ten,2", "RA,DEC")
def a_centre_of_words(it):
    it.options += ["--center", "ten,2"]


@case("150,95", "no place on the sky")
def a_centre_beyond_the_pole(it):
    it.options += ["--center", "150,95"]


@case("degrees from RA 20", "--center")
def a_centre_far_away(it):
    it.options += ["--center", "20,2.2"]


@case("ref.csv", "mag")
def a_reference_without_magnitudes(it):
    (it.folder / "ref.csv").write_text("ra,dec\n150,2\n")
    for path in it.exposures:
        edit(path, lambda hdus: hdus["IMAGE"].header.remove("MAGZERO"))
    it.options += ["--reference", it.folder / "ref.csv"]


@case("--zero-point and --reference", "one of them")
def two_origins_of_zero_points(it):
    it.options += ["--reference", "ref.csv", "--zero-point", "30"]


@case("catalogue.fits exists", "--force")
def results_exist(it):
    it.out.mkdir()
    (it.out / "catalogue.fits").write_text("precious")


@pytest.mark.parametrize("name", CASES)
def test_refused(night, tmp_path, name):
    spoil, words = CASES[name]
    it = Case(night, tmp_path)
    spoil(it)
    before = snapshot(tmp_path)
    done = warm.run_tool(
        "mpiimg-astro", *it.exposures, "--out", it.out, *it.options, check=False, timeout=PATIENCE
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    told = [line for line in done.stderr.splitlines() if not line.startswith("mpiimg: warning: left out")]
    assert len(told) == 1, done.stderr
    assert told[0].startswith("mpiimg: error: ")
    for word in words:
        assert word in told[0]
    assert snapshot(tmp_path) == before


def test_a_patch_that_no_exposure_is_left_for(night, tmp_path):
    """It is written, so that the tract is whole; it says that it holds nothing, and so does the run."""
    near, far = (shutil.copyfile(path, tmp_path / path.name) for path in night.exposures[:2])

    def spoil(hdus):
        fill_with_nan(hdus)
        for hdu in hdus[1:]:
            hdu.header["CRVAL2"] += 0.06

    edit(far, spoil)
    out = tmp_path / "out"
    done = warm.run_tool("mpiimg-astro", near, far, "--out", out, *TRACT, check=False, timeout=PATIENCE)
    assert done.returncode == 3, done.stderr
    empty = [path for path in sorted(out.glob("patch-*.fits")) if not fits.getdata(path, "NIMAGE").any()]
    assert 0 < len(empty) < len(list(out.glob("patch-*.fits")))
    for path in empty:
        with fits.open(path) as hdus:
            assert hdus[0].header["NCOMBINE"] == 0 and hdus[0].header["EXPTIME"] == 0
            assert np.isnan(hdus["IMAGE"].data).all()
            assert (hdus["MASK"].data == 1 << hdus["MASK"].header["MP_NO_DATA"]).all()
        assert f"{path.stem} in r: no exposure is left that reaches it: it holds no data" in done.stderr
    assert len(fits.getdata(out / "catalogue.fits")) > 0


def test_too_few_exposures_to_compare(bad_night):
    """The run says at what share of the pixels nothing can be rejected."""
    done, out, _, _ = bad_night
    told = [text for text in record(out)["warnings"] if "exposures overlap" in text]
    assert len(told) == 1
    assert re.match(
        r"at [\d.]+ % of the pixels one or two exposures overlap: artifacts cannot be told", told[0]
    )
    assert told[0] in done.stderr
