"""The recipes of mpiimg-simulate: each chunk is made by whichever rank writes it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.names import asking
from mpiimg.engine.parameters import Parameter, number_in
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.stage import Files, Stage, Stages
from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import gradients_text
from mpiimg.neuro.images import sidecar, write_dense
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.pipelines import DOMAIN
from mpiimg.simulate.astro import SimulatedSurvey
from mpiimg.simulate.neuro import SimulatedSubject

#: What --shape is without it: x, y, z of a subject; rows and columns of a sensor.
DEFAULT_SHAPES = {"neuro": "72x72x60", "astro": "4000x4072"}

#: Largest lengths of an axis: what the header of a NIfTI can say, and a detector of any telescope.
MAX_LENGTHS = {"neuro": 32_767, "astro": 100_000}

#: Exposures of one run: their names alone are lists on every rank.
MAX_EXPOSURES = 1_000_000

#: Bytes per pixel that making and writing an exposure takes.
EXPOSURE_SCRATCH = 17

#: Bytes of a rank before it makes anything: no kernels are loaded; and a survey needs astropy.
SUBJECT_BASELINE, SURVEY_BASELINE = 60 << 20, 76 << 20

TRUTH = {
    "tissue": ("uint8", "1", "0 background, 1 white matter, 2 grey matter, 3 CSF, 4 skull and scalp"),
    "mask": ("uint8", "1", "1 inside the brain"),
    "s0": ("float32", "arbitrary", "Signal without diffusion weighting and noise"),
    "tensor": ("float32", "mm^2/s", "Diffusion tensor, Dxx Dxy Dyy Dxz Dyz Dzz, in the frame of the bvecs"),
    "fa": ("float32", "1", "Fractional anisotropy"),
}


PARAMETERS = (
    Parameter(
        "shape",
        None,
        "The data have this size: for neuro the voxels along x, y and z (default 72x72x60), for astro the "
        "rows and columns of a sensor (default 4000x4072).",
        str,
        metavar="NxN[xN]",
    ),
    Parameter(
        "volumes", 30, "For neuro: the series has this many volumes, b0 included.", int, limits=(7, 2048)
    ),
    Parameter(
        "sigma", 40.0, "For neuro: the Rician noise has this level.", float, "image units", limits=(0, 1e6)
    ),
    Parameter("visits", 24, "For astro: the field is exposed this many times.", int, limits=(1, 100_000)),
    Parameter("sensors", 60, "For astro: the camera has this many sensors.", int, limits=(1, 10_000)),
    Parameter("seed", 7, "Every random number follows from this seed.", int, limits=(0, (1 << 32) - 1)),
)


def inspect(values: Mapping[str, Any]) -> SimulatedSubject | SimulatedSurvey:
    """Check the values of the command line.

    Raises
    ------
    BadInput
        Another kind than neuro or astro, or a shape or number that makes no sense.
    """
    kind = values["kind"]
    if kind not in DEFAULT_SHAPES:
        said = f"mpiimg-simulate {kind}: neuro and astro can be simulated"
        raise BadInput(asking(said, kind, DEFAULT_SHAPES))
    text = values["shape"] or DEFAULT_SHAPES[kind]
    axes = DEFAULT_SHAPES[kind].count("x") + 1
    lengths = tuple(map(number_in, text.split("x")))
    shape = tuple(length for length in lengths if isinstance(length, int))
    if not len(shape) == len(lengths) == axes or not all(1 <= n <= MAX_LENGTHS[kind] for n in shape):
        raise BadInput(
            f"--shape {text}: give {axes} numbers between 1 and {MAX_LENGTHS[kind]}, "
            f"e.g. {DEFAULT_SHAPES[kind]}"
        )
    exposures = values["visits"] * values["sensors"]
    if kind == "astro" and exposures > MAX_EXPOSURES:
        raise BadInput(
            f"--visits {values['visits']} of --sensors {values['sensors']}: {exposures} exposures, and at "
            f"most {MAX_EXPOSURES} are simulated in one run"
        )
    try:
        if kind == "neuro":
            return SimulatedSubject(shape, values["volumes"], values["sigma"], values["seed"])
        return SimulatedSurvey(values["visits"], values["sensors"], shape, values["seed"])
    except ValueError as error:
        raise BadInput(f"mpiimg-simulate: {error}") from None


def recipe(simulated: SimulatedSubject | SimulatedSurvey, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a simulated subject or survey."""
    p = {name: value for name, value in values.items() if name != "out"}
    return _subject(simulated, p) if isinstance(simulated, SimulatedSubject) else _survey(simulated, p)


def _recipe(
    stem: str,
    stages: Sequence[Stage],
    p: Mapping[str, Any],
    baseline: int,
    documents: Mapping[str, bytes] | None = None,
) -> Recipe:
    def generate() -> Stages[None]:
        yield from stages

    return Recipe(
        tool="mpiimg-simulate",
        stem=stem,
        inputs=(),
        stages=generate,
        documents=lambda state: documents or {},
        parameters=p,
        sources={},
        record="run-simulate.json",
        rates={name: seconds for name, (seconds, _) in DOMAIN.rates.items()},
        baseline=baseline,
    )


def _survey(survey: SimulatedSurvey, p: Mapping[str, Any]) -> Recipe:
    """Write the exposures of a survey and its truth: a chunk per exposure, and one for the truth."""
    from mpiimg.simulate.survey_files import exposure_name, files, truth_files

    exposures = [(visit, sensor) for visit in range(survey.visits) for sensor in range(survey.sensors)]
    names = [exposure_name(*exposure) for exposure in exposures]

    def work(chunk, folder):
        (folder / "truth").mkdir(exist_ok=True)
        last = chunk.number == len(exposures)
        made = truth_files(survey) if last else files(survey, *exposures[chunk.number])
        for name, content in made.items():
            content.writeto(folder / name, overwrite=True)

    stage = Files(
        "write-exposures",
        ChunkGrid("e", (len(exposures) + 1,), (1,)),
        work=work,
        names=(
            *(f"{name}.fits" for name in names),
            *(f"truth/{name}_cosmic-rays.fits.fz" for name in names),
            "truth/survey.fits",
        ),
        scratch=EXPOSURE_SCRATCH * survey.shape[0] * survey.shape[1],
    )
    return _recipe("survey", [stage], p, SURVEY_BASELINE)


def _subject(subject: SimulatedSubject, p: Mapping[str, Any]) -> Recipe:
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
        return dataclasses.replace(stage, scratch=stage.scratch + subject.cached_bytes + more)

    documents = {
        f"dwi_desc-truth_{key}.json": sidecar(Units=unit, Description=text)
        for key, (_, unit, text) in TRUTH.items()
    }
    documents["dwi.bval"], documents["dwi.bvec"] = gradients_text(bvals, bvecs)
    stages = [
        keeping(write_dense("dwi.nii.gz", image, (), dwi, subject.volumes, "int16")),
        *map(truth, TRUTH),
    ]
    return _recipe("dwi", stages, p, SUBJECT_BASELINE, documents)


def _image(subject: SimulatedSubject) -> Image:
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
