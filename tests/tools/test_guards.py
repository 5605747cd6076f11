"""Guards of the command line, each by the reason why it is there."""

from __future__ import annotations

import sys

import pytest

from mpiimg.engine.parameters import Parameter
from mpiimg.tools import steps_tool
from mpiimg.tools.doctor import doctor


def test_two_steps_share_one_option_only_where_it_means_the_same():
    once = Parameter("compress", False, "Patches are compressed.", bool)
    assert steps_tool._each_once("tool", [once, once]) == (once,)
    with pytest.raises(ValueError, match="two of its steps have different parameters called compress"):
        steps_tool._each_once("tool", [once, Parameter("compress", True, "Patches are compressed.", bool)])


def test_the_terminal_that_open_mpi_gives_to_ranks_is_not_a_persons(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    assert doctor._is_terminal()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert not doctor._is_terminal()
