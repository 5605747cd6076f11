"""Heads of results are made before the run, and what goes wrong then is said of the file."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.proof import prove_heads
from mpiimg.engine.stage import Sink
from mpiimg.errors import BadInput


def recipe(head):
    grid = ChunkGrid("z", (4,), (2,))
    sink = Sink("write-map", grid, work=lambda chunk: b"", file="sub/map.nii.gz", head=head, chunk_bytes=1)
    return SimpleNamespace(expected=[sink])


def raising(error):
    def head():
        raise error

    return head


def test_whatever_a_head_raises_is_bad_input_that_names_the_file():
    """Also of a format of somebody else's, and of users' functions: hours of work end there otherwise."""
    with pytest.raises(BadInput) as refused:
        prove_heads(recipe(raising(ValueError("zooms must\nbe positive"))))
    assert str(refused.value) == (
        "sub/map.nii.gz: this result cannot be written: no header can be made for it: "
        "zooms must be positive; nothing was computed yet"
    )
    with pytest.raises(BadInput, match="no header can be made for it: KeyError; nothing"):
        prove_heads(recipe(raising(KeyError())))


@pytest.mark.parametrize("error", [BadInput("x.nii: mend it"), OSError(28, "No space left"), MemoryError()])
def test_what_is_said_already_and_what_the_system_says_is_left_as_it_is(error):
    with pytest.raises(type(error)) as raised:
        prove_heads(recipe(raising(error)))
    assert raised.value is error


def test_heads_that_can_be_made_are_forgotten():
    assert prove_heads(recipe(lambda: b"head")) is None
