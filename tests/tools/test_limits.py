"""Limits: every number declares what it may be, and holds to that wherever a value comes from."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from mpiimg.engine import plugins
from mpiimg.engine.compose import filled
from mpiimg.engine.parameters import (
    MEMORY_LIMITS,
    UNDECLARED,
    Parameter,
    checked_memory,
    checked_path,
    parameters_of,
)
from mpiimg.errors import BadInput
from mpiimg.functions.declare import LIMITS, Declaration
from mpiimg.functions.request import _Stages
from mpiimg.tools import api, bids_app, cli
from mpiimg.tools.registry import tool, tool_names

#: What is no number, or none with an end, as words of the command line.
NO_NUMBERS = ("nan", "-nan", "inf", "-inf", "1e400", "-1e400", "", " ", "text", "1_0", "0x1p3", "\u0663")

#: The same, and more, in Python and TOML.
NO_VALUES = (math.nan, math.inf, -math.inf, "", "text", "5", True, [], [1], {}, 10**400, -(10**400))


@functools.cache
def tools_parameters() -> tuple[tuple[str, Parameter], ...]:
    """Return each parameter of our tools with a tool that has it, each once."""
    of_tools = {(one.name, one): (name, one) for name in tool_names() for one in tool(name).parameters}
    common = [("mpiimg-neuro", one) for one in (*cli.COMMON, bids_app.GROUP_SIZE)]
    return (*of_tools.values(), *common)


@functools.cache
def steps_parameters() -> tuple[tuple[str, Parameter], ...]:
    """Return each parameter of our steps with the step that has it."""
    steps = [
        plugins.step(domain, name)
        for domain in map(plugins.domain, plugins.DOMAINS)
        for name in plugins.step_names(domain)
    ]
    return tuple((step.name, one) for step in steps for one in parameters_of(step.parameters))


def of_numbers(parameters) -> list:
    """Return those that are numbers, or texts that may be one, as pytest takes them."""
    return [
        pytest.param(owner, one, id=f"{owner}-{one.name}")
        for owner, one in parameters
        if one.limits is not None
    ]


def outside(one: Parameter) -> list:
    """Return the values next to its limits, on the outside."""
    low, high = one.limits
    if one.type is int:
        return [low - 1, high + 1]
    return [float(np.nextafter(low, -math.inf)), float(np.nextafter(high, math.inf))]


# Declarations.


@pytest.mark.parametrize(("owner", "one"), [(owner, one) for owner, one in tools_parameters()])
def test_every_number_declares_limits_or_choices(owner, one):
    if one.type in (int, float):
        assert one.choices or one.limits != UNDECLARED[one.type], f"{owner}: {one.flag} declares no limits"
    if one.limits is not None and isinstance(one.default, int | float):
        low, high = one.limits
        assert low <= one.default <= high
    if one.limits is not None:
        assert all(math.isfinite(limit) for limit in one.limits)


def test_every_parameter_of_a_step_and_source_is_one_of_a_tool():
    """So that what holds of tools here holds of steps and sources."""
    of_tools = {one.name for _, one in tools_parameters()}
    sources = [source for name in plugins.DOMAINS for source in plugins.domain(name).sources]
    declared = [one for _, one in steps_parameters()]
    declared += [one for source in sources for one in parameters_of(source.parameters)]
    told_by_out = {"catalogue"}
    assert {one.name for one in declared} - told_by_out <= of_tools


def test_a_number_of_a_step_that_others_bring_is_finite_at_least():
    assert Parameter("gain", 1.0, "A gain.", float).limits == UNDECLARED[float]
    assert Parameter("rows", 1, "Rows.", int).limits == UNDECLARED[int]
    assert Parameter("power", None, "A power.", int, choices=(2, 3)).limits is None


# The command line.


def refused(name: str, words: list[str], capsys) -> str:
    """Return the one line with which a command line is refused."""
    with pytest.raises(SystemExit) as ended:
        cli.main(name, words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(("owner", "one"), of_numbers(tools_parameters()))
def test_the_command_line_refuses_what_lies_outside(owner, one, capsys):
    """In one line that names the option, the value and the range."""
    values = [f"{value!r}" for value in outside(one)]
    values += NO_NUMBERS if one.type in (int, float) else ["nan", "inf", "1e400", ""]
    for value in values:
        line = refused(owner, [f"{one.flag}={value}"], capsys)
        assert one.flag in line, line
        assert value.strip() in line
        if value.strip() or one.type is not str:
            assert one.range in line
        if value.startswith("-"):
            assert one.flag in refused(owner, [one.flag, value], capsys), "as a word of its own too"


@pytest.mark.parametrize("value", ["1.5", "1e3.5", "1.0000001"])
def test_a_whole_number_has_no_fraction(value, capsys):
    assert "must be of type int" in refused("mpiimg-mask", ["--passes", value], capsys)
    assert "a whole number of voxels" in refused("mpiimg-mask", ["--median-radius", value], capsys)


def test_a_whole_number_may_be_written_with_an_exponent():
    words = ["dwi.nii", "--bvals", "a", "--bvecs", "b", "--out", "o", "--passes", "1e2"]
    assert vars(cli.parser("mpiimg-mask").parse_args(words))["passes"] == 100


@pytest.mark.parametrize("path", ["", " ", "-", "~", "~/out", "a\nb", "a\x1b[2Jb"])
def test_what_is_no_path_is_refused(path, capsys):
    line = refused("mpiimg-mask", [f"--out={path}"], capsys)
    assert "--out" in line and "\x1b" not in line
    with pytest.raises(BadInput, match="out ="):
        checked_path(path, "out =")


# TOML.


def read_stage(**table):
    return _Stages("pipeline.toml", None, "").read([table])


@pytest.mark.parametrize(("owner", "one"), of_numbers(steps_parameters()))
def test_toml_refuses_what_lies_outside(owner, one):
    values = [*outside(one), math.nan, math.inf, -math.inf]
    values += NO_VALUES if one.type in (int, float) else ["nan", "1e400", "", True, [], {}]
    for value in values:
        with pytest.raises(BadInput) as refusal:
            read_stage(tool=owner, **{one.name: value})
        (line,) = str(refusal.value).splitlines()
        assert f"stage 1: {one.name} =" in line
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert one.range in line


@pytest.mark.parametrize(
    "table",
    [
        {"write": "false"},
        {"write": 0},
        {"name": "a/b"},
        {"name": "../../up"},
        {"name": ".."},
        {"name": ""},
        {"name": "a\0b"},
        {"name": "line\nend"},
        {"name": 5},
        {"name": "long" * 100},
        {"finalize": "true"},
        {"finalize": 1},
        {"median-radius": 2, "median_radius": 3},
    ],
    ids=str,
)
def test_a_stage_says_true_or_false_and_a_name_that_a_file_can_have(table):
    with pytest.raises(BadInput, match="stage 1: "):
        read_stage(tool="mask", **table)


@pytest.mark.parametrize(
    "text",
    [
        b"[[stage]]\ntool = 'mask'\npasses = " + b"1" * 5000,
        b"stage = " + b"[" * 100_000,
        b"\xff\xfe[[stage]]",
        b"[[stage]]\ntool = 'mask'\x00",
        b"domain = 5\n[[stage]]\ntool = 'mask'",
        b"[[stage]]\ntool = 'mask'\n" + b"#" * (17 << 20),
    ],
    ids=["digits", "nesting", "encoding", "nul", "domain", "large"],
)
def test_a_pipeline_that_no_reader_can_read_is_refused(text, tmp_path):
    path = tmp_path / "pipeline.toml"
    path.write_bytes(text)
    with pytest.raises(BadInput, match=r"pipeline\.toml: "):
        _Stages(str(path), tmp_path, "").content(path)


def test_a_mark_at_the_beginning_of_a_pipeline_is_no_part_of_it(tmp_path):
    path = tmp_path / "pipeline.toml"
    path.write_bytes("\ufeff[[stage]]\r\ntool = 'mask'\r\n".encode())
    assert _Stages(str(path), tmp_path, "").content(path) == [{"tool": "mask"}]


@pytest.mark.parametrize("name", LIMITS)
def test_what_a_function_declares_has_the_limits_of_the_option(name):
    (one,) = (one for one in tool("mpiimg-run").parameters if one.name == name)
    assert one.limits == LIMITS[name]
    for value in (*outside(one), 1.5, math.nan, True, "3"):
        with pytest.raises(BadInput, match=f"^{name} of a user's function is a whole number from"):
            Declaration("voxels", **{name: value})


# Python.


@pytest.mark.parametrize(("owner", "one"), of_numbers(tools_parameters()))
def test_python_refuses_what_lies_outside(owner, one):
    program = tool(owner)
    if one not in program.parameters:
        pytest.skip("an option of the command line alone")
    needed = {argument.name: "a" for argument, required in program.arguments if required}
    values = [*outside(one), math.nan, math.inf]
    values += NO_VALUES if one.type in (int, float) else ["nan", "1e400", "", True, [], {}]
    for value in values:
        with pytest.raises(BadInput) as refusal:
            api._options(program, {one.name: value, **{k: v for k, v in needed.items() if k != "out"}})
        (line,) = str(refusal.value).splitlines()
        assert line.startswith(f"{one.name} = ")


@pytest.mark.parametrize(("owner", "one"), of_numbers(steps_parameters()))
def test_a_chain_holds_its_parameters_to_their_limits_whoever_makes_it(owner, one):
    """The last gate: what neither a command line nor TOML has checked."""
    for value in outside(one):
        with pytest.raises(BadInput, match=f"^{one.flag} "):
            filled(_step(owner).parameters, {one.name: value})


def _step(name: str):
    domains = map(plugins.domain, plugins.DOMAINS)
    return next(plugins.step(domain, name) for domain in domains if name in plugins.step_names(domain))


@pytest.mark.parametrize(
    "words",
    [
        {"memory": -5},
        {"memory": 0},
        {"memory": math.nan},
        {"memory": "lots"},
        {"memory": True},
        {"timeout": math.nan},
        {"timeout": -1},
        {"timeout": "1h"},
        {"timeout": 1e300},
    ],
    ids=str,
)
def test_python_refuses_memory_and_time_that_nobody_has(words):
    (name,) = words
    with pytest.raises(BadInput, match=f"^{name} = "):
        api.run("mask", "dwi.nii", "out", **words)


@pytest.mark.parametrize(
    "text", ["-5", "0", "nan", "inf", "1e30", "", "G", "4GBB", "4 0G", "much", "1e300P", "4000"]
)
def test_a_size_that_no_rank_has_is_refused_with_its_option(text):
    with pytest.raises(
        BadInput, match=r"^--memory .*: (give bytes|is less than 1M|is not between 1M and 1024T)"
    ):
        checked_memory(text, "--memory")


def test_a_small_number_of_bytes_is_told_how_slurm_would_have_it():
    with pytest.raises(BadInput, match="4000 MB is written 4000M"):
        checked_memory("4000", "--memory")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4G", 4 << 30),
        ("4GB", 4 << 30),
        ("4GiB", 4 << 30),
        ("4Gi", 4 << 30),
        ("4g", 4 << 30),
        ("4096M", 4 << 30),
        ("500M", 500 << 20),
        ("500 MB", 500 << 20),
        ("1.5G", 3 << 29),
        ("1536k", 1536 << 10),
        ("1T", 1 << 40),
        (str(4 << 30), 4 << 30),
        ("4e9", 4_000_000_000),
        (4 << 30, 4 << 30),
        (4e9, 4_000_000_000),
        *((str(limit), limit) for limit in MEMORY_LIMITS),
    ],
)
def test_a_size_is_written_as_people_and_slurm_write_it(text, expected):
    assert checked_memory(text, "--memory") == expected
