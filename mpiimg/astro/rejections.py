"""The table of what a coadd leaves out: where, of which exposure, how bright, and of what shape."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.seeing import tract_fwhm
from mpiimg.astro.sky.wcs import to_sky
from mpiimg.astro.survey import Survey, lost_footprints, unit_names
from mpiimg.engine.boxes import box_size, box_within
from mpiimg.engine.names import shown
from mpiimg.engine.needs import At, Part
from mpiimg.engine.stage import Sink

#: Name of the table.
FILE = "rejected.ecsv"

#: Columns: name, type, unit, meaning.
COLUMNS = (
    ("exposure", "str", None, "name of the exposure"),
    ("visit", "str", None, "its visit"),
    ("sensor", "str", None, "its sensor"),
    ("band", "str", None, "filter"),
    ("patch", "str", None, "x-y index of the patch in the tract"),
    ("ra", "float64", "deg", "right ascension of the centre, ICRS"),
    ("dec", "float64", "deg", "declination of the centre, ICRS"),
    ("x", "float64", "pix", "column of the centre in the tract, 0 at the centre of the first pixel"),
    ("y", "float64", "pix", "row of the centre in the tract, 0 at the centre of the first pixel"),
    ("flux", "float64", "ct", f"of the exposure over the coadd, at zero point {ZERO_POINT:g}"),
    ("shape", "str", None, "trail, point or other"),
    ("pixels", "int64", None, "pixels that are left out of the exposure"),
)

#: In FWHM: what is no longer than this is a point, and what is longer than that, and so many times as long as
#: it is wide, a trail.
POINT, TRAIL, SLENDER = 4.0, 8.0, 3.0

#: FWHM where it is not known, in pixels.
USUAL_FWHM = 4.0

#: Bytes of a row, about; and one artifact in so many pixels of a warp is what plans reckon with at most.
ROW_BYTES, PIXELS_PER_ROW = 200, 2000


def describe(artifacts: np.ndarray, image: np.ndarray, coadd: np.ndarray, fwhm: float) -> list[tuple]:
    """Measure the artifacts of an exposure.

    Parameters
    ----------
    artifacts : (h, w) uint8
        Not 0 where it is left out; what hangs together is one.
    image, coadd : (h, w) float32
        The exposure, and the coadd without it there.
    fwhm : float
        Of its stars, in pixels.

    Returns
    -------
    list of (y, x, flux, shape, pixels)
        In the order of their first pixels.
    """
    from mpiimg.astro.kernels.rejections import groups

    runs, labels, count = groups(artifacts)
    if not count:
        return []
    lengths = runs[:, 2] - runs[:, 1]
    label, y = np.repeat(labels, lengths), np.repeat(runs[:, 0], lengths)
    first = np.cumsum(lengths) - lengths
    x = np.arange(len(y)) - np.repeat(first - runs[:, 1], lengths)
    excess = image[y, x].astype(float) - coadd[y, x]
    excess[~np.isfinite(excess)] = 0

    def total(values):
        return np.bincount(label, values, count)

    pixels = total(np.ones(len(y)))
    middle_y, middle_x = total(y) / pixels, total(x) / pixels
    dy, dx = y - middle_y[label], x - middle_x[label]
    yy, xx, xy = total(dy * dy) / pixels, total(dx * dx) / pixels, total(dx * dy) / pixels
    spread = np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    # A bar of even brightness is as long as the root of 12 times its variance.
    length = np.sqrt(12 * ((xx + yy) / 2 + spread) + 1)
    width = np.sqrt(12 * np.maximum((xx + yy) / 2 - spread, 0) + 1)
    shape = np.where(
        length <= POINT * fwhm,
        "point",
        np.where((length > TRAIL * fwhm) & (length > SLENDER * width), "trail", "other"),
    )
    columns = middle_y.tolist(), middle_x.tolist(), total(excess).tolist(), shape.tolist()
    return list(zip(*columns, pixels.astype(int).tolist(), strict=True))


def head() -> bytes:
    """Return what the table begins with."""
    from astropy.table import Column, Table

    columns = [Column(name=n, dtype=t, unit=u, description=d) for n, t, u, d in COLUMNS]
    out = io.StringIO()
    Table(columns).write(out, format="ascii.ecsv")
    return out.getvalue().encode()


def _quoted(name: str) -> str:
    text = shown(name).replace('"', '""')
    return f'"{text}"'


def write_rejected(state: Survey, folder: Path) -> Sink | None:
    """Declare the table of artifacts; None where a coadd looked for none."""
    if state.artifacts is None:
        return None
    layout, tract, lost = state.layout, state.tract, lost_footprints(state)
    names, widths = unit_names(state.exposures), tract_fwhm(state)

    def on_patch(chunk):
        footprint = layout.footprints[chunk.number]
        outer = layout.patches[footprint.patch].outer
        return ((footprint.patch, footprint.patch + 1), *box_within(footprint.box, outer))

    def work(chunk, artifacts, image, coadd):
        footprint = layout.footprints[chunk.number]
        patch, number = layout.patches[footprint.patch], footprint.exposure
        if chunk.number in lost or footprint.patch in state.lost_patches:
            return b""
        fwhm = widths[number] if np.isfinite(widths[number]) else USUAL_FWHM
        top, left = (first for first, _ in footprint.box)
        rows = [
            (top + y, left + x, *more)
            for y, x, *more in describe(artifacts[0], image[0], coadd[0], fwhm)
            if all(
                a - 0.5 <= at < b - 0.5 for at, (a, b) in zip((top + y, left + x), patch.inner, strict=True)
            )
        ]
        if not rows:
            return b""
        ra, dec = to_sky(tract.wcs, np.array([row[1] for row in rows]), np.array([row[0] for row in rows]))
        ref = state.exposures[number]
        about = " ".join(map(_quoted, (names[number], ref.visit, ref.sensor, patch.band)))
        place = f"{patch.index[0]}-{patch.index[1]}"
        lines = [
            f"{about} {place} {a:.6f} {d:.6f} {x:.2f} {y:.2f} {flux:.6g} {shape} {pixels}\n"
            for (y, x, flux, shape, pixels), a, d in zip(rows, ra.tolist(), dec.tolist(), strict=True)
        ]
        return "".join(lines).encode()

    sizes = [box_size(footprint.box) for footprint in layout.footprints]
    most = max(sizes, default=0)
    return Sink(
        "write-rejected",
        layout.footprint_grid,
        reads=(Part(state.artifacts), Part(state.warps.image), At(state.patches.image, on_patch)),
        work=work,
        file=str(folder / FILE),
        head=head,
        chunk_bytes=ROW_BYTES * (1 + most // PIXELS_PER_ROW),
        scratch=4 * most,
        weights=tuple(sizes),
        parameters={"lost": sorted(lost), "fwhm": list(widths)},
    )
