"""Every bit of every record of a small run, flipped: its reader gives nothing, or what it gave before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from mpi4py import MPI
from support import toy

from mpiimg.engine import lease
from mpiimg.engine.checkpoint import Mark, read_marks
from mpiimg.engine.fingerprint import read_fingerprint
from mpiimg.engine.lease import Kind
from mpiimg.engine.log.events import last_events, read_events
from mpiimg.engine.recipe import Options
from mpiimg.engine.records import DamagedRecord, parsed, read_record
from mpiimg.engine.run import run
from mpiimg.engine.staged_file import offset_in
from mpiimg.errors import BadInput, RunFailed
from mpiimg.neuro.cohort import records as cohort

#: What a reader gives of a record that it does not believe.
REFUSED = "refused"


def refusing(read, *errors):
    """A reader that gives REFUSED where it raises one of `errors`."""

    def reader():
        try:
            return read()
        except errors:
            return REFUSED

    return reader


def fail(stage, chunk):
    if (stage, chunk) == ("combine", 1):
        raise RuntimeError("on purpose")


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder that a run has left that failed half way: with marks, arrays, events and a lease."""
    out = tmp_path_factory.mktemp("left") / "out"
    with pytest.raises(RunFailed):
        run(toy.regroup(fail).recipe, MPI.COMM_SELF, Options(out, toy.PLENTY, timeout=60.0))
    settings = {"version": "1", "parameters": {"b_max": None}}
    (out / "logs").mkdir()
    cohort.write_settings(out, settings)
    return out


def documents(out: Path) -> dict:
    """Return, of each file that is one record, what reads it, and what is read where it is refused."""
    work = out / "work" / "regroup.toy"
    ended = lease.LeaseState(Kind.STOPPED, 1, owner=lease.read_owner(work, 1))
    arrays = {
        path.with_suffix(".json"): (refusing(lambda path=path: offset_in(path), OSError), REFUSED)
        for path in work.glob("*.h5")
    }
    assert len(arrays) == 2
    return {
        work / "claims" / "1" / "end.json": (lambda: lease.read_lease(work), ended),
        # There are two, of which one is enough.
        work / "claims" / "1" / "owner.json": (lambda: lease.read_owner(work, 1), None),
        work / "claims" / "1" / "owner-again.json": (lambda: lease.read_owner(work, 1), None),
        work / "request": (lambda: read_fingerprint(work / "request"), {}),
        out / "logs" / "cohort.json": (refusing(lambda: cohort.read_settings(out), BadInput), REFUSED),
        **arrays,
    }


def flipped(data: bytes):
    """Yield the same bytes with each single bit flipped."""
    for bit in range(8 * len(data)):
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        yield bytes(other)


def test_every_bit_of_every_document(left):
    for path, (read, refused) in documents(left).items():
        sound, before = path.read_bytes(), read()
        assert before not in (None, REFUSED, {}), path
        with open(path, "r+b", buffering=0) as file:
            for place, byte in enumerate(sound):
                for bit in range(8):
                    os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                    assert read() in (before, refused), (path.name, place, bit)
                os.pwrite(file.fileno(), bytes([byte]), place)
        assert read() == before


def test_every_bit_of_every_line(left):
    """Of marks and of events; also of those of a run that has come to its end."""
    lines = [line for path in left.rglob("*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
    assert sum(Mark.of(parsed(line)) is not None for line in lines) > 3
    assert sum("event" in parsed(line) for line in lines) > 3
    for line in lines:
        for data in flipped(line):
            with pytest.raises(DamagedRecord):
                parsed(data)


def test_a_line_that_is_damaged_takes_no_other_with_it_but_the_next(left):
    """Without its end a line runs on into the next one; those around them are read as before."""
    marks = left / "work" / "regroup.toy" / "journal"
    for folder, read in ((marks, read_marks), (left / "events-toy", lambda it: read_events(it / "0.jsonl"))):
        (path,) = folder.glob("*.jsonl")
        sound, before = path.read_bytes(), list(read(folder))
        assert len(before) > 3
        for byte in range(0, len(sound), 7):
            path.write_bytes(sound[:byte] + bytes([sound[byte] ^ 1 << byte % 8]) + sound[byte + 1 :])
            after = list(read(folder))
            assert len(before) - 2 <= len(after) < len(before)
            assert all(one in before for one in after)
        path.write_bytes(sound)


def test_the_last_words_of_a_rank_are_the_last_that_can_be_read(left):
    events = left / "events-toy"
    path, sound = events / "0.jsonl", (events / "0.jsonl").read_bytes()
    *_, before, last = read_events(path)
    assert last_events(events, tail=8) == {0: last}
    path.write_bytes(sound[:-9] + b"x" + sound[-8:])
    assert last_events(events, tail=8) == {0: before}
    path.write_bytes(b"\x00" * 99)
    assert last_events(events) == {}
    path.write_bytes(sound)


def test_the_record_of_a_run_that_is_done(tmp_path):
    out = tmp_path / "out"
    run(toy.smooth().recipe, MPI.COMM_SELF, Options(out, toy.PLENTY, timeout=60.0))
    path = out / "run-toy.json"
    before = read_record(path)
    assert before["tool"] == "mpiimg-toy"
    for data in flipped(path.read_bytes()):
        with contextlib.suppress(DamagedRecord):
            assert parsed(data) == before
