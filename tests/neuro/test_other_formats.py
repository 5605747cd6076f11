"""Images of MRtrix, FreeSurfer and in two files, as the tools of neuro read them: as their NIfTI."""

from __future__ import annotations

import subprocess

import nibabel
import numpy as np
import pytest
from support import warm
from support.subjects import Subject, digests, neuro, read, tool, write_subject

from mpiimg.engine.boxes import box_slices
from mpiimg.engine.needs import Chunk
from mpiimg.errors import BadInput
from mpiimg.neuro.images import lay_out
from mpiimg.neuro.nifti import Voxels, open_image, output_header, same_space

AFFINE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.1, -0.2, 0.05) @ np.diag([-2.0, 2, 3]), [9, -8, -4]
)
VALUES = np.random.default_rng(0).normal(0, 900, (5, 6, 7, 4)).astype(np.float32)
BVALS = np.array([0.0, *[1000.0] * 7])

#: Volumes last or first in the file, axes of space swapped, run backwards.
STRIDES = ["1,2,3,4", "-1,2,3,4", "-1,-2,3,4", "2,3,4,1", "-2,3,1,4", "3,1,4,2", "2,-3,-4,1"]


def mrconvert(*words):
    subprocess.run(["mrconvert", "-quiet", "-force", *map(str, words)], check=True)


def everything(image) -> np.ndarray:
    """Return the voxels of an image as a run has them: read as they lie, and laid out where that differs."""
    voxels = Voxels(image, "dwi")
    box = tuple((0, n) for n in voxels.array.shape)
    if not voxels.parallel:
        halves = [((0, 1), *box[1:]), ((1, box[0][1]), *box[1:])]
        return np.concatenate(list(voxels.blocks(iter(halves))))
    block = voxels.open().read(box)
    assert block.dtype.name == voxels.array.dtype and block.shape == voxels.array.shape
    if voxels.array.name == "dwi":
        return block
    stage, out = lay_out(voxels.array, voxels.laid_out), np.empty(image.shape, image.native)
    for number in range(len(stage.grid)):
        chunk = Chunk.of(stage.grid, number)
        part = block[box_slices(voxels.array.part(chunk.bounds))]
        (out[box_slices(voxels.laid_out.part(chunk.bounds))],) = stage.work(chunk, part)
    return out


