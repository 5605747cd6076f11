"""Cosmic rays looked for by L.A.Cosmic: which pixels of a frame are struck.

A pixel is struck if its Laplacian stands out of the noise (`sigclip`) and is sharper than anything that
the optics could draw (`objlim`); its neighbours need less.

A pixel's decision depends on the pixels within :data:`HALO` of it only. So the frame is cut twice: into
tiles, where noise and Laplacian are worked out in long flat loops, and into cells of :data:`CELL` pixels,
where the rest is worked out around the few pixels whose Laplacian stands out. Every sum is added in one
order, so the result does not depend on either cut; the order is that of astroscrappy's binary, so that no
pixel at a limit is decided otherwise. References are in cosmics.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from mpiimg.kernels.jit import kernel

#: Pixels about a pixel that its decision depends on: 2 of growth, medians of 7 of the Laplacian and of the
#: variance before it (2 + 3 + 3), or medians of 9 and 5 (2 + 4 + 2).
HALO = 8

#: Pixels that another pixel's candidacy reaches: two growths of 3 x 3.
GROWTH = 2

#: Side of a cell, in pixels.
CELL = 16

#: Cells of a tile along y and x: its planes stay in the second-level cache.
TILE_CELLS = (4, 15)

#: A tile is searched whole if more than one cell in so many is dirty.
FEW = 4

#: Smallest variance, and fine structure in units of the noise, that is divided by.
NO_VARIANCE = np.float32(1e-5)
NO_STRUCTURE = np.float32(0.01)
ZERO, QUARTER, TWO, FOUR = (np.float32(x) for x in (0.0, 0.25, 2.0, 4.0))


class Frame(NamedTuple):
    """The planes of a frame, all (ny, nx)."""

    image: np.ndarray  # float32, electrons; repaired in place
    variance: np.ndarray  # float32, electrons squared; `image` itself where the variance is image + `noise`
    bad: np.ndarray  # bool, neither searched nor used for repair
    struck: np.ndarray  # bool, what has been found


class Limits(NamedTuple):
    """What decides, all float32."""

    sigclip: np.float32
    siglow: np.float32  # sigma of neighbours
    objlim: np.float32
    noise: np.float32  # read noise squared where the variance follows from the image, else 0


class Window(NamedTuple):
    """A part of the frame with its halo, held row after row in flat planes."""

    y: int  # of the plane's first row in the frame; may lie outside of it
    x: int
    rows: int
    width: int


@intrinsic
def divide(typingctx, a, b):
    """Return a / b of two float32, correctly rounded: the house's `arcp` would let it be off by a bit."""

    def codegen(context, builder, signature, args):
        return builder.fdiv(*args, flags=("nsz",))

    return types.float32(types.float32, types.float32), codegen


# --- Medians ------------------------------------------------------------------------------------------------


@kernel
def _median_of_3(a, b, c):
    return max(min(a, b), min(max(a, b), c))


@kernel
def _median_of_5(a, b, c, d, e):
    return _median_of_3(max(min(a, b), min(c, d)), min(max(a, b), max(c, d)), e)


@kernel
def median_of_7(a, b, c, d, e, f, g):
    a, f = min(a, f), max(a, f)
    a, d = min(a, d), max(a, d)
    b, g = min(b, g), max(b, g)
    c, e = min(c, e), max(c, e)
    b = max(a, b)
    d, f = min(d, f), max(d, f)
    c, g = min(c, g), max(c, g)
    c, d = min(c, d), max(c, d)
    d = min(d, g)
    e = min(e, f)
    b, e = min(b, e), max(b, e)
    d = max(b, d)
    return min(d, e)


@kernel
def _sort_3(a, b, c):
    b, c = min(b, c), max(b, c)
    a, b = min(a, b), max(a, b)
    return a, min(b, c), max(b, c)


@kernel
def _median_of_9(a, b, c, d, e, f, g, h, i):
    a, b, c = _sort_3(a, b, c)
    d, e, f = _sort_3(d, e, f)
    g, h, i = _sort_3(g, h, i)
    return _median_of_3(max(max(a, d), g), _median_of_3(b, e, h), min(min(c, f), i))


