"""Where arrays come from: files of known formats, arrays in memory, and readers of users."""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.array import Array
from mpiimg.arrays.axes import AxesLike, axes_tuple
from mpiimg.arrays.graph import C, F, FromInput, digest
from mpiimg.engine import array as engine_array
from mpiimg.engine.boxes import Box, box_slices
from mpiimg.engine.inputs import Input, Reader
from mpiimg.engine.mpi import scripts
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.names import file_name
from mpiimg.errors import BadInput


def read(path: Any, *, axes: AxesLike | None = None, name: str | None = None) -> Array:
    """Return an array that lies in a file, of which ranks read what they need when it is worked on.
    Collective.

    Parameters
    ----------
    path : path
        Of a file in a known format: NIfTI, FITS, .npy, HDF5 ("file.h5:/path"), Zarr, TIFF, ... See
        docs/formats.md.
    axes : str or tuple of str, optional
        Names of its axes, in their order; by default those that its format gives.
    name : str, optional
        What stages are called by; by default the name of the file.

    Raises
    ------
    mpiimg.errors.BadInput
        It cannot be read, or has another number of axes.
    """
    from mpiimg.formats import registry

    call = "read"
    place = _path(path, call)
    names = axes_tuple(axes, f"{call}: axes") if axes is not None else None
    with scripts.collective(call, digest(str(place), names)) as comm:
        source = on_root(comm, lambda: registry.read(Path(place), "array", names=names))
    return Array(node_of_input(source, name or _stem(place)))


def _path(path: Any, call: str) -> str:
    if isinstance(path, np.ndarray):
        raise BadInput(f"{call}: takes the path of a file, and not an ndarray; use mi.from_array(x, 'x y z')")
    if hasattr(path, "dataobj") or hasattr(path, "header"):
        raise BadInput(f"{call}: takes the path of a file; use mi.from_array for an image that is loaded")
    try:
        place = os.fspath(path)
    except TypeError:
        several = "; several files are read by mi.items, or one by one and put together by mi.stack"
        raise BadInput(
            f"{call}: takes the path of a file, and not {type(path).__name__}"
            f"{several if isinstance(path, list | tuple) else ''}"
        ) from None
    if isinstance(place, bytes):
        place = os.fsdecode(place)
    if not place:
        raise BadInput(f"{call}: the path is empty")
    if any(one in place for one in "*?") and not os.path.exists(place) and glob.glob(place):
        raise BadInput(
            f"{call}: {place}: several files are read by mi.items, or one by one and put together by mi.stack"
        )
    return place


def _stem(place: str) -> str:
    return file_name(Path(place.partition(":")[0]).name.split(".")[0])[:40] or "array"


def node_of_input(source: Input, label: str, identified: bool = True) -> FromInput:
    """Return the node of an input, whose header is known."""
    from mpiimg.formats.sources import attrs_of, axes_of, space_of

    own, public = source.array, axes_of(source)
    if not own.axes:
        public = ()
    reverse = len(public) > 1 and public == own.axes[::-1]
    if not reverse and public != own.axes:
        raise BadInput(f"{label}: axes {public} lie in a file as {own.axes}: neither so nor in reverse order")
    sizes = dict(zip(own.axes, own.shape, strict=True))
    return FromInput(
        axes=public, shape=tuple(sizes[axis] for axis in public), dtype=np.dtype(own.dtype).str,
        order=F if reverse else C, space=space_of(source), attrs=attrs_of(source), label=label, input=source,
        identified=identified,
    )  # fmt: skip


# --- What is in memory ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HeldArray:
    """An array that every rank has in memory; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    values : ndarray
        In C order, read only.
    array : Array
        Of the engine.
    axes : tuple of str
        As users have them.
    """

    values: np.ndarray
    array: engine_array.Array
    axes: tuple[str, ...]
    checksum: str
    space: Any = None
    attrs: dict = field(default_factory=dict)
    parallel = True
    files: tuple = ()

    @property
    def identity(self) -> dict[str, Any]:
        return {"sha256": self.checksum, "dtype": self.array.dtype, "shape": list(self.array.shape)}

    @property
    def sample(self) -> None:
        return None

    def open(self) -> Reader:
        """Return what reads it: itself."""
        return self

    def read(self, box: Box) -> np.ndarray:
        """Return the items of a box."""
        return self.values[box_slices(box)]

    def close(self) -> None:
        """Do nothing."""


