"""Non-local means, volume by volume, inside the mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array, Packing
from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.halo import reflect
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Compute, Sink, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput
from mpiimg.neuro import noise
from mpiimg.neuro.images import finite, sidecar, sidecar_name, value_bytes, write_dense, write_packed
from mpiimg.neuro.masks import volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.subject import Denoised, Subject, dense, mask_of, mask_source

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
        "The noise level of the magnitude image is this number, or is estimated: by piesno (per slice, from "
        "the background), by estimate (per volume, from local differences), or by auto (piesno, or estimate "
        "where the background was zeroed).",
        unit="image units",
        metavar="auto|estimate|piesno|NUMBER",
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
    gaussian: bool = parameter(False, "The noise counts as Gaussian: the Rician correction is left out.")
    residual: bool = parameter(False, "The residual, input minus denoised image, is written too.")

    def __post_init__(self):
        noise.check_coils(self.method, self.coils)
        if self.patch_radius >= self.block_radius:
            raise BadInput(
                f"--patch-radius {self.patch_radius} does not fit into --block-radius {self.block_radius}: "
                "the block must be larger than the patch"
            )

    @property
    def method(self) -> str | float:
        """How the noise level is found, or the noise level itself."""
        return noise.parse(self.sigma)


def inspect(subject: Subject, p: DenoiseParameters) -> Inspection:
    """Check that there is a mask.

    Raises
    ------
    BadInput
        There is none.
    """
    mask_of(subject, STEP.name)
    return Inspection()


def stages(subject: Subject, p: DenoiseParameters, data: Any) -> Stages[Subject]:
    """Yield how the noise level is found, and the voxels in the mask are denoised."""
    subject = yield from dense(subject)
    image, dwi, mask = subject.image, subject.dwi, subject.mask
    level = yield from noise.noise_level(image, dwi, mask.array, p.method, p.coils)
    voxels = Array("denoised", "vn", (image.shape[0], mask.voxels), "float32", mask.packing)
    yield denoise(image, dwi, mask.array, voxels, level.sigma, p)
    return dataclasses.replace(
        subject,
        image=image.made_of("float32"),
        dwi=None,
        packed=voxels,
        denoised=Denoised(voxels, image, dwi, level),
    )


def denoise(
    image: Image, dwi: Array, mask: Array, voxels: Array, sigma: np.ndarray, p: DenoiseParameters
) -> Compute:
    """Declare the denoising of a series.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    mask : Array
        (z, y, x), not 0 inside.
    voxels : Array
        (V, n) float32, the voxels in the mask with their packing; written.
    sigma : (V or 1, nz or 1) float64
        Noise level by volume or slice, image units.
    p : DenoiseParameters
    """
    volumes, depth, height, width = image.shape
    thickness = blocks_along(-(-depth // SLICES_AT_ONCE), MAX_VOLUME_BLOCKS) * SLICES_AT_ONCE
    grid = ChunkGrid("vz", (volumes, depth), (1, min(thickness, depth)))
    sigma = np.broadcast_to(sigma, (volumes, depth))
    radius, patch_radius, rician = p.block_radius, p.patch_radius, not p.gaussian
    rows, columns = (reflect(-radius, n + radius, n, edge=False) for n in (height, width))

    def work(chunk, block, mask_block):
        from mpiimg.neuro.kernels.nlmeans import nonlocal_means

        inside = mask_block != 0
        if not inside.any():
            return (np.empty((1, 0), np.float32),)
        (v, _), (start, stop) = chunk.box
        slices = reflect(start - radius, stop + radius, depth, edge=False)
        values = finite(image.scaled(block[0])).astype(np.float32, copy=False)
        padded = values[np.ix_(slices - max(start - radius, 0), rows, columns)]
        out = nonlocal_means(padded, sigma[v, slices], inside, patch_radius, radius, rician)
        return (out[inside][None],)

    slice_counts = np.diff(voxels.packing.offsets)
    weights = [int(slice_counts[a:b].sum()) for _, (a, b) in map(grid.bounds, range(len(grid)))]
    return Compute(
        "denoise",
        grid,
        reads=(Part(dwi, {"z": radius}), Part(mask)),
        writes=(voxels,),
        work=work,
        parameters={
            "sigma": sigma.tolist(),
            "patch_radius": patch_radius,
            "block_radius": radius,
            "rician": rician,
            "slope": image.slope,
            "inter": image.inter,
        },
        weights=tuple(weights),
        scratch=_scratch(image, min(thickness, depth), radius),
        cost=("nlmeans", float(sum(weights)) * (2 * (radius - patch_radius) + 1) ** 3),
    )


def _scratch(image: Image, thickness: int, radius: int) -> int:
    """Return the bytes of a chunk's values, of these mirrored at its edges, of its result, and of a tile."""
    height, width = image.shape[-2:]
    deep = thickness + 2 * radius
    values = deep * height * width * (4 + value_bytes(image))
    mirrored = deep * (height + 2 * radius) * (width + 2 * radius) * 4
    return values + mirrored + 2 * thickness * height * width * 4 + (2 << 20)


# --- Results ----------------------------------------------------------------------------------------------


def write_denoised(subject: Subject, p: DenoiseParameters, folder: Path) -> Sink:
    """Declare the file of the denoised series."""
    voxels = subject.denoised.voxels
    file = str(folder / _files(subject)["denoised"])
    return write_packed(file, subject.image, subject.mask.array, voxels, range(voxels.shape[0]))