@kernel
def _median_along(source, step, radius, out):
    """Set each element of a flat plane to the median of 2 `radius` + 1 elements, `step` apart, about it."""
    n = source.size - 2 * radius * step
    out = out[radius * step : radius * step + n]
    a, b, c, d, e = source[:n], source[step:], source[2 * step :], source[3 * step :], source[4 * step :]
    if radius == 2:
        for k in range(n):
            out[k] = _median_of_5(a[k], b[k], c[k], d[k], e[k])
        return
    f, g = source[5 * step :], source[6 * step :]
    if radius == 3:
        for k in range(n):
            out[k] = median_of_7(a[k], b[k], c[k], d[k], e[k], f[k], g[k])
        return
    h, i = source[7 * step :], source[8 * step :]
    for k in range(n):
        out[k] = _median_of_9(a[k], b[k], c[k], d[k], e[k], f[k], g[k], h[k], i[k])


@kernel
def _separable_median(source, radius, box, shape, scratch, out):
    """Filter a flat plane by medians along x, then along y; pixels near the frame's edge keep their value.

    Garbage at the ends of rows stays within `radius` of the plane's edges.
    """
    _median_along(source, 1, radius, scratch)
    _median_along(scratch, box.width, radius, out)
    ny, nx = shape
    if box.y + box.rows + radius <= ny and box.x + box.width + radius <= nx and min(box.y, box.x) >= radius:
        return
    for y in range(max(0, -box.y), min(box.rows, ny - box.y)):
        inner = radius <= box.y + y < ny - radius
        for x in range(max(0, -box.x), min(box.width, nx - box.x)):
            if not (inner and radius <= box.x + x < nx - radius):
                out[y * box.width + x] = source[y * box.width + x]


# --- Laplacian and noise, in tiles --------------------------------------------------------------------------


@kernel
def _load(plane, box, out):
    """Copy a box of a plane of the frame; outside of the frame it is 0."""
    ny, nx = plane.shape
    first, last = max(0, -box.x), min(box.width, nx - box.x)
    for y in range(box.rows):
        row = out[y * box.width : (y + 1) * box.width]
        if not 0 <= box.y + y < ny:
            row[:] = ZERO
            continue
        row[:first] = ZERO
        row[last:] = ZERO
        line = plane[box.y + y, box.x + first : box.x + last]
        for x in range(last - first):
            row[first + x] = line[x]


@kernel
def _measure(image, box, limits, noise, ratio):
    """Replace the smooth variance in `noise` by the noise, and set `ratio` to Laplacian over twice that.

    The Laplacian is that of pixels cut into 2 x 2: of each quarter, where positive, and their mean.
    """
    n = image.size - 2 * box.width
    above, left, centre = image[:n], image[box.width - 1 :], image[box.width :]
    right, below = image[box.width + 1 :], image[2 * box.width :]
    noise, ratio = noise[box.width : box.width + n], ratio[box.width : box.width + n]
    for k in range(n):
        v = centre[k]
        leftward = (FOUR * v - v) - left[k]
        rightward = (FOUR * v - right[k]) - v
        upward = v + above[k]
        downward = v + below[k]
        first = max(leftward - upward, ZERO) + max(rightward - downward, ZERO)
        second = max(leftward - downward, ZERO) + max(rightward - upward, ZERO)
        noise[k] = math.sqrt(max(noise[k] + limits.noise, NO_VARIANCE))
        ratio[k] = divide((first + second) * QUARTER, TWO * noise[k])


@kernel
def _edge_laplacian(image, y, x):
    """Return the Laplacian of a pixel on the frame's edge.

    What lies outside adds nothing. The sums are those of :func:`_measure`, in the order in which
    astroscrappy adds them on each side, on the uppermost quarters in double precision.
    """
    ny, nx = image.shape
    v = image[y, x]
    three = FOUR * v - v
    above = image[y - 1, x] if y > 0 else ZERO
    below = image[y + 1, x] if y < ny - 1 else ZERO
    left = image[y, x - 1] if x > 0 else ZERO
    right = image[y, x + 1] if x < nx - 1 else ZERO
    leftward = three - left
    rightward = (FOUR * v - right) - v
    upper_left, upper_right = leftward - (v + above), rightward - (v + above)
    lower_left, lower_right = leftward - (v + below), rightward - (v + below)
    if x == nx - 1:
        upper_right = three - (v + above)
        lower_right = (FOUR * v - below) - TWO * v
    if y == 0:
        upper_left = np.float32((4.0 * v - v) - (float(v) + left)) if x > 0 else TWO * v
        upper_right = np.float32((4.0 * v - right) - 2.0 * v) if x < nx - 1 else TWO * v
    if y == ny - 1:
        lower_left = three - (v + left) if x > 0 else TWO * v
        lower_right = three - (right + v)
    first = max(upper_left, ZERO) + max(lower_right, ZERO)
    return (first + (max(lower_left, ZERO) + max(upper_right, ZERO))) * QUARTER


