"""Exact median filter of a volume, a z-block at a time.

A box of outputs (a tile) is filtered at once. Its values become codes of 13
bits, which keep their order and are about equally frequent: the upper six bits
are a bucket, the lower seven a bin of the bucket. Every column of the window
(its values along z and y) has its histogram, which slides along y.
Buckets are counted cumulatively: a bucket's count takes in all buckets below
it, so that the bucket of a median is the number of counts that do not reach it,
and no loop depends on the data. Bins are counted in the one bucket that matters.
Values that share bucket and bin with the median are looked up in the columns
that hold them: the result is exact, and does not depend on the tile.

Sliding histograms: T. S. Huang, G. J. Yang, G. Y. Tang, IEEE Trans. ASSP 27
(1979) 13. Histograms of columns, on two levels: S. Perreault, P. Hebert, IEEE
Trans. Image Processing 16 (2007) 2389.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from mpiimg.kernels.jit import kernel

#: A code is `bucket * FINE + bin`: COARSE buckets, each of FINE bins.
COARSE = 64
FINE = 128
CODES = COARSE * FINE

#: Outputs of a tile along z, y and x, at most.
TILE = (16, 48, 48)

#: Along an axis: a window of at most 39^3 values is counted in 16 bits.
MAX_RADIUS = 19

#: Pieces of the range of a tile; codes are linear within each.
_PIECES = 2048

#: Keys of one bin that are gone through one by one.
_FEW = 16

#: Above the key of any number.
_EMPTY = np.int32(2**31 - 1)

#: Times this, a word of four counts becomes a word of their running sums.
_PREFIX = np.uint64(0x0001000100010001)


def median_filter(block: np.ndarray, radius: int | tuple[int, int, int]) -> np.ndarray:
    """Filter a z-block by the median of a box of 2 radius + 1 voxels along each axis.

    The result is the element of rank n // 2 of the n values of each window, as
    ``scipy.ndimage.median_filter(volume, size, mode="reflect")`` gives it for the
    size 2 radius + 1 of each axis, whatever the thickness of the block.

    Parameters
    ----------
    block : (nz + 2 radius, ny, nx) float32
        The block with its halo in z, which the caller extends at the ends of
        the volume (``np.pad`` mode "symmetric"). y and x are extended here.
        No NaN. Infinities are ordered as any other value.
    radius : int or (int, int, int)
        Along z, y and x, or along all of them; 0 to 19 voxels.

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
    radii = (radius,) * 3 if isinstance(radius, int | np.integer) else tuple(radius)
    if not all(0 <= one <= MAX_RADIUS for one in radii):
        raise ValueError(f"a median radius is 0 to {MAX_RADIUS} voxels, not {radius}")
    if block.ndim != 3 or block.shape[0] <= 2 * radii[0]:
        raise ValueError(f"a block of shape {block.shape} has no plane within its halo of {radii[0]}")
    keys = _ordered(np.ascontiguousarray(block).view(np.int32))
    if any(radii):
        keys = _filter_keys(keys, radii)
    return _ordered(keys).view(np.float32)


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Turn the bits of floats into integers of the same order (-0.0 as 0.0), or back."""
    keys = bits ^ ((bits >> 31) & np.int32(2**31 - 1))
    keys[keys == -1] = 0
    return keys


def _filter_keys(keys: np.ndarray, radii: tuple[int, int, int]) -> np.ndarray:
    window = tuple(2 * radius + 1 for radius in radii)
    halo = tuple(2 * radius for radius in radii)
    shape = (keys.shape[0] - halo[0], *keys.shape[1:])
    rows, columns = (_extension(n, radius) for n, radius in zip(shape[1:], radii[1:], strict=True))
    out = np.empty(shape, np.int32)
    count_type = np.uint8 if window[0] * window[1] < 2**8 else np.uint16
    for z, y, x in _tiles(shape):
        tile = keys[z.start : z.stop + halo[0]]
        tile = np.take(tile, rows[y.start : y.stop + halo[1]], 1)
        tile = np.take(tile, columns[x.start : x.stop + halo[2]], 2)
        low, high = tile.min(), tile.max()
        if low == high:
            out[z, y, x] = low
            continue
        codes, first, last = _encode(tile, low, high)
        out[z, y, x] = _find_values(tile, codes, (first, last), window, np.zeros(0, count_type))
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
def _encode(keys, low, high):
    """Give every key a code of the same order, such that all codes are about equally frequent.

    Returns the codes (uint16, the shape of the keys) and, for each code, the
    smallest and the largest key that has it.
    """
    flat = keys.reshape(-1)
    low, span = np.int64(low), np.int64(high) - np.int64(low)
    shift = 0
    while (span >> shift) >= _PIECES:
        shift += 1
    mask = (np.int64(1) << shift) - 1
    count = np.zeros(_PIECES, np.int32)
    for key in flat:
        count[(key - low) >> shift] += 1
    start = np.empty(_PIECES + 1, np.int32)
    total = 0
    for i in range(_PIECES):
        start[i] = total * CODES // flat.size
        total += count[i]
    start[_PIECES] = CODES
    codes = np.empty(flat.size, np.uint16)
    first = np.full(CODES, _EMPTY, np.int32)
    last = np.full(CODES, -_EMPTY - 1, np.int32)
    for i in range(flat.size):
        offset = flat[i] - low
        piece = offset >> shift
        code = start[piece] + (((offset & mask) * (start[piece + 1] - start[piece])) >> shift)
        codes[i] = code
        first[code] = min(first[code], flat[i])
        last[code] = max(last[code], flat[i])
    return codes.reshape(keys.shape), first, last


@kernel
def _find_values(keys, codes, extremes, window, count_like):
    """Find the key of every median of a tile, plane by plane and row by row."""
    depth, height, width = keys.shape
    deep, high, wide = window
    out = np.empty((depth - deep + 1, height - high + 1, width - wide + 1), np.int32)
    lanes = (deep + 15) // 16 * 16
    # Slot z % deep of the last axis holds plane z: a column needs no order along z.
    key_ring = np.full((width, height, lanes), _EMPTY, np.int32)
    code_ring = np.full((width, height, lanes), CODES, np.uint16)
    lines = np.zeros((height, width * COARSE), np.uint8)
    coarse = np.empty(width * COARSE, count_like.dtype)
    # One bucket too many: lines a power of two apart would all meet in the same few sets of the cache.
    fine = np.empty((width, COARSE + 1, FINE), count_like.dtype)
    steps = _steps()
    bucket, rank = np.empty((2, width), np.uint16)
    for z in range(depth):
        _enter_plane(keys[z], codes[z], z % deep, (key_ring, code_ring), lines, steps)
        if z < deep - 1:
            continue
        fine[:] = 0
        coarse[:] = 0
        for y in range(height - high + 1):
            _slide_columns(code_ring, fine, y, (deep, high))
            _slide_buckets(lines, coarse, y, high)
            _find_buckets(coarse, (wide, deep * high * wide // 2), bucket, rank)
            _find_row((key_ring, y), fine, extremes, (bucket, rank), (high, wide), out[z - deep + 1, y])
    return out


@kernel
def _steps():
    """Return the lines that a value of each bucket adds to cumulative counts; none for no value."""
    steps = np.zeros((COARSE + 1, COARSE), np.uint8)
    for bucket in range(COARSE):
        steps[bucket, bucket:] = 1
    return steps


@kernel
def _enter_plane(keys, codes, slot, rings, lines, steps):
    """Store a plane in place of the one that leaves the window, and update the counts along z."""
    key_ring, code_ring = rings
    height, width = keys.shape
    for y in range(height):
        for x in range(width):
            entering = steps[codes[y, x] // FINE]
            leaving = steps[code_ring[x, y, slot] // FINE]
            line = lines[y, x * COARSE : (x + 1) * COARSE]
            for i in range(COARSE):
                line[i] += entering[i] - leaving[i]
            key_ring[x, y, slot] = keys[y, x]
            code_ring[x, y, slot] = codes[y, x]


@kernel
def _slide_columns(codes, fine, y, window):
    """Bring the histograms of all columns from the rows before y to y ... y + high - 1."""
    deep, high = window
    for x in range(codes.shape[0]):
        bins = fine[x].reshape(-1)
        if y > 0:
            for slot in range(deep):
                bins[codes[x, y - 1, slot]] -= 1
        for row in range(y + high - 1 if y > 0 else 0, y + high):
            for slot in range(deep):
                bins[codes[x, row, slot]] += 1


@kernel
def _slide_buckets(lines, coarse, y, high):
    """Do the same for the counts in buckets, which are the sums of counts along z."""
    if y > 0:
        leaving = lines[y - 1]
        for i in range(coarse.size):
            coarse[i] -= leaving[i]
    for row in range(y + high - 1 if y > 0 else 0, y + high):
        entering = lines[row]
        for i in range(coarse.size):
            coarse[i] += entering[i]


@kernel
def _find_buckets(coarse, wide_target, bucket, rank):
    """Find the bucket of each median of a row, and its rank among the values in that bucket."""
    wide, target = wide_target[0], np.uint16(wide_target[1])
    total = np.zeros(COARSE, np.uint16)
    for i in range((wide - 1) * COARSE):
        total[i % COARSE] += coarse[i]
    for x in range(bucket.size - wide + 1):
        entering = coarse[(x + wide - 1) * COARSE : (x + wide) * COARSE]
        leaving = coarse[x * COARSE : (x + 1) * COARSE]
        lower = np.uint16(0)
        for i in range(COARSE):
            below = np.uint16(total[i] + entering[i])
            total[i] = below - leaving[i]
            lower += np.uint16(below <= target)
        bucket[x] = lower
        rank[x] = target
        if lower:
            rank[x] -= np.uint16(total[lower - 1] + leaving[lower - 1])


@kernel
def _find_row(keys, fine, extremes, places, window, out):
    """Find the keys of a row of medians, given their buckets and ranks within the bucket.

    ``keys[x]`` are those of column x, and ``fine[x]`` its histogram.
    """
    first, last = extremes
    buckets, ranks = places
    high, wide = window
    counts = np.zeros(FINE, np.uint16)
    quads = counts.view(np.uint64)
    held = -1
    for x in range(out.size):
        bucket = buckets[x]
        if bucket == held:
            entering, leaving = fine[x + wide - 1, bucket], fine[x - 1, bucket]
            for i in range(FINE):
                counts[i] += entering[i] - leaving[i]
        else:
            alone = fine[x, bucket]
            for i in range(FINE):
                counts[i] = alone[i]
            # Two columns a step: the sums go through memory, and each step waits for the one before.
            for column in range(x + 1, x + wide, 2):
                one, other = fine[column, bucket], fine[column + 1, bucket]
                for i in range(FINE):
                    counts[i] += np.uint16(one[i]) + np.uint16(other[i])
            held = bucket
        bin, rank = _find_bin(quads, np.uint64(ranks[x]))
        code = bucket * FINE + bin
        if first[code] == last[code]:
            out[x] = first[code]
        else:
            columns = (x, x + wide, high)
            out[x] = _pick(keys, fine, columns, (bucket, bin), (first[code], last[code]), rank)


@kernel
def _find_bin(quads, rank):
    """Return the bin that holds the value of rank `rank`, and the rank within the bin.

    Four counts of 16 bits lie in each word of `quads`; a product sums them up.
    No branch depends on the data: one mispredicted exit would cost more than all steps.
    """
    word, before, total = 0, np.uint64(0), np.uint64(0)
    for group in range(0, FINE // 4 - 4, 4):
        words = quads[group] + quads[group + 1] + quads[group + 2] + quads[group + 3]
        total += (words * _PREFIX) >> np.uint64(48)
        passed = total <= rank
        word += 4 * passed
        before = total if passed else before
    total = before
    start = word
    for i in range(3):
        total += (quads[start + i] * _PREFIX) >> np.uint64(48)
        passed = total <= rank
        word += passed
        before = total if passed else before
    rank -= before
    sums = quads[word] * _PREFIX
    bin, before = 4 * word, np.uint64(0)
    for i in range(3):
        total = (sums >> np.uint64(16 * i)) & np.uint64(0xFFFF)
        passed = total <= rank
        bin += passed
        before = total if passed else before
    return bin, rank - before


@kernel
def _pick(keys, fine, columns, place, bounds, bin_rank):
    """Return the key of rank `bin_rank` in a bin whose keys lie within `bounds`.

    Halves the bounds while many keys are below the one that is looked for, then goes from key to key.
    """
    ring, y = keys
    start, stop, high = columns
    bucket, bin = place
    low, top = bounds
    rank = np.int64(bin_rank)
    while rank > _FEW and low < top:
        middle = np.int32((np.int64(low) + np.int64(top)) // 2)
        n = 0
        for x in range(start, stop):
            if fine[x, bucket, bin]:
                n += _count_within(ring[x, y : y + high].reshape(-1), low, middle)
        if n <= rank:
            rank -= n
            low = np.int32(middle + 1)
        else:
            top = middle
    while low < top:
        best = top
        for x in range(start, stop):
            if fine[x, bucket, bin]:
                best = min(best, _smallest_from(ring[x, y : y + high].reshape(-1), low))
        if rank == 0:
            return best
        for x in range(start, stop):
            if fine[x, bucket, bin]:
                rank -= _count_within(ring[x, y : y + high].reshape(-1), best, best)
        if rank < 0:
            return best
        low = np.int32(best + 1)
    return top


@kernel
def _smallest_from(keys, low):
    best = _EMPTY
    for i in range(keys.size):
        best = min(best, keys[i] if keys[i] >= low else _EMPTY)
    return best


@kernel
def _count_within(keys, low, high):
    n = np.int32(0)
    for i in range(keys.size):
        n += np.int32((keys[i] >= low) & (keys[i] <= high))
    return n


def precompile() -> None:
    """Call the filter on a tiny input of each type that the brain mask gives it."""
    block = np.random.default_rng(0).random((7, 6, 5), dtype=np.float32)
    median_filter(block, 1)
    # Wider than a tile: what a tile puts out is then not contiguous, and a type of its own.
    median_filter(np.random.default_rng(0).random((3, 2, TILE[2] + 1), dtype=np.float32), 1)
