"""Zarr, version 3, and OME-Zarr written by all ranks: each chunk of the sink's grid is one shard, one file.

Shards follow from shape and type alone, so that the same files come of any number of ranks. In a shard lie
chunks of about 1 MiB, which readers can take one by one, packed by blosc (zstd, with its bytes shuffled),
each with a checksum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.boxes import ChunkGrid, box_slices
from mpiimg.engine.needs import Chunk
from mpiimg.errors import BadInput
from mpiimg.formats.attributes import as_json
from mpiimg.formats.interface import ResultArray, library
from mpiimg.formats.zarr import ngff
from mpiimg.formats.zarr.reading import OWN, settings

#: Bytes of a chunk, which is read and unpacked as a whole.
CHUNK_BYTES = 1 << 20

#: Bytes of a shard: of small arrays a 256th, so that there is work for many ranks, within these bounds. From
#: 4 TB on a 65,536th, since file systems do not like more files.
MIN_SHARD, MAX_SHARD, MAX_SHARDS = 4 << 20, 64 << 20, 1 << 16


class ZarrWriter:
    """Writes an array into the folder of a Zarr store; a files writer.

    Parameters
    ----------
    result : ResultArray
    ome : bool
        Write an image of OME-Zarr: a group, with the array as its level "0". Its axes are in the order t,
        then one other, then z y x, and chunks are of one t and one of the other.

    Raises
    ------
    BadInput
        The store cannot hold the array.
    """

    def __init__(self, result: ResultArray, ome: bool = False):
        if np.dtype(result.dtype).kind not in "buifc":
            raise BadInput(
                f"{result.name}: a Zarr store has no values of type {result.dtype} here; use astype"
            )
        library("zarr", result.name, "zarr")
        self._result, self._prefix = result, "0/" if ome else ""
        self._ome = ome
        self.axes = ngff.order(result) if ome else result.axes
        self.shape = tuple(result.sizes[axis] for axis in self.axes)
        single = tuple(place for place, axis in enumerate(self.axes) if ome and axis not in "zyx")
        self.chunks, self.shards = shards(self.shape, np.dtype(result.dtype).itemsize, single)
        self.grid = ChunkGrid(self.axes, self.shape, self.shards)

    #: What tells a Zarr store, of either version, from other folders.
    marks = ("zarr.json", ".zarray", ".zgroup")

    @property
    def above(self) -> Mapping[str, bytes]:
        """What makes a folder a group."""
        return {"zarr.json": _as_text({"zarr_format": 3, "node_type": "group", "attributes": {}})}

    def names(self, number: int) -> tuple[str, ...]:
        """Return the name of the one file of a shard."""
        place = np.unravel_index(number, self.grid.counts) if self.shape else ()
        return (self._prefix + "/".join(["c", *(str(int(one)) for one in place)]),)

    def work(self, chunk: Chunk, folder: Path, block: np.ndarray) -> None:
        """Pack and write a shard."""
        import zarr

        with settings():
            store = zarr.storage.LocalStore(folder)
            metadata = zarr.core.metadata.ArrayV3Metadata.from_dict(json.loads(self._metadata))
            path = zarr.storage.StorePath(store, self._prefix.rstrip("/"))
            zarr.Array(zarr.AsyncArray(metadata, path))[box_slices(chunk.box)] = block

    def documents(self) -> Mapping[str, bytes]:
        """Return the metadata of the array, and of the group of an image."""
        made = {f"{self._prefix}zarr.json": self._metadata}
        if self._ome:
            group = {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": ngff.metadata(self._result, self.axes, self._prefix.rstrip("/")),
            }
            made["zarr.json"] = _as_text(group)
        return made

    @cached_property
    def _metadata(self) -> bytes:
        """The metadata of the array, as zarr makes them."""
        import zarr

        result = self._result
        own = {} if result.space is None else {OWN: {"space": result.space.to_record()}}
        item = np.dtype(result.dtype).itemsize
        with settings():
            store = zarr.storage.MemoryStore()
            array = zarr.create_array(
                store,
                shape=self.shape,
                dtype=np.dtype(result.dtype).newbyteorder("="),
                chunks=self.chunks,
                shards=self.shards or None,
                compressors=[
                    zarr.codecs.BloscCodec(
                        typesize=item,
                        cname="zstd",
                        clevel=3,
                        shuffle="shuffle" if item > 1 else "noshuffle",
                        # One block: threads, which a user's program may have asked for, end in any order.
                        blocksize=math.prod(self.chunks) * item,
                    ),
                    zarr.codecs.Crc32cCodec(),
                ],
                fill_value=0,
                dimension_names=self.axes,
                attributes=as_json({**result.attrs, **own}),
            )
            return _as_text(array.metadata.to_dict())


def _as_text(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, indent=2, allow_nan=False).encode()


def shards(
    shape: tuple[int, ...], itemsize: int, single: tuple[int, ...] = ()
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the extents of chunks and of shards, from shape and type alone.

    Parameters
    ----------
    shape : tuple of int
    itemsize : int
    single : tuple of int
        Axes along which a chunk has one item.

    Returns
    -------
    chunks : tuple of int
        About as long along all axes, up to :data:`CHUNK_BYTES`.
    shards : tuple of int
        As many chunks along the last axes as make a shard: slabs, where they fit.
    """
    chunks = [1 if axis in single else n for axis, n in enumerate(shape)]
    pieces = [1] * len(shape)
    while math.prod(chunks) * itemsize > CHUNK_BYTES and max(chunks) > 1:
        axis = chunks.index(max(chunks))
        pieces[axis] *= 2
        chunks[axis] = -(-shape[axis] // pieces[axis])
    total = math.prod(shape) * itemsize
    target = max(min(max(total // 256, MIN_SHARD), MAX_SHARD), total // MAX_SHARDS)
    sizes, left = list(chunks), max(1, target // (math.prod(chunks) * itemsize))
    for axis in reversed(range(len(shape))):
        count = -(-shape[axis] // chunks[axis])
        taken = min(count, left)
        if taken < count:
            # As even as they can be: 5 chunks are 3 and 2, and not 4 and 1.
            taken = -(-count // -(-count // taken))
        sizes[axis], left = taken * chunks[axis], left // taken
    return tuple(chunks), tuple(sizes)


def write(result: ResultArray) -> ZarrWriter:
    """Return the writer of an array as a Zarr store."""
    return ZarrWriter(result)


def write_ome(result: ResultArray) -> ZarrWriter:
    """Return the writer of an array as an image of OME-Zarr."""
    return ZarrWriter(result, ome=True)
