"""What a file is that cannot be read as what its name says, and the command that converts it.

One table of signatures, for the registry of formats and the tools alike. A file that stands for another, such
as a pointer of git-annex, is one of engine/stand_ins.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpiimg.engine.stand_ins import START, stand_in
from mpiimg.errors import BadInput
from mpiimg.formats.gz import inflated_start


@dataclass(frozen=True)
class Signature:
    """How files of some kind are known, and what is said of one.

    Parameters
    ----------
    pattern : bytes
        A regular expression that their beginning matches.
    said : str
        With {name} for the name of the file, and {bare} for the same without its last ending.
    endings : tuple of str
        Of files that are of this kind by their name: of them it is not said.
    """

    pattern: bytes
    said: str
    endings: tuple[str, ...] = ()


_DICOM = "convert the whole series: dcm2niix -z y -o OUT FOLDER"
_ITK = "python -c \"import SimpleITK as s; s.WriteImage(s.ReadImage('{name}'), '{bare}.nii.gz')\""
_ANALYZE = "convert it to NIfTI, and check left and right: mrconvert or fslchfiletype NIFTI_GZ"

SIGNATURES = (
    Signature(rb".{128}DICM", f"is a DICOM file: {_DICOM}"),
    Signature(
        rb"mrtrix image",
        "is an image of MRtrix: rename it, so that its name ends with .mif",
        (".mif", ".mif.gz", ".mih"),
    ),
    Signature(rb"mrtrix tracks", "holds streamlines of MRtrix, and no image"),
    Signature(
        rb"\x00\x00\x00\x01(\x00\x00..){3}",
        "is an image of FreeSurfer: rename it, so that its name ends with .mgz, or .mgh if it is not gzipped",
        (".mgh", ".mgz"),
    ),
    Signature(
        rb"NRRD000",
        "is an NRRD image: convert it, with its gradients by DWIConvert --conversionMode NrrdToFSL (3D "
        f"Slicer), without by {_ITK}",
    ),
    Signature(rb"(ObjectType|NDims|Comment)\s*=", f"is a MetaImage: convert it: {_ITK}"),
    Signature(
        rb"#\s*=== DATA DESCRIPTION FILE",
        "is a PAR file of Philips: convert it: dcm2niix {name} (or parrec2nii {name})",
    ),
    Signature(
        rb"\s*type\s*=\s*(string|integer|float)-attribute",
        "is an image of AFNI: convert it: 3dAFNItoNIFTI {bare}",
    ),
    Signature(rb"CDF[\x01\x02]", "is a MINC image (or other netCDF): convert it: mnc2nii {name} {bare}.nii"),
    Signature(rb"PK\x03\x04", "is a ZIP archive: unpack it: unzip {name}"),
    Signature(rb"7z\xbc\xaf'\x1c", "is a 7-Zip archive: unpack it: 7z x {name}"),
    Signature(rb".{257}ustar", "is a tar archive: unpack it: tar -xf {name}"),
    Signature(rb"\xfd7zXZ\0", "is compressed by xz: unpack it: xz -dc {name} > {bare}", ()),
    Signature(rb"BZh[1-9]1AY&SY", "is compressed by bzip2: unpack it: bzip2 -dc {name} > {bare}"),
    Signature(rb"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it: zstd -dc {name} > {bare}"),
    Signature(rb"\x04\x22\x4d\x18", "is compressed by lz4: unpack it: lz4 -dc {name} > {bare}"),
    Signature(rb"\x1f\x9d", "is compressed by compress (.Z): unpack it: gzip -dc {name} > {bare}"),
    Signature(
        rb"\x00\x05\x16\x07",
        "is what macOS keeps beside a file of nearly that name, and no image: give the one without ._",
    ),
    Signature(
        rb"SIMPLE  =",
        "is a FITS file: rename it, so that its name ends with .fits",
        (".fits", ".fit", ".fts", ".fz", ".fits.gz", ".fit.gz"),
    ),
    Signature(rb"\x93NUMPY", "is an array of NumPy: rename it, so that its name ends with .npy", (".npy",)),
    Signature(
        rb"MATLAB 5\.0 MAT", "is a file of MATLAB: write the array in it as an image, e.g. by niftiwrite"
    ),
    Signature(
        rb"\x89HDF\r\n",
        "is an HDF5 file: rename it, so that its name ends with .h5",
        (".h5", ".hdf5", ".he5", ".nxs", ".mnc"),
    ),
    Signature(rb"\x89PNG|\xff\xd8\xff|GIF8", "is a picture: give the image that it was made of"),
    Signature(rb"%PDF", "is a PDF document, and no image"),
    Signature(
        rb"(II\*\0|MM\0\*)",
        "is a TIFF: rename it, so that its name ends with .tif",
        (".tif", ".tiff", ".btf"),
    ),
)

EMPTY = "is empty (0 bytes): copy or download it again"

#: In place of a sentence, of a gzip stream in another one.
_GZIP = "gzip"

#: What is known by names alone.
NAMES = (
    (
        re.compile(r"\.BRIK(\.gz|\.bz2|\.Z)?$", re.IGNORECASE),
        "is an image of AFNI: convert it: 3dAFNItoNIFTI {name}",
    ),
    (
        re.compile(r"\.REC$", re.IGNORECASE),
        "holds the voxels of a PAR file of Philips: convert it: dcm2niix {bare}.PAR",
    ),
    (re.compile(r"\.(dcm|ima)$", re.IGNORECASE), f"is a DICOM file by its name: {_DICOM}"),
    (
        re.compile(r"\.mnc(\.gz)?$", re.IGNORECASE),
        "is a MINC image by its name: convert it: mnc2nii {name} {bare}.nii",
    ),
    (re.compile(r"^2dseq$"), "is an image of Bruker's ParaVision: convert its study with brkraw or Bru2Nii"),
    (re.compile(r"\.nhdr$", re.IGNORECASE), f"is the header of an NRRD image: convert it: {_ITK}"),
)


def refuse_stand_in(path: Path) -> None:
    """Refuse a file that is empty or stands for another, whatever its name.

    Raises
    ------
    BadInput
        It is one.
    OSError
        It cannot be read.
    """
    start = _start(path)
    said = stand_in(path, start) if start else EMPTY
    if said:
        raise BadInput(f"{path}: {said}")


def foreign(path: Path, texts: bool = True) -> str:
    """Say what a file is that could not be read as what its name says, and what to do; "" where unknown.

    Parameters
    ----------
    path : Path
        Of a file that is there.
    texts : bool
        Say of a text that it is one, and of what is empty when unpacked.
    """
    name = path.name
    text = next((said for known, said in NAMES if known.search(name)), "")
    for start in _starts(path):
        if not start:
            return EMPTY if texts else ""
        for one in SIGNATURES:
            if re.match(one.pattern, start, re.DOTALL):
                own = name.lower().endswith(one.endings) if one.endings else False
                text = text if own else one.said
                break
        else:
            text = _of_nifti(start, name) or text or (_of_text(start) if texts else "")
    if text == _GZIP:
        return f"is gzip inside gzip: unpack it once: gunzip -c {name} > once.{name}"
    return text.replace("{name}", name).replace("{bare}", _bare(name))


def foreign_folder(path: Path) -> str:
    """Say what a folder is that stands in place of a file, and what to give."""
    try:
        entries = sorted(os.listdir(path))[:256]
    except OSError as error:
        return f"is a folder, and cannot be read: {error.strerror}"
    if "dataset_description.json" in entries:
        return "is the folder of a BIDS dataset: give an image in it, or the dataset with OUT and participant"
    if said := dicom_folder(path):
        return said
    images = [one for one in entries if one.endswith((".nii", ".nii.gz", ".mif", ".mif.gz", ".mgz"))]
    return f"is a folder: give the image in it{', such as ' + images[0] if images else ''}"


def dicom_folder(path: Path) -> str:
    """Say of a folder of DICOM files that it is one, and how it is converted; "" of any other."""
    try:
        is_one = any(map(_is_dicom, _below(path)))
    except OSError:
        return ""
    return f"is a folder of DICOM files: {_DICOM.replace('FOLDER', str(path))}" if is_one else ""


def _starts(path: Path) -> Iterator[bytes]:
    """Yield what a file begins with; then, of a gzip stream, what it inflates to."""
    start = _start(path)
    if not start.startswith(b"\x1f\x8b"):
        yield start
        return
    try:
        yield inflated_start(path, START)
    except BadInput:
        return


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(START)


def _of_nifti(start: bytes, name: str) -> str:
    """Say what is wrong with what begins as a header of NIfTI or Analyze."""
    if start.startswith(b"\x1f\x8b"):
        return _GZIP
    if not {int.from_bytes(start[:4], order) for order in ("little", "big")} & {348, 540} or len(start) < 348:
        return ""
    is_pair = name.lower().endswith((".hdr", ".img"))
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        return (
            ""
            if is_pair
            else "is the header of a NIfTI in two files: name it .hdr, with the voxels beside it in .img"
        )
    if start[344:347] == b"n+1" or start[4:7] == b"n+2":
        return "is a NIfTI in one file: name it .nii" if is_pair else ""
    return f"has a header of Analyze 7.5, which does not say left from right: {_ANALYZE}"


def _of_text(start: bytes) -> str:
    """Say of a text that it is one, with its first words."""
    try:
        text = start.decode("ascii")
    except UnicodeDecodeError:
        return ""
    if not text.strip() or not all(one.isprintable() or one.isspace() for one in text):
        return ""
    words = " ".join(text.split())[:30]
    return f"is a text, and no image: it begins with {words!r}"


def _bare(name: str) -> str:
    """Return a name without its last ending, and without that of an image before it."""
    return name.rpartition(".")[0] or name


def _below(path: Path) -> Iterator[Path]:
    """Yield some files of a folder, and of the first folder in it."""
    entries = sorted(path.iterdir())[:256]
    yield from [one for one in entries if one.is_file()][:32]
    inner = next((one for one in entries if one.is_dir()), None)
    if inner is not None:
        yield from [one for one in sorted(inner.iterdir())[:32] if one.is_file()]


def _is_dicom(path: Path) -> bool:
    if path.name == "DICOMDIR":
        return True
    try:
        return _start(path)[128:132] == b"DICM"
    except OSError:
        return False
