"""Images of other formats than NIfTI, as the NIfTI that mrconvert makes of them: its axes, the same voxels.

A .mif may have its axes in any order in the file. mrconvert leaves those of space in the order in which they
lie there, lets the affine say which is which, and puts the volumes last; so is it done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mpiimg.engine.boxes import Box, box_shape
from mpiimg.engine.inputs import Input, Reader
from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.interface import ResultArray
from mpiimg.formats.nifti.images import WIDENED, NiftiWriter
from mpiimg.formats.sources import attrs_of, axes_of, space_of
from mpiimg.formats.space import Affine

#: Letters of axes in space.
_SPATIAL = ("x", "y", "z")


@dataclass(frozen=True)
class StoredVoxels:
    """The voxels of an image of any format, by the letters that arrays of images have for axes.

    Parameters
    ----------
    source : Input
        That the format makes of the file.
    axes : tuple of str
        In the order of the file, the slowest first: v, z, y, x and, for further ones, what the format says.
    dtype : str
        NumPy's name, of values.
    """

    source: Input
    axes: tuple[str, ...]
    dtype: str

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that the image lies in."""
        return tuple(map(Path, self.source.files))

    @property
    def parallel(self) -> bool:
        """Whether every rank may read any part of it."""
        return self.source.parallel

    def in_file_order(self, axes: str) -> str:
        """Return some of the axes in the order in which they lie in the file; others have length 1."""
        return "".join(axis for axis in self.axes if axis in axes)

    def open(self, axes: str) -> Reader:
        """Open the voxels as an array with these axes."""
        return _Opened(self, self.source.open(), axes)

    def blocks(self, boxes: Iterator[Box], axes: str) -> Iterator[np.ndarray]:
        """Yield blocks of a stream in whose file the axes lie in this order."""
        asked: list[Box] = []

        def in_file() -> Iterator[Box]:
            for box in boxes:
                asked.append(box)
                yield self.box_in_file(box, axes)

        for block in self.source.blocks(in_file()):
            yield block.reshape(box_shape(asked.pop(0))).astype(self.dtype, copy=False)

    def box_in_file(self, box: Box, axes: str) -> Box:
        """Return a box of an array with these axes as one of the file."""
        ranges = dict(zip(axes, box, strict=True))
        return tuple(ranges.get(axis, (0, 1)) for axis in self.axes)

    def first(self, count: int) -> np.ndarray:
        """Return the first voxels of a stream, (count,); what follows is not read."""
        blocks = self.source.blocks(iter([((0, count),), ((0, 0),)]))
        return next(blocks).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class _Opened:
    """Open voxels as an array with some order of axes."""

    voxels: StoredVoxels
    reader: Reader
    axes: str

    def read(self, box: Box) -> np.ndarray:
        block = self.reader.read(self.voxels.box_in_file(box, self.axes))
        there = self.voxels.in_file_order(self.axes)
        ranges = dict(zip(self.axes, box_shape(box), strict=True))
        block = block.reshape([ranges[axis] for axis in there])
        order = [there.index(axis) for axis in self.axes]
        return np.asarray(block.transpose(order), dtype=self.voxels.dtype, order="C")

    def close(self) -> None:
        self.reader.close()


def read_other(path: Path, what: str) -> tuple[StoredVoxels, bytes, tuple[tuple[float, ...], ...]]:
    """Look at an image of whatever format its ending names.

    Parameters
    ----------
    path : Path
    what : str
        Names the kind of image in messages.

    Returns
    -------
    voxels : StoredVoxels
    header : bytes
        Of the NIfTI that it would be.
    dw_scheme : tuple of rows
        The gradients that its header has, MRtrix's: x, y, z in scanner axes, and b.

    Raises
    ------
    BadInput
        It cannot be read, or is no image of real numbers in space.
    """
    source = registry.read(path, "voxels")
    space, axes, kind = space_of(source), axes_of(source), np.dtype(source.array.dtype)
    if not isinstance(space, Affine) or not set(_SPATIAL) <= set(axes):
        raise BadInput(
            f"{path}: this {what} does not say where its voxels lie in space: it has the axes "
            f"{' '.join(axes)}{'' if isinstance(space, Affine) else ' and no affine'}; convert it to NIfTI"
        )
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise BadInput(
            f"{path}: voxels of type {kind} are not supported; convert the magnitude image, with "
            f"mrcalc {path.name} -abs magnitude.nii.gz"
        )
    dtype = WIDENED.get(kind.name, kind.name)
    stored = source.array.axes
    spatial = [axis for axis in reversed(stored) if axis in _SPATIAL]
    letters = {**dict(zip(spatial, _SPATIAL, strict=True)), "t": "v"}
    voxels = StoredVoxels(source, tuple(letters.get(axis, axis.upper()) for axis in stored), dtype)
    sizes = dict(zip(stored, source.array.shape, strict=True))
    others = [axis for axis in axes if axis not in _SPATIAL]
    result = ResultArray(
        str(path),
        (*spatial, *others),
        tuple(sizes[axis] for axis in (*spatial, *others)),
        dtype,
        _with_axes(space, spatial),
    )
    rows = attrs_of(source).get("dw_scheme") or ()
    scheme = rows if all(isinstance(row, list | tuple) and len(row) >= 4 for row in rows) else ()
    return voxels, NiftiWriter(result).head(), tuple(tuple(map(float, row[:4])) for row in scheme)


def _with_axes(space: Affine, axes: list[str]) -> Affine:
    """Return an affine whose columns are of these axes, in this order."""
    columns = [*(space.axes.index(axis) for axis in axes), 3]
    qform = None if space.qform is None else np.array(space.qform)[:, columns]
    return replace(space, axes=tuple(axes), matrix=np.array(space.matrix)[:, columns], qform=qform)
