"""Values as bytes and back, with their types: what users' functions hand to each other. Nothing is pickled.

A value becomes a skeleton, JSON that says of what it is made, and the bytes of its arrays:

    b"mpiimg1\\n" | skeleton's length, 8 bytes | skeleton | array | array | ...

each array at a multiple of 64 bytes, so that :func:`decode` gives views of what it was given. JSON has None,
bool, str, list, finite floats and ints as they are; all else is an object with one member, named by its tag:

    {"i": "0x.."} int         {"f": "7ff8.."} float    {"c": [re, im]} complex    {"s"}, {"r"} slice, range
    {"t": [..]} tuple         {"o": {..}} dict of str  {"d": [[k, v], ..]} dict   {"p": [kind, ".."]} Path
    {"b": [start, n]} bytes   {"B": [..]} bytearray    {"g": [dtype, ".."]} NumPy scalar
    {"n": [type, fields, values]} named tuple          {"D": [..]} the same of a dataclass
    {"a": [dtype, shape, order, start]} array          {"R": ..} recarray
    {"m": [data, mask, fill]} masked array
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import struct
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import numpy as np

MAGIC = b"mpiimg1\n"

#: Where arrays begin: no type of NumPy, nor vector of a CPU, asks for more.
ALIGNED = 64

_LENGTH = struct.Struct("<Q")

#: Ints up to so many bits are decimal in JSON; Python refuses to print very long ones so.
_DECIMAL_BITS = 1024

#: What to keep of things that cannot be kept, by the name of their type.
_INSTEAD = {
    "WCS": "keep its header text: header.tostring()",
    "Header": "keep its text: header.tostring()",
    "Quantity": "keep its .value, and its unit as str(x.unit)",
    "Table": "keep dict(zip(t.colnames, t.columns)) with arrays, or t.as_array()",
    "QTable": "keep a dict of its columns' .value",
    "FITS_rec": "keep np.array(x) of what you need of it",
    "DataFrame": "keep a dict of its columns as arrays",
    "Series": "keep its .to_numpy()",
    "DataArray": "keep its .values",
    "Dataset": "keep a dict of its variables' .values",
    "CCDData": "keep its .data, .mask and .uncertainty.array",
    "HDUList": "keep the data and header.tostring() of each",
    "ImageHDU": "keep its .data and .header.tostring()",
    "PrimaryHDU": "keep its .data and .header.tostring()",
    "Nifti1Image": "keep np.asarray(x.dataobj) and x.affine",
    "SkyCoord": "keep its .ra.deg and .dec.deg",
    "Time": "keep its .isot, or .mjd",
    "datetime": "keep its .isoformat()",
    "date": "keep its .isoformat()",
    "timedelta": "keep its .total_seconds()",
    "set": "keep sorted(...) of it: a set has no order that all ranks share",
    "frozenset": "keep sorted(...) of it: a set has no order that all ranks share",
    "OrderedDict": "keep dict(...) of it",
    "defaultdict": "keep dict(...) of it",
    "Counter": "keep dict(...) of it",
    "deque": "keep list(...) of it",
    "generator": "keep list(...) of it",
    "function": "give functions to the call that uses them, not in a record",
    "module": "import it where it is used",
}


class CannotKeep(TypeError):
    """A value has something in it that is not kept; one line that names the place, and says what to do."""


class NotEncoded(ValueError):
    """Bytes are not what :func:`encode` made."""


def encode(value: Any, name: str = "record") -> bytes:
    """Return a value as bytes.

    Parameters
    ----------
    value : object
        None, bool, int, float, complex, str, bytes, bytearray, Path, slice, range, NumPy arrays (masked ones
        and recarrays too) and scalars but for objects; and list, tuple, named tuple, dict, dataclasses of
        these, however nested.
    name : str
        What messages call it.

    Raises
    ------
    CannotKeep
        There is something else in it.
    """
    return b"".join(parts(value, name))


def parts(value: Any, name: str = "record") -> list[bytes | memoryview]:
    """Return the bytes that :func:`encode` gives in pieces: those of arrays where they lie, not copied.

    They are to be used before the arrays change.
    """
    encoder = _Encoder()
    try:
        skeleton = json.dumps(encoder.node(value, name), separators=(",", ":"), allow_nan=False).encode()
    except RecursionError:
        raise CannotKeep(f"{name}: it is nested too deep, or contains itself") from None
    head = MAGIC + _LENGTH.pack(len(skeleton)) + skeleton
    pieces: list[bytes | memoryview] = [head + bytes(-len(head) % ALIGNED)]
    for data in encoder.pieces:
        pieces.append(data)
        if gap := -len(data) % ALIGNED:
            pieces.append(bytes(gap))
    if encoder.pieces:
        return pieces
    return [head]


def decode(data: Any) -> Any:
    """Return the value that bytes are of.

    Parameters
    ----------
    data : bytes-like
        Arrays are views of it, and writable, where it is writable itself; else copies.

    Raises
    ------
    NotEncoded
        It is something else, or cut.
    """
    view = memoryview(data)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    start = len(MAGIC) + _LENGTH.size
    if bytes(view[: len(MAGIC)]) != MAGIC or len(view) < start:
        raise NotEncoded("these bytes are no value that mpiimg has kept")
    (length,) = _LENGTH.unpack(view[len(MAGIC) : start])
    end = start + length
    try:
        if end > len(view):
            raise ValueError("the bytes end within it")
        skeleton = json.loads(bytes(view[start:end]))
        return _Decoder(view, end + -end % ALIGNED).value(skeleton)
    except NotEncoded:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise NotEncoded(f"these bytes are no value that mpiimg has kept: {error}") from error


# --- Encoding ---------------------------------------------------------------------------------------------


class _Encoder:
    """Makes the skeleton of a value, and lists the bytes that it has beside it."""

    def __init__(self):
        self.pieces: list[bytes | memoryview] = []
        self._position = 0

    def node(self, value: Any, place: str) -> Any:
        """Return the node of `value`, which lies at `place`."""
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        plain = _PLAIN.get(kind)
        if plain is not None:
            return plain(value)
        if kind is list:
            return self._nodes(value, place)
        if kind is tuple:
            return {"t": self._nodes(value, place)}
        if kind is dict:
            return self._dict(value, place)
        if kind is slice:
            return {"s": self._nodes((value.start, value.stop, value.step), place)}
        if kind in (bytes, bytearray):
            return {"b" if kind is bytes else "B": [self._keep(memoryview(value)), len(value)]}
        if isinstance(value, np.ndarray):
            return self._array(value, place)
        if isinstance(value, np.generic):
            return _scalar(value, place)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return {"n": self._fields(kind, kind._fields, value, place)}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = tuple(field.name for field in dataclasses.fields(value))
            return {"D": self._fields(kind, names, [getattr(value, name) for name in names], place)}
        _refuse(value, place)

    def _nodes(self, values: Sequence, place: str) -> list:
        return [self.node(one, f"{place}[{number}]") for number, one in enumerate(values)]

    def _dict(self, value: dict, place: str) -> dict:
        if all(type(key) is str for key in value):
            return {"o": {key: self.node(one, f"{place}[{key!r}]") for key, one in value.items()}}
        return {
            "d": [
                [self.node(key, f"a key of {place}"), self.node(one, f"{place}[{key!r}]")]
                for key, one in value.items()
            ]
        }

    def _fields(self, kind: type, names: Sequence[str], values: Sequence, place: str) -> list:
        nodes = [self.node(one, f"{place}.{name}") for name, one in zip(names, values, strict=True)]
        return [f"{kind.__module__}:{kind.__qualname__}", list(names), nodes]

    def _array(self, array: np.ndarray, place: str) -> dict:
        kind = type(array)
        if kind is np.ma.MaskedArray:
            mask = None if array.mask is np.ma.nomask else self._array(np.asarray(array.mask), place)
            fill = None if array._fill_value is None else self._array(np.asarray(array._fill_value), place)
            return {"m": [self._array(array.data, place), mask, fill]}
        if kind is np.recarray:
            dtype = array.dtype if array.dtype.fields is None else np.dtype((np.void, array.dtype))
            return {"R": self._array(array.view(dtype, np.ndarray), place)}
        if kind not in (np.ndarray, np.memmap):
            _refuse(array, place)
        descr = _descr(array.dtype, place)
        order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
        flat = np.ascontiguousarray(array if order == "C" else array.T)
        return {"a": [descr, list(array.shape), order, self._keep(_bytes_of(flat))]}

    def _keep(self, data: memoryview) -> int:
        """Note bytes that follow the skeleton; return where they begin, counted from the first of them."""
        position = self._position
        self.pieces.append(data)
        self._position += len(data) + -len(data) % ALIGNED
        return position


def _bytes_of(array: np.ndarray) -> memoryview:
    """Return the bytes of a contiguous array, whatever its type."""
    if not array.nbytes:
        return memoryview(b"")
    return memoryview(array.reshape(-1).view(np.uint8))


def _int(value: int) -> Any:
    return value if value.bit_length() <= _DECIMAL_BITS else {"i": hex(value)}


def _float(value: float) -> Any:
    return value if math.isfinite(value) else {"f": struct.pack(">d", value).hex()}


#: What is kept in the skeleton alone, by type.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: _int,
    float: _float,
    complex: lambda z: {"c": [_float(z.real), _float(z.imag)]},
    range: lambda r: {"r": [_int(r.start), _int(r.stop), _int(r.step)]},
    type(Path()): lambda path: {"p": ["", str(path)]},
    PurePosixPath: lambda path: {"p": ["posix", str(path)]},
    PureWindowsPath: lambda path: {"p": ["windows", str(path)]},
}


def _scalar(value: np.generic, place: str) -> dict:
    """Return the node of a NumPy scalar."""
    if isinstance(value, np.str_):
        return {"g": ["str", str(value)]}
    if isinstance(value, np.bytes_):
        return {"g": ["bytes", bytes(value).hex()]}
    if type(value) is np.record:
        _refuse(value, place)
    return {"g": [_descr(value.dtype, place), value.tobytes().hex()]}


def _descr(dtype: np.dtype, place: str) -> Any:
    """Return a type of NumPy as JSON."""
    if dtype.hasobject:
        raise CannotKeep(
            f"{place}: an array of Python objects cannot be kept; give it a type of NumPy, or keep a list"
        )
    try:
        descr = np.lib.format.dtype_to_descr(dtype) if dtype.metadata is None else None
        if descr is not None and np.lib.format.descr_to_dtype(_lists_to_tuples(descr)) == dtype:
            return descr
    except (TypeError, ValueError):
        pass
    raise CannotKeep(f"{place}: an array of type {dtype} cannot be kept; convert it by .astype(...) first")


def _refuse(value: Any, place: str) -> None:
    kind = type(value)
    if kind.__module__ in ("builtins", "__main__"):
        name = kind.__qualname__
    else:
        name = f"{kind.__module__.partition('.')[0].lstrip('_')} {kind.__qualname__}"
    builtin = next(
        (base for base in (bool, int, float, str, bytes, list, tuple, dict) if isinstance(value, base)), None
    )
    instead = _INSTEAD.get(kind.__name__)
    if instead is None and isinstance(value, np.ndarray):
        instead = "keep np.array(...) of it"
    if instead is None and builtin is not None:
        instead = f"keep {builtin.__name__}(...) of it"
    if instead is None:
        instead = "keep the arrays, numbers and text that it is made of"
    raise CannotKeep(f"{place}: an object of type {name} cannot be kept; {instead}")


# --- Decoding ---------------------------------------------------------------------------------------------


class _Decoder:
    """Makes values of nodes, and of the bytes from `base` of `data` on."""

    def __init__(self, data: memoryview, base: int):
        self._data, self._base = data, base

    def value(self, node: Any) -> Any:
        """Return the value of a node."""
        if isinstance(node, list):
            return [self.value(one) for one in node]
        if not isinstance(node, dict):
            return node
        ((tag, content),) = node.items()
        return self._TAGS[tag](self, content)

    def _tuple(self, nodes: list) -> tuple:
        return tuple(self.value(one) for one in nodes)

    def _dict(self, pairs: list) -> dict:
        return {self.value(key): self.value(one) for key, one in pairs}

    def _named_tuple(self, content: list) -> tuple:
        name, fields, nodes = content
        kind = _type_of(name, lambda kind: issubclass(kind, tuple) and list(kind._fields) == fields)
        if kind is None:
            kind = namedtuple(name.rpartition(":")[2].rpartition(".")[2], fields, rename=True)
        return tuple.__new__(kind, self._tuple(nodes))

    def _dataclass(self, content: list) -> Any:
        name, fields, nodes = content
        kind = _type_of(
            name,
            lambda kind: (
                dataclasses.is_dataclass(kind) and [one.name for one in dataclasses.fields(kind)] == fields
            ),
        )
        if kind is None:
            kind = dataclasses.make_dataclass(name.rpartition(":")[2].rpartition(".")[2], fields)
        made = object.__new__(kind)
        for field, value in zip(fields, self._tuple(nodes), strict=True):
            object.__setattr__(made, field, value)
        return made

    def _path(self, content: list) -> PurePath:
        kind, text = content
        return {"": Path, "posix": PurePosixPath, "windows": PureWindowsPath}[kind](text)

    def _piece(self, content: list) -> memoryview:
        start, length = content
        start += self._base
        if start < self._base or length < 0 or start + length > len(self._data):
            raise ValueError("the bytes end within it")
        return self._data[start : start + length]

    def _array(self, content: list) -> np.ndarray:
        descr, shape, order, start = content
        dtype = np.lib.format.descr_to_dtype(_lists_to_tuples(descr))
        if dtype.hasobject:
            raise ValueError("an array of objects")
        nbytes = math.prod(shape) * dtype.itemsize
        if not nbytes:
            return np.zeros(shape, dtype, order)
        flat = np.frombuffer(self._piece([start, nbytes]), np.uint8)
        if not flat.flags.writeable or flat.ctypes.data % max(dtype.alignment, 1):
            flat = flat.copy()
        return np.ndarray(shape, dtype, flat, order=order)

    def _masked(self, content: list) -> np.ma.MaskedArray:
        data, mask, fill = (None if one is None else self.value(one) for one in content)
        made = np.ma.MaskedArray(data, np.ma.nomask if mask is None else mask)
        if fill is not None:
            made.set_fill_value(fill[()])
        return made

    def _scalar(self, content: list) -> np.generic:
        descr, text = content
        if descr in ("str", "bytes"):
            return np.str_(text) if descr == "str" else np.bytes_(bytes.fromhex(text))
        dtype = np.lib.format.descr_to_dtype(_lists_to_tuples(descr))
        if dtype.hasobject:
            raise ValueError("an object")
        array = np.ndarray((), dtype, bytearray(bytes.fromhex(text)) if dtype.itemsize else None)
        return array[()]

    _TAGS: ClassVar[dict[str, Callable]] = {
        "i": lambda self, text: int(text, 16),
        "f": lambda self, text: struct.unpack(">d", bytes.fromhex(text))[0],
        "c": lambda self, pair: complex(*map(self.value, pair)),
        "s": lambda self, bounds: slice(*map(self.value, bounds)),
        "r": lambda self, bounds: range(*map(self.value, bounds)),
        "t": _tuple,
        "o": lambda self, nodes: {key: self.value(one) for key, one in nodes.items()},
        "d": _dict,
        "p": _path,
        "n": _named_tuple,
        "D": _dataclass,
        "b": lambda self, content: bytes(self._piece(content)),
        "B": lambda self, content: bytearray(self._piece(content)),
        "g": _scalar,
        "a": _array,
        "R": lambda self, node: self.value(node).view(np.recarray),
        "m": _masked,
    }


def _lists_to_tuples(descr: Any) -> Any:
    """Return what NumPy takes for the description of a type, of which JSON has made lists."""
    if isinstance(descr, str):
        return descr
    return [
        (
            tuple(name) if isinstance(name, list) else name,
            _lists_to_tuples(kind),
            *(tuple(shape) for shape in rest),
        )
        for name, kind, *rest in descr
    ]


def _type_of(name: str, fits: Callable[[type], bool]) -> type | None:
    """Return the type of a name, "module:qualname", if it can be had and `fits`."""
    module_name, _, path = name.partition(":")
    try:
        found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
        for attribute in path.split("."):
            found = getattr(found, attribute)
        return found if isinstance(found, type) and fits(found) else None
    except Exception:  # whatever the import of a user's module raises
        return None
