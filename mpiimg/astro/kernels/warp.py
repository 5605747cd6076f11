"""Resample an exposure onto the pixels of a patch: image, variance and mask in one pass.

Lanczos-3 with flux per pixel conserved. Where an output pixel lies in the source comes from a coarse grid of
nodes that is anchored to absolute output pixel numbers, so the value of a pixel does not depend on the box
it is computed in. Output is made in cells of one node spacing: a cell's part of the source is copied beside
itself, image and variance interleaved, and each output pixel is then six vectors multiplied and added.
All sums of floats are written out with their fused multiply-adds: no loop has a tail with other roundings.

Lanczos-3 itself misplaces light by up to 0.02 pixel, as a function of the shift between pixels: it averages
out over a star unless the output has the scale and, to a quarter turn, the orientation of the source. It also
lets some aliases through: stars of 3 pixels FWHM on pixels 1.27 x as large scatter by up to 0.5 % in flux.

References
----------
E. Bertin et al., "The TERAPIX Pipeline", ADASS XI, ASP Conf. Ser. 281, 228 (2002), for SWarp. C. Duchon,
"Lanczos filtering in one and two dimensions", J. Appl. Meteorology 18, 1016 (1979).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.lanes import FLOAT_LANES, LANES, call_fma, fma_float64

#: Output pixels from one node of the coarse grid to the next.
NODE_SPACING = 32

#: Pixels per side of the kernel's footprint, and how many of them lie left of (below) its pixel.
TAPS = 6
BEFORE = 2

#: Shifts of the kernel between one pixel and the next; the table holds the end of the interval too.
SHIFTS = 4096


class Pixels(NamedTuple):
    """Image and variance (float32) and mask (integer) of one shape, (ny, nx)."""

    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray


class Nodes(NamedTuple):
    """Source coordinates x and y at the nodes of the coarse grid, (rows, columns) float64.

    Element (0, 0) belongs to output pixel (`row`, `column`) x :data:`NODE_SPACING`.
    """

    x: np.ndarray
    y: np.ndarray
    row: int
    column: int


class Tables(NamedTuple):
    """What does not depend on the data: the kernel's weights and the cubics' between nodes."""

    lanczos: np.ndarray
    value: np.ndarray
    slope: np.ndarray


class Cell(NamedTuple):
    """Scratch of one cell of NODE_SPACING x NODE_SPACING output pixels."""

    place: np.ndarray  # (NODE_SPACING, 4, NODE_SPACING): by row what the constants below name
    area: np.ndarray  # (NODE_SPACING, NODE_SPACING) Jacobian: source pixels that one output pixel covers


#: Parts of a cell's `place`: floor of the source coordinates (x is -1 where the footprint leaves the source),
#: and the rows of the table that hold the weights of their fractions.
X, Y, SHIFT_X, SHIFT_Y = range(4)


# --- Tables -------------------------------------------------------------------------------------------------


def lanczos_table() -> np.ndarray:
    """Return the kernel's weights for each shift, flat, 16 float32 per shift on a 64-byte boundary.

    A row holds w0, w0^2, w1, w1^2, ... of the six pixels that start :data:`BEFORE` the floor of the
    coordinate, then zeros: image and variance lie interleaved and take w and w^2. The six w add up to one.
    """
    shift = np.arange(SHIFTS + 1) / SHIFTS
    distance = shift[:, None] - (np.arange(TAPS) - BEFORE)
    weights = np.zeros(distance.shape)
    for index, d in np.ndenumerate(distance):
        # The C library's sine: numpy's rounds differently from one CPU to another.
        if d == 0:
            weights[index] = 1.0
        elif abs(d) < 3 and d != round(d):
            weights[index] = 3 * math.sin(math.pi * d) * math.sin(math.pi * d / 3) / (math.pi * d) ** 2
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    room = np.zeros((SHIFTS + 1) * LANES + LANES, np.float32)
    skip = -(room.ctypes.data // room.itemsize) % LANES
    table = room[skip : skip + (SHIFTS + 1) * LANES]
    rows = table.reshape(SHIFTS + 1, LANES)
    rows[:, 0 : 2 * TAPS : 2] = weights
    rows[:, 1 : 2 * TAPS : 2] = weights * weights
    return table


def cubic_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return the weights, and their slopes per output pixel, of the cubic through four nodes.

    Both (4, NODE_SPACING + 1) float64: nodes -1, 0, 1, 2 (Lagrange), at 0 to NODE_SPACING pixels from node 0.
    """
    f = np.arange(NODE_SPACING + 1) / NODE_SPACING
    value = np.stack(
        [
            -f * (f - 1) * (f - 2) / 6,
            (f + 1) * (f - 1) * (f - 2) / 2,
            -(f + 1) * f * (f - 2) / 2,
            (f + 1) * f * (f - 1) / 6,
        ]
    )
    slope = np.stack(
        [
            -(3 * f * f - 6 * f + 2) / 6,
            (3 * f * f - 4 * f - 1) / 2,
            -(3 * f * f - 2 * f - 2) / 2,
            (3 * f * f - 1) / 6,
        ]
    )
    return value, slope / NODE_SPACING


