"""Where a user's functions come from: files, modules, and scripts that have them at hand."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpiimg.arrays.identity import identity
from mpiimg.arrays.rehearse import SHARE
from mpiimg.engine.mpi.exits import forks_end_here
from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.memory import anonymous_now
from mpiimg.engine.small_files import check_regular
from mpiimg.errors import WORK_ERRORS, BadInput
from mpiimg.functions.declare import Declaration, declaration, is_aggregate
from mpiimg.functions.function import CONTEXT, Function, Origin, keep_loaded, keywords, load
from mpiimg.functions.results import place_in, user_error

#: What a message says of an import.
WHEN_IMPORTED = "when it was imported"


def read_params(texts: Iterable[str]) -> dict[str, Any]:
    """Return what --param NAME=VALUE says: a Python literal where the value is one, else text.

    Raises
    ------
    BadInput
        There is no =, or a name twice.
    """
    params: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in params:
            raise BadInput(f"--param {text}: give NAME=VALUE, each name once, e.g. --param strength=0.5")
        try:
            params[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as literal_eval has them
            params[name] = value
    return params


def from_text(
    spec: str, base: Path, params: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> Function:
    """Load the function that FILE.py:NAME or MODULE:NAME names.

    Parameters
    ----------
    spec : str
        As the user wrote it.
    base : Path
        The folder that a relative FILE.py is in.
    params : mapping
        Keywords of the function.
    overrides : mapping, optional
        Values in place of those of its declaration; None leaves one as it is.

    Raises
    ------
    BadInput
        There is no such function, its file cannot be run, or it takes no such parameter.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise BadInput(f"{spec}: name a function as FILE.py:NAME or MODULE:NAME")
    origin = _file_origin(where, name, base) if where.endswith(".py") else _module_origin(where, name)
    before = anonymous_now()
    try:
        with limited_import(Function(origin, Declaration())):
            code = load(origin)
    except BadInput:
        raise
    except WORK_ERRORS as error:
        raise user_error(error, Function(origin, Declaration()), WHEN_IMPORTED) from None
    function = _function(origin, code, params, overrides)
    return dataclasses.replace(function, libraries=max(0, anonymous_now() - before))


@contextlib.contextmanager
def limited_import(function: Function) -> Iterator[None]:
    """Give the import of a user's file its share of the time of a step: then it is answered for."""

    def answer(stack, seconds: float) -> str:
        where, number = place_in(stack, function)
        return (
            f"{where}:{number}: {function.name}: has not returned after {seconds:.0f} s ({WHEN_IMPORTED}); "
            "an import has a quarter of --timeout"
        )

    watchdog = lifetime().watchdog
    with watchdog.limited(f"the import of {function.origin.where}", SHARE, answer), forks_end_here():
        yield


def from_object(
    code: Callable, params: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> Function:
    """Take a function that this process has; every rank has its own, and calls this alike.

    Raises
    ------
    BadInput
        It cannot be called, or it takes no such parameter.
    """
    return _function(remember(code), code, params, overrides)


def remember(code: Callable) -> Origin:
    """Say where a function comes from that this process has, and keep it to be found by that.

    Raises
    ------
    BadInput
        It cannot be called.
    """
    if not callable(code):
        raise BadInput(f"{code!r}: is no function")
    plain = _plain(code)
    name = getattr(plain, "__qualname__", type(plain).__qualname__)
    # Text stays with the rank: it runs what it has, and only digests are compared.
    path, text = _source_of(plain)
    where = str(path) if path is not None else str(getattr(plain, "__module__", None) or "<made in Python>")
    origin = Origin(name, where, path, None, _digest(text), identity(code).digest)
    keep_loaded(origin, code)
    return origin


def _plain(code: Any) -> Any:
    """Return the function, or the class, in which the code of something callable is written."""
    code = inspect.unwrap(code)
    while isinstance(code, functools.partial):
        code = inspect.unwrap(code.func)
    code = getattr(code, "py_func", code)  # of numba
    code = getattr(code, "__func__", code)
    return code if inspect.isroutine(code) or inspect.isclass(code) else type(code)


def _source_of(plain: Any) -> tuple[Path | None, str]:
    """Return the file that code is in, or None, and its text; empty for what is compiled or made by code."""
    try:
        path = Path(inspect.getsourcefile(plain) or "")
        if path.is_file():
            return path, path.read_text()
        return path, inspect.getsource(plain)
    except (OSError, TypeError, ValueError):
        return None, ""


def _file_origin(where: str, name: str, base: Path) -> Origin:
    path = (base / where).resolve()
    try:
        check_regular(path)
        text = path.read_text()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text file"
        raise BadInput(f"{base / where}: cannot read this file: {reason}") from None
    return Origin(name, where, path, text, _digest(text))


def _module_origin(where: str, name: str) -> Origin:
    try:
        spec = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise BadInput(f"{where}: no such module is installed; a file is named as FILE.py:NAME")
    path = Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    return Origin(name, where, path, None, _digest(path.read_text() if path else where))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _function(
    origin: Origin, code: Any, params: Mapping[str, Any], overrides: Mapping[str, Any] | None
) -> Function:
    changes = {key: value for key, value in (overrides or {}).items() if value is not None}
    declared = dataclasses.replace(declaration(code), **changes)
    aggregate = is_aggregate(code)
    function = Function(origin, declared, dict(params), aggregate)
    _check_params(function, code)
    known = identity(code, function.params)
    # A word of this run alone: what was made before is never taken for what would be made now.
    digest = known.digest if known.known else f"{known.digest} {uuid.uuid4().hex}"
    function = dataclasses.replace(function, identity=digest, unknown=known.why)
    if aggregate:
        try:
            assert function.code is not None
        except WORK_ERRORS as error:
            raise user_error(error, function, "when it was made") from None
    return function


def _check_params(function: Function, code: Any) -> None:
    try:
        takes = inspect.signature(code).parameters.values()
    except (TypeError, ValueError):
        return
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes):
        return
    names = {parameter.name for parameter in takes} if function.aggregate else keywords(code).keys()
    for name in function.params:
        if name not in names:
            has = ", ".join(sorted(names - {"self", *CONTEXT})) or "none"
            raise BadInput(
                f"{function.origin.where}: {function.name} has no parameter {name!r}; it has: {has}"
            )
