"""A user's own functions over images: what they give, on any ranks, resumed, and in a pipeline with ours."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dipy.reconst.shm import CsaOdfModel
from scipy import stats
from scipy.ndimage import gaussian_filter, median_filter
from support import launch, warm
from support.ranks import on_site
from support.subjects import PATIENCE, digests, gunzipped, record, stage

from mpiimg.errors import Exit

pytestmark = pytest.mark.tool

EXAMPLES = launch.REPOSITORY / "docs" / "examples"
PIPELINE = EXAMPLES / "smooth-fit.toml"


def run(*words, tool=warm.run_tool, **how):
    """Run mpiimg-run."""
    return tool("mpiimg-run", *words, timeout=PATIENCE, **how)


def voxels(path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def piped(simulated, tmp_path_factory) -> Path:
    """What one process makes of the simulated subject by the pipeline of docs/examples."""
    out = tmp_path_factory.mktemp("piped") / "out"
    run(PIPELINE, simulated.dwi, "--out", out)
    return out


def test_the_filter_is_that_of_the_whole_volume(simulated, piped):
    smooth = voxels(piped / "dwi_desc-gaussian_dwi.nii.gz")
    expected = [
        gaussian_filter(volume.astype("f4"), 0.8) for volume in np.moveaxis(voxels(simulated.dwi), 3, 0)
    ]
    np.testing.assert_array_equal(smooth, np.moveaxis(expected, 0, 3))
    assert (piped / "dwi_desc-gaussian_dwi.bval").read_bytes() == simulated.bvals.read_bytes()
    affine = nibabel.load(piped / "dwi_desc-gaussian_dwi.nii.gz").affine
    np.testing.assert_array_equal(affine, nibabel.load(simulated.dwi).affine)


def test_the_pipeline_passes_nothing_by_in_silence(piped):
    assert not [line for line in record(piped)["warnings"] if "passed by" in line]


def test_kurtosis_is_that_of_the_whole_image(simulated, piped):
    expected = stats.kurtosis(voxels(simulated.dwi).astype("f8"), axis=-1).astype("f4")
    np.testing.assert_array_equal(voxels(piped / "dwi_desc-kurtosis_dwimap.nii.gz"), expected)


def test_the_model_of_dipy_is_that_of_each_slice(simulated, piped):
    """And that of the whole image, but for how a matrix product rounds."""
    smooth, found = (voxels(piped / f"dwi_desc-{name}.nii.gz") for name in ("gaussian_dwi", "csagfa_dwimap"))
    inside = voxels(piped / "dwi_desc-brain_mask.nii.gz") != 0
    model = CsaOdfModel(simulated.gradients(), 4)
    slices = [
        model.fit(smooth[:, :, z : z + 1], mask=inside[:, :, z : z + 1]).gfa for z in range(smooth.shape[2])
    ]
    np.testing.assert_array_equal(found, np.concatenate(slices, axis=2).astype("f4"))
    np.testing.assert_allclose(found, model.fit(smooth, mask=inside).gfa, rtol=0, atol=1e-6)
    assert found[inside].all()


def test_the_histogram_is_that_of_the_whole_image(piped):
    found = record(piped, "dwi_desc-Histogram.json")
    counts, edges = np.histogram(voxels(piped / "dwi_desc-gaussian_dwi.nii.gz"), 16, (0.0, 4000.0))
    assert found == {"edges": edges.tolist(), "counts": counts.tolist()}


def test_the_fit_is_that_of_the_smoothed_image(simulated, piped, tmp_path):
    smooth, mask = (piped / f"dwi_desc-{name}.nii.gz" for name in ("gaussian_dwi", "brain_mask"))
    gradients = ("--bvals", simulated.bvals, "--bvecs", simulated.bvecs)
    warm.run_tool("mpiimg-fit", smooth, *gradients, "--mask", mask, "--b-max", 1500, "--out", tmp_path)
    for key in ("fa", "tensor", "s0"):
        made = tmp_path / f"dwi_desc-gaussian_model-tensor_param-{key}_dwimap.nii.gz"
        np.testing.assert_array_equal(
            voxels(made), voxels(piped / f"dwi_model-tensor_param-{key}_dwimap.nii.gz")
        )


@pytest.mark.parametrize(
    "ranks, options", [*on_site((3, ("--in-memory",)), (4, ())), pytest.param(7, (), marks=pytest.mark.long)]
)
def test_any_number_of_ranks(simulated, piped, tmp_path, ranks, options):
    run(PIPELINE, simulated.dwi, "--out", tmp_path / "out", *options, ranks=ranks)
    assert digests(tmp_path / "out") == digests(piped)
    assert record(tmp_path / "out")["ranks"] == ranks


def test_an_image_in_place_and_the_other_install(simulated, piped, tmp_path):
    python = launch.other_install()
    if python is None:
        pytest.skip("THE OTHER INSTALL IS NOT THERE: nothing is compared with it")
    plain = gunzipped(simulated, tmp_path / "plain")
    gradients = ("--bvals", simulated.bvals, "--bvecs", simulated.bvecs)
    run(PIPELINE, plain.dwi, *gradients, "--out", tmp_path / "out", ranks=2, python=python)
    assert digests(tmp_path / "out") == digests(piped)


def test_with_little_memory_results_stay_on_disk(tmp_path):
    image = np.random.default_rng(0).normal(1000, 100, (64, 60, 40, 24)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "in.nii")
    what = ("--udf", EXAMPLES / "gaussian.py:gaussian", "--slices", 9)
    words = (*what, tmp_path / "in.nii", tmp_path / "out.nii.gz")
    refused = run(*words, "--memory", "1M", ranks=1, tool=launch.run_tool, check=False)
    assert refused.returncode == Exit.BAD_INPUT
    least = int(re.search(r"give --memory (\d+)M", refused.stderr)[1])
    run(*words, "--memory", f"{least + 4}M", ranks=2, tool=launch.run_tool)
    for volume in (0, 23):
        expected = gaussian_filter(image[..., volume], 1.5)
        np.testing.assert_array_equal(voxels(tmp_path / "out.nii.gz")[..., volume], expected)
    done = record(tmp_path, "run-out.json")
    assert stage(done, "udf-gaussian.write-out.nii.gz")["planned"]["read"] == image.nbytes
    assert all(one["peak_per_rank"] <= one["planned"]["peak_per_rank"] for one in done["stages"])


def test_compiled_by_numba(simulated, tmp_path):
    out = tmp_path / "sharp.nii.gz"
    options = (
        "--udf",
        EXAMPLES / "sharpen.py:sharpen",
        "--halo",
        1,
        "--slices",
        6,
        "--param",
        "strength=0.7",
    )
    run(*options, simulated.dwi, out)
    image = voxels(simulated.dwi).astype("f8")
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (0, 0)), "edge")
    expected = image + 0.7 * (image - (padded[:, :, :-2] + padded[:, :, 2:]) / 2)
    np.testing.assert_allclose(voxels(out), expected, rtol=1e-6, atol=1e-3)
    assert voxels(out).dtype == np.float32
    described = record(tmp_path, "sharp.json")["Function"]
    assert described["parameters"] == {"strength": 0.7} and len(described["source_sha256"]) == 64


MEDIAN = """
import numpy as np
from scipy.ndimage import median_filter


