"""Trials of users' functions: on how little, how often, and what a function is known by in runs."""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading

import nibabel
import numpy as np
import pytest
from support import launch, warm
from support.subjects import record

import mpiimg
import mpiimg.errors
from mpiimg.arrays.identity import identity
from mpiimg.errors import BadInput, Exit
from mpiimg.functions.declare import Declaration
from mpiimg.functions.function import Function, Origin
from mpiimg.functions.image_stages import _merged

pytestmark = pytest.mark.tool

LOGGED = """
import os
def f(block, k=2):
    with open({log!r}, "a") as log:
        print(*block.shape, file=log)
    return block * k
"""


@pytest.fixture
def image(tmp_path):
    """The path of an image of two volumes of 40 x 30 x 36."""
    voxels = np.random.default_rng(0).integers(0, 100, (40, 30, 36, 2)).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "in.nii.gz")
    return tmp_path / "in.nii.gz"


def shapes(log) -> list[str]:
    """Return the shapes of the blocks that a function was called on since the last look."""
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_what_loading_took_is_no_part_of_what_a_function_is_known_by():
    """Or the partial results of an aggregate are merged again where a run is resumed by another install."""
    origin = Origin("Histogram", "mine.py", None, "", "0" * 64)
    one = Function(origin, Declaration(), {"bins": 16}, aggregate=True, libraries=1 << 20, identity="a")
    for changed, same in (
        (dataclasses.replace(one, libraries=2 << 20), True),
        (dataclasses.replace(one, identity="b"), False),
        (dataclasses.replace(one, params={"bins": 8}), False),
    ):
        digests = {identity(functools.partial(_merged, each)).digest for each in (one, changed)}
        assert (len(digests) == 1) == same


def test_a_trial_is_not_repeated_where_nothing_changed(image, tmp_path):
    log, function, out = tmp_path / "log", tmp_path / "mine.py", tmp_path / "out"
    function.write_text(LOGGED.format(log=str(log)))
    words = ("mpiimg-run", "--udf", f"{function}:f", "--slices", 18, image, "--out", out)
    tried, chunks = ["40 30 2"] * 2, ["40 30 18"] * 4
    warm.run_tool(*words, "--plan")
    assert shapes(log) == tried and not out.exists()
    warm.run_tool(*words)
    assert shapes(log) == tried + chunks
    plan = warm.run_tool(*words, "--plan").stdout
    assert "udf-f" in plan and shapes(log) == []
    warm.run_tool(*words, "--force")
    assert shapes(log) == chunks
    warm.run_tool(*words, "--plan", "--param", "k=3")
    assert shapes(log) == tried
    function.write_text(LOGGED.format(log=str(log)).replace("k=2", "k=4"))
    warm.run_tool(*words, "--plan")
    assert shapes(log) == tried


def test_a_run_that_failed_and_goes_on_does_not_try_again(image, tmp_path):
    log, function, out = tmp_path / "log", tmp_path / "mine.py", tmp_path / "out"
    broken = (
        "    if block[0, 0, 0] == block[0, 0, 0] and block.shape[2] > 2 and os.path.exists({!r}): 1 / 0\n"
    )
    marker = tmp_path / "marker"
    marker.touch()
    text = LOGGED.format(log=str(log)).replace("    return", broken.format(str(marker)) + "    return")
    function.write_text(text)
    words = ("mpiimg-run", "--udf", f"{function}:f", "--slices", 18, image, "--out", out)
    assert warm.run_tool(*words, check=False).returncode == Exit.FAILED
    assert shapes(log)[:2] == ["40 30 2"] * 2
    marker.unlink()
    warm.run_tool(*words)
    assert "40 30 2" not in shapes(log)


ONLY_WHOLE = "    if block.shape != (40, 30, 36): raise ValueError('only whole volumes')\n"


@pytest.mark.parametrize("whole", [False, True])
def test_a_function_of_volumes_is_tried_on_a_part_and_on_a_whole_one_only_if_it_must(image, tmp_path, whole):
    log, function = tmp_path / "log", tmp_path / "mine.py"
    text = LOGGED.format(log=str(log))
    function.write_text(text.replace("    return", ONLY_WHOLE + "    return") if whole else text)
    words = ("mpiimg-run", "--udf", f"{function}:f", "--over", "volumes", image, tmp_path / "out.nii.gz")
    warm.run_tool(*words, "--plan")
    assert shapes(log) == (["32 30 32", "40 30 36"] if whole else ["32 30 32"] * 2)


MEAN_VOLUME = """
class Mean:
    def partial(self, block):
        return {"n": 1, "sum": block.astype(float)}
    def finish(self, merged):
        return merged["sum"].mean() / merged["n"]
"""


def test_partial_results_may_have_the_shape_of_a_volume(image, tmp_path):
    function = tmp_path / "mine.py"
    function.write_text(MEAN_VOLUME)
    words = ("--udf", f"{function}:Mean", "--over", "volumes", image, tmp_path / "out.json")
    warm.run_tool("mpiimg-run", *words)
    voxels = np.asarray(nibabel.load(image).dataobj)
    assert np.isclose(record(tmp_path, "out.json"), voxels.mean())