@kernel
def _measure_edges(image, box, noise, ratio):
    """Set `ratio` right on the pixels along the frame's edges."""
    ny, nx = image.shape
    for y in range(max(box.y, 0), min(box.y + box.rows, ny)):
        step = 1 if y in (0, ny - 1) else max(nx - 1, 1)
        for x in range(0, nx, step):
            if box.x <= x < box.x + box.width:
                k = (y - box.y) * box.width + x - box.x
                ratio[k] = divide(_edge_laplacian(image, y, x), TWO * noise[k])


@kernel
def _measure_box(frame, limits, box, planes):
    """Fill the planes image, noise and ratio of a box; the last two hold good to 3 pixels from its edges."""
    image, noise, ratio, variance, scratch = planes
    ny, nx = frame.image.shape
    _load(frame.image, box, image)
    if limits.noise > 0:
        _separable_median(image, 3, box, (ny, nx), scratch, noise)
    else:
        _load(frame.variance, box, variance)
        _separable_median(variance, 3, box, (ny, nx), scratch, noise)
    _measure(image, box, limits, noise, ratio)
    if box.y <= 0 or box.x <= 0 or box.y + box.rows >= ny or box.x + box.width >= nx:
        _measure_edges(frame.image, box, noise, ratio)


@kernel
def _mark_candidates(frame, limits, box, ratio, candidates):
    """Mark the cells that a good pixel lies in or near to whose `ratio` is above the limit.

    No other can be struck: the median that is yet to be subtracted is not negative.
    """
    top, bottom, left, right = _interior(box, frame.image.shape, HALO - GROWTH)
    for y in range(top, bottom):
        row = ratio[y * box.width : (y + 1) * box.width]
        above = 0
        for x in range(row.size):
            above += row[x] > limits.sigclip
        if above == 0:
            continue
        for x in range(left, right):
            if row[x] > limits.sigclip and not frame.bad[box.y + y, box.x + x]:
                mark(candidates, y - HALO, x - HALO, GROWTH)


