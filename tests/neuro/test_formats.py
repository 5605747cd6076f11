"""Every kind of input that is accepted, and what is carried over to the outputs."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from support import warm
from support.subjects import PATIENCE, Subject, path, read, record, tool, write_subject

pytestmark = pytest.mark.tool

#: A filter for a head of few voxels, and a noise level that is not looked for.
FAST = ("--median-radius", 1, "--passes", 2, "--sigma", 20)

AFFINE = np.array([[-1.9, 0.3, 0.2, 12], [0.4, 2.1, -0.3, -17], [0.1, 0.2, 2.8, 4], [0, 0, 0, 1]])
SHAPE = (12, 11, 6, 9)
BVALS = np.array([0.0, *[1000.0] * 8])


def directions():
    bvecs = np.random.default_rng(5).normal(size=(9, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
    bvecs[0] = 0
    return bvecs


def voxels():
    """Return whole numbers from 0 to 250, float64: a ball in noise that every type can hold."""
    rng = np.random.default_rng(6)
    x, y, z = np.indices(SHAPE[:3])
    head = 200.0 * (np.hypot(np.hypot(x - 6, y - 5), 1.7 * (z - 3)) < 4.5)
    signal = head[..., None] * np.exp(-7e-4 * BVALS) + rng.normal(0, 8, (2, *SHAPE))[0]
    return np.clip(np.rint(np.abs(signal)), 0, 250)


def neuro(subject, out, *options, **how):
    return tool("mpiimg-neuro", subject, out, *FAST, *options, **how)


def assert_same_values(out, expected, names=("mask", "denoised", "residual", "fa", "md", "v1", "tensor")):
    for name in names:
        np.testing.assert_array_equal(read(out, name), read(expected, name), err_msg=name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The voxels as float32, little-endian NIfTI-1, and what becomes of them."""
    folder = tmp_path_factory.mktemp("plain")
    subject = write_subject(folder / "in", voxels().astype(np.float32), AFFINE, BVALS, directions())
    return subject, neuro(subject, folder / "out", "--residual")


@pytest.mark.parametrize(
    "dtype, kind, name",
    [
        ("uint8", nibabel.Nifti1Image, "dwi.nii"),
        ("int16", nibabel.Nifti1Image, "dwi.nii.gz"),
        (">i2", nibabel.Nifti1Image, "dwi.nii.gz"),
        ("uint16", nibabel.Nifti1Image, "dwi.nii"),
        (">u2", nibabel.Nifti1Image, "dwi.nii"),
        ("int32", nibabel.Nifti1Image, "dwi.nii.gz"),
        (">f4", nibabel.Nifti1Image, "dwi.nii.gz"),
        ("float64", nibabel.Nifti1Image, "dwi.nii.gz"),
        ("int16", nibabel.Nifti2Image, "dwi.nii.gz"),
        (">f8", nibabel.Nifti2Image, "dwi.nii"),
    ],
)
def test_types_byte_orders_and_both_niftis(plain, tmp_path, dtype, kind, name):
    """Whole numbers mean the same in all of them."""
    subject, expected = plain
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    data = voxels().astype(dtype)
    other = write_subject(
        tmp_path / "in", data, AFFINE, subject.bvals, subject.bvecs, name, kind, header=header
    )
    assert raw_dtype(other) == np.dtype(dtype)
    out = neuro(other, tmp_path / "out", "--residual")
    assert_same_values(out, expected)
    assert type(nibabel.load(path(out, "fa"))) is kind
    np.testing.assert_allclose(nibabel.load(path(out, "fa")).affine, AFFINE, rtol=1e-6)


def raw_dtype(subject):
    """Return the type of the voxels on disk, byte order included."""
    return subject.image.dataobj.dtype


@pytest.mark.parametrize("ranks", [None, 2])
def test_staged_foreign_byte_order(plain, tmp_path, ranks):
    subject, expected = plain
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    other = write_subject(
        tmp_path / "in", voxels().astype(">i2"), AFFINE, subject.bvals, subject.bvecs, header=header
    )
    staged = tmp_path / "dwi.h5"
    warm.run_tool("mpiimg-stage", other.dwi, staged, timeout=PATIENCE, ranks=ranks)
    out = neuro(Subject(staged, subject.bvals, subject.bvecs), tmp_path / "out", "--residual")
    assert_same_values(out, expected)


