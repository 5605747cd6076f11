"""What is shown of a run while it runs: percentages, time left, lines that become rare, a bar."""

from __future__ import annotations

import os
import pty
import select
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpiimg.engine.log import progress
from mpiimg.engine.log.overall import Portion, StagePart, fraction, position, seconds_left
from mpiimg.engine.log.progress import Bar, Lines, Progress, progress_of
from mpiimg.engine.mpi import runtime, terminal
from mpiimg.engine.mpi.processes import process_stat
from mpiimg.engine.mpi.terminal import Terminal
from mpiimg.engine.recipe import Options


class Clock:
    """Stands for the time module: it goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


class Seen:
    """Stands for a bar: keeps what it is told to draw."""

    def __init__(self):
        self.drawn = []

    def draw(self, percent, text, elapsed):
        self.drawn.append((percent, text))
        return 0.0

    def close(self):
        self.drawn.append("closed")


def test_stages_weigh_what_they_cost():
    parts = [
        StagePart("read", 10.0),
        StagePart("skipped", 5.0),
        StagePart("fit", 80.0),
        StagePart("end", 5.0),
    ]
    assert (position(parts), fraction(parts), seconds_left(parts)) == (-1, 0.0, 100.0)
    parts[0] = StagePart("read", 10.0, planned=10.0, done=0.5, begun=True)
    assert fraction(parts) == pytest.approx(0.05)
    parts[0].done = 1.0
    # A stage that was not needed is passed by when a later one begins; half of that is of an earlier run.
    parts[2] = StagePart("fit", 80.0, planned=40.0, resumed=0.5, begun=True)
    assert fraction(parts) == pytest.approx(0.15 + 0.4)
    parts[2].done = 0.5
    assert fraction(parts) == pytest.approx(0.15 + 0.6)


def test_time_left_is_what_was_predicted_until_a_stage_shows_its_own_speed():
    parts = [StagePart("fit", 100.0, planned=100.0, begun=True), StagePart("end", 50.0)]
    assert seconds_left(parts) == pytest.approx(150.0)
    # Four times as slow as predicted, for a long time.
    parts[0].done, parts[0].spent = 0.5, 200.0
    ratio = (200.0 + 5.0) / (50.0 + 5.0)
    assert seconds_left(parts) == pytest.approx(200.0 + ratio * 50.0)
    # Two seconds of a stage of which nothing much was predicted say little of the rest.
    parts = [StagePart("start", 0.01, planned=0.01, done=1.0, spent=2.0, begun=True), StagePart("end", 100.0)]
    assert seconds_left(parts) < 2 * 100.0


@given(
    stages=st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(0, 1), st.integers(0, 5), st.booleans()), min_size=1
    )
)
def test_a_percentage_never_falls(stages):
    """Whatever was predicted, resumed or passed by; and where the last stage ends it is all."""
    shown = Seen()
    run = Progress(shown, [(f"stage-{number}", seconds) for number, (seconds, *_) in enumerate(stages)])
    for number, (seconds, resumed, share, needed) in enumerate(stages):
        if needed or number == len(stages) - 1:
            run.turn_to(f"stage-{number}", seconds, resumed, share)
            for _ in range(share):
                run.advance()
    run.turn_to(f"stage-{len(stages) - 1}", 0.0, 1.0, 0)
    run.close()
    assert shown.drawn.pop() == "closed"
    percents = [percent for percent, _ in shown.drawn]
    assert percents == sorted(percents) and percents[-1] == pytest.approx(100)


def test_what_is_said_of_a_scan_is_of_the_whole_job(clock):
    shown = Seen()
    portion = Portion(before=0.25, size=0.5, what="scan 2 of 3", began=clock.now - 100.0)
    run = Progress(shown, [("a", 1.0), ("b", 1.0)], "sub-02: ", portion)
    run.turn_to("b", 1.0, 0.0, 4)
    clock.now += 2.0
    run.advance()
    percent, text = shown.drawn[-1]
    assert percent == pytest.approx(100 * (0.25 + 0.5 * 0.625))
    # 102 s for 56 % of the job.
    assert text == "about 1 min left; scan 2 of 3; sub-02: b (2 of 2) 25 %"


def test_lines_come_after_ten_seconds_and_become_rare(clock, capsys):
    """A day of chunks of a second each leaves a log that can be read."""
    run = Progress(Lines(), [("fit", 86400.0)])
    run.turn_to("fit", 86400.0, 0.0, 86_400)
    for _ in range(86_400):
        clock.now += 1.0
        run.advance()
    said = capsys.readouterr().err.splitlines()
    assert 100 < len(said) < 200
    assert said[0] == "mpiimg: 0 %, about 24 h left; fit (1 of 1) 0 %"
    assert said[-1].startswith("mpiimg: 99 %, ")


def test_no_line_for_a_short_run_and_none_where_none_is_wanted(clock, capsys, tmp_path):
    run = Progress(Lines(), [("fit", 9.0)])
    run.turn_to("fit", 9.0, 0.0, 9)
    for _ in range(9):
        clock.now += 1.0
        run.advance()
    run.close()
    quiet = progress_of(Options(tmp_path, 1 << 30), 0, [("fit", 9.0)])
    other = progress_of(Options(tmp_path, 1 << 30, progress=True), 1, [("fit", 9.0)])
    for one in (quiet, other):
        one.turn_to("fit", 9.0, 0.0, 1)
        clock.now += 1000.0
        one.advance()
        one.look()
        one.close()
    assert capsys.readouterr().err == ""


def test_whoever_looked_on_and_is_gone_is_no_matter_of_the_run(clock):
    class Gone(Seen):
        def draw(self, percent, text, elapsed):
            super().draw(percent, text, elapsed)
            raise BrokenPipeError

    shown = Gone()
    run = Progress(shown, [("fit", 9.0)])
    run.turn_to("fit", 9.0, 0.0, 3)
    for _ in range(3):
        clock.now += 60.0
        run.advance()
    assert len(shown.drawn) == 1


@pytest.fixture
def screen(monkeypatch):
    """A terminal of its own, and what reads all that was drawn on it."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    stream = open(theirs, "w")  # noqa: SIM115

    def read():
        stream.flush()
        pieces = []
        while select.select([ours], [], [], 0.2)[0]:
            pieces.append(os.read(ours, 1 << 16))
        return b"".join(pieces).decode()

    yield stream, read
    stream.close()
    os.close(ours)


