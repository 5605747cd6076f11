"""Random graphs of the public primitives, each beside the same in NumPy."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import mpiimg as mi

#: Axes that random arrays have.
NAMES = ("x", "y", "z", "t")

#: scipy's words for boundaries, and NumPy's.
MODES = {
    "reflect": "symmetric",
    "mirror": "reflect",
    "nearest": "edge",
    "wrap": "wrap",
    "constant": "constant",
}


class Pair:
    """An array of mpiimg, and the same in NumPy.

    Parameters
    ----------
    lazy : Array
    plain : ndarray
        In the axes of `lazy`.
    exact : bool
        Whether they must be equal bit for bit.
    """

    def __init__(self, lazy, plain, exact=True):
        self.lazy, self.plain, self.exact = lazy, plain, exact
        assert lazy.shape == plain.shape, (lazy, plain.shape)


@st.composite
def sources(draw):
    axes = draw(st.permutations(NAMES))[: draw(st.integers(1, 4))]
    shape = tuple(draw(st.integers(1, 9)) for _ in axes)
    dtype = draw(st.sampled_from(["f4", "f8", "i2", "u1", "i8", "?", "c8"]))
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 40, shape)
    if dtype == "c8":
        values = values + 1j * rng.normal(0, 40, shape)
    if dtype in ("f4", "f8") and draw(st.booleans()):
        values[rng.random(shape) < 0.05] = np.nan
    if dtype[0] == "u":
        values = np.abs(values)
    plain = values.astype(dtype, order=draw(st.sampled_from(["C", "F"])))
    return Pair(mi.from_array(plain, axes), plain)


@st.composite
def steps(draw, pair):
    """Return a pair that is made of another by one step."""
    x, a = pair.lazy, pair.plain
    kind = draw(
        st.sampled_from(
            [
                "slice",
                "list",
                "transpose",
                "ufunc",
                "scalar",
                "pad",
                "concatenate",
                "coarsen",
                "map",
                "overlap",
                "expand",
                "where",
                "reduce",
                "stack",
                "each",
                "persist",
            ]
        )
    )
    step = globals()[f"_{kind}"](draw, x, a)
    if step is None:
        return pair
    lazy, plain, exact = step
    return Pair(lazy, plain, pair.exact and exact)


def _slice(draw, x, a):
    keys = tuple(draw(st.slices(n)) for n in a.shape)
    made = a[keys]
    return None if 0 in made.shape else (x[keys], made, True)


def _list(draw, x, a):
    n = draw(st.integers(0, a.ndim - 1)) if a.ndim else None
    if n is None:
        return None
    items = draw(st.lists(st.integers(-a.shape[n], a.shape[n] - 1), min_size=1, max_size=12))
    return x.isel({x.axes[n]: items}), np.take(a, items, axis=n), True


def _transpose(draw, x, a):
    order = draw(st.permutations(range(a.ndim)))
    return x.transpose(tuple(x.axes[n] for n in order)), a.transpose(order), True


def _ufunc(draw, x, a):
    if a.dtype == bool:
        return ~x, ~a, True
    function = draw(st.sampled_from([np.negative, np.abs, np.square, np.isfinite, np.conjugate]))
    if function is np.negative and a.dtype.kind == "u":
        function = np.square
    with np.errstate(all="ignore"):
        return function(x), function(a), True


def _scalar(draw, x, a):
    if a.dtype == bool:
        return x & True, a & True, True
    if draw(st.booleans()):
        with np.errstate(all="ignore"):
            return x * 3 - 1, a * 3 - 1, True
    if a.dtype.kind == "c":
        return x * 1j, a * 1j, True
    return x > 5, a > 5, True


def _pad(draw, x, a):
    if not a.ndim:
        return None
    n = draw(st.integers(0, a.ndim - 1))
    widths = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    mode = draw(st.sampled_from(sorted(MODES)))
    if mode == "mirror" and a.shape[n] == 1:
        return None
    plain = np.pad(a, [widths if k == n else (0, 0) for k in range(a.ndim)], mode=MODES[mode])
    return x.pad({x.axes[n]: widths}, mode=mode), plain, True


def _concatenate(draw, x, a):
    if not a.ndim:
        return None
    n = draw(st.integers(0, a.ndim - 1))
    return mi.concatenate([x, x[::-1], x], x.axes[n]), np.concatenate([a, a[::-1], a], axis=n), True


def _coarsen(draw, x, a):
    if not a.ndim or a.dtype.kind == "c":
        return None
    n, factor = draw(st.integers(0, a.ndim - 1)), draw(st.integers(1, 3))
    length = a.shape[n] // factor * factor
    if not length:
        return None
    trimmed = np.take(a, range(length), axis=n)
    shape = (*a.shape[:n], length // factor, factor, *a.shape[n + 1 :])
    return x.coarsen({x.axes[n]: factor}, boundary="trim").max(), trimmed.reshape(shape).max(axis=n + 1), True


def _square(block):
    return np.square(block)


def _map(draw, x, a):
    if a.dtype == bool:
        return None
    whole = x.axes[draw(st.integers(0, a.ndim - 1))] if a.ndim else ()
    return mi.map_blocks(_square, x, whole=(whole,) if whole else ()), np.square(a), True


def _neighbours(block):
    """The sum of an item and its neighbours along all axes, of whole numbers."""
    total = block.copy()
    for axis in range(block.ndim):
        total = total + np.roll(block, 1, axis) + np.roll(block, -1, axis)
    return total


def _overlap(draw, x, a):
    if a.dtype.kind not in "iu" or not a.ndim:
        return None
    mode = draw(st.sampled_from(sorted(MODES)))
    if mode == "mirror" and 1 in a.shape:
        return None
    padded = np.pad(a, 1, mode=MODES[mode])
    plain = _neighbours(padded)[(slice(1, -1),) * a.ndim]
    return mi.map_overlap(_neighbours, x, depth=1, boundary=mode), plain, True


def _expand(draw, x, a):
    new = next((name for name in ("u", "v", "w") if name not in x.axes), None)
    if new is None or a.ndim > 4:
        return None
    place = draw(st.integers(0, a.ndim))
    return x.expand_dims(new, place), np.expand_dims(a, place), True


def _where(draw, x, a):
    if a.dtype.kind in "c?":
        return None
    return mi.where(x > 0, x, 1), np.where(a > 0, a, 1), True


def _reduce(draw, x, a):
    if a.ndim < 2 or a.dtype.kind == "c":
        return None
    n = draw(st.integers(0, a.ndim - 1))
    name = draw(st.sampled_from(["min", "max", "sum", "any", "all", "count", "argmax", "mean"]))
    lazy = getattr(x, name)(x.axes[n])
    if name == "count":
        plain = (
            np.count_nonzero(~np.isnan(a), axis=n) if a.dtype.kind == "f" else np.full(lazy.shape, a.shape[n])
        )
    elif name in ("sum", "mean"):
        kind = a.dtype if a.dtype.kind == "f" else ("u8" if a.dtype.kind == "u" else "i8")
        with np.errstate(all="ignore"):
            plain = getattr(a, name)(axis=n, dtype="f8" if name == "mean" or a.dtype.kind == "f" else kind)
        plain = plain.astype(kind if name == "sum" or a.dtype.kind == "f" else "f8")
    else:
        plain = getattr(a, name)(axis=n)
    return lazy, np.asarray(plain), name not in ("sum", "mean") or a.dtype.kind != "f"


def _stack(draw, x, a):
    new = next((name for name in ("u", "v", "w") if name not in x.axes), None)
    if new is None or a.ndim > 4:
        return None
    return mi.stack([x, x], new, 0), np.stack([a, a], 0), True


def _flip_first(block):
    return block[::-1].copy()


def _each(draw, x, a):
    if a.ndim < 2:
        return None
    n = draw(st.integers(1, a.ndim - 1))
    return (
        mi.map_blocks(
            _flip_first, x, each=x.axes[n], whole=tuple(axis for axis in x.axes if axis != x.axes[n])
        ),
        a[::-1],
        True,
    )


def _persist(draw, x, a):
    return x.persist(), a, True


@st.composite
def graphs(draw, max_steps=6):
    """Return a pair of a random graph and what NumPy makes of the same."""
    pair = draw(sources())
    for _ in range(draw(st.integers(1, max_steps))):
        pair = draw(steps(pair))
        if pair.plain.size > 50_000:
            break
    return pair
