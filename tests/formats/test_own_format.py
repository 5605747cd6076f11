"""A format of a user's own, as docs/formats.md has it, and the table of all formats on that page."""

from __future__ import annotations

import re
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support import launch
from support.peers import numbers, read_in_boxes, write_alone

from mpiimg.errors import BadInput
from mpiimg.formats import interface, registry
from mpiimg.formats.registry import Format, known
from mpiimg.formats.space import Affine

PAGE = launch.REPOSITORY / "docs" / "formats.md"
EXAMPLE = launch.REPOSITORY / "docs" / "examples" / "pgm.py"
VALUES = numbers("uint16", (7, 9))


@pytest.fixture
def brought(monkeypatch):
    """Formats that a package brings, by their endings."""
    module = SimpleNamespace(**runpy.run_path(str(EXAMPLE), run_name="mpiimg_pgm"))
    monkeypatch.setitem(sys.modules, "mpiimg_pgm", module)
    places = {"pgm": "mpiimg_pgm:PGM"}
    monkeypatch.setattr(registry, "installed", lambda group: places)

    def add(ending, format):
        setattr(module, ending, format)
        places[ending] = f"mpiimg_pgm:{ending}"

    return add


def test_the_example_reads_and_writes_what_others_do(brought, monkeypatch, tmp_path):
    monkeypatch.setattr(interface, "CHUNK_BYTES", 40)
    path = write_alone(tmp_path, "a.pgm", VALUES, ("y", "x"))
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.array(picture), VALUES)
    Image.fromarray(VALUES).save(tmp_path / "b.pgm")
    back, source = read_in_boxes(tmp_path / "b.pgm", names="row column")
    np.testing.assert_array_equal(back, VALUES)
    assert source.axes == ("row", "column") and source.array.dtype == "uint16"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # A picture in colour, one that is cut, and nothing.
        (b"P6\n9 7\n255\n", "is no PGM that can be read: it does not begin as one of 16 bits"),
        (b"P5\n9 7\n65535\n" + bytes(50), "is no PGM that can be read: mmap length is greater"),
        (b"", "is empty (0 bytes)"),
    ],
    ids=["colour", "cut", "empty"],
)
def test_what_the_example_cannot_read_is_refused_in_one_line(content, said, brought, tmp_path):
    (tmp_path / "a.pgm").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        registry.read(tmp_path / "a.pgm", "values")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_what_the_example_cannot_write_is_refused(brought, tmp_path):
    with pytest.raises(BadInput, match=r"^a\.pgm: a PGM holds two axes of uint16"):
        write_alone(tmp_path, "a.pgm", VALUES.astype("float32"), ("y", "x"))


def test_a_class_may_say_more_and_close(brought, tmp_path):
    closed = []

    class Rich:
        """Says all that a class may say; reads a list of lists."""

        axes, shape, dtype = "y x", (2, 3), ">i4"
        attrs, identity = {"unit": "adu"}, "tuesday"
        space = Affine(("x", "y", "z"), np.eye(4))

        def __init__(self, path):
            self.path = path

        def read(self, box):
            (a, b), (c, d) = box
            return [[10 * y + x for x in range(c, d)] for y in range(a, b)]

        def close(self):
            closed.append(self.path)

    brought("rich", Format("rich", reader=Rich))
    path = tmp_path / "a.rich"
    path.write_text("x")
    back, source = read_in_boxes(path)
    np.testing.assert_array_equal(back, [[0, 1, 2], [10, 11, 12]])
    assert back.dtype == np.int32 and closed == [path, path]
    assert (source.space, source.attrs, source.identity["said"]) == (Rich.space, Rich.attrs, "tuesday")
    monday = registry.read(path, "values", names="v u")
    assert monday.axes == ("v", "u") == monday.array.axes
    assert monday.space.axes == ("u", "v", "z")


def test_a_class_that_reads_another_shape_is_named(brought, tmp_path):
    class Wrong:
        """Forgets the box."""

        axes, shape, dtype = ("y", "x"), (2, 3), "int16"

        def __init__(self, path):
            pass

        def read(self, box):
            return np.zeros((2, 3))

    brought("wrong", Format("wrong", reader=Wrong))
    (tmp_path / "a.wrong").write_text("x")
    reader = registry.read(tmp_path / "a.wrong", "values").open()
    assert reader.read(((0, 2), (0, 3))).shape == (2, 3)
    with pytest.raises(ValueError, match=r"returned the shape \(2, 3\), and not \(1, 3\)"):
        reader.read(((0, 1), (0, 3)))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("t y x", "axes 't y x' do not name its 2 axes, which are y=7 x=9"),
        ("yx", "axes 'yx' do not name its 2 axes, which are y=7 x=9; did you mean 'y x'?"),
        ("y y", "axes 'y y' do not name its 2 axes"),
    ],
)
def test_names_that_do_not_fit_are_refused_with_the_axes(names, said, brought, tmp_path):
    path = write_alone(tmp_path, "a.pgm", VALUES, ("y", "x"))
    with pytest.raises(BadInput) as refused:
        registry.read(path, "values", names=names)
    assert said in str(refused.value)


def test_a_library_that_is_missing_is_named_with_its_extra():
    with pytest.raises(BadInput, match=r"^a\.x: needs the package no_such: pip install 'mpiimg\[x\]'$"):
        interface.library("no_such.part", "a.x", "x")


def test_the_code_on_the_page_is_that_of_the_example():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 2
    assert [block for block in blocks if block not in EXAMPLE.read_text()] == []


def test_the_table_on_the_page_is_what_there_is():
    rows = []
    said = {True: "yes", False: "no"}
    for one in known():
        endings = ", ".join(f"`.{ending}`" for ending in one.endings)
        facts = [said[fact] for fact in (one.reads, one.writes, one.parallel)]
        rows.append(" | ".join([f"| {one.name}", endings, *facts]) + " |")
    table = [line for line in PAGE.read_text().splitlines() if line.count("|") == 6][2:]
    assert table == rows