def from_array(x: Any, axes: AxesLike | None = None, *, space: Any = None, name: str = "array") -> Array:
    """Return a lazy array of one that every rank has in memory; it must be the same on all.

    Parameters
    ----------
    x : array
        A NumPy array or what can be made one, a nibabel image, an astropy HDU, CCDData or Quantity, or an
        xarray DataArray. It is copied.
    axes : str or tuple of str, optional
        Names of its axes. Asked for where `x` does not have them: images of nibabel have x y z t, HDUs have
        y x, those of xarray their own.
    space : object, optional
        Affine (4 x 4) or header of a WCS; by default that of `x`.
    name : str
        What stages are called by.

    Raises
    ------
    mpiimg.errors.BadInput
        It holds no numbers, or its axes are not known.
    """
    call = "from_array"
    if isinstance(x, Array):
        raise BadInput(f"{call}: takes an array in memory, and this one is lazy already")
    if isinstance(x, str | os.PathLike):
        raise BadInput(f"{call}: takes an array in memory, and not a path; use mi.read({os.fspath(x)!r})")
    values, own_axes, own_space, order, attrs = _opened(x, call)
    if values.dtype.kind not in "biufc":
        listed = "give one of its HDUs, as x[0]" if hasattr(x, "info") and isinstance(x, list) else ""
        raise BadInput(f"{call}: {values.dtype} holds no numbers; {listed or 'records go through mi.items'}")
    if (values.dtype.kind == "f" and values.dtype.itemsize > 8) or (
        values.dtype.kind == "c" and values.dtype.itemsize > 16
    ):
        raise BadInput(
            f"{call}: {values.dtype.name} has no place in files; convert it to float64 or complex128"
        )
    given = axes_tuple(axes, f"{call}: axes") if axes is not None else own_axes
    if given is None:
        example = " ".join(("z", "y", "x")[-values.ndim :]) if values.ndim < 4 else "t z y x"
        raise BadInput(f"{call}: name its {values.ndim} axes, e.g. mi.from_array(x, {example!r})")
    if len(given) != values.ndim:
        hint = ""
        if len(given) == 1 and len(given[0]) == values.ndim:
            hint = f"; did you mean {' '.join(given[0])!r}?"
        raise BadInput(
            f"{call}: {' '.join(given)!r} names {len(given)} axes, and the array has {values.ndim}{hint}"
        )
    space = _space(space, given, call) if space is not None else own_space
    stored = values.transpose() if order == F else values
    # A view would change with what it is of, after the digest was made.
    held = np.array(stored, dtype=stored.dtype.newbyteorder("="), order="C", copy=True)
    held.flags.writeable = False
    checksum = hashlib.sha256(held.data.cast("B") if held.size else b"").hexdigest()
    stored_axes = tuple(reversed(given)) if order == F else tuple(given)
    array = (
        engine_array.Array(name, stored_axes, held.shape, held.dtype.name)
        if given
        else (engine_array.Array(name, ("#",), (1,), held.dtype.name))
    )
    held = held if given else held.reshape(1)
    source: Any = HeldArray(held, array, tuple(given), checksum, space, attrs)
    return Array(
        FromInput(
            axes=tuple(given), shape=values.shape, dtype=held.dtype.str, order=order, space=space,
            attrs=attrs,
            label=file_name(str(name))[:40] or "array", input=source,
        )
    )  # fmt: skip


def _opened(x: Any, call: str) -> tuple:
    """Return the values of x, its axes and space where it knows them, memory order, and what else it says."""
    if hasattr(x, "dataobj") and hasattr(x, "affine"):
        return _from_nibabel(x, call)
    if hasattr(x, "header") and hasattr(x, "data") and hasattr(x.header, "cards"):
        return _from_hdu(x, call)
    if hasattr(x, "dims") and hasattr(x, "to_numpy"):
        values = x.to_numpy()
        return values, tuple(map(str, x.dims)), None, _order(values), dict(getattr(x, "attrs", {}))
    if isinstance(x, np.ma.MaskedArray):
        raise BadInput(f"{call}: a masked array has two arrays; give x.filled(...) and ~x.mask one by one")
    try:
        values = np.asarray(getattr(x, "value", x) if hasattr(x, "unit") else x)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{call}: {type(x).__name__}: {error}") from None
    attrs = {"BUNIT": x.unit.to_string()} if hasattr(getattr(x, "unit", None), "to_string") else {}
    return values, () if values.ndim == 0 else None, None, _order(values), attrs


def _order(values: np.ndarray) -> str:
    return F if values.flags.f_contiguous and not values.flags.c_contiguous else C


def _from_nibabel(image: Any, call: str) -> tuple:
    from mpiimg.formats.space import Affine

    values = np.asanyarray(image.dataobj)
    axes = ("x", "y", "z", "t", "u", "v", "w")[: values.ndim]
    if image.affine is None:
        return values, axes, None, F, {}
    codes, units, header = (1, 1), ("unknown", "unknown"), image.header
    if hasattr(header, "get_xyzt_units"):
        units = header.get_xyzt_units()
    if "sform_code" in getattr(header, "keys", tuple)():
        codes = (int(header["qform_code"]), int(header["sform_code"]))
    zooms: Any = header.get_zooms() if hasattr(header, "get_zooms") else ()
    steps = (("t", float(zooms[3]), 0.0),) if len(zooms) > 3 and values.ndim > 3 else ()
    space = Affine(("x", "y", "z"), image.affine, units, codes, steps=steps)
    return values, axes, space, F, {}


