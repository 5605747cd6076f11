"""Marks of what is done: written after their data, read by anyone; torn and damaged ones are none."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from mpiimg.engine.checkpoint import Journal, Mark, checksum, keep_marks, read_marks
from mpiimg.engine.records import line_of


def blocks(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3, 4)).astype("float32"), rng.integers(0, 9, (2, 5)).astype("int16")]


def mark(stage, chunk, provenance, blocks, places=()):
    return Mark(stage, chunk, provenance, tuple((zlib.crc32(b.tobytes()), b.nbytes) for b in blocks), places)


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path, 3, lambda: None, every=1e9)
    yield opened
    opened.close()


def test_checksum_is_crc32_of_the_values_in_c_order():
    block = blocks()[0]
    assert checksum(block) == zlib.crc32(block.tobytes())
    assert checksum(block.T) == zlib.crc32(block.T.tobytes()) != checksum(block)
    assert checksum(block[:, ::2]) == zlib.crc32(block[:, ::2].copy().tobytes())
    assert checksum(np.empty((0, 3))) == 0


def test_marks_come_back(journal, tmp_path):
    marks = [
        mark("fit", 7, "abc", blocks(), (((3, 4), (9, 8)), ((0, 10),))),
        mark("fit", 8, "abc", [np.empty((0, 2))]),
    ]
    for one in marks:
        journal.mark(one)
    journal.sync()
    assert list(read_marks(tmp_path)) == marks


def test_marks_of_all_ranks_and_runs_come_back(tmp_path):
    journals = [Journal(tmp_path, rank, lambda: None) for rank in (0, 1, 1)]
    for chunk, journal in enumerate(journals):
        journal.mark(mark("s", chunk, "p", blocks(chunk)))
        journal.sync()
        journal.close()
    assert {mark.chunk for mark in read_marks(tmp_path)} == {0, 1, 2}
    assert len(list(tmp_path.iterdir())) == 3


def test_data_are_made_durable_before_the_marks_that_speak_of_them(tmp_path):
    seen = []
    journal = Journal(tmp_path, 0, lambda: seen.append(list(read_marks(tmp_path))), every=1e9)
    journal.mark(mark("s", 0, "p", blocks()))
    assert seen == []
    assert list(read_marks(tmp_path)) == []
    journal.sync()
    assert seen == [[]]
    assert len(list(read_marks(tmp_path))) == 1
    journal.sync()
    assert seen == [[]], "nothing new to make durable"
    journal.close()


def test_no_mark_without_its_data(tmp_path):
    """Where the data cannot be made durable, the marks stay unwritten, and come with the next sync."""
    failing = [True]

    def sync_data():
        if failing.pop():
            raise OSError("no space")

    journal = Journal(tmp_path, 0, sync_data, every=1e9)
    journal.mark(mark("s", 0, "p", blocks()))
    with pytest.raises(OSError, match="no space"):
        journal.sync()
    assert list(read_marks(tmp_path)) == []
    failing.append(False)
    journal.sync()
    assert list(read_marks(tmp_path)) == [mark("s", 0, "p", blocks())]
    journal.close()


def test_a_mark_syncs_when_it_is_time(tmp_path):
    journal = Journal(tmp_path, 0, lambda: None, every=0.0)
    for chunk in range(3):
        journal.mark(mark("s", chunk, "p", blocks()))
    assert [mark.chunk for mark in read_marks(tmp_path)] == [0, 1, 2]
    journal.close()


def lines(*chunks):
    return [Mark("s", chunk, "p", ((1, 2),)).line() for chunk in chunks]


@pytest.mark.parametrize("kept", [1, 40, -2, -1])
def test_a_torn_last_line_is_ignored(tmp_path, kept):
    """One that is whole but for its newline too."""
    whole, torn = lines(0, 1)
    (tmp_path / "a.jsonl").write_bytes(whole + torn[:kept])
    assert list(read_marks(tmp_path)) == [Mark("s", 0, "p", ((1, 2),))]


GOOD = {"stage": "s", "chunk": 1, "provenance": "p", "blocks": [[1, 2]], "places": []}

NO_MARKS = {
    "empty": b"\n",
    "zeros": b"\x00" * 40 + b"\n",
    "of the first versions": b'["s", 1, "p", [[1, 2]]]\n',
    "without a checksum": b'{"format": 1, "stage": "s", "chunk": 1, "provenance": "p"}\n',
    "of another kind": line_of({"state": "done"}),
    "without blocks": line_of({name: value for name, value in GOOD.items() if name != "blocks"}),
    "with blocks that are none": line_of({**GOOD, "blocks": [5]}),
    "with sums that are none": line_of({**GOOD, "blocks": [["x", 2]]}),
    "with a chunk by name": line_of({**GOOD, "chunk": "1"}),
    "with many stages": line_of({**GOOD, "stage": ["s"]}),
    "with places that are none": line_of({**GOOD, "places": [[7]]}),
    "of another format": line_of({**GOOD, "format": 2}),
}


@pytest.mark.parametrize("line", NO_MARKS.values(), ids=NO_MARKS)
def test_a_line_that_is_no_mark_is_ignored(tmp_path, line):
    """Such as blocks of zeros that a file system leaves after a power loss; marks around it count."""
    assert Mark.of(GOOD) == Mark("s", 1, "p", ((1, 2),))
    first, last = lines(0, 1)
    (tmp_path / "a.jsonl").write_bytes(first + line + last)
    assert [mark.chunk for mark in read_marks(tmp_path)] == [0, 1]


def test_marks_that_are_kept_are_marks(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines(0, 1)))
    (tmp_path / "b.jsonl").write_bytes(Mark("other", 2, "p", ()).line())
    keep_marks(tmp_path, ["s"])
    assert [mark.chunk for mark in read_marks(tmp_path)] == [0, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_has_no_marks(tmp_path):
    assert list(read_marks(tmp_path)) == []
