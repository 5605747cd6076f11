"""The log of a run and what mpiimg-status reads from it: running, killed, stopped, failed and done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from mpiimg.engine.log import events
from mpiimg.engine.log import run_status as status
from mpiimg.engine.log.events import EventLog, any_recent, last_events, read_events
from mpiimg.errors import BadInput, Exit
from mpiimg.tools import cli

STAGES = [["make", "map", 10], ["blur", "stencil", 10], ["write", "sink", 4]]


def start(log, pid=None, job=None, ranks=2):
    pid = os.getpid() if pid is None else pid
    fields = {"tool": "mpiimg-toy", "version": "1", "command": "mpiimg-toy a b", "job": job}
    log.write("start", ranks=ranks, pid=pid, stages=STAGES, **fields)


def text(log):
    log.flush()
    return list(read_events(log.folder / "0.jsonl"))


@pytest.fixture
def log(tmp_path):
    opened = EventLog(tmp_path, 0)
    yield opened
    opened.close()


def test_lines_come_with_the_flush_and_say_who_and_when(log):
    before = time.time()
    log.write("doing", what="a nap")
    assert list(read_events(log.folder / "0.jsonl")) == []
    (event,) = text(log)
    assert before - 0.01 <= event["time"] <= time.time() + 0.01
    assert (event["rank"], event["host"], event["event"]) == (0, socket.gethostname(), "doing")
    assert 1 << 20 < event["memory"] < 1 << 40


def test_chunks_that_follow_quickly_share_a_line(log):
    """So the log is bounded by time, however small the chunks are; nothing is lost in the sums."""
    for number in range(1000):
        log.chunk("fit", number, 0.001, 10)
    log.chunk("write", 0, 2.0, 7)
    log.write("ended", stage="write")
    fit, write, _ = text(log)
    assert (fit["stage"], fit["chunk"], fit["chunks"], fit["bytes"]) == ("fit", 999, 1000, 10_000)
    assert fit["seconds"] == pytest.approx(1.0)
    assert (write["chunks"], write["seconds"]) == (1, 2.0)


def test_long_chunks_have_a_line_each(tmp_path):
    log = EventLog(tmp_path, 0, every=0.0, together=0.0)
    for number in range(3):
        time.sleep(0.002)
        log.chunk("fit", number, 0.002, 10)
    assert [event["chunk"] for event in read_events(tmp_path / "0.jsonl")] == [0, 1, 2]
    log.close()


def test_a_run_begins_its_log_anew(tmp_path):
    for tool in ("first", "second"):
        log = EventLog(tmp_path, 0)
        log.write("start", tool=tool)
        log.close()
    assert [event["tool"] for event in read_events(tmp_path / "0.jsonl")] == ["second"]


def test_what_goes_wrong_with_the_log_does_not_fail_the_run(tmp_path, monkeypatch):
    EventLog(tmp_path / "missing", 0).write("start")
    EventLog(None, 0).write("start")
    log = EventLog(tmp_path, 0)
    monkeypatch.setattr(events.os, "write", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    log.write("start")
    log.flush()
    monkeypatch.undo()
    log.write("end")
    log.close()
    assert [event["event"] for event in read_events(tmp_path / "0.jsonl")] == ["end"]


@pytest.mark.parametrize("torn", [b'{"event": "chu', b"\x00\x00", b"5\n", b'{"a": 1}\n'])
def test_torn_lines_are_left_out(log, torn):
    log.write("start")
    log.flush()
    with open(log.folder / "0.jsonl", "ab") as file:
        file.write(torn)
    assert [event["event"] for event in read_events(log.folder / "0.jsonl")] == ["start"]


def test_the_last_words_of_each_rank(tmp_path):
    for rank in (0, 1, 10):
        log = EventLog(tmp_path, rank)
        for number in range(500):
            log.write("doing", what=f"{rank}-{number}")
        log.close()
    assert {rank: e["what"] for rank, e in last_events(tmp_path).items()} == {
        0: "0-499",
        1: "1-499",
        10: "10-499",
    }


def test_who_has_written_of_late(tmp_path):
    log = EventLog(tmp_path, 1)
    log.write("start")
    log.close()
    assert any_recent(tmp_path, 60, but=0)
    assert not any_recent(tmp_path, 60, but=1)
    os.utime(tmp_path / "1.jsonl", (time.time() - 100,) * 2)
    assert not any_recent(tmp_path, 60, but=0)


# Status.


@pytest.fixture
def run(tmp_path):
    """Two ranks in the second of three stages, of which an earlier run had done some."""
    folder = tmp_path / "events"
    folder.mkdir()
    logs = [EventLog(folder, rank) for rank in (0, 1)]
    for rank, log in enumerate(logs):
        start(log)
        log.write("stage", stage="make", chunks=10, done=6, mine=2)
        log.chunk("make", 2, 0.5, 100)
        log.chunk("make", 3, 0.5, 100)
        log.write("ended", stage="make")
        log.write("stage", stage="blur", chunks=10, done=0, mine=5)
        time.sleep(0.01)
        for number in range(3 - 2 * rank):
            log.chunk("blur", number, 0.5, 100)
        log.write("doing", what=f"stage blur, chunk {3 - 2 * rank}", since=time.time() - 30)
        log.flush()
    return tmp_path, logs


def said(folder, *flags, capsys):
    code = cli.main("mpiimg-status", [str(folder), *flags])
    return code, capsys.readouterr().out


def test_of_a_running_run(run, capsys):
    folder, _ = run
    found = status.run_status(folder / "events")
    assert (found.state, found.ranks, found.current.name) == ("running", 2, "blur")
    make, blur, write = found.stages
    assert (make.resumed, make.done, make.ended is not None) == (6, 4, True)
    assert (blur.done, blur.chunks, blur.ended) == (4, 10, None)
    assert blur.seconds_left == pytest.approx(6 / blur.rate)
    assert (write.began, write.chunks) == (None, 4)
    assert [(rank.rank, rank.done, rank.share) for rank in found.slowest] == [(1, 1, 5), (0, 3, 5)]
    code, out = said(folder, capsys=capsys)
    assert code == Exit.DONE
    assert "mpiimg-toy: running" in out
    assert "40 %  4 of 10 chunks" in out
    assert "10 of 10 chunks, 6 of them in earlier runs" in out
    assert "to do  4 chunks" in out
    assert "1 of its 5 chunks" in out and "stage blur, chunk 1" in out


def test_in_json(run, capsys):
    code, out = said(run[0], "--json", capsys=capsys)
    (found,) = json.loads(out)
    assert (code, found["state"], found["stages"][1]["done"]) == (Exit.DONE, "running", 4)


@pytest.mark.parametrize(
    ("code", "why", "state", "exit_status"),
    [
        (Exit.DONE, "", "done", 0),
        (Exit.PARTIAL, "", "done", 0),
        (Exit.STOPPED, "the same command goes on", "stopped", 75),
        (Exit.FAILED, "rank 1 on h, stage blur, chunk 3: boom", "failed", 1),
        (Exit.BAD_INPUT, "x.nii: changed", "failed", 1),
    ],
)
def test_of_a_run_that_is_over(run, capsys, code, why, state, exit_status):
    folder, logs = run
    for log in logs:
        log.write("end", status=int(code), why=why)
        log.close()
    assert said(folder, capsys=capsys)[0] == exit_status
    out = status.describe(status.run_status(folder / "events"))
    assert out.startswith(f"mpiimg-toy: {state}" + (f": {why}" if why else ""))
    assert ("rank 1 on" in out.split("\n", 3)[-1]) == (state != "done")


def test_of_a_run_whose_process_is_gone(run, capsys):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True)
    folder, logs = run
    start(logs[0], pid=int(gone.stdout))
    path = folder / "events" / "0.jsonl"
    logs[0].flush()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[-1], *lines[1:-1]]))
    code, out = said(folder, capsys=capsys)
    assert code == Exit.FAILED
    assert "mpiimg-toy: lost: the process is gone" in out


def test_of_a_run_elsewhere_that_says_nothing(run, monkeypatch):
    """Whether it lives cannot be seen from here, only that it has been silent."""
    folder, _ = run
    monkeypatch.setattr(status.socket, "gethostname", lambda: "login")
    assert status.run_status(folder / "events").state == "running"
    monkeypatch.setattr(status, "SILENCE", -1.0)
    found = status.run_status(folder / "events")
    assert found.state == "lost"
    assert "no rank has said anything" in found.why


def test_of_a_run_that_hung(run, capsys):
    folder, logs = run
    logs[1].write("hang", what="stage blur, chunk 3", since=time.time(), report="File x, line 1, in read")
    logs[1].flush()
    code, out = said(folder, capsys=capsys)
    assert code == Exit.FAILED
    assert "failed: rank 1 on" in out and "hung: stage blur, chunk 3" in out
    assert "in read" in out


def test_of_several_tools_in_one_folder(run, capsys):
    folder, _ = run
    (folder / "events-mask").mkdir()
    log = EventLog(folder / "events-mask", 0)
    start(log, ranks=1)
    log.write("end", status=0, why="")
    log.close()
    out = said(folder, capsys=capsys)[1]
    assert out.index("running") < out.index("done")
    assert said(folder / "events-mask", capsys=capsys)[1].startswith("mpiimg-toy: done")


def test_of_nothing(tmp_path, capsys):
    assert cli.main("mpiimg-status", [str(tmp_path)]) == Exit.BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"mpiimg: error: {tmp_path}: no events of a run")
    (tmp_path / "0.jsonl").write_text("{}\n")
    with pytest.raises(BadInput):
        status.run_status(tmp_path)


def test_it_needs_no_mpi(tmp_path):
    script = (
        f"from mpiimg.tools import cli; cli.main('mpiimg-status', [{str(tmp_path)!r}])\n"
        "import sys; print(*[m for m in ('mpi4py', 'numba', 'h5py', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("record", "name"),
    [("run.json", "events"), ("run-mask.json", "events-mask"), ("dwi.h5.json", "events-dwi.h5")],
)
def test_where_the_events_lie(tmp_path, record, name):
    assert events.events_folder(tmp_path, record) == tmp_path / name
