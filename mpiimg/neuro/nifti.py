"""NIfTI images: what their headers say and where their voxels lie; headers of results."""

from __future__ import annotations

import dataclasses
import logging
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box
from mpiimg.engine.inputs import Reader
from mpiimg.engine.names import file_name
from mpiimg.engine.pages import DamagedPage, PagedReader
from mpiimg.engine.raw import RawFile, sample_file
from mpiimg.engine.small_files import check_regular
from mpiimg.engine.staged_file import DATASET, check_record, dataset_offset, open_checked
from mpiimg.errors import BadInput
from mpiimg.formats.gz import inflated
from mpiimg.formats.nifti.header import (
    check_length,
    checked_offset,
    checked_scaling,
    first_bytes,
    parse_header,
)
from mpiimg.formats.nifti.whole import best_affine, check_result, corner_distance, made_whole
from mpiimg.formats.scaling import scaled

AXES = {3: "zyx", 4: "vzyx"}

#: Layout of staged files: with checksums, and without, as the first versions wrote them.
LAYOUT, UNCHECKED_LAYOUT = 2, 1

log = logging.getLogger("mpiimg")


@dataclass(frozen=True)
class Image:
    """An image on disk: what its header says, and where its voxels lie.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        "nii" (voxels in place), "nii.gz" (a stream), "staged" (our HDF5) or "staged-unchecked" (the same from
        an earlier version, without checksums).
    stem : str
        Its name without endings, for the names of results.
    shape : tuple of int
        (volumes, z, y, x) or (z, y, x): NIfTI's order in the file.
    dtype : str
        Of the voxels on disk, with byte order.
    offset : int
        Bytes before the first voxel, in the uncompressed file.
    slope, inter : float
        A value is voxel * slope + inter.
    header : bytes
        The NIfTI header, made whole: :func:`mpiimg.formats.nifti.whole.made_whole`.
    identity : tuple
        Size, time and header checksum, which enter the provenance; of a staged file those of its image.
    sample : (int, int, int)
        Of the file itself, as from :func:`mpiimg.engine.raw.sample_file`; enters the provenance as well.
    words : tuple of str
        What to warn of, such as what was taken in place of what makes no sense in the header.
    """

    path: Path
    kind: str
    stem: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    slope: float
    inter: float
    header: bytes
    identity: tuple
    sample: tuple[int, int, int] = (0, 0, 0)
    words: tuple[str, ...] = ()

    @property
    def axes(self) -> str:
        return AXES[len(self.shape)]

    @property
    def native(self) -> str:
        """The dtype in the machine's byte order."""
        return np.dtype(self.dtype).newbyteorder("=").name

    @cached_property
    def affine(self) -> np.ndarray:
        """Voxel indices (x, y, z) to scanner millimetres, (4, 4); once known, it is sent with the image."""
        return best_affine(parse_header(self.header))

    def array(self, name: str) -> Array:
        """Describe the voxels as an array of a run."""
        return Array(name, self.axes, self.shape, self.native)

    def open(self) -> Reader:
        """Open the voxels for reading in any order; not for a stream.

        Raises
        ------
        BadInput
            A staged file is not as it was written; on reading it too.
        """
        if self.kind == "staged":
            check_record(self.path)
            return _StagedVoxels(self.path, open_checked(self.path, self.array(DATASET)))
        return RawFile(self.path, self.offset, self.shape, self.dtype)

    def scaled(self, block: np.ndarray) -> np.ndarray:
        """Return the values that voxels stand for.

        Without scaling the block itself; with it float32, float64 where the
        voxels are float64, computed in float64 and rounded once.
        """
        return scaled(block, self.slope, self.inter)

    def made_of(self, dtype: str) -> Image:
        """Describe an image in the same space whose voxels a run makes: values as they are, of this type."""
        made = dataclasses.replace(self, dtype=np.dtype(dtype).str, slope=1.0, inter=0.0)
        made.__dict__["affine"] = self.affine
        return made