def middle(block, *, affine, bounds, mask=None, size=3):
    assert affine.shape == (4, 4) and list(bounds) == ["x", "y", "z", *"t"[: len(bounds) - 3]]
    assert block.shape == tuple(stop - start for start, stop in list(bounds.values())[:3])
    out = median_filter(block, size)
    return out if mask is None else out * mask
"""


def test_a_3d_image_of_scaled_integers_with_a_mask(simulated, piped, tmp_path):
    """Values are those that voxels stand for; the type is what the function returns; the output is 3-D."""
    image = nibabel.Nifti1Image(voxels(simulated.dwi)[..., 0], simulated.affine)
    image.header.set_slope_inter(0.25, 3)
    nibabel.save(image, tmp_path / "scaled.nii")
    (tmp_path / "mine.py").write_text(MEDIAN)
    mask = piped / "dwi_desc-brain_mask.nii.gz"
    values = nibabel.load(tmp_path / "scaled.nii").get_fdata(dtype=np.float32)
    for name, options in (("bare", ()), ("masked", ("--mask", mask))):
        out = tmp_path / f"{name}.nii.gz"
        run(
            "--udf",
            f"{tmp_path}/mine.py:middle",
            "--halo",
            1,
            "--slices",
            3,
            *options,
            tmp_path / "scaled.nii",
            out,
        )
        expected = median_filter(values, 3)
        np.testing.assert_array_equal(voxels(out), expected * (voxels(mask) if options else 1))


WEIGHTED = """
import numpy as np


