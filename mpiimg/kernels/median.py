"""Exact median filter of a volume, a z-block at a time.

A box of outputs (a tile) is filtered at once. Its values become codes of 12
bits that keep their order and fill all codes about evenly. The upper six bits
of each median are found by counting, for the few levels that matter, how many
values of every window lie below the level: box sums that run over whole planes.
The lower six bits come from histograms of columns that slide along y, summed
over the columns under a window. Values that share the code of the median are
then looked up in the columns that hold them: the result is exact.

Sliding histograms: T. S. Huang, G. J. Yang, G. Y. Tang, IEEE Trans. ASSP 27
(1979) 13. Column histograms on two levels: S. Perreault, P. Hebert, IEEE
Trans. Image Processing 16 (2007) 2389.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .jit import kernel

#: A code is `bucket * FINE + bin`: COARSE buckets, each of FINE bins.
COARSE = 64
FINE = 64
CODES = COARSE * FINE

#: Outputs of a tile along z, y and x, at most.
TILE = (16, 32, 32)

#: A window of (2 radius + 1)^3 values is counted in 16 bits.
LARGEST_RADIUS = 19

_EMPTY = np.int32(2**31 - 1)


def median_filter(block: np.ndarray, radius: int) -> np.ndarray:
    """Filter a z-block by the median of a cube of (2 radius + 1)^3 voxels.

    The result is the element of rank (2 radius + 1)^3 // 2 of each window, as
    ``scipy.ndimage.median_filter(volume, size=2 * radius + 1, mode="reflect")``
    gives it, whatever the thickness of the block.

    Parameters
    ----------
    block : (nz + 2 radius, ny, nx) float32
        The block with its halo in z, which the caller extends at the ends of
        the volume (``np.pad`` mode "symmetric"). y and x are extended here.
        No NaN. Infinities are ordered as any other value.
    radius : int
        0 to 19 voxels.

    Returns
    -------
    (nz, ny, nx) float32
        Zeros are positive: -0.0 counts as equal to 0.0, and comes out as 0.0.

    Raises
    ------
    TypeError
        The block is not float32.
    ValueError
        The radius is out of range, or the block is thinner than its halo.
    """
    block = np.asarray(block)
    if block.dtype != np.float32:
        raise TypeError(f"median_filter takes float32, not {block.dtype}")
    if not 0 <= radius <= LARGEST_RADIUS:
        raise ValueError(f"a median radius is 0 to {LARGEST_RADIUS} voxels, not {radius}")
    if block.ndim != 3 or block.shape[0] <= 2 * radius:
        raise ValueError(f"a block of shape {block.shape} has no plane within its halo of {radius}")
    keys = _ordered(np.ascontiguousarray(block).view(np.int32))
    if radius:
        keys = _filter_keys(keys, radius)
    return _ordered(keys).view(np.float32)


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Turn the bits of floats into integers of the same order (-0.0 as 0.0), or back."""
    keys = bits ^ ((bits >> 31) & np.int32(2**31 - 1))
    keys[keys == -1] = 0
    return keys


def _filter_keys(keys: np.ndarray, radius: int) -> np.ndarray:
    window = 2 * radius + 1
    shape = (keys.shape[0] - 2 * radius, *keys.shape[1:])
    rows, columns = (_extension(n, radius) for n in shape[1:])
    out = np.empty(shape, np.int32)
    count_type = np.uint8 if window**2 < 2**8 else np.uint16
    for z, y, x in _tiles(shape):
        tile = keys[z.start : z.stop + 2 * radius]
        tile = np.take(
            np.take(tile, rows[y.start : y.stop + 2 * radius], 1), columns[x.start : x.stop + 2 * radius], 2
        )
        if tile.min() == tile.max():
            out[z, y, x] = tile[0, 0, 0]
            continue
        codes, first, last = _encode(tile)
        bucket, below = _find_buckets(codes, window, count_type)
        _find_values(
            tile, codes, (first, last), (bucket, below), window, np.zeros(0, count_type), out[z, y, x]
        )
    return out