@pytest.mark.parametrize(
    "dtype, slope, inter", [("int16", 0.25, 10.0), ("uint8", 2.0, -3.0), ("float64", 0.1, 1.0)]
)
def test_scaled_input(tmp_path, dtype, slope, inter):
    """As if nibabel had scaled the voxels, in float64 and rounded once."""
    bvals, bvecs = BVALS, directions()
    scaled = write_subject(tmp_path / "in", voxels().astype(dtype), AFFINE, bvals, bvecs, "dwi.nii")
    raw = bytearray(scaled.dwi.read_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    scaled.dwi.write_bytes(bytes(raw))
    values = scaled.data
    assert values.max() == pytest.approx(voxels().max() * np.float32(slope) + inter)
    kind = np.float64 if dtype == "float64" else np.float32
    unscaled = write_subject(tmp_path / "other", values.astype(kind), AFFINE, bvals, bvecs, "dwi.nii")
    out = neuro(scaled, tmp_path / "out", "--residual")
    assert_same_values(out, neuro(unscaled, tmp_path / "expected", "--residual"))
    header = nibabel.load(path(out, "denoised")).header
    assert header.get_slope_inter() in ((1, 0), (None, None))


def test_header_is_carried_over(tmp_path):
    """Affines, their codes, units and time step; of 3-D maps too, and with a qform that differs."""
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    subject = write_subject(tmp_path / "in", voxels().astype(np.int16), None, BVALS, directions())
    image = nibabel.Nifti1Image(voxels().astype(np.int16), None, header)
    qform = AFFINE.copy()
    qform[:3, 3] += 5
    image.set_qform(qform, 1, strip_shears=True)
    image.set_sform(AFFINE, 4, update_affine=False)
    image.header["pixdim"][4] = 2.2
    image.header["cal_max"] = 77
    nibabel.save(image, subject.dwi)
    given = nibabel.load(subject.dwi).header
    out = neuro(subject, tmp_path / "out", ranks=2)
    for what in ("mask", "denoised", "noise", "fa", "v1", "tensor"):
        header = nibabel.load(path(out, what)).header
        for field in (
            "qform_code",
            "sform_code",
            "srow_x",
            "srow_y",
            "srow_z",
            "quatern_b",
            "quatern_c",
            "quatern_d",
            "qoffset_x",
            "qoffset_y",
            "qoffset_z",
            "xyzt_units",
        ):
            np.testing.assert_array_equal(header[field], given[field], err_msg=f"{field} of {what}")
        np.testing.assert_array_equal(header["pixdim"][:4], given["pixdim"][:4])
        assert header["cal_max"] == 0
    assert nibabel.load(path(out, "denoised")).header["pixdim"][4] == np.float32(2.2)


def test_only_a_qform(plain, tmp_path):
    """v1 and colours turn by the affine of the qform where there is no sform."""
    subject, _ = plain
    image = nibabel.Nifti1Image(voxels().astype(np.float32), None)
    image.set_qform(AFFINE, 1, strip_shears=True)
    image.set_sform(None, 0)
    folder = tmp_path / "in"
    folder.mkdir()
    nibabel.save(image, folder / "dwi.nii")
    by_qform = Subject(folder / "dwi.nii", subject.bvals, subject.bvecs)
    affine = nibabel.load(by_qform.dwi).affine
    by_sform = write_subject(
        tmp_path / "other", voxels().astype(np.float32), affine, subject.bvals, subject.bvecs
    )
    scanner = ("--frame", "scanner")
    out, expected = (
        neuro(by_qform, tmp_path / "out", *scanner),
        neuro(by_sform, tmp_path / "expected", *scanner),
    )
    np.testing.assert_allclose(read(out, "rgb"), read(expected, "rgb"), atol=1e-5)
    np.testing.assert_allclose(read(out, "v1"), read(expected, "v1"), atol=1e-4)


def test_five_dimensions_of_which_the_last_is_one(plain, tmp_path):
    subject, expected = plain
    data = voxels().astype(np.float32)[..., None]
    other = write_subject(tmp_path / "in", data, AFFINE, subject.bvals, subject.bvecs, "dwi.nii")
    assert len(other.image.shape) == 5
    assert_same_values(neuro(other, tmp_path / "out", "--residual"), expected)


def test_bvecs_in_either_orientation_and_layout(plain, tmp_path):
    """Rows of three, commas, blank lines; b-values one a line."""
    subject, expected = plain
    columns = Subject(subject.dwi, tmp_path / "column.bval", tmp_path / "rows.bvec")
    columns.bvals.write_text("".join(f"{b:g}\n" for b in BVALS))
    rows = np.loadtxt(subject.bvecs).T
    columns.bvecs.write_text("\n" + "\n".join(", ".join(f"{x:.9g}" for x in row) for row in rows) + "\n\n")
    out = neuro(columns, tmp_path / "out", "--residual")
    assert_same_values(out, expected)


def test_gradients_are_copied_byte_for_byte(plain, tmp_path):
    subject, _ = plain
    odd = Subject(subject.dwi, tmp_path / "odd.bval", tmp_path / "odd.bvec")
    odd.bvals.write_bytes(b" 0  1e3 " + b"1000.00\t" * 7 + b"\r\n")
    odd.bvecs.write_bytes(subject.bvecs.read_bytes() + b"\n")
    out = neuro(odd, tmp_path / "out")
    assert path(out, "denoised", ".bval").read_bytes() == odd.bvals.read_bytes()
    assert path(out, "denoised", ".bvec").read_bytes() == odd.bvecs.read_bytes()


def test_denoise_takes_gradients_from_beside_the_image(plain, tmp_path):
    """The gradient files of sub-01_dwi.nii.gz are sub-01_dwi.bval and sub-01_dwi.bvec."""
    subject, expected = plain
    (tmp_path / "sub-01_dwi.nii.gz").write_bytes(subject.dwi.read_bytes())
    (tmp_path / "sub-01_dwi.bval").write_bytes(subject.bvals.read_bytes())
    (tmp_path / "sub-01_dwi.bvec").write_bytes(subject.bvecs.read_bytes())
    words = ["--mask", path(expected, "mask"), "--sigma", 20, "--out", tmp_path / "out"]
    warm.run_tool("mpiimg-denoise", tmp_path / "sub-01_dwi.nii.gz", *words, timeout=PATIENCE)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {f"sub-01_desc-denoised_dwi{e}" for e in (".nii.gz", ".json", ".bval", ".bvec")} < names
    np.testing.assert_array_equal(read(tmp_path / "out", "denoised"), read(expected, "denoised"))


def test_nan_and_infinity_are_counted_and_taken_as_zero(plain, tmp_path):
    """In the b0, in the brain and outside it; the run says how many, and results are those of zeros."""
    subject, _ = plain
    data = voxels().astype(np.float32)
    data[6, 5, 3, 0], data[5, 5, 3, 4], data[0, 0, 0, 2] = np.nan, np.inf, -np.inf
    bad = write_subject(tmp_path / "in", data, AFFINE, subject.bvals, subject.bvecs)
    zeros = write_subject(
        tmp_path / "zeros",
        np.where(np.isfinite(data), data, np.float32(0)),
        AFFINE,
        subject.bvals,
        subject.bvecs,
    )
    words = [*bad.arguments, "--out", tmp_path / "out", *FAST, "--residual"]
    done = warm.run_tool("mpiimg-neuro", *words, ranks=2, timeout=PATIENCE)
    assert "warning: " + str(bad.dwi) + ": 3 voxels are NaN or infinite" in done.stderr
    assert any("3 voxels are NaN" in warning for warning in record(tmp_path / "out")["warnings"])
    expected = neuro(zeros, tmp_path / "expected", "--residual")
    assert_same_values(tmp_path / "out", expected)
    assert not any("NaN" in warning for warning in record(expected)["warnings"])


def test_sidecars_say_what_was_done(plain, tmp_path):
    subject, _ = plain
    out = neuro(
        subject,
        tmp_path / "out",
        "--method",
        "ols",
        "--frame",
        "scanner",
        "--tensor-order",
        "fsl",
        "--fit-residual",
    )

    def sidecar(what):
        return json.loads(path(out, what, ".json").read_text())

    for what in ("fa", "md", "ad", "rd", "rgb", "v1", "s0", "tensor", "fit-residual"):
        fields = sidecar(what)
        assert fields["Model"] == "tensor"
        assert fields["Method"] == "ols"
        assert fields["Shells"] == [0, 1000]
        assert fields["Mask"] == "dwi_desc-brain_mask.nii.gz"
        assert fields["Description"]
        assert fields["GeneratedBy"].startswith("mpiimg ")
    assert [sidecar(what)["Units"] for what in ("fa", "md", "s0", "tensor")] == [
        "1",
        "mm^2/s",
        "arbitrary",
        "mm^2/s",
    ]
    assert sidecar("tensor")["Elements"] == ["Dxx", "Dxy", "Dxz", "Dyy", "Dyz", "Dzz"]
    for what in ("tensor", "v1", "rgb"):
        assert "scanner" in sidecar(what)["Frame"]
    assert sidecar("denoised")["NoiseMethod"] == "given"
    assert sidecar("noise")["Sigma"] == [20.0]
    assert (sidecar("mask")["MedianRadius"], sidecar("mask")["MedianRadiusVoxels"]) == ("1", [1, 1, 1])
    assert sidecar("mask")["Method"].startswith("median_otsu")
    assert sidecar("mask")["Voxels"] == int(read(out, "mask").sum())


def test_record_says_how_the_run_went(plain):
    subject, out = plain
    run = record(out)
    assert run["tool"] == "mpiimg-neuro"
    assert run["ranks"] == 1
    assert run["inputs"]["dwi"]["bytes"] == subject.dwi.stat().st_size
    assert run["inputs"]["dwi"]["shape"] == list(SHAPE[::-1])
    assert run["parameters"]["sigma"] == "20"
    assert {"numpy", "numba", "dipy", "h5py", "mpi4py"} <= run["libraries"].keys()
    for entry in run["stages"]:
        assert entry["seconds"] >= 0
        assert entry["peak_rss_per_rank"] > 1 << 20
        assert entry["planned"]["peak_per_rank"] > 0
