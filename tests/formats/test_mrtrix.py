"""MRtrix's and FreeSurfer's images, compared with mrconvert and nibabel."""

from __future__ import annotations

import gzip
import shutil
import subprocess

import nibabel
import numpy as np
import pytest
from support.peers import numbers, read_in_boxes

from mpiimg.errors import BadInput
from mpiimg.formats import registry

AFFINE = np.array([[-2, 0.1, 0, 90], [0.1, 2, 0.2, -100], [0, -0.2, 2.5, -60], [0, 0, 0, 1]])

VALUES = np.random.default_rng(0).normal(0, 900, (5, 6, 7, 3))


def mrconvert(*words):
    """Convert an image; skipped loudly where MRtrix3 is not installed."""
    if shutil.which("mrconvert") is None:
        pytest.skip("NO MRTRIX3: mrconvert is not installed, and layouts are not compared with it")
    subprocess.run(["mrconvert", "-quiet", "-force", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("mrtrix") / "source.nii"
    nibabel.save(nibabel.Nifti1Image(VALUES, AFFINE), path)
    return path


def in_standard_order(path, folder):
    """Return values and affine as mrconvert has them in a NIfTI whose axes run as MRtrix counts them."""
    mrconvert(path, folder / "standard.nii", "-strides", "1,2,3,4")
    loaded = nibabel.load(folder / "standard.nii")
    return np.asarray(loaded.dataobj), loaded.affine


def check(path, folder):
    """Each voxel has the value and the place that it has in the NIfTI of mrconvert; return the input."""
    values, source = read_in_boxes(path)
    assert source.axes == ("x", "y", "z", "t")
    expected, affine = in_standard_order(path, folder)
    to_expected = np.linalg.inv(affine) @ np.array(source.space.matrix)
    signs = np.diag(to_expected)[:3]
    np.testing.assert_allclose(to_expected[:3, :3], np.diag(signs), atol=1e-5)
    np.testing.assert_allclose(np.abs(signs), 1, atol=1e-5)
    last = [n - 1 if sign < 0 else 0 for n, sign in zip(values.shape, signs, strict=False)]
    np.testing.assert_allclose(to_expected[:3, 3], last, atol=1e-3)
    turned = values[tuple(slice(None, None, int(np.sign(sign))) for sign in signs)]
    np.testing.assert_array_equal(turned.astype(expected.dtype), expected)
    return source


@pytest.mark.parametrize("strides", ["1,2,3,4", "-1,2,3,4", "-2,3,1,4", "2,-3,-4,1"])
@pytest.mark.parametrize("datatype", ["bit", "uint16be", "float32le"])
def test_any_layout_and_type_is_that_of_mrconvert(strides, datatype, image, tmp_path):
    for ending in ("mif", "mif.gz", "mih"):
        mrconvert(image, tmp_path / f"x.{ending}", "-strides", strides, "-datatype", datatype)
        source = check(tmp_path / f"x.{ending}", tmp_path)
        assert source.parallel == (ending != "mif.gz")
        assert source.array.dtype == {"bit": "bool", "uint16be": "uint16", "float32le": "float32"}[datatype]


@pytest.mark.parametrize("datatype", ["int8", "uint8", "int16", "int32be", "uint32", "int64", "float64be"])
def test_other_types(datatype, image, tmp_path):
    mrconvert(image, tmp_path / "x.mif", "-datatype", datatype)
    check(tmp_path / "x.mif", tmp_path)


def test_an_image_as_it_lies_in_its_nifti_is_read_as_that(image, tmp_path):
    """mrconvert keeps the order of voxels, and says that x runs backwards: the array is that of the NIfTI."""
    mrconvert(image, tmp_path / "x.mif")
    assert "layout: -0,+1,+2,+3" in (tmp_path / "x.mif").read_bytes()[:400].decode()
    values, source = read_in_boxes(tmp_path / "x.mif")
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_allclose(source.space.matrix, AFFINE, atol=1e-4)
    assert (source.space.units, source.space.steps) == (("mm", "sec"), (("t", 1.0, 0.0),))


def test_gradients_and_other_fields_are_attributes(image, tmp_path):
    np.savetxt(tmp_path / "grad.b", [[0, 0, 0, 0], [1, 0, 0, 1000], [0, 0.6, 0.8, 2000]])
    mrconvert(image, tmp_path / "x.mif", "-grad", tmp_path / "grad.b", "-set_property", "note", "of ours")
    attrs = registry.read(tmp_path / "x.mif", "x").attrs
    np.testing.assert_allclose(
        attrs["dw_scheme"], [[0, 0, 0, 0], [1, 0, 0, 1000], [0, 0.6, 0.8, 2000]], atol=1e-6
    )
    assert attrs["note"] == "of ours"
    assert not {"dim", "vox", "layout", "transform", "file"} & set(attrs)


# --- Without MRtrix ---------------------------------------------------------------------------------------

HEADER = """mrtrix image
dim: {dim}
vox: 2,3,nan
layout: {layout}
datatype: {datatype}
{more}file: {file}
END
"""


def written(path, data, dim="2,3,4", layout="+0,+1,+2", datatype="Int16LE", more="", file=". 200"):
    """Write an image by hand; return its path."""
    header = HEADER.format(dim=dim, layout=layout, datatype=datatype, more=more, file=file).encode()
    content = header.ljust(200, b"\0") + data
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("ending", ["mif", "mif.gz"])
def test_scaled_values_and_an_image_without_a_transform(ending, tmp_path):
    stored = np.arange(24, dtype="<i2")
    path = written(tmp_path / f"x.{ending}", stored.tobytes(), more="scaling: 10,0.5\n")
    values, source = read_in_boxes(path)
    expected = (10 + 0.5 * stored).astype(np.float32).reshape(4, 3, 2).T
    np.testing.assert_array_equal(values, expected)
    assert values.dtype == np.float32
    # The origin is then the middle of the image.
    # A size that is not known is the mean of the others.
    np.testing.assert_allclose(source.space.matrix[:3], [[2, 0, 0, -1], [0, 3, 0, -3], [0, 0, 2.5, -3.75]])


def test_capitals_in_the_name_of_a_type_do_not_matter(tmp_path):
    """As in MRtrix's own test data."""
    stored = np.arange(24, dtype=">i2")
    path = written(tmp_path / "x.mif", stored.tobytes(), datatype="int16be")
    np.testing.assert_array_equal(read_in_boxes(path)[0], stored.reshape(4, 3, 2).T)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dim": "4,3,1", "layout": "-0,+1,-2"}, "vox in its header is 2,3,nan"),
        ({"dim": "12,1,1", "layout": "-0,-1,+2"}, "vox in its header is 2,3,nan"),
        (
            {"more": "transform: 1,0,0,nan\ntransform: 0,1,0,2\ntransform: 0,0,1,3\n"},
            "the transform in its header",
        ),
        ({"more": "transform: 0,-1,0,5\ntransform: 1,0,0,2\ntransform: 0,0,1,3\n"}, "vox in its header"),
    ],
)
def test_what_makes_no_sense_in_space_is_taken_as_mrtrix_takes_it(changes, word, tmp_path, caplog):
    """Also the direction of an axis of length 1, of which MRtrix has none."""
    path = written(tmp_path / "x.mif", bytes(48), **changes)
    mrconvert(path, tmp_path / "x.nii")
    space = registry.read(path, "x").space
    np.testing.assert_allclose(space.matrix, nibabel.load(tmp_path / "x.nii").affine, atol=1e-4)
    assert word in caplog.text


