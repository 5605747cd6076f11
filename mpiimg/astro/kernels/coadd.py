"""Co-addition of exposures on one grid: sigma clipping about the mean, then a weighted mean.

Rows are cut into tiles of pixels, whose exposures stay near the core through all passes. Sums are in
float64 and in the order of the exposures, and no product is fused with a sum: so the bounds are those of
astropy's ``sigma_clip`` to the last bit, and a pixel's value depends neither on the tile nor on the strip it
is computed in, nor on the CPU.

References
----------
Clipping: ``astropy.stats.sigma_clip(cenfunc="mean", stdfunc="std")``, Astropy Collaboration 2022,
doi:10.3847/1538-4357/ac7c74. One weight per exposure: E. Rykoff et al., LSST DMTN-015; J. Bosch et al. 2018,
PASJ 70, S5, section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from mpiimg.kernels.jit import kernel

#: Pixels of a tile: 24 exposures with variance and mask take 72 KiB.
TILE_PIXELS = 256

#: Exposures added together: the sums are then loaded and stored a quarter as often.
UNROLL = 4

_LARGEST = np.float32(np.finfo(np.float32).max)
_NAN = np.float32(np.nan)
_INFINITY = np.float32(np.inf)


class MaskValues(NamedTuple):
    """Values (not numbers) of the bits of a mask that coaddition knows; `excluded` may combine several."""

    excluded: int
    no_data: int
    clipped: int
    saturated: int


class StackTile(NamedTuple):
    """What is held of a tile: the usable values of each exposure (else NaN), bounds, and sums."""

    values: np.ndarray  # (exposures, TILE_PIXELS) float32, exposures rounded up to a multiple of UNROLL
    low: np.ndarray  # (TILE_PIXELS,) float64, as the rest
    high: np.ndarray
    total: np.ndarray
    count: np.ndarray
    mean: np.ndarray


@intrinsic
def _product(typingctx, a, b):
    """Return a * b of two float64, rounded on its own: LLVM may not fuse it with a sum."""

    def codegen(context, builder, sig, args):
        # A flag of its own: numba gives all of its flags, `contract` too, to what has none.
        return builder.fmul(*args, flags=("nsz",))

    return types.float64(types.float64, types.float64), codegen


@kernel(inline=True)
def _usable(value, variance, mask, excluded):
    """Tell whether a pixel of an exposure is an input: finite, not excluded, its variance a variance."""
    measured = (abs(value) <= _LARGEST) & (variance >= 0) & (variance <= _LARGEST)
    return measured & ((mask & excluded) == 0)


@kernel
def _gather(images, variances, masks, weights, excluded, place, values):
    """Copy the usable values of a tile; NaN elsewhere. `place` is row, first column and width."""
    y, x, width = place
    for k in range(len(images)):
        if not (weights[k] > 0):
            values[k] = _NAN
            continue
        image, variance, mask = images[k, y, x:], variances[k, y, x:], masks[k, y, x:]
        row = values[k]
        for i in range(width):
            row[i] = image[i] if _usable(image[i], variance[i], mask[i], excluded) else _NAN


@kernel
def _add_values(tile):
    """Sum and count the values within bounds, exposure by exposure."""
    values, low, high, total, count, _ = tile
    for i in range(TILE_PIXELS):
        total[i] = 0.0
        count[i] = 0.0
    for k in range(0, len(values), UNROLL):
        v0, v1, v2, v3 = values[k], values[k + 1], values[k + 2], values[k + 3]
        for i in range(TILE_PIXELS):
            a, b, c, d = np.float64(v0[i]), np.float64(v1[i]), np.float64(v2[i]), np.float64(v3[i])
            in_a, in_b = (a >= low[i]) & (a <= high[i]), (b >= low[i]) & (b <= high[i])
            in_c, in_d = (c >= low[i]) & (c <= high[i]), (d >= low[i]) & (d <= high[i])
            sum_ab = (total[i] + (a if in_a else 0.0)) + (b if in_b else 0.0)
            total[i] = (sum_ab + (c if in_c else 0.0)) + (d if in_d else 0.0)
            n_ab = (count[i] + (1.0 if in_a else 0.0)) + (1.0 if in_b else 0.0)
            count[i] = (n_ab + (1.0 if in_c else 0.0)) + (1.0 if in_d else 0.0)


@kernel(inline=True)
def _squared_deviation(value, mean, low, high):
    """Return (mean - value)^2 of a value within bounds, else 0."""
    deviation = mean - value
    return _product(deviation, deviation) if (value >= low) & (value <= high) else 0.0


@kernel
def _add_squares(tile):
    """Sum the squared deviations of the values within bounds from their mean."""
    values, low, high, total, _, mean = tile
    for i in range(TILE_PIXELS):
        total[i] = 0.0
    for k in range(0, len(values), UNROLL):
        v0, v1, v2, v3 = values[k], values[k + 1], values[k + 2], values[k + 3]
        for i in range(TILE_PIXELS):
            sum_ab = total[i] + _squared_deviation(np.float64(v0[i]), mean[i], low[i], high[i])
            sum_ab = sum_ab + _squared_deviation(np.float64(v1[i]), mean[i], low[i], high[i])
            sum_abc = sum_ab + _squared_deviation(np.float64(v2[i]), mean[i], low[i], high[i])
            total[i] = sum_abc + _squared_deviation(np.float64(v3[i]), mean[i], low[i], high[i])


@kernel
def _narrow(tile, sigma):
    """Narrow the bounds to mean +- `sigma` population standard deviations of what lies within them."""
    _, low, high, total, count, mean = tile
    _add_values(tile)
    for i in range(TILE_PIXELS):
        mean[i] = total[i] / count[i]
    _add_squares(tile)
    for i in range(TILE_PIXELS):
        reach = _product(sigma, np.sqrt(total[i] / count[i]))
        # A comparison with NaN (no values) leaves the bounds as they are.
        low[i] = max(low[i], mean[i] - reach) if count[i] > 0 else low[i]
        high[i] = min(high[i], mean[i] + reach) if count[i] > 0 else high[i]


@kernel
def _average(tile, variances, masks, weights, place, sums):
    """Sum weights, weighted values, weights^2 x variances, numbers and masks of what is within bounds."""
    y, x, width = place
    weight_sum, value_sum, variance_sum, number, bits = sums
    for i in range(TILE_PIXELS):
        weight_sum[i] = 0.0
        value_sum[i] = 0.0
        variance_sum[i] = 0.0
        number[i] = 0
        bits[i] = 0
    low, high = tile.low, tile.high
    for k in range(len(weights)):
        values, variance, mask = tile.values[k], variances[k, y, x:], masks[k, y, x:]
        weight = weights[k]
        for i in range(width):
            value = np.float64(values[i])
            inside = (value >= low[i]) & (value <= high[i])
            squared = _product(_product(weight, weight), np.float64(variance[i]))
            weight_sum[i] += weight if inside else 0.0
            value_sum[i] += _product(weight, value) if inside else 0.0
            variance_sum[i] += squared if inside else 0.0
            number[i] += 1 if inside else 0
            bits[i] |= mask[i] if inside else 0


@kernel
def _average_more(tile, more, weights, place, weight_sum, out):
    """Average further variances of what is within bounds, by the weights of :func:`_average`."""
    y, x, width = place
    total = np.zeros(TILE_PIXELS)
    for k in range(len(weights)):
        values, further, weight = tile.values[k], more[k, y, x:], weights[k]
        for i in range(width):
            value = np.float64(values[i])
            inside = (value >= tile.low[i]) & (value <= tile.high[i])
            squared = _product(_product(weight, weight), np.float64(further[i]))
            total[i] += squared if inside else 0.0
    line = out[y, x:]
    for i in range(width):
        squared_weight = _product(weight_sum[i], weight_sum[i])
        line[i] = np.float32(total[i] / squared_weight) if weight_sum[i] > 0 else _INFINITY


@kernel
def _saturated_everywhere(masks, values, y, x, planes):
    """Tell whether all exposures that have data at a pixel are saturated there."""
    saturated = False
    for k in range(len(masks)):
        if masks[k, y, x] & planes.no_data:
            continue
        if masks[k, y, x] & planes.saturated:
            saturated = True
        elif abs(values[k, y, x]) <= _LARGEST:
            return False
    return saturated


@kernel
def _write(images, masks, planes, place, candidates, sums, out):
    """Turn the sums of a tile into the four planes of the coadd."""
    y, x, width = place
    weight_sum, value_sum, variance_sum, number, bits = sums
    image, variance, mask, n_image = out[0][y, x:], out[1][y, x:], out[2][y, x:], out[3][y, x:]
    for i in range(width):
        used = number[i] > 0
        squared_weight = _product(weight_sum[i], weight_sum[i])
        image[i] = np.float32(value_sum[i] / weight_sum[i]) if used else _NAN
        variance[i] = np.float32(variance_sum[i] / squared_weight) if used else _INFINITY
        mask[i] = bits[i] | (planes.clipped if number[i] < candidates[i] else 0)
        n_image[i] = number[i]
    for i in range(width):
        if number[i] == 0:
            mask[i] |= planes.no_data
            if _saturated_everywhere(masks, images, y, x + i, planes):
                mask[i] |= planes.saturated


@kernel
def _combine(images, variances, masks, more, weights, planes, sigma, passes):
    """Coadd tile by tile."""
    n, height, width = images.shape
    image = np.empty((height, width), np.float32)
    variance = np.empty((height, width), np.float32)
    mask = np.empty((height, width), np.int32)
    n_image = np.empty((height, width), np.int16)
    further = np.empty(more.shape[1:], np.float32)
    values = np.full(((n + UNROLL - 1) // UNROLL * UNROLL, TILE_PIXELS), _NAN)
    # Arrays of their own: LLVM does not vectorise over parts of one array, which might overlap.
    low, high, total = np.empty(TILE_PIXELS), np.empty(TILE_PIXELS), np.empty(TILE_PIXELS)
    count, mean, candidates = np.empty(TILE_PIXELS), np.empty(TILE_PIXELS), np.empty(TILE_PIXELS)
    tile = StackTile(values, low, high, total, count, mean)
    weight_sum, value_sum, variance_sum = np.empty(TILE_PIXELS), np.empty(TILE_PIXELS), np.empty(TILE_PIXELS)
    number, bits = np.empty(TILE_PIXELS, np.int32), np.empty(TILE_PIXELS, np.int32)
    sums = (weight_sum, value_sum, variance_sum, number, bits)
    for y in range(height):
        for x in range(0, width, TILE_PIXELS):
            place = (y, x, min(TILE_PIXELS, width - x))
            _gather(images, variances, masks, weights, planes.excluded, place, values)
            low[:] = -np.inf
            high[:] = np.inf
            candidates[:] = 0.0
            for turn in range(passes):
                _narrow(tile, sigma)
                if turn == 0:
                    candidates[:] = count
            _average(tile, variances, masks, weights, place, sums)
            _write(images, masks, planes, place, candidates, sums, (image, variance, mask, n_image))
            if len(more):
                _average_more(tile, more, weights, place, weight_sum, further)
    return image, variance, mask, n_image, further


def combine(
    images: np.ndarray,
    variances: np.ndarray,
    masks: np.ndarray,
    weights: np.ndarray,
    planes: MaskValues,
    statistic: str = "clip",
    sigma: float = 3.0,
    passes: int = 2,
    variances_ls: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Combine exposures of one band, resampled to one grid, into a coadd.

    Parameters
    ----------
    images : (n, h, w) float32
        Exposures, calibrated to one zero point, flux per pixel; the order is that of all sums. NaN and
        infinite pixels are no inputs.
    variances : (n, h, w) float32
        Their variances, in the square of that unit. Negative, infinite and NaN ones are no inputs.
    masks : (n, h, w) int32
        Their masks, bits as in `planes`.
    weights : (n,) float64
        One weight per exposure, usually 1 / the variance of its sky: zero leaves an exposure out. Never
        one of a pixel's own counts: those that noise made low would weigh more, and wings more than cores.
    planes : MaskValues
        Values of the bits of the masks; pixels with any bit of `planes.excluded` are no inputs.
    statistic : {"clip", "mean"}
        Whether values are rejected at all.
    sigma : float
        Values further than this many population standard deviations from the (unweighted) mean are rejected.
        One value among n lies at most sqrt(n - 1) of them off: 3 rejects nothing for n <= 10.
    passes : int
        How often, each time from the mean and deviation of what is left.
    variances_ls : (n, h, w) float32, optional
        Variances per pixel of sums over many pixels; they are combined with the same weights, and decide
        nothing.

    Returns
    -------
    image : (h, w) float32
        Weighted mean of the inputs left, NaN where there are none.
    variance : (h, w) float32
        sum(w^2 v) / sum(w)^2 of these, infinite where there are none.
    mask : (h, w) int32
        OR over these; and `clipped` where a value was rejected, `no_data` where no input is left, and there
        `saturated` if all exposures with data at the pixel (those without the bit `no_data`) are saturated.
    n_image : (h, w) int16
        Number of inputs left.
    variance_ls : (h, w) float32
        Only with `variances_ls`: sum(w^2 v) / sum(w)^2 of these, infinite where there are none.

    Raises
    ------
    TypeError
        Arrays of other types.
    ValueError
        Shapes that do not match, no exposures or too many for int16, weights that are negative or not finite,
        an unknown statistic, `sigma` not positive.

    Notes
    -----
    Rejections are those of ``astropy.stats.sigma_clip(images, sigma, maxiters=passes, cenfunc="mean",
    stdfunc="std", axis=0)`` on float64. A value once rejected stays so; astropy's last bounds alone decide,
    which differs for no `sigma` above sqrt(3).
    """
    images, variances, masks = (np.ascontiguousarray(a) for a in (images, variances, masks))
    more = np.empty((0, 0, 0), np.float32) if variances_ls is None else np.ascontiguousarray(variances_ls)
    weights = np.ascontiguousarray(weights, np.float64)
    _validate(images, variances, masks, weights)
    if more.dtype != np.float32 or (variances_ls is not None and more.shape != images.shape):
        raise ValueError(f"variances_ls must be float32 {images.shape}, not {more.dtype} {more.shape}")
    if statistic not in ("clip", "mean"):
        raise ValueError(f'the statistic is "clip" or "mean", not "{statistic}"')
    if not sigma > 0 or passes < 0:
        raise ValueError(f"clipping needs sigma > 0 and passes >= 0, not {sigma} and {passes}")
    planes = MaskValues(*(np.int32(bit) for bit in planes))
    turns = passes if statistic == "clip" else 0
    *combined, further = _combine(images, variances, masks, more, weights, planes, float(sigma), turns)
    return tuple(combined) if variances_ls is None else (*combined, further)


