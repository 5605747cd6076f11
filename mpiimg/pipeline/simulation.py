"""The recipe of mpiimg-simulate: sinks alone, each chunk made by whichever rank writes it."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.io.gradients import gradients_text
from mpiimg.io.nifti import Image
from mpiimg.pipeline.plan import Recipe
from mpiimg.simulate.neuro import Subject
from mpiimg.stages.image import sidecar, write_dense

TRUTH = {
    "tissue": ("uint8", "1", "0 background, 1 white matter, 2 grey matter, 3 CSF, 4 skull and scalp"),
    "mask": ("uint8", "1", "1 inside the brain"),
    "s0": ("float32", "arbitrary", "Signal without diffusion weighting and noise"),
    "tensor": ("float32", "mm^2/s", "Diffusion tensor, Dxx Dxy Dyy Dxz Dyz Dzz, in the frame of the bvecs"),
    "fa": ("float32", "1", "Fractional anisotropy"),
}


def inspect(args: argparse.Namespace) -> Subject:
    """Check what is asked for.

    Raises
    ------
    BadInput : another kind than neuro, or a shape or number that makes no sense
    """
    if args.kind != "neuro":
        raise BadInput(f"mpiimg-simulate {args.kind}: only neuro can be simulated")
    try:
        shape = tuple(int(n) for n in args.shape.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != 3:
        raise BadInput(f"--shape {args.shape}: give three numbers, e.g. 145x174x145")
    try:
        return Subject(shape, args.volumes, args.sigma, args.seed)
    except ValueError as error:
        raise BadInput(f"mpiimg-simulate: {error}") from None


def recipe(subject: Subject, p: Mapping[str, Any]) -> Recipe:
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

        return write_dense(f"dwi_desc-truth_{key}.nii.gz", image, (), work, components, dtype)

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
            lambda values: write_dense("dwi.nii.gz", image, (), dwi, subject.volumes, "int16"),
            *(lambda values, key=key: truth(key) for key in TRUTH),
        ],
        values={},
        documents=documents,
        parameters=p,
        sources={},
        record="run-simulate.json",
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
