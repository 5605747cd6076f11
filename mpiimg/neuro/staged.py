"""Staged images: files in HDF5 that any rank reads in any order, with checksums of their pages."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.engine.boxes import Box
from mpiimg.engine.pages import DamagedPage, PagedReader
from mpiimg.engine.staged_file import DATASET, check_record, dataset_offset
from mpiimg.errors import BadInput

#: Layout of staged files: with checksums, and without, as the first versions wrote them.
LAYOUT, UNCHECKED_LAYOUT = 2, 1

log = logging.getLogger("mpiimg")


@dataclass(frozen=True)
class StagedFile:
    """What a staged file says of itself.

    Parameters
    ----------
    offset : int
        Bytes before the first voxel.
    header : bytes
        Of the NIfTI that the image was, or would be.
    stem : str
    identity : tuple of int
        Those of the image that was staged.
    dw_scheme : tuple of rows
        Gradients that were in its header.
    shape : tuple of int
    dtype : dtype
        Of the dataset.
    has_sums : bool
        Its voxels are verified when they are read.
    """

    offset: int
    header: bytes
    stem: str
    identity: tuple[int, ...]
    dw_scheme: tuple[tuple[float, ...], ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    has_sums: bool


@dataclass(frozen=True)
class StagedVoxels:
    """Voxels of a staged file, read page by page and verified."""

    path: Path
    pages: PagedReader

    def read(self, box: Box) -> np.ndarray:
        """Return the voxels of a box."""
        try:
            return self.pages.read(box)
        except DamagedPage:
            raise BadInput(
                f"{self.path}: damaged: voxels in it are not those that were staged; stage the image again "
                "with mpiimg-stage"
            ) from None

    def close(self) -> None:
        """Release the file."""
        self.pages.close()


def staged_attributes(header: bytes, stem: str, identity: Sequence[int], dw_scheme: Sequence = ()) -> dict:
    """Return what a staged file keeps of the image that it was made from: see :class:`StagedFile`."""
    kept = {
        "nifti_header": np.frombuffer(header, dtype=np.uint8),
        "stem": stem,
        "identity": np.array(identity, dtype=np.int64),
        "mpiimg_staged": LAYOUT,
    }
    return {**kept, "dw_scheme": json.dumps(dw_scheme)} if dw_scheme else kept


def read_staged(path: Path) -> StagedFile:
    """Look at a staged file, and at its checksums but for those of voxels.

    Raises
    ------
    BadInput
        It is another HDF5 file, damaged, or of another version.
    """
    import h5py

    has_record = check_record(path)
    offset = dataset_offset(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            said = file[DATASET].attrs
            version = int(said["mpiimg_staged"])
            scheme = json.loads(said["dw_scheme"]) if "dw_scheme" in said else ()
            staged = StagedFile(
                offset,
                said["nifti_header"].tobytes(),
                str(said["stem"]),
                tuple(said["identity"].tolist()),
                tuple(map(tuple, scheme)),
                file[DATASET].shape,
                file[DATASET].dtype,
                version == LAYOUT,
            )
    except KeyError:
        raise BadInput(
            f"{path}: this HDF5 file was not made by mpiimg-stage; give a NIfTI or a staged file"
        ) from None
    except Exception as error:  # whatever HDF5 makes of damaged metadata
        raise BadInput(f"{path}: damaged ({error}); stage the image again with mpiimg-stage") from None
    if version == LAYOUT:
        if not has_record:
            raise BadInput(f"{path}: damaged: no record at its end; stage the image again with mpiimg-stage")
    elif version == UNCHECKED_LAYOUT:
        log.warning(
            "warning: %s: staged by an earlier version, without checksums, so damaged voxels would not be "
            "noticed; stage the image again with mpiimg-stage",
            path,
        )
    else:
        raise BadInput(f"{path}: staged by another version (layout {version}); stage the image again")
    return staged
