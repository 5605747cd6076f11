"""TIFF: stacks whose pages every rank reads for itself, and BigTIFF that all ranks fill in order."""

import struct

import numpy as np
import tifffile

from mpiimg.engine import Array, box_slices
from mpiimg.formats.registry import FileInput, Format

# width, height, bits, compression, meaning, place, samples, rows in a strip, bytes, type
TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 339)


class Pages(tifffile.TiffFile):
    """An open file, of which a rank reads its own pages."""

    def read(self, box):
        """Return a box of (page, row, column)."""
        pages, *inside = box_slices(box)
        return np.stack([page.asarray()[*inside] for page in self.pages[pages]])


def read(path, name):
    """Return what the directories say: pages of one shape and type, and all of them there."""
    tifffile.logger().disabled = True  # what it says is raised here
    with tifffile.TiffFile(path) as file:
        pages, handle = list(file.pages), file.filehandle
        array = Array(name, "tyxc"[: 1 + pages[0].ndim], (len(pages), *pages[0].shape), pages[0].dtype.name)
        handle.seek(file.pages.next_page_offset)
        ends = [page.dataoffsets[-1] + page.databytecounts[-1] for page in pages]
        if any(handle.read(file.tiff.offsetsize)) or max(ends) > handle.size:
            raise ValueError("it is truncated")
        if file.series[0].size != np.prod(array.shape):
            raise ValueError("its pages differ")
    return FileInput(path, array, Pages)


class BigTiff:
    """An array (t, y, x) or (y, x) as a file of pages, each behind its directory."""

    def __init__(self, array):
        self.dtype = np.dtype(array.dtype).newbyteorder("<")
        self.grid = array.cut(t=1) if "t" in array.axes else array.cut(y=array.shape[0])
        self.chunk_bytes = 16 + 20 * len(TAGS) + array.nbytes // len(self.grid)

    def head(self):
        """Return where the first directory is."""
        return struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16)

    def encode(self, chunk, block):
        (rows, columns), pixels = block.shape[-2:], block.astype(self.dtype).tobytes()
        stop, size, kind = 16 + (chunk.number + 1) * self.chunk_bytes, len(pixels), block.dtype.kind
        values = (columns, rows, 8 * block.itemsize, 1, 1, stop - size, 1, rows, size, " uif".index(kind))
        entries = [struct.pack("<HHQQ", tag, 16, 1, value) for tag, value in zip(TAGS, values, strict=True)]
        following = struct.pack("<Q", stop if chunk.number + 1 < len(self.grid) else 0)
        return struct.pack("<Q", len(TAGS)) + b"".join(entries) + following + pixels


TIFF = Format("BigTIFF", read, BigTiff)