def _from_hdu(hdu: Any, call: str) -> tuple:
    if hdu.data is None:
        raise BadInput(f"{call}: the HDU has no data")
    values = np.asarray(hdu.data)
    axes = ("t", "z", "y", "x")[-values.ndim :] if values.ndim <= 4 else None
    space = None
    if axes is not None and "CTYPE1" in hdu.header:
        from mpiimg.formats.space import Wcs

        space = Wcs(axes, hdu.header.tostring())
    return values, axes, space, C, dict(hdu.header.items())


def _space(space: Any, axes: tuple[str, ...], call: str) -> Any:
    from mpiimg.formats.space import Affine, Wcs

    if isinstance(space, Affine | Wcs):
        return space
    if np.shape(space) == (4, 4):
        names = [axis for axis in ("x", "y", "z") if axis in axes]
        if len(names) == 3:
            matrix: Any = np.asarray(space, float)
            return Affine(("x", "y", "z"), matrix, ("mm", "unknown"), (0, 2))
        raise BadInput(f"{call}: an affine is of the axes x y z, and the array has {' '.join(axes)}")
    header = space.to_header(relax=True) if hasattr(space, "to_header") else space
    if hasattr(header, "tostring"):
        return Wcs(axes, header.tostring())
    raise BadInput(
        f"{call}: space is an affine (4 x 4), a FITS header or an astropy WCS, not {type(space).__name__}"
    )


# --- Readers of users -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class UsersInput:
    """What a user's reader reads; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    reader : object
        With shape, dtype, axes and read(box).
    array : Array
        Of the engine.
    identity : JSON value
    """

    reader: Any
    array: engine_array.Array
    axes: tuple[str, ...]
    identity: Any
    space: Any = None
    attrs: dict = field(default_factory=dict)
    parallel = True
    files: tuple = ()

    @property
    def sample(self) -> None:
        return None

    def open(self) -> Reader:
        """Return what reads it."""
        return self

    def read(self, box: Box) -> np.ndarray:
        """Return the items of a box."""
        block = np.ascontiguousarray(self.reader.read(box), dtype=self.array.dtype)
        due = tuple(stop - start for start, stop in box)
        if block.shape != due:
            raise ValueError(
                f"{type(self.reader).__name__}.read({box}) returned the shape {block.shape}, and not {due}"
            )
        return block

    def close(self) -> None:
        """Close the reader, if it can be closed."""
        getattr(self.reader, "close", lambda: None)()


def from_reader(reader: Any, *, name: str | None = None) -> Array:
    """Return an array that an object of yours reads, on every rank the parts that it needs.

    Parameters
    ----------
    reader : object
        With `shape`, `dtype`, `axes` (the slowest in storage first, if that matters), a method `read(box)`
        that
        returns the items of ((start, stop), ...), and if what it reads is to be resumed an `identity`: JSON
        that tells this array from others. It may have `space`, `attrs` and `close()`.
    name : str, optional
        What stages are called by; by default the name of its class.

    Raises
    ------
    mpiimg.errors.BadInput
        It lacks one of these.
    """
    call, kind = "from_reader", type(reader).__name__
    for wanted in ("shape", "dtype", "axes", "read"):
        if not hasattr(reader, wanted):
            raise BadInput(
                f"{call}: {kind} has no {wanted}; a reader has shape, dtype, axes, identity and read(box)"
            )
    if not callable(reader.read):
        raise BadInput(f"{call}: {kind}.read cannot be called")
    axes = axes_tuple(reader.axes, f"{call}: {kind}.axes")
    shape = tuple(map(int, reader.shape))
    if len(axes) != len(shape):
        raise BadInput(f"{call}: {kind} has the axes {' '.join(axes)} and a shape of {len(shape)}")
    dtype = np.dtype(reader.dtype)
    if dtype.kind not in "biufc":
        raise BadInput(f"{call}: {kind}.dtype = {dtype} holds no numbers")
    known = getattr(reader, "identity", None)
    array = engine_array.Array(kind, axes or ("#",), shape or (1,), dtype.name)
    source: Any = UsersInput(
        reader, array, axes, {"class": kind, "identity": known}, getattr(reader, "space", None),
        dict(getattr(reader, "attrs", {}) or {}),
    )  # fmt: skip
    return Array(node_of_input(source, file_name(name or kind)[:40] or "array", identified=known is not None))
