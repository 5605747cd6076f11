"""How arrays are cut into chunks: by shapes, types and what a function asks for, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

#: Bytes of a chunk: of all bytes this share, but at least and at most so many; and so many chunks at most.
SHARE, LEAST, MOST, MAX_CHUNKS = 1024, 512 << 10, 8 << 20, 16384

#: A chunk that reads many arrays, as one of a stack does, takes so many bytes of each, but MOST in all.
OF_EACH = 128 << 10

#: A block is at least so many depths thick, since what lies within the depth is worked on twice.
MIN_DEPTHS = 4


@dataclass(frozen=True)
class Sized:
    """An array that takes part in the work on chunks.

    Parameters
    ----------
    axes : tuple of str
    itemsize : int
        Bytes of an item.
    lengths : mapping of str to int
        Along axes that are not those of the grid, or along which it has a length of its own.
    """

    axes: tuple[str, ...]
    itemsize: int
    lengths: Mapping[str, int]

    def nbytes(self, block: Mapping[str, int], halo: Mapping[str, int]) -> int:
        """Return the bytes of a block of it, with its halo."""
        items = 1
        for axis in self.axes:
            length = self.lengths.get(axis)
            items *= length if length is not None else block[axis] + 2 * halo.get(axis, 0)
        return items * self.itemsize


def block_shape(
    axes: Sequence[str],
    sizes: Mapping[str, int],
    arrays: Sequence[Sized],
    whole: Collection[str] = (),
    each: Collection[str] = (),
    depth: Mapping[str, int] | None = None,
    count: int = 1,
) -> dict[str, int]:
    """Return how many items of each axis a chunk has.

    Parameters
    ----------
    axes : sequence of str
        Of the grid, slowest in storage first.
    sizes : mapping of str to int
        Items along each axis.
    arrays : sequence of Sized
        What is read and written, to know the bytes of a chunk.
    whole, each : collection of str
        Axes that are not cut, and axes of which a chunk has one item.
    depth : mapping of str to int, optional
        Items more on both sides that are read, by axis.
    count : int
        How many stored arrays a chunk reads.
    """
    depth = {axis: items for axis, items in (depth or {}).items() if items}
    block = {axis: min(1, sizes[axis]) if axis in each else sizes[axis] for axis in axes}
    total = sum(array.nbytes({axis: sizes[axis] for axis in axes}, {}) for array in arrays)
    least = max(LEAST, OF_EACH * count)
    limit = max(min(max(total // SHARE, least), MOST), total // MAX_CHUNKS)

    def taken() -> int:
        return sum(array.nbytes(block, depth) for array in arrays)

    free = [axis for axis in axes if axis not in whole and axis not in each]
    while taken() > limit:
        plain = [axis for axis in free if axis not in depth and block[axis] > 1]
        thick = [axis for axis in free if axis in depth and block[axis] > MIN_DEPTHS * depth[axis] + 1]
        if plain:
            axis = plain[0]
        elif thick:
            axis = max(thick, key=lambda one: block[one])
        else:
            break
        halved = max(-(-block[axis] // 2), MIN_DEPTHS * depth.get(axis, 0), 1)
        if halved == block[axis]:
            break
        block[axis] = halved
    return block


def pieces(sizes: Mapping[str, int], block: Mapping[str, int]) -> int:
    """Return how many chunks there are."""
    return math.prod(-(-sizes[axis] // max(1, items)) for axis, items in block.items())
