"""Brain mask: from the b0 volumes, as dipy's median_otsu, or from all shells, as MRtrix3's dwi2mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.halo import trimmed
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.stage import Compute, Sink, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.neuro import dwi2mask, median_otsu
from mpiimg.neuro.images import sidecar, sidecar_name, write_dense
from mpiimg.neuro.lengths import Length, LengthForm, voxel_sizes
from mpiimg.neuro.mask_checks import checked_mask, expect_ml_parameter
from mpiimg.neuro.masks import Brain, slabs, volume
from mpiimg.neuro.median_otsu import Radius
from mpiimg.neuro.subject import Subject, dense, gradients_of, mask_file

#: A median radius, as its kernel takes it.
MAX_RADIUS = 19
RADIUS_FORM = LengthForm(voxels=MAX_RADIUS, mm=100, words=("auto",))

#: How far a mask may grow.
DILATION_FORM = LengthForm(voxels=1000, mm=1000)

#: The radius of images with voxels longer than `COARSE` mm along any axis, and of all others.
COARSE_RADIUS = Length(8.0, "mm")
FINE_RADIUS = Length(4.0, "voxels")
COARSE = 2.001

#: A radius in mm is at most so many voxels.
MAX_RADIUS_FROM_MM = 8


@dataclass(frozen=True)
class MaskParameters:
    """How the brain is found."""

    mask_method: str = parameter(
        "median_otsu",
        "The brain is what lies above Otsu's threshold of the smoothed mean of the b0 volumes, and all "
        "voxels that are not 0 where there is no background (median_otsu); the first alone, to DIPY's very "
        "voxels (dipy); or what MRtrix3's legacy algorithm finds in all shells (dwi2mask).",
        choices=("median_otsu", "dipy", "dwi2mask"),
    )
    median_radius: str = parameter(
        "auto",
        "The median filter takes a box of this radius, in voxels or mm, as 4 or 8mm; auto is 8mm where "
        "voxels are longer than 2 mm, and else 4 voxels.",
        limits=(0, MAX_RADIUS),
        metavar="LENGTH",
        form=RADIUS_FORM,
    )
    passes: int = parameter(4, "The median filter runs this many times.", limits=(0, 100))
    dilate: str = parameter(
        "0",
        "The mask grows by this many voxels along the axes, or by a length in all directions, as 5mm.",
        limits=(0, 1000),
        metavar="LENGTH",
        form=DILATION_FORM,
    )
    finalize: bool = parameter(
        False, "Holes in the mask are filled, and all pieces but the largest are removed."
    )
    expect_ml: str | None = expect_ml_parameter()


def inspect(subject: Subject, p: MaskParameters) -> Inspection:
    """Check that there are gradients where a mask is to be computed.

    Raises
    ------
    BadInput
        There are none.
    """
    if subject.has_given_mask:
        return Inspection()
    gradients_of(subject)
    radius = radius_of(p, voxel_sizes(subject.image))
    warnings = ()
    if p.mask_method != "dwi2mask" and radius.is_cut:
        warnings = (
            f"{subject.image.path}: a median radius of {radius.length} is more than {MAX_RADIUS_FROM_MM} "
            f"voxels; {radius} are taken",
        )
    return Inspection(warnings=warnings)


def stages(subject: Subject, p: MaskParameters, data: Any) -> Stages[Subject]:
    """Yield how the mask comes from the volumes; one that the user gave is left as it is."""
    if subject.has_given_mask:
        return subject
    subject = yield from dense(subject)
    image = subject.image
    found = yield from _found(subject, p)
    mask, sizes = found.mask, voxel_sizes(image)
    growth = DILATION_FORM.read(p.dilate)
    if growth.number > 0:
        smaller, mask = mask, volume(image, "dilated", "uint8")
        yield dilate(smaller, growth, sizes, mask)
    if p.finalize:
        raw, mask = mask, volume(image, "finalized", "uint8")
        yield finalize(raw, mask)
    where = f"{image.path}: the computed mask"
    checked = yield from checked_mask(mask, image, where, p.expect_ml, found.signal, found.is_everything)
    about = {**found.about, "Dilate": p.dilate, "Finalize": p.finalize, **checked.about}
    return dataclasses.replace(subject, mask=dataclasses.replace(checked, about=about))


def _found(subject: Subject, p: MaskParameters) -> Stages[Brain]:
    """Yield the mask as its method finds it."""
    image, gradients = subject.image, gradients_of(subject)
    if p.mask_method == "dwi2mask":
        return (yield from dwi2mask.dwi2mask(image, subject.dwi, gradients))
    radius, is_dipys = radius_of(p, voxel_sizes(image)), p.mask_method == "dipy"
    return (yield from median_otsu.median_otsu(image, subject.dwi, gradients.b0, p.passes, radius, is_dipys))


def radius_of(p: MaskParameters, sizes: tuple[float, float, float]) -> Radius:
    """Return the median radius for voxels of `sizes` in mm along z, y and x."""
    if p.median_radius != "auto":
        length = RADIUS_FORM.read(p.median_radius)
    else:
        length = COARSE_RADIUS if p.mask_method != "dipy" and max(sizes) > COARSE else FINE_RADIUS
    voxels = length.in_voxels(sizes)
    if length.unit == "voxels" or max(voxels) <= MAX_RADIUS_FROM_MM:
        return Radius(length, voxels)
    return Radius(length, tuple(min(one, MAX_RADIUS_FROM_MM) for one in voxels), True)


# --- Stages -----------------------------------------------------------------------------------------------


def dilate(source: Array, growth: Length, sizes: tuple[float, float, float], mask: Array) -> Compute:
    """Declare how a mask grows.

    Parameters
    ----------
    source : Array
        (z, y, x) uint8.
    growth : Length
        Voxels are steps to the 6 neighbours; a length in mm reaches all voxels within it.
    sizes : (float, float, float)
        Of a voxel in mm, along z, y and x.
    mask : Array
        Likewise, written.
    """
    in_mm = growth.unit == "mm"
    # A little more: the length may be a whole number of voxels, but for rounding.
    reach = growth.number * (1 + 1e-6)
    halo = math.floor(reach / sizes[0]) if in_mm else int(growth.number)

    def work(chunk, block):
        from scipy.ndimage import binary_dilation, distance_transform_edt

        if not in_mm:
            grown = binary_dilation(block, iterations=halo)
        elif block.any():
            grown = distance_transform_edt(block == 0, sampling=sizes) <= reach
        else:
            grown = block
        return (trimmed(grown, chunk.bounds["z"], halo),)

    thickness = slabs(source.shape[0]).block[0] + 2 * halo
    return Compute(
        "dilate",
        slabs(source.shape[0]),
        reads=(Part(source, {"z": halo}),),
        writes=(mask,),
        work=work,
        parameters={"growth": str(growth), "sizes": sizes},
        # Of each voxel the nearest one of the mask, and how far it is, in float64.
        scratch=(30 if in_mm else 4) * min(thickness, source.shape[0]) * math.prod(source.shape[1:])
        + (1 << 16),
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
        method = {}
    text = sidecar(
        Type="Brain",
        Units="1",
        Description="1 inside the brain",
        **method,
        **mask.about,
        Voxels=mask.voxels,
    )
    return {sidecar_name(mask_file(subject)): text}


STEP = Step(
    name="mask",
    summary="Find the brain in the b0 volumes: mean, median filter, Otsu threshold.",
    papers=(median_otsu.PAPER, dwi2mask.PAPER),
    takes=("dwi", "gradients"),
    gives=("mask",),
    parameters=MaskParameters,
    inspect=inspect,
    stages=stages,
    outputs=(Output("mask", write_mask, documents=describe_mask),),
    kernels=("mpiimg.neuro.kernels.median:precompile",),
    rates={"median": (3.3e-9, "mpiimg.neuro.median_otsu:sample_median")},
    examples=(
        (
            "The brain of an image, whose gradients lie beside it.",
            "mpiexec -n 4 mpiimg-mask dwi.nii.gz --out masks",
        ),
        ("A larger mask, without holes.", "mpiimg-mask dwi.nii.gz --dilate 2mm --finalize --out masks"),
    ),
)
