"""The figures of a scan and of what came of it, and the slices that its report shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part, Rows
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Files, Found, Reduce, Stages
from mpiimg.engine.step import Output, Step
from mpiimg.neuro.gradients import Gradients, unit_vectors
from mpiimg.neuro.images import finite, sidecar, value_bytes
from mpiimg.neuro.maps import ROWS
from mpiimg.neuro.masks import Mask, volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.quality_figures import (
    DEFINITIONS,
    MAX_MD,
    OF_SHELLS,
    QualityFigures,
    sums_of,
)
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.shown_slices import (
    Layout,
    Shown,
    file_of,
    planes_to_show,
    show,
    volumes_to_show,
    write_slices,
)
from mpiimg.neuro.steps import volumes
from mpiimg.neuro.steps.volumes import LARGEST, look
from mpiimg.neuro.subject import Subject, dense, gradients_of, needs_mask_and_gradients
from mpiimg.neuro.volume_quality import UNKNOWN

PAPERS = (
    "NDC: Yeh et al. 2019, doi:10.1016/j.neuroimage.2019.116131",
    "SNR and CNR: Bastiani et al. 2019, doi:10.1016/j.neuroimage.2018.09.073",
    "names of figures: Esteban et al. 2017 (MRIQC), doi:10.1371/journal.pone.0184661; Cieslak et al. 2021 "
    "(QSIPrep), doi:10.1038/s41592-021-01185-5",
)

#: Rows of the maps that figures are of: FA, mean diffusivity, S0 and the tensor.
OF_MAPS = tuple(sorted((*ROWS["fa"], *ROWS["md"], *ROWS["s0"], *ROWS["tensor"])))


@dataclass(frozen=True)
class Checked:
    """What the step makes.

    Parameters
    ----------
    figures : QualityFigures, optional
        None in a plan.
    shown : Shown
    """

    figures: QualityFigures | None
    shown: Shown


def stages(subject: Subject, p: Any, data: Any) -> Stages[Subject]:
    """Yield the look at volumes where no step has had it, the figures, and the cutting of slices."""
    subject = _of_these_volumes(subject)
    if subject.denoised is None:
        subject = yield from dense(subject)
        raw, image = subject.dwi, subject.image
    else:
        raw, image = subject.denoised.dwi, subject.denoised.image
    if subject.quality is None:
        scanned = dataclasses.replace(subject, dwi=raw, image=image)
        quality = yield look(scanned, subject.mask, ())
        subject = dataclasses.replace(subject, quality=quality)
    figures = yield measure(subject, raw, image)
    shape, chosen = image.shape[-3:], volumes_to_show(subject)
    extent = [(0, n - 1) for n in shape] if figures is None else figures.extent
    kinds = 1 if subject.denoised is None else 2
    layout = Layout(chosen, kinds, shape, planes_to_show(shape, extent))
    yield from show(subject, raw, image, layout)
    shown = Shown(layout, layout.axial, layout.lines)
    return dataclasses.replace(subject, checked=Checked(figures, shown))


def _of_these_volumes(subject: Subject) -> Subject:
    """Return a subject without what was found of another choice of volumes than the present one."""
    count = len(gradients_of(subject).bvals)
    if subject.denoised is not None and subject.denoised.image.shape[0] != count:
        subject = dataclasses.replace(subject, denoised=None)
    if subject.quality is not None and len(subject.quality.volumes) != count:
        subject = dataclasses.replace(subject, quality=None)
    if subject.maps is not None and max(subject.maps.volumes) >= count:
        subject = dataclasses.replace(subject, maps=None)
    return subject


def measure(subject: Subject, raw: Array, image: Image) -> Reduce[QualityFigures]:
    """Declare the figures, slice by slice: a slice of all volumes is a chunk.

    Parameters
    ----------
    subject : Subject
        With mask and gradients, and what else steps before have made.
    raw : Array
        (V, z, y, x) as scanned.
    image : Image
        Whose voxels these are.
    """
    mask, sums = subject.mask, sums_of(subject)
    depth, height, width = image.shape[-3:]
    reads = [Part(raw), Part(mask.array)]
    denoised = subject.denoised and subject.denoised.voxels
    if denoised is not None:
        reads.append(Part(denoised))
    if subject.maps is not None:
        reads.append(Rows(subject.maps.voxels, OF_MAPS))

    def work(chunk, block, mask_block, *others):
        inside, others = mask_block[0] != 0, list(others)
        values = finite(image.scaled(block[:, 0][:, inside]))
        if values.dtype.kind == "f":
            values = np.clip(values, -LARGEST, LARGEST)
        clean = None
        if denoised is not None:
            clean = others.pop(0)
            clean = clean if denoised.packing is not None else clean[:, 0][:, inside]
        return sums.of_slice(inside, values.astype(np.float32), clean, others[0] if others else None)

    counts, count = np.diff(mask.offsets), raw.shape[0]
    # The voxels in the mask as they are, on their way to float32, and clipped; then the denoised ones.
    itemsize, is_float = np.dtype(image.native).itemsize, np.dtype(image.native).kind == "f"
    laid_out = denoised is not None and denoised.packing is None
    per_sample = (
        itemsize + value_bytes(image) + 4 + 8 * (is_float or value_bytes(image) > 0) + 4 * laid_out + 1
    )
    return Reduce(
        "figures",
        ChunkGrid("z", (depth,), (1,)),
        reads=tuple(reads),
        work=work,
        row=((sums.width,), "float64"),
        finish=lambda rows: Found(sums.figures(rows, subject)),
        parameters=None,
        weights=tuple(counts.tolist()),
        scratch=int(max(counts)) * (count * per_sample + 200) + 64 * height * width + (2 << 20),
        finish_bytes=4 * depth * sums.width * 8,
        cost=("qc", float(mask.voxels) * count),
    )


# --- Results ----------------------------------------------------------------------------------------------


def write(subject: Subject, p: Any, folder: Path) -> Files:
    """Declare the file of slices."""
    return write_slices(
        subject, subject.checked.shown, subject.checked.figures, str(folder / file_of(subject))
    )


def describe(subject: Subject, p: Any) -> Mapping[str, bytes]:
    """Return the figures as a table of one row, and as JSON with their units and definitions."""
    base, figures = file_of(subject).removesuffix(".npz"), subject.checked.figures
    if figures is None:
        return {f"{base}.tsv": b"", f"{base}.json": b"{}"}
    numbers = figures.numbers
    cells = [UNKNOWN if value is None else str(value) for value in numbers.values()]
    text = "\t".join(numbers) + "\n" + "\t".join(cells) + "\n"
    described = sidecar(
        Description="Figures of the scan and of what came of it",
        Reference="; ".join(PAPERS),
        **numbers,
        Histograms={
            name: {"Counts": counts, "Units": unit, "Largest": largest}
            for (name, counts), unit, largest in zip(
                figures.histograms.items(), ("1", "mm^2/s"), (1.0, MAX_MD), strict=False
            )
        },
        Definitions={
            name: {"Units": unit, "Description": text} if unit else {"Description": text}
            for name, (unit, text) in ((name, definition(name)) for name in numbers)
        },
    )
    return {f"{base}.tsv": text.encode(), f"{base}.json": described}


def definition(name: str) -> tuple[str, str]:
    """Return unit and definition of a figure."""
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    return next(about for start, about in OF_SHELLS.items() if name.startswith(start))


def sample_qc() -> RateSample:
    """Measure a slice; voxels times volumes."""
    image, values = image_of((64, 1, 96, 96))
    bvals = np.where(np.arange(64) % 8 == 0, 0.0, 1000.0)
    bvecs = unit_vectors(np.random.default_rng(2).normal(size=(64, 3))) * (bvals > 0)[:, None]
    gradients = Gradients(tuple(bvals.tolist()), tuple(map(tuple, bvecs.tolist())), 50.0)
    raw = image.array("dwi")
    mask = Mask(volume(image, "mask", "uint8"), (0, 96 * 96))
    subject = Subject(stem="none", original=image, image=image, dwi=raw, gradients=gradients, mask=mask)
    return chunk_sample(measure(subject, raw, image), 0, values, np.ones((1, 96, 96), np.uint8))


STEP = Step(
    name="qc",
    summary="Measure how good a series is and what came of it: the figures and slices of its report.",
    papers=PAPERS,
    takes=("dwi", "gradients", "mask"),
    may_take=("denoised", "maps", "quality"),
    gives=("checked",),
    inspect=needs_mask_and_gradients("qc"),
    stages=stages,
    examples=(
        (
            "How good a scan is, before anything is done with it.",
            "mpiexec -n 4 mpiimg-qc dwi.nii.gz --mask brain.nii.gz --out checks",
        ),
    ),
    outputs=(Output("checked", write, documents=describe),),
    kernels=(
        "mpiimg.neuro.kernels.prediction:precompile",
        "mpiimg.neuro.kernels.contrast:precompile",
    ),
    rates={"qc": (6.0e-9, "mpiimg.neuro.steps.qc:sample_qc"), **volumes.STEP.rates},
)
