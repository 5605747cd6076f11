"""Spoilt NIfTI headers: read as nibabel reads them, mended with a word, or refused before a voxel is read."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import subprocess
import zlib

import nibabel
import numpy as np
import pytest
from nibabel.fileholders import FileHolder
from support import warm
from support.subjects import write_subject

from mpiimg.errors import BadInput
from mpiimg.formats import gz, registry
from mpiimg.formats.nifti.whole import spans_space
from mpiimg.neuro.nifti import Voxels, open_image, output_header, parse_header

SHAPE = (5, 4, 3, 6)  # x, y, z, volumes
KINDS = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}
AFFINE = np.array([[-2.0, 0.1, 0, 9], [0, 2, 0, -8], [0.1, 0, 3, -4], [0, 0, 0, 1]])
TYPES = ("i2", "u1", "u2", "i4", "f4", "f8")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Extension"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def sound(version=1, dtype="i2", order="<", seed=0) -> bytes:
    """Return an image in one piece, with a time step."""
    data = np.random.default_rng(seed).normal(0, 100, SHAPE).astype(dtype)
    header = KINDS[version](data, AFFINE).header
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][4] = 2.5
    image = KINDS[version](data, AFFINE, header.as_byteswapped(order))
    buffer = io.BytesIO()
    image.to_file_map({"image": FileHolder(fileobj=buffer), "header": FileHolder(fileobj=buffer)})
    return buffer.getvalue()


def spoilt(raw: bytes, **fields) -> bytes:
    """Return the same with other values in its header; pixdim_1 is the second item of pixdim."""
    header = parse_header(raw)
    table = header.structarr.copy()
    for field, value in fields.items():
        name, _, item = field.rpartition("_")
        if name in table.dtype.names and item.isdigit():
            table[name][int(item)] = value
        else:
            table[field] = value
    size = header.template_dtype.itemsize
    return table.tobytes() + raw[size:]


def opened(path):
    """Return an image with all that a run asks of its header before the first stage."""
    image = open_image(path, (3, 4))
    for components in (None, 3, image.shape[0]):
        output_header(image, components, "float32", "mpiimg")
    return image


def values(image) -> np.ndarray:
    box = tuple((0, n) for n in image.shape)
    if image.kind == "nii.gz":
        (block,) = Voxels(image, "dwi").blocks(iter([box]))
    else:
        block = image.open().read(box)
    return image.scaled(block)


def assert_as_nibabel(path):
    """Assert that what is read is what nibabel reads, or mended with a word, or refused in one line."""
    try:
        image = opened(path)
        read = values(image)
    except BadInput as error:
        (line,) = str(error).splitlines()
        assert line.startswith(f"{path}: ")
        return "refused"
    try:
        other = nibabel.load(path)
    except ValueError:
        assert image.words and spans_space(image.affine)
        return "mended"
    data = np.asarray(other.dataobj)
    data = data.reshape(data.shape[:4]) if data.shape[4:] == (1,) * (data.ndim - 4) else data
    # Beyond the range of single precision a voxel counts as infinite, and a run warns of it.
    with np.errstate(over="ignore"):
        expected = data.T.astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(read.astype(np.float32), expected, rtol=1e-6, atol=1e-30)
    if not spans_space(other.affine):
        assert image.words and spans_space(image.affine)
        return "mended"
    np.testing.assert_allclose(image.affine, other.affine)
    return "read"


# One by one.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sform_code": 0, "pixdim_2": 0}, "pixdim in the header is 2.0025 x 0 x 3, and no sform says"),
        ({"sform_code": 0, "qform_code": 1, "pixdim_3": np.nan}, "they must be positive"),
        ({"sform_code": 0, "qform_code": 1, "pixdim_3": np.inf}, "pixdim"),
        ({"srow_x": 0, "srow_y": 0, "srow_z": 0, "pixdim_1": 1e30}, "pixdim"),
        ({"srow_x": 0}, "the sform in the header (code 2) is not one of voxels in space"),
        ({"srow_x": np.nan, "srow_y": np.inf}, "do not say where the voxels lie"),
        ({"srow_x_3": np.nan}, "do not say where the voxels lie"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 5, "quatern_c": 5}, "a quaternion that is longer"),
        ({"sform_code": 0, "qform_code": 1, "qoffset_x": np.inf}, "the qform in the header (code 1) is not"),
        ({"srow_x": np.nan, "qform_code": 1, "quatern_b": 5}, "longer than 1; write it again from its"),
        ({"scl_slope": 1e38}, "scl_slope 1e+38"),
        ({"scl_slope": -1e35, "scl_inter": 1}, "scl_slope"),
        ({"dim_0": 0}, "needed"),
        ({"dim_1": -5}, "needed"),
        ({"dim_4": 7}, "truncated"),
        ({"dim_1": 32767, "dim_2": 32767, "dim_3": 32767, "dim_4": 32767}, "truncated"),
        ({"vox_offset": 350}, "vox_offset"),
        ({"vox_offset": 0}, "vox_offset"),
        ({"vox_offset": 1e9}, "truncated"),
        ({"vox_offset": -352}, "vox_offset"),
        ({"datatype": 1536}, "not supported"),
        ({"datatype": 1792}, "not supported"),
        ({"datatype": 128}, "are colours"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_no_result_could_be_written_with_is_refused_at_once(tmp_path, fields, words, name):
    raw = spoilt(sound(), **fields)
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    if words == "truncated" and name.endswith(".gz"):
        # What gzip may hold for all that its length says is found out when it is read.
        with pytest.raises(BadInput, match="truncated"):
            values(opened(path))
        return
    with pytest.raises(BadInput) as refusal:
        opened(path)
    assert str(refusal.value).startswith(f"{path}: ") and words in str(refusal.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim_0": 0},
        {"pixdim_0": 5, "sform_code": 0},
        {"sform_code": 77},
        {"sform_code": -1},
        {"qform_code": 77, "sform_code": 0},
        {"qform_code": 0, "sform_code": 0},
        {"scl_slope": 0, "scl_inter": 5},
        {"scl_slope": np.nan},
        {"scl_slope": np.inf},
        {"scl_slope": 1e-30},
        {"scl_slope": -0.5, "scl_inter": 3},
        {"bitpix": 7},
        {"dim_4": 2},
        {"dim_5": 1, "dim_0": 5},
        {"dim_7": 99},
        {"descrip": b"\x1b[2J\n\xff\x07"},
        {"aux_file": b"../../etc/x\n", "intent_name": b"\x00\xff"},
        {"pixdim_4": 0},
        {"xyzt_units": 255},
        {"cal_max": np.nan, "slice_end": 32767},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_nibabel_makes_sense_of_is_read_as_nibabel_reads_it(tmp_path, fields, name):
    raw = spoilt(sound(), **fields)
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert assert_as_nibabel(path) == "read"


#: Without shears, so that a qform can say it too; oblique.
RIGID = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.1, -0.2, 0.05) @ np.diag([-2.0, 2, 3]), [9, -8, -4]
)
GUESS = np.array([[-2.0, 0, 0, 4], [0, 2, 0, -3], [0, 0, 3, -3], [0, 0, 0, 1]])
MOVED = RIGID + np.eye(4, k=3) * [[30], [0], [0], [0]] - np.eye(4, k=3) * [[RIGID[0, 3]], [0], [0], [0]]
EMPTY = {"srow_x": 0, "srow_y": 0, "srow_z": 0}

MENDED = [
    ({}, RIGID, ""),
    ({"pixdim_1": -2}, RIGID, "pixdim in the header is -2 x 2 x 3: taken as positive, as nibabel does"),
    ({"pixdim_1": -2, "sform_code": 0}, RIGID, "pixdim in the header is -2 x 2 x 3: taken as positive"),
    ({"pixdim_2": 0}, RIGID, "pixdim in the header is 2 x 0 x 3, and the sform makes it 2 x 2 x 3"),
    ({"pixdim_3": np.nan}, RIGID, "2 x 2 x nan, and the sform makes it 2 x 2 x 3: the sform is taken"),
    ({"pixdim_3": np.inf, "qform_code": 0}, RIGID, "2 x 2 x inf, and the sform makes it 2 x 2 x 3"),
    ({"pixdim_3": 4, "qform_code": 0}, RIGID, "2 x 2 x 4, and the sform makes it 2 x 2 x 3: the sform is"),
    ({"pixdim_4": np.nan}, RIGID, "the time step in the header (pixdim[4]) is nan, and counts as unknown"),
    ({"pixdim_4": -2.5}, RIGID, "the time step in the header (pixdim[4]) is -2.5, and counts as unknown"),
    ({"xyzt_units": 255}, RIGID, "xyzt_units 255 in the header are none of NIfTI's, and count as unknown"),
    ({"xyzt_units": 11}, RIGID, "lengths are in micron by its header (xyzt_units), and are taken in mm"),
    ({"sform_code": 77}, RIGID, "sform_code 77 in the header is none of NIfTI's, and counts as 0"),
    ({"pixdim_0": 5, "sform_code": 0}, RIGID @ np.diag([1, 1, -1, 1]), "qfac (pixdim[0]) in the header is 5"),
    (EMPTY, RIGID, "the sform in the header (code 1) is empty: the qform is taken"),
    ({"srow_x": 0}, RIGID, "the sform in the header (code 1) is not one of voxels in space: the qform is"),
    (
        {"srow_y_3": np.nan},
        RIGID,
        "the sform in the header (code 1) is not one of voxels in space: the qform",
    ),
    ({"quatern_b": 5}, RIGID, "the qform in the header (code 1) has a quaternion that is longer than 1: the"),
    ({"qoffset_x": np.inf}, RIGID, "results get a qform that agrees with it"),
    ({"qoffset_x": np.nan, "qform_code": 0}, RIGID, ""),
    ({"srow_x_3": 30}, MOVED, "put voxels up to 21 mm apart: the sform is taken"),
    ({"pixdim_0": 1}, RIGID, "and one is a mirror image of the other: the sform is taken"),
    ({"qform_code": 0, "sform_code": 0}, GUESS, "left and right may be swapped"),
    ({**EMPTY, "qform_code": 0}, GUESS, "the sform in the header (code 1) is empty, so the sizes of voxels"),
    ({"cal_max": np.nan, "toffset": np.inf, "slice_duration": np.nan, "pixdim_6": np.nan}, RIGID, ""),
]


def rigid(version: int, **fields) -> bytes:
    """Return an image whose qform and sform say the same, with other values in its header."""
    image = KINDS[version](np.zeros(SHAPE, np.int16), RIGID)
    image.set_qform(RIGID, 1)
    image.set_sform(RIGID, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2.5
    return spoilt(image.to_bytes(), **fields)


def assert_whole(path, affine):
    """Assert that a result has a header as any reader wants it, and MRtrix's place where it is installed."""
    image = nibabel.load(path)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    header = parse_header(path.read_bytes())  # nibabel takes the scaling out of that of an image
    header.check_fix(error_level=1)
    for field in header:
        assert header[field].dtype.kind != "f" or np.isfinite(header[field]).all(), field
    assert (np.array(header.get_zooms()) > 0).all()
    assert header.get_xyzt_units()[0] != "unknown" and spans_space(header.get_sform())
    for form in (header.get_qform(coded=True), header.get_sform(coded=True)):
        assert form[1] == 0 or spans_space(form[0])


