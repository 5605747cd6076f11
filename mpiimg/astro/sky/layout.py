"""How a survey is laid out: which exposure meets which patch, and how coaddition cuts the patches.

All of it follows from headers. An exposure makes one warp for each patch that it meets, on the box of tract
pixels that it can reach there (a footprint); a patch is coadded in strips of rows, each from the rows of
those warps that meet it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mpiimg.engine.array import Ragged
from mpiimg.engine.boxes import Box, ChunkGrid, box_shape, box_size
from mpiimg.engine.needs import Chunk

#: Most rows in a strip of a patch, the unit of coaddition; and least rows, however many exposures meet.
MAX_STRIP_ROWS, MIN_STRIP_ROWS = 256, 32

#: Most rows that the exposures of a patch bring to a strip together: deep patches take no more memory.
INPUT_ROWS = 8192

#: Bytes that Python takes for a footprint with its place in arrays, and for the part that meets a strip.
FOOTPRINT_BYTES, PIECE_BYTES = 670, 80

#: Types of the planes of an image, by what their names end in.
PLANE_TYPES = {"image": "float32", "variance": "float32", "mask": "int32"}


class Planes(NamedTuple):
    """Arrays of pixels of exposures, "eyx"."""

    image: Ragged  # float32
    variance: Ragged  # float32
    mask: Ragged  # int32


class WarpPlanes(NamedTuple):
    """Arrays of pixels of warps, "fyx"; what is there of them, in this order, is `arrays`.

    `variance` is that of each pixel. `variance_ls`, where it was asked for, is what it is per pixel in sums
    over so many pixels (of an aperture, a filter of the size of a star) that the correlation of their noise,
    which resampling makes, adds up: it depends on no shift between pixels.
    """

    image: Ragged  # float32
    variance: Ragged  # float32
    mask: Ragged  # int32
    variance_ls: Ragged | None = None  # float32

    @property
    def arrays(self) -> tuple[Ragged, ...]:
        return tuple(one for one in self if one is not None)


class PatchPlanes(NamedTuple):
    """Arrays of pixels of patches, "pyx"; otherwise as :class:`WarpPlanes`."""

    image: Ragged  # float32
    variance: Ragged  # float32
    mask: Ragged  # int32
    nimage: Ragged  # int16
    variance_ls: Ragged | None = None  # float32

    @property
    def arrays(self) -> tuple[Ragged, ...]:
        return tuple(one for one in self if one is not None)


@dataclass(frozen=True)
class Patch:
    """A patch of sky in one band.

    Parameters
    ----------
    band : str
        Name of the filter; bands are coadded apart.
    index : (int, int)
        Column and row of the patch in the tract.
    outer, inner : Box
        Rows and columns in tract pixels; inner boxes tile the tract.
    """

    band: str
    index: tuple[int, int]
    outer: Box
    inner: Box

    @property
    def name(self) -> str:
        """Its name, whatever the band."""
        return f"patch-{self.index[0]}-{self.index[1]}"

    def strips(self, exposures: int = 0) -> list[Box]:
        """Return the strips of rows that a patch of so many exposures is cut into, in tract pixels."""
        rows = min(MAX_STRIP_ROWS, max(MIN_STRIP_ROWS, INPUT_ROWS // max(1, exposures)))
        (first, last), columns = self.outer
        return [((row, min(row + rows, last)), columns) for row in range(first, last, rows)]


@dataclass(frozen=True)
class Footprint:
    """Where an exposure meets a patch.

    Parameters
    ----------
    exposure, patch : int
        Their numbers.
    box : Box
        Tract pixels that the exposure can reach inside the patch.
    """

    exposure: int
    patch: int
    box: Box


class Strip(NamedTuple):
    """A strip of a patch, and what meets it."""

    patch: int
    box: Box  # tract pixels
    footprints: tuple[int, ...]  # ascending
    rows: tuple[tuple[int, int], ...]  # of the tract, that each footprint has in the strip


@dataclass(frozen=True)
class Layout:
    """The geometry of a survey.

    Parameters
    ----------
    shapes : tuple of (int, int)
        Rows and columns of each exposure, in the order of band, visit and sensor.
    patches : tuple of Patch
        Those that anything reaches, in the order of band and index.
    footprints : tuple of Footprint
        In the order of exposure and patch.
    """

    shapes: tuple[tuple[int, int], ...] = ()
    patches: tuple[Patch, ...] = ()
    footprints: tuple[Footprint, ...] = ()

    @cached_property
    def strips(self) -> tuple[Strip, ...]:
        """Every strip of every patch, with the footprints that meet it."""
        return tuple(
            self._strip(number, box, members)
            for number, members in enumerate(self.inputs)
            for box in self.patches[number].strips(len(members))
        )

    def _strip(self, patch: int, box: Box, members: Sequence[int]) -> Strip:
        # Footprints lie inside their patch, as wide as they are: only rows tell.
        first, last = box[0]
        meeting, rows = [], []
        for number in members:
            top, bottom = self.footprints[number].box[0]
            if top < last and bottom > first:
                meeting.append(number)
                rows.append((max(top, first), min(bottom, last)))
        return Strip(patch, box, tuple(meeting), tuple(rows))

    @property
    def nbytes(self) -> int:
        """Bytes that all this takes in the memory of every rank, be there few of them or many."""
        pieces = sum(len(strip.footprints) for strip in self.strips)
        return FOOTPRINT_BYTES * len(self.footprints) + PIECE_BYTES * pieces

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The footprints of each exposure."""
        numbers: list[list[int]] = [[] for _ in self.shapes]
        for number, footprint in enumerate(self.footprints):
            numbers[footprint.exposure].append(number)
        return tuple(map(tuple, numbers))

    @cached_property
    def inputs(self) -> tuple[tuple[int, ...], ...]:
        """The footprints of each patch."""
        numbers: list[list[int]] = [[] for _ in self.patches]
        for number, footprint in enumerate(self.footprints):
            numbers[footprint.patch].append(number)
        return tuple(map(tuple, numbers))

    @cached_property
    def bands_at(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """The patches of all bands at each index in the tract."""
        numbers: dict[tuple[int, int], tuple[int, ...]] = {}
        for number, patch in enumerate(self.patches):
            numbers[patch.index] = (*numbers.get(patch.index, ()), number)
        return numbers

    # --- Chunks, and the boxes that their work reads and fills

    @property
    def exposure_grid(self) -> ChunkGrid:
        """A chunk per exposure."""
        return ChunkGrid("e", (len(self.shapes),), (1,))

    @property
    def footprint_grid(self) -> ChunkGrid:
        """A chunk per footprint."""
        return ChunkGrid("f", (len(self.footprints),), (1,))

    @property
    def strip_grid(self) -> ChunkGrid:
        """A chunk per strip of a patch."""
        return ChunkGrid("s", (len(self.strips),), (1,))

    @property
    def patch_grid(self) -> ChunkGrid:
        """A chunk per patch."""
        return ChunkGrid("p", (len(self.patches),), (1,))

    def warps_of(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes of the warps of an exposure, whole ones; for a chunk per exposure."""
        return tuple(
            ((number, number + 1), *((0, n) for n in box_shape(self.footprints[number].box)))
            for number in self.members[chunk.number]
        )

    def strip_inputs(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes of those rows of warps that meet a strip; for a chunk per strip."""
        strip = self.strips[chunk.number]
        boxes = []
        for number, (first, last) in zip(strip.footprints, strip.rows, strict=True):
            (top, _), (left, right) = self.footprints[number].box
            boxes.append(((number, number + 1), (first - top, last - top), (0, right - left)))
        return tuple(boxes)

    def strip_in_patch(self, chunk: Chunk) -> Box:
        """Return the box of a strip in the planes of patches; for a chunk per strip."""
        patch, ((first, last), (left, right)), *_ = self.strips[chunk.number]
        top = self.patches[patch].outer[0][0]
        return ((patch, patch + 1), (first - top, last - top), (0, right - left))

    # --- Arrays

    def exposure_planes(self, name: str = "exposure") -> Planes:
        """Return the arrays of the pixels of exposures, each with its own shape."""
        return Planes(*(Ragged(f"{name}-{p}", "eyx", self.shapes, t) for p, t in PLANE_TYPES.items()))

    def warp_planes(self, name: str = "warp", variance_ls: bool = False) -> WarpPlanes:
        """Return the arrays of the pixels of warps: an item per footprint, with the shape of its box."""
        shapes = tuple(box_shape(footprint.box) for footprint in self.footprints)
        types = {**PLANE_TYPES, **({"variance_ls": "float32"} if variance_ls else {})}
        return WarpPlanes(**{p: Ragged(f"{name}-{p}", "fyx", shapes, t) for p, t in types.items()})

    def patch_planes(self, name: str = "coadd", variance_ls: bool = False) -> PatchPlanes:
        """Return the arrays of the pixels of patches."""
        types = {**PLANE_TYPES, "nimage": "int16", **({"variance_ls": "float32"} if variance_ls else {})}
        return PatchPlanes(**{p: self.patch_plane(f"{name}-{p}", t) for p, t in types.items()})

    def patch_plane(self, name: str, dtype: str) -> Ragged:
        """Return an array of one plane of all patches."""
        return Ragged(name, "pyx", tuple(box_shape(patch.outer) for patch in self.patches), dtype)

    @property
    def warped_pixels(self) -> int:
        """Pixels of all warps."""
        return sum(box_size(footprint.box) for footprint in self.footprints)
