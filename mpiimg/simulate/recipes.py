"""The recipes of mpiimg-simulate: each chunk is made by whichever rank writes it."""

from __future__ import annotations

import argparse
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.plan import Recipe
from mpiimg.engine.stage import Stage
from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import gradients_text
from mpiimg.neuro.images import sidecar, write_dense
from mpiimg.neuro.nifti import Image
from mpiimg.simulate.astro import Survey
from mpiimg.simulate.neuro import Subject

#: What --shape is without it: x, y, z of a subject; rows and columns of a sensor.
DEFAULT_SHAPES = {"neuro": "72x72x60", "astro": "4000x4072"}

#: Bytes a pixel that making and writing an exposure takes.
SCRATCH = 17

#: Bytes of a rank before it makes anything: no kernels are loaded; and a survey needs astropy.
SUBJECT_BASELINE, SURVEY_BASELINE = 60 << 20, 76 << 20

TRUTH = {
    "tissue": ("uint8", "1", "0 background, 1 white matter, 2 grey matter, 3 CSF, 4 skull and scalp"),
    "mask": ("uint8", "1", "1 inside the brain"),
    "s0": ("float32", "arbitrary", "Signal without diffusion weighting and noise"),
    "tensor": ("float32", "mm^2/s", "Diffusion tensor, Dxx Dxy Dyy Dxz Dyz Dzz, in the frame of the bvecs"),
    "fa": ("float32", "1", "Fractional anisotropy"),
}


def inspect(args: argparse.Namespace) -> Subject | Survey:
    """Check what is asked for.

    Raises
    ------
    BadInput : another kind than neuro or astro, or a shape or number that makes no sense
    """
    if args.kind not in DEFAULT_SHAPES:
        raise BadInput(f"mpiimg-simulate {args.kind}: neuro and astro can be simulated")
    text = args.shape or DEFAULT_SHAPES[args.kind]
    axes = DEFAULT_SHAPES[args.kind].count("x") + 1
    try:
        shape = tuple(int(n) for n in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != axes:
        raise BadInput(f"--shape {text}: give {axes} numbers, e.g. {DEFAULT_SHAPES[args.kind]}")
    try:
        if args.kind == "neuro":
            return Subject(shape, args.volumes, args.sigma, args.seed)
        return Survey(args.visits, args.sensors, shape, args.seed)
    except ValueError as error:
        raise BadInput(f"mpiimg-simulate: {error}") from None


def recipe(found: Subject | Survey, p: Mapping[str, Any]) -> Recipe:
    """Return the recipe of what :func:`inspect` found."""
    return _subject(found, p) if isinstance(found, Subject) else _survey(found, p)


def _survey(survey: Survey, p: Mapping[str, Any]) -> Recipe:
    """Write the exposures of a survey and its truth: a chunk an exposure, and one for the truth."""
    from mpiimg.simulate.survey_files import files, stem, truth_files

    exposures = [(visit, sensor) for visit in range(survey.visits) for sensor in range(survey.sensors)]
    names = [stem(*exposure) for exposure in exposures]

    def work(chunk, folder):
        (folder / "truth").mkdir(exist_ok=True)
        last = chunk.number == len(exposures)
        made = truth_files(survey) if last else files(survey, *exposures[chunk.number])
        for name, content in made.items():
            content.writeto(folder / name, overwrite=True)

    stage = Stage(
        "write-exposures",
        "files",
        ChunkGrid("e", (len(exposures) + 1,), (1,)),
        work=work,
        outputs=(
            *(f"{name}.fits" for name in names),
            *(f"truth/{name}_cosmic-rays.fits.fz" for name in names),
            "truth/survey.fits",
        ),
        scratch=SCRATCH * survey.shape[0] * survey.shape[1],
    )
    return Recipe(
        tool="mpiimg-simulate",
        stem="survey",
        inputs={},
        steps=[lambda values: stage],
        values={},
        documents=lambda values: {},
        parameters=p,
        sources={},
        record="run-simulate.json",
        baseline=SURVEY_BASELINE,
    )


def _subject(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Write dwi.nii.gz with its gradients, and the truth beside it."""
    image = _image(subject)
    bvals, bvecs = subject.gradients

    def dwi(chunk):
        (volume, _), (start, stop) = chunk.box
        return subject.volume(volume, start, stop)

    def truth(key):
        dtype, _, _ = TRUTH[key]
        components = 6 if key == "tensor" else None

        def work(chunk):
            values = subject.truth(*chunk.bounds["z"])[key]
            return values if components is None else values[slice(*chunk.bounds["v"])]

        stage = write_dense(f"dwi_desc-truth_{key}.nii.gz", image, (), work, components, dtype)
        return keeping(stage, subject.truth_bytes(stage.grid.block[-1]))

    def keeping(stage, more=0):
        return dataclasses.replace(stage, scratch=stage.scratch + subject.kept_bytes + more)

    def documents(values):
        files = {
            f"dwi_desc-truth_{key}.json": sidecar(Units=unit, Description=text)
            for key, (_, unit, text) in TRUTH.items()
        }
        files["dwi.bval"], files["dwi.bvec"] = gradients_text(bvals, bvecs)
        return files

    return Recipe(
        tool="mpiimg-simulate",
        stem="dwi",
        inputs={},
        steps=[
            lambda values: keeping(write_dense("dwi.nii.gz", image, (), dwi, subject.volumes, "int16")),
            *(lambda values, key=key: truth(key) for key in TRUTH),
        ],
        values={},
        documents=documents,
        parameters=p,
        sources={},
        record="run-simulate.json",
        baseline=SUBJECT_BASELINE,
    )


def _image(subject: Subject) -> Image:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*subject.shape, subject.volumes))
    header.set_sform(subject.affine, 1)
    header.set_qform(subject.affine, 1)
    header.set_zooms((*np.diag(subject.affine)[:3], 1.0))
    header.set_xyzt_units("mm", "sec")
    header["magic"], header["vox_offset"] = b"n+1", 352
    raw = io.BytesIO()
    header.write_to(raw)
    shape = (subject.volumes, *subject.shape[::-1])
    return Image(Path("dwi.nii.gz"), "nii.gz", "dwi", shape, "<i2", 352, 1.0, 0.0, raw.getvalue(), (0, 0, 0))
