"""Non-local means, volume by volume: of the whole field, or of the voxels in the mask alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.halo import reflect
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Compute, Sink, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput
from mpiimg.neuro import floor, noise
from mpiimg.neuro.images import finite, sidecar, sidecar_name, value_bytes, write_dense, write_packed
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.subject import Denoised, Noise, Subject, dense, mask_of, mask_source

PAPER = "Coupe et al. 2008, doi:10.1109/TMI.2007.906087; voxelwise ('classic') method of DIPY"

#: z-blocks of a volume; each has a multiple of the four slices that the kernel works on at once.
MAX_VOLUME_BLOCKS, SLICES_AT_ONCE = 8, 4


@dataclass(frozen=True)
class DenoiseParameters:
    """How noise is measured and taken away.

    Raises
    ------
    BadInput
        They do not fit together.
    """

    sigma: str = parameter(
        "auto",
        "The noise level of the magnitude image is this number, or that of a map in the space of the image, "
        "or is measured: by fit (what a tensor leaves unexplained in the brain), by piesno (per slice, from "
        "the background), by estimate (per volume, from local differences), or by auto (piesno where fit "
        "agrees with it, else fit); study is piesno, or estimate where the background was zeroed.",
        unit="image units",
        metavar="auto|fit|piesno|estimate|study|NUMBER|MAP.nii.gz",
    )
    coils: int | None = parameter(
        None,
        "The receiver has this many coils (default: 1 for piesno, no correction for estimate).",
        limits=(0, 1024),
    )
    patch_radius: int = parameter(1, "Patches of this radius are compared.", unit="voxels", limits=(0, 10))
    block_radius: int = parameter(
        5, "Similar patches are looked for within this radius.", unit="voxels", limits=(1, 20)
    )
    inside_mask: bool = parameter(
        False,
        "Only the voxels in the mask are denoised, with the Rician bias taken out, and all others are 0. "
        "Without it the whole field is denoised, and the bias stays in.",
    )
    gaussian: bool = parameter(
        False, "The noise counts as Gaussian: --inside-mask leaves the Rician bias in too."
    )
    residual: bool = parameter(False, "The residual, input minus denoised image, is written too.")

    def __post_init__(self):
        noise.check_coils(self.method, self.coils)
        if self.patch_radius >= self.block_radius:
            raise BadInput(
                f"--patch-radius {self.patch_radius} does not fit into --block-radius {self.block_radius}: "
                "the block must be larger than the patch"
            )

    @property
    def method(self) -> str | float | Path:
        """How the noise level is found, or the noise level itself, or its map."""
        return noise.parse(self.sigma)

    @property
    def subtracts_bias(self) -> bool:
        """Whether the bias of Rician noise, 2 sigma**2 of the mean square, is taken out.

        Of the whole field it is not: half of the background would become 0, and what corrects eddy currents
        afterwards looks at the background too.
        """
        return self.inside_mask and not self.gaussian


def inspect(subject: Subject, p: DenoiseParameters) -> Inspection:
    """Check that there is a mask, where one is needed; look at a map of the noise level.

    Raises
    ------
    BadInput
        There is none, or the map is not one of this image.
    """
    if p.inside_mask:
        mask_of(subject, STEP.name)
    return Inspection(noise.inspect(subject, p.method, STEP.name))


def stages(subject: Subject, p: DenoiseParameters, sigma_image: Image | None) -> Stages[Subject]:
    """Yield how the noise level is found, and the series is denoised."""
    subject = yield from dense(subject)
    image, dwi, mask = subject.image, subject.dwi, subject.mask
    level = yield from noise.noise_level(subject, p.method, p.coils, sigma_image)
    if p.inside_mask:
        voxels = Array("denoised", "vn", (image.shape[0], mask.voxels), "float32", mask.packing)
    else:
        voxels = Array("denoised", "vzyx", image.shape, "float32")
    yield denoise(image, dwi, mask.array if p.inside_mask else None, voxels, level, p)
    return dataclasses.replace(
        subject,
        image=image.made_of("float32"),
        dwi=None if p.inside_mask else voxels,
        packed=voxels if p.inside_mask else None,
        denoised=Denoised(voxels, image, dwi, level),
    )


def denoise(
    image: Image, dwi: Array, mask: Array | None, voxels: Array, level: Noise, p: DenoiseParameters
) -> Compute:
    """Declare the denoising of a series.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    mask : Array, optional
        (z, y, x), not 0 inside; without it all voxels are denoised.
    voxels : Array
        float32, written: (V, n), the voxels in the mask with their packing, or (V, z, y, x) without a mask.
    level : Noise
    p : DenoiseParameters
    """
    volumes, depth, height, width = image.shape
    thickness = blocks_along(-(-depth // SLICES_AT_ONCE), MAX_VOLUME_BLOCKS) * SLICES_AT_ONCE
    grid = ChunkGrid("vz", (volumes, depth), (1, min(thickness, depth)))
    sigma = None if level.sigma is None else np.broadcast_to(level.sigma, (volumes, depth))
    radius, patch_radius = p.block_radius, p.patch_radius
    rows, columns = (reflect(-radius, n + radius, n, edge=False) for n in (height, width))

    def work(chunk, block, *others):
        from mpiimg.neuro.kernels.nlmeans import nonlocal_means

        (v, _), (start, stop) = chunk.box
        inside = np.ones((stop - start, height, width), bool) if mask is None else others[0] != 0
        if not inside.any():
            return (np.empty((1, 0), np.float32),)
        slices = reflect(start - radius, stop + radius, depth, edge=False)
        mirrored = np.ix_(slices - max(start - radius, 0), rows, columns)
        padded = finite(image.scaled(block[0])).astype(np.float32, copy=False)[mirrored]
        around = others[-1][mirrored] if sigma is None else sigma[v, slices]
        out = nonlocal_means(padded, around, inside, patch_radius, radius, p.subtracts_bias)
        return (out[None] if mask is None else out[inside][None],)

    slice_counts = np.full(depth, height * width) if mask is None else np.diff(voxels.packing.offsets)
    weights = [int(slice_counts[a:b].sum()) for _, (a, b) in map(grid.bounds, range(len(grid)))]
    return Compute(
        "denoise",
        grid,
        reads=(
            Part(dwi, {"z": radius}),
            *(() if mask is None else (Part(mask),)),
            *(() if level.by_voxel is None else (Part(level.by_voxel, {"z": radius}),)),
        ),
        writes=(voxels,),
        work=work,
        parameters={
            "sigma": "by voxel" if sigma is None else sigma.tolist(),
            "patch_radius": patch_radius,
            "block_radius": radius,
            "rician": p.subtracts_bias,
            "slope": image.slope,
            "inter": image.inter,
        },
        weights=tuple(weights),
        scratch=_scratch(image, min(thickness, depth), radius, sigma is None),
        cost=("nlmeans", float(sum(weights)) * (2 * (radius - patch_radius) + 1) ** 3),
    )


def _scratch(image: Image, thickness: int, radius: int, by_voxel: bool) -> int:
    """Return the bytes of a chunk's values, of these mirrored at its edges, of its result, and of a tile."""
    height, width = image.shape[-2:]
    deep = thickness + 2 * radius
    values = deep * height * width * (4 + value_bytes(image))
    # A level by voxel is mirrored as well, and made into means over patches and two tables of weights.
    mirrored = deep * (height + 2 * radius) * (width + 2 * radius) * (4 + by_voxel * (4 + 4 * 8 + 2 * 4))
    return values + mirrored + 2 * thickness * height * width * 4 + (2 << 20)


