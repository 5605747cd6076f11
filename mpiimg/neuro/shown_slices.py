"""The slices of a series that its report shows: a few of a volume of each shell, as scanned and denoised."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, ChunkGrid, blocks_along
from mpiimg.engine.needs import At, Chunk
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

#: Voxels along a side of a slice: of more, every second or third is shown.
MAX_SIDE = 512

#: Blocks of slices of each volume that coronal and sagittal slices are cut from.
MAX_BLOCKS = 16

#: Steps of grey between the least and the largest value of a volume on the page.
STEPS = 65535


@dataclass(frozen=True)
class Layout:
    """Which slices of which volumes are shown.

    Parameters
    ----------
    volumes : tuple of int
        Those that are shown, among those that are used.
    kinds : int
        1 where they are shown as scanned, 2 where denoised as well.
    shape : (int, int, int)
        Of a volume, z, y, x.
    planes : tuple of tuple of int
        The indices of the slices across z, y and x.
    """

    volumes: tuple[int, ...]
    kinds: int
    shape: tuple[int, int, int]
    planes: tuple[tuple[int, ...], ...]

    @property
    def steps(self) -> tuple[int, int, int]:
        """Of how many voxels along z, y and x one is shown."""
        return steps_of(self.shape)

    @property
    def sides(self) -> tuple[int, int, int]:
        """How many are shown along each."""
        return tuple(-(-n // step) for n, step in zip(self.shape, self.steps, strict=True))

    @property
    def axial(self) -> Array:
        """The slices across z."""
        _, height, width = self.sides
        shape = (len(self.volumes), len(self.planes[0]), self.kinds, height, width)
        return Array("axial-slices", "kapyx", shape, "float32")

    @property
    def lines(self) -> Array:
        """The lines of the slices across y and x, by their z."""
        depth, height, width = self.sides
        length = len(self.planes[1]) * width + len(self.planes[2]) * height
        return Array("slice-lines", "kwpm", (len(self.volumes), depth, self.kinds, length), "float32")


@dataclass(frozen=True)
class Shown:
    """The slices that are shown, and of which volumes."""

    layout: Layout
    axial: Array
    lines: Array


def steps_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return of how many voxels along each axis one is shown."""
    return tuple(-(-n // MAX_SIDE) for n in shape)


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


def cut(volume: np.ndarray, planes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return the slices of a (z, y, x, ...) volume that are shown: (slices, rows, columns, ...) by axis."""
    z, y, x = (list(indices) for indices in planes)
    sz, sy, sx = steps_of(volume.shape[:3])
    return [
        volume[z][:, ::sy, ::sx],
        np.stack([volume[::sz, one, ::sx] for one in y]),
        np.stack([volume[::sz, ::sy, one] for one in x]),
    ]


def parted(numbers: np.ndarray, sides: Sequence[int]) -> list[np.ndarray]:
    """Return slices that lie one after the other in (L,) numbers: (slices, rows, columns) across z, y and x.

    Parameters
    ----------
    numbers : (L,) array
    sides : (z, y, x)
        Voxels that are shown along each axis.
    """
    depth, height, width = sides
    faces, parts, start = ((height, width), (depth, width), (depth, height)), [], 0
    for face, count, length in zip(faces, COUNTS, sides, strict=True):
        stop = start + min(count, length) * face[0] * face[1]
        parts.append(numbers[start:stop].reshape(-1, *face))
        start = stop
    return parts


def show(subject: Subject, raw: Array, image: Image, layout: Layout) -> Iterator[Compute]:
    """Yield the cutting of slices: those across z one by one, the others by lines of blocks of slices.

    Parameters
    ----------
    subject : Subject
    raw : Array
        (V, z, y, x) as scanned.
    image : Image
        Whose voxels these are.
    layout : Layout
    """
    _, sy, sx = layout.steps
    y, x = (list(indices) for indices in layout.planes[1:])

    def slab_of_plane(chunk: Chunk) -> tuple[int, int]:
        z = layout.planes[0][chunk.bounds["a"][0]]
        return z, z + 1

    def slab_of_lines(chunk: Chunk) -> tuple[int, int]:
        first, end = chunk.bounds["w"]
        return first * layout.steps[0], (end - 1) * layout.steps[0] + 1

    def plane(slab):
        return slab[:, ::sy, ::sx]

    def lines(slab):
        slab = slab[:: layout.steps[0]]
        across_y = slab[:, y][..., ::sx].reshape(len(slab), -1)
        across_x = slab[:, ::sy][..., x].swapaxes(1, 2).reshape(len(slab), -1)
        return np.concatenate([across_y, across_x], axis=1)[:, None]

    count, depth = len(layout.volumes), layout.sides[0]
    grid = ChunkGrid("ka", (count, len(layout.planes[0])), (1, 1))
    yield _cutting("axial", subject, raw, image, layout, grid, layout.axial, slab_of_plane, plane)
    grid = ChunkGrid("kw", (count, depth), (1, blocks_along(depth, MAX_BLOCKS)))
    yield _cutting("lines", subject, raw, image, layout, grid, layout.lines, slab_of_lines, lines)


def _cutting(
    name, subject: Subject, raw, image, layout: Layout, grid, written: Array, slab, taken
) -> Compute:
    """Declare the cutting of what `taken` returns of the slices slab(chunk) of each volume and kind."""
    clean = subject.denoised and subject.denoised.voxels
    packed = clean is not None and clean.packing is not None
    mask = subject.mask.array

    def box(array: Array):
        def of_chunk(chunk: Chunk) -> Box:
            volume = layout.volumes[chunk.bounds["k"][0]]
            return ((volume, volume + 1), *array.part({"z": slab(chunk)})[1:])

        return At(array, of_chunk)

    reads = [box(raw), *([] if clean is None else [box(clean)])]
    if packed:
        reads.append(At(mask, lambda chunk: mask.part({"z": slab(chunk)})))

    def work(chunk, block, denoised=None, mask_block=None):
        kinds = [finite(image.scaled(block[0])).astype(np.float32)]
        if packed:
            kinds.append(np.zeros(mask_block.shape, np.float32))
            kinds[1][mask_block != 0] = denoised[0]
        elif denoised is not None:
            kinds.append(denoised[0])
        cuts = [taken(one) for one in kinds]
        # (1, slices, kinds, ...) of slices (slices, ...), or of lines (slices, 1, ...).
        return (np.stack([one.reshape(len(one), *one.shape[-written_axes:]) for one in cuts], axis=1)[None],)

    written_axes = len(written.shape) - 3
    thick = max(end - first for first, end in (slab(Chunk.of(grid, n)) for n in range(len(grid))))
    return Compute(
        name,
        grid,
        reads=tuple(reads),
        writes=(written,),
        work=work,
        parameters={**dataclasses.asdict(layout), "slope": image.slope, "inter": image.inter},
        scratch=thick * int(np.prod(raw.shape[2:])) * (16 + value_bytes(image)) + (1 << 20),
    )


def file_of(subject: Subject) -> str:
    """Return the name of the file of slices."""
    return f"{subject.stem}_desc-qc_dwimap.npz"


def write_slices(subject: Subject, shown: Shown, figures: QualityFigures | None, name: str) -> Files:
    """Declare the file of slices, with what else is drawn of volumes: NumPy's .npz, not compressed.

    Each volume has grey levels of its own, the same as scanned and denoised: value = low + (high - low) *
    level / 65535.
    """
    quality, layout = subject.quality, shown.layout

    def work(chunk, folder, axial, lines):
        numbers = _one_after_the_other(axial, lines, layout)
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
                volumes=np.array(layout.volumes),
                original=np.array(subject.volumes),
                sides=np.array(layout.sides),
                bvals=np.array(subject.gradients.bvals),
                bvecs=np.array(subject.gradients.bvecs).reshape(-1, 3),
                ndc_denoised=np.empty(0) if figures is None else figures.ndc,
                **{f"planes_{axis}": np.array(one) for axis, one in zip("zyx", layout.planes, strict=True)},
                **known,
            )

    return Files(
        "write-slices",
        ChunkGrid("k", (1,), (1,)),
        reads=(_whole(shown.axial), _whole(shown.lines)),
        work=work,
        names=(name,),
        scratch=8 * (shown.axial.nbytes + shown.lines.nbytes) + (4 << 20),
    )


def _whole(array: Array) -> At:
    return At(array, lambda chunk: tuple((0, n) for n in array.shape))


def _one_after_the_other(axial: np.ndarray, lines: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the slices of each volume and kind as :func:`parted` takes them, (K, kinds, L)."""
    depth, height, width = layout.sides
    count, kinds = axial.shape[0], axial.shape[2]
    lines = lines.transpose(0, 2, 3, 1)  # volume, kind, place, z
    end = len(layout.planes[1]) * width
    across_y = lines[:, :, :end].reshape(count, kinds, -1, width, depth).swapaxes(3, 4)
    across_x = lines[:, :, end:].reshape(count, kinds, -1, height, depth).swapaxes(3, 4)
    parts = (axial.swapaxes(1, 2), across_y, across_x)
    return np.concatenate([part.reshape(count, kinds, -1) for part in parts], axis=2)
