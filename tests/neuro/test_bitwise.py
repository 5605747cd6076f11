"""The same files to the last bit: any number of ranks, any input, any memory, either install."""

from __future__ import annotations

import shutil
import sys
import zlib

import h5py
import nibabel
import numpy as np
import pytest
from support import launch, warm
from support.ranks import on_site
from support.subjects import (
    EVERYTHING,
    MAPS,
    PATIENCE,
    Subject,
    digests,
    gunzipped,
    neuro,
    path,
    record,
    tool,
    write_subject,
)

from mpiimg.engine import plan
from mpiimg.tools import cli, registry

pytestmark = pytest.mark.tool


def assert_same_files(folder, expected):
    """Assert that two folders hold the same files with the same bytes, but for the records of the runs."""
    assert digests(folder) == digests(expected)


@pytest.mark.parametrize(
    "ranks, options",
    [*on_site((2, ()), (3, ("--in-memory",)), (4, ())), pytest.param(7, (), marks=pytest.mark.long)],
)
def test_any_number_of_ranks(simulated, alone, tmp_path, ranks, options):
    out = neuro(simulated, tmp_path / "out", *EVERYTHING, *options, ranks=ranks)
    assert_same_files(out, alone)
    assert record(out)["ranks"] == ranks
    assert record(out)["in_memory"] == bool(options)


def test_every_file_is_there(alone):
    images = ["desc-brain_mask", "desc-denoised_dwi", "desc-noise_dwimap", "desc-residual_dwi"]
    images += [f"model-tensor_param-{key}_dwimap" for key in (*MAPS, "residual")]
    expected = {f"dwi_{name}{ending}" for name in images for ending in (".nii.gz", ".json")}
    expected |= {"dwi_desc-denoised_dwi.bval", "dwi_desc-denoised_dwi.bvec"}
    expected |= {"dwi_desc-volumes_dwimap.tsv", "dwi_desc-volumes_dwimap.json"}
    expected |= {f"dwi_desc-qc_dwimap.{ending}" for ending in ("json", "npz", "tsv")}
    assert set(digests(alone)) == expected


def test_every_image_is_one_gzip_member(alone):
    """What reads the first one alone has all, and its checksum and length are right."""
    for file in sorted(alone.glob("*.nii.gz")):
        decoder = zlib.decompressobj(wbits=31)
        inflated = decoder.decompress(file.read_bytes())
        assert decoder.eof and decoder.unused_data == b"", file
        image = nibabel.load(file)
        assert len(inflated) == 352 + image.get_data_dtype().itemsize * np.prod(image.shape)


