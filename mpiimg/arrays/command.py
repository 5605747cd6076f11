"""Programs of others as functions: called on blocks of arrays, or on items, through files on the node."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiimg.arrays.program_call import ProgramCall
from mpiimg.arrays.template import Template
from mpiimg.engine.mpi.children import find_program
from mpiimg.engine.raw import sample_file
from mpiimg.errors import BadInput

#: The packages of Debian that programs of our fields are in.
PACKAGES = {
    "mrtrix3": (
        "dwidenoise",
        "mrdegibbs",
        "mrconvert",
        "mrfilter",
        "mrcalc",
        "mrstats",
        "dwi2mask",
        "dwi2tensor",
    ),
    "source-extractor": ("source-extractor", "sex"),
    "swarp": ("swarp", "SWarp"),
    "scamp": ("scamp",),
    "psfex": ("psfex",),
    "ants": ("N4BiasFieldCorrection", "antsRegistration", "antsApplyTransforms", "DenoiseImage"),
    "astrometry.net": ("solve-field",),
    "missfits": ("missfits",),
}


def command(
    template: str | Sequence[str],
    *arrays: Any,
    each: str | Sequence[str] = (),
    whole: str | Sequence[str] = (),
    out: str | Sequence[str] | None = None,
    output_sizes: Mapping[str, int] | None = None,
    dtype: Any = None,
    timeout: float | None = None,
    ok: int | Sequence[int] = (0,),
    in_suffix: str | Sequence[str] = "",
    out_suffix: str | Sequence[str] = "",
    threads: int | None = 1,
    env: Mapping[str, str | None] | None = None,
    cwd: str | None = None,
    load: Callable[[Path], Any] | None = None,
) -> Any:
    """Run an existing program on blocks of arrays, or make it a function for items.

    Parameters
    ----------
    template : str or list of str
        Program and arguments, with {in} (or {in0}, {in1}) and {out} (or {out0}, {out1}) for files, and
        {scratch} for a folder of the call. An ending chooses the format of a file: {in:.nii}. Without {out}
        the result is what the program prints. No shell reads it.
    *arrays : Array
        Inputs. Without them a function for items.map is returned.
    each, whole, out, output_sizes, dtype
        As for map_blocks: axes looped over, axes not cut, axes of each output, sizes of new axes, types.
    timeout : float, optional
        Seconds for one call; the processes that the program started end with it.
    ok : int or sequence of int
        Exit statuses that are no failure.
    in_suffix, out_suffix : str or sequence of str
        Endings, where the template has none; by default .nii, .fits or .npy as the axes are.
    threads : int, optional
        Threads that the program is told to use (OMP_NUM_THREADS and others); None leaves it to itself.
    env : mapping, optional
        Environment variables to set, or with None to leave out.
    cwd : str, optional
        Where it runs; "{scratch}" for its own folder. By default where this process does.
    load : callable, optional
        Called as load(path), reads an output in a format of its own; without arrays only.

    Returns
    -------
    Array, tuple of Array, or ProgramCall

    Raises
    ------
    BadInput
        The program is not there, or the template does not fit the arrays.
    """
    line = Template.of(template)
    call = ProgramCall(
        line,
        _found(line.words[0]),
        endings=(_endings(in_suffix), _endings(out_suffix)),
        timeout=_seconds(timeout),
        ok=(ok,) if isinstance(ok, int) else tuple(ok),
        threads=threads,
        env=tuple(sorted((env or {}).items())),
        cwd=None if cwd is None else str(cwd),
        files=_named_files(line),
        load=load,
    )
    if not arrays:
        _refuse_for_items(line, {"each": each, "whole": whole, "out": out, "output_sizes": output_sizes})
        return call
    return _on_blocks(call, arrays, each, whole, out, output_sizes, dtype)


def _on_blocks(
    call: ProgramCall, arrays: tuple, each: Any, whole: Any, out: Any, output_sizes: Any, dtype: Any
) -> Any:
    each_axes = _names(each)
    axes = tuple(tuple(axis for axis in array.axes if axis not in each_axes) for array in arrays)
    outs = _outputs(out, axes[0])
    _check_placeholders(call.template, len(arrays), len(outs))
    if call.load is not None:
        raise BadInput(f"command({call.template}): load is for items; outputs of arrays are images")
    from mpiimg.arrays.calls import map_blocks

    made = dataclasses.replace(call, axes=axes, out=outs, sizes=dict(output_sizes or {}))
    options = {"each": each, "whole": whole, "output_sizes": output_sizes, "dtype": dtype}
    return map_blocks(made, *arrays, out=out, **options)


def _outputs(out: Any, default: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the axes of each output: one string is one output, a tuple of strings several."""
    if out is None:
        return (default,)
    return (_names(out),) if isinstance(out, str) else tuple(_names(one) for one in out)


def _names(axes: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(axes.split()) if isinstance(axes, str) else tuple(axes)


def _check_placeholders(template: Template, inputs: int, outputs: int) -> None:
    for name, due in (("in", inputs), ("out", outputs)):
        numbers = template.numbers(name)
        if name == "out" and not numbers and outputs == 1:
            continue  # what it prints
        if numbers != tuple(range(due)):
            names = " ".join(f"{{{name}{n}}}" for n in range(due)) if due > 1 else f"{{{name}}}"
            raise BadInput(f"command({template}): with {due} {name}put{'s' * (due > 1)} it must have {names}")
    unknown = [one.name for one in template.placeholders if one.number is None and one.name != "scratch"]
    if unknown:
        raise BadInput(
            f"command({template}): {{{unknown[0]}}} stands for nothing; "
            "there are {in}, {out} and {scratch}"
        )


def _refuse_for_items(template: Template, options: Mapping[str, Any]) -> None:
    given = [name for name, value in options.items() if value not in ((), None, "")]
    if given:
        raise BadInput(
            f"command({template}): {given[0]} is for arrays, and none is given: "
            f"command(template, array, {given[0]}=...)"
        )


def _found(program: str) -> str:
    """Return the path of a program.

    Raises
    ------
    BadInput
        It is not on PATH; says which package has it, where that is known.
    """
    path = find_program(program)
    if path is None:
        package = next((name for name, has in PACKAGES.items() if program in has), None)
        advice = f"; Debian has it in {package}" if package else "; install it, or give its whole path"
        where = "there is no such program" if os.sep in program else "is not on PATH"
        raise BadInput(f"{program}: {where}{advice}")
    return os.path.abspath(path)


def _named_files(template: Template) -> tuple[tuple[str, str], ...]:
    """Return the program and the files that a command line names, with digests of what they hold."""
    program = os.path.realpath(_found(template.words[0]))
    files = [(template.words[0], _digest(program))]
    for word in template.words[1:]:
        for text in dict.fromkeys((word, word.partition("=")[2])):
            if text and "{" not in text and os.path.isfile(text):
                files.append((text, _digest(os.path.realpath(text))))
    return tuple(files)


@functools.lru_cache(maxsize=256)
def _digest_of(path: str, size: int, time: int) -> str:
    if size > 1 << 27:
        return "-".join(map(str, sample_file(Path(path))))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(path: str) -> str:
    status = os.stat(path)
    return _digest_of(path, status.st_size, status.st_mtime_ns)


def _endings(suffix: str | Sequence[str]) -> tuple[str, ...]:
    endings = (suffix,) if isinstance(suffix, str) else tuple(suffix)
    return tuple(f".{one}" if one and not one.startswith(".") else one for one in endings)


def _seconds(timeout: float | None) -> float | None:
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise BadInput(f"command: timeout={timeout!r}: give seconds above 0, or None for no limit")
    return timeout
