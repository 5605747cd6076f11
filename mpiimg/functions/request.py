"""What mpiimg-run is asked for: one function of a user's, or a pipeline of stages, ours and theirs."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpiimg.engine.plan import Values
from mpiimg.engine.predict import UNKNOWN_SCRATCH, chunk_bytes
from mpiimg.engine.stage import Parameter, Stage
from mpiimg.errors import BadInput
from mpiimg.functions.declare import Function
from mpiimg.functions.load import from_object, from_text, read_params
from mpiimg.neuro.neuro_steps import Step

#: The tools that can be a stage of a pipeline, by the kind of their input.
STEPS = {"image": ("mask", "denoise", "fit"), "survey": ("calibrate", "warp", "coadd", "detect")}

#: Keys of a stage that is a user's function; the first five go into its declaration.
DECLARED = ("over", "halo", "dtype", "components", "slices")
KEYS = (*DECLARED, "udf", "name", "params", "write")

#: Names of results of our tools.
TAKEN = ("brain", "denoised", "noise", "residual")

Settings = Mapping[str, Sequence[Parameter]]


@dataclass(frozen=True)
class Entry:
    """A stage of a user's pipeline: one of our tools, or a function.

    Parameters
    ----------
    name : of the stage, for marks and files
    tool : mask, denoise, ...; empty for a function
    function : the user's
    settings : what was said of a tool's parameters
    write : the result of a function is written
    """

    name: str
    tool: str = ""
    function: Function | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    write: bool = True


@dataclass(frozen=True)
class Asked:
    """What a run of mpiimg-run is.

    Parameters
    ----------
    entries : its stages
    inputs : files, or one folder
    target : file of the result of a single function; None where results go to a folder
    name : of the pipeline
    parameters : of all tools, with defaults
    """

    entries: tuple[Entry, ...]
    inputs: tuple[Path, ...]
    target: Path | None
    name: str
    parameters: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What it works on: "image" or "survey"."""
        sky = any(
            entry.tool in STEPS["survey"]
            or (entry.function is not None and entry.function.declared.over in ("exposures", "patches"))
            for entry in self.entries
        )
        return "survey" if sky else "image"


def with_libraries(steps: Sequence[Step], libraries: int) -> list[Step]:
    """Return steps whose stages leave room for the libraries of the user's functions, which ranks keep."""

    def reckoned(values: Values, step: Step) -> Stage | None:
        stage = step(values)
        if stage is None:
            return None
        scratch = stage.scratch
        if scratch is None:
            scratch = UNKNOWN_SCRATCH * chunk_bytes(stage).largest
        return dataclasses.replace(stage, scratch=scratch + libraries)

    return [functools.partial(reckoned, step=step) for step in steps]


def read_request(args: argparse.Namespace, tools: Mapping[str, Settings]) -> Asked:
    """Return what the command line asks for.

    Raises
    ------
    BadInput : it does not say what to run on what, or a stage makes no sense
    """
    if getattr(args, "stages", None) is not None:
        entries, name = read_stages(args.stages, Path(), "stages", tools), args.name
        return _checked(entries, args.files, None if args.out else Path(args.target), name, tools)
    if args.udf is not None:
        declared = {key: getattr(args, key) for key in DECLARED}
        if not args.out and len(args.files) < 2:
            raise BadInput("name what to read and what to write, as in: in.nii.gz out.nii.gz")
        function = from_text(args.udf, Path(), read_params(args.param or ()), declared)
        *inputs, target = args.files if not args.out else (*args.files, None)
        entry = Entry(function.name, function=function)
        return _checked((entry,), inputs, Path(target) if target else None, function.name, tools)
    given = [f"--{name}" for name in (*DECLARED, "param") if getattr(args, name) is not None]
    if given:
        raise BadInput(f"{given[0]} is for --udf; a pipeline says it in its TOML file")
    path = Path(args.files[0])
    if path.suffix != ".toml":
        raise BadInput(f"{path}: give --udf FILE.py:NAME, or a pipeline (.toml) and what to run it on")
    if not args.out or len(args.files) < 2:
        raise BadInput(f"{path}: name what to run it on, and --out DIR")
    entries = read_stages(_stages_of(path), path.parent, str(path), tools)
    return _checked(entries, args.files[1:], None, str(path), tools)


def _stages_of(path: Path) -> list:
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadInput(f"{path}: cannot read this pipeline: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not TOML: {error}") from None
    if set(content) != {"stage"} or not isinstance(content["stage"], list):
        raise BadInput(f"{path}: a pipeline is made of [[stage]] tables and nothing else")
    return content["stage"]


