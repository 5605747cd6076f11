"""mpiimg-run script.py: a script with the options of a tool; and the same script by Python itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from support import launch

from mpiimg.errors import Exit

pytestmark = pytest.mark.tool

SCRIPT = """
import sys
import numpy as np
import mpiimg as mi
from beside import doubled

numbers = mi.from_array(np.arange(24.0).reshape(2, 3, 4), "x y z")
result = mi.map_blocks(doubled, numbers)
if "compute" in sys.argv:
    print(sys.argv[1:], result.sum().compute())
mi.write({"doubled.npy": result}, sys.argv[1])
if "exit" in sys.argv:
    sys.exit(5)
if "fail" in sys.argv:
    raise KeyError("mine")
if "part" in sys.argv:
    from mpiimg.engine.mpi import scripts
    scripts.note(3)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "beside.py").write_text("def doubled(block):\n    return 2 * block\n")
    path = tmp_path / "pipeline.py"
    path.write_text(SCRIPT)
    return path


def run(*words, **how):
    return launch.run_tool("mpiimg-run", *words, env={"PYTHONPATH": str(launch.REPOSITORY)}, **how)


def python(*words, ranks=None, **how):
    launcher = launch.mpiexec(ranks) if ranks else []
    path = {"PYTHONPATH": str(launch.REPOSITORY)}
    return launch.run([*launcher, sys.executable, *words], env=path, **how)


@pytest.mark.site
@pytest.mark.parametrize("ranks", [None, 2])
def test_a_script_writes_the_same_however_it_is_started(script, tmp_path, ranks):
    """What stands behind its name is its own, also what looks like an option of ours."""
    out, words = tmp_path / "out", ("compute", "--memory", "--force")
    done = run("--memory", "2G", script, out, *words, ranks=ranks, cwd=tmp_path)
    assert sorted(done.stdout) == sorted(f"{[str(out), *words]} 552.0\n" * (ranks or 1))
    np.testing.assert_array_equal(np.load(out / "doubled.npy"), 2 * np.arange(24.0).reshape(2, 3, 4))
    record = json.loads((out / "run-doubled.npy.json").read_text())
    assert record["script"] == {
        "path": str(script),
        "sha256": hashlib.sha256(script.read_bytes()).hexdigest(),
    }
    again = python(script, tmp_path / "again", *words, ranks=ranks, cwd=tmp_path)
    assert sorted(again.stdout) == sorted(done.stdout.replace(str(out), str(tmp_path / "again")))
    assert (out / "doubled.npy").read_bytes() == (tmp_path / "again" / "doubled.npy").read_bytes()
    assert not (tmp_path / ".mpiimg").exists()  # of what it keeps between two calls nothing stays


@pytest.mark.parametrize(
    ("word", "status", "said"),
    [("exit", 5, ""), ("part", Exit.PARTIAL, ""), ("fail", Exit.FAILED, "KeyError: 'mine'")],
)
def test_a_script_has_one_status_however_it_is_started(script, tmp_path, word, status, said):
    for start in run, python:
        done = start(script, tmp_path / start.__name__, word, check=False, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert said in done.stderr and done.stderr.count("Traceback") == bool(said)
        # The traceback is of the script: it begins there.
        assert not said or done.stderr.partition("Traceback")[2].splitlines()[1].endswith("in <module>")


@pytest.mark.site
def test_of_a_script_that_is_planned_nothing_is_written(script, tmp_path):
    done = run("--plan", "--ranks", 3, script, tmp_path / "out", ranks=2, cwd=tmp_path)
    assert done.stdout.count("3 ranks on 1 node") == done.stdout.count("write-doubled.npy") == 1
    assert not (tmp_path / "out").exists()
    done = run("--plan", script, tmp_path / "out", "compute", cwd=tmp_path)
    assert "write-doubled.npy" not in done.stdout and "all stages" in done.stdout
    assert "mpiimg: the plan ends at pipeline.py:10: what comes next may depend on the result" in done.stderr


OVERLAPS = """
import sys
import numpy as np
import mpiimg as mi
from scipy.ndimage import uniform_filter

def smooth(block):
    return uniform_filter(block, 5)

numbers = mi.from_array(np.random.default_rng(0).normal(size=(20, 8, 8)), "x y z")
depth = {"x": int(sys.argv[1]), "y": 2, "z": 2}
smoothed = mi.map_overlap(smooth, numbers, depth=depth, boundary="reflect", chunks={"x": 5})
mi.write({"smoothed.npy": smoothed}, "out", force=True)
"""


def test_the_depth_of_a_script_is_checked_also_where_it_ran_before(tmp_path):
    (tmp_path / "overlaps.py").write_text(OVERLAPS)
    run("overlaps.py", 1, cwd=tmp_path)
    done = run("--check-halo", "overlaps.py", 1, cwd=tmp_path, check=False)
    assert done.returncode == Exit.BAD_INPUT
    assert "depth x=1, y=2, z=2 is not enough" in done.stderr
    done = run("--check-halo", "overlaps.py", 2, cwd=tmp_path)
    assert "mpiimg: map_overlap(smooth): depth x=2, y=2, z=2 is enough" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.py"], "mpiimg: error: none.py: No such file or directory\n"),
        (["--udf", "a.py:f", "{}"], "mpiimg-run: error: --udf: there is no such option; see"),
        (["--memory", "lots", "{}"], "mpiimg: error: --memory lots: "),
        (["--ranks", "3", "{}"], "mpiimg: error: --ranks and --nodes are for --plan"),
        # Behind the script it would be the script's, and all would run.
        (["{}", "--plan"], "mpiimg: error: --plan stands behind "),
    ],
)
def test_what_a_script_cannot_be_started_with_is_said_in_a_line(script, words, said):
    words = [str(script) if word == "{}" else word for word in words]
    done = run(*words, check=False)
    assert done.returncode == Exit.BAD_INPUT
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr


def test_libraries_of_a_script_start_no_threads_unless_they_are_asked_for(tmp_path):
    path = tmp_path / "threads.py"
    path.write_text("import os\nprint(os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])\n")
    command = [sys.executable, launch.REPOSITORY / "bin" / "mpiimg-run", path]
    for given, said in (({}, "1 1"), ({"OMP_NUM_THREADS": "3"}, "3 1")):
        environment = {k: v for k, v in launch.environment().items() if not k.endswith("_NUM_THREADS")}
        done = subprocess.run(command, env={**environment, **given}, capture_output=True, text=True)
        assert done.stdout.strip() == said, done.stderr


def test_arrays_of_a_script_are_staged_where_it_is_told(script, tmp_path):
    run("--work-dir", tmp_path / "scratch", script, tmp_path / "out")
    assert np.load(tmp_path / "out" / "doubled.npy").sum() == 2 * np.arange(24).sum()
    assert list((tmp_path / "scratch").iterdir()) == []
    done = run("--work-dir", script, script, tmp_path / "other", check=False)
    assert done.returncode == Exit.BAD_INPUT
    assert f"--work-dir {script}: cannot write there" in done.stderr