@pytest.mark.parametrize("version", KINDS)
@pytest.mark.parametrize(("fields", "affine", "words"), MENDED, ids=[str(fields) for fields, *_ in MENDED])
def test_a_header_is_made_whole_with_a_word_and_so_are_those_of_all_results(
    tmp_path, caplog, fields, affine, words, version
):
    path = tmp_path / "a.nii"
    path.write_bytes(rigid(version, **fields))
    image = open_image(path, 4)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert words in " ".join(image.words) and bool(image.words) == bool(words)
    assert all(text.startswith(f"{path}: ") for text in image.words)
    for components in (None, 3, SHAPE[3]):
        voxels = np.zeros((components or 1, *image.shape[1:]), np.float32)
        result = tmp_path / "b.nii"
        result.write_bytes(output_header(image, components, "float32", "mpiimg") + voxels.tobytes())
        assert_whole(result, affine)
    registry.read(path, "x")
    said = [record.getMessage() for record in caplog.records if record.name == "mpiimg"]
    # To the primitives a length is what it is, in whatever unit.
    assert said == [f"warning: {text}" for text in image.words if "lengths are in" not in text]


@pytest.mark.tool
def test_a_run_on_a_broken_header_says_so_and_all_its_results_are_whole(tmp_path):
    """A negative pixdim once cost all the work; an empty sform gave colours of NaN."""
    rng = np.random.default_rng(0)
    bvals = np.array([0.0, *[1000.0] * 8])
    bvecs = rng.normal(size=(9, 3))
    bvecs = np.where(bvals[:, None] > 0, bvecs / np.linalg.norm(bvecs, axis=1)[:, None], 0)
    data = rng.normal(500, 20, (10, 9, 6, 9)) * np.exp(-7e-4 * bvals)
    subject = write_subject(tmp_path / "in", data.astype(np.int16), RIGID, bvals, bvecs, name="dwi.nii")
    image = nibabel.load(subject.dwi, mmap=False)
    image.set_qform(RIGID, 1)
    raw = spoilt(image.to_bytes(), pixdim_1=-2, sform_code=1, **EMPTY)
    subject.dwi.write_bytes(raw)
    mask = tmp_path / "mask.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones(data.shape[:3], np.uint8), RIGID), mask)
    out = tmp_path / "out"
    done = warm.run_tool("mpiimg-neuro", *subject.arguments, "--mask", mask, "--sigma", 20, "--out", out)
    said = ("the sform in the header (code 1) is empty: the qform is taken", "taken as positive, as nibabel")
    warnings = json.loads((out / "run.json").read_text())["warnings"]
    for words in said:
        assert f"{subject.dwi}: " in done.stderr and words in done.stderr
        assert any(words in text for text in warnings)
    results = sorted(out.glob("*.nii.gz"))
    assert len(results) > 5
    for path in results:
        whole = tmp_path / "whole.nii"
        whole.write_bytes(gzip.decompress(path.read_bytes()))
        assert_whole(whole, RIGID)
        assert np.isfinite(nibabel.load(whole).dataobj).all()


