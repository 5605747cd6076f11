"""Results of users' functions are checked, and errors in them are said with the line where they arose."""

from __future__ import annotations

import inspect
import linecache
import traceback
from typing import Any

import numpy as np

from mpiimg.arrays.rehearse import RehearsalFailed
from mpiimg.errors import BadInput
from mpiimg.functions.declare import written_dtype
from mpiimg.functions.function import Function, load


class Refused(ValueError):
    """A user's function returned something else than it has to."""


def jsonable(value: Any) -> Any:
    """Return a result as JSON knows it: arrays as lists, NaN and infinities as null.

    Raises
    ------
    Refused
        JSON has nothing for it.
    """
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is not None and not isinstance(value, str | int | float):
        raise Refused(f"finish returns {type(value).__name__}; return numbers, text, lists, arrays or a dict")
    return value


def checked_result(
    function: Function, result: Any, shape: tuple[int, ...], dtype: str | None = None
) -> np.ndarray:
    """Return a result as an array, once it is checked that the function may return it.

    Parameters
    ----------
    function : Function
    result : object
        What the function returned.
    shape : tuple of int
        The shape that is due.
    dtype : str, optional
        The type that it must become without losing more than digits; None for any that can be written.

    Raises
    ------
    Refused
        The function may not return it.
    """
    if result is None:
        raise Refused("returns nothing; return an array")
    values = np.asarray(result)
    if values.shape != shape:
        raise Refused(f"returns shape {_shape(values.shape)}, must return {_shape(shape)}")
    due = dtype or function.declared.dtype
    if due is None:
        try:
            due = written_dtype(values.dtype)
        except BadInput as error:
            raise Refused(str(error)) from None
    if values.dtype.kind not in "biuf" or not np.can_cast(values.dtype, due, "same_kind"):
        raise Refused(f"returns {values.dtype.name} where {due} is due; round and cast it, or declare it so")
    return values.astype(due, copy=False)


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + " x ".join(map(str, shape)) + ")"


def user_error(error: BaseException, function: Function, when: str) -> BadInput:
    """Return in one line what went wrong in a user's function, with the line of the user's file.

    Parameters
    ----------
    error : BaseException
    function : Function
    when : str
        What it was called for, e.g. "when it was imported"; may be empty.
    """
    path, number = _place(error, function)
    kind = "" if type(error) is Refused else f"{type(error).__name__}: "
    text = " ".join(str(error).split()) or "no message"
    where = f"{path}:{number}" if number else f"{path}"
    quoted = linecache.getline(str(path), number).strip() if number else ""
    return BadInput(
        f"{where}: {function.name}: {kind}{text}{when and f' ({when})'}" + (f": {quoted}" if quoted else "")
    )


def rehearsal_error(failed: RehearsalFailed, function: Function, when: str, hint: str = "") -> BadInput:
    """Return in one line how a user's function ended the interpreter that it was tried in, and where."""
    path, number = place_in(failed.summary, function)
    where = f"{path}:{number}" if number else f"{path}"
    quoted = linecache.getline(str(path), number).strip() if number else ""
    return BadInput(
        f"{where}: {function.name}: {failed.what}{when and f' ({when})'}{hint}"
        + (f": {quoted}" if quoted else "")
    )


def _place(error: BaseException, function: Function) -> tuple[Any, int]:
    """Return the file and the line that an error is to be looked for at: the user's last, else the def."""
    path = function.origin.path
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return function.origin.where, error.lineno or 0
    return place_in(traceback.extract_tb(error.__traceback__), function)


def place_in(stack: traceback.StackSummary, function: Function) -> tuple[Any, int]:
    """Return the file and the line that a stack is in: the user's last one, else where the function is."""
    path = function.origin.path
    for frame in reversed(stack):
        if path is not None and frame.filename == str(path):
            return path, frame.lineno or 0
    try:
        code = inspect.unwrap(load(function.origin))
        return path or function.origin.where, inspect.getsourcelines(code)[1]
    except Exception:
        return path or function.origin.where, 0
