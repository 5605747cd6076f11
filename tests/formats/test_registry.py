"""Formats by the ending of a file: built in, or brought by installed packages."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.inputs import Input
from mpiimg.engine.raw import RawFile
from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.registry import FileInput, Format

SHAPE = (3, 4, 5)


class Plain:
    """The values of an array, after eight bytes that say what it is."""

    def __init__(self, array):
        self.grid = array.cut(t=2)
        self.chunk_bytes = 2 * array.nbytes // array.shape[0]

    def head(self):
        return b"a format"

    def encode(self, chunk, block):
        return block.astype("<f4").tobytes()


def open_plain(path):
    return RawFile(path, 8, SHAPE, "<f4")


def read_plain(path, name):
    if path.read_bytes()[:8] != b"a format":
        raise ValueError("it does not begin\nas it should")
    return FileInput(path, Array(name, "tyx", SHAPE, "float32"), open_plain)


@pytest.fixture
def formats(monkeypatch):
    """Formats that a package brings: one that reads and writes, and one that does neither."""
    module = ModuleType("a_package")
    module.PLAIN, module.EMPTY = Format("PLAIN", read_plain, Plain), Format("EMPTY")
    monkeypatch.setitem(sys.modules, "a_package", module)
    places = {"raw": "a_package:PLAIN", "gone.raw": "a_package:EMPTY"}
    monkeypatch.setattr(registry, "installed", lambda group: places)
    return places


def test_an_array_is_written_and_read_by_the_ending_alone(formats, tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(SHAPE)
    array = Array("values", "tyx", SHAPE, "float32")
    sink = registry.write(Path("below/VALUES.RAW"), array)
    assert (sink.file, sink.grid) == ("below/VALUES.RAW", ChunkGrid("t", (3,), (2,)))
    chunks = [sink.chunk(number) for number in range(len(sink.grid))]
    blocks = [values[slice(*chunk.bounds["t"])] for chunk in chunks]
    encoded = [sink.work(chunk, block) for chunk, block in zip(chunks, blocks, strict=True)]
    assert max(map(len, encoded)) == sink.chunk_bytes
    path = tmp_path / "values.raw"
    path.write_bytes(sink.whole(encoded))
    source = registry.read(path, "frames", axes=("tyx", "yx"))
    assert isinstance(source, Input) or source.parallel
    assert (source.array, source.files) == (array.like("frames"), (path,))
    reader = source.open()
    np.testing.assert_array_equal(reader.read(((1, 3), (0, 4), (2, 5))), values[1:3, :, 2:5])
    reader.close()


def test_another_file_is_another_input(formats, tmp_path):
    """Bytes, size or type: each enters the provenance."""
    path = tmp_path / "values.raw"
    path.write_bytes(b"a format" + bytes(240))
    before = registry.read(path, "frames")
    path.write_bytes(b"a format" + bytes(239) + b"!")
    after = registry.read(path, "frames")
    assert before.sample != after.sample
    assert before.identity == after.identity == {"dtype": "float32"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.raw", None, "missing.raw: cannot be read: No such file or directory"),
        ("broken.raw", b"what?", "is no PLAIN that can be read: it does not begin as it should"),
        ("good.raw", b"a format", "has the axes tyx, where yx are needed"),
        ("some.xyz", b"", "no format reads files of this name; there are formats of fit, fit.gz"),
        ("some.h5:maps/fa", None, "no format reads files of this name; did you mean "),
        ("raw", b"", "no format reads files of this name"),
        ("some.gone.raw", b"", "no format reads files of this name"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(name, content, said, formats, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as refusal:
        registry.read(tmp_path / name, "frames", axes=("yx",))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_cannot_be_written_is_refused(formats):
    with pytest.raises(BadInput, match=r"values\.xyz: no format writes files of this name"):
        registry.write("values.xyz", Array("values", "tyx", SHAPE, "float32"))


def test_entry_points_are_asked_only_for_endings_that_are_not_built_in(formats, monkeypatch):
    monkeypatch.setattr(registry, "FORMATS", {"raw": "a_package:PLAIN"})
    monkeypatch.setattr(registry, "installed", lambda group: pytest.fail("asked"))
    assert registry.reader(Path("some.raw")) is read_plain