def read_stages(stages: Sequence, base: Path, where: str, tools: Mapping[str, Settings]) -> tuple[Entry, ...]:
    """Return the stages of a pipeline.

    Parameters
    ----------
    stages : each a table (tool = ..., or udf = ... and its keys), or a function that is at hand
    base : folder that files of functions are in
    where : names the pipeline in messages

    Raises
    ------
    BadInput : a stage makes no sense, or two have one name
    """
    found: list[Entry] = []
    for number, stage in enumerate(stages, 1):
        here = f"{where}: stage {number}"
        table = {"udf": stage} if callable(stage) else stage
        if not isinstance(table, Mapping) or len({"tool", "udf"} & set(table)) != 1:
            raise BadInput(f"{here}: give either tool = one of ours, or udf = FILE.py:NAME")
        entry = _tool_entry(table, here, tools) if "tool" in table else _udf_entry(table, base, here)
        if label(entry.name) in (*(label(earlier.name) for earlier in found), *TAKEN):
            raise BadInput(f"{here}: another result is called {label(entry.name)}; give the stage a name")
        found.append(entry)
    if not found:
        raise BadInput(f"{where}: holds no [[stage]]")
    return tuple(found)


def label(name: str) -> str:
    """Return a name as BIDS has labels: letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "", name) or "result"


def _tool_entry(table: Mapping, here: str, tools: Mapping[str, Settings]) -> Entry:
    every = {name: parameters for kind in tools.values() for name, parameters in kind.items()}
    tool = table["tool"]
    if tool not in every:
        raise BadInput(f"{here}: no tool {tool!r} can be a stage; there are {', '.join(every)}")
    known = {parameter.name: parameter for parameter in every[tool]}
    settings = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name == "tool":
            continue
        if name not in known:
            raise BadInput(f"{here}: {tool} has no parameter {key!r}; see mpiimg-{tool} --help")
        settings[name] = _value(known[name], value, f"{here}: {key}")
    return Entry(tool, tool, None, settings)


def _value(parameter: Parameter, value: Any, here: str) -> Any:
    """Return a value of a parameter, checked as the command line does.

    Raises
    ------
    BadInput : it is of the wrong kind, none of the choices, or out of range
    """
    if parameter.type is bool:
        if not isinstance(value, bool):
            raise BadInput(f"{here} = {value!r}: must be true or false")
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        if parameter.type in (int, float) and (not number or parameter.type(value) != value):
            raise ValueError
        converted = parameter.type(value)
    except (TypeError, ValueError):
        raise BadInput(f"{here} = {value!r}: must be of type {parameter.type.__name__}") from None
    if parameter.choices and converted not in parameter.choices:
        raise BadInput(f"{here} = {value!r}: must be one of {', '.join(parameter.choices)}")
    if parameter.limits and not parameter.limits[0] <= converted <= parameter.limits[1]:
        low, high = parameter.limits
        raise BadInput(f"{here} = {value!r}: is not between {low:g} and {high:g}")
    return converted


def _udf_entry(table: Mapping, base: Path, here: str) -> Entry:
    unknown = [key for key in table if key not in KEYS]
    if unknown:
        raise BadInput(f"{here}: no key {unknown[0]!r}; a function has {', '.join(KEYS)}")
    params = table.get("params", {})
    if not isinstance(params, Mapping):
        raise BadInput(f"{here}: params is a table, as in params = {{ strength = 0.5 }}")
    declared = {key: table.get(key) for key in DECLARED}
    code = table["udf"]
    if callable(code):
        function = from_object(code, params, declared)
    else:
        function = from_text(str(code), base, params, declared)
    return Entry(str(table.get("name", function.name)), "", function, {}, bool(table.get("write", True)))


def _checked(
    entries: tuple[Entry, ...],
    inputs: Sequence,
    target: Path | None,
    name: str,
    tools: Mapping[str, Settings],
) -> Asked:
    asked = Asked(entries, tuple(map(Path, inputs)), target, name, {})
    for entry in entries:
        other = "image" if asked.kind == "survey" else "survey"
        if entry.tool in STEPS[other] or (
            entry.function is not None
            and (entry.function.declared.over in ("exposures", "patches")) != (asked.kind == "survey")
        ):
            raise BadInput(f"{name}: stage {entry.name} is not for {asked.kind}s, as other stages are")
    parameters = {
        parameter.name: parameter.default for of_tool in tools[asked.kind].values() for parameter in of_tool
    }
    for entry in entries:
        parameters |= entry.settings
    return Asked(entries, asked.inputs, target, name, parameters)
