"""NIfTI headers and files, changed: mpiimg-neuro runs on them, and what was read is compared with nibabel."""

from __future__ import annotations

import gzip
import os
import struct
import warnings
from pathlib import Path

import nibabel
import numpy as np
from campaigns.fuzzing import Case, Kind, mutation
from hypothesis import strategies as st
from support.subjects import write_subject

from mpiimg.formats.nifti.whole import spans_space

#: Gives back what it is given.
SAME = """
import mpiimg

@mpiimg.udf(over="slabs")
def same(block):
    # No function makes images of this one type.
    return block.astype("int16") if block.dtype == "int8" else block
"""

SHAPE = (10, 9, 6)
AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2, 0, -8], [0, 0, 3, -4], [0, 0, 0, 1]])
BVALS = np.array([0.0, *[1000.0] * 8])


def voxels() -> np.ndarray:
    """Return (x, y, z, volume) int16 of a bright ball in noise."""
    rng = np.random.default_rng(1)
    x, y, z = np.indices(SHAPE)
    ball = 1000.0 * (np.hypot(np.hypot(x - 5, y - 4), 1.5 * (z - 3)) < 4)
    noise = rng.normal(0, 20, (2, *SHAPE, len(BVALS)))
    return np.hypot((ball[..., None] * np.exp(-7e-4 * BVALS)) + noise[0], noise[1]).astype(np.int16)


def directions() -> np.ndarray:
    """Return (9, 3), the first one zero."""
    bvecs = np.random.default_rng(0).normal(size=(len(BVALS), 3))
    bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
    bvecs[0] = 0
    return bvecs


class Image(Case):
    """A small head as dwi.nii.gz, with its gradients."""

    tool = "mpiimg-neuro"
    options = ("--median-radius", 1, "--sigma", 20)

    def __init__(self, folder: Path, sound: Path):
        super().__init__(folder, sound)
        self.dwi = self.inputs / "dwi.nii.gz"
        self.bvals, self.bvecs = self.inputs / "dwi.bval", self.inputs / "dwi.bvec"
        self.level = 6

    @classmethod
    def prepare(cls, folder: Path) -> None:
        write_subject(folder / "in", voxels(), AFFINE, BVALS, directions())
        (folder / "in" / "same.py").write_text(SAME)

    def command(self) -> list:
        gradients = ("--bvals", self.bvals, "--bvecs", self.bvecs)
        return [self.dwi, *gradients, "--out", self.out, *self.options]

    def bytes(self) -> bytearray:
        """The image, uncompressed."""
        data = self.dwi.read_bytes()
        return bytearray(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)

    def put(self, data: bytes) -> None:
        """Write the image, compressed where its name says so."""
        if self.dwi.suffix == ".gz":
            data = gzip.compress(bytes(data), self.level, mtime=0)
        self.dwi.write_bytes(data)

    def field(self, kind: str, offset: int, *values) -> None:
        """Set a field of the header, of a struct's kind."""
        data = self.bytes()
        struct.pack_into(kind, data, offset, *values)
        self.put(data)

    def save(self, data, affine=AFFINE, kind=nibabel.Nifti1Image, change=None) -> None:
        """Write another image, after `change(image)`."""
        image = kind(data, affine, dtype=data.dtype)
        if change:
            change(image)
        nibabel.save(image, self.dwi)

    def rename(self, name: str) -> None:
        self.dwi = self.dwi.rename(self.inputs / name)

    def check_reading(self) -> None:
        """A function that gives back what it is given was given what nibabel reads, at the same place."""
        made = self.folder / "out" / "read.nii.gz"
        done, told = self.run("mpiimg-run", "--udf", f"{self.inputs / 'same.py'}:same", self.dwi, made)
        assert done.returncode == 0, told
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            expected, read = nibabel.load(self.dwi), nibabel.load(made)
            values, ours = np.asarray(expected.dataobj), np.asarray(read.dataobj)
            if values.dtype == np.float64 and ours.dtype == np.float32:
                np.testing.assert_allclose(ours, values.astype(np.float32), rtol=3e-7, err_msg=told)
            else:
                np.testing.assert_array_equal(ours, values, err_msg=told)
        if spans_space(expected.affine):
            np.testing.assert_allclose(read.affine, expected.affine, rtol=1e-6, atol=1e-6, err_msg=told)
        else:
            assert spans_space(read.affine) and "warning" in done.stderr, told


floats = st.floats(allow_nan=True, allow_infinity=True, width=32)


def odd_floats() -> st.SearchStrategy:
    return st.sampled_from([0.0, -1.0, np.nan, np.inf, -np.inf, 3.4e38, 1e-40, -2.0])


# --- neutral ------------------------------------------------------------------------------------------------