def test_a_bar_leaves_its_line_to_what_is_printed(screen, monkeypatch):
    stream, read = screen
    monkeypatch.setattr(sys, "stderr", stream)
    bar = Bar(Terminal(stream, os.getpid()))
    monkeypatch.setattr(Terminal, "is_ours", lambda self: True)
    bar.draw(37.0, "denoise (4 of 12) 20 %", 3.0)
    drawn = read()
    assert "37 %|" in drawn and "denoise (4 of 12) 20 %" in drawn and "\n" not in drawn.strip("\r\n")
    runtime.put("mpiimg: warning: the moon", stream)
    cleared, _, _ = read().partition("mpiimg: warning: the moon")
    # The whole line is blank, and the next begins where it did.
    assert cleared.endswith("\r") and cleared.strip() == ""
    bar.draw(38.0, "denoise (4 of 12) 22 %", 4.0)
    read()
    bar.close()
    assert read().strip("\r \n") == ""
    runtime.put("mpiimg: results in maps", stream)
    assert read().strip() == "mpiimg: results in maps"


def test_a_job_in_the_background_draws_nothing(screen, monkeypatch):
    stream, read = screen
    bar = Bar(Terminal(stream, os.getpid()))
    monkeypatch.setattr(
        terminal, "process_stat", lambda pid: process_stat(pid).__class__("t", "R", 1, 1, 7, 8)
    )
    bar.draw(37.0, "denoise", 3.0)
    bar.close()
    assert read() == ""


def test_no_bar_on_a_terminal_that_knows_nothing(monkeypatch, screen):
    stream, _ = screen
    monkeypatch.setattr(sys, "stderr", stream)
    assert terminal.terminal().stream is stream
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.terminal() is None


def test_the_terminal_of_a_process_is_in_its_stat():
    stat = process_stat(os.getpid())
    assert stat.group == os.getpgrp() and stat.parent == os.getppid()
