"""Named images of a pipeline: what functions give later stages read, and nothing is lost in silence."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from support import warm
from support.ranks import on_site
from support.subjects import PATIENCE, digests, record

from mpiimg.errors import BadInput, Exit
from mpiimg.functions.wiring import Place, Wiring, wired

FUNCTIONS = '''
import numpy as np
import mpiimg

@mpiimg.udf(over="voxels", dtype="float32")
def mean(block):
    return block.mean(axis=-1, dtype="float64")

@mpiimg.udf(over="volumes")
def bright(volume, *, above=1.0):
    return volume > above * volume.mean()

@mpiimg.udf(over="voxels", dtype="float32")
def pair(series, mean, field, *, scale=1.0):
    """Two results, of one value and of two."""
    return scale * (series.max(axis=-1) - mean), np.stack([mean, field], axis=-1)

@mpiimg.udf(over="slabs", dtype="float32", halo=1)
def level(volume, mask, field):
    """Of every volume of the image, and a mask and a file that have none."""
    return np.where(mask != 0, volume - field, 0)

@mpiimg.udf(over="voxels", dtype="float32")
def spread(pair):
    return pair[..., 1] - pair[..., 0]

class Sum:
    def partial(self, volume):
        return np.array([volume.sum(dtype="float64")])
'''

PIPELINE = """
[inputs]
field = "field.nii.gz"

[[stage]]
udf = "mine.py:mean"
gives = ["mean"]

[[stage]]
udf = "mine.py:bright"
reads = ["mean"]
gives = ["mask"]

[[stage]]
udf = "mine.py:pair"
reads = ["image", "mean", "field"]
gives = ["range", "both"]
params = { scale = 2.0 }

[[stage]]
udf = "mine.py:spread"
reads = ["both"]
gives = ["spread"]

[[stage]]
udf = "mine.py:Sum"
over = "volumes"
reads = ["spread"]

[[stage]]
udf = "mine.py:level"
reads = ["image", "mask", "field"]

