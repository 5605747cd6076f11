"""PGM, a format of grey pictures: every rank reads and writes its own part."""

import numpy as np

from mpiimg.engine import box_slices
from mpiimg.errors import BadInput
from mpiimg.formats.interface import Format, file_grid


class Picture:
    """A file that is open, of which a rank reads what it needs."""

    axes, dtype = ("y", "x"), "uint16"

    def __init__(self, path):
        with open(path, "rb") as file:
            kind, size, largest = (file.readline().split() for _ in range(3))
            if kind != [b"P5"] or largest != [b"65535"]:
                raise ValueError("it does not begin as one of 16 bits")
            self.shape = tuple(map(int, size))[::-1]
            self.pixels = np.memmap(path, ">u2", "r", file.tell(), self.shape)

    def read(self, box):
        return self.pixels[box_slices(box)]


class PictureFile:
    """A picture as it becomes a file, into which ranks put their parts."""

    dtype = np.dtype(">u2")

    def __init__(self, result):
        if (len(result.axes), result.dtype) != (2, "uint16"):
            raise BadInput(f"{result.name}: a PGM holds two axes of uint16; change it by astype")
        self.axes, self.shape = result.axes, result.shape
        self.grid = file_grid(self.axes, self.shape, self.dtype.itemsize)
        self.offset = len(self.head())

    def head(self):
        height, width = self.shape
        return f"P5\n{width} {height}\n65535\n".encode()


PGM = Format("PGM", reader=Picture, write=PictureFile)
