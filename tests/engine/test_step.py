"""Declarations: what follows from a dataclass of parameters, from a function, from a folder of steps."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from support import toydomain

from mpiimg.engine.parameters import NoParameters, Parameter, parameter, parameters_of
from mpiimg.engine.plugins import load_object
from mpiimg.engine.step import Step, declare_step, line_of, steps_in


def test_parameters_follow_from_a_dataclass():
    """Names, defaults, types also of what may be None, and all that was said; one without help is none."""
    factor, power, keep = parameters_of(toydomain.ScaleParameters)
    help = "All numbers are multiplied by this one."
    limits = (sys.float_info.min, sys.float_info.max)
    assert factor == Parameter("factor", 2.0, help, float, unit="1", limits=limits)
    assert (power.name, power.default, power.type, power.choices) == ("power", None, int, (2, 3))
    assert (keep.name, keep.default, keep.type) == ("keep", False, bool)
    assert toydomain.ScaleParameters().internal == 3
    assert parameters_of(NoParameters) == ()


def test_a_parameter_may_name_another_type():
    @dataclasses.dataclass(frozen=True)
    class Parameters:
        size: tuple = parameter((1, 2), "The size.", type=str, metavar="AxB", repeated=True, bare="x")

    (size,) = parameters_of(Parameters)
    assert (size.type, size.metavar, size.repeated, size.bare) == (str, "AxB", True, "x")


def test_parameters_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        toydomain.ScaleParameters().factor = 3.0


def test_a_line_of_history_has_all_parameters_with_their_units():
    p = toydomain.ScaleParameters(factor=1.5, power=2)
    assert line_of("scale", p) == "scale: factor 1.5 1, power 2, keep False"
    assert line_of("count", NoParameters()) == "count"


def test_a_function_makes_a_step_of_its_name_and_first_sentence():
    @declare_step(takes=("rows",), gives=("rows",))
    def turn_over(sheet, p, data):
        """Yield the turning
        of a sheet.

        Nothing more.
        """
        return sheet
        yield

    assert (turn_over.name, turn_over.summary) == ("turn-over", "Yield the turning of a sheet.")
    assert isinstance(turn_over, Step)
    assert turn_over.parameters is NoParameters


def test_each_module_of_a_folder_has_a_step(tmp_path, monkeypatch):
    folder = tmp_path / "folder_of_steps"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name in ("turn", "bend"):
        (folder / f"{name}.py").write_text(f"STEP = {name!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    steps = steps_in("folder_of_steps")
    assert steps == {"bend": "folder_of_steps.bend:STEP", "turn": "folder_of_steps.turn:STEP"}
    assert "folder_of_steps.turn" not in sys.modules, "listing loads no step"
    assert load_object(steps["turn"]) == "turn"