def assert_same(image, nifti):
    """Assert that an image is read as its NIfTI is."""
    assert image.shape == nifti.shape and same_space(image, nifti) is None
    np.testing.assert_allclose(image.affine, nifti.affine, atol=1e-4)
    np.testing.assert_array_equal(image.scaled(everything(image)), nifti.scaled(everything(nifti)))
    middle = tuple((n // 2, n // 2 + 1) for n in image.shape)
    if image.parallel:
        np.testing.assert_array_equal(image.open().read(middle), nifti.open().read(middle))
    assert not image.words


@pytest.fixture
def source(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VALUES, AFFINE), tmp_path / "source.nii")
    return tmp_path / "source.nii"


@pytest.mark.needs_mrtrix
@pytest.mark.parametrize("strides", STRIDES)
def test_a_mif_in_any_order_is_read_as_the_nifti_of_mrconvert(strides, source, tmp_path):
    mrconvert(source, tmp_path / "x.mif", "-strides", strides)
    mrconvert(tmp_path / "x.mif", tmp_path / "x.nii")
    assert_same(open_image(tmp_path / "x.mif", 4), open_image(tmp_path / "x.nii", 4))


@pytest.mark.needs_mrtrix
@pytest.mark.parametrize("datatype", ["bit", "int16be", "float64le"])
def test_types_of_a_mif(datatype, source, tmp_path):
    for ending in ("mif", "mif.gz", "mih"):
        mrconvert(source, tmp_path / f"x.{ending}", "-strides", "-1,2,3,4", "-datatype", datatype)
        mrconvert(tmp_path / f"x.{ending}", tmp_path / "x.nii")
        image = open_image(tmp_path / f"x.{ending}", 4)
        assert image.parallel == (ending != "mif.gz") and image.stem == "x"
        assert_same(image, open_image(tmp_path / "x.nii", 4))


@pytest.mark.needs_mrtrix
def test_a_compressed_mif_whose_volumes_do_not_follow_each_other_is_refused_with_the_command(
    source, tmp_path
):
    mrconvert(source, tmp_path / "x.mif.gz", "-strides", "2,3,4,1")
    with pytest.raises(BadInput, match=r"convert it: mrconvert x\.mif\.gz x\.nii$"):
        open_image(tmp_path / "x.mif.gz", 4)


@pytest.mark.needs_mrtrix
def test_a_mask_has_three_axes_or_a_fourth_of_length_1(source, tmp_path):
    for name, words in (("a.mif", ["-coord", 3, 0]), ("b.mif", ["-coord", 3, 0, "-axes", "0,1,2"])):
        mrconvert(source, tmp_path / name, *words, "-datatype", "bit")
        mrconvert(tmp_path / name, tmp_path / "x.nii")
        image = open_image(tmp_path / name, 3)
        assert len(image.shape) == 3 and image.native == "uint8"
        assert_same(image, open_image(tmp_path / "x.nii", 3))


@pytest.mark.needs_mrtrix
@pytest.mark.tool
def test_gradients_in_the_header_are_offered_in_scanner_axes(source, tmp_path):
    table = [[0, 0, 0, 0], [1, 0, 0, 1000], [0, 0.6, 0.8, 2000], [0, 0, -1, 700]]
    np.savetxt(tmp_path / "grad.b", table)
    mrconvert(source, tmp_path / "x.mif", "-grad", tmp_path / "grad.b")
    image = open_image(tmp_path / "x.mif", 4)
    np.testing.assert_allclose(image.dw_scheme, table, atol=1e-6)
    assert open_image(source, 4).dw_scheme == ()
    warm.run_tool("mpiimg-stage", tmp_path / "x.mif", tmp_path / "staged.h5")
    assert open_image(tmp_path / "staged.h5", 4).dw_scheme == image.dw_scheme


@pytest.mark.parametrize("ending", ["mgh", "mgz", "img", "hdr"])
def test_images_of_freesurfer_and_in_two_files(ending, source, tmp_path):
    kind = nibabel.Nifti1Pair if ending in ("img", "hdr") else nibabel.MGHImage
    nibabel.save(kind(VALUES, AFFINE), tmp_path / f"x.{'img' if ending == 'hdr' else ending}")
    image = open_image(tmp_path / f"x.{ending}", 4)
    assert image.parallel == (ending != "mgz") and image.stem == "x"
    assert_same(image, open_image(source, 4))
    assert {path.suffix for path in image.files} == (
        {".img", ".hdr"} if kind is nibabel.Nifti1Pair else {f".{ending}"}
    )


def test_an_axis_that_is_too_long_for_nifti_1_makes_results_of_nifti_2(tmp_path):
    header = "mrtrix image\ndim: 40000,2,2\nvox: 2,2,2\nlayout: +0,+1,+2\ndatatype: UInt8\nfile: . 200\nEND\n"
    (tmp_path / "x.mif").write_bytes(header.encode().ljust(200, b"\0") + bytes(160000))
    image = open_image(tmp_path / "x.mif", 3)
    result = nibabel.Nifti2Header(output_header(image, 3, "float32", "")[:540])
    assert result.get_data_shape() == (40000, 2, 2, 3)
    np.testing.assert_allclose(result.get_best_affine(), image.affine)


def test_an_array_without_a_place_in_space_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    with pytest.raises(BadInput, match=r"x\.npy: this image does not say where its voxels lie in space"):
        open_image(tmp_path / "x.npy", 4)


@pytest.mark.needs_mrtrix
@pytest.mark.tool
def test_mask_and_maps_of_a_mif_are_those_of_its_nifti(tmp_path):
    """By the whole tool, with volumes that lie together in the file; also staged."""
    rng = np.random.default_rng(1)
    bvecs = rng.normal(size=(len(BVALS), 3))
    bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
    bvecs[0] = 0
    x, y, z = np.indices((10, 9, 8))
    head = 1000.0 * (np.hypot(np.hypot(x - 5, y - 4), 1.5 * (z - 3)) < 4)
    signal = head[..., None] * np.exp(-BVALS * (3e-4 + 8e-4 * bvecs[:, 0] ** 2))
    data = np.hypot(signal + rng.normal(0, 20, signal.shape), rng.normal(0, 20, signal.shape))
    made = write_subject(tmp_path / "in", data.astype(np.int16), AFFINE, BVALS, bvecs, name="a.nii")
    grad = ("-fslgrad", made.bvecs, made.bvals)
    mif, nifti = tmp_path / "in" / "dwi.mif", tmp_path / "nii" / "dwi.nii"
    nifti.parent.mkdir()
    mrconvert(made.dwi, mif, *grad, "-strides", "-2,3,4,1")
    tables = (nifti.with_suffix(".bval"), nifti.with_suffix(".bvec"))
    mrconvert(mif, nifti, "-export_grad_fsl", tables[1], tables[0])
    options = ("--median-radius", 1, "--sigma", 20)
    expected = neuro(Subject(nifti, *tables), tmp_path / "a", *options)
    out = neuro(Subject(mif, *tables), tmp_path / "b", *options, ranks=2)
    for what in ("mask", "denoised", "fa", "md", "v1"):
        np.testing.assert_array_equal(read(out, what), read(expected, what))
    warm.run_tool("mpiimg-stage", mif, tmp_path / "dwi.h5")
    staged = neuro(Subject(tmp_path / "dwi.h5", *tables), tmp_path / "c", *options)
    images = {name: digest for name, digest in digests(staged).items() if name.endswith(".nii.gz")}
    assert images == {name: digest for name, digest in digests(out).items() if name.endswith(".nii.gz")}
    mask = tmp_path / "mask.mif"
    mrconvert(out / "dwi_desc-brain_mask.nii.gz", mask, "-datatype", "bit")
    given = tool("mpiimg-fit", Subject(mif, *tables), tmp_path / "d", "--mask", mask)
    # The gradients of its header stand for tables.
    alone = (tmp_path / "alone").with_suffix(".mif")
    alone.write_bytes(mif.read_bytes())
    warm.run_tool("mpiimg-fit", alone, "--mask", mask, "--out", tmp_path / "e")
    assert read(given, "fa").any()
    np.testing.assert_allclose(read(tmp_path / "e", "fa"), read(given, "fa"), atol=1e-5)
