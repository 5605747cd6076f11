"""Zarr, version 3 and 2, and OME-Zarr: arrays in any chunks and shards, read by any rank in any boxes.

zarr-python reads them. An array is named as a path within its store, x.zarr/group/array or
x.zarr:/group/array; of a group with one array, or one image of OME-Zarr, that is meant.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, box_shape, box_slices
from mpiimg.engine.inputs import Reader
from mpiimg.errors import BadInput
from mpiimg.formats.interface import library, split
from mpiimg.formats.npy import plain_axes
from mpiimg.formats.scaling import scaled_type
from mpiimg.formats.space import Space, space_from
from mpiimg.formats.zarr import ngff

#: Key of the attributes that only mpiimg reads: where an array lies, in full.
OWN = "mpiimg"

#: Files of chunks that are looked at to tell an array from another.
MAX_SEEN = 4096

#: Those of them whose sizes and times must not change while a run reads the array.
MAX_WATCHED = 64

#: Attributes that say how values are made of what is stored (the conventions for climate and forecast).
_SCALING = ("scale_factor", "add_offset")


@contextlib.contextmanager
def settings(**others: Any) -> Iterator[None]:
    """Let zarr work as what a rank of many is: by one thread, and with every chunk written."""
    import zarr

    said = {"threading.max_workers": 1, "async.concurrency": 1, "array.write_empty_chunks": True, **others}
    with zarr.config.set(said), warnings.catch_warnings():
        # Codecs that the specification does not name yet are read as well as others.
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class ZarrArray:
    """An array of a Zarr store; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    path : Path
        Of the folder of the store.
    inside : str
        Path of the array in it; "" for the store itself.
    array : Array
    axes : tuple of str
    space : Space or None
    attrs : dict
    scaling : (float, float, float or None) or None
        Factor and offset of values, and the stored number that stands for none.
    documents : tuple of str
        The metadata, below the folder.
    chunks : tuple of int
        Items along each axis of what is unpacked as a whole: a box that cuts chunks costs all of them.
    """

    path: Path
    inside: str
    array: Array
    axes: tuple[str, ...]
    space: Space | None
    attrs: dict[str, Any]
    scaling: tuple[float, float, float | None] | None
    documents: tuple[str, ...]
    chunks: tuple[int, ...]

    parallel = True

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The metadata, and files of chunks: all, or :data:`MAX_WATCHED` spread over the array."""
        places = self._chunk_files
        chunks = (path for path in places[:: max(1, -(-len(places) // MAX_WATCHED))] if path.is_file())
        return (*(self.path / name for name in self.documents), *chunks)

    @cached_property
    def _chunk_files(self) -> tuple[Path, ...]:
        with settings():
            return tuple(
                self.path / self.inside / key for key in _chunk_keys(_opened(self.path, self.inside))
            )

    @cached_property
    def sample(self) -> str:
        """A digest of the metadata, and of sizes and times of the files of chunks; sent with the input."""
        digest = hashlib.sha256()
        for name in self.documents:
            digest.update((self.path / name).read_bytes())
        for path in self._chunk_files:
            try:
                status = path.stat()
                digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns};".encode())
            except FileNotFoundError:
                digest.update(b"none;")
        _ = self.files
        self.__dict__.pop("_chunk_files", None)
        return digest.hexdigest()[:32]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which array it is."""
        return {"dtype": self.array.dtype, "inside": self.inside, "scaling": self.scaling}

    def open(self) -> Reader:
        """Open it for reading in any order."""
        return _ZarrReader(self)


class _ZarrReader:
    """Reads boxes of an array."""

    def __init__(self, source: ZarrArray):
        self._source = source
        with settings():
            self._zarr = _opened(source.path, source.inside)

    def read(self, box: Box) -> np.ndarray:
        """Return the values of `box`.

        Raises
        ------
        BadInput
            A chunk cannot be decoded.
        """
        if 0 in box_shape(box):
            return np.empty(box_shape(box), self._source.array.dtype)
        try:
            with settings():
                block = np.asarray(self._zarr[box_slices(box)])
        except OSError:
            raise
        except Exception as error:
            where = ", ".join(
                f"{axis} {a} to {b}" for axis, (a, b) in zip(self._source.axes, box, strict=True)
            )
            raise BadInput(
                f"{self._source.path / self._source.inside}: damaged: chunks of {where} cannot be read: "
                f"{type(error).__name__}: {_line(error)}; copy it again"
            ) from None
        return np.ascontiguousarray(self._scaled(block), dtype=self._source.array.dtype).reshape(
            box_shape(box)
        )

    def _scaled(self, block: np.ndarray) -> np.ndarray:
        if self._source.scaling is None:
            return block
        factor, offset, none = self._source.scaling
        values = block * np.float64(factor) + offset
        return values if none is None else np.where(block == none, np.nan, values)

    def close(self) -> None:
        """Release the array; it holds no file open."""


def read(path: Path, name: str) -> ZarrArray:
    """Look at the metadata of an array in a Zarr store.

    Parameters
    ----------
    path : Path
        "x.zarr", "x.zarr/group/array", "x.zarr:/group/array", or "x.zarr:1" for level 1 of an image.
    name : str
        Of the array in a run.

    Raises
    ------
    BadInput
        There is no such store, array, image or level; or nothing here can read it.
    """
    store, inside = split(path)
    zarr = library("zarr", path, "zarr")
    if not store.is_dir():
        kind = "a file, and not a folder; unpack it" if store.exists() else "not there"
        raise BadInput(f"{store}: is {kind}")
    inside, image = _resolved(store, inside.strip("/"))
    with settings():
        try:
            found = _opened(store, inside)
        except Exception as error:
            raise BadInput(f"{store / inside}: cannot be read: {_line(error)}") from None
        if not isinstance(found, zarr.Array):
            raise BadInput(f"{store / inside}: is a group, and no array")
        _check(store / inside, found)
        attrs = dict(found.attrs)
        own = attrs.pop(OWN, None) or {}
        names = _axes(found, attrs, own) if image is None else image.axes
        names = names if len(names) == len(found.shape) else _axes(found, attrs, own)
        scaling, native = _scaling(attrs, found.dtype)
        array = Array(name, names, tuple(found.shape), native)
    space = space_from(own.get("space"))
    if image is not None:
        space, attrs = space or image.space, {**image.attrs, **attrs}
    documents = tuple(name for name in _metadata_names(inside) if (store / name).is_file())
    about = array, names, space, attrs, scaling, documents
    return ZarrArray(store, inside, *about, tuple(map(int, found.chunks)))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _metadata_names(inside: str) -> Iterator[str]:
    """Yield the names of the metadata of an array and of the groups that it is in."""
    parts = [part for part in inside.split("/") if part]
    for depth in range(len(parts) + 1):
        for name in ("zarr.json", ".zarray", ".zgroup", ".zattrs"):
            yield "/".join([*parts[:depth], name])


def _opened(store: Path, inside: str):
    """Open an array or a group, of either version."""
    import zarr

    where = zarr.storage.LocalStore(store, read_only=True)
    return zarr.open(store=where, path=inside, mode="r", zarr_format=_version(store / inside))


def _version(folder: Path) -> int | None:
    """Return the version of what lies in a folder; None where it is neither array nor group."""
    if (folder / "zarr.json").is_file():
        return 3
    return 2 if any((folder / name).is_file() for name in (".zarray", ".zgroup")) else None


def _node(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Return "array", "group" or "" for what lies in a folder, and its attributes.

    Raises
    ------
    BadInput
        Its metadata are damaged.
    """
    version = _version(folder)
    if version is None:
        return "", {}
    try:
        if version == 3:
            said = json.loads((folder / "zarr.json").read_text("utf-8"))
            return str(said["node_type"]), dict(said.get("attributes") or {})
        attrs = folder / ".zattrs"
        kind = "array" if (folder / ".zarray").is_file() else "group"
        return kind, dict(json.loads(attrs.read_text("utf-8"))) if attrs.is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}: its metadata are damaged ({_line(error)}); copy it again") from None


def _resolved(store: Path, inside: str) -> tuple[str, ngff.Image | None]:
    """Return the path of the array that is meant, and the image of OME-Zarr that it is a level of."""
    whole = _node(store)
    if not whole[0]:
        raise BadInput(f"{store}: is no Zarr store: it holds no zarr.json, .zarray or .zgroup")
    level = ""
    parts = [part for part in inside.split("/") if part]
    if len(parts) == 1 and parts[0].isdigit() and not _node(store / parts[0])[0]:
        level, parts = parts[0], []
    inside = "/".join(parts)
    kind, attrs = _node(store / inside)
    if not kind:
        there = _children(store, "")
        raise BadInput(f"{store}: holds no {inside!r}; there are {_listed(there)}")
    if kind == "array":
        parent, _, name = inside.rpartition("/")
        around = _node(store / parent)[1] if inside else {}
        image = ngff.image(store / parent, around, path=name) if ngff.is_image(around) else None
        return inside, image
    if ngff.is_image(attrs):
        image = ngff.image(store / inside, attrs, level=int(level or 0))
        return "/".join(filter(None, [inside, image.path])), image
    if level:
        raise BadInput(f"{store}: holds no {level!r}; there are {_listed(_children(store, ''))}")
    return _only(store, inside, _children(store, inside))


def _only(store: Path, inside: str, there: Mapping[str, str]) -> tuple[str, ngff.Image | None]:
    """Return the one array, or the one image, of a group."""
    images = [name for name, kind in there.items() if kind == "image"]
    arrays = [name for name, kind in there.items() if kind == "array"]
    if len(arrays) > 1:
        # Of xarray's, arrays of one axis that are named like it are coordinates.
        arrays = [name for name in arrays if not _is_coordinate(store / inside / name)] or arrays
    candidates = images or arrays
    if len(candidates) != 1:
        raise BadInput(
            f"{store / inside}: holds {'several arrays' if candidates else 'no array'}; name one, as "
            f"{store.name}/{'/'.join(filter(None, [inside, 'NAME']))}: there are {_listed(there)}"
            if candidates
            else f"{store / inside}: holds no array; there are {_listed(there)}"
        )
    return _resolved(store, "/".join(filter(None, [inside, candidates[0]])))


def _children(store: Path, inside: str) -> dict[str, str]:
    """Return what lies in a group: "array", "group" or "image" (of OME-Zarr) by name."""
    there = {}
    for path in sorted((store / inside).iterdir()):
        if path.is_dir():
            kind, attrs = _node(path)
            if kind:
                there[path.name] = "image" if kind == "group" and ngff.is_image(attrs) else kind
    return there


def _listed(there: Mapping[str, str]) -> str:
    names = [f"{name} ({kind})" for name, kind in there.items()]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more if names else "no arrays in it"


def _is_coordinate(folder: Path) -> bool:
    try:
        with settings():
            found = _opened(folder, "")
            return len(found.shape) <= 1 and _names(found, dict(found.attrs)) in ([folder.name], [])
    except Exception:
        return False


def _names(found, attrs: Mapping[str, Any]) -> list[str | None]:
    """Return the names of an array's axes, as either version keeps them."""
    names = getattr(found.metadata, "dimension_names", None) or attrs.get("_ARRAY_DIMENSIONS")
    return list(names) if names else [None] * len(found.shape)


def _axes(found, attrs: dict[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of an array's axes; those without have those of :func:`plain_axes`."""
    names = own.get("axes") or _names(found, attrs)
    attrs.pop("_ARRAY_DIMENSIONS", None)
    if len(names) != len(found.shape):
        names = [None] * len(found.shape)
    free = plain_axes(len(names))
    made = [
        "_".join(str(one).split()) or free[place] if one else free[place] for place, one in enumerate(names)
    ]
    return tuple(one if made.index(one) == place else f"{one}{place}" for place, one in enumerate(made))


def _check(where: Path, found) -> None:
    """Refuse arrays of what no image is made of."""
    dtype = np.dtype(found.dtype)
    if dtype.kind not in "buifc":
        kind = "texts, times or objects" if dtype.names is None else "records"
        raise BadInput(f"{where}: holds {kind} ({dtype}); arrays of numbers can be read")


def _scaling(attrs: dict[str, Any], dtype) -> tuple[tuple[float, float, float | None] | None, str]:
    """Return how values are made of what is stored, and their type."""
    native = np.dtype(dtype).newbyteorder("=").name
    said = [attrs.get(key) for key in _SCALING]
    if not any(isinstance(one, int | float) for one in said):
        return None, native
    factor, offset = (
        float(attrs.pop(key, default)) for key, default in zip(_SCALING, (1.0, 0.0), strict=True)
    )
    none = attrs.pop("_FillValue", attrs.pop("missing_value", None))
    none = float(none) if isinstance(none, int | float) else None
    if (factor, offset, none) == (1.0, 0.0, None):
        return None, native
    return (factor, offset, none), scaled_type(np.dtype(dtype)).name


def _chunk_keys(found) -> Iterator[str]:
    """Yield the keys of files of chunks: all, or :data:`MAX_SEEN` spread over the array."""
    stored = found.shards or found.chunks
    counts = [-(-n // m) for n, m in zip(found.shape, stored, strict=True)]
    total = math.prod(counts)
    numbers = (
        range(total)
        if total <= MAX_SEEN
        else sorted({i * (total - 1) // (MAX_SEEN - 1) for i in range(MAX_SEEN)})
    )
    for number in numbers:
        place = tuple(map(int, np.unravel_index(number, counts))) if counts else ()
        yield found.metadata.encode_chunk_key(place)
