"""Tests inside ranks: a failure on any rank, a death or a broken file ends the job at once, and is shown."""

import re
import sys
import time

import pytest
from support import launch
from support.ranks import Job

pytestmark = [pytest.mark.tool, pytest.mark.site]

#: The second of three tests goes wrong on rank 1, while the others wait for it.
TESTS = """
import os, signal, sys
import pytest
from support.ranks import COMM

pytestmark = pytest.mark.ranks

if {while_collecting} and COMM.rank == 1:
    raise ValueError("on purpose")

def test_first():
    assert COMM.allreduce(1) == 3

def test_second():
    if COMM.rank == 1:
        print("just before")
        {action}
    COMM.Barrier()

def test_third():
    pytest.skip("for a reason")
"""

NAMES = [f"test_three.py::test_{name}[3-ranks]" for name in ("first", "second", "third")]


def write(folder, action="pass", while_collecting=False):
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    ranks: as here\n")
    file = folder / "test_three.py"
    file.write_text(TESTS.format(action=action, while_collecting=while_collecting))
    return file


def all_judged(folder, *how, **more) -> list[str]:
    """Run the tests on three ranks and return what is said of each; nothing if it passed."""
    file, started = write(folder, *how, **more), time.monotonic()
    job = Job(3, NAMES, [file], folder)
    assert time.monotonic() - started < 30
    return [judged(job, name) for name in NAMES]


def judged(job: Job, name: str) -> str:
    try:
        job.judge(name)
    except (pytest.fail.Exception, pytest.skip.Exception) as said:
        return f"{type(said).__name__}: {said}"
    return ""


NOT_RUN = "Skipped: NOT RUN: the job of 3 ranks had ended"


def test_outcomes_are_those_of_all_ranks(tmp_path):
    assert all_judged(tmp_path) == ["", "", "Skipped: for a reason"]


def test_a_failure_on_one_rank_ends_all_and_is_shown(tmp_path):
    first, second, third = all_judged(tmp_path, "assert COMM.size < 3")
    assert (first, third) == ("", NOT_RUN)
    assert second.startswith("Failed: rank 1 of 3, call:\n")
    assert "assert 3 < 3" in second and "Captured stdout call:\njust before" in second


def test_a_death_ends_all_and_is_laid_on_the_test_in_which_it_came(tmp_path):
    first, second, third = all_judged(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert (first, third) == ("", NOT_RUN)
    assert second.startswith("Failed: 3 ranks: exit code ")


def test_a_file_that_one_rank_cannot_collect_ends_all_and_is_shown(tmp_path):
    first, second, third = all_judged(tmp_path, while_collecting=True)
    assert first.startswith("Failed: 3 ranks: exit code ")
    assert "[rank 1] test_three.py was not collected" in first and "ValueError: on purpose" in first
    assert (second, third) == (NOT_RUN, NOT_RUN)


def test_a_plain_pytest_starts_ranks_and_reports_each_test_for_each_number(tmp_path):
    write(tmp_path)
    words = (
        "-m",
        "pytest",
        "-v",
        "-p",
        "support.ranks",
        "-p",
        "no:cacheprovider",
        "--ranks",
        "2,3",
        tmp_path,
    )
    path = {"PYTHONPATH": str(launch.REPOSITORY / "tests")}
    done = launch.run([sys.executable, *words], env=path, cwd=tmp_path, check=False)
    said = re.findall(r"::test_(\w+)\[(\d)-ranks\] (\w+)", done.stdout)
    # Two ranks are not three, which the first test says; what comes after it is not run.
    assert sorted(said) == [
        *(("first", "2", "FAILED"), ("first", "3", "PASSED"), ("second", "2", "SKIPPED")),
        *(("second", "3", "PASSED"), ("third", "2", "SKIPPED"), ("third", "3", "SKIPPED")),
    ]
    assert done.returncode == 1
