"""mpiimg from Python: what `import mpiimg` offers. Every rank calls it alike."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mpiimg.engine import presets
from mpiimg.engine.names import asking
from mpiimg.engine.parameters import TIMEOUT, checked, checked_memory, checked_path
from mpiimg.errors import BadInput
from mpiimg.functions.declare import is_aggregate, udf
from mpiimg.tools.registry import tool, tool_names
from mpiimg.tools.tool import PREFIX, Tool

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
    pipeline: PipelineLike,
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    comm: Any = None,
    params: Mapping[str, Any] | None = None,
    memory: int | str | None = None,
    force: bool = False,
    in_memory: bool = False,
    keep_work: bool = False,
    work_dir: str | os.PathLike | None = None,
    progress: bool = False,
    timeout: float | None = None,
    **options: Any,
) -> Result:
    """Run a pipeline as the command line does: the same frame, the same bits, resumable. Collective.

    Parameters
    ----------
    pipeline : callable, list, path or str
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
    work_dir : path, optional
        Arrays are staged in this folder, which all nodes share; by default in work, beside the results.
    progress : bool
        Show on stderr how far a run is: a bar on a terminal, else a line now and then.
    timeout : float, optional
        Seconds without progress after which a rank that hangs ends the job (default: 3600).
    options
        Those of the tool or of mpiimg-run, as on its command line: bvals, bvecs, mask, b_max, recipe, ...

    Raises
    ------
    mpiimg.errors.BadInput
        An argument or an input cannot be used.
    mpiimg.errors.RunFailed
        A rank raised; the same call goes on where it ended.
    mpiimg.errors.RunStopped
        A signal asked for it; likewise.
    """
    from mpiimg.engine.mpi import scripts
    from mpiimg.engine.mpi.agreement import on_root
    from mpiimg.engine.mpi.lifetime import living
    from mpiimg.engine.mpi.nodes import memory_per_rank
    from mpiimg.engine.mpi.rendezvous import rendezvous
    from mpiimg.engine.recipe import Options, output_names
    from mpiimg.engine.run import run as execute

    given = scripts.settings()
    memory = given.memory if memory is None else memory
    if memory is not None:
        memory = checked_memory(memory, "memory =")
    work_dir = given.work_dir if work_dir is None else _path(work_dir, "work_dir =")
    timeout = given.timeout if timeout is None else checked(TIMEOUT, timeout, "timeout =")
    places, place = _paths(inputs), _path(out, "out =")
    digest = _digest(pipeline, places, place, params, options)
    with contextlib.ExitStack() as stack:
        if comm is None:
            comm = stack.enter_context(scripts.collective("run", digest))
        else:
            rendezvous(comm, "run", digest)
        life = stack.enter_context(living(timeout))
        life.memory = memory
        program, values = _program(pipeline, places, place, params, options)
        assert program.inspect is not None and program.recipe is not None, "only those of steps are asked"
        inspected = on_root(comm, program.inspect, values)
        made = program.recipe(inspected, dict(sorted(values.items())))
        folder = program.folder(values)
        how = Options(
            folder,
            memory_per_rank(comm) if memory is None else memory,
            force or given.force,
            in_memory or given.in_memory,
            keep_work or given.keep_work,
            progress or given.progress,
            timeout,
            command=given.command,
            run_id=given.run_id,
            script=given.script,
            work_dir=None if work_dir is None else Path(work_dir),
        )
        outcome = execute(made, comm, how)
        scripts.note(outcome.status)
    files = {name: folder / name for name in output_names(made) if (folder / name).exists()}
    return Result(files, outcome.report, outcome.left_out)


def _paths(inputs: Any) -> list[str]:
    """Return the paths of inputs.

    Raises
    ------
    BadInput
        They are none.
    """
    several = isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes)
    paths = [_path(one, "inputs:") for one in (inputs if several else [inputs])]
    if not paths:
        raise BadInput("inputs: there are none; give the path of a file, or a list of such")
    return paths


def _path(value: Any, what: str) -> str:
    """Return what must be a path as text.

    Raises
    ------
    BadInput
        It is none, but an image or an array in memory, for one.
    """
    if isinstance(value, str | os.PathLike):
        return checked_path(os.fspath(value), what)
    kind = type(value).__name__
    if hasattr(value, "_node"):
        raise BadInput(
            f"{what} takes the path of a file, not an {kind}: call mi.map_blocks and mi.write on it"
        )
    if hasattr(value, "shape") or hasattr(value, "__array__") or hasattr(value, "data"):
        raise BadInput(
            f"{what} takes the path of a file, not a {kind}, which is in memory: that goes to "
            "mi.from_array(x, axes), and what comes of it to mi.write"
        )
    raise BadInput(f"{what} must be the path of a file, not {_shortly(value)}")


def _shortly(value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | float)
    return repr(value) if plain else f"a {type(value).__name__}"


#: How names of files end; what ends so is no folder of results.
_OF_FILES = (
    *(
        ".nii",
        ".nii.gz",
        ".json",
        ".npy",
        ".npz",
        ".fits",
        ".fit",
        ".fits.gz",
        ".fz",
        ".h5",
        ".hdf5",
        ".zarr",
    ),
    *(".tif", ".tiff", ".mif", ".mif.gz", ".mgz", ".mgh", ".csv", ".ecsv", ".parquet", ".toml", ".py"),
)


def _check_folder(out: str, name: str, can_be: str) -> None:
    """Refuse the name of a file as that of a folder of results; one that is there may have any name."""
    if out.lower().endswith(_OF_FILES) and not os.path.isdir(out):
        raise BadInput(f"out = {out!r}: is the name of a file; {name} {can_be}")


def _digest(*given: Any) -> str:
    """Return a digest of what ranks must give alike: of what is no plain value, its type and name."""

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, str | bool | int | float):
            return value
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, Mapping):
            return sorted((str(key), plain(item)) for key, item in value.items())
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        shape = getattr(value, "shape", ())
        return type(value).__name__, getattr(value, "__qualname__", ""), repr(shape)

    return hashlib.sha256(repr(plain(given)).encode(errors="surrogatepass")).hexdigest()


def _program(
    pipeline: PipelineLike,
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
    word = os.fspath(pipeline) if isinstance(pipeline, str | os.PathLike) else ""
    if word and not word.endswith(".toml") and ":" not in word:
        return _tool_asked(word, inputs, out, options)
    from mpiimg.functions.load import remember

    program = tool("mpiimg-run")
    _check_pipeline(pipeline, word)
    values = {"files": inputs, "out": out, **_options(program, options)}
    if word:
        values["files"] = [word, *inputs]
    elif callable(pipeline):
        values["stages"] = [{"udf": pipeline, "params": _keywords(params)}]
        values["name"] = getattr(pipeline, "__name__", "function")
        if out.endswith((".nii.gz", ".json")):
            values["out"], values["target"] = None, out
        else:
            can_be = "writes a .nii.gz, or a .json if it is a class with partial and merge; or give a folder"
            _check_folder(out, values["name"], can_be)
    else:
        values["stages"], values["name"] = list(cast(Sequence, pipeline)), "stages"
    if not callable(pipeline):
        _check_folder(out, "a pipeline", "has several results: give a folder")
    for stage in values.get("stages", ()):
        # Every rank calls its own function, so every rank must know where it is.
        code = stage.get("udf") if isinstance(stage, Mapping) else stage
        if callable(code):
            remember(code)
    if _keywords(params) and not callable(pipeline):
        raise BadInput("params are those of a single function; in a list each table has its own")
    return program, values


def _keywords(params: Any) -> dict[str, Any]:
    """Return the keywords of a single function."""
    if params is not None and not isinstance(params, Mapping):
        raise BadInput(f"params: must be a dict of keywords and values, not {_shortly(params)}")
    return dict(params or {})


def _check_pipeline(pipeline: Any, word: str) -> None:
    """Refuse what is neither a function nor a list of stages nor a name of anything."""
    if word or callable(pipeline) or (isinstance(pipeline, Sequence) and not isinstance(pipeline, bytes)):
        return
    kind = type(pipeline).__name__
    hint = "; a table of a stage goes into a list" if isinstance(pipeline, Mapping) else ""
    hint = "; give the class itself, and what it is made with as params" if is_aggregate(pipeline) else hint
    raise BadInput(
        "pipeline: must be a function, a list of stages, the path of a pipeline (.toml) or the name of a "
        f"tool, not a {kind}{hint}"
    )


def _tool_asked(
    name: str, inputs: list[str], out: str, options: Mapping[str, Any]
) -> tuple[Tool, dict[str, Any]]:
    full = name if name.startswith(PREFIX) else PREFIX + name
    try:
        program = tool(full)
    except BadInput:
        program = None
    if program is None or program.recipe is None or full == "mpiimg-run":
        said = f"{name}: no such tool; give one of ours, a pipeline (.toml), or a function"
        raise BadInput(
            asking(said, full.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in tool_names()])
        )
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
    values: dict[str, Any] = {}
    paths = [(argument.name, required) for argument, required in program.arguments if not argument.positional]
    values |= {name: None for name, _ in paths if name != "out"}
    for key, value in options.items():
        if key not in values and key not in parameters:
            said = f"{program.name}: no option {key!r}; see {program.name} --help"
            raise BadInput(asking(said, key, (*values, *parameters)))
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value
        own = parameters.get(key)
        if plain is not None and own is None:
            plain = _path(plain, f"{key} =")
        elif own is not None and plain is None and own.default is None:
            continue
        elif own is not None:
            plain = checked(own, plain, f"{key} =")
        values[key] = plain
    values |= presets.settled(program.parameters, program.presets, values)
    missing = [name for name, required in paths if required and name != "out" and values[name] is None]
    if missing:
        raise BadInput(f"{program.name}: {missing[0]} is missing")
    return values
