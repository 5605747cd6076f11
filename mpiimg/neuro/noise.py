"""Noise level: PIESNO by slice where there is a noise background, else dipy's estimate by volume.

Both give the bits of dipy's functions, PIESNO slice by slice.
"""

from __future__ import annotations

import numpy as np

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.stage import Need, Parameter, Stage, reduction
from mpiimg.engine.stores import Array
from mpiimg.errors import BadInput
from mpiimg.neuro.images import finite, slice_grid, value_bytes
from mpiimg.neuro.nifti import Image

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

#: By number of coils, the variance of a magnitude without signal over that of the noise (Koay and Basser
#: 2006, doi:10.1016/j.jmr.2006.01.016), as dipy has it; 0 stands for no correction.
ESTIMATE_CORRECTION = {
    0: 1,
    1: 0.42920367320510366,
    4: 0.4834941393603609,
    6: 0.4891759468548269,
    8: 0.49195420135894175,
    12: 0.4946862482541263,
    16: 0.4960339908122364,
    20: 0.4968365823718557,
    24: 0.49736907650825657,
    32: 0.49803177052530145,
    64: 0.49901964176235936,
}

#: Slices whose differences are made at once.
SLICES = 8


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
    if method != "piesno" and coils not in ESTIMATE_CORRECTION:
        raise BadInput(f"--coils {coils}: choose one of {', '.join(map(str, ESTIMATE_CORRECTION))}")
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
        from mpiimg.neuro.kernels import piesno

        sigma, noise = piesno.piesno(finite(image.scaled(block[:, 0])), coils)
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
    known = {
        "cost": ("piesno", float(np.prod(dwi.shape))),
        # Values, those of them that share their leading bits or are sorted, and counts by digit.
        "scratch": dwi.shape[0] * dwi.shape[2] * dwi.shape[3] * (value_bytes(image) + 8) + (2 << 20),
    }
    return reduction("piesno", grid, reads, partial, ((3,), "float64"), finish, parameters, **known)


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
        return _estimate_sigma(finite(image.scaled(block[0])), coils)

    def finish(rows):
        return {"sigma": np.asarray(rows)[:, None]}

    grid = ChunkGrid("v", (image.shape[0],), (1,))
    known = {
        "cost": ("estimate", float(np.prod(dwi.shape))),
        "scratch": int(np.prod(dwi.shape[1:])) * (value_bytes(image) + 8)
        + 3 * SLICES * int(np.prod(dwi.shape[2:])) * 8,
    }
    return reduction("noise", grid, (Need(dwi),), partial, ((), "float64"), finish, {"coils": coils}, **known)


def _estimate_sigma(values: np.ndarray, coils: int) -> float:
    """Return what dipy's estimate_sigma does of a volume, to the last bit, in a quarter of its memory.

    The mean of the squares is taken over the whole volume at once, as dipy does: the order of a sum shows
    in its last bits. Only the differences that are squared are made some slices at a time.
    """
    from scipy.ndimage import convolve

    neighbours = np.zeros((3, 3, 3), np.int8)
    for axis in range(3):
        for end in (0, 2):
            neighbours[tuple(end if a == axis else 1 for a in range(3))] = 1
    squares = np.empty(values.shape, np.float64)
    for first in range(0, len(values), SLICES):
        start, stop = max(first - 1, 0), min(first + SLICES + 1, len(values))
        last = min(first + SLICES, len(values))
        around = convolve(values[start:stop].astype(np.float64), neighbours)
        around = around[first - start : last - start]
        squares[first:last] = (np.sqrt(6 / 7) * (values[first:last] - 1 / 6 * around)) ** 2
    return np.float32(np.sqrt(np.mean(squares.ravel()) / ESTIMATE_CORRECTION[coils]))