@mutation(Image, Kind.NEUTRAL)
def compressed_otherwise(it, draw):
    """Another level, several members, a name in the header."""
    data, cut = bytes(it.bytes()), draw(st.integers(1, 2000))
    level = draw(st.integers(0, 9))
    parts = [data[:cut], data[cut:]] if draw(st.booleans()) else [data]
    it.dwi.write_bytes(b"".join(gzip.compress(part, level, mtime=7) for part in parts))


@mutation(Image, Kind.NEUTRAL)
def not_compressed(it, draw):
    data = it.bytes()
    it.dwi.unlink()
    it.dwi = it.inputs / "dwi.nii"
    it.put(data)


@mutation(Image, Kind.NEUTRAL)
def other_byte_order(it, draw):
    image = nibabel.load(it.dwi, mmap=False)
    data = np.asarray(image.dataobj)
    header = image.header.as_byteswapped(">")
    swapped = nibabel.Nifti1Image(data, None, header)
    swapped.header.set_data_dtype(">i2")
    nibabel.save(swapped, it.dwi)


@mutation(Image, Kind.NEUTRAL)
def gone_round_a_link(it, draw):
    real = it.dwi.rename(it.inputs / "elsewhere.nii.gz")
    it.dwi.symlink_to(real.name if draw(st.booleans()) else real)


# --- valid --------------------------------------------------------------------------------------------------


@mutation(Image, Kind.VALID)
def another_pixdim(it, draw):
    it.field("<3f", 80, *(draw(st.floats(0.25, 16, width=32)) for _ in range(3)))


@mutation(Image, Kind.VALID)
def another_sform(it, draw):
    number = st.floats(-8, 8, width=32)
    matrix = np.diag([2.0, -3, 4]) + 0.1 * np.reshape([draw(number) for _ in range(9)], (3, 3))
    offsets = [draw(st.floats(-500, 500, width=32)) for _ in range(3)]
    it.field("<12f", 280, *np.hstack([matrix, np.reshape(offsets, (3, 1))]).ravel())
    it.field("<h", 254, draw(st.integers(1, 4)))


@mutation(Image, Kind.VALID)
def another_qform_alone(it, draw):
    it.field("<2h", 252, draw(st.integers(1, 4)), 0)
    it.field("<6f", 256, *(draw(st.floats(-0.5, 0.5, width=32)) for _ in range(6)))
    it.field("<f", 76, draw(st.sampled_from([-1.0, 1.0])))


@mutation(Image, Kind.VALID)
def no_form_at_all(it, draw):
    it.field("<2h", 252, 0, 0)


@mutation(Image, Kind.VALID)
def another_scaling(it, draw):
    slope = draw(st.floats(0.125, 64, width=32))
    it.field("<2f", 112, slope, draw(st.floats(-100, 100, width=32)))


@mutation(Image, Kind.VALID)
def scaling_that_says_nothing(it, draw):
    """A slope that is zero or no number means that there is none, whatever the intercept is."""
    slope = draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    it.field("<2f", 112, slope, draw(st.floats(-100, 100, width=32)))


@mutation(Image, Kind.VALID)
def another_type(it, draw):
    kind = draw(st.sampled_from(["u1", "i1", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]))
    data = voxels()
    it.save(
        np.clip(data, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
        if kind[0] in "iu"
        else data.astype(kind)
    )


@mutation(Image, Kind.VALID)
def units_and_times(it, draw):
    it.field("<B", 123, draw(st.sampled_from([0, 1, 2, 3, 10, 18, 26])))
    it.field("<f", 92, draw(st.floats(0, 100, width=32)))
    it.field("<f", 136, draw(st.floats(0, 100, width=32)))


@mutation(Image, Kind.VALID)
def display_range(it, draw):
    it.field("<2f", 124, draw(floats), draw(floats))
    it.field("<2i", 140, draw(st.integers(-9, 9)), draw(st.integers(-9, 9)))


@mutation(Image, Kind.VALID)
def words_that_nobody_reads(it, draw):
    """ANALYZE's fields, the description, the name of another file, that of the intent: any bytes."""
    for offset, size in ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)):
        it.field(f"{size}s", offset, draw(st.binary(max_size=size)))


@mutation(Image, Kind.VALID)
def an_extension(it, draw):
    content = draw(st.binary(max_size=300))
    it.save(voxels(), change=lambda i: i.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, content)))


@mutation(Image, Kind.VALID)
def nifti_2(it, draw):
    it.save(voxels(), kind=nibabel.Nifti2Image)


@mutation(Image, Kind.VALID)
def more_after_the_voxels(it, draw):
    it.put(bytes(it.bytes()) + draw(st.binary(min_size=1, max_size=64)))


# --- damaging -----------------------------------------------------------------------------------------------