@dataclass(frozen=True)
class Voxels:
    """The voxels of an image file as an input of a run; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    image : Image
    name : str
        Of the array that they are in the run.
    """

    image: Image
    name: str

    @property
    def array(self) -> Array:
        """Name, axes, shape and dtype."""
        return self.image.array(self.name)

    @property
    def identity(self) -> tuple:
        """Size, time and header checksum of the measurement."""
        return self.image.identity

    @property
    def sample(self) -> tuple[int, int, int]:
        """Size, time and a checksum of samples of the file itself."""
        return self.image.sample

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.image.path,)

    @property
    def parallel(self) -> bool:
        """Whether every rank may read any part of it: a .nii.gz is a stream."""
        return self.image.kind != "nii.gz"

    def open(self) -> Reader:
        """Open the voxels for reading in any order."""
        return self.image.open()

    def blocks(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        """Yield blocks of the stream, which follow each other in the file.

        Raises
        ------
        BadInput
            The stream is truncated or corrupt.
        """
        return inflated(self.image.path, self.image.offset, self.image.dtype, boxes)


@dataclass(frozen=True)
class _StagedVoxels:
    """Voxels of a staged file, read page by page and verified."""

    path: Path
    pages: PagedReader

    def read(self, box: Box) -> np.ndarray:
        try:
            return self.pages.read(box)
        except DamagedPage:
            raise BadInput(
                f"{self.path}: damaged: voxels in it are not those that were staged; stage the image again "
                "with mpiimg-stage"
            ) from None

    def close(self) -> None:
        self.pages.close()


def open_image(path: Path, dimensions: int | tuple[int, ...], what: str = "image") -> Image:
    """Read and check the header of a NIfTI file or of a staged one.

    Parameters
    ----------
    path : Path
        .nii, .nii.gz or .h5.
    dimensions : int or (int, int)
        3 or 4, what the image must have; (3, 4) allows either.
    what : str
        Names the kind of image in messages.

    Raises
    ------
    BadInput
        It is missing, unreadable, no NIfTI, truncated, or has other dimensions; or its header says what
        neither its voxels nor those of a result could be read by.
    """
    path = Path(path)
    try:
        check_regular(path)
        status = path.stat()
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise BadInput(f"{path}: cannot read this {what}: {error.strerror}") from None
    if start == b"\x89HDF\r\n\x1a\n":
        return _open_staged(path, dimensions, what)
    compressed = start[:2] == b"\x1f\x8b"
    raw = first_bytes(path, 540, compressed)
    try:
        header = parse_header(raw)
    except Exception:
        raise BadInput(f"{path}: this {what} is not a NIfTI file (.nii, .nii.gz) nor a staged one") from None
    shape = _checked_shape(header, path, dimensions, what)
    dtype = _checked_dtype(header, path)
    slope, inter = checked_scaling(header, path, dtype)
    offset = checked_offset(header, path)
    check_length(path, status.st_size, offset + math.prod(shape) * dtype.itemsize, compressed)
    identity = (status.st_size, status.st_mtime_ns, zlib.crc32(header.binaryblock))
    kind, stem = "nii.gz" if compressed else "nii", output_stem(path)
    return _made_whole(header, path, kind, stem, shape, dtype.str, offset, slope, inter, identity)


def bare_name(path: Path) -> str:
    """Return the name of `path` without endings; gradient files beside it begin with it."""
    name = path.name
    for ending in (".gz", ".nii", ".h5"):
        name = name.removesuffix(ending)
    return name


def output_stem(path: Path) -> str:
    """Return the name that outputs of `path` begin with: without endings and without BIDS's _dwi.

    Letters that a name of a file should not have are replaced: engine/names.py.
    """
    name = bare_name(path)
    return file_name(name.removesuffix("_dwi") or name)


def output_header(image: Image, components: int | None, dtype: str, description: str) -> bytes:
    """Return the bytes before the voxels of a NIfTI file in the space of `image`.

    Affine, qform and sform with their codes, units and (with as many volumes)
    the time step are those of `image`; scaling is reset.

    Parameters
    ----------
    image : Image
    components : int or None
        Volumes of the output; None for a 3-D image.
    dtype : str
        Of the output, written little-endian.
    description : str
        At most 79 characters of it are kept.
    """
    header = parse_header(image.header).as_byteswapped("<")
    zooms = header.get_zooms()
    spatial = image.shape[-3:][::-1]
    header.set_data_dtype(np.dtype(dtype).newbyteorder("<"))
    header.set_data_shape(spatial if components is None else (*spatial, components))
    same = len(image.shape) == 4 and components == image.shape[0]
    step = float(zooms[3]) if same and zooms[3] > 0 else 1.0
    header.set_zooms(zooms[:3] if components is None else (*zooms[:3], step))
    # What is unknown counts as millimetres and seconds everywhere, and validators want it said.
    space, time = header.get_xyzt_units()
    header.set_xyzt_units(space if space != "unknown" else "mm", time if time != "unknown" else "sec")
    for field, value in {"scl_slope": 1, "scl_inter": 0, "cal_max": 0, "cal_min": 0}.items():
        header[field] = value
    header["descrip"] = description.encode()[:79]
    header["vox_offset"] = len(header.binaryblock) + 4
    check_result(header, image.path)
    return header.binaryblock + bytes(4)


def staged_attributes(image: Image) -> dict:
    """Return what a staged file keeps of the image it was made from."""
    return {
        "nifti_header": np.frombuffer(image.header, dtype=np.uint8),
        "stem": image.stem,
        "identity": np.array(image.identity, dtype=np.int64),
        "mpiimg_staged": LAYOUT,
    }


def _open_staged(path: Path, dimensions: int | tuple[int, ...], what: str) -> Image:
    import h5py

    has_record = check_record(path)
    offset = dataset_offset(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            attributes = file[DATASET].attrs
            raw = attributes["nifti_header"].tobytes()
            name, identity = str(attributes["stem"]), tuple(attributes["identity"].tolist())
            version = int(attributes["mpiimg_staged"])
            lengths, stored = file[DATASET].shape, file[DATASET].dtype
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
    kind = "staged" if version == LAYOUT else "staged-unchecked"
    try:
        header = parse_header(raw)
    except Exception:
        raise BadInput(f"{path}: the header in this staged file is damaged; stage the image again") from None
    shape = _checked_shape(header, path, dimensions, what)
    dtype = _checked_dtype(header, path).newbyteorder("=")
    slope, inter = checked_scaling(header, path, dtype)
    if math.prod(lengths) != math.prod(shape) or stored.newbyteorder("=") != dtype or len(identity) != 3:
        raise BadInput(f"{path}: this staged file is not what its header says; stage the image again")
    return _made_whole(header, path, kind, name, shape, dtype.str, offset, slope, inter, identity)


def _made_whole(header, path: Path, *fields) -> Image:
    """Return an image whose affine is known already: the ranks that it is sent to need no nibabel for it.

    Raises
    ------
    BadInput
        The header says no voxel sizes or no place that results could have.
    """
    *before, identity = fields
    whole, words = made_whole(header, path)
    words += _odd_units(whole, path)
    image = Image(path, *before, whole.binaryblock, identity, sample_file(path), words)
    _ = image.affine
    return image


def _odd_units(header, path: Path) -> tuple[str, ...]:
    """Say so where a header gives lengths in another unit than all programs take them in."""
    unit = header.get_xyzt_units()[0]
    if unit in ("mm", "unknown"):
        return ()
    return (
        f"{path}: lengths are in {unit} by its header (xyzt_units), and are taken in mm, as MRtrix and FSL "
        "do; where they are not, write it again with sizes in mm",
    )


def _checked_shape(header, path: Path, dimensions: int | tuple[int, ...], what: str) -> tuple[int, ...]:
    allowed = (dimensions,) if isinstance(dimensions, int) else dimensions
    shape = header.get_data_shape()
    while len(shape) > max(allowed) and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in allowed or min(shape, default=0) < 1:
        needed = " or ".join(f"{number}-D" for number in allowed)
        raise BadInput(f"{path}: this {what} has shape {'x'.join(map(str, shape))}; {needed} is needed")
    return tuple(int(n) for n in shape[::-1])


def _checked_dtype(header, path: Path) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        dtype = np.dtype("V")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BadInput(
            f"{path}: voxels of type {header['datatype']} ({dtype}) are not supported; "
            "convert the magnitude image to a real type of at most 64 bits"
        )
    return dtype


def same_space(one: Image, other: Image) -> str | None:
    """Return what differs between the voxel grids of two images, or None.

    Affines may differ by a thousandth of a voxel: tools store them as quaternions or rounded.
    """
    if one.shape[-3:] != other.shape[-3:]:
        shapes = ("x".join(map(str, image.shape[-3:][::-1])) for image in (one, other))
        return "shape {} against {}".format(*shapes)
    a, b = one.affine, other.affine
    voxel = np.sqrt((a[:3, :3] ** 2).sum(axis=0)).min()
    distance = corner_distance(a, b, one.shape[-3:][::-1])
    return f"affine, by up to {distance:.3g} mm" if distance > 1e-3 * voxel else None
