"""The log of a run and what mpiimg-status reads from it: running, killed, stopped, failed and done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from mpiimg.engine.log import ended, events, status_text
from mpiimg.engine.log import run_status as status
from mpiimg.engine.log.events import EventLog, any_recent, last_events, read_events
from mpiimg.engine.records import line_of
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


def test_a_line_that_a_full_disk_has_cut_spoils_no_other(tmp_path, monkeypatch):
    """Nor does it make the run fail."""
    log, write, room = EventLog(tmp_path, 0), os.write, [40]

    def short(descriptor, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = write(descriptor, bytes(data)[: room[0]])
        room[0] -= count
        return count

    log.write("first")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        log.flush()
    assert (tmp_path / "0.jsonl").stat().st_size == 40
    log.write("second")
    log.close()
    assert [event["event"] for event in read_events(tmp_path / "0.jsonl")] == ["second"]


@pytest.mark.parametrize(
    "odd",
    [
        {"time": "now"},
        {"time": None},
        {"time": float("nan")},
        {"rank": "0"},
        {"host": 7},
        {"event": ["doing"]},
        {},
    ],
)
def test_what_is_no_event_is_left_out(log, odd):
    """Such a line has a checksum, as of another version; and another line says what was last."""
    log.write("start")
    log.flush()
    sound = {"time": 1.0, "rank": 0, "host": "n", "event": "doing"}
    content = {**sound, **odd} if odd else {}
    with open(log.folder / "0.jsonl", "ab") as file:
        file.write(line_of(content))
    assert [event["event"] for event in read_events(log.folder / "0.jsonl")] == ["start"]
    assert last_events(log.folder)[0]["event"] == "start"
    with open(log.folder / "0.jsonl", "ab") as file:
        file.write(line_of(sound))
    assert last_events(log.folder)[0] == sound


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
    assert blur.rate == pytest.approx(4 / (time.time() - blur.began), rel=0.5), "until now"
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
    (found,) = json.loads(out)["runs"]
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
    if state == "done":
        out = status_text.describe(status.run_status(folder / "events"))
        assert out.startswith(f"mpiimg-toy: lost: it was done, and its record {folder}/run.json is gone")
        assert said(folder, capsys=capsys)[0] == Exit.FAILED
        (folder / "run.json").touch()
    assert said(folder, capsys=capsys)[0] == exit_status
    out = status_text.describe(status.run_status(folder / "events"))
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


def test_a_run_without_progress_has_no_time_left(run, monkeypatch):
    """Chunks went by at many a second, until one hung."""
    folder, _ = run
    later = time.time() + 12 * 60
    monkeypatch.setattr(status, "SILENCE", 1e6)
    monkeypatch.setattr(status, "_runs", lambda *process: True)
    monkeypatch.setattr(status.time, "time", lambda: later)
    found = status.run_status(folder / "events")
    assert found.state == "running"
    assert found.current.seconds_left is None and found.current.rate < 0.01
    (line,) = [line for line in status_text.describe(found).splitlines() if " blur " in line]
    assert line.endswith("4 of 10 chunks, no progress for 12 min 0 s")


#: What a field may hold in events of another version, or of nobody knows whom.
ODD = [
    None,
    True,
    -1,
    10**400,
    float("nan"),
    float("inf"),
    1e300,
    "x",
    "\x1b[2J\n",
    [],
    [[]],
    {"a": 1},
    2**63,
]


@pytest.mark.parametrize(
    "kind", ["start", "stage", "chunks", "doing", "ended", "error", "hang", "end", "odd"]
)
def test_of_odd_events(kind, tmp_path, capsys):
    """Any field missing, or holding anything: no traceback, and nothing that a terminal would obey."""
    fields = {
        "tool": "t",
        "command": "c",
        "ranks": 1,
        "pid": 1,
        "job": "7",
        "stages": STAGES,
        "stage": "blur",
    }
    fields |= {"chunks": 3, "done": 1, "mine": 2, "chunk": 1, "what": "w", "since": time.time()}
    fields |= {"why": "y", "report": "r", "status": 0, "run": "r"}
    whole = {"time": time.time(), "rank": 0, "host": "h", "event": kind, "memory": 1, **fields}
    beginning = {**whole, "event": "start"}
    folder = tmp_path / "events"
    folder.mkdir()
    for name in whole:
        for value in ["missing", *ODD]:
            odd = {key: one for key, one in {**whole, name: value}.items() if one != "missing"}
            first = [] if kind == "start" else [line_of(beginning)]
            (folder / "0.jsonl").write_bytes(
                b"".join([*first, line_of({**whole, "event": "stage"}), line_of(odd)])
            )
            for flags in ((), ("--json",)):
                code = cli.main("mpiimg-status", [str(tmp_path), *flags])
                shown = capsys.readouterr()
                assert code in {0, 1, 2, 75}
                assert "\x1b" not in shown.out + shown.err
                assert code == 2 or shown.out


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", os.urandom(4096), b"\0" * 999, b'{"format": 1}\n', b"[" * 10**5]
)
def test_of_files_that_hold_no_events(data, run, capsys):
    folder, _ = run
    (folder / "events" / "7.jsonl").write_bytes(data)
    (folder / "events" / "8.jsonl").mkdir()
    assert said(folder, capsys=capsys)[0] == Exit.DONE
    (folder / "events" / "0.jsonl").write_bytes(data)
    assert said(folder, capsys=capsys)[0] in (Exit.DONE, Exit.BAD_INPUT)


def test_how_a_run_ended_is_what_it_says_itself(run, tmp_path):
    folder, logs = run
    assert not ended.says_so(folder, "7.0.1", 0)
    logs[0].write("end", run="7.0.1", status=75, why="")
    logs[0].flush()
    assert ended.says_so(folder, "7.0.1", 75)
    assert not ended.says_so(folder, "7.0.1", 0) and not ended.says_so(folder, "7.0.2", 75)
    ended.note_already_done(folder / "events", "", Exit.DONE)
    assert not ended.says_so(folder, "", 0)
    ended.note_already_done(folder / "events", "7.1.1", Exit.DONE)
    assert ended.says_so(folder, "7.1.1", 0)
    (folder / "logs").mkdir()
    ended.note_job(folder / "logs", "../8", Exit.PARTIAL)
    assert ended.says_so(folder, "../8", 3) and not ended.says_so(folder, "../8", 0)
    assert not (folder.parent / "8.json").exists()


def test_of_several_tools_in_one_folder(run, capsys):
    folder, _ = run
    (folder / "events-mask").mkdir()
    log = EventLog(folder / "events-mask", 0)
    start(log, ranks=1)
    log.write("end", status=0, why="")
    log.close()
    (folder / "run-mask.json").touch()
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