def weighted(block, *, bvals=None):
    return block.mean(axis=-1) if bvals is None else (block * bvals).mean(axis=-1)
"""


def test_gradients_are_taken_where_they_are(simulated, tmp_path):
    """Beside the image, from elsewhere, or not at all for a function that can do without."""
    (tmp_path / "mine.py").write_text(WEIGHTED)
    what = ("--udf", f"{tmp_path}/mine.py:weighted", "--over", "voxels", "--dtype", "float64")
    shutil.copy(simulated.dwi, tmp_path / "bare.nii.gz")
    values, bvals = voxels(simulated.dwi), np.loadtxt(simulated.bvals)
    plain, weighted = values.mean(axis=-1), (values * bvals).mean(axis=-1)
    given = ("--bvals", simulated.bvals, "--bvecs", simulated.bvecs)
    for dwi, options, expected in (
        (simulated.dwi, (), weighted),
        (tmp_path / "bare.nii.gz", given, weighted),
        (tmp_path / "bare.nii.gz", (), plain),
    ):
        run(*what, *options, dwi, tmp_path / "out.nii.gz", "--force")
        np.testing.assert_array_equal(voxels(tmp_path / "out.nii.gz"), expected)
    mask = simulated.dwi.with_name("dwi_desc-truth_mask.nii.gz")
    what = ("--udf", EXAMPLES / "csa.py:csa_gfa", "--mask", mask)
    done = run(*what, tmp_path / "bare.nii.gz", tmp_path / "gfa.nii.gz", check=False)
    assert done.returncode == Exit.BAD_INPUT and "bare.bval is not beside it; give --bvals" in done.stderr


AGGREGATE = """
import numpy as np


class Moments:
    def partial(self, block):
        values = block.astype(np.float32)
        return {"n": values.size, "sum": values.sum(), "by_slice_max": values.max()}

    def merge(self, one, other):
        return {"n": one["n"] + other["n"], "sum": one["sum"] + other["sum"],
                "by_slice_max": max(one["by_slice_max"], other["by_slice_max"])}

    def finish(self, merged):
        return {"mean": merged["sum"] / merged["n"], "max": merged["by_slice_max"], "nothing": np.nan}
