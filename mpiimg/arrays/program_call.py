"""A program of others as a function of blocks or records, which go to it through files on the node."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.template import Template
from mpiimg.engine.mpi import children
from mpiimg.engine.raw import free_bytes
from mpiimg.errors import BadInput
from mpiimg.formats.block_files import Block, ending_for, load_file, save_block

#: Lines of what a program said that an error repeats.
LAST_LINES = 8

#: Bytes below which a scratch disk counts as full.
FULL = 1 << 20


#: The folder of a call, and the slash behind it.
_SCRATCH = re.compile(r"\S*/mpiimg-\w+/call-\w+/")


class ProgramError(Exception):
    """A program failed, or did not write what it was to write; says the command line, and its words."""


@dataclass(frozen=True)
class ProgramCall:
    """A program as a function of blocks or of records.

    Parameters
    ----------
    template : Template
    path : str
        Of the program.
    axes : tuple, optional
        The axes of each input, each a tuple of str; None where they are not known.
    out : tuple, optional
        The axes of each output; None for records.
    sizes : mapping
        Sizes of axes of outputs that no input has.
    endings : (tuple of str, tuple of str)
        Of the files of inputs and outputs; empty where the kind of data chooses.
    timeout : float, optional
        Seconds.
    ok : tuple of int
        Exit statuses that are no failure.
    threads : int, optional
        How many threads the program is told to use; None leaves it to itself.
    env : tuple of (str, str or None)
        Environment variables that are set, or left out.
    cwd : str, optional
        Where it runs.
    files : tuple of (str, str)
        Files that the command line names, such as a configuration, and digests of what is in them.
    load : callable, optional
        Called as load(path), reads an output.
    """

    template: Template
    path: str
    axes: tuple[tuple[str, ...], ...] | None = None
    out: tuple[tuple[str, ...], ...] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    endings: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    timeout: float | None = None
    ok: tuple[int, ...] = (0,)
    threads: int | None = 1
    env: tuple[tuple[str, str | None], ...] = ()
    cwd: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    load: Callable[[Path], Any] | None = None

    @property
    def __name__(self) -> str:
        return os.path.basename(self.template.words[0])

    def __dask_tokenize__(self) -> tuple:
        """Return what the result of a call depends on beside what it is called with."""
        declared = (self.axes, self.out, tuple(sorted(self.sizes.items())), self.endings)
        run = (self.ok, self.threads, self.env, self.cwd, self.files)
        return ("mpiimg.command", self.template.words, *declared, *run, self.load)

    def __call__(self, *values: Any, block_info: Mapping[str, Any] | None = None) -> Any:
        """Run the program on blocks, or on a record of items.

        Parameters
        ----------
        *values : ndarray, path, dict, list or tuple
            Blocks, one per input; or a record: a path or an array for {in}, a list or tuple of these for
            {in0}, {in1} and so on, a dict of these, text and numbers for placeholders of its names.
        block_info : mapping, optional
            Of the block: `space` goes into the header of its file.

        Returns
        -------
        ndarray, or tuple of ndarray
            Of blocks: the outputs. Of a record: what the outputs hold (:func:`load_file`), images as arrays;
            without {out} what the program printed.

        Raises
        ------
        ProgramError
            It failed, took too long, or wrote no output, a broken one, or one of another shape.
        OSError
            The scratch disk is full.
        BadInput
            A record does not fit the placeholders.
        """
        with children.scratch_folder() as folder:
            inputs = self._inputs(values)
            blocks = {name: value for name, value in inputs.items() if isinstance(value, np.ndarray)}
            places = {}
            for name, value in inputs.items():
                places[name] = self._place(folder, name, value, block_info or {})
            outs = self.template.numbers("out")
            written = [
                folder / f"out{number}{self._out_ending(number, list(places.values()))}" for number in outs
            ]
            places |= {("out", number): str(path) for number, path in zip(outs, written, strict=True)}
            places["scratch", None] = str(folder)
            words = self.template.filled(places)
            said = self._run(words, folder)
            if not outs:
                return said if self.out is None else self._numbers(said, blocks, words)
            results = [
                self._result(words, path, number, blocks, block_info or {})
                for number, path in zip(outs, written, strict=True)
            ]
            return results[0] if len(results) == 1 else tuple(results)

    # --- What goes in -------------------------------------------------------------------------------------

    def _inputs(self, values: tuple) -> dict[tuple[str, int | None], Any]:
        """Return what stands for each placeholder of an input, by (name, number)."""
        numbers = self.template.numbers("in")
        if self.axes is None and len(values) == 1 and isinstance(values[0], Mapping):
            return self._named(values[0])
        if self.axes is None and len(values) == 1 and isinstance(values[0], list | tuple):
            values = tuple(values[0])
        if len(values) != len(numbers) or numbers != tuple(range(len(numbers))):
            raise BadInput(
                f"command({self.template}): has {len(numbers)} inputs, and was called with {len(values)}; "
                "name them {in} or {in0} {in1} in this order"
            )
        return {("in", number): _as_input(value) for number, value in enumerate(values)}

    def _named(self, record: Mapping) -> dict[tuple[str, int | None], Any]:
        wanted = [one for one in self.template.placeholders if one.name not in ("out", "scratch")]
        places = {}
        for one in wanted:
            name = one.name if one.number is None else _numbered(one.name, one.number, record)
            if name not in record:
                known = ", ".join(map(str, record)) or "none"
                raise BadInput(f"command({self.template}): a record has no {{{name}}}; it has: {known}")
            places[one.name, one.number] = _as_input(record[name])
        return places

    def _place(self, folder: Path, name: tuple[str, int | None], value: Any, block_info: Mapping) -> str:
        """Return what stands in the command line for a value; an array is written to a file first."""
        if not isinstance(value, np.ndarray):
            # A file means the same wherever the program works.
            return os.path.abspath(value) if self.cwd and os.path.exists(value) else value
        stem, number = name
        axes = self._axes(number, value, block_info)
        given = self.endings[0][number] if number is not None and number < len(self.endings[0]) else ""
        ending = self.template.ending(*name) or given or ending_for(axes)
        path = folder / f"{stem}{'' if number is None else number}{ending}"
        try:
            save_block(path, value, axes, _space(block_info.get("space"), axes))
        except OSError as error:
            raise self._refused(error, path, value.nbytes) from None
        return str(path)

    def _axes(self, number: int | None, value: np.ndarray, block_info: Mapping) -> tuple[str, ...] | None:
        if self.axes is not None and number is not None and number < len(self.axes):
            return self.axes[number]
        axes = tuple(name for name in block_info if name not in ("shape", "space"))
        return axes if len(axes) == value.ndim else None

    def _out_ending(self, number: int, inputs: Sequence[str]) -> str:
        given = self.endings[1][number] if number < len(self.endings[1]) else ""
        if self.template.ending("out", number) or given:
            return self.template.ending("out", number) or given
        if self.out is not None:
            return ending_for(self.out[number])
        # As the first file that goes in.
        name = next((os.path.basename(text) for text in inputs if os.path.exists(text)), "")
        found = next((ending for ending in (".nii.gz", ".fits.gz") if name.endswith(ending)), "")
        return found.replace(".fits.gz", ".fits") or os.path.splitext(name)[1] or ".npy"

    # --- The run ------------------------------------------------------------------------------------------

    def _run(self, words: list[str], folder: Path) -> str:
        environment = children.environment_of_program(self.threads, {"TMPDIR": str(folder), **dict(self.env)})
        cwd = folder if self.cwd == "{scratch}" else self.cwd
        try:
            outcome = children.run_program([self.path, *words[1:]], folder, environment, self.timeout, cwd)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise self._refused(error, folder) from None
            raise ProgramError(f"{words[0]}: cannot be started: {error}") from None
        if outcome.late:
            raise self._failed(words, f"took longer than {self.timeout:g} s and was ended", outcome)
        if outcome.status not in self.ok:
            if free_bytes(folder) < FULL:
                raise self._refused(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), folder)
            raise self._failed(words, outcome.how, outcome)
        return outcome.stdout.read_text(errors="replace")

    def _failed(self, words: Sequence[str], how: str, outcome: children.Outcome) -> ProgramError:
        lines = children.last_lines(outcome.stderr, LAST_LINES)
        lines = lines or children.last_lines(outcome.stdout, LAST_LINES)
        said = "\n  ".join(["; its last words:", *lines]) if lines else "; it said nothing"
        return ProgramError(f"{_line(words)}: {how}{said}")

    def _refused(self, error: OSError, path: Path, size: int = 0) -> OSError:
        """Return an error of the system that names the place of scratch files.

        Libraries find in words of their own that a disk has no room for so many bytes.
        """
        number = error.errno
        if number is None and free_bytes(path.parent) < max(FULL, size):
            number = errno.ENOSPC
        if number is None:
            return error
        where = f"{path.parent} (scratch files of {self.__name__}; TMPDIR chooses another place)"
        return OSError(number, os.strerror(number), where)

    # --- What comes out -----------------------------------------------------------------------------------

    def _numbers(self, said: str, blocks: Mapping, words: Sequence[str]) -> np.ndarray:
        """Return the numbers that the program printed, as the one output."""
        try:
            values = np.array([float(word) for word in said.split()])
        except ValueError:
            raise ProgramError(f"{_line(words)}: printed {said[:80]!r}, where numbers are due") from None
        return self._shaped(values, None, 0, blocks, "printed numbers", words)

    def _result(
        self, words: Sequence[str], path: Path, number: int, blocks: Mapping, block_info: Mapping
    ) -> Any:
        what = f"{{out{number or ''}}}"
        if not path.exists():
            raise ProgramError(f"{_line(words)}: ended well and wrote no {what}")
        try:
            result = (self.load or load_file)(path)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ProgramError(
                f"{_line(words)}: ended well, but its {what} ({path.stat().st_size} bytes) cannot be "
                f"read: {reason}"
            ) from None
        if isinstance(result, Block) and self.out is None:
            return self._as_given(result, blocks, block_info)
        if self.out is None:
            return result
        if not isinstance(result, Block | np.ndarray) or getattr(result, "dtype", np.dtype(int)).names:
            raise ProgramError(f"{_line(words)}: its {what} holds no image")
        block = result if isinstance(result, Block) else Block(result)
        values, axes = _oriented(block, _space(block_info.get("space"), block.axes)), block.axes
        return self._shaped(values, axes, number, blocks, f"its {what}", words)

    def _as_given(self, block: Block, blocks: Mapping, block_info: Mapping) -> np.ndarray:
        """Return an image, its axes in the order of the first block that went in, where both are known."""
        first = next(iter(blocks.values()), None)
        axes = None if first is None else self._axes(None, first, block_info)
        values = _oriented(block, _space(block_info.get("space"), block.axes))
        return values if axes is None or block.axes is None else _by_name(values, block.axes, axes)

    def _shaped(
        self, values: np.ndarray, axes, number: int, blocks: Mapping, what: str, words: Sequence[str]
    ) -> np.ndarray:
        """Return an output in the order and shape that are declared.

        Raises
        ------
        ProgramError
            It has another shape.
        """
        out = self.out[number]
        if axes is not None:
            values = _by_name(values, axes, out)
        sizes = dict(self.sizes)
        for (_, n), block in blocks.items():
            own = self.axes[n] if self.axes is not None else out[: block.ndim]
            sizes |= {
                a: s for a, s in zip(own, block.shape, strict=False) if s > sizes.get(a, 1) or a not in sizes
            }
        expected = tuple(sizes.get(axis, 0) for axis in out)
        if values.ndim == len(out) and all(n in (0, m) for n, m in zip(expected, values.shape, strict=True)):
            return values
        filled = [n for n in expected if n != 1]
        squeezed = [n for n in values.shape if n != 1]
        if 0 not in expected and filled == squeezed:
            return values.reshape(expected)
        due = ", ".join(f"{axis} {n or '?'}" for axis, n in zip(out, expected, strict=True)) or "one value"
        raise ProgramError(
            f"{_line(words)}: {what} has the shape {values.shape}, where ({due}) is due; "
            "out and output_sizes say what the program writes"
        )


def _line(words: Sequence[str]) -> str:
    """Return a command line for a message, with the files of the call by their names."""
    return _SCRATCH.sub("", shlex.join(words))


def _as_input(value: Any) -> Any:
    """Return an array as it is, and anything else as the text that stands for it."""
    if isinstance(value, np.ndarray) and value.ndim:
        return value
    if isinstance(value, str | int | float | np.generic | np.ndarray | os.PathLike):
        return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    raise BadInput(
        f"command: a {type(value).__name__} is no input of a program, "
        "which takes paths, arrays, text and numbers"
    )


def _numbered(name: str, number: int, record: Mapping) -> str:
    """Return the key of a record that {in} or {in1} stands for."""
    return name if number == 0 and name in record else f"{name}{number}"


def _space(space: Any, axes: Sequence[str] | None) -> Any:
    """Return a space without axes that a block does not have."""
    if space is None or axes is None:
        return space
    for axis in getattr(space, "axes", ()):
        if axis not in axes and hasattr(space, "without"):
            space = space.without(axis, 0)
    return space


def _by_name(values: np.ndarray, axes: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return an image with its axes in another order, and without those of one item that are not wanted."""
    gone = [n for n, axis in enumerate(axes) if axis not in wanted and values.shape[n] == 1]
    kept = [axis for n, axis in enumerate(axes) if n not in gone]
    if set(kept) != set(wanted):
        return values
    return values.squeeze(tuple(gone)).transpose([kept.index(axis) for axis in wanted])


def _oriented(block: Block, space: Any) -> np.ndarray:
    """Return an image with its voxels in the order of the block that the program was given.

    Some programs flip or swap axes and say so in the affine alone.
    """
    matrix = getattr(space, "matrix", None)
    is_volume = block.axes is not None and block.axes[:3] == ("x", "y", "z")
    if not is_volume or matrix is None or block.matrix is None or np.shape(matrix) != (4, 4):
        return block.values
    try:
        turn = np.linalg.solve(np.asarray(matrix)[:3, :3], block.matrix[:3, :3])
    except np.linalg.LinAlgError:
        return block.values
    whole = np.rint(turn).astype(int)
    signed = np.abs(whole).sum(0).tolist() == [1, 1, 1] == np.abs(whole).sum(1).tolist()
    if not signed or not np.allclose(turn, whole, atol=1e-3) or (whole == np.eye(3, dtype=int)).all():
        return block.values
    order = [int(np.flatnonzero(row)[0]) for row in whole]
    values = block.values.transpose([*order, *range(3, block.values.ndim)])
    flips = [slice(None, None, int(row[column])) for row, column in zip(whole, order, strict=True)]
    return values[tuple(flips)]
