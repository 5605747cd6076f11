"""NIfTI images: what their headers say and where their voxels lie; headers of results."""

from __future__ import annotations

import dataclasses
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
from mpiimg.engine.raw import RawFile, sample_file
from mpiimg.engine.small_files import check_regular
from mpiimg.engine.staged_file import DATASET, check_record, open_checked
from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.foreign import foreign, foreign_folder, refuse_stand_in
from mpiimg.formats.gz import inflated, inflated_first
from mpiimg.formats.nifti.header import (
    check_length,
    checked_offset,
    checked_scaling,
    first_bytes,
    parse_header,
)
from mpiimg.formats.nifti.whole import best_affine, check_result, corner_distance, made_whole
from mpiimg.formats.scaling import scaled
from mpiimg.neuro.checks import checked_dtype, checked_shape, odd_units, turned_grid
from mpiimg.neuro.other_formats import StoredVoxels, read_other
from mpiimg.neuro.staged import StagedVoxels, read_staged

AXES = {3: "zyx", 4: "vzyx"}


@dataclass(frozen=True)
class Image:
    """An image on disk: what its header says, and where its voxels lie.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        "nii" (voxels in place), "nii.gz" (a stream), "staged" (our HDF5), "staged-unchecked" (the same from
        an earlier version, without checksums), or "other": `source` reads it.
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
    source : StoredVoxels, optional
        The voxels of a file of another format.
    dw_scheme : tuple of (float, float, float, float)
        The gradients in its header, a row for each volume: x, y and z in scanner axes, and b in s/mm^2.
        MRtrix's files have them.
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
    source: StoredVoxels | None = None
    dw_scheme: tuple[tuple[float, ...], ...] = ()

    @property
    def axes(self) -> str:
        return AXES[len(self.shape)]

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that it lies in."""
        return (self.path,) if self.source is None else tuple(dict.fromkeys((self.path, *self.source.files)))

    @property
    def parallel(self) -> bool:
        """Whether every rank may read any part of it; else it is a stream, as a .nii.gz is."""
        return self.kind != "nii.gz" if self.source is None else self.source.parallel

    @property
    def stored_axes(self) -> str:
        """The axes in the order in which they lie in the file, the slowest first."""
        return self.axes if self.source is None else self.source.in_file_order(self.axes)

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
        if self.source is not None:
            return self.source.open(self.axes)
        if self.kind == "staged":
            check_record(self.path)
            return StagedVoxels(self.path, open_checked(self.path, self.array(DATASET)))
        return RawFile(self.path, self.offset, self.shape, self.dtype)

    def first(self, count: int) -> np.ndarray:
        """Return the first voxels of a stream, (count,), in the machine's byte order; others are not read."""
        if self.source is not None:
            return self.source.first(count)
        return inflated_first(self.path, self.offset, self.dtype, count)

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
        Of the array that the image is in the run.
    """

    image: Image
    name: str

    @property
    def laid_out(self) -> Array:
        """The image as an array of the run, as all steps want it."""
        return self.image.array(self.name)

    @property
    def array(self) -> Array:
        """What is read: the same, or where it lies in another order in the file, an array in that order."""
        axes, image = self.image.stored_axes, self.image
        if axes == image.axes:
            return self.laid_out
        lengths = dict(zip(image.axes, image.shape, strict=True))
        return Array(f"{self.name}-in-file", axes, tuple(lengths[axis] for axis in axes), image.native)

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
        """The file, or the files."""
        return self.image.files

    @property
    def parallel(self) -> bool:
        """Whether every rank may read any part of it: a .nii.gz is a stream."""
        return self.image.parallel

    def open(self) -> Reader:
        """Open the voxels for reading in any order."""
        source = self.image.source
        return self.image.open() if source is None else source.open(self.image.stored_axes)

    def blocks(self, boxes: Iterator[Box]) -> Iterator[np.ndarray]:
        """Yield blocks of the stream, which follow each other in the file.

        Raises
        ------
        BadInput
            The stream is truncated or corrupt.
        """
        if self.image.source is not None:
            return self.image.source.blocks(boxes, self.image.axes)
        return inflated(self.image.path, self.image.offset, self.image.dtype, boxes)


def open_image(path: Path, dimensions: int | tuple[int, ...], what: str = "image") -> Image:
    """Read and check the header of a NIfTI file, of a staged one or of an image of another format.

    Parameters
    ----------
    path : Path
        .nii, .nii.gz, .h5, or what a format of formats/registry.py reads that has an affine, such as .mif.
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
        if path.is_dir():
            raise BadInput(f"{path}: {foreign_folder(path)}")
        check_regular(path)
        refuse_stand_in(path)
        status = path.stat()
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise BadInput(f"{path}: cannot read this {what}: {error.strerror}") from None
    if start == b"\x89HDF\r\n\x1a\n" and path.suffix != ".mnc":
        return _open_staged(path, dimensions, what)
    compressed = start[:2] == b"\x1f\x8b"
    raw = first_bytes(path, 540, compressed)
    try:
        header = parse_header(raw)
    except Exception:
        return _open_other(path, dimensions, what)
    shape = checked_shape(header, path, dimensions, what)
    dtype = checked_dtype(header, path)
    slope, inter = checked_scaling(header, path, dtype)
    offset = checked_offset(header, path)
    check_length(path, status.st_size, offset + math.prod(shape) * dtype.itemsize, compressed)
    identity = (status.st_size, status.st_mtime_ns, zlib.crc32(header.binaryblock))
    kind, stem = "nii.gz" if compressed else "nii", output_stem(path)
    lies = (kind, stem, shape, dtype.str, offset, slope, inter)
    return _made_whole(header, path, *lies, identity, sample_file(path))


