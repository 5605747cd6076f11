"""A look at every volume of a series inside the mask: empty ones, dropped slices, spikes, steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Found, Reduce, Stages
from mpiimg.engine.step import Output, Step
from mpiimg.neuro.exclusion import Rule, parse_rules
from mpiimg.neuro.gradients import Gradients, unit_vectors
from mpiimg.neuro.images import finite, value_bytes
from mpiimg.neuro.masks import Mask, volume
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.slice_figures import WIDTH, Predictors, figures_of_slice
from mpiimg.neuro.subject import Subject, dense, gradients_of, needs_mask_and_gradients
from mpiimg.neuro.volume_figures import volume_figures
from mpiimg.neuro.volume_quality import VolumeQuality, check_rest, description, note_of, table, warnings_of
from mpiimg.neuro.volumes import keep_volumes

PAPER = (
    "NDC: Yeh et al. 2019, doi:10.1016/j.neuroimage.2019.116131; slices against a prediction: Andersson et "
    "al. 2016, doi:10.1016/j.neuroimage.2016.06.058; drift: Vos et al. 2017, doi:10.1002/mrm.26124"
)

#: Larger values are taken for this one: their squares are beyond what figures are of.
LARGEST = 1e30


@dataclass(frozen=True)
class VolumesParameters:
    """Which volumes are left out of what follows.

    Raises
    ------
    BadInput
        The rules are none.
    """

    exclude: str | None = parameter(
        None,
        "Volumes that break one of these rules are left out of all that follows, image and gradients alike: "
        "empty, dropout[:SLICES] (as many dropped slices or more, by default one), spike[:SLICES], step, and "
        "ndc<NUMBER (correlation with the neighbour), with commas between (default: none is left out).",
        metavar="RULES",
    )

    def __post_init__(self):
        parse_rules(self.exclude)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules."""
        return parse_rules(self.exclude)


def stages(subject: Subject, p: VolumesParameters, data: Any) -> Stages[Subject]:
    """Yield the look at the volumes, and the copy of those that are kept where others are left out."""
    subject = yield from dense(subject)
    quality = yield look(subject, subject.mask, p.rules)
    subject = dataclasses.replace(subject, quality=quality)
    if not p.rules:
        return subject
    kept = range(len(subject.volumes)) if quality is None else quality.kept
    copied = yield from keep_volumes(subject, kept, always=True)
    is_whole = len(kept) == len(subject.volumes)
    return dataclasses.replace(subject, dwi=copied.dwi) if is_whole else copied


def look(subject: Subject, mask: Mask, rules: tuple[Rule, ...]) -> Reduce[VolumeQuality]:
    """Declare the look at the volumes, slice by slice: a slice of all volumes is a chunk.

    Parameters
    ----------
    subject : Subject
        With `dwi` and gradients.
    mask : Mask
    rules : tuple of Rule
        That leave volumes out.

    Returns
    -------
    Reduce
        Its end raises BadInput where the rules leave too little.
    """
    image, gradients = subject.image, gradients_of(subject)
    predictors, path = Predictors(gradients), subject.original.path
    volumes, depth, height, width = image.shape
    counts = np.diff(mask.offsets)

    def work(chunk, block, mask_block):
        inside = mask_block[0] != 0
        if not inside.any():
            return np.full((volumes, WIDTH), np.nan)
        values = finite(image.scaled(block[:, 0][:, inside]))
        if values.dtype.kind == "f":
            values = np.clip(values, -LARGEST, LARGEST)
        return figures_of_slice(values.astype(np.float32), inside, predictors)

    def finish(rows):
        figures = volume_figures(rows, counts, predictors)
        quality = VolumeQuality(figures, gradients, subject.volumes, rules)
        if rules:
            check_rest(quality, path)
        return Found(quality, warnings=warnings_of(quality, path), notes=(note_of(quality, path),))

    # The voxels in the mask on their way to float32; these, those with any signal, and their predictions.
    itemsize = np.dtype(image.native).itemsize
    per_sample = itemsize + max(itemsize + value_bytes(image) + 4, 12)
    return Reduce(
        STEP.name,
        ChunkGrid("z", (depth,), (1,)),
        reads=(Part(subject.dwi), Part(mask.array)),
        work=work,
        row=((volumes, WIDTH), "float64"),
        finish=finish,
        parameters={
            "bvals": gradients.bvals,
            "bvecs": gradients.bvecs,
            "b0_threshold": gradients.b0_threshold,
            "slope": image.slope,
            "inter": image.inter,
        },
        weights=tuple(counts.tolist()),
        scratch=int(max(counts)) * volumes * per_sample + 64 * height * width + (2 << 20),
        finish_bytes=4 * depth * volumes * WIDTH * 8,
        cost=("volumes", float(mask.voxels) * volumes),
    )


# --- Results ----------------------------------------------------------------------------------------------


def describe_volumes(subject: Subject, p: VolumesParameters) -> Mapping[str, bytes]:
    """Return the table of the volumes, and the JSON that describes it; a plan knows only their names."""
    # BIDS has no name for a table of volumes; this one is of the names that validators pass over.
    name, quality = f"{subject.stem}_desc-volumes_dwimap", subject.quality
    if quality is None:
        return {f"{name}.tsv": b"", f"{name}.json": b"{}"}
    text = table(quality, subject.original.shape[0])
    return {f"{name}.tsv": text, f"{name}.json": description(quality)}


def sample_volumes() -> RateSample:
    """Look at a slice; voxels times volumes."""
    image, values = image_of((64, 1, 96, 96))
    bvals = np.where(np.arange(64) % 8 == 0, 0.0, 1000.0)
    bvecs = unit_vectors(np.random.default_rng(2).normal(size=(64, 3))) * (bvals > 0)[:, None]
    gradients = Gradients(tuple(bvals.tolist()), tuple(map(tuple, bvecs.tolist())), 50.0)
    subject = Subject(stem="none", original=image, image=image, dwi=image.array("dwi"), gradients=gradients)
    stage = look(subject, Mask(volume(image, "mask", "uint8"), (0, 96 * 96)), ())
    return chunk_sample(stage, 0, values, np.ones((1, 96, 96), np.uint8))


STEP = Step(
    name="volumes",
    summary="Look at the volumes of a series inside a mask: empty ones, dropped slices, spikes, steps.",
    papers=(PAPER,),
    takes=("dwi", "gradients", "mask"),
    gives=("volumes", "quality"),
    parameters=VolumesParameters,
    inspect=needs_mask_and_gradients("volumes"),
    stages=stages,
    outputs=(Output("quality", documents=describe_volumes),),
    kernels=("mpiimg.neuro.kernels.prediction:precompile",),
    rates={"volumes": (1.5e-8, "mpiimg.neuro.steps.volumes:sample_volumes")},
    examples=(
        (
            "What is wrong with which volume.",
            "mpiexec -n 4 mpiimg-volumes dwi.nii.gz --mask brain.nii.gz --out checks",
        ),
        (
            "Volumes with dropped slices or little in common with their neighbour count as left out.",
            'mpiimg-volumes dwi.nii.gz --mask brain.nii.gz --exclude "dropout,ndc<0.7" --out checks',
        ),
    ),
)
