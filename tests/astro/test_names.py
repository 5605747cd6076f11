"""Text of headers and names of files: names of results, cards and entries of tables, and no more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from support import warm
from support.astro_data import catalogue, exposure_table, observe, once
from support.subjects import PATIENCE

from mpiimg.astro import catalogue as catalogues
from mpiimg.astro.exposure_files import exposure_names
from mpiimg.astro.fits.writing import card_text
from mpiimg.astro.patch_files import patch_names
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.simulate.astro import SimulatedSurvey

SURVEY = SimulatedSurvey(2, 1, (150, 160), seed=2, density=60.0, magnitudes=(15.0, 19.0))
TRACT = ("--patch", 200, "--border", 20, "--pixel-scale", 0.333)


class Named:
    def __init__(self, name):
        self.name = name


def test_plain_names_of_files_stay_and_no_other_name_leaves_its_folder():
    names = [
        "sim-0001-000",
        "c4d_1_ooi_z_ls9.N1",
        "c4d_1_oow_z",
        "a",
        "../../a",
        "/a",
        "a\nb",
        "-a",
        ".a",
        "\x1b[2J",
        "é",
    ]
    made = exposure_names([*map(Named, names), *map(Named, ["a", "x" * 250, "x" * 249])])
    assert made[:4] == [
        "sim-0001-000.fits",
        "c4d_1_calibrated_z_ls9.N1.fits",
        "c4d_1_calibrated_z.fits",
        "a.fits",
    ]
    assert len(set(made)) == len(made)
    for name in made:
        assert Path(name).name == name and name[0].isalnum() and name.isascii() and name.isprintable()
        assert len(name) < 200


def layout_of(*bands):
    box = ((0, 10), (0, 10))
    return Layout((), tuple(Patch(band, (0, 0), box, box) for band in bands))


def test_names_of_patches_hold_their_band():
    assert patch_names(layout_of("r"), False) == ("patch-0-0.fits",)
    assert patch_names(layout_of("g", "VR", "z"), True)[:2] == ("g-patch-0-0.fits.fz", "VR-patch-0-0.fits.fz")
    odd = patch_names(layout_of("open/g", "open-g", "/etc/x", "..", "r"), False)
    assert len(set(odd)) == 5
    assert all("/" not in name and name[0].isalnum() for name in odd)


def test_catalogues_have_whole_names_of_patches_and_bands():
    """Of a tract of a hundred patches a side, and of bands that differ behind the sixteenth letter."""
    table = catalogues.new(2)
    table["id"] = [(0 << 32) + 1, (1 << 32) + 1]
    bands, patches = ["a-filter-of-eighteen", "a-filter-of-eighty"], ["patch-100-1000", "patch-100-1001"]
    wide = catalogues.with_names(table, patches, bands)
    assert wide["band"].tolist() == [band.encode() for band in bands]
    assert wide["patch"].tolist() == [patch.encode() for patch in patches]
    for ending in ("fits", "ecsv"):
        assert catalogues.encode(Path(f"x.{ending}"), wide, {})
    assert catalogues.with_names(table, ["patch-9-9"] * 2, ["r", "g"]) is table


@pytest.mark.parametrize("text", ["r", "a\nb", "a\x1b[31m", "é", "\udcff", "x" * 300, "it's", "a\\b", ""])
def test_any_text_makes_a_card(text):
    card = fits.Card("OBJECT", card_text(text))
    card.verify("exception")
    assert str(card).isascii() and str(card).isprintable()
    assert text not in ("r", "it's", "a\\b") or card.value == text


@pytest.fixture(scope="module")
def exposures(tmp_path_factory):
    return once(tmp_path_factory, "names", lambda folder: observe(folder, SURVEY)).exposures


def renamed(exposures, folder, names, **cards):
    """Copy exposures under other names, with other cards."""
    folder.mkdir()
    paths = []
    for number, name in enumerate(names):
        path = folder / name
        shutil.copyfile(exposures[number % len(exposures)], path)
        with fits.open(path, mode="update") as hdus:
            hdus[1].header["EXPNUM"] = 50 + number
            for keyword, values in cards.items():
                hdus[1].header[keyword] = values[number % len(values)]
        paths.append(path)
    return paths


def everything(folder):
    return {path for path in folder.rglob("*") if "work" not in path.parts and "events" not in path.parts}


@pytest.mark.tool
def test_a_filter_that_is_a_path_writes_nowhere_else(exposures, tmp_path):
    """Beside another one of which it is part of the name: two bands, two files of each patch."""
    outside = tmp_path / "outside"
    outside.mkdir()
    bands = [f"{outside}/x", "open/g"]
    paths = renamed(exposures, tmp_path / "in", ["a.fits", "b.fits"], FILTER=bands)
    before = everything(tmp_path)
    done = warm.run_tool(
        "mpiimg-astro", *paths, "--out", tmp_path / "out", *TRACT, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert all(tmp_path / "out" in (path, *path.parents) for path in everything(tmp_path) - before)
    patches = list((tmp_path / "out").glob("*patch-*.fits"))
    assert {path.parent for path in patches} == {tmp_path / "out"}
    assert {fits.getheader(path)["FILTER"] for path in patches} == set(bands)
    columns = catalogue(tmp_path / "out").colnames
    assert "open_g_flux_auto" in columns
    assert all(name.isidentifier() and len(name) < 60 for name in columns)


@pytest.mark.tool
def test_names_of_files_of_any_letters(exposures, tmp_path):
    names = ["-a b\x1b[31m.fits", "x" * 240 + ".fits", "é ü.fits", "a b.fits"]
    paths = renamed(exposures, tmp_path / "in", names)
    out = tmp_path / "out"
    # In a list: the command line takes no control characters.
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, paths)))
    words = (
        "mpiimg-astro",
        f"@{listed}",
        "--out",
        out,
        "--calibrated",
        "--warps",
        *TRACT,
        "--catalogue",
        "c.ecsv",
    )
    done = warm.run_tool(*words, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    written = [path for path in everything(out) if path.is_file()]
    assert len(list((out / "calibrated").iterdir())) == 4
    assert all(path.name.isprintable() and path.name[0].isalnum() for path in written)
    for path in written:
        if path.suffix == ".fits":
            with fits.open(path) as hdus:
                hdus.verify("exception")
    assert len(exposure_table(out)) == 4 and Table.read(out / "c.ecsv") is not None
    assert len(json.loads((out / "run.json").read_text())["inputs"]) == 4


@pytest.mark.tool
def test_two_exposures_of_one_name_are_two(exposures, tmp_path):
    """Of which one cannot be used: the record says which, and the other is used."""
    (first,) = renamed(exposures[:1], tmp_path / "one", ["img.fits"])
    (second,) = renamed(exposures[1:], tmp_path / "two", ["img.fits"])
    with fits.open(second, mode="update") as hdus:
        hdus[1].header["EXPNUM"] = 77
        hdus["IMAGE"].data[:] = np.nan
    out = tmp_path / "out"
    done = warm.run_tool("mpiimg-astro", first, second, "--out", out, *TRACT, check=False, timeout=PATIENCE)
    assert done.returncode == 3, done.stderr
    record = json.loads((out / "run.json").read_text())
    (unit,) = record["left_out"]
    assert str(second) in unit
    assert len(record["inputs"]) == 2
    assert sorted(status == "used" for status in exposure_table(out)["status"]) == [False, True]


@pytest.mark.tool
def test_nothing_that_was_read_commands_a_terminal(exposures, tmp_path):
    path = tmp_path / "\x1b[2Jx.fits"
    path.write_text("no FITS")
    both, alone = tmp_path / "both.txt", tmp_path / "alone.txt"
    both.write_text(f"{path}\n{exposures[0]}\n")
    alone.write_text(f"{path}\n")
    for listed, status in ((both, 3), (alone, 2)):
        words = ("mpiimg-astro", f"@{listed}", "--out", tmp_path / listed.stem, *TRACT)
        done = warm.run_tool(*words, check=False, timeout=PATIENCE)
        assert done.returncode == status
        assert r"\x1b[2Jx.fits: is not a FITS file" in done.stderr
        assert all(letter.isprintable() or letter == "\n" for letter in done.stderr)
    assert len(done.stderr.splitlines()) == 1
