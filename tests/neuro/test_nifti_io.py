"""NIfTI in and out against nibabel: kinds, byte orders, scaling, streams, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import struct
import subprocess
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from mpiimg.engine.boxes import box_slices
from mpiimg.engine.pages import page_sums
from mpiimg.engine.staged_file import create_staged, describe_staged, sums_path
from mpiimg.errors import BadInput
from mpiimg.neuro.nifti import (
    Image,
    Voxels,
    open_image,
    output_header,
    output_stem,
    parse_header,
    same_space,
)
from mpiimg.neuro.staged import LAYOUT, staged_attributes

SHAPE = (5, 4, 3, 2)  # x, y, z, volumes
KINDS = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}
AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.1, 2.1, 0, -40], [0, 0, 2.2, 5], [0, 0, 0, 1]])


def voxels(dtype, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return rng.integers(low, high, shape, dtype, endpoint=True)


def save(path, data, version=1, order="<", slope=None, inter=None, affine=AFFINE, **fields):
    """Write an image whose voxels on disk are `data`, whatever its scaling says they stand for."""
    template = KINDS[version](data, affine).header
    template.set_xyzt_units("mm", "sec")
    for field, value in fields.items():
        template[field] = value
    template["scl_slope"], template["scl_inter"] = slope if slope is not None else np.nan, inter or 0
    header = template.as_byteswapped(order)
    header["vox_offset"] = len(header.binaryblock) + 4
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    raw = header.binaryblock + bytes(4) + data.astype(data.dtype.newbyteorder(order)).tobytes(order="F")
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def slabs(image, thickness=2):
    """Boxes that follow each other through the whole file."""
    volumes, depth = image.shape[0], image.shape[1]
    for v, z in itertools.product(range(volumes), range(0, depth, thickness)):
        yield (
            (v, v + 1),
            (z, min(z + thickness, depth)),
            (0, image.shape[2]),
            (0, image.shape[3]),
        )


@pytest.mark.parametrize("version", KINDS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32", "float64", "uint8", "int32"])
@pytest.mark.parametrize("scaling", [None, (0.37, -12.5)], ids=["plain", "scaled"])
def test_values_are_nibabels(tmp_path, version, order, dtype, scaling):
    """From .nii in any order, from .nii.gz as a stream, for every header, byte order and scaling."""
    slope, inter = scaling or (None, None)
    data = voxels(dtype)
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, data, version, order, slope, inter)
        image = open_image(path, 4)
        peer = nibabel.load(path)
        assert image.kind == name[2:]
        assert image.shape == SHAPE[::-1]
        assert image.axes == "vzyx"
        assert (image.affine == peer.affine).all()
        expected = np.asarray(peer.dataobj).T
        whole = np.empty(image.shape, image.native)
        if name.endswith(".gz"):
            for box, block in zip(slabs(image), Voxels(image, "dwi").blocks(slabs(image)), strict=True):
                assert block.dtype.isnative
                whole[box_slices(box)] = block
        else:
            file = image.open()
            whole = file.read(tuple((0, n) for n in image.shape))
            file.close()
        assert (whole == data.T).all()
        values = image.scaled(whole)
        if scaling is None:
            assert values is whole
            assert (values == expected).all()
        else:
            assert values.dtype == ("float64" if dtype == "float64" else "float32")
            exact = data.T.astype(float) * image.slope + image.inter
            assert (values == exact.astype(values.dtype)).all()
            np.testing.assert_allclose(values, expected, rtol=3e-7, atol=1e-5)


def test_three_dimensions_and_trailing_ones(tmp_path):
    data = voxels("int16", (5, 4, 3))
    assert open_image(save(tmp_path / "a.nii", data), 3).shape == (3, 4, 5)
    assert open_image(save(tmp_path / "b.nii", data[..., None]), 3).shape == (3, 4, 5)
    assert open_image(save(tmp_path / "c.nii", data[..., None, None]), 4).shape == (1, 3, 4, 5)
    assert open_image(save(tmp_path / "a.nii", data), 3).axes == "zyx"


def test_a_slope_of_zero_is_no_scaling(tmp_path):
    image = open_image(save(tmp_path / "a.nii", voxels("int16"), slope=0.0, inter=3.0), 4)
    assert (image.slope, image.inter) == (1.0, 0.0)


def test_identity_tells_images_apart(tmp_path):
    path = save(tmp_path / "a.nii", voxels("int16"))
    first = open_image(path, 4).identity
    assert open_image(path, 4).identity == first
    os.utime(path, ns=(1, 1))
    assert open_image(path, 4).identity != first
    save(path, voxels("int16"), descrip=b"another")
    os.utime(path, ns=(1, 1))
    assert open_image(path, 4).identity[2] != first[2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-1_dwi.nii.gz", "sub-1"),
        ("sub-1_dwi.nii", "sub-1"),
        ("sub-1_dwi.h5", "sub-1"),
        ("dwi.nii.gz", "dwi"),
        ("a.b.nii.gz", "a.b"),
        ("_dwi.nii", "_dwi"),
        ("data", "data"),
    ],
)
def test_stem(name, expected):
    assert output_stem(Path("/somewhere") / name) == expected


# What is refused.


@pytest.fixture
def good(tmp_path):
    return save(tmp_path / "a.nii", voxels("int16"))


def refuse(path, said, dimensions=4):
    with pytest.raises(BadInput) as caught:
        open_image(path, dimensions, "diffusion image")
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    refuse(tmp_path / "none.nii", "cannot read this diffusion image: No such file")
    refuse(tmp_path, "is a folder: give the image in it")


@pytest.mark.filterwarnings("ignore:Extension size")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes"),
        (b"text", "is a text, and no image: it begins with 'text'"),
        (b"x" * 1000, "is a text, and no image: it begins with 'xxx"),
        (b"\0" * 1000, "this diffusion image is not a NIfTI file (.nii, .nii.gz) nor a staged one"),
        (bytes(range(256)) * 4, "this diffusion image is not a NIfTI file (.nii, .nii.gz) nor a staged one"),
    ],
)
def test_other_files_are_not_nifti(tmp_path, content, said):
    path = tmp_path / "a.nii"
    for data in (content, gzip.compress(content)):
        path.write_bytes(data)
        refuse(path, said)


def test_truncated_voxels(good):
    size = good.stat().st_size
    os.truncate(good, size - 1)
    refuse(good, f"truncated: {size - 1} bytes where the header promises {size}; copy it again")


@pytest.mark.parametrize("keep", [2, 10, 20])
def test_a_gzip_that_ends_in_the_header(tmp_path, keep):
    path = save(tmp_path / "a.nii.gz", voxels("int16"))
    path.write_bytes(path.read_bytes()[:keep])
    refuse(path, "truncated or corrupt gzip")


def test_wrong_dimensions(tmp_path, good):
    refuse(save(tmp_path / "b.nii", voxels("int16", (5, 4, 3))), "has shape 5x4x3; 4-D is needed")
    refuse(save(tmp_path / "c.nii", voxels("int16", (5, 4, 3, 2, 6))), "has shape 5x4x3x2x6; 4-D is needed")
    refuse(good, "has shape 5x4x3x2; 3-D is needed", dimensions=3)


@pytest.mark.parametrize("dimensions", [[4, 5, 0, 3, 2, 1, 1, 1], [4, 5, -4, 3, 2, 1, 1, 1], [0] * 8])
def test_empty_dimensions(good, dimensions):
    patch(good, 40, "<8h", *dimensions)
    refuse(good, "")


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_types_that_are_no_real_numbers(tmp_path, dtype):
    path = save(tmp_path / "a.nii", np.zeros(SHAPE, dtype))
    refuse(path, "are not supported; convert the magnitude image to a real type of at most 64 bits")


def test_colours(tmp_path):
    data = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), tmp_path / "a.nii")
    refuse(tmp_path / "a.nii", "voxels of type 128")


def patch(path, position, layout, *values):
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(struct.pack(layout, *values))


@pytest.mark.parametrize("code", [0, 1, 1536, 4711, -1])
def test_types_that_are_too_wide_or_do_not_exist(good, code):
    patch(good, 70, "<h", code)
    refuse(good, f"voxels of type {code} ")


@pytest.mark.parametrize("offset", [0.0, 100.0, -352.0, np.nan, np.inf])
def test_voxels_that_begin_in_the_header_or_nowhere(good, offset):
    patch(good, 108, "<f", offset)
    refuse(good, "vox_offset")


@pytest.mark.parametrize("inter", [np.inf, np.nan])
def test_scaling_that_makes_no_sense(good, inter):
    patch(good, 112, "<2f", 2.0, inter)
    refuse(good, "scl_slope and scl_inter in the header make no sense")


@pytest.mark.filterwarnings("ignore:Extension size")
def test_damaged_headers_are_refused_or_read_but_raise_nothing_else(tmp_path):
    """Any two bytes of a header may be anything."""
    rng = np.random.default_rng(0)
    path = tmp_path / "a.nii"
    opened = 0
    for version in KINDS:
        whole = save(path, voxels("int16"), version).read_bytes()
        size = 348 if version == 1 else 540
        for _ in range(150):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(size, 200), 2):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                open_image(path, 4)
                opened += 1
            except BadInput as error:
                assert "\n" not in str(error)
    assert 0 < opened < 300


# Streams.


def read_all(image):
    return list(Voxels(image, "dwi").blocks(slabs(image)))


@pytest.fixture
def zipped(tmp_path):
    return save(tmp_path / "a.nii.gz", voxels("int16"))


def test_a_stream_of_several_members(tmp_path):
    """As bgzip and earlier versions write them, cut anywhere."""
    data = voxels("int16")
    raw = save(tmp_path / "a.nii", data).read_bytes()
    path = tmp_path / "a.nii.gz"
    cuts = [0, 1, 348, 352, 353, 400, len(raw)]
    path.write_bytes(b"".join(gzip.compress(raw[a:b], 1) for a, b in itertools.pairwise(cuts)))
    image = open_image(path, 4)
    whole = np.concatenate([block.ravel() for block in read_all(image)])
    assert (whole == data.T.ravel()).all()
    assert gzip.decompress(path.read_bytes()) == raw


@pytest.mark.parametrize("missing", [1, 4, 8, 9, 40])
def test_a_truncated_stream(zipped, missing):
    image = open_image(zipped, 4)
    os.truncate(zipped, zipped.stat().st_size - missing)
    with pytest.raises(BadInput, match=r"truncated or corrupt gzip \(.*\); test it with gzip -t and copy it"):
        read_all(image)


def test_a_damaged_stream_is_never_taken_for_a_good_one(zipped):
    """A flipped bit that still inflates is found by the checksum, also one in the checksum itself."""
    image, whole = open_image(zipped, 4), zipped.read_bytes()
    for place in [*range(60, len(whole) - 8, 5), *range(len(whole) - 8, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        zipped.write_bytes(damaged)
        with pytest.raises(BadInput, match="truncated or corrupt gzip"):
            read_all(image)


def test_no_last_block_before_the_checksum_is_right(tmp_path):
    """Who stops after the last block has had the whole stream verified."""
    zipped = save(tmp_path / "a.nii.gz", voxels("int16", (64, 64, 32, 8)))
    image = open_image(zipped, 4)
    damaged = bytearray(zipped.read_bytes())
    damaged[-6] ^= 1
    zipped.write_bytes(damaged)
    count = len(list(slabs(image)))
    found = []
    with pytest.raises(BadInput, match="truncated or corrupt gzip"):
        for block in Voxels(image, "dwi").blocks(slabs(image)):
            found.append(block)
            if len(found) == count:
                break
    assert 0 < len(found) < count


def test_a_stream_with_less_than_the_header_promises(tmp_path):
    path = save(tmp_path / "a.nii.gz", voxels("int16"))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-2]))
    image = open_image(path, 4)
    with pytest.raises(BadInput, match="ends before its last voxel"):
        read_all(image)


# Headers out.


@pytest.mark.parametrize("version", KINDS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("components", "dtype"), [(None, "uint8"), (2, "float32"), (3, "float32")])
def test_outputs_keep_the_space_of_their_image(tmp_path, version, order, components, dtype):
    path = save(
        tmp_path / "a.nii",
        voxels("int16"),
        version,
        order,
        slope=2.0,
        inter=1.0,
        qform_code=1,
        sform_code=4,
        cal_max=100,
    )
    image = open_image(path, 4)
    shape = SHAPE[:3] if components is None else (*SHAPE[:3], components)
    data = voxels(dtype, shape)
    out = tmp_path / "out.nii"
    out.write_bytes(output_header(image, components, dtype, "mpiimg 1") + data.tobytes(order="F"))
    made, peer = nibabel.load(out), nibabel.load(path)
    assert type(made) is type(peer)
    assert (np.asarray(made.dataobj) == data).all()
    assert made.get_data_dtype() == np.dtype(dtype).newbyteorder("<")
    assert (made.affine == peer.affine).all()
    for form in ("get_sform", "get_qform"):
        expected, code = getattr(peer.header, form)(coded=True)
        found, found_code = getattr(made.header, form)(coded=True)
        assert code == found_code
        assert (found == expected).all()
    assert made.header.get_xyzt_units() == ("mm", "sec")
    assert made.header.get_zooms()[:3] == peer.header.get_zooms()[:3]
    assert (made.header["cal_max"], made.header["descrip"]) == (0, b"mpiimg 1")
    assert made.dataobj.slope == 1
    assert made.dataobj.inter == 0
    assert nibabel.Nifti1Header.diagnose_binaryblock(out.read_bytes()[:348]) == "" or version == 2


@pytest.mark.parametrize("version", KINDS)
@pytest.mark.parametrize(("components", "expected"), [(2, 3.5), (3, 1.0), (1, 1.0)])
def test_the_time_step_in_the_header_of_maps_is_that_of_as_many_volumes_alone(
    tmp_path, version, components, expected
):
    """The components of a map follow each other in no time: only as many volumes as the image has keep it."""
    path = save(tmp_path / "a.nii", voxels("int16"), version, pixdim=[1, 2, 2, 2, 3.5, 1, 1, 1])
    image = open_image(path, 4)
    header = parse_header(output_header(image, components, "float32", "mpiimg 1"))
    assert header.get_zooms()[3] == expected


def test_volumes_of_maps_of_a_single_volume_have_no_time_step(tmp_path):
    data = voxels("int16", SHAPE[:3])
    image = open_image(save(tmp_path / "a.nii", data), 3)
    assert parse_header(output_header(image, 3, "float32", "mpiimg 1")).get_zooms()[3] == 1.0


# Staged files.


def stage(path, image, layout=LAYOUT):
    """Stage an image as one block a volume; in layout 1 as the first versions did, without checksums."""
    array = image.array("data")
    create_staged(path, array)
    file = image.open()
    blocks = [file.read(((v, v + 1), *((0, n) for n in image.shape[1:]))) for v in range(image.shape[0])]
    file.close()
    with h5py.File(path, "r+") as staged:
        staged["data"][...] = np.concatenate(blocks)
    boxes = np.array([[(v, v + 1), *((0, n) for n in image.shape[1:])] for v in range(image.shape[0])])
    np.concatenate([page_sums(block) for block in blocks]).tofile(sums_path(path))
    kept = staged_attributes(image.header, image.stem, image.identity, image.dw_scheme)
    describe_staged(path, {**kept, "mpiimg_staged": layout}, *[array, boxes] * (layout == LAYOUT))
    return path


def everything(path):
    """Return all that a staged file says, and all its voxels; or raise BadInput."""
    image = open_image(path, 4)
    file = image.open()
    try:
        return file.read(tuple((0, n) for n in image.shape)).tobytes(), image.header, image.stem, image.dtype
    finally:
        file.close()


@pytest.mark.parametrize("order", "<>")
def test_a_staged_image_is_its_original(tmp_path, order):
    original = open_image(save(tmp_path / "s_dwi.nii", voxels("int16"), 1, order, 0.5, 3.0), 4)
    image = open_image(stage(tmp_path / "other.h5", original), 4)
    assert image.kind == "staged"
    assert image.stem == original.stem == "s"
    assert image.identity == original.identity
    assert (image.slope, image.inter, image.shape) == (original.slope, original.inter, original.shape)
    assert (image.affine == original.affine).all()
    box = tuple((0, n) for n in image.shape)
    one, other = image.open(), original.open()
    assert (one.read(box) == other.read(box)).all()
    assert one.read(box).dtype.isnative
    one.close()
    other.close()


def test_other_hdf5_files_are_refused(tmp_path, good):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros(3)
    refuse(path, "no dataset named 'data'; give a file made by mpiimg-stage")
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    refuse(path, "this HDF5 file was not made by mpiimg-stage; give a NIfTI or a staged file")
    with h5py.File(path, "w") as file:
        file.create_group("data")
    refuse(path, "made by mpiimg-stage")
    with h5py.File(path, "w") as file:
        file.create_dataset("data", (100, 100), "f4", chunks=(10, 10))
    refuse(path, "stage the image again with mpiimg-stage")


def test_staged_files_of_another_layout_or_cut_short(tmp_path, good):
    path = stage(tmp_path / "a.h5", open_image(good, 4))
    other = tmp_path / "b.h5"
    shutil.copy(path, other)
    describe_staged(other, {"mpiimg_staged": 3})
    refuse(other, "staged by another version (layout 3); stage the image again")
    for size in (path.stat().st_size - 1, 2000, 100, 20):
        os.truncate(path, size)
        refuse(path, "stage the image again")


def test_a_staged_file_without_checksums_is_read_and_said(tmp_path, good, caplog):
    path = stage(tmp_path / "a.h5", open_image(good, 4), layout=1)
    with_sums = stage(tmp_path / "b.h5", open_image(good, 4))
    assert everything(path) == everything(with_sums)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"warning: {path}: staged by an earlier version, without checksums")


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_staged_file_is_refused_or_read_as_before(tmp_path, good, seed):
    """Any bit of it: of voxels, of their checksums, of the header in it, of HDF5's own."""
    path = stage(tmp_path / "a.h5", open_image(good, 4))
    sound, expected = path.read_bytes(), everything(path)
    rng, refused = np.random.default_rng(seed), 0
    places = np.flatnonzero(np.frombuffer(sound, np.uint8))  # there is much room between what HDF5 writes
    for bit in (8 * rng.choice(places, 100) + rng.integers(0, 8, 100)).tolist():
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert everything(path) == expected, f"bit {bit}"
        except BadInput as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused


# Spaces.


def image_with(affine, shape=SHAPE):
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, 1)
    header["magic"] = b"n+1"
    return Image(Path("a"), "nii", "a", shape[::-1], "<i2", 352, 1.0, 0.0, header.binaryblock, (0, 0, 0))


def test_spaces_agree_within_a_thousandth_of_a_voxel():
    one = image_with(AFFINE)
    assert same_space(one, image_with(AFFINE, SHAPE[:3])) is None
    moved = AFFINE.copy()
    moved[0, 3] += 0.001
    assert same_space(one, image_with(moved)) is None
    moved[0, 3] += 0.01
    assert same_space(one, image_with(moved)) == "affine, by up to 0.011 mm"
    turned = AFFINE.copy()
    turned[:3, 0] *= -1
    assert same_space(one, image_with(turned)).startswith("affine, by up to 20")
    assert same_space(one, image_with(AFFINE, (5, 4, 2))) == "shape 5x4x3 against 5x4x2"


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([[0, -1], [1, 1], [2, 1]], "(it is flipped along x); turn it: mrconvert b.nii "),
        ([[0, 1], [1, -1], [2, -1]], "(it is flipped along y and z); turn it"),
        ([[1, 1], [0, 1], [2, 1]], "(its axes are in the order y x z); turn it"),
        ([[2, 1], [1, -1], [0, 1]], "(it is flipped along y, and its axes are in the order z y x); turn it"),
        ([[1, 1], [2, -1], [0, 1]], "(it is flipped along "),
    ],
)
def test_a_grid_whose_voxels_are_in_another_order_is_named_with_the_command(turns, words, tmp_path):
    """As of a mask that another program has turned; the command makes it fit."""
    one = nibabel.Nifti1Image(voxels("int16", SHAPE[:3]), AFFINE)
    nibabel.save(one, tmp_path / "a.nii")
    nibabel.save(one.as_reoriented(turns), tmp_path / "b.nii")
    image, mask = (open_image(tmp_path / name, 3) for name in ("a.nii", "b.nii"))
    said = same_space(image, mask)
    assert said.startswith("the order of their voxels ") and words in said
    assert said.endswith("mrconvert b.nii turned.nii.gz -strides a.nii")
    if shutil.which("mrconvert") is None:
        pytest.skip("NO MRTRIX3: mrconvert is not installed, and the command is not tried")
    command = said.partition("turn it: ")[2].split()
    subprocess.run([*command, "-quiet"], cwd=tmp_path, check=True)
    turned = open_image(tmp_path / "turned.nii.gz", 3)
    assert same_space(image, turned) is None
    np.testing.assert_array_equal(nibabel.load(turned.path).dataobj, one.dataobj)


def test_parse_header_wants_one_piece():
    with pytest.raises(ValueError, match="one piece"):
        parse_header(nibabel.nifti1.Nifti1PairHeader().binaryblock)
