"""The stages of each pipeline, and of each tool: a tool is a pipeline of length one.

A recipe is made in two steps. `inspect_*` reads headers and gradient tables on
one rank and refuses what cannot work; what it returns is sent to all ranks,
where the recipe is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.plan import Recipe
from mpiimg.engine.stage import Need
from mpiimg.engine.stores import DATASET
from mpiimg.errors import BadInput
from mpiimg.neuro import images as image
from mpiimg.neuro.gradients import TENSOR_B_LIMIT, Gradients, read_gradients
from mpiimg.neuro.neuro_steps import (
    Step,
    Subject,
    denoise_outputs,
    denoise_steps,
    denoised_array,
    documents,
    fit_outputs,
    fit_stage,
    identity,
    mask_outputs,
    mask_steps,
    read,
    read_dwi,
    upper_bounds,
)
from mpiimg.neuro.nifti import Image, bare_name, open_image, same_space, staged_attributes
from mpiimg.neuro.steps import mask


def inspect_image(dwi: str) -> Image:
    """Read the header of a diffusion image.

    Raises
    ------
    BadInput : it cannot be used
    """
    return open_image(Path(dwi), 4, "diffusion image")


def inspect_subject(
    dwi: str,
    bvals: str | None = None,
    bvecs: str | None = None,
    mask: str | None = None,
    b0_threshold: float = 50.0,
    b_max: float | None = None,
    normalise_bvecs: bool = False,
    fits: bool = False,
) -> Subject:
    """Read all headers of a subject.

    Parameters
    ----------
    dwi, bvals, bvecs, mask : paths
    b0_threshold, b_max : s/mm^2
    fits : a tensor will be fitted: check that the volumes determine one

    Raises
    ------
    BadInput : something is missing, unreadable, or does not fit together
    """
    path = Path(dwi)
    img = open_image(path, 4, "diffusion image")
    warnings: list[str] = []
    gradients = None
    companions = {}
    if bvals is not None:
        gradients, warnings = read_gradients(
            Path(bvals), Path(bvecs), img.shape[0], b0_threshold, normalise_bvecs
        )
        companions = {".bval": Path(bvals).read_bytes(), ".bvec": Path(bvecs).read_bytes()}
    else:
        siblings = {ending: path.with_name(bare_name(path) + ending) for ending in (".bval", ".bvec")}
        companions = {ending: other.read_bytes() for ending, other in siblings.items() if other.is_file()}
    if (path.parent / "grad_dev.nii.gz").exists():
        warnings.append(
            f"{path.parent / 'grad_dev.nii.gz'} is not used: gradients count as equal in all voxels"
        )
    if fits:
        warnings += _check_tensor_volumes(gradients, b_max, bvals)
    foreign = None
    if mask is not None:
        foreign = open_image(Path(mask), 3, "mask")
        difference = same_space(img, foreign)
        if difference:
            raise BadInput(f"{mask}: this mask is not in the space of {dwi}: they differ in {difference}")
    return Subject(img, gradients, foreign, companions, tuple(warnings))


def _check_tensor_volumes(gradients: Gradients, b_max: float | None, path: str) -> list[str]:
    from mpiimg.neuro.kernels.tensor import design_matrix

    used = list(gradients.up_to(b_max))
    design = design_matrix(np.array(gradients.bvals)[used], np.array(gradients.bvecs)[used].reshape(-1, 3))
    if np.linalg.matrix_rank(design) < 7:
        limit = "" if b_max is None else f" with b <= {b_max:g}"
        raise BadInput(
            f"{path}: the {len(used)} volumes{limit} do not determine a tensor: "
            "at least six directions and one other b-value are needed; raise --b-max or give more volumes"
        )
    highest = max(gradients.bvals)
    if b_max is None and highest > TENSOR_B_LIMIT:
        return [
            f"{path}: b-values up to {highest:g} s/mm^2 enter the tensor fit; "
            f"--b-max {TENSOR_B_LIMIT:g} keeps to those that a tensor describes"
        ]
    return []


def neuro(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Mask, denoise and fit a subject."""
    dwi = subject.dwi.array("dwi")
    brain = mask.volume(subject.dwi, "mask", "uint8")
    denoised = denoised_array(subject)

    def fit_denoised(values):
        volumes = subject.gradients.up_to(p["b_max"])
        rows = None if len(volumes) == dwi.shape[0] else volumes
        need = Need(denoised(values), rows=rows, offsets=values["offsets"])
        return fit_stage(subject, p, (need,), values)

    steps = [
        *read_dwi(subject),
        *mask_steps(subject, dwi, brain, p),
        *denoise_steps(subject, dwi, brain, p),
        fit_denoised,
        *mask_outputs(subject, brain),
        *denoise_outputs(subject, dwi, brain, denoised, p),
        *fit_outputs(subject, brain, p),
    ]
    return _recipe("mpiimg-neuro", subject, p, steps, ("mask", "denoise", "fit"))


