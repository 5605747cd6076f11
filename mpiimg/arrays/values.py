"""What values of each kind are known by, for the identity of the functions that hold them."""

from __future__ import annotations

import collections
import copyreg
import ctypes
import enum
import functools
import io
import os
import pathlib
import random
import re
import socket
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiimg.arrays import modules
from mpiimg.arrays.hashing import hashed
from mpiimg.arrays.modules import is_local, module_of

if TYPE_CHECKING:
    from mpiimg.arrays.identity import Walk

#: Kinds whose value is not in the object, and what they are.
_UNKNOWN: dict[type, str] = {
    io.IOBase: "an open file",
    socket.socket: "a connection",
    types.GeneratorType: "a generator, which is used up",
    types.CoroutineType: "a coroutine, which is used up",
    types.AsyncGeneratorType: "a generator, which is used up",
    types.FrameType: "a frame of running code",
    types.TracebackType: "a traceback",
    random.Random: "a random number generator, whose state moves on",
    np.random.Generator: "a random number generator, whose state moves on",
    np.random.BitGenerator: "a random number generator, whose state moves on",
    np.random.RandomState: "a random number generator, whose state moves on",
    type(threading.Lock()): "a lock",
    type(threading.RLock()): "a lock",
    threading.Thread: "a thread",
    Iterator: "an iterator, which is used up",
    ctypes._CFuncPtr: "a function of C, known by its address only",
    ctypes._Pointer: "a pointer",
}


#: Classes of functions that are compiled ahead; they are made anew in each process, by no module of a name.
_COMPILED_FUNCTIONS = frozenset(
    {"cython_function_or_method", "fused_cython_function", "nb_func", "nb_method"}
)


def describe(walk: Walk, value: Any) -> bytes:
    """Return the digest of a value that is no class and no code, and walk on to what it holds."""
    kind = type(value)
    for one in kind.__mro__:
        described = _KINDS.get(one)
        if described is not None:
            return described(walk, value)
    for one, what in _UNKNOWN.items():
        if isinstance(value, one):
            return walk.doubt(what)
    python_function = _compiled_from(value)
    if python_function is not None:
        options = getattr(value, "targetoptions", None)
        return hashed(b"compiled", walk.named(kind), walk.of(python_function), walk.of(options))
    if kind.__name__ in _COMPILED_FUNCTIONS:
        return hashed(b"compiled function", str(value.__qualname__), walk.module(module_of(value)))
    if is_local(kind):
        # What a class of the user's hides from pickle may still be what results depend on.
        return hashed(b"object", walk.of(kind), walk.attributes(value))
    return _reduced(walk, value)


def _compiled_from(value: Any) -> Any:
    """Return the Python function that numba compiles, or None."""
    if not module_of(type(value)).startswith("numba."):
        return None
    for name in ("py_func", "_pyfunc"):
        found = getattr(value, name, None)
        if found is not None:
            return found
    return getattr(getattr(value, "_dispatcher", None), "py_func", None)


def _reduced(walk: Walk, value: Any) -> bytes:
    """Return the digest of what pickle would write of an object of a library."""
    kind = type(value)
    try:
        reducer = copyreg.dispatch_table.get(kind)
        made = reducer(value) if reducer else value.__reduce_ex__(4)
    except Exception:
        return walk.doubt(f"a {module_of(kind)}.{kind.__qualname__}, which cannot be looked into")
    if isinstance(made, str):
        where = module_of(value)
        return hashed(b"global", walk.named(kind), b"" if where == "__main__" else walk.module(where), made)
    parts = [walk.named(kind)]
    for part in made[:3]:
        parts.append(walk.of(part))
    parts += [walk.sequence(b"items", part) for part in made[3:5] if part is not None]
    return hashed(b"reduced", *parts)


