"""A check of the table of gradients for flipped and swapped axes, by the continuity of fibres."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.needs import Need, Part, Rows
from mpiimg.engine.stage import Compute, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput
from mpiimg.neuro.continuity import PAPER, candidates, check_continuity, described, scores_text
from mpiimg.neuro.gradients import TENSOR_B_LIMIT, Gradients
from mpiimg.neuro.images import finite, sidecar, value_bytes
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.steps import mask as mask_step
from mpiimg.neuro.subject import Subject, gradients_of

#: z-blocks of an image: a slice each up to this many.
MAX_SLABS = 256

#: Rows of the array of directions: FA and v1.
ROWS = 4


def inspect(subject: Subject, p: Any) -> Inspection:
    """Check that there are gradients, and that they determine a tensor.

    Raises
    ------
    BadInput
        There are none, or they do not.
    """
    _fitted(gradients_of(subject))
    return Inspection()


def stages(subject: Subject, p: Any, data: Any) -> Stages[Subject]:
    """Yield a mask where none is there, a quick tensor fit, and the scores of 24 tables or more."""
    if subject.mask is None:
        subject = yield from mask_step.stages(subject, mask_step.STEP.parameters(), None)
    mask, gradients = subject.mask, gradients_of(subject)
    volumes = _fitted(gradients)
    source = subject.dwi if subject.packed is None else subject.packed
    part = Part(source) if len(volumes) == source.shape[0] else Rows(source, volumes)
    reads = (part,) if subject.packed is not None else (part, Part(mask.array))
    directions = Array("directions", "cn", (ROWS, mask.voxels), "float32", mask.packing)
    yield fit_directions(subject.image, reads, directions, gradients, volumes)
    verdict = yield check_continuity(subject.image, Part(directions, {"z": 1}), mask.array)
    return dataclasses.replace(subject, gradcheck=verdict)


def _fitted(gradients: Gradients) -> tuple[int, ...]:
    """Return the volumes that are fitted: those that a tensor describes if they determine one, else all."""
    from mpiimg.neuro.kernels.tensor import design_matrix

    for volumes in (gradients.up_to(TENSOR_B_LIMIT), gradients.up_to(None)):
        bvals, bvecs = (np.array(table)[list(volumes)] for table in (gradients.bvals, gradients.bvecs))
        if np.linalg.matrix_rank(design_matrix(bvals, bvecs.reshape(-1, 3))) == 7:
            return volumes
    raise BadInput(
        f"{gradients.path}: the {len(gradients.bvals)} volumes do not determine a tensor: at least six "
        "directions and one other b-value are needed"
    )


def fit_directions(
    image: Image, reads: tuple[Need, ...], directions: Array, gradients: Gradients, volumes: tuple[int, ...]
) -> Compute:
    """Declare a weighted fit of which only FA and v1 are kept.

    Parameters
    ----------
    image : Image
        Whose values are read.
    reads : tuple of Need
        The voxels in the mask (V, n) alone, or the dwi (V, z, y, x) and the mask; just `volumes` of them.
    directions : Array
        (4, n) float32, written: FA, 0 where a signal is not above 0, and v1 along the axes of the bvecs.
    gradients : Gradients
    volumes : tuple of int
        Those that are fitted, ascending.
    """
    from mpiimg.neuro.kernels.tensor import design_matrix, fit_wls
    from mpiimg.neuro.kernels.tensor_maps import min_diffusivity, tensor_maps

    bvals, bvecs = (np.array(table)[list(volumes)] for table in (gradients.bvals, gradients.bvecs))
    design = design_matrix(bvals, bvecs)

    def work(chunk, block, mask_block=None):
        signal = block if mask_block is None else finite(image.scaled(block[:, mask_block != 0]))
        out = np.zeros((ROWS, signal.shape[1]), np.float32)
        sound = (signal > 0).all(axis=0)
        if sound.any():
            tensors = fit_wls(np.ascontiguousarray(signal[:, sound], np.float64), design)
            maps = tensor_maps(tensors, min_diffusivity(design))
            out[0, sound], out[1:, sound] = maps.fa, maps.v1
        return (out,)

    depth = image.shape[-3]
    grid = ChunkGrid("z", (depth,), (blocks_along(depth, MAX_SLABS),))
    counts = np.diff(directions.packing.offsets)
    largest = int(max(counts)) * grid.block[0]
    return Compute(
        "fit-directions",
        grid,
        reads=reads,
        writes=(directions,),
        work=work,
        parameters={"bvals": bvals.tolist(), "bvecs": bvecs.tolist(), "volumes": volumes},
        weights=tuple(int(counts[a:b].sum()) for ((a, b),) in map(grid.bounds, range(len(grid)))),
        scratch=largest * (400 + len(volumes) * (16 + value_bytes(image))) + (1 << 20),
        cost=("fit-wls", float(directions.shape[1]) * (len(volumes) + 30)),
    )


# --- Results ----------------------------------------------------------------------------------------------


def describe(subject: Subject, p: Any) -> Mapping[str, bytes]:
    """Return the scores of all tables, and what they come to."""
    tables, name = candidates(subject.image.affine), f"{subject.stem}_desc-gradcheck_scores"
    return {
        f"{name}.tsv": scores_text(subject.gradcheck, tables),
        f"{name}.json": sidecar(**described(subject.gradcheck, tables)),
    }


STEP = Step(
    name="gradcheck",
    summary="Check whether axes of the gradient table are flipped or swapped, by the continuity of fibres.",
    papers=(PAPER,),
    takes=("dwi", "gradients"),
    gives=("gradcheck",),
    may_take=("mask",),
    stages=stages,
    inspect=inspect,
    outputs=(Output("gradcheck", documents=describe),),
    kernels=(
        "mpiimg.neuro.kernels.median:precompile",
        "mpiimg.neuro.kernels.tensor:precompile",
        "mpiimg.neuro.kernels.tensor_maps:precompile",
        "mpiimg.neuro.kernels.continuity:precompile",
    ),
    rates={
        "continuity": (1.5e-8, "mpiimg.neuro.continuity:sample_continuity"),
        "fit-wls": (8.0e-9, "mpiimg.neuro.steps.fit:sample_wls"),
        **mask_step.STEP.rates,
    },
    examples=(
        (
            "Whether axes of the gradients are flipped or swapped.",
            "mpiexec -n 4 mpiimg-gradcheck dwi.nii.gz --mask brain.nii.gz --out checks",
        ),
    ),
)
