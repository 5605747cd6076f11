"""Text of any kind as a name of a file, and as a terminal may show it."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from mpiimg.engine.mpi.runtime import put
from mpiimg.engine.names import file_name, shown


def texts(count=2000):
    """Texts of any letters: plain ones, controls, what a path or a terminal minds, any of Unicode."""
    letters = random.Random(0)
    kinds = (
        "abcXYZ019._-+",
        "/\\.. \t\n\r\0\x07\x1b\x7f",
        [chr(n) for n in range(0x100)],
        map(chr, range(0x110000)),
    )
    kinds = [list(kind) for kind in kinds]
    for _ in range(count):
        chosen = letters.sample(kinds, letters.randint(1, len(kinds)))
        yield "".join(
            letters.choice(letters.choice(chosen)) for _ in range(letters.choice((0, 1, 2, 5, 20, 300)))
        )


def test_there_are_texts_of_all_kinds():
    every = "".join(texts())
    assert {"/", "\x1b", "\n", "a"} <= set(every) and any(0xD800 <= ord(one) < 0xE000 for one in every)


def test_any_text_makes_one_component_of_a_path():
    names = {}
    for text in texts():
        name = file_name(text)
        assert Path(name).name == name and name not in ("", ".", "..")
        assert name.isascii() and name.isprintable() and name[0] not in ".-"
        assert len(name) <= 200
        assert names.setdefault(file_name(text), text) == text


@pytest.mark.parametrize(
    "text", ["r", "VR", "sub-01_ses-1_dwi", "patch-0-0", "c4d_140818.N1", "a+b", "x" * 160]
)
def test_plain_names_stay(text):
    assert file_name(text) == text


@pytest.mark.parametrize(
    "one, other", [("a/b", "a-b"), ("a/b", "a b"), ("-a", "a"), ("x" * 161, "x" * 162), ("", "-")]
)
def test_two_texts_have_two_names(one, other):
    assert file_name(one) != file_name(other)


def test_whatever_is_said_takes_no_command_of_a_terminal():
    for text in texts():
        stream = io.StringIO()
        put(text, stream)
        assert all(letter.isprintable() or letter in "\n\t" for letter in stream.getvalue())
        assert shown(text).isprintable()
        stream.getvalue().encode()
