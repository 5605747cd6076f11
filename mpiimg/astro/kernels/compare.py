"""Exposures of one sky compared: matched in seeing, their median, and what that does not explain of one.

Every value depends on its neighbourhood alone, summed in the order of rows and columns: not on the tile it is
computed in.

References
----------
Comparison with a median of matched exposures: Y. AlSayyad, LSST DMTN-080; the network that sorts: K. E.
Batcher 1968, doi:10.1145/1468075.1468121.
"""

from __future__ import annotations

import functools

import numpy as np

from mpiimg.kernels.jit import kernel

#: Pixels that are sorted together.
TILE_PIXELS = 256

#: Share of a kernel that must lie on data, for a pixel to be compared.
MIN_SHARE = np.float32(0.75)

#: A share above this is all of it.
_WHOLE = np.float32(0.9999)

_LARGEST = np.float32(np.finfo(np.float32).max)
_NAN, _ONE, _ZERO = np.float32(np.nan), np.float32(1), np.float32(0)
_INFINITY = np.float32(np.inf)

#: Side of the cells that residuals are binned in.
BIN = 4

#: Residuals, in standard deviations, count in a bin by no more than this.
CLIP = np.float32(3)


# --- Matching ---------------------------------------------------------------------------------------------


def gaussian(sigma: float) -> np.ndarray:
    """Return the taps of a gaussian of `sigma` pixels out to 3 sigma, float32, of sum 1; one tap for 0."""
    radius = int(np.ceil(3 * sigma)) if sigma > 0.1 else 0
    offsets = np.arange(-radius, radius + 1.0)
    taps = np.exp(-(offsets**2) / (2 * sigma**2)) if radius else np.ones(1)
    return (taps / taps.sum()).astype(np.float32)


@kernel
def _blur_row(row, taps, line, width):
    """Add up shifted copies of a padded row."""
    for x in range(width):
        line[x] = taps[0] * row[x]
    i = 1
    # Two at a time: sums in the same order, loaded and stored half as often. Taps are odd in number.
    while i < len(taps):
        a, b = taps[i], taps[i + 1]
        left, right = row[i : i + width], row[i + 1 : i + 1 + width]
        for x in range(width):
            line[x] = (line[x] + a * left[x]) + b * right[x]
        i += 2


@kernel
def _blur_rows(ring, taps, first, line):
    """Add up rows of a ring, that of number `first` (in all rows) by the first tap."""
    n = len(taps)
    begin = ring[first % n]
    for x in range(len(line)):
        line[x] = taps[0] * begin[x]
    j = 1
    while j < n:
        a, b = taps[j], taps[j + 1]
        upper, lower = ring[(first + j) % n], ring[(first + j + 1) % n]
        for x in range(len(line)):
            line[x] = (line[x] + a * upper[x]) + b * lower[x]
        j += 2


@kernel
def _match(image, mask, unusable, taps, out):
    """Blur an image over its usable pixels alone, divided by the share of the kernel that lies on these."""
    height, width = image.shape
    n = len(taps)
    r = n // 2
    values, shares = np.zeros((n, width), np.float32), np.zeros((n, width), np.float32)
    whole = np.zeros(n, np.bool_)
    row, there = np.zeros(width + 2 * r, np.float32), np.zeros(width + 2 * r, np.float32)
    full, all_full = np.empty(width, np.float32), np.empty(width, np.float32)
    line = np.empty(width, np.float32)
    # The shares where nothing is missing but what lies beyond the sides.
    there[r : r + width] = _ONE
    _blur_row(there, taps, full, width)
    for j in range(n):
        values[j] = full
    _blur_rows(values, taps, 0, all_full)
    for y in range(-r, height + r):
        slot = (y + n) % n
        if 0 <= y < height:
            source, bits = image[y], mask[y]
            count = 0
            for x in range(width):
                usable = (abs(source[x]) <= _LARGEST) & ((bits[x] & unusable) == 0)
                row[r + x] = source[x] if usable else _ZERO
                there[r + x] = _ONE if usable else _ZERO
                count += 1 if usable else 0
            whole[slot] = count == width
            if count == 0:
                values[slot] = _ZERO
                shares[slot] = _ZERO
            else:
                _blur_row(row, taps, values[slot], width)
                if whole[slot]:
                    shares[slot] = full
                else:
                    _blur_row(there, taps, shares[slot], width)
        else:
            whole[slot] = False
            values[slot] = _ZERO
            shares[slot] = _ZERO
        centre = y - r
        if centre < 0:
            continue
        _blur_rows(values, taps, y - 2 * r + n, line)
        if whole.all():
            share = all_full
        else:
            share = row[r : r + width]
            _blur_rows(shares, taps, y - 2 * r + n, share)
        source, bits, target = image[centre], mask[centre], out[centre]
        for x in range(width):
            usable = (abs(source[x]) <= _LARGEST) & ((bits[x] & unusable) == 0) & (share[x] >= MIN_SHARE)
            value = line[x] if share[x] >= _WHOLE else line[x] / share[x]
            target[x] = value if usable else _NAN


