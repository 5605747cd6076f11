"""Every FITS file that a tool writes, before fitsverify and astropy's fitscheck."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from support import conformance, warm
from support.subjects import PATIENCE

pytestmark = pytest.mark.conformance

#: Warnings of fitsverify, and why they stand.
EXPLAINED = {
    r".*/(sim|patch|detection)-.*: Keyword #\d+, (FWHM|APCORR) has a null value\.": (
        "the standard has keywords without a value, for what could not be measured"
    ),
    r".*catalogue.*: The OGIP long string keyword convention is used without the recommended LONGSTRN .*": (
        "long strings are part of the standard since FITS 4.0, which has no LONGSTRN"
    ),
}

#: A user's program of primitives: images and a table.
PROGRAM = """
import mpiimg as mi

sky = mi.read({exposure!r} + "[IMAGE]")
bright = sky > sky.mean()
mi.write({{"sky.fits": sky, "sky.fits.gz": sky, "bright.fits": bright.astype("uint16")}}, {out!r})
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a simulated survey, and in others what every tool and a program make of it."""
    root = tmp_path_factory.mktemp("fits")

    def run(tool, *words, ranks=None):
        warm.run_tool(tool, *words, ranks=ranks, timeout=PATIENCE)

    size = ("--visits", 2, "--sensors", 1, "--shape", "220x260", "--seed", 5)
    run("mpiimg-simulate", "astro", *size, "--out", root / "simulated", ranks=2)
    exposures = sorted((root / "simulated").glob("*.fits"))
    planes = ("--weight", "--segmentation", "--background", "--calibrated", "--warps")
    run("mpiimg-astro", *exposures, "--out", root / "astro", *planes, "--patch", 200, ranks=2)
    run("mpiimg-coadd", root / "astro" / "warps", "--out", root / "compressed", "--compress", "--weight")
    detected = root / "detected" / "catalogue.fits"
    run("mpiimg-detect", root / "compressed", "--out", detected, "--segmentation", "--background")
    program = root / "program.py"
    program.write_text(PROGRAM.format(exposure=str(exposures[0]), out=str(root / "program")))
    run("mpiimg-run", program, ranks=2)
    return root


@pytest.fixture(scope="module")
def files(made) -> list[Path]:
    found = sorted(path for path in made.rglob("*.fits*") if path.is_file())
    folders = {path.relative_to(made).parts[0] for path in found}
    assert folders == {"simulated", "astro", "compressed", "detected", "program"}
    return found


def test_fitsverify_finds_no_error(made, files):
    fitsverify = conformance.program("fitsverify", "fitsverify")
    found, name = [], ""
    text = conformance.said_by(fitsverify, *files, codes=range(256))
    for line in re.sub(r"\n {13}", " ", text).splitlines():
        if line.startswith("File: "):
            name = str(Path(line.removeprefix("File: ").strip()).relative_to(made))
        elif line.startswith("*** "):
            found.append(f"{name}: {line.removeprefix('*** ').removeprefix('Warning: ').strip()}")
    assert text.count("**** Verification found ") == len(files)
    assert conformance.unexplained(found, EXPLAINED) == []


def test_fitscheck_finds_every_sum_right(made, files):
    """And no sum missing in what the tools of astro write for each other."""
    fitscheck = Path(sys.executable).parent / "fitscheck"
    own = ("astro", "detected")
    # astropy shows compressed images as what they hold, without the sums of the table that they lie in.
    summed = [one for one in files if one.relative_to(made).parts[0] in own and one.suffix != ".fz"]
    others = [one for one in files if one not in summed]
    conformance.said_by(fitscheck, "--compliance", *summed)
    conformance.said_by(fitscheck, "--compliance", "--ignore-missing", *others)