"""


def test_partial_results_are_merged_in_the_order_of_chunks(simulated, tmp_path):
    """Of float32 sums, whose last digits tell the order."""
    (tmp_path / "mine.py").write_text(AGGREGATE)
    words = ("--udf", f"{tmp_path}/mine.py:Moments", "--over", "volumes", simulated.dwi)
    found = []
    for ranks in (None, 3):
        run(*words, tmp_path / f"{ranks}.json", ranks=ranks)
        found.append(record(tmp_path, f"{ranks}.json"))
    volumes = np.moveaxis(voxels(simulated.dwi), 3, 0).astype("f4")
    total = np.float32(0)
    for volume in volumes:
        total += volume.T.copy().T.sum()
    assert found[0] == found[1] == {"mean": total / volumes.size, "max": volumes.max(), "nothing": None}


PLAIN = "def f(block, *, strength=1):\n    return block\n"


def function(body: str, head: str = "def f(block):") -> str:
    return f"{head}\n    {body}\n"


def aggregate(partial: str, finish: str = "n") -> str:
    return (
        f"class f:\n    def partial(self, block):\n        return {partial}\n"
        f"    def finish(self, n):\n        return {finish}\n"
    )


#: What is wrong: the user's file, flags, and what must be said of it.
WRONG = {
    "raises": (function("return block / x.y"), (), ("mine.py:2: f: NameError", ": return block / x.y")),
    "shape": (
        function("return block[1:]"),
        (),
        ("mine.py:1: f: returns shape (23 x 28 x 2)", "tried on a block of 24 x 28 x 2", ": def f(block):"),
    ),
    "nothing": (function("block += 1"), (), ("returns nothing",)),
    "type": (function("return block * 1j"), (), ("complex", "no image holds it")),
    "declared type": (
        function("return block * 0.5"),
        ("--dtype", "int16"),
        ("float64 where int16 is due",),
    ),
    "no such dtype": (PLAIN, ("--dtype", "flaot"), ("'flaot'",)),
    "no such parameter": (PLAIN, ("--param", "strenght=2"), ("'strenght'", "it has: strength")),
    "parameter": (PLAIN, ("--param", "strength"), ("NAME=VALUE",)),
    "missing parameter": (
        function("return block", "def f(block, *, strength):"),
        (),
        ("TypeError", "def f(block, *, strength):"),
    ),
    "syntax": (function("return block +"), (), ("mine.py:2", "SyntaxError", ": return block +")),
    "import": ("import nowhere\n", (), ("mine.py:1", "nowhere")),
    "no such name": (PLAIN.replace(" f(", " g("), (), ("no function or class f",)),
    "halo of volumes": (PLAIN, ("--over", "volumes", "--halo", 1), ("a halo goes with slabs and voxels",)),
    "components of slabs": (PLAIN, ("--components", 2), ("components go with voxels",)),
    "needs a mask": (function("return block", "def f(block, mask):"), (), ("f needs a mask: give --mask",)),
    "object": (aggregate("['a']"), (), ("partial returns numbers",)),
    "json": (aggregate("1", "{1}"), (), ("finish returns set",)),
    "ragged": (aggregate("block[0, 0]"), (), ("partial returns", "for this block")),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_the_run(simulated, tmp_path, name):
    code, words, said = WRONG[name]
    (tmp_path / "mine.py").write_text(code)
    out = tmp_path / "out" / ("o.json" if code.startswith("class") else "o.nii.gz")
    done = run("--udf", f"{tmp_path}/mine.py:f", *words, simulated.dwi, out, check=False)
    assert done.returncode == Exit.BAD_INPUT, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mpiimg: error: ")
    assert [text for text in said if text not in done.stderr] == []
    assert not out.parent.exists()


STAGES = {
    "not toml": ("stage = ", "not TOML"),
    "other table": ("[[stages]]\n", "[[stage]] tables and nothing else"),
    "no tool": ('[[stage]]\ntool = "mack"\n', "no tool 'mack' can be a stage"),
    "tool and udf": ('[[stage]]\ntool = "mask"\nudf = "a.py:f"\n', "stage 1: give either tool"),
    "no such key": ('[[stage]]\nudf = "mine.py:f"\nhaloo = 1\n', "no key 'haloo'"),
    "no such parameter": ('[[stage]]\ntool = "mask"\nmedian = 1\n', "mask has no parameter 'median'"),
    "kind": (
        '[[stage]]\ntool = "mask"\nmedian_radius = 2.5\n',
        "median_radius = 2.5: must be auto, a length",
    ),
    "range": ('[[stage]]\ntool = "mask"\nmedian_radius = -1\n', "is not between 0 and 19"),
    "choice": ('[[stage]]\ntool = "mask"\n[[stage]]\ntool = "fit"\nmethod = "wsl"\n', "must be one of iwls"),
    "twice": ('[[stage]]\nudf = "mine.py:f"\n[[stage]]\nudf = "mine.py:f"\n', "another result is called f"),
    "ours": ('[[stage]]\nudf = "mine.py:f"\nname = "denoised"\n', "another result is called denoised"),
    "order": ('[[stage]]\ntool = "fit"\n', "fit needs a mask"),
    "mixed": (
        '[[stage]]\ntool = "mask"\n[[stage]]\ntool = "coadd"\n',
        "coadd is a step of astro, and other stages are of neuro",
    ),
    "halo": ('[[stage]]\nudf = "mine.py:f"\nhalo = "two"\n', "halo of a user's function is a whole number"),
}


@pytest.mark.parametrize("name", STAGES)
def test_what_is_wrong_with_a_pipeline_is_said(simulated, tmp_path, name):
    text, said = STAGES[name]
    (tmp_path / "mine.py").write_text(PLAIN)
    (tmp_path / "p.toml").write_text(text)
    done = run(tmp_path / "p.toml", simulated.dwi, "--out", tmp_path / "out", check=False)
    assert done.returncode == Exit.BAD_INPUT and len(done.stderr.splitlines()) == 1
    assert said in done.stderr and ("p.toml" in done.stderr or name == "halo")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (("in.nii.gz", "out.nii.gz"), "give --udf FILE.py:NAME, or a pipeline"),
        (("--halo", "1", "p.toml", "in.nii.gz", "--out", "out"), "--halo is for --udf"),
        (("--udf", "mine.py:f", "in.nii.gz"), "give a file to read and one to write"),
        (("--udf", "mine.py", "in.nii.gz", "out.nii.gz"), "name a function as FILE.py:NAME"),
        (("--udf", "nowhere.py:f", "in.nii.gz", "out.nii.gz"), "nowhere.py: cannot read this file"),
        (("--udf", "nowhere:f", "in.nii.gz", "out.nii.gz"), "nowhere: no such module"),
        (("--udf", "numpy:sqrt", "in.nii.gz", "out.nii.gz"), "in.nii.gz: cannot read this image"),
        (("p.toml", "--out", "out"), "give its input too"),
        (("q.toml", "in.nii.gz", "--out", "out"), "q.toml: cannot read this pipeline"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_said(words, said):
    done = run(*words, check=False)
    assert done.returncode == Exit.BAD_INPUT and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_name_of_a_result_is_checked(simulated, tmp_path):
    for out, said in ((tmp_path / "o.nii", "written as .nii.gz"), (simulated.dwi, "is the input")):
        done = run("--udf", EXAMPLES / "gaussian.py:gaussian", simulated.dwi, out, "--force", check=False)
        assert done.returncode == Exit.BAD_INPUT and said in done.stderr


def test_two_tilings_say_whether_a_halo_is_enough(simulated, tmp_path):
    what = ("--udf", EXAMPLES / "gaussian.py:gaussian", "--slices", 5, "--check-halo")
    words = (*what, simulated.dwi, tmp_path / "o.nii.gz")
    assert "halo 6 is enough" in run(*words).stdout
    done = run(*words, "--halo", 5, check=False)
    assert done.returncode == Exit.BAD_INPUT and "halo 5 is not enough" in done.stderr
    assert "--halo 6 is" in done.stderr
    assert list(tmp_path.iterdir()) == []


ONCE = """
import pathlib
import numpy as np

