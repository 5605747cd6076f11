"""Cosmic rays found and repaired by L.A.Cosmic, as astroscrappy does it with separable medians.

A pixel is struck if its Laplacian stands out of the noise (`sigclip`) and is sharper than anything that
the optics could draw (`objlim`); its neighbours need less. What is found is replaced by the median of its
good neighbours, and the search is repeated.

A pixel's decision depends on the pixels within :data:`HALO` of it only. So the frame is cut twice: into
tiles, where noise and Laplacian are worked out in long flat loops, and into cells of :data:`CELL` pixels,
where the rest is worked out around the few pixels whose Laplacian stands out. Later iterations look only
at cells near a value that has changed. Every sum is added in one order, so the result does not depend on
either cut; the order is that of astroscrappy's binary, so that no pixel at a limit is decided otherwise.

References
----------
P. G. van Dokkum, "Cosmic-ray rejection by Laplacian edge detection", PASP 113, 1420 (2001). C. McCully et
al., astroscrappy 1.3. The network for the median of seven is N. Devillard's, that for nine J. L. Smith's.
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

#: Repaired values come from within this many pixels.
REACH = 2

#: A tile is searched whole if more than one cell in so many is dirty.
FEW = 4

#: A saturated pixel belongs to a star where the median about it exceeds saturation over this.
STAR_CONTRAST = 10.0

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
def _median_of_7(a, b, c, d, e, f, g):
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
            out[k] = _median_of_7(a[k], b[k], c[k], d[k], e[k], f[k], g[k])
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
def _mark_candidates(frame, limits, box, ratio, wanted):
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
                _mark(wanted, y - HALO, x - HALO, GROWTH)


@kernel
def _mark(cells, y, x, reach):
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
def _search_tile(frame, limits, first, wanted, scratch, new):
    """Search the cells of a tile, `first` the uppermost left one; `wanted` is scratch, a flag a cell."""
    tile_planes, cell_planes, flags = scratch
    ny, nx = wanted.shape
    box = Window(first[0] * CELL - HALO, first[1] * CELL - HALO, ny * CELL + 2 * HALO, nx * CELL + 2 * HALO)
    n = box.rows * box.width
    image, noise, ratio = tile_planes[0, :n], tile_planes[1, :n], tile_planes[2, :n]
    _measure_box(frame, limits, box, (image, noise, ratio, tile_planes[3, :n], tile_planes[4, :n]))
    wanted[:] = False
    _mark_candidates(frame, limits, box, ratio, wanted)
    side = CELL + 2 * HALO
    p = cell_planes
    for j in range(ny):
        for i in range(nx):
            if wanted[j, i]:
                cell = Window(box.y + j * CELL, box.x + i * CELL, side, side)
                _cut(image, box.width, j * CELL, i * CELL, cell, p[0])
                _cut(noise, box.width, j * CELL, i * CELL, cell, p[1])
                _cut(ratio, box.width, j * CELL, i * CELL, cell, p[2])
                planes = (p[0], p[1], p[2], p[3], p[4], p[5])
                if _search_cell(frame, limits, cell, planes, (flags[0], flags[1], flags[2])):
                    new[first[0] + j, first[1] + i] = True


@kernel
def _search(frame, limits, dirty, tile, new):
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
    wanted = np.zeros(dirty.shape, np.bool_)
    for top in range(0, dirty.shape[0], tile[0]):
        for left in range(0, dirty.shape[1], tile[1]):
            part = dirty[top : top + tile[0], left : left + tile[1]]
            count = part.sum()
            if FEW * count > part.size:
                _search_tile(
                    frame, limits, (top, left), wanted[: part.shape[0], : part.shape[1]], scratch, new
                )
            elif count > 0:
                for j in range(part.shape[0]):
                    for i in range(part.shape[1]):
                        if part[j, i]:
                            _search_tile(frame, limits, (top + j, left + i), wanted[:1, :1], scratch, new)


# --- Repair -------------------------------------------------------------------------------------------------


@kernel
def _median_of_neighbours(plane, frame, y, x, values):
    """Return the lower median of the good, not struck pixels of 5 x 5, and whether there is one."""
    n = 0
    for j in range(y - REACH, y + REACH + 1):
        for i in range(x - REACH, x + REACH + 1):
            if not (frame.bad[j, i] or frame.struck[j, i]):
                k = n
                while k > 0 and values[k - 1] > plane[j, i]:
                    values[k] = values[k - 1]
                    k -= 1
                values[k] = plane[j, i]
                n += 1
    return values[max(n - 1, 0) // 2], n > 0


@kernel
def _repair(frame, levels, new, dirty):
    """Repair what is struck in new cells and about them; mark the cells that changed values matter to.

    Nothing is struck within 3 pixels of the frame's edge: there :func:`_separable_median` leaves the ratio
    as it is, and the difference is 0. So all windows lie in the frame.

    Returns the number of pixels without a good neighbour, which take the levels of image and variance.
    """
    ny, nx = frame.image.shape
    values = np.zeros((2 * REACH + 1) ** 2, np.float32)
    alone = 0
    for row in range(new.shape[0]):
        for column in range(new.shape[1]):
            if not new[row, column]:
                continue
            for y in range(max(row * CELL - REACH, 0), min((row + 1) * CELL + REACH, ny)):
                for x in range(max(column * CELL - REACH, 0), min((column + 1) * CELL + REACH, nx)):
                    if frame.struck[y, x]:
                        value, found = _median_of_neighbours(frame.image, frame, y, x, values)
                        spread, _ = _median_of_neighbours(frame.variance, frame, y, x, values)
                        if not found:
                            value, spread = levels
                            alone += 1
                        if value != frame.image[y, x] or spread != frame.variance[y, x]:
                            frame.image[y, x] = value
                            frame.variance[y, x] = spread
                            _mark(dirty, y, x, HALO)
    return alone


# --- What is bad from the start -----------------------------------------------------------------------------


@kernel
def _find_stars(image, saturation, star, out):
    """Set `out` at saturated pixels about which the separable median of 7 x 7 is above `star`."""
    ny, nx = image.shape
    middle = np.empty(7, np.float32)
    for y in range(ny):
        saturated = 0
        for x in range(nx):
            saturated += image[y, x] >= saturation
        for x in range(nx if saturated else 0):
            if image[y, x] >= saturation:
                value = image[y, x]
                if 3 <= y < ny - 3 and 3 <= x < nx - 3:
                    for j in range(7):
                        r = image[y - 3 + j, x - 3 : x + 4]
                        middle[j] = _median_of_7(r[0], r[1], r[2], r[3], r[4], r[5], r[6])
                    m = middle
                    value = _median_of_7(m[0], m[1], m[2], m[3], m[4], m[5], m[6])
                out[y, x] = value > star


@kernel
def _dilate(source, reach, out):
    """Set `out` within `reach` of set pixels, without the corners where `reach` is 2.

    Pixels nearer than that to the edge are set only if they were.
    """
    ny, nx = source.shape
    for y in range(ny):
        some = False
        for x in range(nx):
            some |= source[y, x]
        for x in range(nx if some else 0):
            if source[y, x]:
                out[y, x] = True
                for j in range(max(y - reach, reach), min(y + reach + 1, ny - reach)):
                    for i in range(max(x - reach, reach), min(x + reach + 1, nx - reach)):
                        if abs(j - y) + abs(i - x) < 4:
                            out[j, i] = True


def _grow(mask, reach):
    out = np.zeros_like(mask)
    _dilate(mask, reach, out)
    return out


def _bad_pixels(image, mask, saturation):
    """Return the mask grown by a pixel, with the saturated stars grown by four."""
    bad = np.zeros(image.shape, bool) if mask is None else _grow(mask, 1)
    stars = np.zeros(image.shape, bool)
    _find_stars(image, saturation, np.float32(float(saturation) / STAR_CONTRAST), stars)
    return bad | _grow(_grow(stars, 2), 2)


@kernel
def _gather(plane, bad, low, high, kept):
    """Collect good values in [low, high], as many as fit; return how many are good, below, and within."""
    good, below, n = 0, 0, 0
    last = kept.size - 1
    for y in range(plane.shape[0]):
        values, useless = plane[y], bad[y]
        for x in range(values.size):
            good += not useless[x]
            below += (values[x] < low) & (not useless[x])
        for x in range(values.size):
            # Stored in any case, and kept or not: a branch would often be mispredicted.
            kept[min(n, last)] = values[x]
            n += (low <= values[x]) & (values[x] <= high) & (not useless[x])
    return good, below, n


def _lower_median(plane, bad):
    """Return the lower median of the good pixels, 0 if there are none.

    A sample of the pixels says between which values it lies; if it errs, all are sorted.
    """
    sample = np.sort(plane[::29, ::31][~bad[::29, ::31]])
    if sample.size:
        low, high = sample[int(0.48 * sample.size)], sample[int(0.52 * sample.size)]
        kept = np.empty(plane.size // 4 + 1, np.float32)
        good, below, n = _gather(plane, bad, low, high, kept)
        rank = (good - 1) // 2 - below
        if 0 <= rank < n < kept.size:
            return np.partition(kept[:n], rank)[rank]
    values = plane[~bad]
    rank = (values.size - 1) // 2
    return np.partition(values, rank)[rank] if values.size else ZERO


# --- What the stage calls -----------------------------------------------------------------------------------


def detect_cosmics(
    image: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    variance: np.ndarray | None = None,
    gain: float = 1.0,
    readnoise: float,
    satlevel: float,
    sigclip: float = 4.5,
    sigfrac: float = 0.3,
    objlim: float = 5.0,
    iterations: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the pixels of an exposure that cosmic rays struck, and repair them.

    Parameters
    ----------
    image : (ny, nx) array
        The exposure with its sky, in counts; float32 is worked in. On a frame without its sky, and without
        `variance`, the noise is underestimated and much of the frame flagged.
    mask : (ny, nx) bool array, optional
        Pixels that are bad already; they, and the pixels next to them, are neither flagged nor used.
    variance : (ny, nx) array, optional
        In squared counts. Without it the variance is image x gain + readnoise**2, in electrons.
    gain : float
        Electrons per count.
    readnoise : float
        In electrons.
    satlevel : float
        In electrons; infinity for none. Stars with pixels from there up are left alone.
    sigclip : float
        Laplacian of a struck pixel over the noise, at least.
    sigfrac : float
        For the neighbours of a struck pixel, `sigclip` is multiplied by this.
    objlim : float
        Laplacian over fine structure, at least: higher spares the cores of sharp stars.
    iterations : int
        Times that the frame is searched at most; it ends when nothing new is found.

    Returns
    -------
    struck : (ny, nx) bool array
        The pixels found. Within 3 of the frame's edge none is.
    cleaned : (ny, nx) float32 array
        The image in counts, each struck pixel replaced by the lower median of the good ones of 5 x 5 about
        it, or by that of all good pixels where there are none. Other pixels are image x gain / gain.

    Raises
    ------
    ValueError
        If shapes do not fit together, or a parameter is out of its range.

    Notes
    -----
    Same decisions, to the last pixel, as astroscrappy 1.3's ``detect_cosmics(image, inmask=mask,
    invar=variance, sepmed=True, cleantype="medmask", fsmode="median", niter=iterations, ...)``, and the same
    values. A pixel that is not finite in image or variance, which astroscrappy has no answer for, is masked;
    its neighbours see the level of the good pixels in its place, and it comes out as it came in.
    """
    image, mask, variance = _validated_planes(image, mask, variance)
    _validate_parameters(gain, readnoise, satlevel, sigclip, sigfrac, objlim, iterations)
    original = image
    image, mask, variance = _without_infinities(image, mask, variance)

    gain, readnoise, saturation = np.float32(gain), np.float32(readnoise), np.float32(satlevel)
    own = variance is not None
    electrons = image * gain
    spread = variance * (gain * gain) if own else electrons
    bad = _bad_pixels(electrons, mask, saturation)
    frame = Frame(electrons, spread, bad, np.zeros(image.shape, bool))
    limits = Limits(
        np.float32(sigclip),
        np.float32(sigfrac) * np.float32(sigclip),
        np.float32(objlim),
        ZERO if own else readnoise * readnoise,
    )

    def levels():
        level = _lower_median(image, bad) * gain
        return level, _lower_median(variance, bad) * (gain * gain) if own else level

    _iterate(frame, limits, levels, iterations)
    cleaned = electrons
    cleaned /= gain
    if original is not image:
        unknown = ~np.isfinite(original)
        cleaned[unknown] = original[unknown]
    return frame.struck, cleaned


