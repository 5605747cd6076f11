"""FreeSurfer's images, .mgh and .mgz, read in: nibabel reads the header, and voxels lie behind it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.errors import BadInput
from mpiimg.formats.gz import inflated_start
from mpiimg.formats.interface import FILE_AXES, Format
from mpiimg.formats.plain import PlainInput
from mpiimg.formats.space import Affine

#: Bytes of a header, before the voxels.
_HEADER = 284


def read(path: Path, name: str) -> PlainInput:
    """Look at the header of an image of FreeSurfer.

    How it was taken stands behind the voxels, so that a .mgz would have to be inflated for it: it is left
    out.

    Parameters
    ----------
    path : Path
        .mgh or .mgz; which of them it is, its first bytes say.
    name : str
        Of the array.

    Raises
    ------
    BadInput
        It is no such image, or truncated.
    """
    from nibabel.freesurfer.mghformat import MGHHeader

    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(_HEADER)
    gzipped = start[:2] == b"\x1f\x8b"
    if gzipped:
        start = inflated_start(path, _HEADER)
    header = MGHHeader(start)
    if len(start) < _HEADER or int(header["version"]) != 1:
        raise ValueError("it does not begin with a header of FreeSurfer's")
    stored = header.get_data_dtype().newbyteorder(">")
    shape = tuple(int(n) for n in header["dims"])
    # A header counts four axes in any case.
    shape = shape if shape[3] > 1 else shape[:3]
    if min(shape) < 1:
        raise ValueError(f"its header gives the sizes {shape}")
    affine = header.get_affine()
    if not np.isfinite(affine).all():
        raise ValueError("its header gives no place in space (delta, Mdc, Pxyz_c)")
    end, size = _HEADER + math.prod(shape) * stored.itemsize, os.stat(path).st_size
    if not gzipped and size < end:
        raise BadInput(f"{path}: truncated: {size} bytes where the header promises {end}; copy it again")
    axes = FILE_AXES[: len(shape)]
    return PlainInput(
        path,
        Array(name, axes[::-1], shape[::-1], stored.newbyteorder("=").name),
        _HEADER,
        stored.str,
        start,
        axes,
        gzipped=gzipped,
        space=Affine(axes[:3], affine, ("mm", "unknown"), (1, 1)),
    )


MGH = Format("FreeSurfer's MGH", read)

MGZ = Format("FreeSurfer's MGZ", read, parallel=False)
