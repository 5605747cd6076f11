"""The recipe of a pipeline over an image: mask, denoising and fit of ours, and functions of the user's."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.plan import Recipe, Values
from mpiimg.engine.stage import Need
from mpiimg.engine.stores import Array
from mpiimg.errors import BadInput
from mpiimg.functions import over_images as user
from mpiimg.functions.declare import Function
from mpiimg.functions.over_images import Tried
from mpiimg.functions.request import Asked, Entry, label, with_libraries
from mpiimg.functions.trial import check_halo, document, try_function
from mpiimg.neuro import images as image
from mpiimg.neuro import neuro_steps
from mpiimg.neuro.gradients import read_gradients
from mpiimg.neuro.neuro_steps import Step, Subject
from mpiimg.neuro.nifti import Image, bare_name, open_image, same_space
from mpiimg.neuro.steps import mask
from mpiimg.neuro.subject import inspect_subject

#: What functions may know of gradients.
GRADIENTS = frozenset(("bvals", "bvecs"))


@dataclass(frozen=True)
class ImageRun:
    """A pipeline over an image, whose functions have been tried.

    Parameters
    ----------
    subject : what headers say
    tried : what trials tell of each entry; None for our tools
    answer : what to say in place of a run
    """

    asked: Asked
    subject: Subject
    tried: tuple[Tried | None, ...]
    answer: str = ""

    def recipe(self, p: Mapping[str, Any]) -> Recipe:
        """Put the stages together."""
        return _recipe(self, p)


def inspect_images(asked: Asked, args: argparse.Namespace) -> ImageRun:
    """Read the headers of an image and what belongs to it, and try every function.

    Raises
    ------
    BadInput : something cannot be used, or a function fails its trial
    """
    if len(asked.inputs) != 1:
        raise BadInput(f"{asked.name}: takes one image, not {len(asked.inputs)}")
    subject = _subject(asked, args)
    _check_order(asked, subject)
    _check_target(asked)
    tried, current, checks = [], subject.dwi, []
    has_mask = subject.mask is not None
    for entry in asked.entries:
        result = None
        has_mask = has_mask or entry.tool == "mask"
        if entry.function is not None:
            masked = has_mask and "mask" in entry.function.wants
            known = _context(subject)
            if args.check_halo:
                checks.append(check_halo(subject.dwi, entry.function, known, masked))
            result = try_function(current, entry.function, known, masked, subject.dwi)
        current = _after(current, entry, result)
        tried.append(result)
    if args.check_halo and not checks:
        raise BadInput(f"{asked.name}: --check-halo: there is no function to check")
    return ImageRun(asked, subject, tuple(tried), "\n".join(checks))


def _subject(asked: Asked, args: argparse.Namespace) -> Subject:
    """Read the image, and gradients and mask where the pipeline or a function needs them."""
    path, tools = asked.inputs[0], {entry.tool for entry in asked.entries}
    functions = [entry.function for entry in asked.entries if entry.function is not None]
    needed = "fit" in tools or ("mask" in tools and not args.mask) or bool(args.bvals or args.bvecs)
    needed = needed or any(GRADIENTS & function.requires for function in functions)
    if any(GRADIENTS & function.wants for function in functions):
        needed = needed or all(_beside(path, name).is_file() for name in GRADIENTS)
    bvals, bvecs = (_companion(path, getattr(args, name), name, needed) for name in ("bvals", "bvecs"))
    p = asked.parameters
    if tools - {""}:
        limits = (p["b0_threshold"], p["b_max"], p["normalise_bvecs"])
        return inspect_subject(str(path), bvals, bvecs, args.mask, *limits, fits="fit" in tools)
    img = open_image(path, (3, 4))
    gradients, warnings = None, []
    if needed and len(img.shape) == 4:
        gradients, warnings = read_gradients(
            Path(bvals), Path(bvecs), img.shape[0], p["b0_threshold"], p["normalise_bvecs"]
        )
    foreign = None
    if args.mask:
        foreign = open_image(Path(args.mask), 3, "mask")
        difference = same_space(img, foreign)
        if difference:
            raise BadInput(f"{args.mask}: not in the space of {path}: they differ in {difference}")
    return Subject(img, gradients, foreign, {}, tuple(warnings))


def _companion(path: Path, given: str | None, name: str, needed: bool) -> str | None:
    """Return the path of bvals or bvecs, where they are needed: as given, or beside the image."""
    if given or not needed:
        return given
    if not _beside(path, name).is_file():
        raise BadInput(
            f"{path}: gradients are needed and {_beside(path, name).name} is not beside it; give --{name}"
        )
    return str(_beside(path, name))


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{bare_name(path)}.{name[:-1]}")


def _check_order(asked: Asked, subject: Subject) -> None:
    masked = subject.mask is not None
    for entry in asked.entries:
        needs = entry.tool in ("denoise", "fit") or (entry.function and "mask" in entry.function.requires)
        masked = masked or entry.tool == "mask"
        if needs and not masked:
            raise BadInput(f"{asked.name}: {entry.name} needs a mask: give --mask, or a mask stage before it")


def _check_target(asked: Asked) -> None:
    if asked.target is None:
        return
    ending = ".json" if asked.entries[-1].function.aggregate else ".nii.gz"
    if not asked.target.name.endswith(ending) or asked.target.name == ending:
        raise BadInput(f"{asked.target}: the result of {asked.name} is written as {ending}; name it so")
    if asked.target.resolve() == asked.inputs[0].resolve():
        raise BadInput(f"{asked.target}: is the input, which the result would replace; name another file")


def _context(subject: Subject) -> dict[str, Any]:
    known: dict[str, Any] = {"affine": np.array(subject.dwi.affine, dtype=np.float64)}
    if subject.gradients is not None:
        known["bvals"] = np.array(subject.gradients.bvals)
        known["bvecs"] = np.array(subject.gradients.bvecs)
    return known


def _after(img: Image, entry: Entry, tried: Tried | None) -> Image:
    """Return the image that the next stage works on: a function's result where it has the same shape."""
    if entry.tool == "denoise":
        return _denoised(img)
    if tried is None or tried.fields is not None or _shape(img, entry.function, tried) != img.shape:
        return img
    return dataclasses.replace(img, dtype=np.dtype(tried.dtype).str, slope=1.0, inter=0.0)