def _open_other(path: Path, dimensions: int | tuple[int, ...], what: str) -> Image:
    """Read and check the header of an image of another format than NIfTI."""
    if said := foreign(path):
        raise BadInput(f"{path}: {said}")
    if path.name.lower().endswith((".nii", ".nii.gz", ".h5")) or not registry.is_read(path):
        raise BadInput(
            f"{path}: this {what} is not a NIfTI file (.nii, .nii.gz) nor a staged one, nor of another "
            "format that is read (.mif, .mgz, .hdr and .img)"
        )
    source, raw, scheme = read_other(path, what)
    header = parse_header(raw)
    shape = checked_shape(header, path, dimensions, what)
    axes = AXES[len(shape)]
    if not source.parallel and source.in_file_order(axes) != axes:
        raise BadInput(
            f"{path}: the volumes of this compressed {what} do not lie one after the other in it, and it "
            f"can only be read in the order of the file; convert it: mrconvert {path.name} "
            f"{bare_name(path)}.nii"
        )
    samples = [sample_file(file) for file in source.files]
    size, time = sum(one[0] for one in samples), max(one[1] for one in samples)
    sample = (size, time, zlib.crc32(repr([one[2] for one in samples]).encode()))
    identity = (size, time, zlib.crc32(repr((raw, source.source.identity)).encode()))
    lies = ("other", output_stem(path), shape, source.dtype, 0, 1.0, 0.0)
    return _made_whole(header, path, *lies, identity, sample, source=source, dw_scheme=scheme)


def bare_name(path: Path) -> str:
    """Return the name of `path` without endings; gradient files beside it begin with it."""
    name = path.name
    for ending in (".gz", ".nii", ".h5", ".mif", ".mih", ".mgz", ".mgh", ".hdr", ".img"):
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


def _open_staged(path: Path, dimensions: int | tuple[int, ...], what: str) -> Image:
    staged = read_staged(path)
    kind = "staged" if staged.has_sums else "staged-unchecked"
    try:
        header = parse_header(staged.header)
    except Exception:
        raise BadInput(f"{path}: the header in this staged file is damaged; stage the image again") from None
    shape = checked_shape(header, path, dimensions, what)
    dtype = checked_dtype(header, path).newbyteorder("=")
    slope, inter = checked_scaling(header, path, dtype)
    fits = math.prod(staged.shape) == math.prod(shape) and staged.dtype.newbyteorder("=") == dtype
    if not fits or len(staged.identity) != 3:
        raise BadInput(f"{path}: this staged file is not what its header says; stage the image again")
    lies = (kind, staged.stem, shape, dtype.str, staged.offset, slope, inter)
    return _made_whole(header, path, *lies, staged.identity, sample_file(path), dw_scheme=staged.dw_scheme)


def _made_whole(header, path: Path, *fields, **others) -> Image:
    """Return an image whose affine is known already: the ranks that it is sent to need no nibabel for it.

    Raises
    ------
    BadInput
        The header says no voxel sizes or no place that results could have.
    """
    *before, identity, sample = fields
    whole, words = made_whole(header, path)
    words += odd_units(whole, path)
    image = Image(path, *before, whole.binaryblock, identity, sample, words, **others)
    _ = image.affine
    return image


def same_space(one: Image, other: Image) -> str | None:
    """Return what differs between the voxel grids of two images, or None.

    Affines may differ by a thousandth of a voxel: tools store them as quaternions or rounded.
    """
    (a, shape), (b, other_shape) = ((image.affine, image.shape[-3:][::-1]) for image in (one, other))
    voxel = np.sqrt((a[:3, :3] ** 2).sum(axis=0)).min()
    distance = corner_distance(a, b, shape)
    if shape == other_shape and distance <= 1e-3 * voxel:
        return None
    if how := turned_grid(a, b, shape, other_shape):
        return f"{how}: mrconvert {other.path.name} turned.nii.gz -strides {one.path.name}"
    if shape != other_shape:
        return "shape {} against {}".format(*("x".join(map(str, one)) for one in (shape, other_shape)))
    return f"affine, by up to {distance:.3g} mm"
