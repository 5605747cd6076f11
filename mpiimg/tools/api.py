"""mpiimg from Python: what `import mpiimg` offers. Every rank calls it alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.parameters import TIMEOUT, checked, checked_memory, checked_path
from mpiimg.errors import BadInput
from mpiimg.functions.declare import udf
from mpiimg.tools.registry import PREFIX, Tool, tool

__all__ = ["Result", "run", "udf"]

PipelineLike = str | os.PathLike | Callable | Sequence[Callable | Mapping[str, Any]]


@dataclass(frozen=True)
class Result:
    """The results of a run.

    Parameters
    ----------
    files : mapping of str to Path
        The files that were written, by name.
    record : mapping
        The content of run.json.
    left_out : mapping of str to str
        Exposures that could not be used, and why.
    """

    files: Mapping[str, Path]
    record: Mapping[str, Any]
    left_out: Mapping[str, str]


def run(
    recipe: PipelineLike,
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    comm: Any = None,
    params: Mapping[str, Any] | None = None,
    memory: int | str | None = None,
    force: bool = False,
    in_memory: bool = False,
    keep_work: bool = False,
    progress: bool = False,
    timeout: float = 3600.0,
    **options: Any,
) -> Result:
    """Run a pipeline as the command line does: the same frame, the same bits, resumable. Collective.

    Parameters
    ----------
    recipe : callable, list, path or str
        A function, or a class with partial, merge and finish; a list of these and of tables as a TOML has
        them, e.g. {"tool": "mask"}; the path of a pipeline (.toml); or the name of a tool, e.g. "neuro".
    inputs : path or list of paths
        An image, exposures, or a folder of warps.
    out : path
        The folder of the results; for a single function over an image the file of its result.
    comm : mpi4py communicator, optional
        All its ranks call this; by default all ranks there are.
    params : mapping, optional
        Keywords of a single function.
    memory : int or str, optional
        Bytes that a rank may use, also as "4G"; by default its share of the node's.
    force : bool
        Overwrite results that are there.
    in_memory : bool
        Stage nothing on disk; a run that dies starts over.
    keep_work : bool
        Keep the staged arrays and the checkpoints of a finished run.
    progress : bool
        Draw a line per stage on stderr.
    timeout : float
        Seconds without progress after which a rank that hangs ends the job.
    options
        Those of the tool or of mpiimg-run, as on its command line: bvals, bvecs, mask, tract, b_max, ...

    Raises
    ------
    mpiimg.errors.BadInput
        An argument or an input cannot be used.
    mpiimg.errors.RunFailed
        A rank raised; the same call goes on where it ended.
    mpiimg.errors.RunStopped
        A signal asked for it; likewise.
    """
    from mpiimg.engine.mpi import runtime
    from mpiimg.engine.mpi.agreement import on_root
    from mpiimg.engine.mpi.lifetime import living
    from mpiimg.engine.mpi.nodes import memory_per_rank
    from mpiimg.engine.recipe import Options, output_names
    from mpiimg.engine.run import run as execute

    if memory is not None:
        memory = checked_memory(memory, "memory =")
    timeout = checked(TIMEOUT, timeout, "timeout =")
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    places = [checked_path(os.fspath(path), "inputs:") for path in paths]
    with living(timeout) as life:
        life.memory = memory
        comm = runtime.world() if comm is None else comm
        program, values = _program(recipe, places, checked_path(os.fspath(out), "out ="), params, options)
        inspected = on_root(comm, program.inspect, values)
        made = program.recipe(inspected, dict(sorted(values.items())))
        folder = program.folder(values)
        memory = memory_per_rank(comm) if memory is None else memory
        outcome = execute(made, comm, Options(folder, memory, force, in_memory, keep_work, progress, timeout))
    files = {name: folder / name for name in output_names(made) if (folder / name).exists()}
    return Result(files, outcome.report, outcome.left_out)


def _program(
    recipe: PipelineLike,
    inputs: list[str],
    out: str,
    params: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> tuple[Tool, dict[str, Any]]:
    """Return the tool that a call stands for, and the values of its arguments and parameters.

    Raises
    ------
    BadInput
        There is no such tool or option, or a value that it cannot have.
    """
    word = os.fspath(recipe) if isinstance(recipe, str | os.PathLike) else ""
    if word and not word.endswith(".toml") and ":" not in word:
        return _tool_asked(word, inputs, out, options)
    from mpiimg.functions.load import remember

    program = tool("mpiimg-run")
    values = {"files": inputs, "out": out, **_options(program, options)}
    if word:
        values["files"] = [word, *inputs]
    elif callable(recipe):
        values["stages"] = [{"udf": recipe, "params": dict(params or {})}]
        values["name"] = getattr(recipe, "__name__", "function")
        if out.endswith((".nii.gz", ".json")):
            values["out"], values["target"] = None, out
    else:
        values["stages"], values["name"] = list(recipe), "stages"
    for stage in values.get("stages", ()):
        # Every rank calls its own function, so every rank must know where it is.
        code = stage.get("udf") if isinstance(stage, Mapping) else stage
        if callable(code):
            remember(code)
    if params and not callable(recipe):
        raise BadInput("params are those of a single function; in a list each table has its own")
    return program, values


def _tool_asked(name: str, inputs: list[str], out: str, options: Mapping[str, Any]):
    full = name if name.startswith(PREFIX) else PREFIX + name
    try:
        program = tool(full)
    except BadInput:
        program = None
    if program is None or program.recipe is None or full == "mpiimg-run":
        raise BadInput(f"{name}: no such tool; give one of ours, a pipeline (.toml), or a function")
    values = {"out": out, **_options(program, options)}
    first = program.arguments[0][0]
    if first.many:
        values[first.name] = inputs
    elif len(inputs) == 1:
        values[first.name] = inputs[0]
    else:
        raise BadInput(f"{name}: takes one input, not {len(inputs)}")
    if full == "mpiimg-stage":
        values["staged"] = out
    return program, values


def _options(program: Tool, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a tool: those of `options`, and defaults."""
    parameters = {parameter.name: parameter for parameter in program.parameters}
    values = {name: parameter.default for name, parameter in parameters.items()}
    paths = [(argument.name, required) for argument, required in program.arguments if not argument.positional]
    values |= {name: None for name, _ in paths if name != "out"}
    for key, value in options.items():
        if key not in values:
            raise BadInput(f"{program.name}: no option {key!r}; see {program.name} --help")
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value
        own = parameters.get(key)
        if plain is not None and own is None:
            plain = checked_path(plain, f"{key} =")
        elif own is not None and not (plain is None and own.default is None):
            plain = checked(own, plain, f"{key} =")
        values[key] = plain
    missing = [name for name, required in paths if required and name != "out" and values[name] is None]
    if missing:
        raise BadInput(f"{program.name}: {missing[0]} is missing")
    return values
