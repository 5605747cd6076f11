"""Guards around users' functions, each by the reason why it is there, without a run."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mpiimg.engine.forecast import files_only_bytes, stage_sizes
from mpiimg.engine.stage import expected_stages
from mpiimg.errors import BadInput
from mpiimg.functions import image_stages, load, trial
from mpiimg.functions.declare import Declaration
from mpiimg.functions.function import Function, Origin, keep_loaded
from mpiimg.functions.partials import Fields
from mpiimg.functions.results import Refused, checked_result
from mpiimg.functions.surveys import combined, filtered
from mpiimg.neuro.nifti import open_image
from mpiimg.neuro.samples import image_of


def function(code, over="slabs", aggregate=False, **declared) -> Function:
    """Declare code that lies nowhere."""
    origin = Origin(code.__qualname__, "here.py", Path("here.py"), None, str(id(code)))
    keep_loaded(origin, code)
    return Function(origin, Declaration(over, **declared), {}, aggregate)


# Trials.


def test_a_trial_reads_no_further_than_it_needs(tmp_path):
    """A stream that goes on behind the sample, as each of more than some slices does, is nothing odd."""
    voxels = np.arange(8 * 200 * 200 * 20, dtype=np.int16).reshape(200, 200, 20, 8)
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(path := tmp_path / "long.nii.gz")
    image = open_image(path, 4, "image")
    block = trial._sample(image, image, ((0, 1), (9, 11), (0, 200), (0, 200)))
    assert np.array_equal(block[0], voxels[:, :, :2, 0].T)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(BadInput, match="truncated or corrupt gzip"):
        trial._sample(image, image, ((0, 1), (9, 11), (0, 200), (0, 200)))


# Results.


@pytest.mark.parametrize(
    ("result", "dtype", "words"),
    [
        (None, None, "returns nothing"),
        (np.zeros((2, 3)), None, r"shape \(2 x 3\), must return \(2 x 2\)"),
        (np.zeros((2, 2), complex), None, "no image holds it"),
        (np.zeros((2, 2), object), None, "no image holds it|returns object"),
        (np.full((2, 2), 1.5), "int16", "returns float64 where int16 is due; round and cast it"),
    ],
    ids=["nothing", "shape", "complex", "objects", "digits"],
)
def test_a_result_that_no_file_can_hold_is_refused_and_not_cast(result, dtype, words):
    with pytest.raises(Refused, match=words):
        checked_result(function(np.sum), result, (2, 2), dtype)


def test_a_result_may_lose_digits_but_not_its_kind():
    assert checked_result(function(np.sum), np.ones(2), (2,), "float32").dtype == np.float32
    assert checked_result(function(np.sum), np.ones(2, bool), (2,)).dtype == np.uint8


def test_json_has_null_for_numbers_that_it_cannot_write():
    assert trial.document({"a": np.array([1.0, np.nan, np.inf])}) == (
        b'{\n  "a": [\n    1.0,\n    null,\n    null\n  ]\n}\n'
    )
    with pytest.raises(Refused, match="finish returns set"):
        trial.document({"a": {1, 2}})


# Blocks.


def test_a_mask_that_a_function_sees_cannot_be_written_to():
    image, values = image_of((4, 3, 2))
    masked = function(lambda block, mask: block)
    box = ((0, 4), (0, 3), (0, 2))
    _, context = image_stages.presented(image, masked, box, [values, np.ones((4, 3, 2), np.uint8)], {})
    with pytest.raises(ValueError, match="read-only"):
        context["mask"][0] = False


@pytest.mark.parametrize(("shape", "factor"), [((60, 8, 7), 2), ((3, 60, 8, 7), 8)])
def test_a_block_is_so_many_halos_thick_since_a_halo_is_worked_on_twice(shape, factor):
    image, _ = image_of(shape)
    grid = image_stages.grid(image, function(np.sum, halo=3))
    assert grid.block[-1] >= min(3 * factor, 60)


# Partial results.


def test_partial_results_of_another_shape_or_type_are_refused_since_rows_have_one_length():
    fields = Fields.of({"n": np.zeros(3), "s": np.float32(1)})
    assert fields.nbytes == 28
    value = {"n": np.arange(3.0), "s": np.float32(7)}
    unpacked = fields.unpack(fields.pack(value))
    assert unpacked["n"].tolist() == [0, 1, 2] and unpacked["s"] == 7 and unpacked["n"].flags.writeable
    for other in ({"n": np.zeros(4), "s": np.float32(1)}, {"n": np.zeros(3), "s": 1.0}, np.zeros(3)):
        with pytest.raises(Refused, match=r"returned .* for another"):
            fields.pack(other)


def test_a_plan_counts_what_the_end_of_an_aggregate_takes():
    """A partial result of 80 MB is held as bytes and as arrays while the next one is merged."""

    class Total:
        def partial(self, block):
            return np.zeros(10_000_000)

    image, _ = image_of((3, 8, 7, 6))
    total = function(Total, aggregate=True)
    trial_result = image_stages.TrialResult(fields=Fields.of(np.zeros(10_000_000)))
    on_blocks = image_stages.OnBlocks(image, total, {}, fields=trial_result.fields)
    stages, _ = expected_stages(image_stages.aggregate(on_blocks, image.array("dwi"), "total", trial_result))
    taken = {stage.name: files_only_bytes(stage, stage_sizes(stage), 1) for stage in stages}
    assert max(taken.values()) >= 3 * 80_000_000
    assert taken["finish-total"] >= 2 * 80_000_000


# Files.


def test_a_file_that_could_not_be_run_is_run_again_and_not_taken_for_loaded(tmp_path):
    path = tmp_path / "once.py"
    path.write_text("import nowhere_at_all\ndef f(block): return block\n")
    for _ in range(2):
        with pytest.raises(BadInput, match=r"once\.py:1: f: ModuleNotFoundError"):
            load.from_text(f"{path}:f", Path(), {})
    assert not [name for name in sys.modules if name.startswith("mpiimg_udf_once")]


def test_a_file_whose_text_changed_is_another_module(tmp_path):
    path = tmp_path / "two.py"
    path.write_text("def f(block): return 1\n")
    first = load.from_text(f"{path}:f", Path(), {})
    path.write_text("def f(block): return 2\n")
    second = load.from_text(f"{path}:f", Path(), {})
    assert (first(None), second(None)) == (1, 2)
    assert first.origin.key != second.origin.key


# Surveys.


def planes(*shape):
    return np.ones(shape, np.float32), np.ones(shape, np.float32), np.zeros(shape, np.int32)


def test_pixels_without_any_usable_exposure_or_a_finite_value_have_no_data():
    from mpiimg.astro.fits.maskplanes import bits

    image, variance, mask = planes(2, 1, 3)
    mask[:, 0, 0] = bits("NO_DATA")
    image[:, 0, 1] = np.nan
    mean = function(lambda i, v, m: (i.mean(axis=0), v.mean(axis=0)), "patches")
    result, spread, flags, inputs = combined(mean, (image, variance, mask), {}, {})
    assert np.isnan(result[0, :2]).all() and result[0, 2] == 1
    assert np.isinf(spread[0, :2]).all() and spread[0, 2] == 1
    assert flags.tolist() == [[bits("NO_DATA"), bits("NO_DATA"), 0]]
    assert inputs.tolist() == [[0, 2, 2]]


def test_a_filter_that_returns_the_image_alone_leaves_variance_and_mask_as_they_are():
    image, variance, mask = planes(2, 3)
    doubled = filtered(function(lambda i, v, m: 2 * i, "exposures"), (image, variance, mask), {})
    assert doubled[0].max() == 2 and doubled[1] is variance and doubled[2] is mask
    with pytest.raises(Refused, match="returns 2 planes"):
        filtered(function(lambda i, v, m: (i, v), "exposures"), (image, variance, mask), {})
