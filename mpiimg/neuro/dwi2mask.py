"""How the mask of MRtrix3's dwi2mask comes from all volumes of a series, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Compute, Found, Reduce, Stages
from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.images import finite, value_bytes
from mpiimg.neuro.masks import Brain, signal_of, slabs, volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.tables.shells import shells_of

PAPER = (
    "dwi2mask of MRtrix3: Dhollander et al. 2016, ISMRM Workshop on Breaking the Barriers of Diffusion MRI 5"
)

#: Weighted volumes that make a shell.
MIN_SHELL = 3

#: Bridges that are cut are up to twice as many voxels thick.
CLEAN_SCALE = 2


def volumes_of_shells(gradients: Gradients) -> tuple[tuple[int, ...], ...]:
    """Return the volumes of each shell: the unweighted ones, then by b-value.

    Weighted volumes of which no 3 are a shell are left out; where there are more shells than the square root
    of the number of volumes, as on a grid in q-space, all weighted volumes make one.
    """
    unweighted, *others = shells_of(gradients.bvals, gradients.b0_threshold)
    weighted = tuple(sorted(v for shell in others for v in shell.volumes))
    shells = tuple(shell.volumes for shell in others if len(shell.volumes) >= MIN_SHELL)
    if weighted and (not shells or len(shells) + 1 > math.sqrt(len(gradients.bvals))):
        shells = (weighted,)
    return (unweighted.volumes, *shells)


def dwi2mask(image: Image, dwi: Array, gradients: Gradients) -> Stages[Brain]:
    """Yield how the mask is made.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    gradients : Gradients
    """
    shells = volumes_of_shells(gradients)
    means = Array("shell-means", "vzyx", (len(shells), *image.shape[-3:]), "float32")
    yield shell_means(image, dwi, shells, means)
    thresholds = yield shell_thresholds(means, str(image.path))
    shown, signal = volume(image, "shell-mask", "uint8"), volume(image, "signal", "uint8")
    yield above_thresholds(means, thresholds, shown, signal)
    mask = volume(image, "clean-mask", "uint8")
    yield clean(shown, signal, mask)
    about = {"Method": "dwi2mask (MRtrix3's legacy algorithm)", "Thresholds": thresholds}
    return Brain(mask, about, signal_of(image, dwi))


def shell_means(image: Image, dwi: Array, shells: Sequence[Sequence[int]], means: Array) -> Compute:
    """Declare the mean of each shell: in float64, in the order of volumes, values below 0 as 0, rounded once.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    shells : sequence of sequence of int
    means : Array
        (shells, z, y, x) float32, written.
    """
    height, width = image.shape[-2:]

    def work(chunk, block):
        out = np.empty((len(shells), *block.shape[1:]), np.float32)
        for number, shell in enumerate(shells):
            total = np.zeros(block.shape[1:])
            for v in shell:
                total += np.maximum(finite(image.scaled(block[v])), 0)
            out[number] = total / len(shell)
        return (out,)

    return Compute(
        "shell-means",
        ChunkGrid("z", (image.shape[-3],), (1,)),
        reads=(Part(dwi),),
        writes=(means,),
        work=work,
        parameters={"shells": shells, "slope": image.slope, "inter": image.inter},
        scratch=height * width * (24 + value_bytes(image)) + (1 << 16),
    )


def shell_thresholds(means: Array, where: str) -> Reduce[tuple[float, ...]]:
    """Declare the search for the threshold of each shell, one whole volume at a time.

    Returns
    -------
    Reduce
        Its end raises BadInput where a shell is the same everywhere.
    """

    def work(chunk, block):
        from mpiimg.neuro.kernels.shell_masks import optimal_threshold

        if block.min() == block.max():
            return np.nan
        return optimal_threshold(block[0])

    def finish(rows):
        if np.isnan(rows).all():
            raise BadInput(
                f"{where}: every shell is the same everywhere: there is no brain to find; give --mask"
            )
        # Nothing is above the threshold of a shell without contrast.
        return Found(tuple(np.where(np.isnan(rows), np.inf, rows).tolist()))

    return Reduce(
        "shell-thresholds",
        ChunkGrid("v", means.shape[:1], (1,)),
        reads=(Part(means),),
        work=work,
        row=((), "float64"),
        finish=finish,
        parameters={},
        scratch=6 * math.prod(means.shape[1:]) + (1 << 20),
        expected=(0.0,) * means.shape[0],
    )


def above_thresholds(means: Array, thresholds: Sequence[float], shown: Array, signal: Array) -> Compute:
    """Declare where any shell is above its threshold, and where any has signal at all."""
    levels = np.array(thresholds, np.float32)[:, None, None, None]
    return Compute(
        "shell-masks",
        slabs(means.shape[1]),
        reads=(Part(means),),
        writes=(shown, signal),
        work=lambda chunk, block: ((block > levels).any(axis=0), (block > 0).any(axis=0)),
        parameters={"thresholds": [str(level) for level in thresholds]},
    )


def clean(shown: Array, signal: Array, mask: Array) -> Compute:
    """Declare the smoothed mask of one piece; one chunk, since pieces and holes may cross all slices."""

    def work(chunk, block, signal_block):
        from mpiimg.neuro.kernels.shell_masks import one_piece, without_bridges

        cleaned = without_bridges(one_piece(block != 0), CLEAN_SCALE)
        return (cleaned & (signal_block != 0),)

    return Compute(
        "clean-mask",
        ChunkGrid("z", shown.shape[:1], shown.shape[:1]),
        reads=(Part(shown), Part(signal)),
        writes=(mask,),
        work=work,
        parameters={},
        # Labels, and masks of which five are held at once.
        scratch=10 * math.prod(shown.shape) + (1 << 20),
    )
