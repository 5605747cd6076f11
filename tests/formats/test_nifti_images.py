"""NIfTI beside nibabel: spaces, scaling, types, and what is refused."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from support.peers import numbers, read_in_boxes, write_alone

from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.space import Affine

AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.1, 2.1, 0, -40], [0, 0, 2.2, 5], [0, 0, 0, 1]])
#: Of voxels.
LENGTHS = np.sqrt((AFFINE[:3, :3] ** 2).sum(axis=0))

SHAPE = (6, 5, 4, 3)


def save(path, values, codes=(1, 1), qform=None, **fields):
    """Write an image with these codes, which nibabel would change where the affines differ."""
    image = nibabel.Nifti1Image(values, AFFINE, dtype=values.dtype)
    image.set_qform(AFFINE if qform is None else qform, 1)
    image.set_sform(AFFINE, 1)
    image.header.set_xyzt_units("mm", "sec")
    for field, value in fields.items():
        image.header[field] = value
    nibabel.save(image, path)
    patched(path, 252, np.array(codes, "<i2"))
    return path


def patched(path, place, data):
    """Put bytes into the header of a file."""
    path = path.with_suffix(".hdr") if path.suffix == ".img" else path
    raw = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    raw[place : place + data.nbytes] = data.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def space_of(path):
    return registry.read(path, "values").space


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".img", ".hdr"])
@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 4), (0, 0)])
def test_the_affine_is_that_of_nibabel_and_is_written_as_it_was(ending, codes, tmp_path):
    values = numbers("int16", SHAPE)
    path = save(tmp_path / f"a{ending}", values, codes, pixdim=[1, *LENGTHS, 2.5, 1, 1, 1])
    source = registry.read(path, "values")
    image = nibabel.load(path)
    np.testing.assert_allclose(source.space.matrix, image.affine, rtol=1e-6, atol=1e-6)
    assert (source.space.codes, source.space.units) == (codes, ("mm", "sec"))
    assert source.axes == ("x", "y", "z", "t") and source.array.axes == ("t", "z", "y", "x")
    assert source.space.steps == (("t", 2.5, 0.0),)
    again = write_alone(tmp_path, "again.nii.gz", values, source.axes, space=source.space)
    image, written = nibabel.load(path), nibabel.load(again)
    np.testing.assert_allclose(written.affine, image.affine, rtol=1e-6, atol=1e-6)
    assert [int(written.header[one]) for one in ("qform_code", "sform_code")] == list(codes)
    np.testing.assert_allclose(written.header.get_zooms(), image.header.get_zooms(), rtol=1e-6)
    assert written.header.get_xyzt_units() == ("mm", "sec")
    if codes[0]:
        np.testing.assert_allclose(written.get_qform(), image.get_qform(), rtol=1e-5, atol=1e-5)


def test_a_qform_of_its_own_is_kept(tmp_path):
    other = np.diag([2.0, 2, 2, 1]) + np.eye(4, k=3) * 7
    path = save(tmp_path / "a.nii", numbers("int16", SHAPE[:3]), (1, 2), qform=other)
    space = space_of(path).taken("x", 3)
    image = nibabel.load(
        write_alone(tmp_path, "b.nii", numbers("int16", (3, 5, 4)), ("x", "y", "z"), space=space)
    )
    np.testing.assert_allclose(image.get_qform(), other + np.eye(4, k=3) * 6, atol=1e-5)
    np.testing.assert_allclose(image.get_sform()[:, 3], AFFINE @ [3, 0, 0, 1], rtol=1e-6)


def test_slices_are_those_of_nibabel(tmp_path):
    values = numbers("float32", SHAPE)
    path = save(tmp_path / "a.nii", values)
    theirs = nibabel.load(path).slicer[5::-2, 1:, 2:3, 1:]
    space = space_of(path).taken("x", 5, -2).taken("y", 1).taken("z", 2).taken("t", 1)
    ours = nibabel.load(
        write_alone(tmp_path, "b.nii", values[::-2, 1:, 2:3, 1:], ("x", "y", "z", "t"), space=space)
    )
    np.testing.assert_allclose(ours.affine, theirs.affine, rtol=1e-6)
    # One slice of z: it has its place again.
    flat = values[::-2, 1:, 2, 1:]
    space = space_of(path).taken("x", 5, -2).taken("y", 1).without("z", 2)
    ours = nibabel.load(write_alone(tmp_path, "c.nii", flat, ("x", "y", "t"), space=space))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.affine, theirs.affine, rtol=1e-6)
    np.testing.assert_array_equal(ours.dataobj[:, :, 0], flat)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64", "complex64"])
@pytest.mark.parametrize(("slope", "inter"), [(2.5, -3.0), (1.0, 0.5)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_scaled_values_are_those_of_nibabel(dtype, slope, inter, ending, tmp_path):
    values = numbers(dtype, SHAPE)
    path = save(tmp_path / f"a{ending}", values)
    patched(path, 112, np.array([slope, inter], "<f4"))
    back, _ = read_in_boxes(path)
    theirs = np.asanyarray(nibabel.load(path).dataobj)
    wide = {"float64": "float64", "complex64": "complex64"}.get(dtype, "float32")
    assert back.dtype == wide
    np.testing.assert_allclose(back, theirs.astype(wide), rtol=2e-7)


def test_others_orders_extensions_and_kinds(tmp_path):
    """Big-endian voxels, headers with extensions, NIfTI-2, five axes, and gzip by what it is."""
    values = numbers("float32", (2, 3, 4, 1, 3))
    image = nibabel.Nifti2Image(values, AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a word" * 9))
    nibabel.save(image, tmp_path / "a.nii")
    back, source = read_in_boxes(tmp_path / "a.nii")
    assert source.axes == ("x", "y", "z", "t", "u")
    np.testing.assert_array_equal(back, values)
    swapped = nibabel.Nifti1Image(values.astype(">f4"), AFFINE, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(swapped, tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes()[:4] == b"\0\0\1\\"
    np.testing.assert_array_equal(read_in_boxes(tmp_path / "b.nii")[0], values)
    (tmp_path / "c.nii").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    back, source = read_in_boxes(tmp_path / "c.nii")
    assert not source.parallel
    np.testing.assert_array_equal(back, values)


def test_what_is_written_without_a_space_has_none(tmp_path):
    for axes, shape in ((("x", "y"), (3, 4)), (("z", "y", "x"), (4, 3, 2)), (("a", "b", "c"), (2, 3, 4))):
        values = numbers("float32", shape)
        image = nibabel.load(write_alone(tmp_path, "a.nii", values, axes))
        named = axes == ("z", "y", "x")
        assert image.shape == (shape[::-1] if named else shape)
        assert [int(image.header[one]) for one in ("qform_code", "sform_code")] == [0, 0]
        np.testing.assert_array_equal(image.header.get_sform(), np.eye(4))
    image = nibabel.load(write_alone(tmp_path, "a.nii", numbers("float32", (2, 3, 5)), ("c", "x", "z")))
    assert image.shape == (3, 1, 5, 2)


def test_types_that_nifti_does_not_have(tmp_path, caplog):
    space = Affine(("x", "y", "z"), AFFINE, codes=(0, 1))
    flags = numbers("bool", (3, 4, 2))
    image = nibabel.load(write_alone(tmp_path, "a.nii.gz", flags, ("x", "y", "z"), space=space))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.dataobj, flags)
    halves = numbers("float16", (3, 4, 2))
    image = nibabel.load(write_alone(tmp_path, "b.nii", halves, ("x", "y", "z"), space=space))
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.dataobj, halves)
    assert "b.nii: NIfTI has no float16" in caplog.text
    with pytest.raises(BadInput, match=r"^c\.nii: has 8 axes as a NIfTI"):
        write_alone(tmp_path, "c.nii", numbers("float32", (1,) * 6), ("x", "a", "b", "c", "d", "e"))


def test_long_axes_make_a_nifti_2(tmp_path):
    values = numbers("uint8", (40000, 2))
    image = nibabel.load(write_alone(tmp_path, "a.nii", values, ("x", "y")))
    assert isinstance(image, nibabel.Nifti2Image)
    np.testing.assert_array_equal(image.dataobj, values)


def rgb(path):
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE), path
    )


def analyze(path):
    nibabel.save(nibabel.AnalyzeImage(np.zeros((2, 3, 4), np.int16), AFFINE), path.with_suffix(".img"))


def alone(path):
    nibabel.save(nibabel.Nifti1Pair(np.zeros((2, 3, 4), np.int16), AFFINE), path)
    path.with_suffix(".img").unlink()


def no_axes(path):
    save(path, numbers("int16", SHAPE))
    patched(path, 44, np.array([0], "<i2"))


@pytest.mark.parametrize(
    ("spoil", "name", "said"),
    [
        (rgb, "a.nii", "its voxels are colours (R G B); convert it to numbers"),
        (analyze, "a.hdr", "Analyze 7.5, which does not say left from right"),
        (alone, "a.hdr", "a.img is not beside it"),
        (no_axes, "a.nii", "there is nothing in it"),
    ],
)
def test_what_is_no_image_of_numbers_is_refused_in_one_line(spoil, name, said, tmp_path):
    spoil(tmp_path / name)
    with pytest.raises(BadInput) as refused:
        registry.read(tmp_path / name, "values")
    assert str(refused.value).startswith(str(tmp_path / name)) and said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_affine_that_makes_no_sense_is_left_out_with_a_word(tmp_path, caplog):
    path = save(tmp_path / "a.nii", numbers("int16", SHAPE), (0, 1))
    patched(path, 280, np.full(12, np.nan, "<f4"))
    assert space_of(path).codes == (0, 0)
    assert "a.nii: qform and sform in the header do not say where the voxels lie" in caplog.text


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_an_affine_that_no_nifti_can_have_is_refused_before_the_run(ending, tmp_path):
    space = Affine(("x", "y", "z"), np.zeros((4, 4)), codes=(0, 1))
    with pytest.raises(BadInput, match=f"^a{ending}: its affine is not one of voxels"):
        write_alone(tmp_path, f"a{ending}", numbers("float32", (3, 4, 2)), ("x", "y", "z"), space=space)
