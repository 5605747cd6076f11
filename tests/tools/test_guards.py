"""Guards of the command line, each by the reason why it is there."""

from __future__ import annotations

import sys

import pytest

from mpiimg.engine.parameters import Parameter
from mpiimg.errors import BadInput
from mpiimg.tools import cli, registry
from mpiimg.tools.doctor import doctor


@pytest.mark.parametrize(
    ("text", "expected"), [("4G", 4 << 30), ("500M", 500 << 20), ("1.5k", 1536), ("7", 7), ("1T", 1 << 40)]
)
def test_a_size_is_bytes_or_a_number_with_a_letter(text, expected):
    assert cli._bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "4GB", "much"])
def test_a_size_that_is_none_is_refused_with_its_option(text):
    with pytest.raises(BadInput, match=r"^--memory .*: give bytes, or a number with K, M, G or T$"):
        cli._bytes(text)


def test_two_steps_share_one_option_only_where_it_means_the_same():
    once = Parameter("compress", False, "Patches are compressed.", bool)
    assert registry._each_once("tool", [once, once]) == (once,)
    with pytest.raises(ValueError, match="two of its steps have different parameters called compress"):
        registry._each_once("tool", [once, Parameter("compress", True, "Patches are compressed.", bool)])


def test_the_terminal_that_open_mpi_gives_to_ranks_is_not_a_persons(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    assert doctor._is_terminal()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert not doctor._is_terminal()