@mutation(Image, Kind.DAMAGING)
def cut_short(it, draw):
    data = it.bytes()
    it.put(data[: draw(st.integers(0, len(data) - 1))])


@mutation(Image, Kind.DAMAGING)
def cut_short_compressed(it, draw):
    data = it.dwi.read_bytes()
    it.dwi.write_bytes(data[: draw(st.integers(0, len(data) - 1))])
    return ("dwi.nii.gz",)


@mutation(Image, Kind.DAMAGING)
def no_nifti(it, draw):
    it.put(draw(st.binary(max_size=1000)))


@mutation(Image, Kind.DAMAGING)
def more_promised_than_there(it, draw):
    """Up to 32,767 voxels along an axis, which would inflate for minutes, and take terabytes."""
    axis = draw(st.integers(0, 3))
    it.field("<h", 42 + 2 * axis, draw(st.integers((*SHAPE, len(BVALS))[axis] + 1, 32767)))


@mutation(Image, Kind.DAMAGING)
def everything_promised(it, draw):
    it.field("<3h", 42, *(draw(st.integers(20000, 32767)) for _ in range(3)))


@mutation(Image, Kind.DAMAGING)
def a_shape_that_makes_no_sense(it, draw):
    it.field("<h", 42 + 2 * draw(st.integers(0, 3)), draw(st.integers(-32768, 0)))


@mutation(Image, Kind.DAMAGING)
def a_number_of_axes_that_makes_no_sense(it, draw):
    it.field("<h", 40, draw(st.integers(-32768, 2) | st.integers(8, 32767)))


@mutation(Image, Kind.DAMAGING)
def scaling_that_is_no_number(it, draw):
    it.field("<2f", 112, 2.0, draw(st.sampled_from([np.inf, -np.inf, np.nan])))


@mutation(Image, Kind.DAMAGING)
def an_affine_that_is_no_number(it, draw):
    it.field("<f", 280 + 4 * draw(st.integers(0, 11)), draw(st.sampled_from([np.nan, np.inf, -np.inf])))


@mutation(Image, Kind.DAMAGING)
def no_file_of_its_kind(it, draw):
    """A folder, a pipe that nobody writes to, a link that leads to itself or nowhere."""
    it.dwi.unlink()
    make = {
        "folder": lambda: it.dwi.mkdir(),
        "pipe": lambda: os.mkfifo(it.dwi),
        "loop": lambda: it.dwi.symlink_to(it.dwi),
        "nowhere": lambda: it.dwi.symlink_to("nowhere"),
    }
    make[draw(st.sampled_from(sorted(make)))]()
    return ("dwi.nii.gz",)


# --- any ----------------------------------------------------------------------------------------------------


@mutation(Image, Kind.ANY)
def bytes_of_the_header(it, draw):
    data = it.bytes()
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.integers(0, 351))] = draw(st.integers(0, 255))
    it.put(data)


@mutation(Image, Kind.ANY)
def an_odd_number_in_a_field(it, draw):
    """Of floats: pixdim, vox_offset, scaling, quaternion, offsets, srow."""
    offset = draw(st.sampled_from([76, 80, 84, 88, 92, 108, 112, 116, *range(256, 328, 4)]))
    it.field("<f", offset, draw(odd_floats()))


@mutation(Image, Kind.ANY)
def an_affine_without_a_volume(it, draw):
    it.field("<12f", 280, *draw(st.sampled_from([[0.0] * 12, [1.0] * 12, [1e-30] * 12, [2.0, 0, 0, 0] * 3])))


@mutation(Image, Kind.ANY)
def odd_voxels(it, draw):
    data = voxels().astype(np.float32)
    for _ in range(draw(st.integers(1, 9))):
        data[tuple(draw(st.integers(0, n - 1)) for n in data.shape)] = draw(odd_floats())
    it.save(data)


@mutation(Image, Kind.ANY)
def voxels_all_odd(it, draw):
    it.save(np.full((*SHAPE, len(BVALS)), draw(odd_floats()), np.float32))


@mutation(Image, Kind.ANY)
def other_sizes(it, draw):
    """Of one voxel, slice or row."""
    shape = tuple(draw(st.sampled_from([1, 2, n])) for n in SHAPE)
    it.save(voxels()[tuple(slice(n) for n in shape)])


@mutation(Image, Kind.ANY)
def an_odd_name(it, draw):
    odd = [
        "a b",
        "\x1b[31mred",
        "two\nlines",
        "über",
        "-dash",
        "..",
        "a;b",
        "$HOME",
        "%s",
        "x" * 200,
        "\x07",
        "{}",
    ]
    it.rename(draw(st.sampled_from(odd)) + draw(st.sampled_from(["", "_dwi"])) + ".nii.gz")
