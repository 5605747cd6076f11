"""PIESNO: the noise level of a slice, from the voxels whose signal over all volumes is noise alone.

The level goes from guess to guess: of the voxels whose mean square the guess explains, a quantile of all
values gives the next one. The quantile is exact: a histogram of the leading 16 bits of the values follows the
voxels that come and go, and the other bits, where there are any, are counted only of the values that share
the leading ones.

References
----------
C. G. Koay, E. Ozarslan, C. Pierpaoli, "Probabilistic Identification and Estimation of Noise (PIESNO)",
J. Magn. Reson. 199, 94 (2009); C. G. Koay, E. Ozarslan, P. J. Basser, J. Magn. Reson. 197, 108 (2009).
"""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel

#: By number of coils, the quantile of the noise that tells the level most exactly (dipy's `opt_quantile`).
QUANTILES = {
    1: 0.79681213002002,
    2: 0.7306303027491917,
    4: 0.6721952960782169,
    8: 0.6254030432343569,
    16: 0.5900487123737876,
    32: 0.5641772300866416,
    64: 0.5455611840489607,
    128: 0.5322811923303339,
}

#: Share of noise voxels that is given up, first guesses that are tried, guesses at most, and the change of
#: the noise level below which it stands.
ALPHA, GUESSES, MAX_GUESSED, CONVERGED = 0.01, 100, 100, 1e-5

#: Values of one digit.
DIGIT_BITS = 16
DIGITS = 1 << DIGIT_BITS

#: The lowest key of a float32.
LOWEST_FLOAT = -(2**31)


def find_noise(values: np.ndarray, coils: int) -> tuple[float, np.ndarray]:
    """Return the noise level of a slice, and where it is noise alone.

    Parameters
    ----------
    values : (V, ny, nx) array of integers or floats
        All volumes of the slice; finite.
    coils : int
        Of the receiver, where their signals are combined by the sum of squares; 1 for a Rician magnitude.

    Returns
    -------
    sigma : float
        In the unit of the values; 0 where all are 0, and not finite or 0 where no voxel is noise.
    noise : (ny, nx) bool array

    Notes
    -----
    Both have the bits of dipy's ``piesno(np.moveaxis(values, 0, -1), coils, return_mask=True)``, but that
    dipy counts noise voxels in 16 bits, which overflow beyond 32767 of them.
    """
    shape = values.shape[1:]
    values = np.ascontiguousarray(values).reshape(len(values), -1)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 1:
        values = values.astype(np.int16)
    noise = np.zeros(values.shape[1], bool)
    if not values.any():
        return 0, noise.reshape(shape)
    quantile = QUANTILES.get(coils, 0.5)
    of_unit = np.sqrt(2 * _chi_quantile(coils, 1, quantile))
    limits = [_chi_quantile(coils, len(values), share) for share in (ALPHA / 2, 1 - ALPHA / 2)]
    ranks = _Ranks(values)
    largest = ranks.percentile(np.ones_like(noise), quantile * 100) / of_unit
    squares = _sum_of_squares(values if ranks.counted else values.astype(np.float32))
    guesses = np.arange(1, GUESSES + 1) * largest / GUESSES
    sigma = _best_guess(np.sort(squares), 2 * len(values) * guesses**2, limits, guesses, largest)
    before = 0
    for _ in range(MAX_GUESSED):
        if np.abs(sigma - before) < CONVERGED:
            break
        # Of values from which somebody has subtracted a level the noise may come out as 0: none fits then.
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = squares / (2 * len(values) * sigma**2)
        noise = (limits[0] <= scaled) & (scaled <= limits[1])
        if not noise.any():
            break
        before, sigma = sigma, ranks.percentile(noise, quantile * 100) / of_unit
    return sigma, noise.reshape(shape)


def _chi_quantile(coils, volumes, share):
    """Return the quantile of the mean of squares over `volumes` values of noise, sigma being 1/sqrt(2)."""
    from scipy.special import gammainccinv

    return gammainccinv(coils * volumes, 1 - share) / volumes


