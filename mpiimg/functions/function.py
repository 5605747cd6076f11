"""A user's function with its parameters, known by where it comes from, and loaded once per process."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.identity import identity
from mpiimg.arrays.process import put_back
from mpiimg.errors import BadInput
from mpiimg.functions.declare import Declaration

#: Keywords that a function gets where it takes them.
CONTEXT = ("affine", "bounds", "mask", "bvals", "bvecs", "header")


#: Functions by the key of their origin: each is loaded once per process.
_LOADED: dict[str, Any] = {}


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
    made : str
        What tells it from other functions of the same source, as two closures are, where ranks have it
        already.
    """

    name: str
    where: str
    path: Path | None
    text: str | None
    digest: str
    made: str = ""

    @property
    def key(self) -> str:
        return f"{self.where}:{self.name}:{self.digest}:{self.made}"


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
    inputs : int
        How many blocks it is called on.
    libraries : int
        Bytes that a rank takes when it loads the function with all that this imports.
    identity : str
        A digest of all that its results depend on beside the input; never the same again where that cannot
        be known.
    unknown : str
        Why it cannot be known; empty where it is.
    """

    origin: Origin
    declared: Declaration
    params: Mapping[str, Any] = field(default_factory=dict)
    aggregate: bool = False
    inputs: int = 1
    libraries: int = 0
    identity: str = ""
    unknown: str = ""

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
    def here(self) -> Any:
        """The function itself where no other process could load it; else None."""
        return load(self.origin) if self.origin.text is None and self.origin.made else None

    @property
    def wants(self) -> frozenset[str]:
        """Those names of the context that it takes."""
        return frozenset(CONTEXT) & keywords(self._called, self.inputs).keys()

    @property
    def requires(self) -> frozenset[str]:
        """Those of them that it cannot do without."""
        return frozenset(name for name in self.wants if keywords(self._called, self.inputs)[name])

    @property
    def _called(self) -> Callable:
        return self.code.partial if self.aggregate else self.code

    def __call__(self, *blocks: np.ndarray, **context: Any) -> Any:
        """Call it (or its partial) on blocks; of the context it gets what it asks for."""
        wants = self.wants
        taken = {name: value for name, value in context.items() if name in wants}
        with put_back():
            return self._called(*blocks, **taken, **({} if self.aggregate else self.params))

    def merge(self, one: Any, other: Any) -> Any:
        """Merge two partial results; they are added where the class has no merge."""
        merge = getattr(self.code, "merge", None)
        if merge is not None:
            with put_back():
                return merge(one, other)
        return {key: one[key] + other[key] for key in one} if isinstance(one, dict) else one + other

    def finish(self, merged: Any) -> Any:
        """Return the result of merged partial results: these themselves where the class has no finish."""
        finish = getattr(self.code, "finish", None)
        if finish is None:
            return merged
        with put_back():
            return finish(merged)

    def provenance(self) -> dict[str, Any]:
        """Return all that results depend on beside their input."""
        return {**self.described(), "identity": self.identity}

    def __dask_tokenize__(self) -> dict[str, Any]:
        """Return what a function that calls this one is known by: not the bytes that loading it took here."""
        return self.provenance()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to say at the start of a run."""
        if not self.unknown:
            return ()
        return (
            f"{self.origin.where}: {self.name}: its work is not resumed after an interruption, "
            f"since not all that its results depend on can be known: {self.unknown}",
        )

    def described(self) -> dict[str, Any]:
        """Return what to write beside its results: the same in all runs of the same function."""
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
    plain = value is None or isinstance(value, str | bool | int | float)
    return value if plain else f"{type(value).__name__} {identity(value).digest}"


def keywords(called: Callable, inputs: int = 1) -> dict[str, bool]:
    """Return the names of parameters behind those of inputs that may be keywords, and whether required."""
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return {}
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        parameter.name: parameter.default is inspect.Parameter.empty
        for parameter in parameters[inputs:]
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
        with put_back():
            module = importlib.import_module(origin.where) if origin.text is None else _module(origin)
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
