"""What a person sees of a run: a bar or lines while it runs, and where to look when it is done."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time

import pytest
from support import launch, sabotage, warm
from support.subjects import EVERYTHING, PATIENCE, digests

pytestmark = pytest.mark.tool


def on_terminal(*command, patience=60, once=None, **variables):
    """Return the exit status of a command on a terminal, and all that it showed there.

    `once` is a text and what is called when it is seen.
    """
    pid, screen = pty.fork()
    if pid == 0:
        os.execvpe(command[0], [str(word) for word in command], launch.environment(TERM="xterm", **variables))
    shown, deadline = b"", time.monotonic() + patience
    try:
        while select.select([screen], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                shown += os.read(screen, 1 << 16)
                if once and once[0] in shown:
                    once = once[1]()
            except OSError:  # its end
                break
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_lines_where_there_is_no_terminal_and_not_a_bit_changes(simulated, alone, tmp_path):
    words = (*simulated.arguments, *EVERYTHING, "--out", tmp_path / "out")
    seeing = sabotage.install(tmp_path / "often", "", sabotage.PROGRESS_AT_ONCE)
    done = warm.run_tool("mpiimg-neuro", *words, ranks=2, sabotaged=seeing, timeout=PATIENCE)
    lines = done.stderr.splitlines()
    told = [
        re.match(r"mpiimg: (\d+) %, (?:[^;]+ left; )?([\w.-]+) \((\d+) of (\d+)\) (\d+) %$", one)
        for one in lines
    ]
    told = [one.groups() for one in told if one]
    assert {"denoise", "fit"} <= {stage for _, stage, *_ in told}
    percents = [int(percent) for percent, *_ in told]
    assert len(percents) > 20 and percents == sorted(percents) and percents[0] == 0 and percents[-1] > 90
    out = tmp_path / "out"
    assert lines[-1] == f"mpiimg: results in {out}, and how they were made in {out / 'run.json'}"
    assert digests(out) == digests(alone)


def test_a_bar_under_mpiexec_on_a_terminal_and_a_log_has_none(simulated, tmp_path):
    words = (*simulated.arguments, "--passes", 1)
    command = launch.tool_command("mpiimg-mask", *words, "--out", tmp_path / "bar", ranks=2)
    status, shown = on_terminal(*command)
    assert status == 0, shown
    assert re.search(r"\r +\d+ %\|[^\n]*\| ", shown)
    *_, last = shown.strip().splitlines()
    assert last.strip().endswith(
        f"results in {tmp_path / 'bar'}, and how they were made in {tmp_path / 'bar/run-mask.json'}"
    )
    assert not re.search(r"mpiimg: \d+ %", shown)
    log = tmp_path / "log"
    command = launch.tool_command("mpiimg-mask", *words, "--out", tmp_path / "log-only", ranks=2)
    status, shown = on_terminal("sh", "-c", f'exec "$@" 2>{log}', "sh", *command)
    assert (status, shown) == (0, "")
    assert "%|" not in log.read_text() and log.read_text().count("\r") == 0
    assert "results in" in log.read_text()


def test_a_watch_shows_a_run_until_it_is_killed(simulated, tmp_path):
    """Its ranks one by one, on a terminal; what has happened to it is red where colours are wanted."""
    out, slow = tmp_path / "out", sabotage.install(tmp_path / "slow", "import time; time.sleep(2)")
    words = ("mpiimg-neuro", *simulated.arguments, "--out", out, "--median-radius", 1)
    run = sabotage.start(*words, sabotaged=slow, ranks=2)

    def kill():
        launch.kill_session(run)

    try:
        sabotage.wait_for(out / "events" / "1.jsonl", run)
        watch = launch.tool_command("mpiimg-status", out, "--watch")
        status, shown = on_terminal(*watch, once=(b"stage denoise, ", kill))
    finally:
        kill()
    assert status == 1
    *looks, last = shown.split("\x1b[H\x1b[2J")[1:]
    assert looks and all("mpiimg-neuro: running: " in look for look in looks)
    assert any(re.search(r"^ +[01]  .* stage denoise, ", look, re.M) for look in looks), shown
    assert "\x1b[31mmpiimg-neuro: lost: the process is gone" in last
    status, shown = on_terminal(*watch, NO_COLOR="1")
    assert status == 1 and "mpiimg-neuro: lost: " in shown and "\x1b[31m" not in shown
