"""Files that are not what their names say are named for what they are, with what converts them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import h5py
import nibabel
import numpy as np
import pytest

from mpiimg.engine.small_files import read_small, read_text
from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.neuro.nifti import open_image

AFFINE = np.diag([-2.0, 2, 3, 1])


def nifti(values=None, kind=nibabel.Nifti1Image) -> bytes:
    return kind(np.zeros((4, 5, 6), np.int16) if values is None else values, AFFINE).to_bytes()


def dicom() -> bytes:
    return bytes(128) + b"DICM" + bytes(400)


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("x.nii"), io.BytesIO())
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.nii", nifti())
    return buffer.getvalue()


def pair_header() -> bytes:
    return nibabel.Nifti1Pair(np.zeros((4, 5, 6), np.int16), AFFINE).header.binaryblock


def analyze_header() -> bytes:
    return nibabel.AnalyzeImage(np.zeros((4, 5, 6), np.int16), AFFINE).header.binaryblock


def mgh() -> bytes:
    return nibabel.MGHImage(np.zeros((4, 5, 6), np.float32), AFFINE.astype(np.float32)).to_bytes()


ANNEX = b"/annex/objects/MD5E-s123--0f0e.nii.gz\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
LOGIN = b"\n<!-- 1 -->\n<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>"
DENIED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'

#: Name, content, and what is said of it.
FILES = [
    ("dwi.nii.gz", ANNEX, "git-annex whose content is not here: get it with: datalad get "),
    (
        "dwi.nii",
        LFS,
        "is a pointer of Git LFS, and not the file itself: get it with: git lfs pull --include dwi.nii",
    ),
    ("dwi.nii.gz", LOGIN, "is a page of a web site (HTML)"),
    ("dwi.nii.gz", DENIED, "is an answer of a web server (XML, an error: AccessDenied): download it again"),
    ("dwi.nii.gz", b"", "is empty (0 bytes): copy or download it again"),
    (
        "dwi.nii.gz",
        b'{"message": "Not Found"}',
        'is a text, and no image: it begins with \'{"message": "Not Found"}\'',
    ),
    ("dwi.nii.gz", gzip.compress(gzip.compress(nifti())), "gunzip -c dwi.nii.gz > once.dwi.nii.gz"),
    ("dwi.nii.gz", zipped(), "is a ZIP archive: unpack it: unzip dwi.nii.gz"),
    ("dwi.nii.gz", gzip.compress(tarred()), "is a tar archive: unpack it: tar -xf dwi.nii.gz"),
    ("dwi.nii.xz", lzma.compress(nifti()), "is compressed by xz: unpack it: xz -dc dwi.nii.xz > dwi.nii"),
    (
        "dwi.nii.bz2",
        bz2.compress(nifti()),
        "is compressed by bzip2: unpack it: bzip2 -dc dwi.nii.bz2 > dwi.nii",
    ),
    (
        "dwi.nii.zst",
        b"\x28\xb5\x2f\xfd" + bytes(99),
        "is compressed by zstd: unpack it: zstd -dc dwi.nii.zst > dwi.nii",
    ),
    ("dwi.nii", dicom(), "is a DICOM file: convert the whole series: dcm2niix -z y -o OUT FOLDER"),
    ("0001.dcm", dicom(), "is a DICOM file: convert the whole series: dcm2niix"),
    ("0001.ima", bytes(500), "is a DICOM file by its name: convert the whole series: dcm2niix"),
    ("dwi.nii.gz", mgh(), "is an image of FreeSurfer: rename it, so that its name ends with .mgz"),
    (
        "dwi.nii",
        b"mrtrix image\ndim: 1,2,3\n",
        "is an image of MRtrix: rename it, so that its name ends with .mif",
    ),
    ("dwi.nii", pair_header(), "is the header of a NIfTI in two files: name it .hdr"),
    ("dwi.hdr", analyze_header(), "has a header of Analyze 7.5, which does not say left from right"),
    (
        "dwi.nrrd",
        b"NRRD0005\ntype: short\n",
        "is an NRRD image: convert it, with its gradients by DWIConvert",
    ),
    ("dwi.nhdr", b"\x00\x01", "is the header of an NRRD image: convert it: python -c"),
    ("dwi.mhd", b"ObjectType = Image\nNDims = 3\n", "is a MetaImage: convert it: python -c"),
    ("dwi.PAR", b"# === DATA DESCRIPTION FILE ======\n", "PAR file of Philips: convert it: dcm2niix dwi.PAR"),
    ("dwi.REC", bytes(500), "holds the voxels of a PAR file of Philips: convert it: dcm2niix dwi.PAR"),
    (
        "dwi+orig.HEAD",
        b"\ntype  = string-attribute\nname = X\n",
        "of AFNI: convert it: 3dAFNItoNIFTI dwi+orig",
    ),
    ("dwi+orig.BRIK", bytes(500), "is an image of AFNI: convert it: 3dAFNItoNIFTI dwi+orig.BRIK"),
    (
        "dwi.mnc",
        b"CDF\x01" + bytes(500),
        "is a MINC image (or other netCDF): convert it: mnc2nii dwi.mnc dwi.nii",
    ),
    ("2dseq", bytes(500), "is an image of Bruker's ParaVision: convert its study with brkraw"),
    ("._dwi.nii", b"\x00\x05\x16\x07" + bytes(500), "what macOS keeps beside a file of nearly that name"),
    ("dwi.nii.gz", b"%PDF-1.5 \xff", "is a PDF document, and no image"),
]


def refusals(path) -> set[str]:
    """Return what the primitives and the tools of neuro say of a file."""
    said = set()
    for read in (lambda: registry.read(path, "x"), lambda: open_image(path, (3, 4))):
        with pytest.raises(BadInput) as refused:
            read()
        said.add(str(refused.value))
    return said


@pytest.mark.parametrize(
    ("name", "content", "words"), FILES, ids=[f"{one[0]}: {one[2][:30]}" for one in FILES]
)
def test_a_file_is_named_for_what_it_is_by_all_readers_alike(name, content, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    for text in refusals(path):
        assert text.startswith(f"{path}: ") and "\n" not in text
        # A text may be one of a format of somebody else's: it is said of images alone.
        assert words in text or (words.startswith("is a text") and "is no NIfTI that can be read" in text)


def test_a_minc_image_in_hdf5_is_named_by_its_name(tmp_path):
    with h5py.File(tmp_path / "dwi.mnc", "w") as file:
        file.create_group("minc-2.0")
    for text in refusals(tmp_path / "dwi.mnc"):
        assert "is a MINC image by its name: convert it: mnc2nii dwi.mnc dwi.nii" in text


def test_a_link_that_leads_nowhere_is_said_and_that_of_annex_with_its_command(tmp_path):
    annex, other = tmp_path / "dwi.nii.gz", tmp_path / "b.nii.gz"
    annex.symlink_to("../.git/annex/objects/Xk/9q/MD5E-s12--ab.nii.gz/MD5E-s12--ab.nii.gz")
    other.symlink_to("nowhere.nii.gz")
    for text in (*refusals(annex), _refused(read_small, annex, "b-values")):
        assert text.endswith(
            f"content is not here: get it with: datalad get {annex} (or git annex get {annex})"
        )
    for text in (*refusals(other), _refused(read_small, other, "b-values")):
        assert text == f"{other}: is a link to nowhere.nii.gz, which is not there"


def _refused(function, *arguments) -> str:
    with pytest.raises(BadInput) as refused:
        function(*arguments)
    return str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"), [(ANNEX, "datalad get"), (LFS, "git lfs pull --include dwi.bval"), (LOGIN, "HTML")]
)
def test_tables_and_descriptions_may_be_pointers_too(content, words, tmp_path):
    path = tmp_path / "dwi.bval"
    path.write_bytes(content)
    assert words in _refused(read_text, path, "b-values")


def test_a_folder_in_place_of_a_file_says_what_is_in_it(tmp_path):
    folder = tmp_path / "series"
    (folder / "1").mkdir(parents=True)
    for text in refusals(folder):
        assert text == f"{folder}: is a folder: give the image in it"
    (folder / "1" / "IM0001").write_bytes(dicom())
    for text in refusals(folder):
        assert text.startswith(f"{folder}: is a folder of DICOM files: convert the whole series: dcm2niix")
        assert text.endswith(f" -o OUT {folder}")
    (folder / "dataset_description.json").write_text("{}")
    for text in refusals(folder):
        assert "is the folder of a BIDS dataset" in text
    nii = tmp_path / "dwi.nii"
    nii.mkdir()
    (nii / "a.nii.gz").write_bytes(b"x")
    for text in refusals(nii):
        assert text == f"{nii}: is a folder: give the image in it, such as a.nii.gz"


def test_what_a_reader_says_of_its_own_files_is_left_as_it_is(tmp_path):
    """A truncated image of its format is no foreign one."""
    path = tmp_path / "a.nii"
    path.write_bytes(nifti()[:-1])
    for text in refusals(path):
        assert "truncated" in text
    (tmp_path / "a.fits").write_bytes(b"SIMPLE  =                    T" + bytes(99))
    assert "FITS file: rename" not in _refused(registry.read, tmp_path / "a.fits", "x")


# --- Of neuro ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dimensions", "words"),
    [
        (np.zeros((4, 5, 6, 2, 3), np.int16), 4, "mrconvert dwi.nii -coord 4 0 part.nii.gz"),
        (np.zeros((4, 5, 6, 2), np.int16), 3, "mrconvert dwi.nii -coord 3 0 part.nii.gz"),
        (np.zeros((4, 5, 6), np.int16), 4, "4-D is needed; join volumes with mrcat or fslmerge -t"),
        (np.zeros((4, 5, 6, 2), np.complex64), 4, "mrcalc dwi.nii -abs magnitude.nii.gz"),
        (np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")]), 3, "are colours, and no measurement"),
    ],
)
def test_images_that_the_steps_cannot_use_are_refused_with_what_makes_one_of_them(
    values, dimensions, words, tmp_path
):
    path = tmp_path / "dwi.nii"
    path.write_bytes(nifti(values))
    assert words in _refused(open_image, path, dimensions)


def test_a_cifti_is_named(tmp_path):
    image = nibabel.Nifti2Image(np.zeros((1, 1, 1, 1, 3, 4), np.float32), AFFINE)
    image.header["intent_code"] = 3006
    path = tmp_path / "x.dscalar.nii"
    path.write_bytes(image.to_bytes())
    assert "it is a CIFTI, of surfaces: take the volume out of it with wb_command" in _refused(
        open_image, path, 3
    )
