"""Bad input: one line that says what is wrong, where, and what to do; exit 2; nothing left behind."""

from __future__ import annotations

import gzip
import os

import h5py
import nibabel
import numpy as np
import pytest
from support import launch, warm
from support.spoilt import Cases, snapshot
from support.subjects import PATIENCE, Subject, write_subject

from mpiimg.engine.plan import Resources, check
from mpiimg.engine.staged_file import dataset_offset
from mpiimg.errors import BadInput
from mpiimg.neuro import nifti
from mpiimg.tools.registry import tool

pytestmark = pytest.mark.tool

AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2, 0, -8], [0, 0, 3, -4], [0, 0, 0, 1]])
SHAPE = (10, 9, 6)
BVALS = np.array([0.0, *[1000.0] * 8])


def directions() -> np.ndarray:
    """Return unit vectors (9, 3), the first one zero."""
    bvecs = np.random.default_rng(0).normal(size=(len(BVALS), 3))
    bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
    bvecs[0] = 0
    return bvecs


def voxels() -> np.ndarray:
    """Return (x, y, z, volume) int16 of a bright ball in noise."""
    rng = np.random.default_rng(1)
    x, y, z = np.indices(SHAPE)
    head = 1000.0 * (np.hypot(np.hypot(x - 5, y - 4), 1.5 * (z - 3)) < 4)
    signal = head[..., None] * np.exp(-7e-4 * BVALS)
    noise = rng.normal(0, 20, (2, *signal.shape))
    return np.hypot(signal + noise[0], noise[1]).astype(np.int16)


class Case:
    """A sound subject in a folder of its own, to spoil, and the command line to run on it."""

    def __init__(self, folder):
        self.folder = folder / "in"
        self.out = folder / "out"
        self.subject = write_subject(self.folder, voxels(), AFFINE, BVALS, directions())
        self.tool = "mpiimg-neuro"
        self.options = ["--median-radius", 1, "--sigma", 20]

    @property
    def command(self) -> list:
        if self.tool == "mpiimg-stage":
            return [self.subject.dwi, self.out / "staged.h5"]
        return [*self.subject.arguments, "--out", self.out, *self.options]

    def image(self, data, affine=AFFINE, name="dwi.nii.gz", kind=nibabel.Nifti1Image):
        """Write another image in the place of the subject's, or beside it."""
        nibabel.save(kind(data, affine), self.folder / name)
        return self.folder / name

    def dwi(self, path):
        """Use another image."""
        self.subject = Subject(path, self.subject.bvals, self.subject.bvecs)

    def bytes(self) -> bytes:
        """The image, uncompressed."""
        return gzip.decompress(self.subject.dwi.read_bytes())

    def table(self, bvals=BVALS, bvecs=None):
        """Write another gradient table."""
        np.savetxt(self.subject.bvals, np.atleast_2d(bvals), fmt="%g")
        np.savetxt(self.subject.bvecs, directions().T if bvecs is None else bvecs, fmt="%.9g")

    def mask(self, data, affine=AFFINE):
        """Give a mask."""
        self.options += ["--mask", self.image(np.asarray(data, np.uint8), affine, "brain.nii.gz")]


class Beside(Subject):
    """A subject whose tables are found beside its image."""

    @property
    def arguments(self) -> list:
        return [self.dwi]


CASES = Cases()
case = CASES.case


@case("nowhere.nii.gz", "No such file")
def missing_image(it):
    it.dwi(it.folder / "nowhere.nii.gz")


@case("dwi.nii.gz", "is a text, and no image", "'this is not an image")
def text_file(it):
    it.subject.dwi.write_text("this is not an image\n" * 100)


@case("dwi.nii.gz", "is empty (0 bytes)", "download it again")
def empty_file(it):
    it.subject.dwi.write_bytes(b"")


@case("dwi.nii.gz", "is a text, and no image")
def compressed_text(it):
    it.subject.dwi.write_bytes(gzip.compress(b"this is not an image\n" * 100))


@case("dwi.nii.gz", "truncated", "copy it again")
def header_cut_short(it):
    it.subject.dwi.write_bytes(it.subject.dwi.read_bytes()[:40])


@case("dwi.nii.gz", "is the header of a NIfTI in two files")
def nifti_pair(it):
    header = bytearray(it.bytes())
    header[344:348] = b"ni1\0"
    it.subject.dwi.write_bytes(gzip.compress(bytes(header)))