def match(
    image: np.ndarray, mask: np.ndarray, unusable: int, taps: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """Convolve an exposure with a round kernel, over the pixels that hold data.

    Parameters
    ----------
    image : (h, w) float32
    mask : (h, w) int32
    unusable : int
        Bits of the mask of pixels that hold no light of the sky.
    taps : (odd,) float32
        The kernel along either axis, of sum 1.
    out : (h, w) float32, optional
        Where the result goes, C-contiguous.

    Returns
    -------
    (h, w) float32
        NaN at pixels without data, and where less than MIN_SHARE of the kernel lies on data.
    """
    out = np.empty(image.shape, np.float32) if out is None else out
    _match(np.ascontiguousarray(image), np.ascontiguousarray(mask), np.int32(unusable), taps, out)
    return out


# --- Median -----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def network(n: int) -> np.ndarray:
    """Return the comparators, (pairs, 2) int64, that bring the middle two of `n` values to their places.

    Those of Batcher's odd-even merge sort on which the middle two depend.
    """
    pairs, p = [], 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    needed, kept = {(n - 1) // 2, n // 2}, []
    for a, b in reversed(pairs):
        if a in needed or b in needed:
            kept.append((a, b))
            needed |= {a, b}
    return np.array(kept[::-1], np.int64).reshape(-1, 2)


@kernel
def _median(stack, weights, pairs, middle, total):
    """Sort the exposures of each pixel by a network; what is missing is infinite, by turns in both ways."""
    n, height, width = stack.shape
    even = n + n % 2
    values = np.empty((even, TILE_PIXELS), np.float32)
    missing = np.empty(TILE_PIXELS, np.int32)
    weight = np.empty(TILE_PIXELS, np.float32)
    for y in range(height):
        for x0 in range(0, width, TILE_PIXELS):
            m = min(TILE_PIXELS, width - x0)
            missing[:] = 0
            weight[:] = _ZERO
            for k in range(even):
                line = values[k]
                if k == n:
                    for i in range(TILE_PIXELS):
                        line[i] = _INFINITY if (missing[i] & 1) == 0 else -_INFINITY
                        missing[i] += 1
                    continue
                source, own = stack[k, y, x0:], weights[k]
                for i in range(m):
                    there = source[i] == source[i]
                    line[i] = source[i] if there else (_INFINITY if (missing[i] & 1) == 0 else -_INFINITY)
                    missing[i] += 0 if there else 1
                    weight[i] += own if there else _ZERO
            for q in range(len(pairs)):
                low, high = values[pairs[q, 0]], values[pairs[q, 1]]
                for i in range(TILE_PIXELS):
                    a, b = low[i], high[i]
                    low[i] = min(a, b)
                    high[i] = max(a, b)
            a, b = values[even // 2 - 1], values[even // 2]
            target, sums = middle[y, x0:], total[y, x0:]
            for i in range(m):
                sums[i] = weight[i]
                if missing[i] == even:
                    target[i] = _NAN
                elif missing[i] & 1:
                    target[i] = a[i]
                else:
                    target[i] = np.float32(0.5) * (a[i] + b[i])


def median(stack: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the median of exposures at each pixel, of those that are there, and the sum of their weights.

    Parameters
    ----------
    stack : (n, h, w) float32
        NaN where an exposure is missing; no infinity.
    weights : (n,) float32

    Returns
    -------
    middle : (h, w) float32
        The mean of the middle two where their number is even; NaN where there is none.
    total : (h, w) float32
    """
    shape = stack.shape[1:]
    if not len(stack):
        return np.full(shape, _NAN), np.zeros(shape, np.float32)
    middle, total = np.empty(shape, np.float32), np.empty(shape, np.float32)
    pairs = network(len(stack) + len(stack) % 2)
    _median(stack, np.ascontiguousarray(weights, np.float32), pairs, middle, total)
    return middle, total


# --- The light around -------------------------------------------------------------------------------------


@kernel
def _dilate(image, reach, out):
    """Raise every pixel within a disc to the one in its middle: `reach` is half its width, row by row."""
    height, width = image.shape
    r = len(reach) // 2
    runs = np.zeros((r + 1, width + 2 * r), np.float32)
    out[:] = _ZERO
    for y in range(height):
        runs[:] = _ZERO
        base = runs[0]
        for x in range(width):
            base[r + x] = image[y, x] if image[y, x] > _ZERO else _ZERO
        for s in range(1, r + 1):
            before, now = runs[s - 1], runs[s]
            left, right, here = before[: width + 2 * r - 2], before[2:], before[1:]
            target = now[1:]
            for x in range(width + 2 * r - 2):
                target[x] = max(max(left[x], right[x]), here[x])
        for dy in range(-r, r + 1):
            if not 0 <= y + dy < height:
                continue
            line, target = runs[reach[r + dy]][r:], out[y + dy]
            for x in range(width):
                target[x] = max(target[x], line[x])


def dilate(image: np.ndarray, radius: float) -> np.ndarray:
    """Return the largest value of an image within `radius` pixels of each, 0 where none is positive."""
    r = int(radius)
    offsets = np.arange(-r, r + 1)
    reach = np.floor(np.sqrt(radius**2 - offsets**2)).astype(np.int64)
    out = np.empty(image.shape, np.float32)
    _dilate(np.ascontiguousarray(image), reach, out)
    return out


# --- Hits -------------------------------------------------------------------------------------------------

#: What is said of a pixel of an exposure: it stands out, in few enough of all; it has been compared.
HIT, FEW, COMPARED = 1, 2, 4


@kernel
def _hits(matched, corner, sky, cell, model, floor, planes, never, numbers, out):
    """Find what the model does not explain, and bin what is left in standard deviations."""
    height, width = model.shape
    top, left_side = corner
    image, mask = planes
    variance, share, threshold = numbers
    codes, bins, epochs, inputs = out
    score, sky_score = np.zeros(width, np.float32), np.zeros(width, np.float32)
    summed = np.zeros(width, np.float32)
    for y in range(height):
        values, expected, least, bits = matched[top + y, left_side:], model[y], floor[y], mask[y]
        for x0 in range(0, width, cell):
            offset = sky[y // cell, x0 // cell]
            for x in range(x0, min(x0 + cell, width)):
                deviation = values[x] - expected[x] - offset
                light = share * max(expected[x], _ZERO)
                forgiven = least[x] + light * light
                scale = _ONE / np.sqrt(variance + forgiven)
                score[x] = deviation * scale
                # Residuals of stars, side by side in a crowded field, are no trails.
                sky_score[x] = offset * scale if forgiven <= np.float32(2) * variance else _NAN
        line, pixels, hits, there = codes[y], image[y], epochs[y], inputs[y]
        for x in range(width):
            able = (bits[x] & never) == 0
            # A comparison with NaN is false: such a pixel has not been compared.
            compared = able & (abs(score[x]) <= _LARGEST)
            hit = compared & (abs(score[x]) > threshold)
            line[x] = np.uint8((HIT if hit else 0) | (COMPARED if compared else 0))
            hits[x] += np.int16(1 if hit else 0)
            there[x] += np.int16(1 if able & (abs(pixels[x]) <= _LARGEST) else 0)
            left = min(max(score[x], -CLIP), CLIP) + sky_score[x]
            # Nor is what is NaN, near stars.
            summed[x] += left if compared & (not hit) & (left == left) else _ZERO
        if y % BIN == BIN - 1 or y == height - 1:
            target = bins[y // BIN]
            for x in range(width):
                target[x // BIN] += summed[x]
                summed[x] = _ZERO


def hits(
    matched: np.ndarray,
    corner: tuple[int, int],
    sky: np.ndarray,
    cell: int,
    model: np.ndarray,
    floor: np.ndarray,
    planes: tuple[np.ndarray, np.ndarray],
    never: int,
    numbers: tuple[float, float, float],
    epochs: np.ndarray,
    inputs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the pixels of an exposure that the model does not explain.

    Parameters
    ----------
    matched : (rows, columns) float32
        The exposure as the model is seen; NaN where it is not compared.
    corner : (int, int)
        Row and column of it that the first pixel of the other planes is.
    sky : (cells, cells) float32
        Its offset from the model, in cells of `cell` pixels.
    cell : int
    model : (h, w) float32
    floor : (h, w) float32
        What is forgiven, as a variance, whichever the exposure.
    planes : image and mask, (h, w) float32 and int32
        The exposure as it is.
    never : int
        Bits of pixels that hold no data for the coadd; they are never hit.
    numbers : (float, float, float)
        The variance of `matched`; the share of the model's light that is forgiven, as a standard deviation;
        and the standard deviations of a hit.
    epochs, inputs : (h, w) int16
        Numbers of exposures that are hit, and that have data: this one is added.

    Returns
    -------
    codes : (h, w) uint8
        HIT and COMPARED.
    bins : (ceil(h / BIN), ceil(w / BIN)) float32
        Sums of the deviations that are no hits, nor near bright stars, in standard deviations, each at most
        CLIP from `sky`, which is in them: it has steps.
    """
    height, width = model.shape
    codes = np.empty((height, width), np.uint8)
    bins = np.zeros((-(-height // BIN), -(-width // BIN)), np.float32)
    constants = tuple(np.float32(number) for number in numbers)
    out = (codes, bins, epochs, inputs)
    _hits(matched, corner, sky, cell, model, floor, planes, np.int32(never), constants, out)
    return codes, bins


def precompile() -> None:
    """Call the kernels on a small exposure."""
    image, mask = np.ones((12, 20), np.float32), np.zeros((12, 20), np.int32)
    matched = match(image, mask, 1, gaussian(1.0))
    middle, total = median(np.stack([matched] * 2), np.ones(2, np.float32))
    floor = dilate(middle, 2.5) + total
    sky, numbers = np.zeros((1, 1), np.float32), (1.0, 0.1, 5.0)
    counts = np.zeros(image.shape, np.int16), np.zeros(image.shape, np.int16)
    hits(matched, (0, 0), sky, 32, middle, floor, (image, mask), 1, numbers, *counts)
