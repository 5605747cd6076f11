"""Sums over the footprint of a kernel: six vectors for plain Lanczos-3, as many as it takes if stretched.

Image and variance lie interleaved, and so do w and w^2. All products are fused with their sums where they are
written so, and nowhere else: no bit depends on where a pixel lies.
"""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.lanes import FLOAT_LANES, INTEGER_LANES, LANES, call_fma, fma, lanes, load_lanes, splat

#: Pixels per side of the footprint of plain Lanczos-3.
TAPS = 6

_INDEX = ir.IntType(32)


def _at(context, builder, array_type, array, element, kind):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [element]), kind.as_pointer())


def _multiply(builder, a, b):
    # Flags of its own keep numba from adding `contract`.
    return builder.fmul(a, b, flags=("nsz",))


def _add(builder, a, b):
    return builder.fadd(a, b, flags=("nsz",))


def _pick(builder, vector, other, chosen):
    return builder.shuffle_vector(vector, other, ir.Constant(ir.VectorType(_INDEX, len(chosen)), chosen))


def _pair_in_all(context, builder, table_type, table, element):
    """Return w and w^2 of a row of the footprint in all lanes, moved as one float64 that is only a pair."""
    pairs = ir.VectorType(ir.DoubleType(), LANES // 2)
    pair = builder.load(_at(context, builder, table_type, table, element, ir.DoubleType()), align=8)
    nothing = ir.Constant(pairs, ir.Undefined)
    pair = _pick(builder, builder.insert_element(nothing, pair, _INDEX(0)), nothing, [0] * (LANES // 2))
    return builder.bitcast(pair, FLOAT_LANES)


def _halved(builder, eight):
    """Return the sum of the even of eight lanes, and that of the odd."""
    four = _add(
        builder, _pick(builder, eight, eight, [0, 1, 2, 3]), _pick(builder, eight, eight, [4, 5, 6, 7])
    )
    two = _add(builder, _pick(builder, four, four, [0, 1]), _pick(builder, four, four, [2, 3]))
    return [builder.extract_element(two, _INDEX(lane)) for lane in (0, 1)]


@intrinsic
def plain_sums(typingctx, pixels, corner, row, table, shift_x, shift_y):
    """Return the sums over 6 x 6 pixels of w times image and of w^2 times variance.

    Parameters
    ----------
    pixels : (n,) float32
        Image and variance interleaved; read up to two pixels beyond the footprint.
    corner, row : int
        Element where the footprint starts, and from one of its rows to the next.
    table : (n,) float32
        The weights of plain Lanczos-3, as :func:`mpiimg.astro.kernels.lanczos.lanczos` has them.
    shift_x, shift_y : int
        Element of the table where the weights along x and y start.
    """

    def codegen(context, builder, sig, args):
        pixels_type, _, _, table_type, _, _ = sig.args
        pixels, corner, row, table, shift_x, shift_y = args
        total = None
        for tap in range(TAPS):
            offset = builder.add(corner, builder.mul(row, row.type(tap)))
            line = builder.load(_at(context, builder, pixels_type, pixels, offset, FLOAT_LANES), align=4)
            element = builder.add(shift_y, shift_y.type(2 * tap))
            weight = _pair_in_all(context, builder, table_type, table, element)
            total = (
                _multiply(builder, line, weight)
                if total is None
                else call_fma(builder, FLOAT_LANES, (line, weight, total))
            )
        along = builder.load(_at(context, builder, table_type, table, shift_x, FLOAT_LANES), align=64)
        total = _multiply(builder, total, along)
        # The last four lanes lie beyond the footprint: zeros, even where these were no numbers.
        zeros = ir.Constant(FLOAT_LANES, [0.0] * LANES)
        eight = _add(
            builder,
            _pick(builder, total, zeros, list(range(8))),
            _pick(builder, total, zeros, [*range(8, 12), *range(16, 20)]),
        )
        return context.make_tuple(builder, sig.return_type, _halved(builder, eight))

    flat = types.intp
    return types.UniTuple(types.float32, 2)(pixels, flat, flat, table, flat, flat), codegen


# --- Stretched --------------------------------------------------------------------------------------------


@intrinsic
def _splat_pair(typingctx, table, element):
    """Return w and w^2, which lie at `element` of the table, in all lanes."""

    def codegen(context, builder, sig, args):
        return _pair_in_all(context, builder, sig.args[0], *args)

    return lanes(table, types.intp), codegen


@intrinsic
def _times_weights(typingctx, values, weights, count):
    """Return the products of the first `count` lanes; 0 in the others, even where these are no numbers."""

    def codegen(context, builder, sig, args):
        values, weights, count = args
        nothing = ir.Constant(INTEGER_LANES, ir.Undefined)
        first = builder.insert_element(nothing, builder.trunc(count, _INDEX), _INDEX(0))
        end = _pick(builder, first, nothing, [0] * LANES)
        within = builder.icmp_signed("<", ir.Constant(INTEGER_LANES, list(range(LANES))), end)
        return builder.select(
            within, _multiply(builder, values, weights), ir.Constant(FLOAT_LANES, [0.0] * LANES)
        )

    return lanes(lanes, lanes, types.intp), codegen


@intrinsic
def _sum_pairs(typingctx, values):
    """Return the sum of the even lanes, and that of the odd."""

    def codegen(context, builder, sig, args):
        low, high = (_pick(builder, args[0], args[0], list(range(n, n + 8))) for n in (0, 8))
        return context.make_tuple(builder, sig.return_type, _halved(builder, _add(builder, low, high)))

    return types.UniTuple(types.float32, 2)(lanes), codegen


@kernel
def stretched_sums(pixels, corner, row, table, taps, width, shift_x, shift_y):
    """Return the sums over taps x taps pixels of w times image and of w^2 times variance.

    As :func:`plain_sums`, for a table whose shifts take `width` elements; read up to seven pixels beyond the
    footprint.
    """
    total = splat(types.float32(0.0))
    for lane in range(0, width, LANES):
        column = splat(types.float32(0.0))
        for tap in range(taps):
            line = load_lanes(pixels, corner + tap * row + lane)
            column = fma(line, _splat_pair(table, shift_y + 2 * tap), column)
        along = load_lanes(table, shift_x + lane)
        total = total + _times_weights(column, along, 2 * taps - lane)
    return _sum_pairs(total)