here = pathlib.Path(__file__).with_name("repaired")


def twice(block, *, bounds):
    if bounds["t"][0] == 9 and bounds["z"][0] > 0 and not here.exists():
        raise RuntimeError("not yet")
    return 2 * block
"""


def test_a_run_that_failed_in_a_function_goes_on(simulated, tmp_path):
    """One line of the report is the user's; what was done before is not done again, on other ranks."""
    (tmp_path / "mine.py").write_text(ONCE)
    words = ("--udf", f"{tmp_path}/mine.py:twice", "--slices", 10, simulated.dwi, tmp_path / "twice.nii.gz")
    done = run(*words, ranks=2, check=False)
    assert done.returncode == Exit.FAILED
    assert 'raise RuntimeError("not yet")' in done.stderr and "stage udf-twice, chunk 19" in done.stderr
    (tmp_path / "repaired").touch()
    run(*words)
    np.testing.assert_array_equal(voxels(tmp_path / "twice.nii.gz"), 2 * voxels(simulated.dwi))
    entry = stage(record(tmp_path, "run-twice.json"), "udf-twice")
    # The rank that failed had done chunks 12 to 18; the other may have been slow.
    assert 7 <= entry["resumed_chunks"] < entry["chunks"] == 24


def test_what_a_function_changes_of_the_process_is_put_back(simulated, tmp_path):
    """Paths of the command are relative to where it was given, and results may be read as others are."""
    (tmp_path / "mine.py").write_text(
        "import os\nos.chdir('/')\ndef same(block):\n    os.chdir('/')\n    os.umask(511)\n    return block\n"
    )
    shutil.copy(simulated.dwi, tmp_path / "in.nii.gz")
    run("--udf", "mine.py:same", "--slices", 10, "in.nii.gz", "out.nii.gz", ranks=2, cwd=tmp_path)
    np.testing.assert_array_equal(voxels(tmp_path / "out.nii.gz"), voxels(simulated.dwi))
    assert (tmp_path / "out.nii.gz").stat().st_mode & 0o444 == 0o444


def test_what_depends_on_a_function_that_changed_is_done_again(simulated, piped, tmp_path):
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    words = (tmp_path / PIPELINE.name, simulated.dwi, "--out", tmp_path / "out", "--keep-work", "--force")
    run(*words)
    assert digests_but_work(tmp_path / "out") == digests(piped)
    gaussian = tmp_path / "gaussian.py"
    gaussian.write_text(gaussian.read_text().replace("(block.astype", "(2 * block.astype"))
    run(*words)
    again = ("udf-gaussian", "udf-csa_gfa", "fit")
    resumed = {
        entry["stage"]: entry["resumed_chunks"] == entry["chunks"]
        for entry in record(tmp_path / "out")["stages"]
        if entry["stage"]
        in ("read-dwi", "mask.median-4", "udf-kurtosis", "udf-gaussian", "udf-csa_gfa", "fit")
    }
    again = ("udf-gaussian", "udf-csa_gfa", "fit")
    assert resumed == {name: name not in again for name in resumed} and len(resumed) == 6