@kernel
def mark(cells, y, x, reach):
    """Mark the cells that have pixels within `reach` of pixel (y, x)."""
    for j in range(max(y - reach, 0) // CELL, min((y + reach) // CELL + 1, cells.shape[0])):
        for i in range(max(x - reach, 0) // CELL, min((x + reach) // CELL + 1, cells.shape[1])):
            cells[j, i] = True


# --- Decisions, in cells ------------------------------------------------------------------------------------


@kernel
def _cut(plane, width, y, x, box, out):
    """Copy a cell's box out of a tile's plane whose rows have `width` pixels."""
    for j in range(box.rows):
        line = plane[(y + j) * width + x : (y + j) * width + x + box.width]
        row = out[j * box.width : (j + 1) * box.width]
        for i in range(box.width):
            row[i] = line[i]


@kernel
def _interior(box, shape, border):
    """Return the rows and columns of a box that are `border` from its edges, and in the frame."""
    first_row, last_row = max(border, -box.y), min(box.rows - border, shape[0] - box.y)
    first_column, last_column = max(border, -box.x), min(box.width - border, shape[1] - box.x)
    return first_row, last_row, first_column, last_column


@kernel
def _grown(flags, k, width):
    """Tell whether one of the 3 x 3 pixels about pixel k of a flat plane is set."""
    for row in range(k - width, k + width + 1, width):
        if flags[row - 1] or flags[row] or flags[row + 1]:
            return True
    return False


@kernel
def _mark_above(frame, box, border, ratio, limit, out):
    """Set `out` where a good pixel is above the limit, and return how many are."""
    count = 0
    top, bottom, left, right = _interior(box, frame.image.shape, border)
    for y in range(top, bottom):
        row = ratio[y * box.width : (y + 1) * box.width]
        for x in range(left, right):
            out[y * box.width + x] = row[x] > limit and not frame.bad[box.y + y, box.x + x]
            count += out[y * box.width + x]
    return count


@kernel
def _search_cell(frame, limits, box, planes, flags):
    """Find the struck pixels of a cell, whose box comes with image, noise and ratio; tell if any is new."""
    image, noise, ratio, fine, smooth, scratch = planes
    above, core, edge = flags
    shape = frame.image.shape
    _separable_median(ratio, 3, box, shape, scratch, smooth)
    for k in range(ratio.size):
        ratio[k] -= smooth[k]
    above[:] = False
    if _mark_above(frame, box, HALO - GROWTH, ratio, limits.sigclip, above) == 0:
        return False
    _separable_median(image, 2, box, shape, scratch, fine)
    _separable_median(fine, 4, box, shape, scratch, smooth)
    count = 0
    for k in range(above.size):
        core[k] = False
        if above[k]:
            structure = max(divide(fine[k] - smooth[k], noise[k]), NO_STRUCTURE)
            core[k] = divide(ratio[k], structure) > limits.objlim
            count += core[k]
    if count == 0:
        return False
    edge[:] = False
    top, bottom, left, right = _interior(box, shape, HALO - GROWTH + 1)
    for y in range(top, bottom):
        for x in range(left, right):
            k = y * box.width + x
            edge[k] = above[k] and _grown(core, k, box.width)
    return _strike(frame, limits, box, ratio, edge)


@kernel
def _strike(frame, limits, box, ratio, edge):
    """Enter the pixels of a cell that are above the lower limit beside the upper one; tell if any is new."""
    new = False
    top, bottom, left, right = _interior(box, frame.image.shape, HALO)
    for y in range(top, bottom):
        for x in range(left, right):
            j, i, k = box.y + y, box.x + x, y * box.width + x
            if frame.bad[j, i] or frame.struck[j, i] or not ratio[k] > limits.siglow:
                continue
            if _grown(edge, k, box.width):
                frame.struck[j, i] = True
                new = True
    return new


@kernel
def _search_tile(frame, limits, first, candidates, scratch, new):
    """Search the cells of a tile, `first` the upper left one; `candidates` is scratch, a flag per cell."""
    tile_planes, cell_planes, flags = scratch
    ny, nx = candidates.shape
    box = Window(first[0] * CELL - HALO, first[1] * CELL - HALO, ny * CELL + 2 * HALO, nx * CELL + 2 * HALO)
    n = box.rows * box.width
    image, noise, ratio = tile_planes[0, :n], tile_planes[1, :n], tile_planes[2, :n]
    _measure_box(frame, limits, box, (image, noise, ratio, tile_planes[3, :n], tile_planes[4, :n]))
    candidates[:] = False
    _mark_candidates(frame, limits, box, ratio, candidates)
    side = CELL + 2 * HALO
    p = cell_planes
    for j in range(ny):
        for i in range(nx):
            if candidates[j, i]:
                cell = Window(box.y + j * CELL, box.x + i * CELL, side, side)
                _cut(image, box.width, j * CELL, i * CELL, cell, p[0])
                _cut(noise, box.width, j * CELL, i * CELL, cell, p[1])
                _cut(ratio, box.width, j * CELL, i * CELL, cell, p[2])
                planes = (p[0], p[1], p[2], p[3], p[4], p[5])
                if _search_cell(frame, limits, cell, planes, (flags[0], flags[1], flags[2])):
                    new[first[0] + j, first[1] + i] = True


@kernel
def search(frame, limits, dirty, tile, new):
    """Search the dirty cells once, and mark those with newly struck pixels in `new`.

    Where few cells of a tile are dirty they are searched one by one, which costs more for each.
    """
    side = CELL + 2 * HALO
    size = (tile[0] * CELL + 2 * HALO) * (tile[1] * CELL + 2 * HALO)
    scratch = (
        np.zeros((5, size), np.float32),
        np.zeros((6, side * side), np.float32),
        np.zeros((3, side * side), np.bool_),
    )
    candidates = np.zeros(dirty.shape, np.bool_)
    for top in range(0, dirty.shape[0], tile[0]):
        for left in range(0, dirty.shape[1], tile[1]):
            part = dirty[top : top + tile[0], left : left + tile[1]]
            count = part.sum()
            if FEW * count > part.size:
                _search_tile(
                    frame, limits, (top, left), candidates[: part.shape[0], : part.shape[1]], scratch, new
                )
            elif count > 0:
                for j in range(part.shape[0]):
                    for i in range(part.shape[1]):
                        if part[j, i]:
                            _search_tile(frame, limits, (top + j, left + i), candidates[:1, :1], scratch, new)
