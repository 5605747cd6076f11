"""Noise level from the background: PIESNO, slice by slice, with the bits of dipy's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Found, Reduce
from mpiimg.neuro.images import finite, slice_grid, value_bytes
from mpiimg.neuro.masks import volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.subject import Noise

#: Voxels outside the mask, not 0 in all volumes, that a background needs.
MIN_BACKGROUND = 1000

#: Share of the voxels that PIESNO takes for noise that may lie inside the mask.
MAX_INSIDE = 0.10

#: Levels of slices are within this factor of their median.
MAX_RATIO = 1.5

#: Of `--sigma study`: share of exact zeros outside the mask above which the background is not noise.
MAX_ZEROS = 0.10


@dataclass(frozen=True)
class Background:
    """What PIESNO says.

    Parameters
    ----------
    sigma : (1, nz) float64, optional
        The noise level by slice, image units; None where it cannot be used.
    problem : str
        Why it cannot.
    warnings : tuple of str
        To be said where it is used.
    """

    sigma: np.ndarray | None
    problem: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def level(self) -> float:
        """The median over slices."""
        return float(np.median(self.sigma))


def piesno(
    image: Image,
    dwi: Array,
    mask: Array,
    coils: int,
    conclude: Callable[[Background], Found[Noise | None]],
    expected: Noise | None,
    whole_slices: bool = False,
) -> Reduce[Noise | None]:
    """Estimate the noise of each slice from the voxels whose signal over all volumes is noise alone.

    Voxels that are 0 in all volumes are left out: zeroed corners of a rotated field, or a background that was
    taken away. What PIESNO takes for noise must lie outside the mask: in an image without air around the
    head it finds the flattest tissue instead, and is not used.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    mask : Array
        (z, y, x), not 0 inside.
    coils : int
    conclude : callable
        Called with what PIESNO says, on one rank; its end.
    expected : Noise, optional
        What plans reckon with.
    whole_slices : bool
        Zeros and all, and however little background there is: what dipy's function is given.
    """

    def work(chunk, block, mask_block):
        from mpiimg.neuro.kernels.piesno import find_noise

        values, inside = finite(image.scaled(block[:, 0])), mask_block[0] != 0
        has_signal = np.ones_like(inside) if whole_slices else (values != 0).any(axis=0)
        outside = np.count_nonzero(has_signal & ~inside)
        if not has_signal.all():
            values, inside = values[:, None, has_signal], inside[None, has_signal]
        if not values.size:
            return 0, 0, 0, 0
        sigma, noise = find_noise(values, coils)
        return sigma, np.count_nonzero(noise), np.count_nonzero(noise & inside), outside

    return Reduce(
        "piesno",
        ChunkGrid("z", (image.shape[-3],), (1,)),
        reads=(Part(dwi), Part(mask)),
        work=work,
        row=((4,), "float64"),
        finish=lambda rows: conclude(_found(image, rows, whole_slices)),
        parameters={"coils": coils, "whole_slices": whole_slices},
        cost=("piesno", float(np.prod(dwi.shape))),
        # Values, those of voxels with signal, those that share their leading bits or are sorted, and counts.
        scratch=dwi.shape[0]
        * dwi.shape[2]
        * dwi.shape[3]
        * (2 * value_bytes(image) + np.dtype(image.native).itemsize + 9)
        + (2 << 20),
        expected=expected,
    )


def _found(image: Image, rows: np.ndarray, whole_slices: bool) -> Background:
    sigma, (voxels, inside, outside) = rows[:, 0], rows[:, 1:].sum(axis=0)
    good = np.isfinite(sigma) & (sigma > 0)
    if not whole_slices:
        if outside < MIN_BACKGROUND:
            return Background(
                None,
                f"there is no background: {outside:.0f} voxels outside the mask are not 0 in all volumes, "
                f"and PIESNO needs {MIN_BACKGROUND}",
            )
        good &= rows[:, 2] <= MAX_INSIDE * rows[:, 1]
        # In a slice with little background the flattest tissue may look like noise.
        usual = np.median(sigma[good]) if good.any() else 0.0
        good &= (sigma <= MAX_RATIO * usual) & (sigma >= usual / MAX_RATIO)
    if not good.any() or inside > MAX_INSIDE * voxels:
        return Background(None, "PIESNO finds no noise outside the brain mask")
    warnings = ()
    if not good.all():
        warnings = (
            f"{image.path}: PIESNO finds no noise in {np.count_nonzero(~good)} slices; "
            "they take the median of the others",
        )
    return Background(np.where(good, sigma, np.median(sigma[good]))[None, :], warnings=warnings)


def count_zeros(image: Image, dwi: Array, mask: Array, warning: Callable[[str], str]) -> Reduce[bool]:
    """Count exact zeros outside the mask: released data often have their background zeroed.

    Parameters
    ----------
    image, dwi, mask
        As :func:`piesno` has them.
    warning : callable
        Called with why there is none; returns what is to be said.

    Returns
    -------
    Reduce
        Whether there is a noise background, as `--sigma study` decides it.
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
        return Found(False, warnings=(warning(reason),))

    return Reduce(
        "background",
        slice_grid(dwi.shape, np.dtype(dwi.dtype).itemsize),
        reads=(Part(dwi), Part(mask)),
        work=work,
        row=((2,), "int64"),
        finish=finish,
        parameters={},
    )


def sample_piesno() -> RateSample:
    """Look for noise in a slice of a series; voxels."""
    image, voxels = image_of((32, 1, 96, 96))
    stage = piesno(image, image.array("dwi"), volume(image, "mask", "uint8"), 1, Found, None)
    return chunk_sample(stage, 0, voxels, np.zeros((1, 96, 96), np.uint8))
