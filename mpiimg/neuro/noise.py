"""Noise level: PIESNO by slice where there is a noise background, else dipy's estimate by volume.

Both give the bits of dipy's functions, PIESNO slice by slice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import number_in
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Found, Reduce, Stages
from mpiimg.errors import BadInput
from mpiimg.neuro.images import finite, slice_grid, value_bytes
from mpiimg.neuro.masks import Mask, volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.subject import Noise

PIESNO_PAPER = "PIESNO: Koay et al. 2009, doi:10.1016/j.jmr.2009.03.005"

#: CPU-seconds per voxel of a series.
RATES: Mapping[str, tuple[float, str]] = {
    "piesno": (2.0e-9, "mpiimg.neuro.noise:sample_piesno"),
    "estimate": (1.2e-8, "mpiimg.neuro.noise:sample_estimate"),
}

#: Noise levels that a user may give, in image units, whose squares no single-precision number loses.
SIGMA_LIMITS = (1e-12, 1e12)

#: Share of exact zeros outside the mask above which the background is not noise.
MAX_ZEROS = 0.10

#: Share of the voxels that PIESNO takes for noise that may lie inside the mask.
MAX_INSIDE = 0.10

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
ESTIMATE_SLICES = 8


def parse(text: str) -> str | float:
    """Return the method, or the number that the user gave.

    Raises
    ------
    BadInput
        It is neither.
    """
    if text in ("auto", "piesno", "estimate"):
        return text
    number = number_in(text)
    low, high = SIGMA_LIMITS
    if number is None or not low <= number <= high:
        raise BadInput(
            f"--sigma {text}: give auto, piesno, estimate or a positive number, between {low:g} and {high:g}"
        )
    return float(number)


def check_coils(method: str | float, coils: int | None) -> None:
    """Refuse a number of coils that dipy knows no correction for.

    Raises
    ------
    BadInput
        It knows none.
    """
    if coils is None or not isinstance(method, str):
        return
    if method != "piesno" and coils not in ESTIMATE_CORRECTION:
        raise BadInput(f"--coils {coils}: choose one of {', '.join(map(str, ESTIMATE_CORRECTION))}")
    if method != "estimate" and coils < 1:
        raise BadInput(f"--coils {coils}: PIESNO needs at least one; --sigma estimate works without")


def needs_mask(method: str | float) -> bool:
    """Say whether a noise level is found with a look at the mask."""
    return method in ("auto", "piesno")


def noise_level(
    image: Image, dwi: Array, mask: Mask | None, method: str | float, coils: int | None
) -> Stages[Noise]:
    """Yield how the noise level is found.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    mask : Mask, optional
        Where the method needs one.
    method : str or float
        As from :func:`parse`.
    coils : int, optional
        Receiver coils of the noise distribution.
    """
    if not isinstance(method, str):
        return Noise(np.full((1, 1), method), "given")
    if method != "estimate":
        # None stands for what nobody knows yet: a plan has every stage that may come.
        has_background = yield count_zeros(image, dwi, mask.array, method)
        sigma = None
        if has_background is not False:
            sigma = yield piesno(image, dwi, mask.array, coils or 1, method)
        if sigma is not None:
            return Noise(sigma, "piesno")
    sigma = yield estimate(image, dwi, coils or 0)
    return Noise(sigma, "estimate")


def count_zeros(image: Image, dwi: Array, mask: Array, method: str) -> Reduce[bool]:
    """Count exact zeros outside the mask: released data often have their background zeroed.

    Returns
    -------
    Reduce
        Whether there is a noise background. Its end raises BadInput where there is none and `method` is
        "piesno".
    """

    def work(chunk, block, mask_block):
        values = finite(image.scaled(block[0]))[mask_block == 0]
        return values.size, np.count_nonzero(values == 0)

    def finish(rows):
        outside, zeros = rows.sum(axis=0)
        share = zeros / outside if outside else 1.0
        if share <= MAX_ZEROS:
            return Found(True)
        reason = f"{share:.0%} of the voxels outside the mask are exact zeros: no noise background for PIESNO"
        return Found(False, warnings=(_without_background(image, method, reason),))

    return Reduce(
        "background",
        slice_grid(dwi.shape, np.dtype(dwi.dtype).itemsize),
        reads=(Part(dwi), Part(mask)),
        work=work,
        row=((2,), "int64"),
        finish=finish,
        parameters={"method": method},
    )


def piesno(image: Image, dwi: Array, mask: Array, coils: int, method: str) -> Reduce[np.ndarray]:
    """Estimate the noise of each slice from the voxels whose signal over all volumes is noise alone.

    What PIESNO takes for noise must lie outside the mask: in an image without
    air around the head it finds the flattest tissue instead, and is not used.

    Returns
    -------
    Reduce
        The noise level by slice, (1, nz) float64; None where it finds none outside the mask, and then its end
        raises BadInput if `method` is "piesno".
    """

    def work(chunk, block, mask_block):
        from mpiimg.neuro.kernels.piesno import find_noise

        sigma, noise = find_noise(finite(image.scaled(block[:, 0])), coils)
        return sigma, np.count_nonzero(noise), np.count_nonzero(noise & (mask_block[0] != 0))

    def finish(rows):
        sigma, voxels, inside = rows[:, 0], rows[:, 1].sum(), rows[:, 2].sum()
        good = np.isfinite(sigma) & (sigma > 0)
        if not good.any() or inside > MAX_INSIDE * voxels:
            reason = "PIESNO finds no noise outside the brain mask"
            return Found(None, warnings=(_without_background(image, method, reason),))
        warnings = ()
        if not good.all():
            warnings = (
                f"{image.path}: PIESNO finds no noise in {np.count_nonzero(~good)} slices; "
                "they take the median of the others",
            )
        return Found(np.where(good, sigma, np.median(sigma[good]))[None, :], warnings)

    return Reduce(
        "piesno",
        ChunkGrid("z", (image.shape[-3],), (1,)),
        reads=(Part(dwi), Part(mask)),
        work=work,
        row=((3,), "float64"),
        finish=finish,
        parameters={"coils": coils, "method": method},
        cost=("piesno", float(np.prod(dwi.shape))),
        # Values, those of them that share their leading bits or are sorted, and counts by digit.
        scratch=dwi.shape[0] * dwi.shape[2] * dwi.shape[3] * (value_bytes(image) + 8) + (2 << 20),
        expected=np.ones((1, 1)) if method == "piesno" else None,
    )


def _without_background(image: Image, method: str, reason: str) -> str:
    """Return the warning that the estimate by volume is taken; refuse where the user asked for PIESNO."""
    if method == "piesno":
        raise BadInput(f"{image.path}: {reason}; use --sigma estimate or --sigma NUMBER")
    return (
        f"{image.path}: {reason}; the noise level is estimated volume by volume, a biased guess: "
        "give --sigma NUMBER if you know it"
    )


def estimate(image: Image, dwi: Array, coils: int) -> Reduce[np.ndarray]:
    """Estimate the noise of each volume from the differences between neighbours.

    Returns
    -------
    Reduce
        The noise level by volume, (V, 1) float64.
    """
    return Reduce(
        "noise",
        ChunkGrid("v", (image.shape[0],), (1,)),
        reads=(Part(dwi),),
        work=lambda chunk, block: _estimate_sigma(finite(image.scaled(block[0])), coils),
        row=((), "float64"),
        finish=lambda rows: Found(np.asarray(rows)[:, None]),
        parameters={"coils": coils},
        cost=("estimate", float(np.prod(dwi.shape))),
        scratch=int(np.prod(dwi.shape[1:])) * (value_bytes(image) + 8)
        + 3 * ESTIMATE_SLICES * int(np.prod(dwi.shape[2:])) * 8,
        expected=np.ones((1, 1)),
    )


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
    for first in range(0, len(values), ESTIMATE_SLICES):
        start, stop = max(first - 1, 0), min(first + ESTIMATE_SLICES + 1, len(values))
        last = min(first + ESTIMATE_SLICES, len(values))
        around = convolve(values[start:stop].astype(np.float64), neighbours)
        around = around[first - start : last - start]
        squares[first:last] = (np.sqrt(6 / 7) * (values[first:last] - 1 / 6 * around)) ** 2
    return np.float32(np.sqrt(np.mean(squares.ravel()) / ESTIMATE_CORRECTION[coils]))


def sample_piesno() -> RateSample:
    """Look for noise in a slice of a series; voxels."""
    image, voxels = image_of((32, 1, 96, 96))
    stage = piesno(image, image.array("dwi"), volume(image, "mask", "uint8"), 1, "auto")
    return chunk_sample(stage, 0, voxels, np.zeros((1, 96, 96), np.uint8))


def sample_estimate() -> RateSample:
    """Estimate the noise of a volume; voxels."""
    image, voxels = image_of((1, 32, 64, 64))
    return chunk_sample(estimate(image, image.array("dwi"), 0), 0, voxels)