@pytest.mark.needs_mrtrix
@pytest.mark.parametrize(("fields", "affine", "words"), MENDED, ids=[str(fields) for fields, *_ in MENDED])
def test_a_result_is_where_mrtrix_puts_it(tmp_path, fields, affine, words):
    """MRtrix has a guess of its own where no form has a code, which the word says."""
    path, result = tmp_path / "a.nii", tmp_path / "b.nii"
    path.write_bytes(rigid(1, **fields))
    image = open_image(path, 4)
    result.write_bytes(output_header(image, None, "float32", "mpiimg") + bytes(4 * math.prod(SHAPE[:3])))
    told = subprocess.run(
        ["mrinfo", "-transform", "-spacing", "-strides", "-config", "RealignTransform", "0", result],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = [[float(one) for one in line.split()] for line in told.stdout.splitlines()]
    spacing, rows = rows[0], rows[-4:]
    theirs = np.array(rows) @ np.diag([*spacing[:3], 1])
    if affine is not GUESS:
        np.testing.assert_allclose(theirs, affine, atol=1e-3)
    else:
        np.testing.assert_allclose(np.abs(theirs), np.abs(affine), atol=1e-3)


def test_the_dimensions_of_nifti_2_do_not_overflow(tmp_path):
    """2^32 x 2^32 voxels are 2^64, which 64 bits hold as 0."""
    path = tmp_path / "a.nii"
    path.write_bytes(spoilt(sound(2), dim_1=1 << 32, dim_2=1 << 32, dim_3=1, dim_4=1))
    with pytest.raises(
        BadInput, match=r"truncated: \d+ bytes where the header promises 36893488147419103776"
    ):
        open_image(path, 4)


# Files.


def test_what_gzip_cannot_hold_is_refused_at_the_header(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(spoilt(sound(), dim_1=30000, dim_2=30000, dim_3=30000)))
    with pytest.raises(
        BadInput, match=r"truncated or corrupt: its header promises 324000000000352 bytes, and"
    ):
        open_image(path, 4)


def test_an_image_that_gzip_shrinks_as_far_as_it_can_is_read(tmp_path):
    """The limit is that of the format: a large image of zeros stays below it."""
    header = spoilt(sound(), dim_1=500, dim_2=500, dim_3=50, dim_4=2)[:352]
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header + bytes(500 * 500 * 50 * 2 * 2), 9))
    image = open_image(path, 4)
    assert math.prod(image.shape) * 2 > 1000 * path.stat().st_size
    assert not values(image).any()


