"""A block of an array as a file of its own for programs of others, and what they write."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.needs import Chunk
from mpiimg.engine.raw import RawFile
from mpiimg.engine.stage import PlacedSink, Sink
from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.interface import FILE_AXES, ResultArray

#: Order of the axes in a NIfTI file.
_NIFTI_AXES = ("x", "y", "z", "t")

#: What NIfTI and FITS cannot hold, and what stands for it without loss.
_STAND_INS = {"b1": "u1", "f2": "f4"}


@dataclass(frozen=True)
class Block:
    """An array read from a file.

    Parameters
    ----------
    values : ndarray
    axes : tuple of str, optional
        Its axes as the format names them; None where it does not.
    matrix : (4, 4) ndarray, optional
        From voxels to millimetres.
    """

    values: np.ndarray
    axes: tuple[str, ...] | None = None
    matrix: np.ndarray | None = None


def ending_for(axes: Sequence[str] | None) -> str:
    """Return the ending of the format that programs of the field read for a block with these axes."""
    if not axes or len(axes) < 2:
        return ".npy"
    if tuple(axes) == ("y", "x"):
        return ".fits"
    return ".nii" if set(axes) <= set(_NIFTI_AXES) else ".npy"


def save_block(path: Path, block: np.ndarray, axes: Sequence[str] | None = None, space: Any = None) -> None:
    """Write a block of an array in the format that the ending of `path` names.

    Parameters
    ----------
    path : Path
    block : ndarray
    axes : sequence of str, optional
        Of the block.
    space : object, optional
        Its affine or WCS (formats/space.py), which goes into the header.

    Raises
    ------
    BadInput
        No format of this name can hold it, or no format has such names.
    """
    _of(_SAVERS, path, _save_as_registered)(path, np.asarray(block), tuple(axes or ()), space)


def load_file(path: Path) -> Any:
    """Return what a program has written, by the ending of the file.

    An image of any known format is a :class:`Block`; a table (FITS, ECSV, CSV) a structured array; .json
    gives what it holds, .txt text, and any other file its bytes.

    Raises
    ------
    Exception
        As the reader raises it: the file is cut or broken.
    """
    return _of(_LOADERS, path, _load_as_registered)(path)


def _of(table: dict[str, Callable], path: Path, other: Callable) -> Callable:
    name = path.name.lower()
    endings = sorted((ending for ending in table if name.endswith(ending)), key=len)
    return table[endings[-1]] if endings else other


# --- NIfTI ------------------------------------------------------------------------------------------------


def _save_nifti(path: Path, block: np.ndarray, axes: tuple[str, ...], space: Any) -> None:
    import nibabel

    if set(axes) <= set(_NIFTI_AXES):
        order = sorted(range(len(axes)), key=lambda n: _NIFTI_AXES.index(axes[n]))
        block = block.transpose(order)
        # A missing x, y or z is one voxel wide.
        for position, axis in enumerate(_NIFTI_AXES[:3]):
            if axis not in axes and any(_NIFTI_AXES.index(other) > position for other in axes):
                block = np.expand_dims(block, position)
    block = _held(block)
    matrix = getattr(space, "matrix", None)
    with_matrix = np.eye(4) if matrix is None else _in_file_order(np.asarray(matrix), space)
    image = nibabel.Nifti1Image(block, with_matrix, dtype=block.dtype)
    image.header.set_xyzt_units("mm", "sec" if block.ndim > 3 else None)
    image.to_filename(path)


def _in_file_order(matrix: np.ndarray, space: Any) -> np.ndarray:
    """Return an affine with its columns in the order x, y, z; of an axis that is not there, a unit step."""
    axes = tuple(getattr(space, "axes", _NIFTI_AXES[:3]))
    if matrix.shape == (4, 4) and axes[:3] == _NIFTI_AXES[:3]:
        return matrix
    whole = np.eye(4)
    whole[:3, 3] = matrix[:3, -1]
    for column, axis in enumerate(axes[: matrix.shape[1] - 1]):
        if axis in _NIFTI_AXES[:3]:
            whole[:3, _NIFTI_AXES.index(axis)] = matrix[:3, column]
    return whole


def _load_nifti(path: Path) -> Block:
    import nibabel

    image = nibabel.load(path)
    header = image.header
    scaled = header.get_slope_inter() not in ((None, None), (1.0, 0.0))
    values = image.get_fdata(dtype=np.float32) if scaled else np.asanyarray(image.dataobj)
    values = np.array(values, dtype=values.dtype.newbyteorder("="))
    return Block(values, _NIFTI_AXES[: values.ndim] if values.ndim <= 4 else None, image.affine)


# --- FITS -------------------------------------------------------------------------------------------------


def _save_fits(path: Path, block: np.ndarray, axes: tuple[str, ...], space: Any) -> None:
    from astropy.io import fits

    if set(axes) == {"x", "y"}:
        block = block.transpose([axes.index("y"), axes.index("x")])
    header = space.cards() if hasattr(space, "cards") else fits.Header()
    fits.PrimaryHDU(_held(block), header).writeto(path, output_verify="silentfix")


def _load_fits(path: Path) -> Block | np.ndarray:
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="File may have been truncated")
        hdus = fits.open(path, memmap=False)
    with hdus:
        for hdu in hdus:
            if isinstance(hdu, fits.BinTableHDU) and not isinstance(hdu, fits.CompImageHDU):
                # SExtractor's LDAC catalogues begin with a table that holds the header of the image.
                if hdu.name != "LDAC_IMHEAD":
                    return native(np.array(hdu.data.view(np.ndarray)), hdu)
            elif hdu.data is not None:
                values = np.array(hdu.data, dtype=hdu.data.dtype.newbyteorder("="))
                return Block(values, ("z", "y", "x")[3 - values.ndim :] if values.ndim <= 3 else None)
    raise ValueError("it holds neither an image nor a table")


def native(rows: np.ndarray, hdu: Any = None) -> np.ndarray:
    """Return rows of a table with numbers in the machine's byte order, text as str, and scaled columns."""
    columns = {}
    for name in rows.dtype.names:
        values = np.asarray(hdu.data[name]) if hdu is not None else rows[name]
        columns[name] = values if values.dtype.kind in "UO" else values.astype(values.dtype.newbyteorder("="))
        if values.dtype.kind == "S":
            columns[name] = np.char.decode(values, "ascii", "replace")
    types = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    table = np.empty(len(rows), types)
    for name, values in columns.items():
        table[name] = values
    return table