_TABLES = Tables(lanczos_table(), *cubic_tables())


# --- Warp -------------------------------------------------------------------------------------------------


@intrinsic
def _footprint_sums(typingctx, pixels, corner, row, table, shift_x, shift_y):
    """Return the sums over 6 x 6 pixels of w times image and of w^2 times variance.

    Parameters
    ----------
    pixels : (n,) float32
        Image and variance interleaved; read up to two pixels beyond the footprint.
    corner, row : int
        Element where the footprint starts, and from one of its rows to the next.
    table : (n,) float32
        As :func:`lanczos_table`.
    shift_x, shift_y : int
        Element of the table where the weights along x and y start.
    """
    index = ir.IntType(32)

    def at(context, builder, array_type, array, element, kind):
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [element]), kind.as_pointer())

    def multiply(builder, a, b):
        # Flags of its own keep numba from adding `contract`.
        return builder.fmul(a, b, flags=("nsz",))

    def add(builder, a, b):
        return builder.fadd(a, b, flags=("nsz",))

    def pick(builder, vector, other, lanes):
        return builder.shuffle_vector(vector, other, ir.Constant(ir.VectorType(index, len(lanes)), lanes))

    def codegen(context, builder, sig, args):
        pixels_type, _, _, table_type, _, _ = sig.args
        pixels, corner, row, table, shift_x, shift_y = args
        pairs = ir.VectorType(ir.DoubleType(), LANES // 2)
        total = None
        for tap in range(TAPS):
            offset = builder.add(corner, builder.mul(row, row.type(tap)))
            line = builder.load(at(context, builder, pixels_type, pixels, offset, FLOAT_LANES), align=4)
            # w and w^2 of this row, moved as one float64 that is only a pair of float32.
            element = builder.add(shift_y, shift_y.type(2 * tap))
            pair = builder.load(at(context, builder, table_type, table, element, ir.DoubleType()), align=8)
            nothing = ir.Constant(pairs, ir.Undefined)
            pair = pick(builder, builder.insert_element(nothing, pair, index(0)), nothing, [0] * (LANES // 2))
            weight = builder.bitcast(pair, FLOAT_LANES)
            total = (
                multiply(builder, line, weight)
                if total is None
                else call_fma(builder, FLOAT_LANES, (line, weight, total))
            )
        along = builder.load(at(context, builder, table_type, table, shift_x, FLOAT_LANES), align=64)
        total = multiply(builder, total, along)
        # The last four lanes lie beyond the footprint: zeros, even where these were no numbers.
        zeros = ir.Constant(FLOAT_LANES, [0.0] * LANES)
        eight = add(
            builder,
            pick(builder, total, zeros, list(range(8))),
            pick(builder, total, zeros, [*range(8, 12), *range(16, 20)]),
        )
        four = add(
            builder, pick(builder, eight, eight, [0, 1, 2, 3]), pick(builder, eight, eight, [4, 5, 6, 7])
        )
        two = add(builder, pick(builder, four, four, [0, 1]), pick(builder, four, four, [2, 3]))
        sums = [builder.extract_element(two, index(lane)) for lane in (0, 1)]
        return context.make_tuple(builder, sig.return_type, sums)

    flat = types.intp
    return types.UniTuple(types.float32, 2)(pixels, flat, flat, table, flat, flat), codegen


@kernel
def _weighted(w0, w1, w2, w3, v0, v1, v2, v3):
    return fma_float64(w3, v3, fma_float64(w2, v2, fma_float64(w1, v1, w0 * v0)))


@kernel
def _four_columns(nodes, i, j, w):
    """Return, for four columns of nodes from `j` on, the weighted sum of their four rows from `i` on."""
    n = nodes[i : i + 4, j : j + 4]
    return (
        _weighted(w[0], w[1], w[2], w[3], n[0, 0], n[1, 0], n[2, 0], n[3, 0]),
        _weighted(w[0], w[1], w[2], w[3], n[0, 1], n[1, 1], n[2, 1], n[3, 1]),
        _weighted(w[0], w[1], w[2], w[3], n[0, 2], n[1, 2], n[2, 2], n[3, 2]),
        _weighted(w[0], w[1], w[2], w[3], n[0, 3], n[1, 3], n[2, 3], n[3, 3]),
    )


@kernel
def _locate_row(nodes, tables, where, k, shape, cell, r):
    """Fill row `r` of the cell's places: its row `k`, cubic first down the nodes, then along them."""
    i, j = where
    x0, x1, x2, x3 = _four_columns(nodes.x, i, j, tables.value[:, k])
    y0, y1, y2, y3 = _four_columns(nodes.y, i, j, tables.value[:, k])
    low = float(BEFORE)
    high_y, high_x = shape[0] - (TAPS - BEFORE - 1.0), shape[1] - (TAPS - BEFORE - 1.0)
    place, c = cell.place[r], tables.value
    for n in range(NODE_SPACING):
        x = _weighted(c[0, n], c[1, n], c[2, n], c[3, n], x0, x1, x2, x3)
        y = _weighted(c[0, n], c[1, n], c[2, n], c[3, n], y0, y1, y2, y3)
        # Also false where a node is NaN.
        inside = (x >= low) & (x < high_x) & (y >= low) & (y < high_y)
        x = x if inside else low
        y = y if inside else low
        # As floats: many CPUs convert a vector of them to 32 bits, but not to the 64 of an integer's default.
        floor_x, floor_y = np.floor(x), np.floor(y)
        place[X, n] = np.int32(floor_x) if inside else np.int32(-1)
        place[Y, n] = np.int32(floor_y)
        place[SHIFT_X, n] = np.int32((x - floor_x) * SHIFTS + 0.5)
        place[SHIFT_Y, n] = np.int32((y - floor_y) * SHIFTS + 0.5)


@kernel
def _measure_row(nodes, tables, where, k, area):
    """Fill a row of Jacobians: the determinant of the cubics' slopes along the row and down the column."""
    i, j = where
    x0, x1, x2, x3 = _four_columns(nodes.x, i, j, tables.value[:, k])
    y0, y1, y2, y3 = _four_columns(nodes.y, i, j, tables.value[:, k])
    p0, p1, p2, p3 = _four_columns(nodes.x, i, j, tables.slope[:, k])
    q0, q1, q2, q3 = _four_columns(nodes.y, i, j, tables.slope[:, k])
    c, d = tables.value, tables.slope
    for n in range(NODE_SPACING):
        x_along = _weighted(d[0, n], d[1, n], d[2, n], d[3, n], x0, x1, x2, x3)
        y_along = _weighted(d[0, n], d[1, n], d[2, n], d[3, n], y0, y1, y2, y3)
        x_down = _weighted(c[0, n], c[1, n], c[2, n], c[3, n], p0, p1, p2, p3)
        y_down = _weighted(c[0, n], c[1, n], c[2, n], c[3, n], q0, q1, q2, q3)
        area[n] = np.float32(abs(fma_float64(x_along, y_down, -(y_along * x_down))))


@kernel
def _source_bounds(cell, rows, columns):
    """Return first and end row and column of the source that the cell's footprints cover; empty: zeros."""
    y0 = x0 = np.int32(2**31 - 1)
    y1 = x1 = np.int32(-1)
    for r in range(rows):
        for n in range(columns[0], columns[1]):
            x, y = cell.place[r, X, n], cell.place[r, Y, n]
            if x >= 0:
                y0, y1 = min(y0, y), max(y1, y)
                x0, x1 = min(x0, x), max(x1, x)
    if y1 < 0:
        return 0, 0, 0, 0
    return y0 - BEFORE, y1 + TAPS - BEFORE, x0 - BEFORE, x1 + TAPS - BEFORE


@kernel
def _copy_source(source, bounds, row, pixels, flags):
    """Interleave the source's image and variance, and OR its mask along x, `row` pixels per line."""
    y0, y1, x0, x1 = bounds
    for y in range(y0, y1):
        # Slices, so that no index can be negative as far as the compiler knows.
        image, variance, mask = source.image[y, x0:x1], source.variance[y, x0:x1], source.mask[y, x0:x1]
        pairs, line = pixels[2 * (y - y0) * row :], flags[(y - y0) * row :]
        for x in range(x1 - x0):
            pairs[2 * x] = image[x]
            pairs[2 * x + 1] = variance[x]
        for x in range(x1 - x0 - TAPS + 1):
            line[x] = mask[x] | mask[x + 1] | mask[x + 2] | mask[x + 3] | mask[x + 4] | mask[x + 5]


@kernel
def _or_down(flags, lines, row):
    """OR each line with the next five, in place; a pixel then holds the flags of the footprint it starts."""
    for y in range(lines - TAPS + 1):
        line = flags[y * row : (y + 1) * row]
        a, b, c = flags[(y + 1) * row :], flags[(y + 2) * row :], flags[(y + 3) * row :]
        d, e = flags[(y + 4) * row :], flags[(y + 5) * row :]
        for x in range(row):
            line[x] |= a[x] | b[x] | c[x] | d[x] | e[x]


@kernel
def _fill_row(cell, r, columns, origin, row, buffers, tables, scale, no_data, out):
    """Write one output row of a cell; `out` are its three lines, `columns` the cell's pixels in it."""
    pixels, flags = buffers
    image, variance, mask = out
    place = cell.place[r]
    for n in range(columns[0], columns[1]):
        k = n - columns[0]
        value = noise = np.float32(np.nan)
        mask[k] = 0
        if place[X, n] >= 0:
            o = (place[Y, n] - BEFORE - origin[0]) * row + place[X, n] - BEFORE - origin[1]
            value, noise = _footprint_sums(
                pixels,
                2 * o,
                2 * row,
                tables.lanczos,
                LANES * place[SHIFT_X, n],
                LANES * place[SHIFT_Y, n],
            )
            mask[k] = flags[o]
        factor = cell.area[r, n] * scale
        value, noise = value * factor, noise * (factor * factor)
        finite = math.isfinite(value) and math.isfinite(noise)
        image[k] = value if finite else np.float32(np.nan)
        variance[k] = noise if finite else np.float32(np.inf)
        if not finite:
            mask[k] |= no_data


@kernel
def _resample_cells(source, nodes, box, tables, scale, no_data, out):
    """Resample cell by cell; see :func:`resample`."""
    (y_start, y_stop), (x_start, x_stop) = box
    cell = Cell(
        np.empty((NODE_SPACING, 4, NODE_SPACING), np.int32),
        np.empty((NODE_SPACING, NODE_SPACING), np.float32),
    )
    pixels, flags = np.zeros(0, np.float32), np.zeros(0, source.mask.dtype)
    for i in range(y_start // NODE_SPACING, (y_stop - 1) // NODE_SPACING + 1):
        top, bottom = max(y_start, i * NODE_SPACING), min(y_stop, (i + 1) * NODE_SPACING)
        for j in range(x_start // NODE_SPACING, (x_stop - 1) // NODE_SPACING + 1):
            left, right = max(x_start, j * NODE_SPACING), min(x_stop, (j + 1) * NODE_SPACING)
            where = i - 1 - nodes.row, j - 1 - nodes.column
            columns = left - j * NODE_SPACING, right - j * NODE_SPACING
            for r in range(bottom - top):
                k = top + r - i * NODE_SPACING
                _locate_row(nodes, tables, where, k, source.image.shape, cell, r)
                _measure_row(nodes, tables, where, k, cell.area[r])
            bounds = _source_bounds(cell, bottom - top, columns)
            row = bounds[3] - bounds[2]
            size = (bounds[1] - bounds[0]) * row
            if size > flags.size:
                pixels, flags = np.zeros(2 * size + LANES, np.float32), np.zeros(size, source.mask.dtype)
            _copy_source(source, bounds, row, pixels, flags)
            _or_down(flags, bounds[1] - bounds[0], row)
            x0, x1 = left - x_start, right - x_start
            for r in range(bottom - top):
                y = top + r - y_start
                lines = out.image[y, x0:x1], out.variance[y, x0:x1], out.mask[y, x0:x1]
                _fill_row(
                    cell,
                    r,
                    columns,
                    (bounds[0], bounds[2]),
                    row,
                    (pixels, flags),
                    tables,
                    scale,
                    no_data,
                    lines,
                )


def resample(image, variance, mask, grid, box, scale=1.0, no_data=0) -> Pixels:
    """Resample an exposure onto a box of output pixels (Lanczos-3, flux per pixel conserved).

    Parameters
    ----------
    image, variance : (ny, nx) float32, C-contiguous
        Flux per pixel, and its variance; bad pixels already interpolated (:func:`interpolate_bad`).
    mask : (ny, nx) integer, C-contiguous
    grid : (x, y, row, column)
        Source coordinates (0-based, pixel centres at integers) at the nodes of the coarse grid, two float64
        arrays; element (i, j) belongs to output pixel (row + i, column + j) x NODE_SPACING. It holds one node
        before and two after those of each pixel of the box. NaN: not in the source.
    box : ((y0, y1), (x0, x1))
        Output pixels, half open, numbered as the grid is.
    scale : float
        Factor to a common zero point: the image takes it once, the variance squared.
    no_data : int
        Bits set in the mask where there is no value.

    Returns
    -------
    Pixels
        (y1 - y0, x1 - x0). Image: sum of w image, w the product of the weights along x and y, times Jacobian
        (source pixels that an output pixel covers) and scale. Variance: sum of w^2 variance, times the square
        of both. Mask: all bits in the 6 x 6 footprint. NaN, inf and `no_data` where the footprint leaves the
        source or holds a value that is not finite.

    Raises
    ------
    ValueError
        If shapes differ or the grid does not reach around the box.
    """
    nodes = Nodes(np.ascontiguousarray(grid[0]), np.ascontiguousarray(grid[1]), int(grid[2]), int(grid[3]))
    if not image.shape == variance.shape == mask.shape:
        raise ValueError(f"planes of different shapes: {image.shape}, {variance.shape}, {mask.shape}")
    (y0, y1), (x0, x1) = box
    shape = max(y1 - y0, 0), max(x1 - x0, 0)
    out = Pixels(np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, mask.dtype))
    if 0 in shape:
        return out
    for (start, stop), first, count in zip(box, (nodes.row, nodes.column), nodes.x.shape, strict=True):
        if first > start // NODE_SPACING - 1 or first + count < (stop - 1) // NODE_SPACING + 3:
            raise ValueError(
                f"nodes {first} to {first + count - 1} do not surround pixels {start} to {stop - 1}"
            )
    bounds = (int(y0), int(y1)), (int(x0), int(x1))
    _resample_cells(
        Pixels(image, variance, mask),
        nodes,
        bounds,
        _TABLES,
        np.float32(scale),
        mask.dtype.type(no_data),
        out,
    )
    return out


def precompile() -> None:
    """Call the kernels on a frame."""
    image = np.random.default_rng(0).normal(100, 10, (40, 48)).astype(np.float32)
    rows, columns = np.indices((5, 5)) * float(NODE_SPACING)
    box, nodes = ((32, 60), (32, 70)), Nodes(columns, rows, 0, 0)
    resample(image, np.full_like(image, 100), np.zeros(image.shape, np.int32), nodes, box, np.float64(1), 1)
