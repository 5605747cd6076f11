"""A diffusion subject as a chain of steps knows it, and the two sources that a chain starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.inputs import said_of_file
from mpiimg.engine.stage import Stages
from mpiimg.engine.step import Argument, Inspection, Source, State
from mpiimg.errors import BadInput
from mpiimg.neuro.continuity import Verdict
from mpiimg.neuro.floor import Figures, Floor
from mpiimg.neuro.given_masks import take_given
from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.images import brought_in, count_nonfinite, unpack
from mpiimg.neuro.mask_checks import checked_mask
from mpiimg.neuro.masks import Mask, signal_of, volume
from mpiimg.neuro.metadata import inherited_fields
from mpiimg.neuro.nifti import Image, Voxels, open_image, same_space
from mpiimg.neuro.tables.files import find_tables
from mpiimg.neuro.tables.options import GradientParameters
from mpiimg.neuro.tables.source import SETTLED, Taken, Unsettled, settle, take_gradients
from mpiimg.neuro.volume_quality import VolumeQuality


@dataclass(frozen=True)
class Noise:
    """The noise level of the magnitude image.

    Parameters
    ----------
    sigma : (V or 1, nz or 1) float64, optional
        By volume, or by slice; image units. None where it is by voxel.
    method : str
        "fit", "piesno", "estimate", "given" or "map".
    level : float
        One number for all of the image: the median of what there is.
    found : mapping of str to float
        What each way to it has found, also those that were not taken.
    by_voxel : Array, optional
        (z, y, x) float32, above 0.
    """

    sigma: np.ndarray | None
    method: str
    level: float
    found: Mapping[str, float] = field(default_factory=dict)
    by_voxel: Array | None = None


@dataclass(frozen=True)
class Denoised:
    """What denoising made, and of what.

    Parameters
    ----------
    voxels : Array
        float32: (V, z, y, x), or (V, n), the voxels in the mask, where only these were denoised.
    image : Image
        Whose voxels were denoised.
    dwi : Array
        (V, z, y, x), these voxels.
    noise : Noise
    """

    voxels: Array
    image: Image
    dwi: Array
    noise: Noise


@dataclass(frozen=True)
class Maps:
    """What a fit made.

    Parameters
    ----------
    voxels : Array
        (c, n) float32, the voxels in the mask.
    volumes : tuple of int
        Those that were fitted.
    floor : Floor
        Of the signals.
    figures : Figures
        What the fit came to.
    frame, order : str
        Of the tensor: a key of :data:`mpiimg.neuro.maps.FRAMES`, and of `ORDERS`.
    verdict : str
        What the check of the gradient table came to, in words; empty where it was not made.
    """

    voxels: Array
    volumes: tuple[int, ...]
    floor: Floor
    figures: Figures
    frame: str = "bvec"
    order: str = "dipy"
    verdict: str = ""


@dataclass(frozen=True)
class NamedImages:
    """Images that functions of a pipeline read by name: from files, or made by functions before them.

    Parameters
    ----------
    names : tuple of str
    images : tuple of Image
        Space, shape, type and scaling of each.
    arrays : tuple of Array
        Its voxels.
    """

    names: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    arrays: tuple[Array, ...] = ()

    def __getitem__(self, name: str) -> tuple[Image, Array]:
        number = self.names.index(name)
        return self.images[number], self.arrays[number]

    def with_one(self, name: str, image: Image, array: Array) -> NamedImages:
        """Return these and one more."""
        return NamedImages((*self.names, name), (*self.images, image), (*self.arrays, array))


@dataclass(frozen=True, kw_only=True)
class Subject(State):
    """What a chain of steps knows of a subject at each point; `stem` is that of the image.

    Parameters
    ----------
    original : Image
        The image as it lies on disk.
    image : Image
        Space, shape, type and scaling of the current image: `original`, or what a step has made of it.
    dwi : Array, optional
        Its voxels, (V, z, y, x) or (z, y, x); None where only `packed` ones are there. :func:`dense` lays
        those out.
    packed : Array, optional
        Its voxels in the mask, (V, n), where only these were denoised.
    volumes : tuple of int
        The numbers that the current volumes have in `original`; empty for an image of three dimensions.
    gradients : Gradients, optional
    mask : Mask, optional
    denoised : Denoised, optional
        What the last denoising made.
    quality : VolumeQuality, optional
        What was found of the volumes, and which of them were left out.
    maps : Maps, optional
        What the last fit made.
    gradcheck : Verdict, optional
        What the last check of the gradient table came to.
    checked : object
        The figures of the scan and the slices that are shown: a dataclass of the step qc.
    mask_image : Image, optional
        The file of a mask that the user gave.
    gradient_files : mapping of str to bytes
        Gradient files by ending (.bval, .bvec), to be written beside a denoised image.
    unsettled : Unsettled
        What waits for the voxels: volumes that are left out, what the image is to tell of its gradients.
    inherited : mapping
        What the sidecars of the image say that is as true of a series made from it.
    result : object
        What the last function of a user's made; a dataclass of mpiimg.functions.
    named : NamedImages
        What functions read by name.
    """

    original: Image
    image: Image
    dwi: Array | None
    packed: Array | None = None
    volumes: tuple[int, ...] = ()
    gradients: Gradients | None = None
    mask: Mask | None = None
    denoised: Denoised | None = None
    quality: VolumeQuality | None = None
    maps: Maps | None = None
    gradcheck: Verdict | None = None
    checked: Any = None
    mask_image: Image | None = None
    gradient_files: Mapping[str, bytes] = field(default_factory=dict)
    unsettled: Unsettled = SETTLED
    inherited: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    named: NamedImages = NamedImages()

    @property
    def has_given_mask(self) -> bool:
        """Whether the mask is one that the user gave; steps do not compute another."""
        return self.mask is not None and self.mask.file is not None


def mask_file(subject: Subject) -> str:
    """Return the name of the file that the mask is written to."""
    return f"{subject.stem}_desc-brain_mask.nii.gz"


def mask_source(subject: Subject) -> str:
    """Return the name of the file that the mask lies in, as sidecars say it."""
    if subject.has_given_mask:
        return subject.mask.file.path.name
    return subject.mask.result or mask_file(subject)


def dense(subject: Subject, name: str = "unpacked") -> Stages[Subject]:
    """Lay the current image out where only its voxels in the mask are there; 0 outside the mask.

    Parameters
    ----------
    subject : Subject
    name : str
        Of the array (V, z, y, x) that is written, if any.

    Returns
    -------
    Subject
        With `dwi`.
    """
    if subject.packed is None:
        return subject
    written = subject.image.array(name)
    yield unpack(subject.mask.array, subject.packed, written)
    return dataclasses.replace(subject, dwi=written, packed=None)


def gradients_of(subject: Subject) -> Gradients:
    """Return the gradients of a subject.

    Raises
    ------
    BadInput
        None were given, and none lie beside the image.
    """
    if subject.gradients is None:
        find_tables(subject.original, {}, needed=True)
        raise BadInput(
            f"{subject.original.path}: gradients are needed, and this image is not a series of volumes"
        )
    return subject.gradients


def mask_of(subject: Subject, step: str) -> Mask:
    """Return the mask of a subject.

    Raises
    ------
    BadInput
        None was given, and no step has made one.
    """
    if subject.mask is None:
        raise BadInput(
            f"{subject.original.path}: {step} needs a mask: give --mask, or put a mask stage before it"
        )
    return subject.mask


def needs_mask_and_gradients(step: str) -> Callable[[Subject, Any], Inspection]:
    """Return the inspection of a step that needs a mask and gradients, and looks at nothing else."""

    def inspect(subject: Subject, parameters: Any) -> Inspection:
        mask_of(subject, step)
        gradients_of(subject)
        return Inspection()

    return inspect


# --- Sources ----------------------------------------------------------------------------------------------


def inspect_image(paths: Mapping[str, Any], p: GradientParameters, taken: frozenset[str]) -> Subject:
    """Read the headers of an image of 3 or 4 dimensions, and of what belongs to it.

    Raises
    ------
    BadInput
        Something cannot be used, or does not fit together.
    """
    image = open_image(Path(paths["dwi"]), (3, 4))
    series = take_gradients(image, paths, p, taken)
    return _subject(image, dataclasses.replace(series, gradient_files={}), paths, taken)


def inspect_dwi(paths: Mapping[str, Any], p: GradientParameters, taken: frozenset[str]) -> Subject:
    """Read the headers of a diffusion series, its gradients and its mask.

    Raises
    ------
    BadInput
        Something is missing, cannot be used, or does not fit together.
    """
    image = open_image(Path(paths["dwi"]), 4, "diffusion image")
    series = take_gradients(image, paths, p, taken)
    deviations = image.path.parent / "grad_dev.nii.gz"
    if deviations.exists():
        text = f"{deviations} is not used: gradients count as equal in all voxels"
        series = dataclasses.replace(series, warnings=(*series.warnings, text))
    inherited = inherited_fields(image.path)
    sidecars = {"sidecars": [said_of_file(file) for file in inherited.files]} if inherited.files else {}
    series = dataclasses.replace(
        series, said={**series.said, **sidecars}, warnings=(*series.warnings, *inherited.warnings)
    )
    return dataclasses.replace(_subject(image, series, paths, taken), inherited=inherited.fields)


def _subject(image: Image, series: Taken, paths: Mapping[str, Any], taken: frozenset[str]) -> Subject:
    voxels = Voxels(image, "dwi")
    inputs, sources = [voxels], {"dwi": identity(image), **series.said}
    mask_image = None
    if paths.get("mask"):
        mask_image = open_image(Path(paths["mask"]), 3, "mask")
        difference = same_space(image, mask_image)
        if difference:
            raise BadInput(
                f"{paths['mask']}: this mask is not in the space of {image.path}: they differ in {difference}"
            )
        inputs.append(Voxels(mask_image, "mask-image"))
        sources["mask"] = identity(mask_image)
    named = _named(image, paths.get("named") or {})
    inputs += [Voxels(one, array.name) for one, array in zip(named.images, named.arrays, strict=True)]
    sources |= {f"input {name}": identity(one) for name, one in zip(named.names, named.images, strict=True)}
    return Subject(
        stem=image.stem,
        original=image,
        image=image,
        dwi=voxels.laid_out,
        volumes=tuple(range(image.shape[0])) if len(image.shape) == 4 else (),
        gradients=series.gradients,
        mask_image=mask_image,
        gradient_files=series.gradient_files,
        unsettled=series.unsettled,
        inputs=tuple(inputs),
        sources=sources,
        warnings=(
            *series.warnings,
            *(text for one in (image, mask_image, *named.images) if one is not None for text in one.words),
        ),
        notes=series.notes,
        named=named,
    )


def _named(image: Image, paths: Mapping[str, Any]) -> NamedImages:
    """Read the headers of images that functions read by name, which are in the space of the image."""
    named = NamedImages()
    for name, path in paths.items():
        one = open_image(Path(path), (3, 4), f"image {name}")
        difference = same_space(image, one)
        if difference:
            raise BadInput(
                f"{path}: the image {name} is not in the space of {image.path}: they differ in {difference}"
            )
        named = named.with_one(name, one, one.array(f"input-{name}"))
    return named


def identity(image: Image) -> dict[str, Any]:
    """Return what run.json says of an image."""
    size, time, crc = image.identity
    return {
        "path": str(image.path),
        "bytes": size,
        "mtime_ns": time,
        "header_crc32": crc,
        "sample_crc32": image.sample[2],
        "shape": image.shape,
    }


def read_image(subject: Subject, p: GradientParameters, taken: frozenset[str]) -> Stages[Subject]:
    """Yield how an image and its mask come into arrays."""
    yield from _streamed(subject)
    subject = yield from settle(subject)
    return (yield from _given_mask(subject, p, taken))


def read_dwi(subject: Subject, p: GradientParameters, taken: frozenset[str]) -> Stages[Subject]:
    """Yield the same, with the voxels counted that are not finite."""
    yield from _streamed(subject)
    check = count_nonfinite(subject.image, subject.dwi)
    if check is not None:
        yield check
    subject = yield from settle(subject)
    return (yield from _given_mask(subject, p, taken))


def _streamed(subject: Subject) -> Stages[None]:
    """Yield the reading of the image, and of those with names, where ranks cannot read one as it lies."""
    names = ("dwi", *(array.name for array in subject.named.arrays))
    for source in subject.inputs:
        if source.laid_out.name in names:
            yield from brought_in(source)


def _given_mask(subject: Subject, p: GradientParameters, taken: frozenset[str]) -> Stages[Subject]:
    if subject.mask_image is None or "mask" not in taken:
        return subject
    image = subject.mask_image
    for source in subject.inputs:
        if source.laid_out.name == "mask-image":
            yield from brought_in(source)
    array = volume(subject.image, "given-mask", "uint8")
    where = str(image.path)
    yield from take_given(image, image.array("mask-image"), array, where)
    signal = signal_of(subject.image, subject.dwi)
    mask = yield from checked_mask(array, subject.image, where, p.expect_ml, signal)
    return dataclasses.replace(subject, mask=dataclasses.replace(mask, file=image))


ARGUMENTS = (
    Argument(
        "dwi",
        "The diffusion MRI, as NIfTI (.nii, .nii.gz, .hdr with .img), MRtrix's .mif, FreeSurfer's .mgz, or "
        "as a staged file (.h5).",
        positional=True,
    ),
    Argument(
        "bvals",
        "The b-values in FSL's text format (default: the file beside the image).",
        of="gradients",
        optional=True,
    ),
    Argument(
        "bvecs",
        "The gradient directions in FSL's text format, one row or one column per volume (default: the file "
        "beside the image).",
        of="gradients",
        optional=True,
    ),
    Argument(
        "grad",
        "In place of both, a table of MRtrix3: x, y, z in scanner axes and b, a row per volume.",
        of="gradients",
        optional=True,
    ),
    Argument(
        "mask",
        "A brain mask in the space of the image; what is not 0, or has a probability of 0.5, is inside.",
        of="mask",
    ),
)

#: For chains that take nothing of a diffusion series, such as a user's function over any image.
IMAGES = Source(
    name="an image of 3 or 4 dimensions",
    gives=("image", "gradients", "mask"),
    arguments=ARGUMENTS,
    inspect=inspect_image,
    stages=read_image,
    parameters=GradientParameters,
)

#: For chains with a step that works on diffusion series.
SERIES = Source(
    name="a diffusion series",
    gives=("image", "dwi", "gradients", "mask"),
    arguments=ARGUMENTS,
    inspect=inspect_dwi,
    stages=read_dwi,
    parameters=GradientParameters,
)