def mask_only(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Make a brain mask."""
    brain = mask.volume(subject.dwi, "mask", "uint8")
    dwi = subject.dwi.array("dwi")
    steps = [
        *read_dwi(subject),
        *mask_steps(subject, dwi, brain, p),
        *mask_outputs(subject, brain),
    ]
    return _recipe("mpiimg-mask", subject, p, steps, ("mask",))


def denoise_only(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Denoise inside a mask."""
    dwi, brain = subject.dwi.array("dwi"), mask.volume(subject.dwi, "mask", "uint8")
    steps = [
        *read_dwi(subject),
        *mask_steps(subject, dwi, brain, p),
        *denoise_steps(subject, dwi, brain, p),
        *denoise_outputs(subject, dwi, brain, denoised_array(subject), p),
    ]
    return _recipe("mpiimg-denoise", subject, p, steps, ("denoise",))


def fit_only(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Fit the tensor to an image as it is."""
    dwi, brain = subject.dwi.array("dwi"), mask.volume(subject.dwi, "mask", "uint8")
    volumes = subject.gradients.up_to(p["b_max"])
    rows = None if len(volumes) == dwi.shape[0] else volumes
    steps = [
        *read_dwi(subject),
        *mask_steps(subject, dwi, brain, p),
        lambda values: fit_stage(subject, p, (Need(dwi, rows=rows), Need(brain)), values),
        *fit_outputs(subject, brain, p),
    ]
    return _recipe("mpiimg-fit", subject, p, steps, ("fit",))


def stage_image(img: Image, p: Mapping[str, Any]) -> Recipe:
    """Copy an image into a staged file, in parallel."""
    dwi = img.array("input") if img.kind != "nii.gz" else img.array(DATASET)
    steps = read(img, DATASET) if img.kind == "nii.gz" else [lambda values: image.copy(img, dwi, DATASET)]
    target = Path(p["staged"])
    return Recipe(
        tool="mpiimg-stage",
        stem=target.stem,
        inputs={"input": img} if img.kind != "nii.gz" else {},
        steps=steps,
        values={},
        documents=lambda values: {},
        parameters=p,
        sources={"image": identity(img)},
        record=f"{target.name}.json",
        staged_outputs={DATASET: (target.name, staged_attributes(img))},
        files=(img.path,),
    )


def _recipe(
    tool, subject: Subject, p: Mapping[str, Any], steps: list[Step], parts: tuple[str, ...]
) -> Recipe:
    inputs = {"dwi": subject.dwi} if subject.dwi.kind != "nii.gz" else {}
    if subject.mask is not None and subject.mask.kind != "nii.gz":
        inputs["mask-image"] = subject.mask
    return Recipe(
        tool=tool,
        stem=subject.dwi.stem,
        inputs=inputs,
        steps=steps,
        values=upper_bounds(subject),
        documents=lambda values: documents(subject, p, parts, values),
        parameters=p,
        sources=subject.sources(),
        record=f"run-{tool.removeprefix('mpiimg-')}.json" if tool != "mpiimg-neuro" else "run.json",
        warnings=subject.warnings,
        kernels=tuple(part for part in parts if part != "mask" or subject.mask is None),
        files=subject.files,
    )