def _held(block: np.ndarray) -> np.ndarray:
    kind = block.dtype.str[1:]
    return block.astype(_STAND_INS[kind]) if kind in _STAND_INS else block


# --- .npy and the rest ------------------------------------------------------------------------------------


def _save_npy(path: Path, block: np.ndarray, axes: tuple[str, ...], space: Any) -> None:
    np.save(path, block, allow_pickle=False)


def _load_npy(path: Path) -> Block:
    return Block(np.load(path, allow_pickle=False))


def _load_catalogue(path: Path) -> Any:
    """Read what source-extractor writes: FITS, or text with a head of numbered columns."""
    with open(path, "rb") as file:
        is_fits = file.read(6) == b"SIMPLE"
    if is_fits:
        return _load_fits(path)
    from astropy.table import Table

    return Table.read(path, format="ascii.sextractor").as_array()


def _load_text_table(path: Path) -> np.ndarray:
    from astropy.table import Table

    return Table.read(path, format="ascii.ecsv" if path.suffix == ".ecsv" else "ascii.csv").as_array()


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text())


# --- Formats of the registry ------------------------------------------------------------------------------


def _save_as_registered(path: Path, block: np.ndarray, axes: tuple[str, ...], space: Any) -> None:
    """Write a block as a run would, in this process alone."""
    axes = axes or FILE_AXES[: block.ndim]
    array = ResultArray(path.name, axes, block.shape, block.dtype.name, space)

    def part(chunk: Chunk) -> np.ndarray:
        bounds = [chunk.bounds.get(axis, (None, None)) for axis in axes]
        return block[tuple(slice(*one) for one in bounds)]

    made = registry.writer(path.name)(array)
    stage = registry.stage_of(path.name, made, array, (), part)
    chunks = [stage.chunk(number) for number in range(len(stage.grid))]
    if isinstance(stage, Sink):
        path.write_bytes(stage.whole(map(stage.work, chunks)))
    elif isinstance(stage, PlacedSink):
        offset = stage.create(path, False)
        with contextlib.closing(RawFile(path, offset, stage.layout.shape, stage.stored, True)) as raw:
            for chunk in chunks:
                raw.write(stage.layout.part(chunk.bounds), stage.work(chunk))
    else:
        path.mkdir()
        for chunk in chunks:
            stage.work(chunk, path.parent)


def _load_as_registered(path: Path) -> Block | bytes:
    """Read a file as a run would; where no format reads it, its bytes."""
    try:
        registry.reader(path)
    except BadInput:
        return path.read_bytes()
    source = registry.read(path, "output")
    own = source.array.axes
    whole = tuple((0, n) for n in source.array.shape)
    with contextlib.closing(source.open()) as reader:
        values = reader.read(whole)
    axes = tuple(getattr(source, "axes", None) or own)
    matrix = getattr(getattr(source, "space", None), "matrix", None)
    ordered = values.transpose([own.index(axis) for axis in axes])
    return Block(ordered, axes, None if matrix is None else np.asarray(matrix))


_SAVERS: dict[str, Callable] = {
    ".nii": _save_nifti,
    ".nii.gz": _save_nifti,
    ".fits": _save_fits,
    ".npy": _save_npy,
}
_LOADERS: dict[str, Callable] = {
    ".nii": _load_nifti,
    ".nii.gz": _load_nifti,
    ".fits": _load_fits,
    ".fit": _load_fits,
    ".cat": _load_catalogue,
    ".npy": _load_npy,
    ".csv": _load_text_table,
    ".ecsv": _load_text_table,
    ".json": _load_json,
    ".txt": Path.read_text,
}