# --- Results ----------------------------------------------------------------------------------------------


def write_denoised(subject: Subject, p: DenoiseParameters, folder: Path) -> Sink:
    """Declare the file of the denoised series."""
    voxels = subject.denoised.voxels
    volumes, file = voxels.shape[0], str(folder / _files(subject)["denoised"])
    if p.inside_mask:
        return write_packed(file, subject.image, subject.mask.array, voxels, range(volumes))
    return write_dense(
        file, subject.image, (Part(voxels),), lambda chunk, block: block, volumes, voxels.dtype
    )


def write_noise(subject: Subject, p: DenoiseParameters, folder: Path) -> Sink:
    """Declare the noise level as a 3-D map: the root mean square over volumes where it is by volume."""
    image, level, file = subject.image, subject.denoised.noise, str(folder / _files(subject)["noise"])
    if level.by_voxel is not None:
        return write_dense(file, image, (Part(level.by_voxel),), lambda chunk, block: block, None, "float32")
    levels = np.broadcast_to(np.sqrt((level.sigma**2).mean(axis=0)), image.shape[1:2])

    def work(chunk):
        start, stop = chunk.bounds["z"]
        return np.broadcast_to(levels[start:stop, None, None], (stop - start, *image.shape[2:]))

    return write_dense(file, image, (), work, None, "float32")


def write_residual(subject: Subject, p: DenoiseParameters, folder: Path) -> Sink | None:
    """Declare input minus denoised: structure in it is signal that denoising took away."""
    if not p.residual:
        return None
    image, dwi = subject.denoised.image, subject.denoised.dwi

    def removed(chunk, block, denoised):
        return finite(image.scaled(block)).astype(np.float32, copy=False) - denoised

    def removed_inside(chunk, block, denoised, mask_block):
        out = np.zeros(block.shape, np.float32)
        inside = mask_block != 0
        out[0][inside] = removed(chunk, block[0][inside], denoised[0])
        return out

    file, reads = str(folder / _files(subject)["residual"]), (Part(dwi), Part(subject.denoised.voxels))
    if p.inside_mask:
        reads = (*reads, Part(subject.mask.array))
    work = removed_inside if p.inside_mask else removed
    return write_dense(file, image, reads, work, image.shape[0], "float32")