def _extension(n: int, radius: int) -> np.ndarray:
    """Return the indices that extend an axis of `n` voxels symmetrically, as often as it takes."""
    index = np.arange(-radius, n + radius) % (2 * n)
    return np.where(index < n, index, 2 * n - 1 - index)


def _tiles(shape):
    """Cut a shape into tiles of nearly equal extents, none above TILE."""
    cuts = []
    for n, largest in zip(shape, TILE, strict=True):
        edges = np.linspace(0, n, -(-n // largest) + 1).astype(int)
        cuts.append([slice(a, b) for a, b in pairwise(edges)])
    return [(z, y, x) for z in cuts[0] for y in cuts[1] for x in cuts[2]]


@kernel
def _encode(keys):
    """Give every key a code of the same order, such that all codes are about equally frequent.

    Returns the codes (uint16, the shape of the keys) and, for each code, the
    smallest and the largest key that has it.
    """
    flat = keys.ravel()
    low = np.int64(flat.min())
    span = np.int64(flat.max()) - low
    shift = 0
    while (span >> shift) >= CODES:
        shift += 1
    mask = (np.int64(1) << shift) - 1
    count = np.zeros(CODES, np.int64)
    for key in flat:
        count[(key - low) >> shift] += 1
    start = np.zeros(CODES + 1, np.int64)
    total = 0
    for i in range(CODES):
        start[i] = total * CODES // flat.size
        total += count[i]
    start[CODES] = CODES
    codes = np.empty(flat.size, np.uint16)
    first = np.full(CODES, _EMPTY, np.int32)
    last = np.full(CODES, -_EMPTY - 1, np.int32)
    for i in range(flat.size):
        offset = flat[i] - low
        bin = offset >> shift
        code = start[bin] + (((offset & mask) * (start[bin + 1] - start[bin])) >> shift)
        codes[i] = code
        first[code] = min(first[code], flat[i])
        last[code] = max(last[code], flat[i])
    return codes.reshape(keys.shape), first, last


def _find_buckets(codes, window, count_type):
    """Find the bucket of every median, and how many values of its window lie in lower buckets."""
    depth, height, width = codes.shape
    buckets = (codes // FINE).astype(np.uint8).reshape(depth, -1)
    shape = (depth - window + 1, height - window + 1, width)
    bucket = np.zeros(shape, np.uint8)
    below = np.zeros(shape, np.uint16)
    scratch = np.empty((2, height * width), count_type), np.empty(width, np.uint16)
    middle = COARSE // 2
    for level in range(middle, COARSE):
        smallest, _ = _count_below(buckets, level, window, scratch, bucket, below)
        if smallest > window**3 // 2:
            break
    for level in range(middle - 1, 0, -1):
        _, largest = _count_below(buckets, level, window, scratch, bucket, below)
        if largest <= window**3 // 2:
            bucket += np.uint8(level - 1)
            break
    return bucket, below


@kernel
def _count_below(buckets, level, window, scratch, bucket, below):
    """Count the values below `level` in every window, and raise the bucket of medians at or above it.

    Returns the smallest and the largest count of the tile.
    """
    (column, row), running = scratch
    depth, size = buckets.shape
    _, height, width = bucket.shape
    valid = width - window + 1
    target = window**3 // 2
    smallest, largest = np.uint16(2**16 - 1), np.uint16(0)
    column[:] = 0
    for z in range(depth):
        entering = buckets[z]
        for i in range(size):
            column[i] += entering[i] < level
        if z >= window:
            leaving = buckets[z - window]
            for i in range(size):
                column[i] -= leaving[i] < level
        if z < window - 1:
            continue
        for i in range(size):
            row[i] = column[i]
        for shift in range(1, window):
            for i in range(size - shift):
                row[i] += column[i + shift]
        running[:] = 0
        for y in range(window - 1):
            for x in range(valid):
                running[x] += row[y * width + x]
        for y in range(height):
            head = row[(y + window - 1) * width :]
            tail = row[y * width :]
            own_bucket = bucket[z - window + 1, y]
            own_below = below[z - window + 1, y]
            for x in range(valid):
                n = np.uint16(running[x] + head[x])
                running[x] = n - tail[x]
                reached = n <= target
                own_bucket[x] += reached
                own_below[x] = max(own_below[x], n if reached else np.uint16(0))
                smallest = min(smallest, n)
                largest = max(largest, n)
    return smallest, largest


@kernel
def _find_values(keys, codes, extremes, coarse, window, count_like, out):
    """Find the key of every median, given its bucket and the count of values in lower buckets."""
    first, last = extremes
    bucket, below = coarse
    depth, height, width = keys.shape
    lanes = (window + 15) // 16 * 16
    # Slot z % window of the last axis holds plane z: a column needs no order along z.
    key_ring = np.full((width, height, lanes), _EMPTY, np.int32)
    code_ring = np.zeros((width, height, lanes), np.uint16)
    columns = np.zeros((width, CODES), count_like.dtype)
    segment = np.zeros(FINE, np.uint16)
    found = np.empty(window**3, np.int32)
    target = window**3 // 2
    for z in range(depth):
        _store_plane(keys[z], codes[z], z % window, key_ring, code_ring)
        if z < window - 1:
            continue
        plane = z - window + 1
        columns[:] = 0
        for y in range(height - window + 1):
            _slide_columns(code_ring, columns, y, window)
            held = -1
            for x in range(width - window + 1):
                start = bucket[plane, y, x] * FINE
                if start == held:
                    entering = columns[x + window - 1, start : start + FINE]
                    leaving = columns[x - 1, start : start + FINE]
                    for i in range(FINE):
                        segment[i] += entering[i] - leaving[i]
                else:
                    segment[:] = 0
                    for c in range(x, x + window):
                        for i in range(FINE):
                            segment[i] += columns[c, start + i]
                    held = start
                wanted = target - below[plane, y, x]
                code, wanted = _find_bin(segment, wanted)
                n = segment[code]
                code += start
                low, high = first[code], last[code]
                if low == high:
                    out[plane, y, x] = low
                else:
                    out[plane, y, x] = _pick(
                        key_ring, columns, (x, y, window), code, (low, high), n, wanted, found
                    )
    return out


@kernel
def _store_plane(keys, codes, slot, key_ring, code_ring):
    height, width = keys.shape
    for y in range(height):
        for x in range(width):
            key_ring[x, y, slot] = keys[y, x]
            code_ring[x, y, slot] = codes[y, x]


@kernel
def _slide_columns(codes, columns, y, window):
    """Bring the histograms of all columns to the rows y to y + window - 1."""
    width = codes.shape[0]
    for x in range(width):
        histogram = columns[x]
        if y == 0:
            for row in range(window - 1):
                for slot in range(window):
                    histogram[codes[x, row, slot]] += 1
        else:
            for slot in range(window):
                histogram[codes[x, y - 1, slot]] -= 1
        for slot in range(window):
            histogram[codes[x, y + window - 1, slot]] += 1


@kernel
def _find_bin(segment, wanted):
    """Return the bin that holds the value of rank `wanted`, and the rank within the bin."""
    # No branch depends on the data: a mispredicted exit would cost more than the adds it saves.
    total, bin, before = 0, 0, 0
    for i in range(FINE):
        total += segment[i]
        passed = total <= wanted
        bin += passed
        before = total if passed else before
    return bin, wanted - before


@kernel
def _pick(keys, columns, place, code, bounds, n, wanted, found):
    """Return the key of rank `wanted` among the `n` keys with this code in the window at `place`."""
    x, y, window = place
    low, high = bounds
    lanes = keys.shape[2]
    size = 0
    for c in range(x, x + window):
        here = columns[c, code]
        if here == 0:
            continue
        rows = keys[c, y : y + window].reshape(window * lanes)
        if n == 1:
            best = _EMPTY
            for i in range(rows.size):
                inside = rows[i] >= low and rows[i] <= high
                best = min(best, rows[i] if inside else _EMPTY)
            return best
        for i in range(rows.size):
            if rows[i] >= low and rows[i] <= high:
                found[size] = rows[i]
                size += 1
    candidates = found[:size]
    candidates.sort()
    return candidates[wanted]
