"""The public array: lazy, with named axes, and all that can be said of one without running anything."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiimg.arrays import expressions
from mpiimg.arrays.axes import AxesLike, axes_tuple, checked_axes
from mpiimg.arrays.graph import Node
from mpiimg.arrays.stored import bounded
from mpiimg.arrays.types_of import Types
from mpiimg.errors import BadInput

if TYPE_CHECKING:
    from mpiimg.arrays.coarsened import Coarsened


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """A lazy array with named axes: nothing is read or worked on before `compute` or `write`.

    It is made by :func:`mpiimg.read`, :func:`mpiimg.from_array` and by calls on other arrays. All ranks make
    the same ones.

    Parameters
    ----------
    node : Node
        Of the graph.
    """

    __slots__ = ("_node",)
    __array_priority__ = 1000

    def __init__(self, node: Node):
        self._node = node

    # --- What it is ---------------------------------------------------------------------------------------

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, e.g. ("x", "y", "z", "t")."""
        return self._node.axes

    @property
    def dims(self) -> tuple[str, ...]:
        """The same, by the name that xarray has for them."""
        return self._node.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Items along each axis."""
        return self._node.shape

    @property
    def sizes(self) -> dict[str, int]:
        """Items along each axis, by name."""
        return self._node.sizes

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._node.axes)

    @property
    def size(self) -> int:
        """Number of items."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dtype(self) -> np.dtype:
        """Type of the items; where a user's function decides, it is rehearsed first. Collective then."""
        return np.dtype(self._known_dtype() or _types_of(self._node).of(self._node))

    @property
    def itemsize(self) -> int:
        """Bytes of an item."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all items."""
        return self.size * self.itemsize

    @property
    def space(self) -> Any:
        """Where the items lie: an affine or a WCS, by axis; None where nothing is known."""
        return self._node.space

    @property
    def attrs(self) -> dict[str, Any]:
        """What the file says beside the values, such as header cards."""
        return dict(self._node.attrs)

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Items of the chunks along each axis, as dask has them, where this array is made or written.

        They follow from shapes, types and what functions ask for. Nobody chooses them, and nothing that is
        made depends on them but for the last bits of sums.
        """
        from mpiimg.arrays.lower import chunks_of

        return chunks_of(self._node, _types_of(self._node))

    @property
    def T(self) -> Array:
        """The array with its axes in reverse order."""
        return self.transpose(self.axes[::-1])

    @property
    def real(self) -> Array:
        """The real parts."""
        return _wrap(expressions.elementwise(np.real, "real", [self]))

    @property
    def imag(self) -> Array:
        """The imaginary parts."""
        return _wrap(expressions.elementwise(np.imag, "imag", [self]))

    def _known_dtype(self) -> str | None:
        return Types().of(self._node)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        from mpiimg.arrays.show import text

        return text(self)

    def _repr_html_(self) -> str:
        from mpiimg.arrays.show import html

        return html(self)

    # --- What it is not -----------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        raise _not_yet(self, "bool(x)")

    def __float__(self) -> float:
        raise _not_yet(self, "float(x)")

    def __int__(self) -> int:
        raise _not_yet(self, "int(x)")

    def __complex__(self) -> complex:
        raise _not_yet(self, "complex(x)")

    def __index__(self) -> int:
        raise _not_yet(self, "an index")

    def __format__(self, form: str) -> str:
        if form:
            raise _not_yet(self, f"x:{form}")
        return repr(self)

    @property
    def values(self) -> None:
        """Not offered: an array is lazy."""
        raise AttributeError("x.values: the array is lazy; call compute(), which gives a NumPy array")

    def __round__(self, digits: int | None = None) -> Array:
        return self.round(digits or 0)

    def __array__(self, dtype=None, copy=None):
        raise _not_yet(self, "a NumPy array")

    def __iter__(self):
        raise _not_yet(self, "iterating over x")

    def __setitem__(self, key, value):
        raise BadInput(
            "x[...] = value: a lazy array is not changed in place; use mi.where(condition, value, x)"
        )

    def __contains__(self, value):
        raise _not_yet(self, "in")

    # --- Views --------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Array:
        """Return items by position: numbers, slices, lists of numbers in any order, lists of truth values."""
        return _wrap(expressions.index(self._node, key))

    def isel(self, indexers: Mapping[str, Any] | None = None, **by_axis: Any) -> Array:
        """Return items by position along named axes: x.isel(t=0), x.isel(z=slice(10, 20)).

        Parameters
        ----------
        indexers, by_axis
            For each axis a number (the axis goes), a slice, a list or array of numbers in any order, or of
            truth values as long as the axis.
        """
        return _wrap(expressions.isel(self._node, {**(indexers or {}), **by_axis}))

    def sel(self, *args, **kw):
        raise BadInput("x.sel: items are taken by position: use x.isel(axis=...)")

    def rechunk(self, *args, **kw):
        raise BadInput(
            "x.rechunk: chunks belong to the data, and are found from what functions ask for; "
            "say whole= or each= in map_blocks, or chunks= where you must"
        )

    chunk = rechunk

    def transpose(self, *axes: AxesLike) -> Array:
        """Return the array with its axes in another order: x.transpose("t z y x"); reversed without any."""
        names: Any = axes[0] if len(axes) == 1 else axes
        order = axes_tuple(names, "transpose") if axes else self.axes[::-1]
        return _wrap(expressions.transpose(self._node, order))

    def expand_dims(self, axis: str, position: int = 0) -> Array:
        """Return the array with a new axis of one item, the first one by default."""
        return _wrap(expressions.expand(self._node, axis, position))

    def squeeze(self, axes: AxesLike | None = None) -> Array:
        """Return the array without axes of one item: those that are named, or all."""
        return _wrap(expressions.squeeze(self._node, axes))

    def rename(self, names: Mapping[str, str] | None = None, **by_axis: str) -> Array:
        """Return the array with other names of axes: x.rename(a="b")."""
        return _wrap(expressions.rename(self._node, {**(names or {}), **by_axis}))

    def pad(
        self,
        widths: Mapping[str, Any] | None = None,
        *,
        mode: str = "constant",
        cval: Any = 0,
        **by_axis: Any,
    ) -> Array:
        """Return the array with items more at the ends of axes: x.pad(x=(1, 1)), x.pad(y=2, mode="reflect").

        Parameters
        ----------
        widths, by_axis
            Items before and after, or one number for both, by axis.
        mode : {"constant", "reflect", "mirror", "nearest", "wrap"}
            As scipy.ndimage has them: reflect repeats the edge (NumPy's "symmetric"), mirror does not.
        cval : scalar
            What is there, for "constant".
        """
        return _wrap(expressions.pad(self._node, {**(widths or {}), **by_axis}, mode, cval))

    def coarsen(
        self, factors: Mapping[str, int] | None = None, *, boundary: str = "exact", **by_axis: int
    ) -> Coarsened:
        """Return blocks of so many items, to be reduced: x.coarsen(x=2, y=2).mean().

        Parameters
        ----------
        factors, by_axis
            Items that become one, by axis.
        boundary : {"exact", "trim"}
            Whether lengths must be multiples, or what is left at the end is let go.
        """
        from mpiimg.arrays.coarsened import Coarsened

        return Coarsened(self, {**(factors or {}), **by_axis}, boundary)

    # --- Elementwise --------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        from mpiimg.arrays.numpy_protocol import apply_ufunc

        return apply_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, function, types, args, kwargs):
        from mpiimg.arrays.numpy_protocol import apply_function

        return apply_function(function, args, kwargs)

    def astype(self, dtype: Any) -> Array:
        """Return the items as another type."""
        return _wrap(expressions.astype(self._node, dtype))

    def clip(self, min: Any = None, max: Any = None) -> Array:
        """Return the items within limits."""
        return _wrap(expressions.elementwise(np.clip, "clip", [self, min, max]))

    def round(self, decimals: int = 0) -> Array:
        """Return the items rounded."""
        return _wrap(
            expressions.elementwise(np.round, "round", [self], {"decimals": operator.index(decimals)})
        )

    def conj(self) -> Array:
        """Return the complex conjugates."""
        made: Any = np.conjugate(self)
        return made

    def where(self, condition: Any, other: Any = np.nan) -> Array:
        """Return the items where a condition holds, and `other` elsewhere, as xarray does."""
        return _wrap(expressions.elementwise(np.where, "where", [condition, self, other]))

    def fillna(self, value: Any) -> Array:
        """Return the array with `value` in place of NaN."""
        return _wrap(expressions.elementwise(np.where, "where", [np.isnan(self), value, self]))

    # --- Reductions ---------------------------------------------------------------------------------------

    def sum(
        self, axes: AxesLike | None = None, *, dtype: Any = None, skipna: bool = False, **compat: Any
    ) -> Array:
        """Return the sum along `axes`, or of all; of floats in float64, in the order of storage."""
        return reduced(self, "sum", axes, compat, dtype=dtype, skipna=skipna)

    def prod(
        self, axes: AxesLike | None = None, *, dtype: Any = None, skipna: bool = False, **compat: Any
    ) -> Array:
        """Return the product along `axes`, or of all."""
        return reduced(self, "prod", axes, compat, dtype=dtype, skipna=skipna)

    def mean(
        self, axes: AxesLike | None = None, *, dtype: Any = None, skipna: bool = False, **compat: Any
    ) -> Array:
        """Return the mean along `axes`, or of all; of whole numbers float64."""
        return reduced(self, "mean", axes, compat, dtype=dtype, skipna=skipna)

    def std(
        self, axes: AxesLike | None = None, *, ddof: int = 0, skipna: bool = False, **compat: Any
    ) -> Array:
        """Return the standard deviation along `axes`, or of all; divided by the count less `ddof`."""
        return reduced(self, "std", axes, compat, ddof=ddof, skipna=skipna)

    def var(
        self, axes: AxesLike | None = None, *, ddof: int = 0, skipna: bool = False, **compat: Any
    ) -> Array:
        """Return the variance along `axes`, or of all; divided by the count less `ddof`."""
        return reduced(self, "var", axes, compat, ddof=ddof, skipna=skipna)

    def min(self, axes: AxesLike | None = None, *, skipna: bool = False, **compat: Any) -> Array:
        """Return the smallest item along `axes`, or of all."""
        return reduced(self, "min", axes, compat, skipna=skipna)

    def max(self, axes: AxesLike | None = None, *, skipna: bool = False, **compat: Any) -> Array:
        """Return the largest item along `axes`, or of all."""
        return reduced(self, "max", axes, compat, skipna=skipna)

    def any(self, axes: AxesLike | None = None, **compat: Any) -> Array:
        """Return whether any item along `axes` is true."""
        return reduced(self, "any", axes, compat)

    def all(self, axes: AxesLike | None = None, **compat: Any) -> Array:
        """Return whether all items along `axes` are true."""
        return reduced(self, "all", axes, compat)

    def count(self, axes: AxesLike | None = None, **compat: Any) -> Array:
        """Return how many items along `axes` are not NaN, int64."""
        return reduced(self, "count", axes, compat)

    def argmax(self, axes: AxesLike | None = None, **compat: Any) -> Array:
        """Return where the largest item is along `axes`, the first of several, int64."""
        return reduced(self, "argmax", axes, compat)

    def argmin(self, axes: AxesLike | None = None, **compat: Any) -> Array:
        """Return where the smallest item is along `axes`, the first of several, int64."""
        return reduced(self, "argmin", axes, compat)

    def histogram(self, bins: int, range: tuple[float, float]) -> tuple[Array, np.ndarray]:
        """Return counts and edges of a histogram of all items, as numpy.histogram; NaN is not counted.

        Parameters
        ----------
        bins : int
            Or edges, ascending.
        range : (float, float)
            Of the bins. It is asked for, since finding it would take a pass over the data.
        """
        return expressions.histogram(self, bins, range)

    @staticmethod
    def _refused(name: str, why: str) -> Callable:
        def refuse(self, *args, **kw):
            raise BadInput(f"x.{name}: {why}")

        refuse.__name__, refuse.__doc__ = name, f"Not offered: {why}."
        return refuse

    _cut = "what it needs may lie in any chunk; use map_blocks with whole= on its axis"
    median, quantile = _refused("median", _cut), _refused("quantile", _cut)
    cumsum, cumprod, sort = _refused("cumsum", _cut), _refused("cumprod", _cut), _refused("sort", _cut)
    rolling = _refused("rolling", "use map_overlap with a depth")
    reshape = _refused(
        "reshape", "axes have names here; use coarsen, stack, expand_dims or map_blocks with out="
    )
    dot = _refused("dot", "use apply_gufunc, e.g. with np.matmul and '(i,j),(j,k)->(i,k)'")
    _lazy = "the array is lazy; call compute(), which gives a NumPy array"
    to_numpy, numpy, load = _refused("to_numpy", _lazy), _refused("numpy", _lazy), _refused("load", _lazy)
    _flat = "axes have names here; reductions without axes take all items, and map_blocks gives NumPy blocks"
    ravel, flatten = _refused("ravel", _flat), _refused("flatten", _flat)
    swapaxes = _refused("swapaxes", "axes have names here; use transpose('t z y x')")
    del _refused, _cut, _lazy, _flat

    # --- Going on -----------------------------------------------------------------------------------------

    def map_blocks(self, function: Callable, *arrays: Any, **options: Any) -> Any:
        """Call :func:`mpiimg.map_blocks` with this array first."""
        from mpiimg.arrays.calls import map_blocks

        return map_blocks(function, self, *arrays, **options)

    def map_overlap(self, function: Callable, *arrays: Any, **options: Any) -> Any:
        """Call :func:`mpiimg.map_overlap` with this array first."""
        from mpiimg.arrays.calls import map_overlap

        return map_overlap(function, self, *arrays, **options)

    def to_items(self, axes: AxesLike) -> Any:
        """Return the items along an axis as keyed records, one for each position."""
        from mpiimg.arrays.bridges import to_items

        return to_items(self, checked_axes(axes, self.axes, "to_items"))

    def persist(self) -> Array:
        """Return this array as one that is made once, and kept for all runs of this program."""
        return _wrap(expressions.persisted(self._node))

    def compute(self, root: int | None = None, **options: Any) -> np.ndarray:
        """Run all that is needed, and return the items: the same on every rank. Collective.

        Parameters
        ----------
        root : int, optional
            The only rank that gets them; the others get None.
        """
        from mpiimg.arrays.session import compute

        return compute(self, root=root, **options)

    def write(self, path: Any, **options: Any) -> Any:
        """Run all that is needed, and write the array to a file whose ending names the format. Collective."""
        from mpiimg.arrays.session import write_one

        return write_one(self, path, **options)

    def to_xarray(self) -> Any:
        """Compute the array, and return it as an xarray.DataArray. Collective."""
        from mpiimg.arrays.bridges import to_xarray

        return to_xarray(self)


def _types_of(node: Node) -> Types:
    from mpiimg.arrays.session import known_types

    return known_types([node])


def _wrap(node: Node) -> Array:
    return Array(bounded(node))


def reduced(array: Array, operation: str, axes: Any, compat: Mapping[str, Any], **options: Any) -> Array:
    """Return a reduction, whose axes may be named as NumPy and xarray name them.

    Raises
    ------
    BadInput
        There is no such axis or option.
    """
    call = f"x.{operation}"
    for name in compat:
        if name not in ("axis", "dim", "keepdims"):
            raise BadInput(f"{call}: has no option {name}")
    if compat.get("keepdims"):
        raise BadInput(f"{call}: keepdims is not needed: arrays are aligned by the names of their axes")
    given = [value for value in (axes, compat.get("axis"), compat.get("dim")) if value is not None]
    if len(given) > 1:
        raise BadInput(f"{call}: the axes are given twice")
    options = {name: value for name, value in options.items() if value not in (None, False) or name == "ddof"}
    if "dtype" in options:
        options["dtype"] = np.dtype(options["dtype"]).str
    return _wrap(expressions.reduced(array._node, operation, given[0] if given else None, options))


def _not_yet(array: Array, what: str) -> TypeError:
    return TypeError(
        f"{what}: the array is lazy, nothing was worked on yet; call compute(), which gives a NumPy array"
    )