def _own(walk: Walk, value: Any, kind: type) -> bytes:
    """Return what tells a value of a subclass from one of `kind`: its class and its attributes."""
    if type(value) is kind:
        return b""
    return walk.named(type(value)) + walk.attributes(value)


def _array(walk: Walk, array: np.ndarray) -> bytes:
    columns_first = array.flags.f_contiguous and not array.flags.c_contiguous
    parts = [_own(walk, array, np.ndarray), walk.of(array.dtype), str(array.shape), str(columns_first)]
    if isinstance(array, np.ma.MaskedArray):
        return hashed(
            b"masked", walk.named(type(array)), *map(walk.of, (array.data, np.ma.getmaskarray(array)))
        )
    plain = np.asarray(array)
    if plain.dtype.hasobject:
        return hashed(b"array", *parts, walk.sequence(b"objects", plain.ravel().tolist()))
    whole = np.ascontiguousarray(plain)
    return hashed(b"array", *parts, whole.tobytes() if not whole.size else memoryview(whole.view(np.uint8)))


def _dtype(walk: Walk, dtype: np.dtype) -> bytes:
    return hashed(b"dtype", repr(dtype), repr(dtype.metadata))


def _ufunc(walk: Walk, ufunc: np.ufunc) -> bytes:
    for library in ("numpy", "scipy.special", "scipy.special._ufuncs"):
        module = sys.modules.get(library)
        if module is not None and getattr(module, ufunc.__name__, None) is ufunc:
            return hashed(b"ufunc", ufunc.__name__, walk.module(library))
    return walk.doubt(f"the ufunc {ufunc.__name__}, whose function cannot be looked into")


def _vectorized(walk: Walk, made: np.vectorize) -> bytes:
    """Leave out what it keeps of its last call."""
    names = ("pyfunc", "otypes", "signature", "excluded", "cache")
    return hashed(b"vectorize", *(walk.of(getattr(made, name, None)) for name in names))


def _builtin(walk: Walk, function: Any) -> bytes:
    owner = function.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        module = function.__module__ or getattr(owner, "__name__", "builtins")
        return hashed(b"builtin", function.__qualname__, walk.module(module))
    return hashed(b"builtin", function.__qualname__, walk.of(owner))


def _descriptor(walk: Walk, function: Any) -> bytes:
    return hashed(b"descriptor", function.__name__, walk.of(function.__objclass__))


def _partial(walk: Walk, made: functools.partial) -> bytes:
    keywords = walk.mapping(b"keywords", made.keywords, ordered=False)
    return hashed(
        b"partial", walk.of(made.func), walk.of(made.args), keywords, _own(walk, made, functools.partial)
    )


def _function(walk: Walk, function: types.FunctionType) -> bytes:
    registry = getattr(function, "registry", None)
    if isinstance(registry, types.MappingProxyType) and hasattr(
        function, "dispatch"
    ):  # functools.singledispatch
        named = sorted(registry.items(), key=lambda pair: f"{pair[0].__module__}.{pair[0].__qualname__}")
        return hashed(b"dispatch", *(walk.of(part) for pair in named for part in pair))
    return walk.function(function)


def _method(walk: Walk, method: types.MethodType) -> bytes:
    walk.called(method.__name__)
    return hashed(b"method", walk.of(method.__func__), walk.of(method.__self__))


def _module(walk: Walk, module: types.ModuleType) -> bytes:
    place = modules.place_of(module.__name__)
    if place is None or place.is_made_here:
        return walk.doubt(f"the module {module.__name__}, which was made when the program ran")
    return walk.module(module.__name__)


def _wrapper(walk: Walk, wrapper: Any) -> bytes:
    return hashed(b"wrapper", type(wrapper).__name__, walk.of(wrapper.__func__))


def _library(walk: Walk, library: ctypes.CDLL) -> bytes:
    name = library._name or ""
    if os.path.isfile(name):
        return hashed(b"library", modules.file_digest(name))
    return hashed(b"library", name)