def _files(subject: Subject) -> dict[str, str]:
    return {
        "denoised": f"{subject.stem}_desc-denoised_dwi.nii.gz",
        "noise": f"{subject.stem}_desc-noise_dwimap.nii.gz",
        "residual": f"{subject.stem}_desc-residual_dwi.nii.gz",
    }


def _common(subject: Subject, p: DenoiseParameters) -> dict[str, Any]:
    """Return what all sidecars say."""
    mask = {} if subject.mask is None else {"Mask": mask_source(subject)}
    level = subject.denoised.noise
    if level.sigma is None:
        values = {"SigmaBy": "voxel", "SigmaMap": p.method.name}
    else:
        values = floor.levels_said("Sigma", level.sigma)
    return {
        "Units": "arbitrary",
        "Method": f"non-local means, voxelwise, {'Rician' if p.subtracts_bias else 'Gaussian'} noise",
        "Reference": PAPER,
        "PatchRadius": p.patch_radius,
        "BlockRadius": p.block_radius,
        "RicianBias": "subtracted" if p.subtracts_bias else "left in",
        **mask,
        "NoiseMethod": level.method,
        "NoiseLevel": level.level,
        **({"NoiseLevelsFound": dict(level.found)} if level.found else {}),
        **values,
    }


def _where(p: DenoiseParameters) -> str:
    return "inside the mask, 0 outside" if p.inside_mask else "in the whole field"


def describe_denoised(subject: Subject, p: DenoiseParameters) -> Mapping[str, bytes]:
    """Return the sidecar of the denoised series, and its gradient files as they were given."""
    file = _files(subject)["denoised"]
    described = sidecar(
        subject.inherited,
        Description=f"Denoised {_where(p)}",
        SkullStripped=p.inside_mask,
        **_common(subject, p),
    )
    base = file.removesuffix(".nii.gz")
    return {
        sidecar_name(file): described,
        **{base + ending: data for ending, data in subject.gradient_files.items()},
    }


def describe_noise(subject: Subject, p: DenoiseParameters) -> Mapping[str, bytes]:
    """Return the sidecar of the noise level."""
    text = sidecar(
        Description="Noise level: standard deviation of the noise before the magnitude was taken; "
        "where it was estimated by volume, the root mean square over volumes",
        SkullStripped=False,
        **_common(subject, p),
    )
    return {sidecar_name(_files(subject)["noise"]): text}


def describe_residual(subject: Subject, p: DenoiseParameters) -> Mapping[str, bytes]:
    """Return the sidecar of the residual, if there is one."""
    if not p.residual:
        return {}
    described = sidecar(
        subject.inherited,
        Description=f"Input minus denoised {_where(p)}",
        SkullStripped=p.inside_mask,
        **_common(subject, p),
    )
    return {sidecar_name(_files(subject)["residual"]): described}


def sample_nlmeans() -> RateSample:
    """Denoise a block of slices; voxels times the patches compared with each."""
    image, values = image_of((1, 16, 64, 64))
    voxels = Array("denoised", "vzyx", image.shape, "float32")
    stage = denoise(
        image,
        image.array("dwi"),
        None,
        voxels,
        Noise(np.full((1, 1), 40.0), "given", 40.0),
        DenoiseParameters(),
    )
    return chunk_sample(stage, 1, values[:, :13])


STEP = Step(
    name="denoise",
    summary="Denoise a series by non-local means, before eddy-current and motion correction.",
    papers=(*noise.PAPERS, PAPER),
    takes=("dwi",),
    may_take=("mask", "gradients"),
    gives=("denoised",),
    parameters=DenoiseParameters,
    inspect=inspect,
    stages=stages,
    outputs=(
        Output("denoised", write_denoised, documents=describe_denoised),
        Output("denoised", write_noise, documents=describe_noise),
        Output("denoised", write_residual, documents=describe_residual),
    ),
    kernels=(
        "mpiimg.neuro.kernels.piesno:precompile",
        "mpiimg.neuro.kernels.tensor:precompile",
        "mpiimg.neuro.kernels.unexplained:precompile",
        "mpiimg.neuro.kernels.nlmeans:precompile",
    ),
    rates={"nlmeans": (8.0e-10, "mpiimg.neuro.steps.denoise:sample_nlmeans"), **noise.RATES},
    examples=(
        (
            "A denoised series, with the noise measured in the mask.",
            "mpiexec -n 4 mpiimg-denoise dwi.nii.gz --mask brain.nii.gz --out denoised",
        ),
        (
            "The same with a noise level that is known, and what was removed.",
            "mpiimg-denoise dwi.nii.gz --sigma 20 --residual --out denoised",
        ),
    ),
)
