"""NIfTI images as arrays: .nii that every rank reads and writes a part of, .nii.gz, and pairs .hdr and .img.

Axes are x y z t u v w, the first of them the fastest in the file. Numbers that a header scales become
float32 (float64 where they are float64).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.needs import Chunk
from mpiimg.engine.stage import Digested
from mpiimg.errors import BadInput
from mpiimg.formats.foreign import foreign
from mpiimg.formats.gz import gzip_head, gzip_part, gzip_tail
from mpiimg.formats.interface import FILE_AXES, Format, ResultArray, file_grid, gzipped_bytes
from mpiimg.formats.nifti.header import (
    check_length,
    checked_offset,
    checked_scaling,
    first_bytes,
    mended,
    parse_header,
)
from mpiimg.formats.nifti.whole import (
    ROUNDING,
    best_affine,
    check_result,
    corner_distance,
    made_whole,
    spans_space,
)
from mpiimg.formats.plain import AsTheyAre, PlainInput, Scaling
from mpiimg.formats.space import Affine
from mpiimg.version import __version__

log = logging.getLogger("mpiimg")

#: Types that NIfTI has no number for, and those that take their place.
WIDENED = {"bool": "uint8", "float16": "float32"}

#: Longest axis of NIfTI-1, whose lengths are of 16 bits; longer ones make a NIfTI-2.
LONGEST = 32767

#: Axes that a NIfTI may have.
MOST_AXES = len(FILE_AXES)


# --- In ---------------------------------------------------------------------------------------------------


def read(path: Path, name: str) -> PlainInput:
    """Return the image that a file, or a pair of files, holds.

    Raises
    ------
    BadInput
        It is no NIfTI, truncated, or has voxels that are no numbers.
    """
    head, data = _files_of(Path(path))
    with open(head, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    raw = first_bytes(head, 544, compressed)
    try:
        header = parse_header(raw, pair=head != data)
        shape = tuple(map(int, header.get_data_shape()))
    except Exception:
        said = foreign(head, texts=False) or (
            "is no NIfTI that can be read: it does not begin with a header of NIfTI-1 or NIfTI-2"
        )
        raise BadInput(f"{path}: {said}") from None
    if not shape or min(shape) < 1:
        lengths = "x".join(map(str, shape)) or "none"
        raise BadInput(f"{path}: its shape is {lengths}: there is nothing in it")
    dtype = _number_type(header, path)
    slope, inter = checked_scaling(header, path, dtype)
    offset = checked_offset(header, path, head != data)
    if head != data:
        with open(data, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
    check_length(data, data.stat().st_size, offset + math.prod(shape) * dtype.itemsize, compressed)
    values = AsTheyAre() if (slope, inter) == (1.0, 0.0) else Scaling(slope, inter)
    kept = dtype if isinstance(values, AsTheyAre) else values.of(dtype)
    axes = FILE_AXES[: len(shape)]
    return PlainInput(
        data,
        Array(name, axes[::-1], shape[::-1], kept.newbyteorder("=").name),
        offset,
        dtype.str,
        bytes(mended(header, path).binaryblock),
        axes,
        values,
        compressed,
        _space(header, path, axes),
        _attrs(header),
        () if head == data else (head,),
    )


def _files_of(path: Path) -> tuple[Path, Path]:
    """Return the files of header and voxels: one and the same, or a pair."""
    ending = path.suffix.lower()
    if ending not in (".hdr", ".img"):
        return path, path
    upper = path.suffix.isupper()
    head, data = (path.with_suffix(one.upper() if upper else one) for one in (".hdr", ".img"))
    for one in (head, data):
        if not one.exists():
            raise BadInput(f"{path}: {one.name} is not beside it: a NIfTI of two files is .hdr and .img")
    return head, data


def _number_type(header, path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except Exception:
        dtype = np.dtype("V")
    if dtype.names:
        raise BadInput(f"{path}: its voxels are colours ({' '.join(dtype.names)}); convert it to numbers")
    if dtype.kind not in "iufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        raise BadInput(f"{path}: voxels of type {header['datatype']} ({dtype}) are not supported; convert it")
    return dtype


def _space(header, path: Path, axes: tuple[str, ...]) -> Affine:
    """Return where the voxels lie; unknown where the header has lost it: not all images are of heads."""
    try:
        header, words = made_whole(header, path)
        matrix = best_affine(header)
    except BadInput as error:
        header, words = mended(header, path), (f"{error}: left out",)
        header["qform_code"] = header["sform_code"] = 0
        matrix = np.eye(4)
    for text in words:
        log.warning("warning: %s", text)
    codes = (int(header["qform_code"]), int(header["sform_code"]))
    qform = header.get_qform() if min(codes) > 0 else None
    if qform is not None and np.allclose(qform, matrix, 1e-5, 1e-5):
        qform = None
    try:
        units = header.get_xyzt_units()
    except KeyError:
        units = ("unknown", "unknown")
    pitches = map(float, header["pixdim"][4 : len(axes) + 1])
    offsets = (float(header["toffset"]), 0.0, 0.0, 0.0)
    steps = [
        (axis, pitch if 0 < pitch < np.inf else 1.0, offset if np.isfinite(offset) else 0.0)
        for axis, pitch, offset in zip(axes[3:], pitches, offsets, strict=False)
    ]
    return Affine(FILE_AXES[:3], matrix, units, codes, qform, tuple(steps))


def _attrs(header) -> dict[str, Any]:
    """Return what else a header says, in words."""
    said = {
        name: bytes(header[name].tobytes()).split(b"\0")[0].decode("latin-1")
        for name in ("descrip", "intent_name", "aux_file")
    }
    if int(header["intent_code"]):
        said["intent_code"] = int(header["intent_code"])
    return {name: value for name, value in said.items() if value}


# --- Out --------------------------------------------------------------------------------------------------


class NiftiWriter:
    """An image in a .nii, whose parts any rank writes; a :class:`mpiimg.formats.interface.PlacedWriter`.

    The axes of space come first, in the order of the affine, and one that the array does not have stands
    there with length 1; then t, then all others as they are. An array that has none of these axes is written
    with its own in their order. Without a space, or with a WCS, the affine is the identity, with code 0.

    Parameters
    ----------
    result : ResultArray

    Raises
    ------
    BadInput
        It has too many axes, or values that NIfTI has no type for.
    """

    def __init__(self, result: ResultArray):
        self._space = result.space if isinstance(result.space, Affine) else None
        names = _dimensions(result, self._space)
        if len(names) > MOST_AXES:
            raise BadInput(
                f"{result.name}: has {len(names)} axes as a NIfTI, {' '.join(names)}, which has {MOST_AXES} "
                "at most; write .npy or .h5"
            )
        self._widened = result.dtype if result.dtype in WIDENED else ""
        kind = np.dtype(WIDENED.get(result.dtype, result.dtype))
        if kind.kind not in "iufc" or kind.itemsize > (16 if kind.kind == "c" else 8):
            raise BadInput(f"{result.name}: NIfTI has no values of type {result.dtype}; change it by astype")
        self.dtype = kind.newbyteorder("<")
        self._name, self._names = result.name, names
        self._shape = tuple(result.sizes.get(axis, 1) for axis in names)
        self.axes = tuple(axis for axis in reversed(names) if axis in result.axes)
        self.grid = file_grid(self.axes, tuple(result.sizes[axis] for axis in self.axes), kind.itemsize)
        #: Those of NIfTI-2 and NIfTI-1, and four that say that no extension follows.
        self.offset = 544 if max(self._shape) > LONGEST else 352

    def head(self) -> bytes:
        """Return the header."""
        import nibabel

        if self._widened == "float16":
            log.warning("warning: %s: NIfTI has no float16: written as float32", self._name)
        kind = nibabel.Nifti2Header if self.offset == 544 else nibabel.Nifti1Header
        header = kind(endianness="<")
        header.set_data_dtype(self.dtype)
        header.set_data_shape(self._shape)
        space = self._space or Affine(FILE_AXES[:3], np.eye(4))
        matrix = np.array(space.matrix)
        qform = matrix if space.qform is None else np.array(space.qform)
        if not (spans_space(matrix) and spans_space(qform)):
            raise BadInput(
                f"{self._name}: its affine is not one of voxels in space, and a NIfTI cannot have it; give "
                "the array another space"
            )
        header.set_sform(matrix, code=space.codes[1])
        header.set_qform(qform, code=space.codes[0])
        if space.qform is None and not _says(header, matrix):
            header["qform_code"] = 0  # it has shears, which a quaternion cannot say
        steps = {axis: (pitch, offset) for axis, pitch, offset in space.steps}
        pitches = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0)) if self._space else np.ones(3)
        if space.codes[0]:
            pitches = np.sqrt((qform[:3, :3] ** 2).sum(axis=0))
        further = [steps.get(axis, (1.0, 0.0))[0] for axis in self._names[3:]]
        header.set_zooms([*pitches[: len(self._names)], *further])
        header["toffset"] = steps[self._names[3]][1] if self._names[3:] and self._names[3] in steps else 0
        header.set_xyzt_units(*space.units)
        header["scl_slope"], header["scl_inter"] = 1, 0
        header["descrip"] = f"mpiimg {__version__}".encode()
        header["vox_offset"] = self.offset
        check_result(header, self._name)
        return header.binaryblock + bytes(4)

    def stored(self, block: np.ndarray) -> np.ndarray:
        """Return the numbers of a block as they are in the file."""
        return block.astype(self.dtype, copy=False)


class NiftiGzWriter(NiftiWriter):
    """An image in a .nii.gz; a :class:`mpiimg.formats.interface.Writer`: one gzip member."""

    def __init__(self, result: ResultArray):
        super().__init__(result)
        self.chunk_bytes = gzipped_bytes(self.grid, self.axes, result, self.dtype.itemsize)

    def head(self) -> Digested:
        """Return the header, compressed."""
        return gzip_head(super().head())

    def encode(self, chunk: Chunk, block: np.ndarray) -> Digested:
        """Return the bytes of a chunk, compressed."""
        return gzip_part(np.ascontiguousarray(self.stored(block)).tobytes())

    def tail(self, digests: Sequence[tuple[int, int]]) -> bytes:
        """Return the checksum and the length of all that is compressed."""
        return gzip_tail(digests)


def _says(header, matrix: np.ndarray) -> bool:
    """Say whether the qform of a header puts voxels where an affine does, but for rounding."""
    shape = (*header.get_data_shape(), 1, 1, 1)[:3]
    size = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0)).min()
    return corner_distance(header.get_qform(), matrix, shape) <= ROUNDING * size


def _dimensions(result: ResultArray, space: Affine | None) -> tuple[str, ...]:
    """Return the names of the dimensions of the file; those that the array does not have are of length 1."""
    spatial = FILE_AXES[:3] if space is None else space.axes
    if not set(result.axes) & set(spatial):
        return result.axes or ("x",)
    others = sorted((axis for axis in result.axes if axis not in spatial), key=lambda axis: axis != "t")
    if space is None and not others:
        # Nothing says that there is more of space than the array has.
        last = max(spatial.index(axis) for axis in result.axes)
        return spatial[: last + 1]
    return (*spatial, *others)


NIFTI = Format("NIfTI", read, NiftiWriter)
NIFTI_GZ = Format("gzipped NIfTI", read, NiftiGzWriter, parallel=False)
PAIR = Format("NIfTI in two files", read)
