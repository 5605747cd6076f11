"""Voxelwise non-local means of one chunk of one volume (dipy's ``method="classic"``).

Each voxel becomes the square root of a weighted mean of squares over its search block; the weight of
another voxel falls with the distance between the patches around the two. The kernel goes offset by offset:
squared differences, box sums over the patch, weight, accumulate. Its vectors of sixteen voxels along x are
written out (:mod:`mpiimg.kernels.lanes`), with every fused multiply-add named: so no loop has a scalar tail
with other roundings, and the value of a voxel does not depend on where a tile or chunk starts.

References
----------
P. Coupe et al., "An optimized blockwise nonlocal means denoising filter for 3-D magnetic resonance images",
IEEE Trans. Med. Imaging 27, 425 (2008). M. Descoteaux et al., "Impact of Rician adapted non-local means
filtering on HARDI", MICCAI 2008.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.lanes import LANES, fma, lesser, load_lanes, splat, store_lanes, times_power_of_two

#: Slices denoised together: two more are read for their patches, so more slices share more work,
#: up to what 32 vector registers hold.
PLANES = 4

#: Offsets along x whose weights are added together: the sums are then loaded and stored a third as often.
UNROLL = 3

#: Rows and vectors along x of a tile, at most: what is read again for each offset stays near the core.
TILE_ROWS = 12
TILE_VECTORS = 4

#: Halo on both sides that the copy of a tile has room for: a block radius of 16.
MAX_HALO = 32

#: Strides of that copy, in elements. As constants, addresses take one register instead of twelve.
ROW = LANES * TILE_VECTORS + MAX_HALO
PLANE = (TILE_ROWS + MAX_HALO) * ROW

#: Strides of the sums. One vector more than is used keeps rows and slices off multiples of the cache's 4 KiB.
OUT_ROW = LANES * (TILE_VECTORS + 1)
OUT_PLANE = TILE_ROWS * OUT_ROW
OUT_SIZE = PLANES * OUT_PLANE

#: 2**x - 1 over x on [-1/2, 1/2], highest power first: with it 2**x is good to 2e-7.
EXP2_COEFFICIENTS = tuple(
    np.float32(c) for c in (0.0013264726, 0.009671513, 0.055507336, 0.24022242, 0.693147)
)

#: Adding 1.5 x 2**23 rounds a small float32 to an integer, and leaves that integer in its low bits.
ROUND_TO_INTEGER = np.float32(1.5 * 2**23)

#: Weights end at 2**-125, the last power of two before float32 loses digits.
MAX_HALVINGS = np.float32(125.0)


# --- Patches of 3 x 3 x 3 voxels: sixteen centres at once ---------------------------------------------------


class TileSize(NamedTuple):
    """Extent of a tile."""

    rows: int
    vectors: int


@kernel
def _squared_difference(image, one, other):
    difference = load_lanes(image, one) - load_lanes(image, other)
    return difference * difference


@kernel
def _three_plane_sums(image, one, other):
    """Return, for each of four slices, the squared differences summed over it and its two neighbours."""
    d0 = _squared_difference(image, one, other)
    d1 = _squared_difference(image, one + PLANE, other + PLANE)
    d2 = _squared_difference(image, one + 2 * PLANE, other + 2 * PLANE)
    d3 = _squared_difference(image, one + 3 * PLANE, other + 3 * PLANE)
    d4 = _squared_difference(image, one + 4 * PLANE, other + 4 * PLANE)
    d5 = _squared_difference(image, one + 5 * PLANE, other + 5 * PLANE)
    return d0 + d1 + d2, d1 + d2 + d3, d2 + d3 + d4, d3 + d4 + d5


@kernel
def _sum_over_z_and_y(image, one, other, tile, sums):
    """Fill `sums` with squared differences summed over 3 slices x 3 rows, down the rows of each vector.

    `one` and `other` are the first corner of the first patch and of the patch it is compared with.
    """
    offset = other - one
    for x in range(0, LANES * tile.vectors, LANES):
        k = one + x
        a0, a1, a2, a3 = _three_plane_sums(image, k, k + offset)
        k += ROW
        b0, b1, b2, b3 = _three_plane_sums(image, k, k + offset)
        for y in range(tile.rows):
            k += ROW
            c0, c1, c2, c3 = _three_plane_sums(image, k, k + offset)
            o = x + y * OUT_ROW
            store_lanes(sums, o, a0 + b0 + c0)
            store_lanes(sums, o + OUT_PLANE, a1 + b1 + c1)
            store_lanes(sums, o + 2 * OUT_PLANE, a2 + b2 + c2)
            store_lanes(sums, o + 3 * OUT_PLANE, a3 + b3 + c3)
            a0, a1, a2, a3 = b0, b1, b2, b3
            b0, b1, b2, b3 = c0, c1, c2, c3


@kernel
def _weight(distance, rate, furthest):
    """Return 2**(distance * rate): the integer part goes to the exponent, the rest into a polynomial."""
    c5, c4, c3, c2, c1 = EXP2_COEFFICIENTS
    distance = lesser(distance, furthest)
    rounded = fma(distance, rate, splat(ROUND_TO_INTEGER))
    rest = fma(distance, rate, splat(ROUND_TO_INTEGER) - rounded)
    power = fma(rest, splat(c5), splat(c4))
    power = fma(rest, power, splat(c3))
    power = fma(rest, power, splat(c2))
    power = fma(rest, power, splat(c1))
    power = fma(rest, power, splat(np.float32(1.0)))
    return times_power_of_two(power, rounded)


@kernel
def _patch_distance(sums, o):
    return load_lanes(sums, o) + load_lanes(sums, o + 1) + load_lanes(sums, o + 2)


@kernel
def _add_weighted(sums, squares, there, count, rates, tile, weights, totals):
    """Add the weights, and weights times squares, of `count` (1 to 3) offsets that follow along x.

    `there` is where the first of them leads in `squares`, `sums` holds three offsets whatever the count.
    """
    second, third = min(1, count - 1), min(2, count - 1)
    for z in range(PLANES):
        furthest = splat(-MAX_HALVINGS / rates[z])
        rate = splat(rates[z])
        for x in range(0, LANES * tile.vectors, LANES):
            o = x + z * OUT_PLANE
            k = there + x + z * PLANE
            for _ in range(tile.rows):
                weight0 = _weight(_patch_distance(sums, o), rate, furthest)
                weight1 = _weight(_patch_distance(sums, o + OUT_SIZE), rate, furthest)
                weight2 = _weight(_patch_distance(sums, o + 2 * OUT_SIZE), rate, furthest)
                store_lanes(weights, o, load_lanes(weights, o) + (weight0 + weight1 + weight2))
                total = fma(weight0, load_lanes(squares, k), load_lanes(totals, o))
                total = fma(weight1, load_lanes(squares, k + second), total)
                store_lanes(totals, o, fma(weight2, load_lanes(squares, k + third), total))
                o += OUT_ROW
                k += ROW


@kernel
def _add_weighted_by_voxel(sums, squares, there, count, rates, furthest, tile, weights, totals):
    """Do as :func:`_add_weighted` does, with a rate for each voxel: `rates` lie as `squares` do."""
    second, third = min(1, count - 1), min(2, count - 1)
    for z in range(PLANES):
        for x in range(0, LANES * tile.vectors, LANES):
            o = x + z * OUT_PLANE
            k = there + x + z * PLANE
            for _ in range(tile.rows):
                weight0 = _weight(_patch_distance(sums, o), load_lanes(rates, k), load_lanes(furthest, k))
                j = k + second
                distance = _patch_distance(sums, o + OUT_SIZE)
                weight1 = _weight(distance, load_lanes(rates, j), load_lanes(furthest, j))
                i = k + third
                distance = _patch_distance(sums, o + 2 * OUT_SIZE)
                weight2 = _weight(distance, load_lanes(rates, i), load_lanes(furthest, i))
                store_lanes(weights, o, load_lanes(weights, o) + (weight0 + weight1 + weight2))
                total = fma(weight0, load_lanes(squares, k), load_lanes(totals, o))
                total = fma(weight1, load_lanes(squares, j), total)
                store_lanes(totals, o, fma(weight2, load_lanes(squares, i), total))
                o += OUT_ROW
                k += ROW


@kernel
def _accumulate_offsets(image, squares, rates, furthest, by_voxel, radius, tile, sums, weights, totals):
    """Sum weights, and weights times squares, over all offsets up to `radius`, in a fixed order."""
    weights[:] = np.float32(0.0)
    totals[:] = np.float32(0.0)
    corner = radius * (PLANE + ROW + 1)
    centre = (radius + 1) * (PLANE + ROW + 1)
    for dz in range(-radius, radius + 1):
        slice_rates = rates[radius + 1 + dz :]  # where they are by slice
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1, UNROLL):
                count = min(UNROLL, radius + 1 - dx)
                offset = dz * PLANE + dy * ROW + dx
                for i in range(count):
                    part = sums[i * OUT_SIZE :]
                    _sum_over_z_and_y(image, corner, corner + offset + i, tile, part)
                # Past the reach: infinitely far, so of the smallest weight there is.
                sums[count * OUT_SIZE :] = np.inf
                there = centre + offset
                if by_voxel:
                    _add_weighted_by_voxel(
                        sums, squares, there, count, rates, furthest, tile, weights, totals
                    )
                else:
                    _add_weighted(sums, squares, there, count, slice_rates, tile, weights, totals)


@kernel
def _bounds(mask):
    """Return first and end of the rows, and of the columns, that hold any of a (z, y, x) mask."""
    y0, y1, x0, x1 = mask.shape[1], 0, mask.shape[2], 0
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                if mask[z, y, x]:
                    y0, y1 = min(y0, y), max(y1, y + 1)
                    x0, x1 = min(x0, x), max(x1, x + 1)
    return y0, y1, x0, x1


@kernel
def _copy_tile(padded, image, squares):
    """Copy a tile with its halo, and its squares; what lies beyond `padded` is never used, but finite."""
    depth, height, width = padded.shape
    for z in range(image.size // PLANE):
        for y in range(height):
            o = z * PLANE + y * ROW
            for x in range(min(width, ROW)):
                value = padded[min(z, depth - 1), y, x]
                image[o + x] = value
                squares[o + x] = value * value


@kernel
def _copy_rates(rates, tile_rates, furthest):
    """Copy the rates of a tile with its halo, and the distance beyond which a weight is the smallest."""
    depth, height, width = rates.shape
    for z in range(tile_rates.size // PLANE):
        for y in range(height):
            o = z * PLANE + y * ROW
            for x in range(min(width, ROW)):
                rate = rates[min(z, depth - 1), y, x]
                tile_rates[o + x] = rate
                furthest[o + x] = -MAX_HALVINGS / rate


@kernel
def _denoise_tile(mask, weights, totals, bias, out):
    """Write the denoised value of the tile's masked centres."""
    for z in range(mask.shape[0]):
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                if mask[z, y, x]:
                    o = z * OUT_PLANE + y * OUT_ROW + x
                    square = totals[o] / weights[o] - bias[z, y, x]
                    out[z, y, x] = np.float32(math.sqrt(square if not square < 0 else np.float32(0.0)))


