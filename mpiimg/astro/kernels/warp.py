"""Resample an exposure onto the pixels of a patch: image, variance and mask in one pass, light conserved.

How depends on `shrink`, the scale of the output over that of the source. Up to :data:`PLAIN` it is Lanczos-3,
and up to :data:`STRETCHED` Lanczos-3 stretched by it, so that no light falls between output pixels. Beyond,
the light of the source's pixels is added up by the area that they share with an output pixel (area.py).

A cell's part of the source is copied beside itself, image and variance interleaved, and each output pixel is
then six vectors multiplied and added. All sums of floats are written out with their fused multiply-adds: no
loop has a tail with other roundings.

Lanczos-3 itself misplaces light by up to 0.02 pixel, as a function of the shift between pixels: it averages
out over a star unless the output has the scale and, to a quarter turn, the orientation of the source. Not
stretched, on pixels 1.27 x as large, it lets some aliases through: stars of 3 pixels FWHM scatter by up to
0.5 % in flux.

References
----------
E. Bertin et al., "The TERAPIX Pipeline", ADASS XI, ASP Conf. Ser. 281, 228 (2002), for SWarp. C. Duchon,
"Lanczos filtering in one and two dimensions", J. Appl. Meteorology 18, 1016 (1979).
"""

from __future__ import annotations

import math

import numpy as np

from mpiimg.astro.kernels import area
from mpiimg.astro.kernels.footprint_sums import TAPS, plain_sums, stretched_sums
from mpiimg.astro.kernels.lanczos import lanczos
from mpiimg.astro.kernels.places import (
    CUBICS,
    NODE_SPACING,
    SHIFT_X,
    SHIFT_Y,
    Cell,
    Nodes,
    Pixels,
    Resampled,
    X,
    Y,
    locate_row,
    measure_row,
    nodes_around,
    source_bounds,
)
from mpiimg.kernels.jit import kernel
from mpiimg.kernels.lanes import LANES

#: Up to this ratio of the output's scale to the source's, Lanczos-3 is not stretched; up to the other it is.
PLAIN, STRETCHED = 1.05, 4.0


@kernel
def _copy_source(source, bounds, row, pixels):
    """Interleave the source's image and variance, `row` pixels per line."""
    y0, y1, x0, x1 = bounds
    for y in range(y0, y1):
        # Slices, so that no index can be negative as far as the compiler knows.
        image, variance = source.image[y, x0:x1], source.variance[y, x0:x1]
        pairs = pixels[2 * (y - y0) * row :]
        for x in range(x1 - x0):
            pairs[2 * x] = image[x]
            pairs[2 * x + 1] = variance[x]


@kernel
def _or_plain(source, bounds, row, flags):
    """OR the masks of the 6 x 6 pixels of each footprint; a pixel then holds those of the one it starts."""
    y0, y1, x0, x1 = bounds
    for y in range(y0, y1):
        mask, line = source.mask[y, x0:x1], flags[(y - y0) * row :]
        for x in range(x1 - x0 - TAPS + 1):
            line[x] = mask[x] | mask[x + 1] | mask[x + 2] | mask[x + 3] | mask[x + 4] | mask[x + 5]
    for y in range(y1 - y0 - TAPS + 1):
        line = flags[y * row : (y + 1) * row]
        a, b, c = flags[(y + 1) * row :], flags[(y + 2) * row :], flags[(y + 3) * row :]
        d, e = flags[(y + 4) * row :], flags[(y + 5) * row :]
        for x in range(row):
            line[x] |= a[x] | b[x] | c[x] | d[x] | e[x]


@kernel
def _or_stretched(source, bounds, row, flags, taps):
    """Do the same for footprints of taps x taps pixels."""
    y0, y1, x0, x1 = bounds
    for y in range(y0, y1):
        mask, line = source.mask[y, x0:x1], flags[(y - y0) * row : (y - y0 + 1) * row]
        line[:] = 0
        for tap in range(taps):
            part = mask[tap:]
            for x in range(x1 - x0 - taps + 1):
                line[x] |= part[x]
    for y in range(y1 - y0 - taps + 1):
        line = flags[y * row : (y + 1) * row]
        for tap in range(1, taps):
            part = flags[(y + tap) * row :]
            for x in range(row):
                line[x] |= part[x]


