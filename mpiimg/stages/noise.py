"""Noise level: PIESNO by slice where there is a noise background, else dipy's estimate by volume.

Both are dipy's functions, each called on one chunk.
"""

from __future__ import annotations

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.io.nifti import Image
from mpiimg.io.store import Array
from mpiimg.partition import ChunkGrid
from mpiimg.stages.image import finite, slice_grid
from mpiimg.stages.stage import Need, Parameter, Stage, reduction

PAPER = "PIESNO: Koay et al. 2009, doi:10.1016/j.jmr.2009.03.005"

PARAMETERS = (
    Parameter(
        "sigma",
        "auto",
        "noise level of the magnitude image: a number, or how to estimate it: piesno (by slice, from the "
        "background), estimate (by volume, from local differences), auto (piesno, or estimate where the "
        "background was zeroed)",
        str,
        "image units",
        metavar="auto|estimate|piesno|NUMBER",
    ),
    Parameter(
        "coils", None, "receiver coils of the noise distribution (piesno: 1; estimate: no correction)", int
    ),
)

#: Share of exact zeros outside the mask above which the background is not noise.
MOST_ZEROS = 0.10

#: Share of the voxels that PIESNO takes for noise that may lie inside the mask.
MOST_INSIDE = 0.10

#: Coil numbers that dipy has a correction for.
ESTIMATE_COILS = (0, 1, 4, 6, 8, 12, 16, 20, 24, 32, 64)


def parse(text: str) -> str | float:
    """Return the method, or the number that the user gave.

    Raises
    ------
    BadInput : neither
    """
    if text in ("auto", "piesno", "estimate"):
        return text
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < np.inf:
        raise BadInput(f"--sigma {text}: give auto, piesno, estimate or a positive number")
    return number


def check_coils(method: str | float, coils: int | None) -> None:
    """Refuse a number of coils that dipy knows no correction for.

    Raises
    ------
    BadInput
    """
    if coils is None or not isinstance(method, str):
        return
    if method != "piesno" and coils not in ESTIMATE_COILS:
        raise BadInput(f"--coils {coils}: choose one of {', '.join(map(str, ESTIMATE_COILS))}")
    if method != "estimate" and coils < 1:
        raise BadInput(f"--coils {coils}: PIESNO needs at least one; --sigma estimate works without")


def background(image: Image, dwi: Array, mask: Array, method: str) -> Stage:
    """Count exact zeros outside the mask: released data often have their background zeroed."""

    def partial(chunk, block, mask_block):
        values = finite(image.scaled(block[0]))[mask_block == 0]
        return values.size, np.count_nonzero(values == 0)

    def finish(rows):
        outside, zeros = rows.sum(axis=0)
        share = zeros / outside if outside else 1.0
        if share <= MOST_ZEROS:
            return {"noise_method": "piesno"}
        said = f"{share:.0%} of the voxels outside the mask are exact zeros: no noise background for PIESNO"
        return _without_background(image, method, said)

    grid = slice_grid(dwi.shape, np.dtype(dwi.dtype).itemsize)
    return reduction(
        "background", grid, (Need(dwi), Need(mask)), partial, ((2,), "int64"), finish, {"method": method}
    )


def piesno(image: Image, dwi: Array, mask: Array, coils: int, method: str) -> Stage:
    """Estimate the noise of each slice from the voxels whose signal over all volumes is noise alone.

    What PIESNO takes for noise must lie outside the mask: in an image without
    air around the head it finds the flattest tissue instead, and is not used.
    """

    def partial(chunk, block, mask_block):
        from dipy.denoise.noise_estimate import piesno

        values = finite(image.scaled(block[:, 0]))
        sigma, noise = piesno(np.moveaxis(values, 0, -1), coils, return_mask=True)
        return sigma, np.count_nonzero(noise), np.count_nonzero(noise & (mask_block[0] != 0))

    def finish(rows):
        sigma, voxels, inside = rows[:, 0], rows[:, 1].sum(), rows[:, 2].sum()
        good = np.isfinite(sigma) & (sigma > 0)
        if not good.any() or inside > MOST_INSIDE * voxels:
            return _without_background(image, method, "PIESNO finds no noise outside the brain mask")
        warnings = []
        if not good.all():
            warnings = [
                f"{image.path}: PIESNO finds no noise in {np.count_nonzero(~good)} slices; "
                "they take the median of the others"
            ]
        return {"sigma": np.where(good, sigma, np.median(sigma[good]))[None, :], "warnings": warnings}

    grid = ChunkGrid("z", (image.shape[-3],), (1,))
    parameters = {"coils": coils, "method": method}
    reads = (Need(dwi), Need(mask))
    cost = ("piesno", float(np.prod(dwi.shape)))
    return reduction("piesno", grid, reads, partial, ((3,), "float64"), finish, parameters, cost=cost)


def _without_background(image: Image, method: str, said: str) -> dict:
    """Go over to the estimate by volume, with a warning; refuse where the user asked for PIESNO."""
    if method == "piesno":
        raise BadInput(f"{image.path}: {said}; use --sigma estimate or --sigma NUMBER")
    return {
        "noise_method": "estimate",
        "warnings": [
            f"{image.path}: {said}; the noise level is estimated volume by volume, a biased guess: "
            "give --sigma NUMBER if you know it"
        ],
    }


def estimate(image: Image, dwi: Array, coils: int) -> Stage:
    """Estimate the noise of each volume from the differences between neighbours."""

    def partial(chunk, block):
        from dipy.denoise.noise_estimate import estimate_sigma

        return estimate_sigma(finite(image.scaled(block[0])).astype(np.float64), N=coils)[0]

    def finish(rows):
        return {"sigma": np.asarray(rows)[:, None]}

    grid = ChunkGrid("v", (image.shape[0],), (1,))
    cost = ("estimate", float(np.prod(dwi.shape)))
    return reduction(
        "noise", grid, (Need(dwi),), partial, ((), "float64"), finish, {"coils": coils}, cost=cost
    )