def _iterate(frame, limits, levels, iterations):
    """Search and repair; `levels` are worked out only when a pixel has no good neighbour."""
    dirty = np.ones([-(-n // CELL) for n in frame.image.shape], bool)
    fill = None
    for _ in range(iterations):
        new = np.zeros_like(dirty)
        _search(frame, limits, dirty, TILE_CELLS, new)
        if not new.any():
            break
        dirty[:] = False
        if _repair(frame, fill or (ZERO, ZERO), new, dirty) and fill is None:
            fill = levels()
            _repair(frame, fill, new, dirty)


def _without_infinities(image, mask, variance):
    """Mask the pixels that are not finite, and give them the level of the others."""
    planes = [plane for plane in (image, variance) if plane is not None]
    if all(np.isfinite(plane).all() for plane in planes):
        return image, mask, variance
    unknown = np.any([~np.isfinite(plane) for plane in planes], axis=0)
    mask = unknown if mask is None else mask | unknown
    planes = [np.where(np.isfinite(plane), plane, _lower_median(plane, mask)) for plane in planes]
    return planes[0], mask, planes[1] if variance is not None else None


def _validated_planes(image, mask, variance):
    image = np.ascontiguousarray(image, np.float32)
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"image must be (y, x), with pixels: got shape {image.shape}")
    if mask is not None:
        mask = np.ascontiguousarray(mask, bool)
    if variance is not None:
        variance = np.ascontiguousarray(variance, np.float32)
    for name, plane in (("mask", mask), ("variance", variance)):
        if plane is not None and plane.shape != image.shape:
            raise ValueError(f"{name} must have the image's shape {image.shape}: got {plane.shape}")
    return image, mask, variance


def _validate_parameters(gain, readnoise, satlevel, sigclip, sigfrac, objlim, iterations):
    for name, value in (("gain", gain), ("satlevel", satlevel), ("sigclip", sigclip)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0: got {value}")
    for name, value in (("readnoise", readnoise), ("sigfrac", sigfrac), ("objlim", objlim)):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative: got {value}")
    if not np.all(np.isfinite([gain, readnoise, sigclip, sigfrac, objlim])):
        raise ValueError("gain, readnoise, sigclip, sigfrac and objlim must be finite")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1: got {iterations}")


def precompile() -> None:
    """Call the kernels on a frame with a hit, and one without a good pixel about it."""
    image = np.random.default_rng(0).normal(100, 10, (40, 48)).astype(np.float32)
    image[20, 20] += 1000
    bad = np.zeros(image.shape, dtype=bool)
    bad[5, 5:8] = True
    # Masks grow by one; such a hit is repaired in another way.
    image[30, 30] += 1000
    bad[27:34, 27:34] = True
    bad[29:32, 29:32] = False
    variance = np.full(image.shape, 100, np.float32)
    detect_cosmics(image, mask=bad, variance=variance, gain=1.0, readnoise=0.0, satlevel=9e3)