def test_a_stream_is_read_to_its_end_but_not_for_ever(tmp_path):
    """More than the header promises is no harm, and its checksum is verified; twice as much is refused."""
    path = tmp_path / "a.nii.gz"
    raw = sound()
    whole = gzip.compress(raw + bytes(1000))
    path.write_bytes(whole)
    assert assert_as_nibabel(path) == "read"
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    with pytest.raises(BadInput, match="truncated or corrupt gzip"):
        values(open_image(path, 4))
    path.write_bytes(gzip.compress(raw + bytes(len(raw) + gz.MORE + 1)))
    with pytest.raises(BadInput, match="goes on for more than twice what its header promises"):
        values(open_image(path, 4))


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_on_a_disk_is_not_waited_for(tmp_path, what):
    path = tmp_path / "dwi.nii"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BadInput, match=r"dwi\.nii: (is no file on a disk|is a folder)"):
        open_image(path, 4)


# Many at once.

SPECIAL = {
    "f": [0, -0.0, 1, -1, np.nan, np.inf, -np.inf, 1e30, -1e30, 1e38, 1e-30, 352, 353, 350, 16, 1e9, 3.4e38],
    "i": [0, 1, -1, 2, 3, 7, 8, 127, 128, 255, 256, 4, 16, 32, 64, 512, 768, 1792, 2304, 32767, -32768, 77],
    "long": [1 << 40, 1 << 62, -(1 << 40), (1 << 63) - 1],
}