def _best_guess(ordered, scales, limits, guesses, fallback):
    """Return the first guess that explains the most voxels as noise.

    Parameters
    ----------
    ordered : (n,) float32 array
        Sums of squares, ascending.
    scales : (GUESSES,) float64 array
        Their divisors for each guess.
    limits : (float, float)
        Noise then lies between these, both included.
    guesses : (GUESSES,) float64 array
        Noise levels.
    fallback : float
        The guess where none explains any voxel.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        first = _bisect(ordered, lambda sums: sums / scales < limits[0])
        end = _bisect(ordered, lambda sums: sums / scales <= limits[1])
    counts = np.where(scales != 0, end - first, 0)
    return guesses[counts.argmax()] if counts.max() > 0 else fallback


def _bisect(ordered, is_below):
    """Return, for each guess, how many of the ascending numbers `is_below` holds for."""
    low, high = np.zeros(GUESSES, np.intp), np.full(GUESSES, ordered.size)
    while (low < high).any():
        middle = (low + high) // 2
        below = is_below(ordered[np.minimum(middle, ordered.size - 1)]) & (low < high)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        high = np.maximum(low, high)
    return low


@kernel
def _sum_of_squares(values):
    """Return the sums over volumes in float32, volume by volume."""
    total = np.zeros(values.shape[1], np.float32)
    square = np.empty_like(total)
    for volume in range(values.shape[0]):
        # Two loops, so that no product is fused with the sum.
        for i in range(total.size):
            square[i] = np.float32(values[volume, i]) * np.float32(values[volume, i])
        for i in range(total.size):
            total[i] += square[i]
    return total


class _Ranks:
    """The values of some voxels of a slice (V, n), by rank."""

    def __init__(self, values):
        self.values, dtype = values, values.dtype
        self.floating = dtype == np.float32
        #: Other types are rare: numpy sorts them.
        self.counted = dtype in (np.float32, np.int16, np.uint16)
        if self.counted:
            self.bits = values.view(np.int32) if self.floating else values
            self.lowest = LOWEST_FLOAT if self.floating else int(np.iinfo(dtype).min)
            self.inside = np.zeros(values.shape[1], bool)
            self.counts = np.zeros(DIGITS, np.int64)
            self.shared = {}

    def percentile(self, inside, percent):
        """Return ``np.percentile(values[:, inside], percent)``, to the last bit."""
        if not self.counted:
            return np.percentile(self.values[:, inside], percent)
        self._follow(inside)
        n = len(self.values) * np.count_nonzero(inside)
        place = (n - 1) * np.true_divide(percent, 100)
        rank = min(int(np.floor(place)), n - 1)
        low, high = self._of_rank(rank), self._of_rank(min(rank + 1, n - 1))
        share = float(place - rank)
        step = high - low
        return high - step * (1 - share) if share >= 0.5 else low + step * share

    def _follow(self, inside):
        """Bring the counts of leading digits from the voxels that were inside to those that are."""
        for sign, changed in ((1, inside & ~self.inside), (-1, self.inside & ~inside)):
            _count_leading(self.bits, np.flatnonzero(changed), sign, self.lowest, self.counts)
        self.inside = inside.copy()

    def _of_rank(self, rank):
        digit, rank = _find(self.counts, rank)
        if not self.floating:
            return self.values.dtype.type(digit + self.lowest)
        if digit not in self.shared:
            self.shared[digit] = _share(self.bits, digit, self.lowest)
        key = (
            (digit << DIGIT_BITS)
            + _find(_count_rest(*self.shared[digit], self.inside), rank)[0]
            + self.lowest
        )
        return np.int32(key if key >= 0 else key ^ 0x7FFFFFFF).view(np.float32)


@kernel
def _key(bits, lowest):
    """Return an integer from 0 up in the order of the values; those of 32 bits are floats, -0.0 as 0.0."""
    key = np.int64(bits)
    if lowest == LOWEST_FLOAT:
        key ^= (key >> 63) & 0x7FFFFFFF
        key = 0 if key == -1 else key
    # Unsigned, so that it is no index from the end.
    return np.uint64(key - lowest)


@kernel
def _count_leading(bits, places, sign, lowest, counts):
    """Add `sign` to the counts for the leading digit of each value at `places`."""
    shift = np.uint64(DIGIT_BITS if lowest == LOWEST_FLOAT else 0)
    for volume in range(bits.shape[0]):
        row = bits[volume]
        for i in range(places.size):
            counts[_key(row[np.uint64(places[i])], lowest) >> shift] += sign


@kernel
def _share(bits, digit, lowest):
    """Return the voxels and the last digits of the floats whose leading digit is `digit`."""
    leading = np.uint64(digit)
    n = 0
    for volume in range(bits.shape[0]):
        row = bits[volume]
        for i in range(row.size):
            n += _key(row[i], lowest) >> np.uint64(DIGIT_BITS) == leading
    voxels, rest = np.empty(n, np.int32), np.empty(n, np.uint16)
    k = np.uint64(0)
    for volume in range(bits.shape[0]):
        row = bits[volume]
        for i in range(row.size):
            key = _key(row[i], lowest)
            if key >> np.uint64(DIGIT_BITS) == leading:
                voxels[k], rest[k] = i, key & np.uint64(DIGITS - 1)
                k += np.uint64(1)
    return voxels, rest


@kernel
def _count_rest(voxels, rest, inside):
    """Count the last digits that :func:`_share` found, of the voxels inside."""
    counts = np.zeros(DIGITS, np.int64)
    for k in range(voxels.size):
        counts[rest[k]] += inside[voxels[k]]
    return counts


@kernel
def _find(counts, rank):
    """Return the digit of the value of a rank, and its rank among those of that digit."""
    for digit in range(counts.size):
        if rank < counts[digit]:
            return digit, rank
        rank -= counts[digit]
    return counts.size - 1, 0


def precompile() -> None:
    """Call the kernels on a tiny input of each type that images have."""
    for dtype in (np.int16, np.uint16, np.float32):
        find_noise(np.arange(1, 61).reshape(5, 3, 4).astype(dtype), 1)
