"""Co-addition: the pieces of a band of a patch, clipped and averaged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.writing import history as fits_history
from mpiimg.astro.sky.layout import Layout
from mpiimg.engine.boxes import box_size
from mpiimg.engine.stage import Need, Parameter, Stage, reduction

PARAMETERS = (
    Parameter("statistic", "clip", "how inputs are combined", str, choices=("clip", "mean")),
    Parameter("sigma", 3.0, "clip what lies farther from the mean", float, "standard deviations"),
    Parameter("passes", 2, "how often inputs are clipped", int),
    Parameter(
        "weights",
        "exposure",
        "one weight an exposure, or inverse variance by pixel (which loses light of bright stars)",
        str,
        choices=("exposure", "pixel"),
    ),
    Parameter("reject_cr", False, "leave out pixels repaired from cosmic rays", bool),
)

#: An input with one of these carries no light of the sky.
EXCLUDED = ("NO_DATA", "BAD", "SAT", "EDGE")


def history(p: Mapping) -> tuple[str, ...]:
    """Return the lines of HISTORY of a coadd."""
    excluded = ", ".join([*EXCLUDED, *["CR"] * p["reject_cr"]])
    clipped = f" beyond {p['sigma']:g} sigma, {p['passes']} passes" if p["statistic"] == "clip" else ""
    return fits_history(
        "coadd", f"{p['statistic']}{clipped}; weights by {p['weights']}; without {excluded} pixels"
    )


def weigh(layout: Layout) -> Stage:
    """Weigh an exposure on a patch by the inverse of its median variance there, which is that of its sky."""

    def partial(chunk, blocks):
        variance = blocks[0][np.isfinite(blocks[0]) & (blocks[0] > 0)]
        return 1 / np.median(variance) if variance.size else 0.0

    def finish(rows):
        used = {layout.footprints[number].patch for number in np.flatnonzero(rows)}
        empty = [patch for number, patch in enumerate(layout.patches) if number not in used]
        return {
            "weights": tuple(rows.tolist()),
            "warnings": [
                f"{patch.name} in {patch.filter}: no exposure is left that reaches it: it holds no data"
                for patch in empty
            ],
        }

    need = Need(layout.piece_planes()[1], place=layout.footprint_runs)
    return reduction(
        "weigh",
        layout.footprint_grid,
        (need,),
        partial,
        ((), "float64"),
        finish,
        cost=("weigh", float(layout.table.offsets[-1])),
    )


def coadd(
    layout: Layout,
    weights: tuple[float, ...],
    statistic: str,
    sigma: float,
    passes: int,
    by_pixel: bool,
    reject_cr: bool,
) -> Stage:
    """Declare the coadd of every band.

    Parameters
    ----------
    weights : of each footprint
    by_pixel : weigh by inverse variance instead
    """
    members: dict[int, list[int]] = {}
    for piece, (_, band, _) in enumerate(layout.pieces):
        members.setdefault(band, []).append(piece)

    def work(chunk, images, variances, masks):
        from mpiimg.astro.kernels.coadd import Planes
        from mpiimg.astro.kernels.coadd import coadd as combine

        pieces = members.get(chunk.number, [])
        (top, bottom), (left, right) = layout.bands[chunk.number][1]
        if not pieces:
            return no_data((bottom - top) * (right - left))
        stack = stack_pieces(layout, layout.bands[chunk.number][1], pieces, images, variances, masks)
        given = "pixel" if by_pixel else np.array([weights[layout.pieces[piece][0]] for piece in pieces])
        excluded = bits(*EXCLUDED, *["CR"] * reject_cr)
        known = Planes(excluded, bits("NO_DATA"), bits("CLIPPED"), bits("SAT"))
        planes = combine(*stack, given, known, statistic, sigma, passes)
        return tuple(plane.ravel() for plane in planes)

    needs = tuple(
        Need(array, place=lambda chunk: layout.table.of_key(chunk.number)) for array in layout.piece_planes()
    )
    outputs = layout.coadd_planes()
    # Pixels of the stack that a band is made from: each of its pieces takes as much room as the band.
    stacked = [len(members.get(band, ())) * box_size(box) for band, (_, box) in enumerate(layout.bands)]
    return Stage(
        "coadd",
        "regroup",
        layout.band_grid,
        needs,
        outputs,
        work,
        {
            "weights": weights,
            "statistic": statistic,
            "sigma": sigma,
            "passes": passes,
            "by_pixel": by_pixel,
            "reject_cr": reject_cr,
        },
        weights=tuple(stacked[band] + box_size(box) for band, (_, box) in enumerate(layout.bands)),
        scratch=sum(np.dtype(array.dtype).itemsize for array in layout.piece_planes()) * max(stacked),
        place={array.name: layout.band_run for array in outputs},
        cost=("coadd", float(layout.table.offsets[-1])),
    )


def few_inputs(layout: Layout, statistic: str, sigma: float, passes: int) -> Stage | None:
    """Warn of pixels with too few inputs for any of them to be clipped; nothing to do without clipping."""
    if statistic != "clip" or not passes:
        return None
    *_, mask, nimage = layout.coadd_planes()

    def partial(chunk, masks, nimages):
        from mpiimg.astro.kernels.coadd import count_unclippable

        return count_unclippable(nimages[0], masks[0], bits("CLIPPED"), sigma)

    def finish(rows):
        few, covered = rows.sum(axis=0)
        if not few:
            return {}
        most = int(sigma**2 + 1)
        text = f"at {100 * few / covered:.0f} % of the pixels at most {most} exposures overlap: "
        return {"warnings": [f"{text}clipping at {sigma:g} sigma rejects nothing there, however far off"]}

    needs = tuple(Need(array, place=lambda chunk: (layout.band_run(chunk),)) for array in (mask, nimage))
    return reduction(
        "few-inputs", layout.band_grid, needs, partial, ((2,), "int64"), finish, {"sigma": sigma}
    )


def no_data(size: int) -> tuple[np.ndarray, ...]:
    """Return the planes of a band that no exposure reaches."""
    return (
        np.full(size, np.nan, np.float32),
        np.full(size, np.inf, np.float32),
        np.full(size, bits("NO_DATA"), np.int32),
        np.zeros(size, np.int16),
    )


def stack_pieces(layout, box, pieces, images, variances, masks):
    """Lay the pieces of a band on top of each other; what a piece does not reach is NO_DATA.

    Parameters
    ----------
    box : of the band in tract pixels
    pieces : their numbers in the layout
    images, variances, masks : the flat pixels of each

    Returns
    -------
    image, variance, mask : (pieces, rows, columns) float32, float32, int32
    """
    (top, bottom), (left, right) = box
    shape = (len(pieces), bottom - top, right - left)
    image = np.full(shape, np.nan, np.float32)
    variance = np.full(shape, np.inf, np.float32)
    mask = np.full(shape, bits("NO_DATA"), np.int32)
    for k, piece in enumerate(pieces):
        (y0, y1), (x0, x1) = layout.pieces[piece][2]
        part = (k, slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        for plane, blocks in ((image, images), (variance, variances), (mask, masks)):
            plane[part] = blocks[k].reshape(y1 - y0, x1 - x0)
    return image, variance, mask
