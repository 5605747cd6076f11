"""mpiimg from Python: what `import mpiimg` offers. Every rank calls it alike."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.errors import BadInput
from mpiimg.functions.declare import udf
from mpiimg.tools.registry import TOOLS, Tool

__all__ = ["Result", "run", "udf"]

Stages = str | os.PathLike | Callable | Sequence[Callable | Mapping[str, Any]]


@dataclass(frozen=True)
class Result:
    """What a run left.

    Parameters
    ----------
    files : that were written, by name
    record : what run.json says of the run
    left_out : exposures that could not be used, and why
    """

    files: Mapping[str, Path]
    record: Mapping[str, Any]
    left_out: Mapping[str, str]


def run(
    recipe: Stages,
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    comm: Any = None,
    params: Mapping[str, Any] | None = None,
    memory: int | None = None,
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
    recipe : a function, or a class of partial, merge and finish; a list of such and of tables as a TOML has
        them, e.g. {"tool": "mask"}; the path of a pipeline (.toml); or the name of a tool, e.g. "neuro"
    inputs : what it is run on: an image, exposures, or a folder of warps
    out : folder of the results; of a single function over an image the file of its result
    comm : mpi4py communicator whose ranks all call this; by default all ranks there are
    params : keywords of a single function
    memory : bytes a rank may use; by default its share of the node's
    force : overwrite results that are there
    in_memory : stage nothing on disk; a run that dies starts over
    keep_work : leave the staged arrays and marks when done
    progress : draw a line a stage on stderr
    timeout : seconds without progress after which a rank that hangs ends the job
    options : of the tool or of mpiimg-run, as on its command line: bvals, bvecs, mask, tract, b_max, ...

    Raises
    ------
    mpiimg.errors.BadInput : something that was given cannot be used
    mpiimg.errors.RunFailed : a rank raised; the same call goes on where it ended
    mpiimg.errors.RunStopped : a signal asked for it; likewise
    """
    from mpiimg.engine.mpi import runtime
    from mpiimg.engine.plan import Options, output_names
    from mpiimg.engine.run import run as execute

    comm = runtime.world() if comm is None else comm
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    tool, args = _asked(recipe, list(map(os.fspath, paths)), os.fspath(out), params, options)
    found = runtime.on_root(comm, tool.inspect, args)
    made = tool.recipe(found, {key: value for key, value in sorted(vars(args).items()) if key != "out"})
    folder = tool.folder(args) if tool.folder is not None else Path(out)
    if tool.folder is None and tool.result != "DIR":
        folder = folder.parent
    memory = memory or runtime.memory_per_rank(comm)
    values = execute(made, comm, Options(folder, memory, force, in_memory, keep_work, progress, timeout))
    files = {name: folder / name for name in output_names(made) if (folder / name).exists()}
    record = runtime.on_root(comm, lambda: json.loads((folder / made.record).read_text()))
    return Result(files, record, values.get("left_out", {}))


def _asked(
    recipe: Stages, inputs: list[str], out: str, params: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> tuple[Tool, argparse.Namespace]:
    """Return the tool that a call stands for, and its arguments.

    Raises
    ------
    BadInput : there is no such tool or option
    """
    word = os.fspath(recipe) if isinstance(recipe, str | os.PathLike) else ""
    if word and not word.endswith(".toml"):
        return _tool_asked(word, inputs, out, options)
    from mpiimg.functions.load import remember

    tool = TOOLS["mpiimg-run"]
    args = argparse.Namespace(files=inputs, out=out, stages=None, **_options("mpiimg-run", options))
    if word:
        args.files = [word, *inputs]
    elif callable(recipe):
        args.stages = [{"udf": recipe, "params": dict(params or {})}]
        args.name = getattr(recipe, "__name__", "function")
        if out.endswith((".nii.gz", ".json")):
            args.out, args.target = None, out
    else:
        args.stages, args.name = list(recipe), "stages"
    for stage in args.stages or ():
        # Every rank calls its own function, so every rank must know where it is.
        code = stage.get("udf") if isinstance(stage, Mapping) else stage
        if callable(code):
            remember(code)
    if params and not callable(recipe):
        raise BadInput("params are those of a single function; in a list each table has its own")
    return tool, args


def _tool_asked(name: str, inputs: list[str], out: str, options: Mapping[str, Any]):
    full = name if name.startswith("mpiimg-") else f"mpiimg-{name}"
    if full not in TOOLS or TOOLS[full].recipe is None or full == "mpiimg-run":
        raise BadInput(f"{name}: no such tool; give one of ours, a pipeline (.toml), or a function")
    args = argparse.Namespace(out=out, **_options(full, options))
    flag = TOOLS[full].inputs[0][0]
    if flag.endswith("..."):
        setattr(args, flag[:-3], inputs)
    elif len(inputs) == 1:
        setattr(args, flag, inputs[0])
    else:
        raise BadInput(f"{name}: takes one input, not {len(inputs)}")
    if full == "mpiimg-stage":
        args.staged = out
    return TOOLS[full], args


def _options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a tool, with what was given in the place of defaults."""
    tool = TOOLS[name]
    found = {parameter.name: parameter.default for parameter in tool.parameters}
    found |= {flag[2:]: None for flag, _, _ in tool.inputs if flag.startswith("--") and flag != "--out"}
    for key, value in given.items():
        if key not in found:
            raise BadInput(f"{name}: no option {key!r}; see {name} --help")
        found[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
    missing = [
        flag for flag, _, required in tool.inputs[1:] if required and found.get(flag.lstrip("-"), "") is None
    ]
    if missing:
        raise BadInput(f"{name}: {missing[0][2:]} is missing")
    return found
