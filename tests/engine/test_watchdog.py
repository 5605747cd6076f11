"""A hang ends the job and says where; waiting for ranks that work does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Makes a watchdog that watches already, for which some answers may be given.
WATCH = """
import time
from mpiimg.engine.log.watchdog import Reporter, Watchdog

def watch(seconds, **answers):
    reporter = Reporter()
    vars(reporter).update(answers)
    dog = Watchdog(seconds, reporter)
    dog.start()
    return dog
"""


def run_watched(script):
    lines = f"{WATCH}\n{script}\nprint('went on')"
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60)


def test_a_hang_ends_with_what_and_where():
    done = run_watched(
        "watch(0.2)('stage fit, chunk 3')\ndef wait_for_ever(): time.sleep(50)\nwait_for_ever()"
    )
    assert done.returncode == 1
    assert "stage fit, chunk 3" in done.stderr
    assert "wait_for_ever" in done.stderr
    assert done.stdout == ""


def test_a_watchdog_that_hears_something_keeps_quiet():
    done = run_watched(
        "dog = watch(1.0)\nfor _ in range(4): dog('a'); time.sleep(0.3)\ndog.cancel(); time.sleep(1.2)\n"
        "watch(0)('a'); time.sleep(0.1)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


@pytest.mark.parametrize(("others_work", "ends"), [(True, False), (False, True)])
def test_who_waits_for_others_waits_while_they_work(others_work, ends):
    done = run_watched(
        f"watch(0.2, others_work=lambda seconds: {others_work})('waits', waits=True)\ntime.sleep(1)"
    )
    assert (done.returncode == 1) == ends
    assert (done.stdout == "went on\n") != ends


def test_who_works_is_not_excused_by_others():
    done = run_watched("watch(0.2, others_work=lambda seconds: True)('works')\ntime.sleep(50)")
    assert done.returncode == 1


def test_what_goes_on_for_long_is_noted_once():
    done = run_watched(
        "seen = []\ndog = watch(4.0, note=lambda what, since: seen.append((what, time.time() - since)))\n"
        "dog('quick'); dog('long'); time.sleep(1.0); dog.cancel()\n"
        "[(what, age)] = seen; assert what == 'long' and age < 1, seen"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_a_kernel_that_never_lets_go_of_the_interpreter_ends_too():
    """The thread gets no turn then; faulthandler needs none."""
    done = run_watched("import ctypes\nwatch(0.2)('kernel')\ntime.sleep(0.05)\nctypes.PyDLL(None).sleep(50)")
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert done.stdout == ""
