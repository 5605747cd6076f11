"""How benchmarks/sky_truth.py runs the tools and their peer, and compares what they find with the truth."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

BIN = Path(__file__).resolve().parent.parent / "bin"

#: Arcseconds within which a source is the object of the truth.
NEAR = 0.7

#: source-extractor's mesh in pixels: what --detection-mesh is by default at this pixel scale.
PEER_MESH = 64


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def table(heads: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Print a Markdown table."""
    say("", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads))
    for row in rows:
        say("| " + " | ".join(map(str, row)) + " |")
    say("")


def tool(name: str, *words) -> str:
    """Run one of the tools; return what it says, or raise RuntimeError with that."""
    command = [sys.executable, BIN / name, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr.strip()[-2000:])
    return done.stderr


def astro(exposures: Sequence[Path], out: Path, *options) -> tuple[Table, fits.HDUList]:
    """Run mpiimg-astro; return the catalogue and the one patch, of the band that is first."""
    tool("mpiimg-astro", *exposures, "--out", out, "--patch", 4000, *options)
    patch = fits.open(sorted(out.glob("*patch-*.fits"))[0])
    return Table.read(out / "catalogue.fits", hdu=1), patch


def peer(folder: Path, patch: fits.HDUList) -> Table | None:
    """Run source-extractor on a patch; return its ra, dec, mag_auto and error; None where it is not there."""
    program = shutil.which("source-extractor") or shutil.which("sex")
    if program is None:
        return None
    folder.mkdir()
    variance = patch["VARIANCE"].data
    good = np.isfinite(variance) & (variance > 0)
    noise = np.where(good, np.sqrt(np.where(good, variance, 1)), 1e30)
    image = np.where(good, np.nan_to_num(patch["IMAGE"].data), 0)
    cards = WCS(patch["IMAGE"].header).to_header()
    fits.PrimaryHDU(image.astype("f4"), cards).writeto(folder / "image.fits")
    fits.PrimaryHDU(noise.astype("f4")).writeto(folder / "rms.fits")
    (folder / "columns").write_text("ALPHA_J2000\nDELTA_J2000\nMAG_AUTO\nMAGERR_AUTO\nFLAGS\n")
    home = Path("/usr/share/source-extractor")
    options = {
        "CATALOG_NAME": folder / "out.fits", "CATALOG_TYPE": "FITS_1.0",
        "PARAMETERS_NAME": folder / "columns",
        "FILTER_NAME": home / "default.conv", "STARNNW_NAME": home / "default.nnw",
        "WEIGHT_TYPE": "MAP_RMS", "WEIGHT_IMAGE": folder / "rms.fits", "WEIGHT_THRESH": 1e20,
        "DETECT_THRESH": 1.5, "ANALYSIS_THRESH": 1.5, "DETECT_MINAREA": 5, "BACK_SIZE": PEER_MESH,
        "MAG_ZEROPOINT": zero_point(patch), "VERBOSE_TYPE": "QUIET",
    }  # fmt: skip
    words = [str(word) for name, value in options.items() for word in (f"-{name}", value)]
    subprocess.run([program, "image.fits", "-c", str(home / "default.sex"), *words], cwd=folder, check=True)
    found = Table.read(folder / "out.fits")
    found.rename_columns(
        ["ALPHA_J2000", "DELTA_J2000", "MAG_AUTO", "MAGERR_AUTO"], ["ra", "dec", "mag_auto", "mag_auto_err"]
    )
    return found


def zero_point(patch: fits.HDUList) -> float:
    return float(patch["IMAGE"].header.get("MAGZERO", patch[0].header.get("MAGZERO", 27.0)))


def near(found: Table, truth: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each true object the nearest source and whether it is near; of each source whether one is."""
    if not len(found):
        return np.zeros(len(truth), int), np.zeros(len(truth), bool), np.zeros(0, bool)
    ours, true = (SkyCoord(one["ra"], one["dec"], unit="deg") for one in (found, truth))
    which, distance, _ = true.match_to_catalog_sky(ours)
    back, _, _ = ours.match_to_catalog_sky(true)
    matched = (distance.arcsec < NEAR) & (back[which] == np.arange(len(truth)))
    _, distance, _ = ours.match_to_catalog_sky(true)
    return which, matched, distance.arcsec < 1.5


def spread(values: np.ndarray) -> float:
    """Return the standard deviation that the middle half of values tells of; NaN of fewer than five."""
    values = values[np.isfinite(values)]
    return float(1.4826 * np.median(np.abs(values - np.median(values)))) if len(values) > 4 else np.nan
