"""The slices of a series that its report shows: a few of a volume of each shell, as scanned and denoised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import At, Chunk, Part
from mpiimg.engine.stage import Compute, Files
from mpiimg.neuro.images import finite, value_bytes
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.quality_figures import QualityFigures
from mpiimg.neuro.subject import Subject
from mpiimg.neuro.tables.shells import shells_of

#: Slices across z, y and x: axial, coronal and sagittal ones of a head that lies as usual.
COUNTS = (6, 2, 2)

#: Volumes at most: a b0, and one of each of the lowest and highest shells.
MAX_VOLUMES = 4

#: Steps of grey between the least and the largest value of a volume on the page.
STEPS = 65535


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown, and of what.

    Parameters
    ----------
    array : Array
        (K, 1 or 2, L) float32: of each volume that is shown its slices one after the other, as scanned and
        denoised.
    volumes : tuple of int
        Those that are shown, among those that are used.
    planes : tuple of tuple of int
        The indices of the slices across z, y and x.
    """

    array: Array
    volumes: tuple[int, ...]
    planes: tuple[tuple[int, ...], ...]


def volumes_to_show(subject: Subject) -> tuple[int, ...]:
    """Return the first volume of the b0s, of the lowest shells and of the highest."""
    shells = shells_of(subject.gradients.bvals, subject.gradients.b0_threshold)
    if len(shells) > MAX_VOLUMES:
        shells = (*shells[: MAX_VOLUMES - 1], shells[-1])
    return tuple(one.volumes[0] for one in shells)


def planes_to_show(shape: Sequence[int], extent: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Return the indices of slices across z, y and x, evenly spread over the mask without its ends.

    Parameters
    ----------
    shape : (z, y, x)
    extent : sequence of (int, int)
        First and last index of the mask along z, y and x.
    """
    planes = []
    for (first, last), count, length in zip(extent, COUNTS, shape, strict=True):
        count = min(count, length)
        wanted = first + (np.arange(count) + 0.5) / count * (last - first)
        planes.append(tuple(np.rint(wanted).astype(int).tolist()))
    return tuple(planes)


def numbers_in(shape: Sequence[int]) -> int:
    """Return how many voxels the slices of a volume have."""
    depth, height, width = shape
    counts = [min(count, length) for count, length in zip(COUNTS, shape, strict=True)]
    return counts[0] * height * width + counts[1] * depth * width + counts[2] * depth * height


def cut(volume: np.ndarray, planes: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the slices of a (z, y, x) volume one after the other, (L,)."""
    z, y, x = (list(indices) for indices in planes)
    parts = (volume[z], volume[:, y].swapaxes(0, 1), volume[:, :, x].transpose(2, 0, 1))
    return np.concatenate([part.ravel() for part in parts])


def parted(numbers: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
    """Return what :func:`cut` put together: (slices, rows, columns) across z, y and x."""
    depth, height, width = shape
    faces, parts, start = ((height, width), (depth, width), (depth, height)), [], 0
    for face, count, length in zip(faces, COUNTS, shape, strict=True):
        stop = start + min(count, length) * face[0] * face[1]
        parts.append(numbers[start:stop].reshape(-1, *face))
        start = stop
    return parts


def show(subject: Subject, raw: Array, image: Image, shown: Shown) -> Compute:
    """Declare the cutting of slices: a volume is a chunk.

    Parameters
    ----------
    subject : Subject
    raw : Array
        (V, z, y, x) as scanned.
    image : Image
        Whose voxels these are.
    shown : Shown
    """
    denoised, mask = subject.denoised, subject.mask.array
    packed = denoised is not None and denoised.voxels.packing is not None

    def whole(array: Array):
        return At(array, lambda chunk: (_volume(chunk), *((0, n) for n in array.shape[1:])))

    def _volume(chunk: Chunk) -> tuple[int, int]:
        volume = shown.volumes[chunk.bounds["k"][0]]
        return (volume, volume + 1)

    reads = [whole(raw)]
    if denoised is not None:
        reads += [whole(denoised.voxels)] + ([Part(mask)] if packed else [])

    def work(chunk, block, clean=None, mask_block=None):
        volumes = [finite(image.scaled(block[0])).astype(np.float32)]
        if packed:
            laid_out = np.zeros(mask_block.shape, np.float32)
            laid_out[mask_block != 0] = clean[0]
            volumes.append(laid_out)
        elif clean is not None:
            volumes.append(clean[0])
        return (np.stack([cut(one, shown.planes) for one in volumes])[None],)

    return Compute(
        "slices",
        ChunkGrid("k", (len(shown.volumes),), (1,)),
        reads=tuple(reads),
        writes=(shown.array,),
        work=work,
        parameters={
            "volumes": shown.volumes,
            "planes": shown.planes,
            "slope": image.slope,
            "inter": image.inter,
        },
        scratch=int(np.prod(raw.shape[1:])) * (8 + value_bytes(image)) + 4 * shown.array.nbytes + (1 << 20),
    )


def file_of(subject: Subject) -> str:
    """Return the name of the file of slices."""
    return f"{subject.stem}_desc-qc_dwimap.npz"


def write_slices(subject: Subject, shown: Shown, figures: QualityFigures | None, name: str) -> Files:
    """Declare the file of slices, with what else is drawn of volumes: NumPy's .npz, not compressed.

    Each volume has grey levels of its own, the same as scanned and denoised: value = low + (high - low) *
    level / 65535.
    """
    quality = subject.quality

    def work(chunk, folder, numbers):
        low, high = numbers.min(axis=(1, 2)), numbers.max(axis=(1, 2))
        span = np.where(high > low, high - low, 1).astype(np.float64)
        levels = (numbers - low[:, None, None]) / span[:, None, None] * STEPS
        known = {} if quality is None else {"ratios": quality.figures.ratios.astype(np.float32)}
        with open(folder / name, "wb") as file:
            np.savez(
                file,
                levels=np.rint(levels).astype(np.uint16),
                low=low,
                high=high,
                volumes=np.array(shown.volumes),
                original=np.array(subject.volumes),
                shape=np.array(subject.image.shape[-3:]),
                bvals=np.array(subject.gradients.bvals),
                bvecs=np.array(subject.gradients.bvecs).reshape(-1, 3),
                ndc_denoised=np.empty(0) if figures is None else figures.ndc,
                **{f"planes_{axis}": np.array(one) for axis, one in zip("zyx", shown.planes, strict=True)},
                **known,
            )

    return Files(
        "write-slices",
        ChunkGrid("k", (1,), (1,)),
        reads=(At(shown.array, lambda chunk: tuple((0, n) for n in shown.array.shape)),),
        work=work,
        names=(name,),
        scratch=6 * shown.array.nbytes + (4 << 20),
    )