def write_noise(subject: Subject, p: DenoiseParameters, folder: Path) -> Sink:
    """Declare the noise level as a 3-D map: the root mean square over volumes where it is by volume."""
    image, sigma = subject.image, np.asarray(subject.denoised.noise.sigma)
    levels = np.broadcast_to(np.sqrt((sigma**2).mean(axis=0)), image.shape[1:2])

    def work(chunk):
        start, stop = chunk.bounds["z"]
        return np.broadcast_to(levels[start:stop, None, None], (stop - start, *image.shape[2:]))

    return write_dense(str(folder / _files(subject)["noise"]), image, (), work, None, "float32")


def write_residual(subject: Subject, p: DenoiseParameters, folder: Path) -> Sink | None:
    """Declare input minus denoised inside the mask: structure in it is signal that denoising took away."""
    if not p.residual:
        return None
    image, dwi = subject.denoised.image, subject.denoised.dwi

    def work(chunk, block, mask_block, voxels):
        out = np.zeros(block.shape, np.float32)
        inside = mask_block != 0
        values = finite(image.scaled(block[0][inside]))
        out[0][inside] = values.astype(np.float32, copy=False) - voxels[0]
        return out

    reads = (Part(dwi), Part(subject.mask.array), Part(subject.denoised.voxels))
    return write_dense(
        str(folder / _files(subject)["residual"]), image, reads, work, image.shape[0], "float32"
    )


def _files(subject: Subject) -> dict[str, str]:
    return {
        "denoised": f"{subject.stem}_desc-denoised_dwi.nii.gz",
        "noise": f"{subject.stem}_desc-noise_dwimap.nii.gz",
        "residual": f"{subject.stem}_desc-residual_dwi.nii.gz",
    }


def _common(subject: Subject, p: DenoiseParameters) -> dict[str, Any]:
    """Return what all sidecars say."""
    return {
        "Units": "arbitrary",
        "Method": f"non-local means, voxelwise, {'Gaussian' if p.gaussian else 'Rician'} noise",
        "Reference": PAPER,
        "PatchRadius": p.patch_radius,
        "BlockRadius": p.block_radius,
        "Mask": mask_source(subject),
        "NoiseMethod": subject.denoised.noise.method,
    }


def describe_denoised(subject: Subject, p: DenoiseParameters) -> Mapping[str, bytes]:
    """Return the sidecar of the denoised series, and its gradient files as they were given."""
    file = _files(subject)["denoised"]
    text = sidecar(
        Description="Denoised inside the mask, 0 outside", SkullStripped=True, **_common(subject, p)
    )
    base = file.removesuffix(".nii.gz")
    return {
        sidecar_name(file): text,
        **{base + ending: data for ending, data in subject.gradient_files.items()},
    }


def describe_noise(subject: Subject, p: DenoiseParameters) -> Mapping[str, bytes]:
    """Return the sidecar of the noise level."""
    sigma = np.asarray(subject.denoised.noise.sigma)
    text = sidecar(
        Description="Noise level: standard deviation of the noise before the magnitude was taken; "
        "where it was estimated by volume, the root mean square over volumes",
        SkullStripped=False,
        **_common(subject, p),
        Sigma=sigma.ravel().tolist(),
        SigmaBy="slice" if sigma.shape[1] > 1 else "volume" if sigma.shape[0] > 1 else "image",
    )
    return {sidecar_name(_files(subject)["noise"]): text}


def describe_residual(subject: Subject, p: DenoiseParameters) -> Mapping[str, bytes]:
    """Return the sidecar of the residual, if there is one."""
    if not p.residual:
        return {}
    text = "Input minus denoised inside the mask, 0 outside"
    described = sidecar(Description=text, SkullStripped=True, **_common(subject, p))
    return {sidecar_name(_files(subject)["residual"]): described}


def sample_nlmeans() -> RateSample:
    """Denoise a block of slices; voxels times the patches compared with each."""
    image, values = image_of((1, 16, 64, 64))
    mask = volume(image, "mask", "uint8")
    packing = Packing("n", "z", tuple(64 * 64 * z for z in range(17)))
    voxels = Array("denoised", "vn", (1, 64 * 64 * 16), "float32", packing)
    stage = denoise(image, image.array("dwi"), mask, voxels, np.full((1, 1), 40.0), DenoiseParameters())
    return chunk_sample(stage, 1, values[:, :13], np.ones((4, 64, 64), np.uint8))


STEP = Step(
    name="denoise",
    summary="Denoise a series by non-local means inside a mask, before eddy-current and motion correction.",
    papers=(noise.PIESNO_PAPER, PAPER),
    takes=("dwi", "mask"),
    gives=("denoised",),
    parameters=DenoiseParameters,
    inspect=inspect,
    stages=stages,
    outputs=(
        Output("denoised", write_denoised, documents=describe_denoised),
        Output("denoised", write_noise, documents=describe_noise),
        Output("denoised", write_residual, documents=describe_residual),
    ),
    kernels=("mpiimg.neuro.kernels.piesno:precompile", "mpiimg.neuro.kernels.nlmeans:precompile"),
    rates={"nlmeans": (8.0e-10, "mpiimg.neuro.steps.denoise:sample_nlmeans"), **noise.RATES},
)