[[stage]]
tool = "fit"
b_max = 1500
"""


def voxels(path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def written(folder, text):
    (folder / "mine.py").write_text(FUNCTIONS)
    path = folder / "pipeline.toml"
    path.write_text(text)
    return path


def run(*words, **how):
    return warm.run_tool("mpiimg-run", *words, timeout=PATIENCE, **how)


@pytest.fixture(scope="module")
def place(simulated, tmp_path_factory):
    """A folder with the pipeline, its functions, and a field as large as the simulated image."""
    folder = tmp_path_factory.mktemp("wired")
    image = nibabel.load(simulated.dwi)
    field = np.random.default_rng(3).normal(size=image.shape[:3]).astype("f4")
    nibabel.save(nibabel.Nifti1Image(field, image.affine), folder / "field.nii.gz")
    return folder


@pytest.fixture(scope="module")
def made(simulated, place):
    run(written(place, PIPELINE), simulated.dwi, "--out", place / "out")
    return place / "out"


@pytest.mark.tool
def test_results_go_by_name_from_stage_to_stage(simulated, place, made):
    image, field = voxels(simulated.dwi).astype("f8"), voxels(place / "field.nii.gz")
    mean = image.mean(axis=-1).astype("f4")
    np.testing.assert_array_equal(voxels(made / "dwi_desc-mean_dwimap.nii.gz"), mean)
    mask = voxels(made / "dwi_desc-bright_mask.nii.gz")
    np.testing.assert_array_equal(mask, mean > mean.mean())
    spread = (2.0 * (image.max(axis=-1) - mean)).astype("f4")
    np.testing.assert_allclose(voxels(made / "dwi_desc-range_dwimap.nii.gz"), spread, rtol=1e-6)
    both = voxels(made / "dwi_desc-both_dwimap.nii.gz")
    np.testing.assert_array_equal(both, np.stack([mean, field], axis=-1))
    difference = voxels(made / "dwi_desc-spread_dwimap.nii.gz")
    np.testing.assert_array_equal(difference, both[..., 1] - both[..., 0])
    (total,) = record(made, "dwi_desc-Sum.json")
    assert total == pytest.approx(difference.sum(dtype="f8"), rel=1e-12)
    level = np.where(mask[..., None] != 0, image - field[..., None], 0).astype("f4")
    np.testing.assert_allclose(voxels(made / "dwi_desc-level_dwi.nii.gz"), level, rtol=1e-6, atol=1e-3)


@pytest.mark.tool
def test_a_step_works_on_the_mask_and_the_image_that_functions_gave(simulated, made, tmp_path):
    level, mask = (made / f"dwi_desc-{name}.nii.gz" for name in ("level_dwi", "bright_mask"))
    gradients = ("--bvals", simulated.bvals, "--bvecs", simulated.bvecs)
    warm.run_tool("mpiimg-fit", level, *gradients, "--mask", mask, "--b-max", 1500, "--out", tmp_path)
    for key in ("fa", "tensor"):
        alone = tmp_path / f"dwi_desc-level_model-tensor_param-{key}_dwimap.nii.gz"
        np.testing.assert_array_equal(
            voxels(made / f"dwi_model-tensor_param-{key}_dwimap.nii.gz"), voxels(alone)
        )
    said = json.loads((made / "dwi_model-tensor_param-fa_dwimap.json").read_text())
    assert said["Mask"] == "dwi_desc-bright_mask.nii.gz"


@pytest.mark.tool
@pytest.mark.parametrize("ranks", on_site((3,), (4,)))
def test_any_number_of_ranks(simulated, place, made, tmp_path, ranks):
    run(place / "pipeline.toml", simulated.dwi, "--out", tmp_path, "--in-memory", ranks=ranks)
    assert digests(tmp_path) == digests(made)


@pytest.mark.tool
def test_the_command_line_names_another_file(simulated, place, tmp_path):
    """And the record says which."""
    image = nibabel.load(simulated.dwi)
    other = tmp_path / "zeros.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape[:3], "i2"), image.affine), other)
    stage = '[inputs]\nfield = "missing.nii"\n[[stage]]\nudf = "mine.py:level"\n'
    text = stage + 'over = "voxels"\nreads = ["image", "mask", "field"]\n'
    code = "def level(series, mask, field):\n    return (series + (field + mask)[..., None]).astype('f4')\n"
    (tmp_path / "mine.py").write_text(code)
    path = tmp_path / "p.toml"
    path.write_text(text)
    mask = tmp_path / "mask.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones(image.shape[:3], "u1"), image.affine), mask)
    words = ("--mask", mask, "--input", f"field={other}", "--out", tmp_path / "out")
    run(path, simulated.dwi, *words)
    found = voxels(tmp_path / "out" / "dwi_desc-level_dwi.nii.gz")
    np.testing.assert_array_equal(found, voxels(simulated.dwi).astype("f4") + 1)
    assert record(tmp_path / "out")["inputs"]["input field"]["path"] == str(other)


@pytest.mark.tool
def test_a_map_that_is_passed_by_is_said(simulated, place, tmp_path):
    stages = '[[stage]]\nudf = "mine.py:mean"\n{}\n[[stage]]\nudf = "mine.py:mean"\nname = "again"\n'
    for number, gives in enumerate(("", 'gives = ["mean"]')):
        done = run(written(place, stages.format(gives)), simulated.dwi, "--out", tmp_path / str(number))
        is_said = "is written and passed by: again works on the image as it was before" in done.stderr
        assert is_said == (not gives), done.stderr


STAGE = '[[stage]]\nudf = "mine.py:{}"\n'
WRONG = {
    "unknown": (STAGE.format("mean") + 'reads = ["imaeg"]', "stage mean reads imaeg, which no stage before"),
    "later": (
        STAGE.format("bright") + 'reads = ["mean"]\n' + STAGE.format("mean") + 'gives = ["mean"]',
        "stage bright reads mean, which stage mean gives only after it; put that one first",
    ),
    "unread file": ('[inputs]\nx = "x.nii"\n' + STAGE.format("mean"), "no stage reads x: say so there"),
    "lost": (
        STAGE.format("mean") + 'gives = ["mean"]\nwrite = false',
        "stage mean says write = false, and no later stage reads mean, which it gives",
    ),
    "lost map": (
        STAGE.format("mean") + 'write = false\n[[stage]]\ntool = "mask"',
        "does not take the place of the image: give it a name by gives",
    ),
    "mask of volumes": (
        '[[stage]]\nudf = "numpy:abs"\ngives = ["mask"]',
        "gives mask, which must be ",
    ),
    "one of two": (STAGE.format("mean") + 'gives = ["a", "b"]', "gives 2 results, and must return so many"),
    "volumes": (
        STAGE.format("pair") + 'reads = ["image", "image2"]',
        "stage pair reads image2, which no stage before it gives, and no file has: did you mean image?",
    ),
    "text": (STAGE.format("mean") + 'gives = "mean"', "must be a list of names, as in gives"),
    "path": (STAGE.format("mean") + 'gives = ["../x"]', "'../x': is no name"),
    "twice": (STAGE.format("mean") + 'reads = ["image", "image"]', "reads: image stands there twice"),
    "aggregate": (STAGE.format("Sum") + 'gives = ["x"]', "gives: Sum makes no image"),
    "step": ('[[stage]]\ntool = "mask"\nreads = ["image"]', "reads is of functions: mask works on the image"),
    "space": (
        '[inputs]\nf = "small.nii"\n' + STAGE.format("mean") + 'reads = ["image", "f"]',
        "the image f is not in the space of",
    ),
    "no file": (
        '[inputs]\nf = "none.nii"\n' + STAGE.format("mean") + 'reads = ["image", "f"]',
        "none.nii",
    ),
}  # fmt: skip


@pytest.mark.tool
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_names_is_said_before_the_run(simulated, place, tmp_path, name):
    text, said = WRONG[name]
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), "f4"), np.eye(4)), place / "small.nii")
    done = run(written(place, text), simulated.dwi, "--out", tmp_path / "out", check=False)
    assert done.returncode == Exit.BAD_INPUT, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_of_a_step_all_that_chains_share_is_used():
    first = Place("mean", Wiring(gives=("mean",), write=True))
    kept = Place("mask", Wiring(("mean",), ("mask",), write=False))
    done = wired([first, kept, Place("fit")], (), "pipeline")
    assert [one and one.later for one in done] == ["fit", "fit", None]
    keyword = Place("level", Wiring(), takes_mask=True)
    wired([first, kept, keyword], (), "pipeline")
    with pytest.raises(BadInput, match="write = false"):
        wired([first, kept, Place("level", Wiring())], (), "pipeline")
    with pytest.raises(BadInput, match="write = false"):
        wired([Place("sum", Wiring(write=False), aggregate=True), Place("fit")], (), "pipeline")
