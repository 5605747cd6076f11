"""Where output pixels lie in a source: cubics through a coarse grid of nodes.

Nodes are anchored to absolute output pixel numbers, so a pixel's place does not depend on the box that it is
computed in. Output is made in cells of one node spacing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.lanes import fma_float64

#: Output pixels from one node of the coarse grid to the next.
NODE_SPACING = 32

#: Shifts of a kernel between one pixel and the next; its table holds the end of the interval too.
SHIFTS = 4096


class Pixels(NamedTuple):
    """What an exposure is before it is resampled: planes of one shape, (ny, nx)."""

    image: np.ndarray  # float32
    variance: np.ndarray  # float32
    mask: np.ndarray  # integer


class Resampled(NamedTuple):
    """What it is on the pixels of the output: planes of one shape, (ny, nx)."""

    image: np.ndarray  # float32
    variance: np.ndarray  # float32, of each pixel
    mask: np.ndarray  # integer
    variance_ls: np.ndarray  # float32, per pixel of sums over so many that correlations add up


class Nodes(NamedTuple):
    """Source coordinates x and y at the nodes of the coarse grid, (rows, columns) float64.

    Element (0, 0) belongs to output pixel (`row`, `column`) x :data:`NODE_SPACING`.
    """

    x: np.ndarray
    y: np.ndarray
    row: int
    column: int


class Cubics(NamedTuple):
    """Weights of the four nodes about a pixel, (4, NODE_SPACING + 1) float64, by its place in the cell."""

    value: np.ndarray  # at the pixel's centre
    slope: np.ndarray  # per output pixel
    corner: np.ndarray  # half a pixel before it


class Cell(NamedTuple):
    """Scratch of one cell of NODE_SPACING x NODE_SPACING output pixels."""

    place: np.ndarray  # (NODE_SPACING, 4, NODE_SPACING): by row what the constants below name
    area: np.ndarray  # (NODE_SPACING, NODE_SPACING) Jacobian: source pixels that one output pixel covers


#: Parts of a cell's `place`: floor of the source coordinates (x is -1 where the footprint leaves the source),
#: and the rows of the table that hold the weights of their fractions.
X, Y, SHIFT_X, SHIFT_Y = range(4)


def _through_nodes(f: np.ndarray) -> np.ndarray:
    """Return the weights of nodes -1, 0, 1, 2 (Lagrange) at `f` node spacings from node 0."""
    return np.stack(
        [
            -f * (f - 1) * (f - 2) / 6,
            (f + 1) * (f - 1) * (f - 2) / 2,
            -(f + 1) * f * (f - 2) / 2,
            (f + 1) * f * (f - 1) / 6,
        ]
    )


def cubic_tables() -> Cubics:
    """Return the weights, and their slopes per output pixel, of the cubic through four nodes."""
    pixels = np.arange(NODE_SPACING + 1)
    f = pixels / NODE_SPACING
    slope = np.stack(
        [
            -(3 * f * f - 6 * f + 2) / 6,
            (3 * f * f - 4 * f - 1) / 2,
            -(3 * f * f - 2 * f - 2) / 2,
            (3 * f * f - 1) / 6,
        ]
    )
    corner = _through_nodes((pixels - 0.5) / NODE_SPACING)
    return Cubics(_through_nodes(f), slope / NODE_SPACING, corner)


CUBICS = cubic_tables()


def cells(box) -> tuple[range, range]:
    """Return the rows and the columns of cells that a box ((y0, y1), (x0, x1)) of output pixels meets."""
    return tuple(range(start // NODE_SPACING, (stop - 1) // NODE_SPACING + 1) for start, stop in box)


def nodes_around(grid, box) -> Nodes:
    """Return the coarse grid as kernels take it, having checked that it reaches around a box.

    Raises
    ------
    ValueError
        It does not.
    """
    nodes = Nodes(np.ascontiguousarray(grid[0]), np.ascontiguousarray(grid[1]), int(grid[2]), int(grid[3]))
    for (start, stop), first, count in zip(box, (nodes.row, nodes.column), nodes.x.shape, strict=True):
        if first > start // NODE_SPACING - 1 or first + count < (stop - 1) // NODE_SPACING + 3:
            raise ValueError(
                f"nodes {first} to {first + count - 1} do not surround pixels {start} to {stop - 1}"
            )
    return nodes


@kernel
def weighted(w0, w1, w2, w3, v0, v1, v2, v3):
    return fma_float64(w3, v3, fma_float64(w2, v2, fma_float64(w1, v1, w0 * v0)))


@kernel
def four_columns(nodes, i, j, w):
    """Return, for four columns of nodes from `j` on, the weighted sum of their four rows from `i` on."""
    n = nodes[i : i + 4, j : j + 4]
    return (
        weighted(w[0], w[1], w[2], w[3], n[0, 0], n[1, 0], n[2, 0], n[3, 0]),
        weighted(w[0], w[1], w[2], w[3], n[0, 1], n[1, 1], n[2, 1], n[3, 1]),
        weighted(w[0], w[1], w[2], w[3], n[0, 2], n[1, 2], n[2, 2], n[3, 2]),
        weighted(w[0], w[1], w[2], w[3], n[0, 3], n[1, 3], n[2, 3], n[3, 3]),
    )


@kernel
def locate_row(nodes, cubics, where, k, shape, taps, cell, r):
    """Fill row `r` of the cell's places: its row `k`, cubic first down the nodes, then along them.

    `taps` is the side of the kernel's footprint, an even number: half of it lies on each side.
    """
    i, j = where
    x0, x1, x2, x3 = four_columns(nodes.x, i, j, cubics.value[:, k])
    y0, y1, y2, y3 = four_columns(nodes.y, i, j, cubics.value[:, k])
    low = taps // 2 - 1.0
    high_y, high_x = shape[0] - taps / 2.0, shape[1] - taps / 2.0
    place, c = cell.place[r], cubics.value
    for n in range(NODE_SPACING):
        x = weighted(c[0, n], c[1, n], c[2, n], c[3, n], x0, x1, x2, x3)
        y = weighted(c[0, n], c[1, n], c[2, n], c[3, n], y0, y1, y2, y3)
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
def measure_row(nodes, cubics, where, k, area):
    """Fill a row of Jacobians: the determinant of the cubics' slopes along the row and down the column."""
    i, j = where
    x0, x1, x2, x3 = four_columns(nodes.x, i, j, cubics.value[:, k])
    y0, y1, y2, y3 = four_columns(nodes.y, i, j, cubics.value[:, k])
    p0, p1, p2, p3 = four_columns(nodes.x, i, j, cubics.slope[:, k])
    q0, q1, q2, q3 = four_columns(nodes.y, i, j, cubics.slope[:, k])
    c, d = cubics.value, cubics.slope
    for n in range(NODE_SPACING):
        x_along = weighted(d[0, n], d[1, n], d[2, n], d[3, n], x0, x1, x2, x3)
        y_along = weighted(d[0, n], d[1, n], d[2, n], d[3, n], y0, y1, y2, y3)
        x_down = weighted(c[0, n], c[1, n], c[2, n], c[3, n], p0, p1, p2, p3)
        y_down = weighted(c[0, n], c[1, n], c[2, n], c[3, n], q0, q1, q2, q3)
        area[n] = np.float32(abs(fma_float64(x_along, y_down, -(y_along * x_down))))


@kernel
def source_bounds(cell, rows, columns, taps):
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
    before, end = taps // 2 - 1, taps // 2 + 1
    return y0 - before, y1 + end, x0 - before, x1 + end