def _validate(images, variances, masks, weights):
    if images.dtype != np.float32 or variances.dtype != np.float32 or masks.dtype != np.int32:
        raise TypeError(
            f"images and variances must be float32 and masks int32, "
            f"not {images.dtype}, {variances.dtype} and {masks.dtype}"
        )
    if images.ndim != 3 or not images.shape == variances.shape == masks.shape:
        raise ValueError(
            f"images, variances and masks must share one shape (n, h, w), "
            f"not {images.shape}, {variances.shape} and {masks.shape}"
        )
    if not 0 < len(images) <= np.iinfo(np.int16).max:
        raise ValueError(f"a coadd takes 1 to {np.iinfo(np.int16).max} exposures, not {len(images)}")
    if weights.shape != images.shape[:1] or not np.all(np.isfinite(weights) & (weights >= 0)):
        raise ValueError(f"weights must be {len(images)} finite numbers >= 0, not {weights}")


def count_unclippable(
    n_image: np.ndarray, mask: np.ndarray, clipped: int, sigma: float = 3.0
) -> tuple[int, int]:
    """Count the pixels at which clipping could reject nothing, however far off one value is.

    Parameters
    ----------
    n_image, mask : (h, w) integers
        The N-image and the mask of a clipped coadd.
    clipped : int
        The mask's bit of rejection: such a pixel had more inputs than its N-image says.
    sigma : float
        The bound that was used, in population standard deviations.

    Returns
    -------
    few, covered : int
        Pixels of 1 to sigma^2 + 1 inputs (10 at 3 sigma), and pixels of one input or more. Both add up over
        strips and patches; their quotient is the share to warn about.
    """
    covered = n_image > 0
    few = covered & (n_image <= sigma**2 + 1) & ((mask & clipped) == 0)
    return int(np.count_nonzero(few)), int(np.count_nonzero(covered))


def precompile() -> None:
    """Call the kernels on three inputs."""
    stack = [np.ones((3, 28, 38), dtype) for dtype in (np.float32, np.float32, np.int32)]
    combine(*stack, np.ones(3), MaskValues(1, 2, 4, 8))