# What a function is known by.


def times(k):
    def f(block):
        return block * k

    return f


def values(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_a_closure_with_another_value_is_another_function(image, tmp_path):
    """Also where the work of the first is kept."""
    made = tmp_path / "out.nii.gz"
    for k in (5, 7):
        mpiimg.run(times(k), image, made, keep_work=True, force=k == 7)
        assert np.array_equal(values(made), values(image) * k)


@pytest.mark.long
def test_a_helper_in_a_module_beside_the_file_is_part_of_the_function(image, tmp_path):
    function, helper, made = tmp_path / "mine.py", tmp_path / "own_helper.py", tmp_path / "out.nii.gz"
    function.write_text("from own_helper import scaled\ndef f(block):\n    return scaled(block)\n")
    words = ("mpiimg-run", "--udf", f"{function}:f", "--keep-work", image, made)
    for k in (5, 77):
        helper.write_text(f"def scaled(block):\n    return block * {k}\n")
        launch.run_tool(*words, *(("--force",) if k == 77 else ()))
        assert np.array_equal(values(made), values(image) * k)


def test_two_closures_in_one_run_are_two_functions(image, tmp_path):
    stages = [{"udf": times(k), "name": f"by{k}"} for k in (3, 5)]
    mpiimg.run(stages, image, tmp_path / "out")
    assert np.array_equal(values(tmp_path / "out" / "in_desc-by5_dwi.nii.gz"), values(image) * 15)


class Scale:
    """A callable that is no function."""

    def __init__(self, k):
        self.k = k

    def __call__(self, block):
        return block * self.k


def test_an_instance_a_partial_and_a_function_without_source_are_functions(image, tmp_path):
    import functools

    names: dict = {}
    exec("def made(block):\n    return block * 2", names)
    made = (Scale(2), functools.partial(np.multiply, 2), names["made"], times(2).__get__(1).__func__)
    for number, function in enumerate(made):
        path = tmp_path / f"{number}.nii.gz"
        mpiimg.run(function, image, path)
        assert np.array_equal(values(path), values(image) * 2)


COUNTS = """
calls = 0
def f(block):
    global calls
    calls += 1
    return block * 2
"""


def test_what_cannot_be_known_is_said_and_never_taken_for_done(image, tmp_path):
    function = tmp_path / "mine.py"
    function.write_text(COUNTS)
    words = ("mpiimg-run", "--udf", f"{function}:f", image, "--out", tmp_path / "out")
    said = warm.run_tool(*words).stderr
    assert "f: its work is not resumed after an interruption" in said and "it sets the global calls" in said
    again = warm.run_tool(*words, check=False)
    assert again.returncode == Exit.BAD_INPUT and "use --force" in again.stderr


# What it takes.


def test_a_trial_takes_no_more_memory_than_is_left_of_the_share(image, tmp_path):
    function = tmp_path / "mine.py"
    function.write_text(
        "import time\ndef f(block):\n    x = bytearray(600 << 20)\n    time.sleep(20)\n    return block\n"
    )
    words = ("mpiimg-run", "--udf", f"{function}:f", "--memory", "200M", image, "--out", tmp_path / "out")
    done = warm.run_tool(*words, check=False)
    assert done.returncode == Exit.BAD_INPUT
    assert "mine.py:2: f: takes more than the 384 MiB of memory that are left for it" in done.stderr


HANGS = """
import re, sys
import mpiimg
def f(block):
    return re.match("(a+)+b", "a" * 64)
try:
    mpiimg.run(f, {image!r}, {out!r}, timeout=10)
except mpiimg.errors.BadInput as error:
    sys.stdout.write(f"{{error}}\\n")
"""


def test_a_trial_that_hangs_in_c_is_answered_with_the_line_it_is_in(image, tmp_path):
    """And all ranks say so, of which one has tried it."""
    script, out = tmp_path / "script.py", tmp_path / "out.nii.gz"
    script.write_text(HANGS.format(image=str(image), out=str(out)))
    command = [*launch.mpiexec(2, sys.executable), sys.executable, script]
    done = launch.run(command, env={"PYTHONPATH": str(launch.REPOSITORY)})
    said = "has not returned after 2.5 s (tried on a block of 40 x 30 x 2 int16); a trial has a quarter of"
    assert done.stdout.count(f"{script}:5: f: {said}") == 2
    assert done.stdout.count(': return re.match("(a+)+b", "a" * 64)\n') == 2


def test_a_function_that_cannot_go_to_another_process_says_so(image, tmp_path):
    lock = threading.Lock()
    with pytest.raises(BadInput, match=r"cannot be carried to another process.* lock"):
        mpiimg.run(lambda block: lock and block, image, tmp_path / "out.nii.gz")