def digests_but_work(folder):
    kept = folder.with_name("results")
    shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("work"))
    return digests(kept)


SCRIPT = """
import sys

import mpiimg
from gaussian import gaussian
from kurtosis import kurtosis
from mpi4py import MPI

from mpiimg.errors import BadInput


def doubled(block):
    return 2 * block


dwi, out, bvals, bvecs = sys.argv[1:]
single = mpiimg.run(kurtosis, dwi, f"{out}/single.nii.gz")
smooth = {"udf": gaussian, "params": {"sigma": 0.8}, "slices": 7}
stages = [{"tool": "mask", "median_radius": 2}, smooth]
stages.append({"tool": "fit", "b_max": 1500})
piped = mpiimg.run(stages, dwi, f"{out}/piped")
mpiimg.run(doubled, dwi, f"{out}/doubled.nii.gz", in_memory=True)
mpiimg.run("mask", dwi, f"{out}/mask", comm=MPI.COMM_WORLD, bvals=bvals, bvecs=bvecs, median_radius=2)
assert single.left_out == {}
assert sorted(single.files) == ["run-single.json", "single.json", "single.nii.gz"], single.files
assert all(path.exists() for path in piped.files.values())
assert {entry["stage"] for entry in piped.record["stages"]} >= {"mask.threshold", "udf-gaussian", "fit"}
for recipe, said in ((lambda: 0, "positional"), ("nmask", "no such tool"), ([3], "give either tool")):
    try:
        mpiimg.run(recipe, dwi, f"{out}/bad")
    except BadInput as error:
        assert said in str(error), error
    else:
        raise AssertionError(recipe)
"""


@pytest.mark.site
def test_from_python(simulated, piped, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = (simulated.dwi, tmp_path / "out", simulated.bvals, simulated.bvecs)
    command = [*launch.mpiexec(2), sys.executable, tmp_path / "script.py", *words]
    launch.run(command, timeout=PATIENCE, env={"PYTHONPATH": f"{EXAMPLES}:{launch.REPOSITORY}"})
    single = tmp_path / "out" / "single.nii.gz"
    assert single.read_bytes() == (piped / "dwi_desc-kurtosis_dwimap.nii.gz").read_bytes()
    for name in ("desc-gaussian_dwi", "model-tensor_param-fa_dwimap", "model-tensor_param-tensor_dwimap"):
        name = f"dwi_{name}.nii.gz"
        assert (tmp_path / "out" / "piped" / name).read_bytes() == (piped / name).read_bytes()
    mask = "dwi_desc-brain_mask.nii.gz"
    assert (tmp_path / "out" / "mask" / mask).read_bytes() == (piped / mask).read_bytes()
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "doubled.nii.gz"), 2 * voxels(simulated.dwi))


def test_after_denoising(simulated, tmp_path):
    """A function sees the denoised image, 0 outside the mask; the fit that follows sees what it returns."""
    (tmp_path / "p.toml").write_text(
        '[[stage]]\ntool = "mask"\nmedian_radius = 2\n[[stage]]\ntool = "denoise"\n'
        f'[[stage]]\nudf = "{EXAMPLES}/gaussian.py:gaussian"\nparams = {{ sigma = 0.5 }}\nslices = 6\n'
        '[[stage]]\ntool = "fit"\n'
    )
    out = tmp_path / "out"
    run(tmp_path / "p.toml", simulated.dwi, "--out", out)
    denoised, smooth = (voxels(out / f"dwi_desc-{name}_dwi.nii.gz") for name in ("denoised", "gaussian"))
    expected = [gaussian_filter(volume, 0.5) for volume in np.moveaxis(denoised, 3, 0)]
    np.testing.assert_array_equal(smooth, np.moveaxis(expected, 0, 3))
    gradients = ("--bvals", simulated.bvals, "--bvecs", simulated.bvecs)
    options = ("--mask", out / "dwi_desc-brain_mask.nii.gz", "--out", tmp_path / "fit")
    warm.run_tool("mpiimg-fit", out / "dwi_desc-gaussian_dwi.nii.gz", *gradients, *options)
    assert (tmp_path / "fit" / "dwi_desc-gaussian_model-tensor_param-fa_dwimap.nii.gz").read_bytes() == (
        out / "dwi_model-tensor_param-fa_dwimap.nii.gz"
    ).read_bytes()