def mutated(rng: np.random.Generator, raw: bytes) -> bytes:
    """Return an image with one to three fields of its header changed, and now and then its length."""
    header = parse_header(raw)
    table, size = header.structarr.copy(), header.template_dtype.itemsize
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        name = str(rng.choice(table.dtype.names))
        of = table.dtype[name]
        item = of.subdtype[0] if of.subdtype else of
        if item.kind == "f":
            value = rng.choice(SPECIAL["f"])
        elif item.kind in "iu":
            info = np.iinfo(item)
            allowed = [n for n in SPECIAL["i"] + SPECIAL["long"] if info.min <= n <= info.max]
            value = int(rng.choice(np.array(allowed, object)))
        else:
            value = rng.bytes(rng.integers(1, 8))
        if of.subdtype:
            table[name][rng.integers(of.shape[0])] = value
        else:
            table[name] = value
    changed = table.tobytes() + raw[size:]
    cut = rng.random()
    if cut < 0.1:
        return changed[: rng.integers(len(changed))]
    return changed + bytes(int(rng.integers(2000))) * (cut < 0.2)


def campaign(folder, seed: int, cases: int) -> dict[str, int]:
    rng, ends = np.random.default_rng(seed), {"read": 0, "mended": 0, "refused": 0}
    images = [sound(v, t, o, seed) for v in KINDS for t in TYPES for o in "<>"] + [*map(rigid, KINDS)] * 4
    for number in range(cases):
        raw = mutated(rng, images[rng.integers(len(images))])
        path = folder / ("a.nii.gz" if number % 2 else "a.nii")
        path.write_bytes(gzip.compress(raw, 1) if number % 2 else raw)
        ends[assert_as_nibabel(path)] += 1
    return ends


def test_any_field_may_hold_anything(tmp_path):
    ends = campaign(tmp_path, 0, 150)
    assert min(ends["read"], ends["refused"]) > 30 and ends["mended"]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
def test_any_field_may_hold_anything_at_length(tmp_path, seed):
    campaign(tmp_path, seed, 1500)


def test_a_checksum_that_is_wrong_alone_is_found(tmp_path):
    path = tmp_path / "a.nii.gz"
    raw = sound()
    whole = bytearray(gzip.compress(raw, 0))
    whole[-8:-4] = (zlib.crc32(raw) ^ 1).to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(BadInput, match="truncated or corrupt gzip"):
        values(open_image(path, 4))