@kernel
def _aligned_zeros(size, index):
    """Return float32 zeros of which element `index` lies on a 64-byte boundary."""
    zeros = np.zeros(size + LANES, np.float32)
    skip = -(zeros.ctypes.data // zeros.itemsize + index) % LANES
    return zeros[skip : skip + size]


@kernel
def _denoise_small_patches(padded, rates, bias, mask, block_radius, out):
    """Denoise with patches of 3 x 3 x 3: tiles of four slices, bounded by their part of the mask."""
    nz, ny = mask.shape[:2]
    halo = 2 * block_radius
    size = (PLANES + halo) * PLANE + LANES * PLANES
    # Aligned are the first patch's corner and the first centre, where most loads start.
    image = _aligned_zeros(size, block_radius - 1)
    squares = _aligned_zeros(size, block_radius)
    sums = _aligned_zeros(UNROLL * OUT_SIZE + LANES, 0)
    weights = _aligned_zeros(OUT_SIZE, 0)
    totals = _aligned_zeros(OUT_SIZE, 0)
    by_voxel = rates.shape[1] > 1
    tile_rates = _aligned_zeros(size, block_radius) if by_voxel else np.zeros(PLANES + halo, np.float32)
    furthest = _aligned_zeros(size if by_voxel else 0, block_radius)
    # Two columns of each row of sums belong to the patches at its end.
    width = LANES * TILE_VECTORS - 2
    for z0 in range(0, nz, PLANES):
        z1 = min(z0 + PLANES, nz)
        if not by_voxel:
            for z in range(PLANES + halo):
                tile_rates[z] = rates[min(z0 + z, rates.shape[0] - 1), 0, 0]
        for strip in range(0, ny, TILE_ROWS):
            first, end, x_first, x_end = _bounds(mask[z0:z1, strip : strip + TILE_ROWS])
            y0, y1 = strip + first, strip + end
            for x0 in range(x_first, x_end, width):
                x1 = min(x0 + width, x_end)
                vectors = (x1 - x0 + 2 + LANES - 1) // LANES
                tile = TileSize(y1 - y0, vectors)
                _copy_tile(padded[z0 : z1 + halo, y0 : y1 + halo, x0:], image, squares)
                if by_voxel:
                    _copy_rates(rates[z0 : z1 + halo, y0 : y1 + halo, x0:], tile_rates, furthest)
                _accumulate_offsets(
                    *(image, squares, tile_rates, furthest, by_voxel, block_radius - 1, tile),
                    *(sums, weights, totals),
                )
                box = mask[z0:z1, y0:y1, x0:x1]
                part = bias[z0:z1, y0:y1, x0:x1]
                _denoise_tile(box, weights, totals, part, out[z0:z1, y0:y1, x0:x1])


# --- Patches and blocks of any size: one centre at a time ---------------------------------------------------


@kernel
def _any_patch_distance(padded, centre, other, radius):
    """Return the sum of squared differences between two patches, in float64."""
    total = 0.0
    for dz in range(-radius, radius + 1):
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                a = padded[centre[0] + dz, centre[1] + dy, centre[2] + dx]
                b = padded[other[0] + dz, other[1] + dy, other[2] + dx]
                difference = float(a) - float(b)
                total += difference * difference
    return total


@kernel
def _denoise_any_patches(padded, rates, bias, mask, patch_radius, block_radius, out):
    """Denoise with patches of any size, the plain way: slow, in float64."""
    reach = block_radius - patch_radius
    by_voxel = rates.shape[1] > 1
    for z, y, x in np.ndindex(mask.shape):
        if not mask[z, y, x]:
            continue
        centre = (z + block_radius, y + block_radius, x + block_radius)
        weights = 0.0
        total = 0.0
        for dz in range(-reach, reach + 1):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    other = (centre[0] + dz, centre[1] + dy, centre[2] + dx)
                    distance = _any_patch_distance(padded, centre, other, patch_radius)
                    rate = rates[other] if by_voxel else rates[other[0], 0, 0]
                    weight = math.exp(math.log(2.0) * rate * distance)
                    weights += weight
                    total += weight * float(padded[other]) ** 2
        square = total / weights - bias[z, y, x]
        out[z, y, x] = np.float32(math.sqrt(square if not square < 0 else 0.0))


# --- What the stage calls -----------------------------------------------------------------------------------


def nonlocal_means(
    padded: np.ndarray,
    sigma: np.ndarray,
    mask: np.ndarray,
    patch_radius: int = 1,
    block_radius: int = 5,
    rician: bool = True,
) -> np.ndarray:
    """Denoise the masked voxels of one chunk by voxelwise non-local means.

    Parameters
    ----------
    padded : (nz + 2B, ny + 2B, nx + 2B) float32 array, B = `block_radius`
        The chunk with its halo; the edges of the whole volume are mirrored without repeating the edge
        (``np.pad`` ``reflect``).
    sigma : (nz + 2B,) or (nz + 2B, ny + 2B, nx + 2B) array
        Noise level of each slice, or of each voxel, in the unit of `padded`, extended in the same way.
    mask : (nz, ny, nx) bool array
        The voxels to denoise. It restricts centres only: all of `padded` is searched.
    patch_radius : int
        Patches are (2 `patch_radius` + 1)**3 voxels. A radius of 1 is fast (with blocks of radius up to 16),
        any other is not.
    block_radius : int
        A patch moves inside a block of (2 B + 1)**3 voxels, so its centre moves by up to
        B - `patch_radius`.
    rician : bool
        Subtract the bias 2 sigma**2 of Rician noise from the mean square; below it the result is 0.

    Returns
    -------
    (nz, ny, nx) float32 array
        Denoised values, 0 outside the mask. A voxel's bits do not depend on the chunk's extent nor on the
        rest of the mask. Where sigma is 0 all over a voxel's own patch, there is no noise to remove
        and the value is that of the input (dipy gives 0).

    Raises
    ------
    ValueError
        If shapes or radii do not fit together, or a noise level is negative or not finite.

    Notes
    -----
    w = exp(-d / (n sqrt(2) s**2)), d the sum of squared differences of two patches of n voxels, s the mean
    sigma over the moving patch; the result is sqrt(max(sum(w x**2) / sum(w) - 2 sigma**2, 0)), sigma that of
    the centre. Not-a-number and infinite voxels spoil what they touch; replace them first.

    References
    ----------
    Coupe et al. 2008 and Descoteaux et al. 2008, as named in this module; the weights and the reach are
    those of dipy's ``nlmeans(method="classic")``.
    """
    padded = np.ascontiguousarray(padded, np.float32)
    sigma = np.asarray(sigma, np.float64)
    mask = np.ascontiguousarray(mask, bool)
    _validate(padded, sigma, mask, patch_radius, block_radius)

    level = _mean_over_patch(sigma, patch_radius)
    # A patch without noise resembles its equals only: the rate is large, and finite for float32.
    with np.errstate(divide="ignore"):
        decay = 1.0 / ((2 * patch_radius + 1) ** 3 * math.sqrt(2.0) * level**2)
    rates = (-np.clip(decay / math.log(2.0), 1e-30, 1e30)).astype(np.float32)
    inner = tuple(slice(block_radius, block_radius + n) for n in mask.shape)
    centres = inner if sigma.ndim == 3 else (inner[0], None, None)
    bias = np.where(rician, 2.0 * sigma[centres] ** 2, 0.0).astype(np.float32)
    bias = np.ascontiguousarray(np.broadcast_to(bias, mask.shape))
    rates = rates if sigma.ndim == 3 else rates[:, None, None]

    out = np.zeros(mask.shape, np.float32)
    if patch_radius == 1 and 2 * block_radius <= MAX_HALO:
        _denoise_small_patches(padded, rates, bias, mask, block_radius, out)
    else:
        _denoise_any_patches(padded, rates, bias, mask, patch_radius, block_radius, out)
    noiseless = (level[centres] == 0) & mask
    if noiseless.any():
        out[noiseless] = padded[inner][noiseless]
    return out


def _mean_over_patch(sigma, radius):
    """Return the mean of `sigma` over a patch about each slice or voxel, added from the lowest index up."""
    width = 2 * radius + 1
    level = np.zeros_like(sigma)
    inner = tuple(slice(radius, n - radius) for n in sigma.shape)
    for starts in np.ndindex((width,) * sigma.ndim):
        shifted = tuple(slice(a, n - 2 * radius + a) for a, n in zip(starts, sigma.shape, strict=True))
        level[inner] += sigma[shifted]
    return level / width**sigma.ndim


def _validate(padded, sigma, mask, patch_radius, block_radius):
    if patch_radius < 0 or block_radius <= patch_radius:
        raise ValueError(
            f"block_radius must be larger than patch_radius, and that not negative: "
            f"got {block_radius} and {patch_radius}"
        )
    if padded.ndim != 3 or mask.ndim != 3:
        raise ValueError(f"padded and mask must be (z, y, x): got shapes {padded.shape} and {mask.shape}")
    expected = tuple(n + 2 * block_radius for n in mask.shape)
    if padded.shape != expected:
        raise ValueError(
            f"padded must be the mask's shape {mask.shape} plus {block_radius} on each side, {expected}: "
            f"got {padded.shape}"
        )
    if sigma.shape not in (expected[:1], expected):
        raise ValueError(
            f"sigma must have one value per padded slice, {expected[:1]}, or per voxel: got {sigma.shape}"
        )
    if not np.all(np.isfinite(sigma) & (sigma >= 0)):
        raise ValueError("sigma must be finite and not negative")


def precompile() -> None:
    """Call the kernels on a tiny input, with either noise and small and larger patches."""
    inside = np.ones((2, 3, 4), dtype=bool)
    for patch_radius, block_radius in ((1, 5), (2, 5)):
        padded = np.ones([n + 2 * block_radius for n in inside.shape], dtype=np.float32)
        for rician in (True, False):
            nonlocal_means(padded, np.ones(len(padded)), inside, patch_radius, block_radius, rician)