@kernel
def _fill_row(cell, r, columns, origin, row, buffers, table, width, scale, no_data, out):
    """Write one output row of a cell; `out` are its four lines, `columns` the cell's pixels in it.

    `width` is that of the table where its kernel is stretched, and None where it is plain: so numba compiles
    a function for each. In one, the sums of both would take three times as long.
    """
    pixels, flags = buffers
    image, variance, mask, variance_ls = out
    place, before = cell.place[r], table.taps // 2 - 1
    for n in range(columns[0], columns[1]):
        k = n - columns[0]
        value = noise = np.float32(np.nan)
        squares = np.float32(1)
        mask[k] = 0
        if place[X, n] >= 0:
            o = (place[Y, n] - before - origin[0]) * row + place[X, n] - before - origin[1]
            shift_x, shift_y = place[SHIFT_X, n], place[SHIFT_Y, n]
            if width is None:
                x, y = LANES * shift_x, LANES * shift_y
                value, noise = plain_sums(pixels, 2 * o, 2 * row, table.weights, x, y)
            else:
                x, y = width * shift_x, width * shift_y
                value, noise = stretched_sums(pixels, 2 * o, 2 * row, table.weights, table.taps, width, x, y)
            squares = table.squares[shift_x] * table.squares[shift_y]
            mask[k] = flags[o]
        jacobian = cell.area[r, n]
        factor = jacobian * scale
        value, pixel_noise = value * factor, noise * (factor * factor)
        finite = math.isfinite(value) and math.isfinite(pixel_noise)
        image[k] = value if finite else np.float32(np.nan)
        variance[k] = pixel_noise if finite else np.float32(np.inf)
        # The mean variance by the same weights, over so many source pixels.
        variance_ls[k] = noise / squares * (factor * scale) if finite else np.float32(np.inf)
        if not finite:
            mask[k] |= no_data


@kernel
def _resample_cells(source, nodes, box, cubics, table, width, scale, no_data, out):
    """Resample cell by cell by Lanczos-3; see :func:`resample`, and :func:`_fill_row` for `width`."""
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
                locate_row(nodes, cubics, where, k, source.image.shape, table.taps, cell, r)
                measure_row(nodes, cubics, where, k, cell.area[r])
            bounds = source_bounds(cell, bottom - top, columns, table.taps)
            row = bounds[3] - bounds[2]
            size = (bounds[1] - bounds[0]) * row
            if size > flags.size:
                pixels, flags = np.zeros(2 * size + LANES, np.float32), np.zeros(size, source.mask.dtype)
            _copy_source(source, bounds, row, pixels)
            if width is None:
                _or_plain(source, bounds, row, flags)
            else:
                _or_stretched(source, bounds, row, flags, table.taps)
            x0, x1 = left - x_start, right - x_start
            for r in range(bottom - top):
                y = top + r - y_start
                lines = (
                    out.image[y, x0:x1],
                    out.variance[y, x0:x1],
                    out.mask[y, x0:x1],
                    out.variance_ls[y, x0:x1],
                )
                corner = bounds[0], bounds[2]
                _fill_row(cell, r, columns, corner, row, (pixels, flags), table, width, scale, no_data, lines)


def resample(image, variance, mask, grid, box, scale=1.0, no_data=0, shrink=1.0, excluded=0) -> Resampled:
    """Resample an exposure onto a box of output pixels; the sum of light is conserved.

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
    shrink : float
        Scale of the output over that of the source, one number for all boxes of an exposure. It chooses how
        light is gathered; how much of it follows from the grid.
    excluded : int
        Bits of pixels that are left out where light is added up by area, which then counts the others for
        them.

    Returns
    -------
    Resampled
        (y1 - y0, x1 - x0). NaN, inf and `no_data` where the footprint leaves the source or holds a value that
        is not finite. Image, up to a `shrink` of STRETCHED: sum of w image, w the product of the weights
        along x and y, which add up to one, times Jacobian (source pixels that an output pixel covers) and
        scale.
        Variance: sum of w^2 variance, times the square of both. Mask: all bits in the footprint.
        `variance_ls`: the mean variance, weighted by w^2, times Jacobian and the square of scale: what sums
        over many output pixels have per pixel, whose noise is correlated. Beyond, see
        :func:`mpiimg.astro.kernels.area.gather`.

    Raises
    ------
    ValueError
        If shapes differ or the grid does not reach around the box.
    """
    if not image.shape == variance.shape == mask.shape:
        raise ValueError(f"planes of different shapes: {image.shape}, {variance.shape}, {mask.shape}")
    (y0, y1), (x0, x1) = box
    shape = max(y1 - y0, 0), max(x1 - x0, 0)
    out = Resampled(
        np.empty(shape, np.float32),
        np.empty(shape, np.float32),
        np.empty(shape, mask.dtype),
        np.empty(shape, np.float32),
    )
    if 0 in shape:
        return out
    nodes = nodes_around(grid, box)
    source, bounds = Pixels(image, variance, mask), ((int(y0), int(y1)), (int(x0), int(x1)))
    factor, empty = np.float32(scale), mask.dtype.type(no_data)
    if shrink > STRETCHED:
        area.gather(source, nodes, bounds, factor, empty, mask.dtype.type(excluded), out)
    else:
        table = lanczos(float(shrink) if shrink > PLAIN else 1.0)
        width = None if table.taps == TAPS else table.width
        _resample_cells(source, nodes, bounds, CUBICS, table, width, factor, empty, out)
    return out


def precompile() -> None:
    """Call the kernels on a frame."""
    image = np.random.default_rng(0).normal(100, 10, (40, 48)).astype(np.float32)
    rows, columns = np.indices((5, 5)) * float(NODE_SPACING)
    box, nodes = ((32, 60), (32, 70)), Nodes(columns, rows, 0, 0)
    planes = image, np.full_like(image, 100), np.zeros(image.shape, np.int32)
    for shrink in (PLAIN, STRETCHED, 2 * STRETCHED):
        resample(*planes, nodes, box, np.float64(1), 1, shrink)
