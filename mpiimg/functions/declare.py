"""What a user's function is: how it is declared, called on a block, and checked against its declaration."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import linecache
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mpiimg.errors import BadInput

#: Kinds of blocks that a function may be called on.
OVER = ("slabs", "volumes", "voxels", "exposures", "patches")

#: Those of surveys; the others are of images.
OVER_SURVEYS = ("exposures", "patches")

#: Keywords that a function gets where it takes them.
CONTEXT = ("affine", "bounds", "mask", "bvals", "bvecs", "header")

#: Types that images are written in.
WRITTEN = ("u1", "i2", "i4", "u2", "u4", "i8", "u8", "f4", "f8")

F = TypeVar("F")

_DECLARED = "__mpiimg_udf__"

#: Functions by the key of their origin: each is loaded once per process.
_LOADED: dict[str, Any] = {}


@dataclass(frozen=True)
class Declaration:
    """What a function says of itself.

    Parameters
    ----------
    over : str
        What it is called on: "slabs" (x, y, z), z-blocks of one volume; "volumes" (x, y, z), one volume;
        "voxels" (x, y, z, t), z-blocks with all volumes; "exposures"; "patches".
    halo : int
        Slices more on both sides that it needs to be right inside.
    dtype : str, optional
        Type of the result; None for the type that it returns.
    components : int, optional
        Values per voxel that it returns, for "voxels"; None for as many as it returns.
    slices : int, optional
        Slices in a block, without the halo; None for a choice that follows from the image's shape.

    Raises
    ------
    BadInput
        A value makes no sense.
    """

    over: str = "slabs"
    halo: int = 0
    dtype: str | None = None
    components: int | None = None
    slices: int | None = None

    def __post_init__(self):
        if self.over not in OVER:
            raise BadInput(f"over is one of {', '.join(OVER)}, not {self.over!r}")
        for name, minimum in (("halo", 0), ("components", 1), ("slices", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and (not whole or value < minimum):
                raise BadInput(f"{name} of a user's function is a whole number from {minimum}, not {value!r}")
        if self.halo and self.over not in ("slabs", "voxels"):
            raise BadInput(f"a halo goes with slabs and voxels: {self.over} are never cut")
        if self.components and self.over != "voxels":
            raise BadInput(
                f"components go with voxels: a function over {self.over} returns the shape that it got"
            )
        if self.dtype is not None:
            object.__setattr__(self, "dtype", written_dtype(self.dtype))


def written_dtype(dtype: Any) -> str:
    """Return the name of the type that values of `dtype` are written in; truth values are uint8.

    Raises
    ------
    BadInput
        No image holds such values.
    """
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise BadInput(f"dtype {dtype!r}: numpy knows no such type; e.g. float32, int16, uint8") from None
    kind = np.dtype("u1") if kind.kind == "b" else kind
    if kind.str[1:] not in WRITTEN:
        raise BadInput(f"dtype {kind.name}: no image holds it; return or declare e.g. float32")
    return kind.newbyteorder("=").name


def udf(
    function: F | None = None,
    *,
    over: str = "slabs",
    halo: int = 0,
    dtype: str | None = None,
    components: int | None = None,
    slices: int | None = None,
) -> F | Callable[[F], F]:
    """Declare a function, or a class with partial, merge and finish, that mpiimg calls on blocks.

    Parameters
    ----------
    function : callable
        Stays as it is, and is called as before.
    over : {"slabs", "volumes", "voxels", "exposures", "patches"}
        "slabs" (x, y, z), z-blocks of each volume; "volumes" (x, y, z), each volume; "voxels"
        (x, y, z, t), z-blocks with all volumes; "exposures" (image, variance, mask); "patches", the exposures
        that overlap on a strip of a patch.
    halo : int
        Slices more on both sides, where the image has them; they are cut off the result.
    dtype : str, optional
        Type of the result, e.g. "float32"; by default the type that the function returns.
    components : int, optional
        Values per voxel in the result of "voxels"; by default as many as the function returns.
    slices : int, optional
        Slices in a block, without the halo; by default a choice that follows from the image's shape.

    Raises
    ------
    BadInput
        A value makes no sense.
    """
    declared = Declaration(over, halo, dtype, components, slices)

    def declare(function: F) -> F:
        try:
            setattr(function, _DECLARED, declared)
        except AttributeError:
            raise BadInput(f"{function!r} cannot be declared: put it into a function") from None
        return function

    return declare if function is None else declare(function)


@dataclass(frozen=True)
class Origin:
    """Where a function comes from; ranks load it by this, each once.

    Parameters
    ----------
    name : str
        The function's.
    where : str
        The file, as the user wrote it, or a module.
    path : Path, optional
        The file, where there is one.
    text : str, optional
        Source of the file, which all ranks run; None for a module and for what ranks have already.
    digest : str
        SHA-256 of the source.
    """

    name: str
    where: str
    path: Path | None
    text: str | None
    digest: str

    @property
    def key(self) -> str:
        return f"{self.where}:{self.name}:{self.digest}"


@dataclass(frozen=True)
class Function:
    """A user's function with its parameters.

    Parameters
    ----------
    origin : Origin
        Where it comes from.
    declared : Declaration
        What it says of itself.
    params : mapping
        Keywords that it is called with.
    aggregate : bool
        Whether it is a class with partial, merge and finish.
    libraries : int
        Bytes that a rank takes when it loads the function with all that this imports.
    """

    origin: Origin
    declared: Declaration
    params: Mapping[str, Any] = field(default_factory=dict)
    aggregate: bool = False
    libraries: int = 0

    @property
    def name(self) -> str:
        return self.origin.name.rpartition(".")[2].replace("<", "").replace(">", "")

    @property
    def code(self) -> Any:
        """The function itself, or an instance of the class, loaded when first asked for."""
        if not self.aggregate:
            return load(self.origin)
        key = f"{self.origin.key}:{sorted(self.params.items())!r}"
        if key not in _LOADED:
            made = load(self.origin)
            _LOADED[key] = made(**self.params) if inspect.isclass(made) else made
        return _LOADED[key]

    @property
    def wants(self) -> frozenset[str]:
        """Those names of the context that it takes."""
        return frozenset(CONTEXT) & keywords(self._called).keys()

    @property
    def requires(self) -> frozenset[str]:
        """Those of them that it cannot do without."""
        return frozenset(name for name in self.wants if keywords(self._called)[name])

    @property
    def _called(self) -> Callable:
        return self.code.partial if self.aggregate else self.code

    def __call__(self, *blocks: np.ndarray, **context: Any) -> Any:
        """Call it (or its partial) on blocks; of the context it gets what it asks for."""
        wants = self.wants
        taken = {name: value for name, value in context.items() if name in wants}
        return self._called(*blocks, **taken, **({} if self.aggregate else self.params))

    def merge(self, one: Any, other: Any) -> Any:
        """Merge two partial results; they are added where the class has no merge."""
        merge = getattr(self.code, "merge", None)
        if merge is not None:
            return merge(one, other)
        return {key: one[key] + other[key] for key in one} if isinstance(one, dict) else one + other

    def finish(self, merged: Any) -> Any:
        """Return the result of merged partial results: these themselves where the class has no finish."""
        finish = getattr(self.code, "finish", None)
        return merged if finish is None else finish(merged)

    def provenance(self) -> dict[str, Any]:
        """Return all that results depend on beside their input."""
        declared = {key: value for key, value in vars(self.declared).items() if value is not None}
        return {
            "function": self.origin.name,
            "source_sha256": self.origin.digest,
            "parameters": {key: _as_json(self.params[key]) for key in sorted(self.params)},
            **declared,
        }


def _as_json(value: Any) -> Any:
    """Return a parameter as JSON that tells it from others: an array as its checksum."""
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "sha256": digest}
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else repr(value)


def keywords(called: Callable) -> dict[str, bool]:
    """Return the names of parameters behind the first that may be keywords, and whether each is required."""
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return {}
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        parameter.name: parameter.default is inspect.Parameter.empty
        for parameter in parameters[1:]
        if parameter.kind in kinds
    }


def load(origin: Origin) -> Any:
    """Return the function that lies at `origin`, loaded once per process.

    Raises
    ------
    BadInput
        Its file has no such function.
    """
    if origin.key not in _LOADED:
        if origin.text is None:
            module = importlib.import_module(origin.where)
        else:
            module = _module(origin)
        function = module
        for part in origin.name.split("."):
            function = getattr(function, part, None)
        if not callable(function):
            names = [
                name
                for name, value in vars(module).items()
                if callable(value) and getattr(value, "__module__", None) == module.__name__
            ]
            has = f"it has {', '.join(names)}" if names and origin.text is not None else "check the name"
            raise BadInput(f"{origin.where}: has no function or class {origin.name}; {has}")
        _LOADED[origin.key] = function
    return _LOADED[origin.key]


def _module(origin: Origin) -> types.ModuleType:
    """Run the text of a user's file as a module; what lies beside the file can be imported by it."""
    name = f"mpiimg_udf_{origin.path.stem}_{origin.digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(origin.path)
    sys.modules[name] = module
    folder = str(origin.path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(origin.text, str(origin.path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def keep_loaded(origin: Origin, function: Callable) -> None:
    """Take a function that this process has already for the one at `origin`."""
    _LOADED[origin.key] = function


def declaration(function: Any) -> Declaration:
    """Return what `udf` declared of a function, or the default."""
    return getattr(function, _DECLARED, Declaration())


def is_aggregate(function: Any) -> bool:
    """Say whether a user's class has partial results to merge."""
    return hasattr(function, "partial") and not isinstance(function, functools.partial)


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
        f"{where}: {function.name}: {kind}{text}{when and f' ({when})'}"
        + (f"\n    {quoted}" if quoted else "")
    )


class Refused(ValueError):
    """A user's function returned something else than it has to."""


def _place(error: BaseException, function: Function) -> tuple[Any, int]:
    """Return the file and the line that an error is to be looked for at: the user's last, else the def."""
    path = function.origin.path
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return function.origin.where, error.lineno or 0
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if path is not None and frame.filename == str(path):
            return path, frame.lineno or 0
    try:
        code = inspect.unwrap(load(function.origin))
        return path or function.origin.where, inspect.getsourcelines(code)[1]
    except Exception:
        return path or function.origin.where, 0


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
