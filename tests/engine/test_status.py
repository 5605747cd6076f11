"""What mpiimg-status says of a run or a cohort: in all, of each rank, of stalls, in words and as JSON."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from typing import Literal

import pydantic
import pytest
from support import launch

from mpiimg.engine import lease
from mpiimg.engine.lease import Kind
from mpiimg.engine.log import rank_log, status_text
from mpiimg.engine.log import run_status as status
from mpiimg.engine.log.activity import ActivityFile
from mpiimg.engine.log.events import EventLog
from mpiimg.engine.log.rank_log import RankLog
from mpiimg.engine.log.run_status import RunReader, run_status
from mpiimg.engine.records import line_of, write_record
from mpiimg.errors import Exit
from mpiimg.neuro.cohort.status import CohortReader
from mpiimg.tools import cli
from mpiimg.tools import status as tool

STAGES = [["read", "stream", 4], ["fit", "compute", 10], ["fit.write-fa", "sink", 2]]
SECONDS = [10.0, 80.0, 10.0]


@pytest.fixture
def run(tmp_path):
    """Three ranks in the second of three stages, each of which says what it is at."""
    return begun(tmp_path / "events")


def begun(folder, ranks=3):
    folder.mkdir(parents=True)
    logs = [EventLog(folder, rank) for rank in range(ranks)]
    files = [ActivityFile(folder, rank) for rank in range(ranks)]
    for log, file in zip(logs, files, strict=True):
        log.write(
            "start",
            tool="mpiimg-toy",
            command="mpiimg-toy a b",
            ranks=ranks,
            pid=os.getpid(),
            stages=STAGES,
            seconds=SECONDS,
        )
        log.write("stage", stage="read", chunks=4, done=0, mine=1, planned=10.0)
        log.chunk("read", 0, 0.1, 10)
        log.write("ended", stage="read")
        log.write("stage", stage="fit", chunks=10, done=4, mine=2, planned=48.0)
        log.flush()
        file.write("stage fit, chunk 4", waits=False)
    logs[0].chunk("fit", 4, 0.1, 10)
    logs[0].chunk("fit", 5, 0.1, 10)
    logs[0].chunk("fit", 6, 0.1, 10)
    logs[0].write("doing", what="stage fit, chunk 7")
    logs[0].flush()
    return folder, logs, files


def later(monkeypatch, seconds):
    """Look from so many seconds on, at processes that still run."""
    then = time.time() + seconds
    monkeypatch.setattr(status.time, "time", lambda: then)
    monkeypatch.setattr(status, "SILENCE", 1e6)
    monkeypatch.setattr(status, "_runs", lambda *process: True)


def test_how_far_it_is_in_all(run):
    """The first stage is a tenth; of the second four chunks were done before, and three of six are now."""
    found = run_status(run[0])
    assert found.percent == pytest.approx(10 + 80 * 0.7)
    assert found.seconds_left > 0
    assert (found.stalled, len(found.by_rank)) == (False, 3)
    assert found.idle < 60
    text = status_text.describe(found)
    assert text.startswith("mpiimg-toy: running: 66 % in all, ") and " left, last progress " in text


def test_a_run_that_predicts_nothing_has_stages_of_one_weight(run):
    folder, logs, _ = run
    for rank in range(3):
        path = folder / f"{rank}.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()]
        plain = [{k: v for k, v in e.items() if k not in ("format", "crc32", "seconds")} for e in events]
        path.write_bytes(b"".join(map(line_of, plain)))
    assert run_status(folder).percent == pytest.approx((100 + 70) / 3, abs=0.1)
    (folder.parent / "run.json").touch()
    for log in logs:
        log.write("end", status=0, why="")
        log.close()
    assert run_status(folder).percent == 100


def test_a_rank_that_is_stuck_stalls_and_those_that_wait_for_it_do_not(run, monkeypatch):
    folder, _, files = run
    files[0].write("stage fit, waits for the other ranks", waits=True)
    files[2].write("stage fit, waits for the other ranks", waits=True)
    later(monkeypatch, 61)
    found = run_status(folder)
    assert [(rank.rank, rank.stalled, rank.waits) for rank in found.by_rank] == [
        (0, False, True),
        (1, True, False),
        (2, False, True),
    ]
    assert found.stalled and found.seconds_left is None
    assert all(60 < rank.idle < 62 for rank in found.by_rank)
    assert "no progress on rank 1" in status_text.in_a_line(found)
    # Where all wait it is the one that waits longest.
    files[1].write("stage fit, an exchange", waits=True)
    os.utime(folder)
    found = run_status(folder)
    assert [rank.rank for rank in found.by_rank if rank.stalled] == [0]


def test_a_rank_whose_process_is_gone_stalls_at_once(run):
    folder, _, _ = run
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
    at = {"rank": 2, "host": socket.gethostname(), "pid": int(gone.stdout), "what": "stage fit, chunk 9"}
    (folder / "2.at").write_bytes(line_of({**at, "since": time.time(), "waits": False}))
    found = run_status(folder)
    assert [rank.rank for rank in found.by_rank if rank.stalled] == [2]
    assert found.by_rank[2].doing == "stage fit, chunk 9; its process is gone"


def test_only_what_has_stalled_is_red_and_only_where_colours_are(run, monkeypatch):
    later(monkeypatch, 61)
    found = run_status(run[0])
    found.by_rank[0].stalled = found.by_rank[2].stalled = False
    for text in (status_text.screenful(found, 40, 100, True), status_text.describe(found, True)):
        red = re.findall(r"\x1b\[31m(.*?)\x1b\[0m", text)
        assert red[0].startswith("mpiimg-toy: running")
        assert [line.split()[:2] for line in red[1:]] in ([["1", socket.gethostname()]], [["rank", "1"]])
        assert text.count("\x1b") == 2 * len(red)
    assert "\x1b" not in status_text.screenful(found, 40, 100, False) + status_text.describe(found)


@pytest.mark.parametrize(("height", "width"), [(24, 80), (10, 40), (60, 200)])
def test_a_screen_holds_it(tmp_path, height, width):
    """Of a thousand ranks too, with those first that stall."""
    folder, _, _ = begun(tmp_path / "events", ranks=3)
    found = run_status(folder)
    one = found.by_rank[0]
    found.by_rank = [one.__class__(**{**vars(one), "rank": n, "stalled": n == 777}) for n in range(1000)]
    found.command = "mpiimg-toy " + "x" * 500
    lines = status_text.screenful(found, height, width, False).splitlines()
    assert len(lines) <= max(height, 12) and max(map(len, lines)) < width
    head = next(number for number, line in enumerate(lines) if line.split()[0] == "rank")
    assert lines[head + 1].split()[0] == "777"
    assert re.fullmatch(r"  and \d+ more ranks", lines[-1])


def test_each_look_reads_only_what_has_come(run):
    folder, logs, _ = run
    log = RankLog(folder / "0.jsonl")
    log.look()
    # Chunks that follow each other are one event, and what the rank was at between them is gone.
    assert [e["event"] for e in log.events] == [
        "start",
        "stage",
        "chunks",
        "ended",
        "stage",
        "chunks",
        "doing",
    ]
    with open(folder / "0.jsonl", "ab") as file:
        line = line_of(
            {"time": time.time(), "rank": 0, "host": "h", "event": "chunks", "stage": "fit", "chunks": 5}
        )
        file.write(line[:20])
        file.flush()
        log.look()
        assert log.events[-1]["event"] == "doing"
        file.write(line[20:])
    log.look()
    assert [e["event"] for e in log.events][-2:] == ["stage", "chunks"]
    assert log.events[-1]["chunks"] == 8
    whole = RankLog(folder / "0.jsonl")
    whole.look()
    assert whole.events == log.events
    # The next run begins them anew.
    logs[0].close()
    EventLog(folder, 0).write("start", tool="next")
    log.look()
    assert log.events == []


def test_what_is_held_does_not_grow_with_the_length_of_a_run(tmp_path):
    with open(tmp_path / "0.jsonl", "wb") as file:
        for number in range(5000):
            who = {"time": time.time(), "rank": 0, "host": "h"}
            file.write(line_of({**who, "event": "doing", "what": f"chunk {number}"}))
            file.write(line_of({**who, "event": "chunks", "stage": "fit", "chunk": number, "chunks": 1}))
    log = RankLog(tmp_path / "0.jsonl")
    log.look()
    (event,) = log.events
    assert (event["chunks"], event["chunk"]) == (5000, 4999)
    assert set(event) == set(rank_log._of_types({}))


# --- For programs -----------------------------------------------------------------------------------------


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class Stage(Strict):
    name: str
    chunks: int
    resumed: int
    done: int
    began: float | None
    ended: float | None
    rate: float | None
    seconds_left: float | None
    idle: float | None


class Rank(Strict):
    rank: int
    host: str
    doing: str
    since: float
    heard: float
    done: int
    share: int
    memory: int
    progressed: float
    idle: float | None
    waits: bool
    stalled: bool


class Run(Strict):
    folder: str
    tool: str
    command: str
    state: Literal["running", "done", "stopped", "failed", "lost"]
    why: str
    began: float
    heard: float
    ranks: int
    hosts: list[str]
    percent: float
    seconds_left: float | None
    idle: float | None
    stalled: bool
    stages: list[Stage]
    slowest: list[Rank]
    by_rank: list[Rank]
    errors: list[str]


class Scan(Strict):
    name: str
    state: Literal[tuple(map(str, Kind))]
    why: str
    owner: str
    progress: str
    percent: float
    idle: float | None
    stalled: bool
    seconds: float | None


class Runs(Strict):
    schema_: Literal[1] = pydantic.Field(alias="schema")
    time: float
    folder: str
    kind: Literal["runs"]
    runs: list[Run]


class Cohort(Strict):
    schema_: Literal[1] = pydantic.Field(alias="schema")
    time: float
    folder: str
    kind: Literal["cohort"]
    scans: list[Scan]
    counts: dict[Literal[tuple(map(str, Kind))], int]
    percent: float
    seconds_left: float | None
    stalled: bool


@pytest.mark.parametrize("end", [None, Exit.DONE, Exit.STOPPED, Exit.FAILED])
def test_json_is_as_documented(run, end, capsys):
    folder, logs, _ = run
    (folder.parent / "run.json").touch()
    for log in logs:
        if end is not None:
            log.write("end", status=int(end), why="so")
            log.flush()
    code = cli.main("mpiimg-status", [str(folder.parent), "--json"])
    (found,) = Runs.model_validate_json(capsys.readouterr().out).runs
    states = {None: "running", Exit.DONE: "done", Exit.STOPPED: "stopped", Exit.FAILED: "failed"}
    assert (found.state, code) == (states[end], end or Exit.DONE)


def test_every_key_is_documented():
    text = (launch.REPOSITORY / "docs/faults.md").read_text().split("### For programs")[1].split("\n## ")[0]
    documented = {
        (of, key)
        for of, keys in re.findall(r"^\| (\w+) \| ((?:`\w+`(?:, )?)+) \|", text, re.M)
        for key in re.findall(r"`(\w+)`", keys)
    }
    models = {"runs": Runs, "cohort": Cohort, "run": Run, "stage": Stage, "rank": Rank, "scan": Scan}
    keys = {
        (name, field.alias or key)
        for name, model in models.items()
        for key, field in model.model_fields.items()
    }
    assert documented == keys


# --- Cohorts ----------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path):
    """Of five scans two are done, which took a minute each, one is in work and half done, one failed."""
    logs = tmp_path / "logs"
    settings = {"version": "1", "parameters": {}}
    logs.mkdir()
    write_record(logs / "cohort.json", settings)
    for number in range(5):
        (logs / f"sub-0{number}").mkdir()
    from mpiimg.neuro.cohort.records import settings_digest

    def signed(name):
        records = logs / name
        number = lease.acquire(records, lease.read_lease(records), lease.sign("r", 60.0))
        return records, number

    for name in ("sub-00", "sub-01"):
        records, number = signed(name)
        owner = {**lease.read_owner(records, number), "claimed": "2026-03-01T10:00:00+0000"}
        write_record(records / "claims/1/owner.json", owner)
        end = {"state": "done", "ended": "2026-03-01T10:01:00+0000", "folder": "x", "files": []}
        write_record(records / "claims/1/end.json", {**end, "settings": settings_digest(settings)})
    records, number = signed("sub-02")
    lease.release(records, number, Kind.FAILED, reason="the moon")
    signed("sub-03")
    begun(logs / "sub-03/events")
    return tmp_path


def test_how_far_a_cohort_is(cohort, capsys):
    found = CohortReader(cohort).status()
    assert {kind: n for kind, n in found.counts.items() if n} == {
        "done": 2,
        "failed": 1,
        "in work": 1,
        "to do": 1,
    }
    assert found.percent == pytest.approx(100 * (3 + 0.66) / 5)
    assert found.seconds_left == pytest.approx(60 * (5 - 3.66), rel=0.01)
    code = cli.main("mpiimg-status", [str(cohort), "--json"])
    said = Cohort.model_validate_json(capsys.readouterr().out)
    assert (code, len(said.scans), said.scans[0].seconds) == (Exit.FAILED, 5, 60.0)
    assert said.scans[3].name == "sub-03" and said.scans[3].percent == pytest.approx(66)
    cli.main("mpiimg-status", [str(cohort)])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "5 scans: 1 to do, 1 in work, 2 done, 1 failed; 73 % in all, about 1 min left"
    assert "stage 2 of 3, fit: 7 of 10 chunks" in lines[3]


def test_a_scan_that_stalls_is_seen_from_the_cohort(cohort, capsys, monkeypatch):
    later(monkeypatch, 90)
    cli.main("mpiimg-status", [str(cohort)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "sub-03" in line]
    assert line.endswith("; no progress for 1 min 30 s")
    from mpiimg.neuro.cohort import status as of_cohort

    text = of_cohort.status_text(CohortReader(cohort).status(), True, 4, 80)
    assert text.splitlines()[1].startswith("\x1b[31m  sub-03")
    assert len(text.splitlines()) <= 5


# --- Watching ---------------------------------------------------------------------------------------------


def test_a_watch_goes_on_until_the_run_is_over(run, capsys, monkeypatch):
    folder, logs, _ = run
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        logs[0].chunk("fit", 7, 0.1, 10)
        if len(looks) == 3:
            logs[1].write("end", status=int(Exit.STOPPED), why="the same command goes on")
        for log in logs:
            log.flush()

    monkeypatch.setattr(tool.time, "sleep", sleep)
    assert cli.main("mpiimg-status", [str(folder.parent), "--watch"]) == Exit.STOPPED
    lines = capsys.readouterr().out.splitlines()
    percents = [int(found[1]) for line in lines if (found := re.search(r"running: (\d+) % in all", line))]
    assert len(percents) == 3 and percents == sorted(percents)
    assert "mpiimg-toy: stopped: the same command goes on" in lines
    looks.clear()
    monkeypatch.setattr(RunReader, "status", lambda self, real=RunReader.status: real(self))
    assert cli.main("mpiimg-status", [str(folder.parent), "--watch", "--json"]) == Exit.STOPPED
    (line,) = capsys.readouterr().out.splitlines()
    assert Runs.model_validate_json(line).runs[0].state == "stopped"


def test_a_watch_of_what_nobody_reads_any_more_ends(run):
    words = [
        sys.executable,
        "-c",
        "from mpiimg.tools import cli; cli.main('mpiimg-status', ['.', '--watch'])",
    ]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, cwd=run[0].parent, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert done.stderr == b""


def test_whoever_has_seen_enough_stops_a_watch(run, capsys, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.time, "sleep", interrupt)
    assert cli.main("mpiimg-status", [str(run[0].parent), "--watch"]) == Exit.DONE
    assert capsys.readouterr().err == ""


def test_a_watch_of_a_cohort_goes_on_until_no_scan_is_in_work(cohort, capsys, monkeypatch):
    """On a terminal: each look clears it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        tool.time, "sleep", lambda seconds: lease.release(cohort / "logs/sub-03", 1, Kind.STOPPED)
    )
    assert cli.main("mpiimg-status", [str(cohort), "--watch"]) == Exit.FAILED
    _, first, last = capsys.readouterr().out.split("\x1b[H\x1b[2J")
    assert first.startswith("5 scans: 1 to do, 1 in work, 2 done, 1 failed; 73 % in all, about 1 min left\n")
    # What is in work comes first, then what somebody has to look at, which is red.
    assert first.splitlines()[1].split()[0] == "sub-03"
    assert re.search(r"\x1b\[31m  sub-02  failed +the moon\x1b\[0m", first)
    assert last.startswith("5 scans: 1 to do, 2 done, 1 failed, 1 stopped\n")