def _dict(walk: Walk, value: dict) -> bytes:
    extra = walk.of(value.default_factory) if isinstance(value, collections.defaultdict) else b""
    return walk.mapping(b"dict", value) + _own(walk, value, dict) + extra


def _of_text(tag: bytes, text: Callable[[Any], str]) -> Callable[[Walk, Any], bytes]:
    return lambda walk, value: hashed(tag, type(value).__qualname__, text(value))


def _member(walk: Walk, member: enum.Enum) -> bytes:
    return hashed(b"member", walk.named(type(member)), str(member.name), walk.of(member.value))


def _number(walk: Walk, value: Any) -> bytes:
    """A number or a text of a subclass."""
    plain = next(one for one in (bool, int, float, complex, str, bytes) if isinstance(value, one))
    return hashed(
        b"plain of",
        walk.of(plain(value) if plain is not str else str.__str__(value)),
        _own(walk, value, plain),
    )


def _memory(walk: Walk, value: Any) -> bytes:
    view = memoryview(value)
    return hashed(b"memory", type(value).__qualname__, view.format, str(view.shape), view.tobytes())


_KINDS: dict[type, Callable[[Any, Any], bytes]] = {
    types.FunctionType: _function,
    types.MethodType: _method,
    types.BuiltinFunctionType: _builtin,
    types.MethodWrapperType: lambda w, m: hashed(b"method", m.__name__, w.of(m.__self__)),
    types.MethodDescriptorType: _descriptor,
    types.ClassMethodDescriptorType: _descriptor,
    types.WrapperDescriptorType: _descriptor,
    types.GetSetDescriptorType: _descriptor,
    types.MemberDescriptorType: _descriptor,
    types.ModuleType: _module,
    types.CodeType: lambda w, code: w.code(code, {}),
    types.CellType: lambda w, cell: w.cell(cell),
    types.MappingProxyType: lambda w, value: w.mapping(b"proxy", value),
    types.GenericAlias: _of_text(b"alias", repr),
    types.UnionType: _of_text(b"alias", repr),
    property: lambda w, p: hashed(b"property", *map(w.of, (p.fget, p.fset, p.fdel))),
    classmethod: _wrapper,
    staticmethod: _wrapper,
    functools.partial: _partial,
    functools.partialmethod: lambda w, p: hashed(b"partialmethod", *map(w.of, (p.func, p.args, p.keywords))),
    functools.cached_property: lambda w, p: hashed(b"cached", w.of(p.func)),
    type(functools.lru_cache(lambda: None)): lambda w, f: hashed(b"cached", w.of(f.__wrapped__)),
    np.ndarray: _array,
    np.dtype: _dtype,
    np.generic: lambda w, value: hashed(b"scalar", w.of(value.dtype), w.of(np.asarray(value))),
    np.ufunc: _ufunc,
    np.vectorize: _vectorized,
    enum.Enum: _member,
    re.Pattern: lambda w, p: hashed(b"pattern", w.of(p.pattern), str(p.flags)),
    pathlib.PurePath: _of_text(b"path", str),
    weakref.ref: lambda w, ref: hashed(b"weak", w.of(ref())),
    ctypes.CDLL: _library,
    slice: lambda w, s: hashed(b"slice", *map(w.of, (s.start, s.stop, s.step))),
    range: lambda w, r: hashed(b"range", repr(r)),
    dict: _dict,
    list: lambda w, value: w.sequence(b"list", value) + _own(w, value, list),
    tuple: lambda w, value: w.sequence(b"tuple", value) + _own(w, value, tuple),
    set: lambda w, value: w.unordered(b"set", value) + _own(w, value, set),
    frozenset: lambda w, value: w.unordered(b"frozenset", value) + _own(w, value, frozenset),
    bytearray: _memory,
    memoryview: _memory,
    int: _number,
    float: _number,
    complex: _number,
    str: _number,
    bytes: _number,
}
