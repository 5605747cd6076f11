"""Brain mask: mean of the b0 volumes, repeated median filter, Otsu threshold.

The method is dipy's median_otsu. From the float64 mean on (one cast to
float32), the result is that of scipy's median filter and dipy's own copy of
Otsu's threshold to the last bit. scikit-image's Otsu, which dipy takes where it
is installed, differs by some voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.halo import extended
from mpiimg.engine.needs import Part, Rows
from mpiimg.engine.parameters import parameter
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Compute, Found, Reduce, Sink, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput
from mpiimg.neuro.images import finite, sidecar, sidecar_name, write_dense
from mpiimg.neuro.masks import Mask, count_voxels, slabs, volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.subject import Subject, dense, gradients_of, mask_file

PAPER = "Otsu 1979, doi:10.1109/TSMC.1979.4310076; median_otsu of DIPY, doi:10.3389/fninf.2014.00008"


@dataclass(frozen=True)
class MaskParameters:
    """How the brain is found."""

    median_radius: int = parameter(
        4, "The median filter takes a cube of this radius.", unit="voxels", limits=(0, 19)
    )
    passes: int = parameter(4, "The median filter runs this many times.", limits=(0, 100))
    dilate: int = parameter(
        0, "The mask grows by this many voxels, along the axes only.", unit="voxels", limits=(0, 1000)
    )
    finalize: bool = parameter(
        False, "Holes in the mask are filled, and all pieces but the largest are removed."
    )


class Span(NamedTuple):
    """The smallest and the largest value of an image, float32."""

    low: np.float32
    high: np.float32


def inspect(subject: Subject, p: MaskParameters) -> Inspection:
    """Check that there are gradients where a mask is to be computed.

    Raises
    ------
    BadInput
        There are none.
    """
    if not subject.has_given_mask:
        gradients_of(subject)
    return Inspection()


def stages(subject: Subject, p: MaskParameters, data: Any) -> Stages[Subject]:
    """Yield how the mask comes from the b0 volumes; one that the user gave is left as it is."""
    if subject.has_given_mask:
        return subject
    subject = yield from dense(subject)
    image = subject.image
    smooth = volume(image, "b0", "float32")
    yield b0_mean(image, subject.dwi, gradients_of(subject).b0, smooth)
    for number in range(1, p.passes + 1):
        rough, smooth = smooth, volume(image, f"median-{number}", "float32")
        yield median(rough, smooth, number, p.median_radius)
    span = yield value_range(smooth, str(image.path))
    level = yield otsu(smooth, span)
    mask = volume(image, "thresholded", "uint8")
    yield above_threshold(smooth, level, mask)
    if p.dilate > 0:
        smaller, mask = mask, volume(image, "dilated", "uint8")
        yield dilate(smaller, p.dilate, mask)
    if p.finalize:
        raw, mask = mask, volume(image, "finalized", "uint8")
        yield finalize(raw, mask)
    offsets = yield count_voxels(mask, f"{image.path}: the computed mask")
    return dataclasses.replace(subject, mask=Mask(mask, offsets, threshold=float(level)))


# --- Stages -----------------------------------------------------------------------------------------------


def b0_mean(image: Image, dwi: Array, b0: tuple[int, ...], mean: Array) -> Compute:
    """Declare the mean of the unweighted volumes: in float64, in their order, rounded once.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    b0 : tuple of int
        The unweighted volumes, ascending.
    mean : Array
        (z, y, x) float32, written.
    """

    def work(chunk, block):
        total = np.zeros(block.shape[1:])
        for one in block:
            total += finite(image.scaled(one))
        return ((total / len(b0)).astype(np.float32),)

    return Compute(
        "b0-mean",
        slabs(image.shape[-3]),
        reads=(Rows(dwi, b0),),
        writes=(mean,),
        work=work,
        parameters={"b0": b0, "slope": image.slope, "inter": image.inter},
    )


def median(source: Array, smooth: Array, number: int, radius: int) -> Compute:
    """Declare a median filter over a cube, edges mirrored.

    Parameters
    ----------
    source : Array
        (z, y, x) float32.
    smooth : Array
        Likewise, written.
    number : int
        Of the pass, from 1.
    radius : int
        The cube has 2 radius + 1 voxels along each axis.
    """
    depth = source.shape[0]

    def work(chunk, block):
        from mpiimg.neuro.kernels.median import median_filter

        return (median_filter(extended(block, chunk.bounds["z"], radius, depth, edge=True), radius),)

    return Compute(
        f"median-{number}",
        slabs(depth),
        reads=(Part(source, {"z": radius}),),
        writes=(smooth,),
        work=work,
        parameters={"radius": radius},
        cost=("median", float(np.prod(source.shape)) * (2 * radius + 1) ** 2),
    )


def value_range(source: Array, where: str) -> Reduce[Span]:
    """Declare the search for the smallest and largest value, between which Otsu's histogram lies.

    Parameters
    ----------
    source : Array
        (z, y, x) float32.
    where : str
        The image's name in messages.

    Returns
    -------
    Reduce
        Its end raises BadInput where all values are the same.
    """

    def finish(rows):
        low, high = rows[:, 0].min(), rows[:, 1].max()
        if low == high:
            raise BadInput(
                f"{where}: the smoothed b0 is {low:g} everywhere: there is no brain to find; "
                "give a mask with --mask, or a smaller --median-radius"
            )
        return Found(Span(low, high))

    return Reduce(
        "range",
        slabs(source.shape[0]),
        reads=(Part(source),),
        work=lambda chunk, block: (block.min(), block.max()),
        row=((2,), "float32"),
        finish=finish,
        parameters={},
        expected=Span(np.float32(0), np.float32(1)),
    )


def otsu(source: Array, span: Span) -> Reduce[float]:
    """Declare Otsu's threshold from the sum of the chunks' histograms.

    Parameters
    ----------
    source : Array
        (z, y, x) float32.
    span : Span
        Of its values.
    """

    def work(chunk, block):
        from mpiimg.neuro.kernels.otsu import histogram

        return histogram(block, span.low, span.high)

    def finish(rows):
        from mpiimg.neuro.kernels.otsu import threshold

        return Found(threshold(rows.sum(axis=0), span.low, span.high))

    return Reduce(
        "otsu",
        slabs(source.shape[0]),
        reads=(Part(source),),
        work=work,
        row=((256,), "int64"),
        finish=finish,
        parameters={"low": float(span.low), "high": float(span.high)},
        expected=0.0,
    )


def above_threshold(source: Array, level: float, mask: Array) -> Compute:
    """Declare the mask of the voxels strictly above the threshold."""
    return Compute(
        "threshold",
        slabs(source.shape[0]),
        reads=(Part(source),),
        writes=(mask,),
        work=lambda chunk, block: (block > level,),
        parameters={"level": float(level)},
    )


def dilate(source: Array, voxels: int, mask: Array) -> Compute:
    """Declare how a mask grows by a cross of 6 neighbours, `voxels` times."""

    def work(chunk, block):
        from scipy.ndimage import binary_dilation, generate_binary_structure

        grown = binary_dilation(block, generate_binary_structure(3, 1), iterations=voxels)
        start, stop = chunk.bounds["z"]
        first = start - max(start - voxels, 0)
        return (grown[first : first + stop - start],)

    return Compute(
        "dilate",
        slabs(source.shape[0]),
        reads=(Part(source, {"z": voxels}),),
        writes=(mask,),
        work=work,
        parameters={"voxels": voxels},
    )


def finalize(source: Array, mask: Array) -> Compute:
    """Declare a mask of the largest island without holes; one chunk, since a hole may cross all slices."""

    def work(chunk, block):
        from dipy.segment.utils import remove_holes_and_islands

        return (remove_holes_and_islands(block.astype(bool)),)

    depth = source.shape[0]
    return Compute(
        "finalize",
        ChunkGrid("z", (depth,), (depth,)),
        reads=(Part(source),),
        writes=(mask,),
        work=work,
        parameters={},
    )


# --- Results ----------------------------------------------------------------------------------------------


def write_mask(subject: Subject, p: MaskParameters, folder: Path) -> Sink:
    """Declare the file of the mask."""
    file = str(folder / mask_file(subject))
    reads = (Part(subject.mask.array),)
    return write_dense(file, subject.image, reads, lambda chunk, block: block, None, "uint8")


def describe_mask(subject: Subject, p: MaskParameters) -> Mapping[str, bytes]:
    """Return the sidecar of the mask."""
    mask = subject.mask
    if mask.file is not None:
        method = {"Method": "given by the user", "Sources": [mask.file.path.name]}
    else:
        method = {
            "Method": "median_otsu: mean b0, median filter, Otsu's threshold (DIPY's)",
            "MedianRadius": p.median_radius,
            "Passes": p.passes,
            "Dilate": p.dilate,
            "Finalize": p.finalize,
            "Threshold": mask.threshold,
        }
    text = sidecar(Type="Brain", Units="1", Description="1 inside the brain", Voxels=mask.voxels, **method)
    return {sidecar_name(mask_file(subject)): text}


def sample_median() -> RateSample:
    """Filter a block of slices; voxels times the columns of a cube."""
    image, voxels = image_of((24, 64, 64))
    stage = median(volume(image, "b0", "float32"), volume(image, "smooth", "float32"), 1, 4)
    return chunk_sample(stage, 0, voxels[:6].astype(np.float32))


STEP = Step(
    name="mask",
    summary="Find the brain in the b0 volumes: mean, median filter, Otsu threshold.",
    papers=(PAPER,),
    takes=("dwi", "gradients"),
    gives=("mask",),
    parameters=MaskParameters,
    inspect=inspect,
    stages=stages,
    outputs=(Output("mask", write_mask, documents=describe_mask),),
    kernels=("mpiimg.neuro.kernels.median:precompile",),
    rates={"median": (3.3e-9, "mpiimg.neuro.steps.mask:sample_median")},
)
