"""Tiles of patches in which exposures are compared: with what lies around, of all warps that meet there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mpiimg.astro.sky.layout import Layout
from mpiimg.engine.array import Ragged
from mpiimg.engine.boxes import Box, ChunkGrid, box_shape, box_size, box_within
from mpiimg.engine.needs import Chunk

#: Pixels along the sides of the meshes in which an exposure's sky is compared; tiles are made of them.
MESH = 128

#: Side of the bins of pixels, counted from a patch's corner, in which trails are looked for.
BIN = 4

#: Most rows of meshes in a tile, and most pixels that the exposures of a tile have together, around it too.
MAX_MESHES, TILE_INPUT = 2, 1 << 24

#: Least pixels around a tile that are read as well: seeing is not known when a run is planned.
MIN_HALO = 24


class Tile(NamedTuple):
    """A tile of a patch, and what meets it. Boxes are of tract pixels."""

    patch: int
    box: Box
    around: Box  # with its halo, clipped to the patch
    footprints: tuple[int, ...]  # that meet `around`, ascending
    reads: tuple[Box, ...]  # of each of them, what lies in `around`
    writes: tuple[Box, ...]  # and in `box`; empty boxes where it does not reach that


def overlap(a: Box, b: Box) -> Box:
    """Return what two boxes share; of no extent along an axis where they share nothing."""
    shared = []
    for (first, end), (start, stop) in zip(a, b, strict=True):
        low = max(first, start)
        shared.append((low, max(low, min(end, stop))))
    return tuple(shared)


def _tile_sides(exposures: int, height: int, width: int, halo: int) -> tuple[int, int]:
    """Return the rows and columns of the tiles of a patch that so many exposures meet."""
    for meshes in range(MAX_MESHES, 0, -1):
        rows = meshes * MESH
        across = -(-width // MESH)
        while across > 1 and exposures * (rows + 2 * halo) * (across * MESH + 2 * halo) > TILE_INPUT:
            across -= 1
        # Rather flat tiles that are as wide as a patch than high narrow ones.
        if across * MESH >= width or meshes == 1:
            return rows, across * MESH
    raise AssertionError


@dataclass(frozen=True)
class Tiling:
    """The tiles of all patches.

    Parameters
    ----------
    layout : Layout
    halo : int
        Pixels around a tile that its values depend on.
    """

    layout: Layout
    halo: int = MIN_HALO

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Every tile of every patch; meshes are counted from the corner of the patch."""
        return tuple(
            self._tile(number, box, members)
            for number, members in enumerate(self.layout.inputs)
            for box in self._boxes(self.layout.patches[number].outer, len(members))
        )

    def _boxes(self, outer: Box, exposures: int) -> list[Box]:
        (top, bottom), (left, right) = outer
        rows, columns = _tile_sides(exposures, bottom - top, right - left, self.halo)
        return [
            ((y, min(y + rows, bottom)), (x, min(x + columns, right)))
            for y in range(top, bottom, rows)
            for x in range(left, right, columns)
        ]

    def _tile(self, patch: int, box: Box, members: Sequence[int]) -> Tile:
        wide = tuple((first - self.halo, end + self.halo) for first, end in box)
        around = overlap(wide, self.layout.patches[patch].outer)
        boxes = {number: overlap(self.layout.footprints[number].box, around) for number in members}
        meeting = tuple(number for number, shared in boxes.items() if box_size(shared))
        writes = tuple(overlap(self.layout.footprints[number].box, box) for number in meeting)
        return Tile(patch, box, around, meeting, tuple(boxes[number] for number in meeting), writes)

    @property
    def grid(self) -> ChunkGrid:
        """A chunk per tile."""
        return ChunkGrid("t", (len(self.tiles),), (1,))

    @property
    def weights(self) -> tuple[int, ...]:
        """Pixels of each tile: its own, and those of the warps around it."""
        return tuple(box_size(tile.box) + sum(map(box_size, tile.reads)) for tile in self.tiles)

    @property
    def stack_bytes(self) -> int:
        """Bytes of the largest stack of one float32 plane of all exposures around a tile."""
        sizes = (len(tile.footprints) * box_size(tile.around) for tile in self.tiles)
        return 4 * max(sizes, default=0)

    # --- Boxes of arrays, for a chunk per tile

    def reads(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes of warps around a tile."""
        tile = self.tiles[chunk.number]
        pairs = zip(tile.footprints, tile.reads, strict=True)
        return tuple(self._item(number, box) for number, box in pairs)

    def writes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes of warps in a tile."""
        tile = self.tiles[chunk.number]
        pairs = zip(tile.footprints, tile.writes, strict=True)
        return tuple(self._item(number, box) for number, box in pairs if box_size(box))

    def _item(self, number: int, box: Box) -> Box:
        return ((number, number + 1), *box_within(box, self.layout.footprints[number].box))

    # --- Bins

    def bins(self, number: int, box: Box) -> Box:
        """Return the bins that a footprint's box touches."""
        outer = self.layout.patches[self.layout.footprints[number].patch].outer
        return tuple(
            ((a - first) // BIN, -(-(b - first) // BIN))
            for (a, b), (first, _) in zip(box, outer, strict=True)
        )

    def bin_corner(self, number: int) -> tuple[int, int]:
        """Return row and column in a warp of the first pixel of its first bin: 0 or less."""
        footprint = self.layout.footprints[number]
        outer = self.layout.patches[footprint.patch].outer
        return tuple(-((a - first) % BIN) for (a, _), (first, _) in zip(footprint.box, outer, strict=True))

    def bin_writes(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the boxes of binned warps in a tile."""
        tile, boxes = self.tiles[chunk.number], []
        for number, box in zip(tile.footprints, tile.writes, strict=True):
            if box_size(box):
                whole = self.bins(number, self.layout.footprints[number].box)
                boxes.append(((number, number + 1), *box_within(self.bins(number, box), whole)))
        return tuple(boxes)

    # --- Arrays

    def codes(self, name: str) -> Ragged:
        """Return an array of a byte per pixel of all warps."""
        shapes = tuple(box_shape(footprint.box) for footprint in self.layout.footprints)
        return Ragged(name, "fyx", shapes, "uint8")

    def binned(self, name: str) -> Ragged:
        """Return an array of all warps in bins."""
        shapes = tuple(
            box_shape(self.bins(number, footprint.box))
            for number, footprint in enumerate(self.layout.footprints)
        )
        return Ragged(name, "fyx", shapes, "float32")