def test_voxels_in_several_files(tmp_path):
    stored = np.arange(24, dtype=">f4").reshape(4, 3, 2)
    for number in range(4):
        (tmp_path / f"{number}.dat").write_bytes(b"head" + stored[number].tobytes())
    files = "\nfile: ".join(f"{number}.dat 4" for number in range(4))
    path = written(tmp_path / "x.mih", b"", datatype="Float32BE", file=files)
    np.testing.assert_array_equal(read_in_boxes(path, pieces=3)[0], stored.T)
    (tmp_path / "2.dat").unlink()
    with pytest.raises(
        BadInput, match=r"2\.dat: holds the voxels of .*x\.mih, and cannot be read: No such file"
    ):
        registry.read(path, "x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": "2,3,x"}, "dim in its header is '2,3,x', which are no numbers"),
        ({"dim": "2,3,0"}, "gives the sizes 2,3,0, which are none of an image"),
        ({"layout": "+0,+2,+2"}, r"the layout in its header, '\+0,\+2,\+2', is none of 3 axes"),
        ({"datatype": "Colour"}, "voxels of type 'Colour' cannot be read"),
        ({"more": "scaling: 1\n"}, "scaling in its header is '1', and not offset, factor"),
        ({"more": "transform: 1,0,0\n"}, "the transform in its header is not three rows of four numbers"),
        ({"file": ". 20"}, "its header ends at byte [0-9]+, and gives voxels from 20 on"),
        ({"dim": "2,3,5"}, "truncated: 248 bytes where the header promises 260; copy it again"),
        ({"file": "x.dat.gz"}, "its voxels lie in a compressed file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(changes, said, tmp_path):
    path = written(tmp_path / "x.mif", bytes(48), **changes)
    with pytest.raises(BadInput, match=said) as refused:
        registry.read(path, "x")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"mrtrix image\ndim: 2,3", "its header has no END"),
        (b"", "is empty"),
        (b"mrtrix image\nEND\n", "no field 'dim'"),
    ],
)
def test_what_has_no_header_is_refused(content, said, tmp_path):
    (tmp_path / "x.mif").write_bytes(content)
    with pytest.raises(BadInput, match=said):
        registry.read(tmp_path / "x.mif", "x")


def test_a_stream_that_ends_early_is_refused(tmp_path):
    path = written(tmp_path / "x.mif.gz", numbers("int16", (24,)).tobytes())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match="truncated or corrupt gzip"):
        read_in_boxes(path)


# --- FreeSurfer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize("ending", ["mgh", "mgz"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 3)])
def test_images_of_freesurfer(shape, ending, dtype, tmp_path):
    saved = nibabel.MGHImage(numbers(dtype, shape), AFFINE.astype(np.float32))
    nibabel.save(saved, tmp_path / f"x.{ending}")
    values, source = read_in_boxes(tmp_path / f"x.{ending}")
    np.testing.assert_array_equal(values, np.asarray(saved.dataobj))
    np.testing.assert_allclose(source.space.matrix, nibabel.load(tmp_path / f"x.{ending}").affine)
    assert (source.axes, source.parallel) == (("x", "y", "z", "t")[: len(shape)], ending == "mgh")
    assert values.dtype == dtype


@pytest.mark.parametrize("ending", ["mgh", "mgz"])
@pytest.mark.parametrize(
    ("keep", "said"),
    [(0.6, "truncated"), (100, "truncated|no FreeSurfer's MGH that can be read"), (0, "is empty")],
)
def test_images_of_freesurfer_that_are_cut_are_refused(keep, said, ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    nibabel.save(nibabel.MGHImage(numbers("int16", (12, 13, 7)), AFFINE.astype(np.float32)), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(BadInput, match=said) as refused:
        read_in_boxes(path)
    assert "\n" not in str(refused.value)
