"""Text of any kind as a name of a file, and as a terminal may show it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from mpiimg.engine.mpi.runtime import put
from mpiimg.engine.names import file_name, shown


@settings(max_examples=200, deadline=None)
@given(some.text(alphabet=some.characters(codec=None)))
def test_any_text_makes_one_component_of_a_path(text):
    name = file_name(text)
    assert Path(name).name == name and name not in ("", ".", "..")
    assert name.isascii() and name.isprintable() and name[0] not in ".-"
    assert len(name) <= 200
    assert (name == text) or file_name(text + "x") != name


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


@settings(max_examples=200, deadline=None)
@given(some.text(alphabet=some.characters(codec=None)))
def test_whatever_is_said_takes_no_command_of_a_terminal(text):
    stream = io.StringIO()
    put(text, stream)
    assert all(letter.isprintable() or letter in "\n\t" for letter in stream.getvalue())
    assert shown(text).isprintable()
    stream.getvalue().encode()