@case("dwi.nii.gz", "truncated", "gzip -t", "copy it again")
def truncated_gzip(it):
    whole = it.subject.dwi.read_bytes()
    it.subject.dwi.write_bytes(whole[: len(whole) // 2])


@case("dwi.nii.gz", "truncated", "gzip -t", "copy it again")
def gzip_without_its_last_bytes(it):
    it.subject.dwi.write_bytes(it.subject.dwi.read_bytes()[:-5])


@case("dwi.nii.gz", "truncated", "gzip -t", "copy it again")
def gzip_of_too_little(it):
    it.subject.dwi.write_bytes(gzip.compress(it.bytes()[:-100]))


@case("dwi.nii.gz", "corrupt gzip", "gzip -t", "copy it again")
def corrupt_gzip(it):
    whole = bytearray(it.subject.dwi.read_bytes())
    for place in range(len(whole) // 2, len(whole) // 2 + 64):
        whole[place] ^= 0x55
    it.subject.dwi.write_bytes(bytes(whole))


@case("dwi.nii.gz", "corrupt gzip", "gzip -t", "copy it again")
def gzip_whose_checksum_alone_tells(it):
    """One flipped bit in a stored block still inflates, to other voxels."""
    whole = bytearray(gzip.compress(it.bytes(), 0))
    whole[len(whole) // 2] ^= 1
    it.subject.dwi.write_bytes(bytes(whole))


@case("dwi.nii:", "truncated", "copy it again")
def truncated_plain_image(it):
    path = it.folder / "dwi.nii"
    path.write_bytes(it.bytes()[:-1])
    it.dwi(path)


@case("dwi.nii.gz", "10x9x6", "4-D is needed")
def three_dimensional(it):
    it.image(voxels()[..., 0])


@case("dwi.nii.gz", "10x9x6x9x2", "4-D is needed")
def five_dimensional(it):
    it.image(np.stack([voxels()] * 2, axis=-1))


@case("dwi.nii.gz", "complex64", "convert the magnitude")
def complex_image(it):
    it.image(voxels().astype(np.complex64))


@case("dwi.nii.gz", "type 128", "are colours")
def colour_image(it):
    colour = np.zeros(voxels().shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    it.image(colour)


@case("dwi.nii.gz", "type 1234", "convert")
def unknown_type(it):
    spoilt = bytearray(it.bytes())
    spoilt[70:72] = (1234).to_bytes(2, "little")
    it.subject.dwi.write_bytes(gzip.compress(bytes(spoilt)))


@case("dwi.nii.gz", "vox_offset", "makes no sense")
def voxels_inside_the_header(it):
    spoilt = bytearray(it.bytes())
    spoilt[108:112] = np.float32(0).tobytes()
    it.subject.dwi.write_bytes(gzip.compress(bytes(spoilt)))


@case("dwi.nii.gz", "vox_offset")
def voxels_nowhere(it):
    spoilt = bytearray(it.bytes())
    spoilt[108:112] = np.float32(np.nan).tobytes()
    it.subject.dwi.write_bytes(gzip.compress(bytes(spoilt)))


@case("dwi.nii.gz", "scl_slope", "inf")
def scaling_that_makes_no_sense(it):
    spoilt = bytearray(it.bytes())
    spoilt[112:120] = np.array([2.0, np.inf], "<f4").tobytes()
    it.subject.dwi.write_bytes(gzip.compress(bytes(spoilt)))


@case("dwi.bval", "No such file")
def missing_bvals(it):
    it.subject.bvals.unlink()


@case("dwi.bvec", "No such file")
def missing_bvecs(it):
    it.subject.bvecs.unlink()


@case("dwi.bval", "8 b-values", "9 volumes", "give the file")
def too_few_bvals(it):
    it.table(BVALS[:-1])


@case("dwi.bval", "10 b-values", "9 volumes", "give the file")
def too_many_bvals(it):
    it.table([*BVALS, 0])


@case("dwi.bval", "plain numbers")
def bvals_of_words(it):
    it.subject.bvals.write_text("zero one two\n")


@case("dwi.bval", "finite and not negative")
def negative_bval(it):
    it.table([*BVALS[:-1], -1000])


@case("dwi.bval", "b-values", "dwi.bval")
def bvals_are_binary(it):
    it.subject.bvals.write_bytes(bytes(range(256)))


@case("dwi.bvec", "3 rows of 8", "3 rows of 9 or 9 rows of 3")
def too_few_bvecs(it):
    it.table(bvecs=directions().T[:, :-1])


@case("dwi.bvec", "2 rows of 9", "3 rows of 9 or 9 rows of 3")
def bvecs_of_two_rows(it):
    it.table(bvecs=directions().T[:2])


@case("dwi.bvec", "not equally long")
def ragged_bvecs(it):
    it.subject.bvecs.write_text("1 0 0\n0 1\n0 0 1\n")


@case("dwi.bvec", "volume 4", "length 1.1", "--normalise-bvecs")
def bvec_that_is_no_unit_vector(it):
    it.table(bvecs=(directions() * np.where(np.arange(9) == 4, 1.1, 1.0)[:, None]).T)


@case("dwi.bvec", "none of the 8 volumes above --b0-threshold 50", "has a direction")
def bvecs_of_zeros(it):
    it.options += ["--normalise-bvecs"]
    it.table(bvecs=np.zeros((3, 9)))


@case("dwi.bvec", "volume 2", "--drop-volumes 2 leaves it out")
def bvec_of_infinity(it):
    it.options += ["--normalise-bvecs"]
    bvecs = directions()
    bvecs[2, 1] = np.inf
    it.table(bvecs=bvecs.T)


@case("dwi.bval", "no volume with b <= 50", "--b0-threshold")
def no_b0(it):
    it.table(BVALS + 100, np.where(directions() == 0, np.sqrt(1 / 3), directions()).T)


@case("dwi.bval", "b <= 500", "do not determine a tensor", "--b-max")
def shells_left_out(it):
    it.options += ["--b-max", 500]


@case("dwi.bval", "do not determine a tensor", "six directions")
def one_direction(it):
    it.table(bvecs=np.repeat([[0.0], [0.6], [0.8]], 9, axis=1))


@case("nowhere.nii", "No such file")
def missing_mask(it):
    it.options += ["--mask", it.folder / "nowhere.nii"]


@case("brain.nii.gz", "10x9x6 against 10x9x5")
def mask_of_another_shape(it):
    it.mask(np.ones((10, 9, 5)))


@case("brain.nii.gz", "affine", "mm")
def mask_of_another_affine(it):
    it.mask(np.ones(SHAPE), AFFINE + np.eye(4, k=3))


@case("brain.nii.gz", "flipped along x", "mrconvert brain.nii.gz turned.nii.gz -strides dwi.nii.gz")
def mask_that_is_flipped(it):
    it.mask(np.ones(SHAPE), AFFINE @ np.array([[-1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


@case("dwi.bval", "git-annex", "datalad get")
def bvals_that_are_a_pointer(it):
    it.subject.bvals.write_text("/annex/objects/MD5E-s123--0f0e.bval\n")


@case("dwi.bvec", "git-annex", "datalad get")
def bvecs_that_are_a_link_of_annex_beside_the_image(it):
    it.subject.bvecs.unlink()
    it.subject.bvecs.symlink_to("../.git/annex/objects/Xk/9q/MD5E-s12--ab.bvec/MD5E-s12--ab.bvec")
    it.subject = Beside(*vars(it.subject).values())


@case("in: ", "is a folder", "such as dwi.nii.gz")
def folder_in_place_of_a_mask(it):
    it.options += ["--mask", it.folder]


@case("brain.nii.gz", "3-D is needed")
def mask_of_four_dimensions(it):
    it.mask(np.ones((*SHAPE, 2)))


@case("brain.nii.gz", "is empty", "--mask")
def empty_mask(it):
    it.mask(np.zeros(SHAPE))


@case("dwi.nii.gz", "100 everywhere", "--mask")
def nothing_above_the_threshold(it):
    it.image(np.full((*SHAPE, 9), 100, np.int16))


@case("dwi.nii.gz", "0 everywhere", "--mask")
def nothing_at_all(it):
    it.image(np.zeros((*SHAPE, 9), np.float32))


@case("--sigma much", "positive number")
def sigma_of_words(it):
    it.options += ["--sigma", "much"]


@case("--sigma -3", "positive number")
def negative_sigma(it):
    it.options += ["--sigma=-3"]


@case("--memory lots", "give bytes")
def memory_of_words(it):
    it.options += ["--memory", "lots"]


@case("MB per rank", "give --memory 1")
def too_little_memory(it):
    it.options += ["--memory", "100M", "--in-memory"]


@case("dwi_desc-brain_mask.nii.gz exists", "--force")
def output_exists(it):
    it.out.mkdir()
    (it.out / "dwi_desc-brain_mask.nii.gz").write_text("precious")


@case("run.json exists", "--force")
def record_exists(it):
    it.out.mkdir()
    (it.out / "run.json").write_text("precious")


@case("/out", "cannot write", "--out")
def output_below_a_file(it):
    it.out.write_text("a file, not a folder")
    it.out = it.out / "below"


@case("/out", "cannot write", "--out")
def output_is_a_file(it):
    it.out.write_text("a file, not a folder")


@case("/proc/mpiimg", "cannot write", "--out")
def output_where_nobody_may_write(it):
    it.out = it.out.__class__("/proc/mpiimg")


def promise(it, *shape):
    """Let the header of a compressed image promise so many voxels."""
    header = bytearray(it.bytes())
    header[42:48] = np.array(shape, "<i2").tobytes()
    it.subject.dwi.write_bytes(gzip.compress(bytes(header)))


@case("dwi.nii.gz", "truncated or corrupt", "bytes of gzip hold")
def gzip_that_cannot_hold_what_its_header_promises(it):
    promise(it, 30000, 30000, 30000)


@case("stage denoise needs", "MB per rank", "give --memory")
def image_larger_than_any_machine(it):
    """Terabytes, of which a chunk and its halo take nearly one; a file with holes takes no room."""
    header = bytearray(it.bytes()[:352])
    header[42:48] = np.array((32000, 32000, 320), "<i2").tobytes()
    path = it.folder / "dwi.nii"
    path.write_bytes(header)
    try:
        os.truncate(path, 352 + 32000 * 32000 * 320 * 9 * 2)
    except OSError:
        pytest.skip("NO LARGE FILE: this file system has none of 6 TB")
    it.dwi(path)


@case("dwi.nii.gz", "pixdim", "must be positive")
def voxels_of_no_size(it):
    spoilt = bytearray(it.bytes())
    spoilt[80:84] = np.float32(0).tobytes()
    spoilt[254:256] = bytes(2)
    it.subject.dwi.write_bytes(gzip.compress(bytes(spoilt)))


@case("dwi.bval", "no file on a disk")
def bvals_from_a_pipe(it):
    it.subject.bvals.unlink()
    os.mkfifo(it.subject.bvals)


@case("brain_mask.nii.gz", "is a folder")
def folder_where_a_result_goes(it):
    (it.out / "dwi_desc-brain_mask.nii.gz").mkdir(parents=True)
    it.options += ["--force"]


@case("/out", "cannot write", "name too long", "--out")
def output_with_too_long_a_name(it):
    it.out = it.out / ("x" * 300)


@case("yyy", "too long for the name of a result")
def image_with_too_long_a_name(it):
    path = it.folder / f"{'y' * 240}.nii.gz"
    it.subject.dwi.rename(path)
    it.dwi(path)


@case("--memory -5", "give bytes")
def negative_memory(it):
    it.options += ["--memory=-5"]


@case("--memory 4000", "4000 MB is written 4000M")
def megabytes_without_their_letter(it):
    it.options += ["--memory", 4000]


@case("staged.h5", "not made by mpiimg-stage", "give a NIfTI")
def foreign_hdf5(it):
    with h5py.File(it.folder / "staged.h5", "w") as file:
        file["data"] = np.zeros((9, 6, 9, 10))
    it.dwi(it.folder / "staged.h5")


@case("staged.h5", "no dataset named", "mpiimg-stage")
def hdf5_without_data(it):
    with h5py.File(it.folder / "staged.h5", "w") as file:
        file["other"] = np.zeros(3)
    it.dwi(it.folder / "staged.h5")


@case("staged.h5", "staged")
def truncated_staged_file(it):
    path = it.folder / "staged.h5"
    warm.run_tool("mpiimg-stage", it.subject.dwi, path)
    os.truncate(path, path.stat().st_size - 1000)
    it.dwi(path)


def _with_a_flipped_bit(it, place):
    path = it.folder / "staged.h5"
    warm.run_tool("mpiimg-stage", it.subject.dwi, path)
    data = bytearray(path.read_bytes())
    data[place(path)] ^= 4
    path.write_bytes(data)
    it.dwi(path)


@case("staged.h5", "damaged: voxels in it are not those that were staged", "stage the image again")
def staged_file_with_a_flipped_voxel(it):
    _with_a_flipped_bit(it, lambda path: dataset_offset(path) + 777)


@case("staged.h5", "damaged: not the file that was staged", "stage the image again")
def staged_file_with_a_flipped_header(it):
    _with_a_flipped_bit(it, lambda path: path.read_bytes().index(b"nifti_header"))


@case("staged.h5", "staged")
def staged_file_of_eight_bytes(it):
    path = it.folder / "staged.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    it.dwi(path)


@case("dwi.nii.gz", "truncated", "gzip -t")
def truncated_gzip_to_stage(it):
    truncated_gzip(it)
    it.tool = "mpiimg-stage"


@case("staged.h5 exists", "--force")
def staged_file_exists(it):
    it.out.mkdir()
    (it.out / "staged.h5").write_text("precious")
    it.tool = "mpiimg-stage"


def assert_refused(it, words, ranks=None, fresh=False):
    """Run the command, in a process of its own if `fresh`, and assert that it is refused as said above."""
    before = snapshot(it.folder.parent)
    how = {"check": False, "timeout": PATIENCE}
    start = launch.run_tool if fresh else warm.run_tool
    done = start(it.tool, *it.command, ranks=ranks, **how)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" or ranks
    lines = done.stderr.splitlines()
    if ranks:
        # mpirun may add what it thinks of an exit status that is not 0.
        lines = [line for line in lines if "mpiimg" in line or "Traceback" in line]
    if lines[0].endswith("dwi.bval: 1 volume of b = 0, 8 of b = 1000 s/mm^2"):
        del lines[0]  # what is said of the table, where the fault shows only once voxels are read
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("mpiimg: error: ")
    for word in words:
        assert word in lines[0]
    assert snapshot(it.folder.parent) == before


#: What the HDF5 of either install says of its files.
OF_HDF5 = {
    "foreign_hdf5",
    "hdf5_without_data",
    "truncated_staged_file",
    "staged_file_with_a_flipped_voxel",
    "staged_file_with_a_flipped_header",
    "staged_file_of_eight_bytes",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.site] * (name in OF_HDF5)) for name in CASES],
)
def test_refused(tmp_path, name):
    spoil, words = CASES[name]
    it = Case(tmp_path)
    spoil(it)
    assert_refused(it, words)


@pytest.mark.parametrize("name", ["text_file", "corrupt_gzip", "empty_mask", "image_larger_than_any_machine"])
def test_refused_by_a_process_of_its_own(tmp_path, name):
    spoil, words = CASES[name]
    it = Case(tmp_path)
    spoil(it)
    assert_refused(it, words, fresh=True)


@pytest.mark.parametrize(
    "name",
    [
        "truncated_gzip",
        "corrupt_gzip",
        "gzip_whose_checksum_alone_tells",
        "too_few_bvals",
        "empty_mask",
        "output_exists",
        "output_below_a_file",
        pytest.param("truncated_gzip_to_stage", marks=pytest.mark.site),
    ],
)
def test_refused_once_by_three_ranks(tmp_path, name):
    spoil, words = CASES[name]
    it = Case(tmp_path)
    spoil(it)
    assert_refused(it, words, ranks=3)


def test_the_sound_subject_is_not_refused(tmp_path):
    """What the cases above spoil was good before."""
    it = Case(tmp_path)
    warm.run_tool(it.tool, *it.command, timeout=PATIENCE)
    it.tool = "mpiimg-stage"
    warm.run_tool(it.tool, *it.command, timeout=PATIENCE)


@pytest.mark.long
def test_a_plan_of_petabytes_is_refused_too(tmp_path, monkeypatch):
    """As many chunks as a plan may ever have; no file of a test machine is that long."""
    it = Case(tmp_path)
    promise(it, 32000, 32000, 32000)
    monkeypatch.setattr(nifti, "check_length", lambda *arguments: None)
    made, options = (
        tool("mpiimg-neuro"),
        {"bvals": it.subject.bvals, "bvecs": it.subject.bvecs, "out": it.out},
    )
    values = {
        **{one.name: one.default for one in made.parameters},
        "dwi": it.subject.dwi,
        **options,
        "mask": None,
    }
    recipe = made.recipe(made.inspect(values), values)
    with pytest.raises(BadInput, match=r"stage denoise\S* needs \d+ MB per rank"):
        check(recipe, Resources(1, 4 << 30))


def test_too_little_disk(tmp_path, small_disk):
    it = Case(tmp_path)
    it.out = small_disk("16k") / "out"
    assert_refused(it, ("/out", "MB free", "--in-memory"))
    assert not it.out.exists()