def _denoised(img: Image) -> Image:
    return dataclasses.replace(img, dtype=np.dtype("float32").str, slope=1.0, inter=0.0)


def _shape(img: Image, function: Function, tried: Tried) -> tuple[int, ...]:
    return user.output(function, img, "", tried.components, tried.dtype).shape


class _Builder:
    """Puts stages together one after the other; knows which array holds the image at each."""

    def __init__(self, run: ImageRun):
        self.run, self.p = run, run.asked.parameters
        self.subject, self.parts = run.subject, []
        self.array = run.subject.dwi.array("dwi")
        #: Where denoising left voxels in the mask only: what describes them, called with the values.
        self.packed: Callable[[Values], Array] | None = None
        self.brain = mask.volume(run.subject.dwi, "mask", "uint8")
        self.has_brain = False
        self.outputs: list[Step] = []
        self.files: list[Callable[[Values], dict[str, bytes]]] = []
        tools = any(entry.tool for entry in run.asked.entries)
        self.steps: list[Step] = (
            neuro_steps.read_dwi(self.subject) if tools else neuro_steps.read(self.subject.dwi, "dwi")
        )

    def add(self, entry: Entry, tried: Tried | None) -> None:
        if entry.function is not None:
            self._function(entry, tried)
        else:
            getattr(self, f"_{entry.tool}")()
            subject = self.subject
            self.files.append(lambda values: neuro_steps.documents(subject, self.p, (entry.tool,), values))

    def _mask(self) -> None:
        self.steps += neuro_steps.mask_steps(self.subject, self.array, self.brain, self.p)
        self.outputs += neuro_steps.mask_outputs(self.subject, self.brain)
        self.has_brain = True

    def _needs_brain(self) -> None:
        if not self.has_brain:
            self.steps += neuro_steps.mask_steps(self.subject, self.array, self.brain, self.p)
            self.has_brain = True

    def _denoise(self) -> None:
        self._needs_brain()
        self._lay_out("undenoised")
        subject, array = self.subject, self.array
        self.steps += neuro_steps.denoise_steps(subject, array, self.brain, self.p)
        self.packed = neuro_steps.denoised_array(subject)
        self.outputs += neuro_steps.denoise_outputs(subject, array, self.brain, self.packed, self.p)
        self._follow(_denoised(subject.dwi), array)

    def _follow(self, img: Image, array: Array) -> None:
        self.subject = dataclasses.replace(self.subject, dwi=img)
        self.array = array

    def _lay_out(self, name: str) -> None:
        """Turn voxels in the mask into an image again, where a stage needs one."""
        if self.packed is None:
            return
        img, packed, brain = self.subject.dwi, self.packed, self.brain
        self.steps.append(lambda values: image.unpack(img, brain, packed(values), values["offsets"], name))
        self.array, self.packed = img.array(name), None

    def _fit(self) -> None:
        self._needs_brain()
        subject, array, packed, p = self.subject, self.array, self.packed, self.p
        volumes = subject.gradients.up_to(p["b_max"])
        rows = None if len(volumes) == subject.dwi.shape[0] else volumes

        def fit(values):
            if packed is not None:
                reads = (Need(packed(values), rows=rows, offsets=values["offsets"]),)
            else:
                reads = (Need(array, rows=rows), Need(self.brain))
            return neuro_steps.fit_stage(subject, p, reads, values)

        self.steps.append(fit)
        self.outputs += neuro_steps.fit_outputs(subject, self.brain, p)

    def _function(self, entry: Entry, tried: Tried) -> None:
        function = entry.function
        masked = "mask" in function.wants and (self.has_brain or self.subject.mask is not None)
        if masked:
            self._needs_brain()
        self._lay_out("denoised-image")
        img, array = self.subject.dwi, self.array
        shared = (_context(self.run.subject), self.brain if masked else None)
        name = f"udf-{entry.name}"
        if tried.fields is not None:
            self.steps.append(lambda values: user.aggregate(img, array, function, name, tried, *shared))
            target = self.run.asked.target
            file = target.name if target else f"{img.stem}_desc-{label(entry.name)}.json"
            self.files.append(lambda values: {file: document(values.get(name))})
            return
        written = user.output(function, img, name, tried.components, tried.dtype)
        self.steps.append(
            lambda values: user.apply(img, array, function, written, tried, *shared, values["offsets"])
        )
        if entry.write:
            self._write(entry, img, written)
        if written.shape == img.shape:
            self._follow(_after(img, entry, tried), written)

    def _write(self, entry: Entry, img: Image, written: Array) -> None:
        components = written.shape[0] if len(written.axes) == 4 else None
        target = self.run.asked.target
        file = target.name if target else _file_name(img, entry, written)
        self.outputs.append(
            lambda values: image.write_dense(
                file, img, (Need(written),), lambda chunk, block: block, components, written.dtype
            )
        )
        origin = entry.function.origin
        text = image.sidecar(
            Description=f"Result of {Path(origin.where).name}:{origin.name}",
            Function=entry.function.provenance(),
        )
        files = {file.removesuffix(".nii.gz") + ".json": text}
        if target is None and written.shape == img.shape:
            files |= {file.removesuffix(".nii.gz") + k: v for k, v in self.run.subject.companions.items()}
        self.files.append(lambda values: files)

    def documents(self, values: Values) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for make in self.files:
            found |= make(values)
        return found