#: A filter that leaves something of a head three slices high.
TINY = (*EVERYTHING, "--median-radius", 1, "--passes", 1, "--sigma", 20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A subject of 8 volumes and 3 slices, one of them without a voxel of brain, and its results."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(3)
    bvecs = rng.normal(size=(8, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1)[:, None]
    bvals = np.array([0.0, *[1000.0] * 7])
    x, y, z = np.indices((10, 9, 3))
    head = 1000.0 * ((np.hypot(x - 5, y - 4) < 4) & (z < 2))
    signal = head[..., None] * np.exp(-bvals * 7e-4) + rng.normal(0, 20, (10, 9, 3, 8))
    subject = write_subject(folder, np.abs(signal).astype(np.float32), np.diag([2, 2, 2, 1]), bvals, bvecs)
    return subject, neuro(subject, folder / "out", *TINY)


def test_more_ranks_than_volumes_and_slices(tmp_path, tiny):
    subject, expected = tiny
    assert_same_files(neuro(subject, tmp_path / "out", *TINY, ranks=7), expected)


def test_plain_input(simulated, alone, tmp_path):
    subject = gunzipped(simulated, tmp_path / "plain")
    assert_same_files(neuro(subject, tmp_path / "out", *EVERYTHING, ranks=2), alone)


@pytest.mark.parametrize("ranks, plain", on_site((None, False), (3, False), (2, True)))
def test_staged_input(simulated, alone, tmp_path, ranks, plain):
    source = gunzipped(simulated, tmp_path / "plain") if plain else simulated
    staged = tmp_path / "staged" / "copy.h5"
    warm.run_tool("mpiimg-stage", source.dwi, staged, ranks=ranks, timeout=PATIENCE)
    assert sorted(p.name for p in staged.parent.iterdir()) == ["copy.h5", "copy.h5.json", "events-copy.h5"]
    with h5py.File(staged, "r", locking=False) as file:
        np.testing.assert_array_equal(file["data"][...], np.asarray(simulated.image.dataobj).T)
    if ranks == 3:
        subject = Subject(staged, simulated.bvals, simulated.bvecs)
        assert_same_files(neuro(subject, tmp_path / "out", *EVERYTHING, ranks=ranks), alone)


def test_tools_one_by_one(simulated, alone, tmp_path):
    made = tool("mpiimg-mask", simulated, tmp_path / "mask", "--median-radius", 2, ranks=2)
    mask = path(made, "mask")
    assert mask.read_bytes() == path(alone, "mask").read_bytes()

    out = tmp_path / "denoise"
    warm.run_tool(
        "mpiimg-denoise", simulated.dwi, "--mask", mask, "--out", out, "--residual", ranks=3, timeout=PATIENCE
    )
    for what in ("denoised", "noise", "residual"):
        assert path(out, what).read_bytes() == path(alone, what).read_bytes(), what
    for ending in (".bval", ".bvec"):
        assert path(out, "denoised", ending).read_bytes() == path(alone, "denoised", ending).read_bytes()

    denoised = Subject(path(out, "denoised"), simulated.bvals, simulated.bvecs)
    fitted = tool("mpiimg-fit", denoised, tmp_path / "fit", "--mask", mask, "--fit-residual", ranks=2)
    for what in (*MAPS, "fit-residual"):
        assert path(fitted, what).read_bytes() == path(alone, what).read_bytes(), what


def test_given_mask(simulated, alone, tmp_path):
    """A mask from outside, here an uncompressed one of floats, leads to the same maps as the computed one."""
    mask = nibabel.load(path(alone, "mask"))
    foreign = tmp_path / "brain.nii"
    nibabel.save(nibabel.Nifti1Image(mask.get_fdata().astype(np.float32), mask.affine), foreign)
    out = neuro(simulated, tmp_path / "out", *EVERYTHING, "--mask", foreign, ranks=2)
    for what in ("mask", "denoised", "residual", *MAPS, "fit-residual"):
        assert path(out, what).read_bytes() == path(alone, what).read_bytes(), what


@pytest.mark.site
def test_out_of_core(simulated, tmp_path):
    """With as little memory as a run accepts, arrays stay on disk and are read back piece by piece."""
    mask = tmp_path / "all.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((24, 28, 20), np.uint8), simulated.affine), mask)
    everywhere = ("--mask", mask, "--sigma", 40, "--fit-residual")
    expected = neuro(simulated, tmp_path / "expected", *everywhere)
    least = least_memory([*simulated.arguments, "--out", "out", *everywhere])
    out = neuro(simulated, tmp_path / "out", *everywhere, "--memory", least, ranks=2, run=launch.run_tool)
    assert_same_files(out, expected)
    assert not any(entry["planned"]["read"] for entry in record(expected)["stages"])
    assert any(entry["planned"]["read"] for entry in record(out)["stages"])
    for entry in record(out)["stages"]:
        assert entry["peak_per_rank"] <= entry["planned"]["peak_per_rank"] <= least


def least_memory(words: list) -> int:
    """Return the least bytes a rank with which mpiimg-neuro makes a plan."""
    values = vars(cli.parser("mpiimg-neuro").parse_args([str(word) for word in words]))
    tool = registry.tool("mpiimg-neuro")
    memory, _ = plan.min_memory(tool.recipe(tool.inspect(values), values))
    return memory


#: Prints a checksum of 300 inputs compressed, made between other uses of the heap.
COMPRESSED = """
import hashlib, sys
import numpy as np
from mpiimg.formats.gz import gzip_part

inputs, heap = np.random.default_rng(0), np.random.default_rng(int(sys.argv[1]))
digest = hashlib.sha256()
for i in range(300):
    values = inputs.random(int(10 ** inputs.uniform(1, 5.5)), dtype=np.float32)
    values[inputs.random(values.size) < (i % 3) / 2.5] = 0
    used = [heap.bytes(int(n)) for n in heap.integers(1, 400_000, 4)]
    del used
    digest.update(gzip_part(values.tobytes()).data)
print(digest.hexdigest())
"""


def test_compressed_bytes_do_not_depend_on_what_memory_held_before():
    """As those of isal do; MALLOC_PERTURB_ fills freed memory."""
    made = {
        launch.run([sys.executable, "-c", COMPRESSED, fill], env={"MALLOC_PERTURB_": str(fill)}).stdout
        for fill in (0, 85, 170, 255)
    }
    assert len(made) == 1


def test_other_install(simulated, alone, tmp_path):
    python = launch.other_install()
    if python is None:
        pytest.skip("THE OTHER INSTALL IS NOT THERE: nothing is compared with it")
    out = neuro(simulated, tmp_path / "out", *EVERYTHING, ranks=2, python=python)
    assert_same_files(out, alone)
    mixed = Subject(tmp_path / "staged.h5", simulated.bvals, simulated.bvecs)
    warm.run_tool("mpiimg-stage", simulated.dwi, mixed.dwi, ranks=2, python=python, timeout=PATIENCE)
    assert_same_files(neuro(mixed, tmp_path / "mixed", *EVERYTHING, ranks=2), alone)


def test_simulation(simulated, tmp_path):
    size = ("--shape", "24x28x20", "--volumes", 12, "--sigma", 40, "--seed", 7)
    out = tmp_path / "again"
    warm.run_tool("mpiimg-simulate", "neuro", *size, "--out", out, ranks=3, timeout=PATIENCE)
    assert_same_files(out, simulated.dwi.parent)


def test_results_do_not_depend_on_where_the_input_lies(simulated, alone, tmp_path):
    """Copied elsewhere, with other times, called by a relative path."""
    for file in (simulated.dwi, simulated.bvals, simulated.bvecs):
        shutil.copyfile(file, tmp_path / file.name)
    here = Subject(*(file.relative_to(simulated.dwi.parent) for file in vars(simulated).values()))
    assert_same_files(tmp_path / neuro(here, "out", *EVERYTHING, cwd=tmp_path), alone)
