"""What the header of a NIfTI file says, and whether that can be."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.gz import inflated_start

#: Bytes that one byte of a deflated stream stands for, at most; and what a short stream may have more.
MAX_INFLATION, SLACK = 1032, 1 << 16

#: What nibabel says of headers that it mends.
_UNHEARD = logging.Logger("nibabel, unheard", logging.CRITICAL + 1)


def first_bytes(path: Path, count: int, compressed: bool) -> bytes:
    """Return what a file begins with, or what it inflates to begins with."""
    if compressed:
        return inflated_start(path, count)
    with open(path, "rb") as file:
        return file.read(count)


def check_length(path: Path, size: int, end: int, compressed: bool) -> None:
    """Refuse a file that cannot hold the bytes that its header promises, before any are read."""
    if compressed and end > size * MAX_INFLATION + SLACK:
        raise BadInput(
            f"{path}: truncated or corrupt: its header promises {end} bytes, and {size} bytes of gzip hold "
            f"{size * MAX_INFLATION} at most; test it with gzip -t and copy it again"
        )
    if not compressed and size < end:
        raise BadInput(f"{path}: truncated: {size} bytes where the header promises {end}; copy it again")


def parse_header(raw: bytes, pair: bool = False):
    """Return nibabel's NIfTI-1 or NIfTI-2 header of `raw`, in the byte order it has.

    Parameters
    ----------
    raw : bytes
    pair : bool
        The voxels are in another file.

    Raises
    ------
    ValueError
        It is none.
    """
    import nibabel

    sizes = {int.from_bytes(raw[:4], order) for order in ("little", "big")}
    kind = nibabel.Nifti2Header if 540 in sizes else nibabel.Nifti1Header
    header = kind(raw[: kind.template_dtype.itemsize], check=False)
    if bytes(header["magic"])[:3] not in ((b"ni1", b"ni2") if pair else (b"n+1", b"n+2")):
        raise ValueError(f"not a NIfTI file in {'two pieces' if pair else 'one piece'}")
    return header


def mended(header, path: Path):
    """Return a header as nibabel's own loader has it, which first mends codes and signs that it knows.

    Raises
    ------
    BadInput
        nibabel would not load it.
    """
    header = header.copy()
    try:
        header.check_fix(logger=_UNHEARD, error_level=None)
    except Exception as error:
        raise BadInput(
            f"{path}: its header makes no sense: {error}; copy it again, or write it again from its source"
        ) from None
    return header


def checked_offset(header, path: Path, pair: bool = False) -> int:
    """Return where the voxels begin: in one file behind the header and the four bytes that end it.

    An offset of 0 is refused there: nibabel then takes the header for voxels, and MRtrix does not.
    """
    offset, first = float(header["vox_offset"]), 0 if pair else len(header.binaryblock) + 4
    if not first <= offset < 1 << 40:
        raise BadInput(
            f"{path}: vox_offset in the header is {offset:g}, which makes no sense; write it again"
        )
    return int(offset)


def checked_scaling(header, path: Path, dtype: np.dtype) -> tuple[float, float]:
    try:
        slope, inter = header.get_slope_inter()
    except Exception as error:
        raise BadInput(f"{path}: scl_slope and scl_inter in the header make no sense: {error}") from None
    slope, inter = (1.0 if slope is None else float(slope)), (0.0 if inter is None else float(inter))
    if dtype.kind in "iu" and (slope, inter) != (1.0, 0.0):
        info = np.iinfo(dtype)
        largest = max(abs(info.min), info.max) * abs(slope) + abs(inter)
        if largest > float(np.finfo(np.float32).max):
            raise BadInput(
                f"{path}: scl_slope {slope:g} and scl_inter {inter:g} in the header make no sense: values "
                f"would reach {largest:g}, and float32 holds {np.finfo(np.float32).max:g}"
            )
    return slope, inter