def _file_name(img: Image, entry: Entry, written: Array) -> str:
    suffix = "" if len(img.shape) == 3 else "_dwi" if written.shape == img.shape else "_dwimap"
    return f"{img.stem}_desc-{label(entry.name)}{suffix}.nii.gz"


def _recipe(run: ImageRun, p: Mapping[str, Any]) -> Recipe:
    builder = _Builder(run)
    for entry, tried in zip(run.asked.entries, run.tried, strict=True):
        builder.add(entry, tried)
    subject, asked = run.subject, run.asked
    tools = [entry.tool for entry in asked.entries if entry.tool]
    loaded = [entry.function.libraries for entry in asked.entries if entry.function is not None]
    libraries = sum(loaded) + sum(tried.libraries for tried in run.tried if tried is not None)
    inputs = {"dwi": subject.dwi} if subject.dwi.kind != "nii.gz" else {}
    if subject.mask is not None and subject.mask.kind != "nii.gz":
        inputs["mask-image"] = subject.mask
    functions = {
        entry.name: entry.function.provenance() for entry in asked.entries if entry.function is not None
    }
    stem = bare_name(asked.target) if asked.target else subject.dwi.stem
    return Recipe(
        tool="mpiimg-run",
        stem=stem.removesuffix(".json"),
        inputs=inputs,
        steps=with_libraries([*builder.steps, *builder.outputs], libraries),
        values=neuro_steps.upper_bounds(subject),
        documents=builder.documents,
        parameters=asked.parameters if tools else {},
        sources={**subject.sources(), "functions": functions},
        record=f"run-{asked.target.name.split('.')[0]}.json" if asked.target else "run.json",
        warnings=subject.warnings,
        files=subject.files,
        kernels=tuple(tool for tool in tools if tool != "mask" or subject.mask is None),
    )
