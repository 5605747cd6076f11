"""Sixteen float32 as one value of a kernel, whose lanes are rounded each on its own, wherever they lie."""

from __future__ import annotations

import operator

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

#: Values side by side in one vector.
LANES = 16


class Lanes(types.Type):
    """Sixteen float32 side by side: +, - and * act lane by lane, each rounded on its own.

    LLVM makes of it one 512-bit register, two of 256 bits or four of 128, with the same bits.
    """

    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


lanes = Lanes()
FLOAT_LANES = ir.VectorType(ir.FloatType(), LANES)
INTEGER_LANES = ir.VectorType(ir.IntType(32), LANES)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """Held as one LLVM vector."""

    def __init__(self, manager, frontend_type):
        super().__init__(manager, frontend_type, FLOAT_LANES)


def _define_operator(function, instruction):
    @infer_global(function)
    class LanesOperator(ConcreteTemplate):
        key = function
        cases = [signature(lanes, lanes, lanes)]  # noqa: RUF012

    @lower_builtin(function, lanes, lanes)
    def lower(context, builder, sig, args):
        # A flag of its own keeps `contract` away: which product is fused must not depend on its place.
        return getattr(builder, instruction)(*args, flags=("nsz",))


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), FLOAT_LANES.as_pointer())


@intrinsic
def load_lanes(typingctx, array, index):
    """Return `array[index : index + 16]` of a flat float32 array, unchecked."""

    def codegen(context, builder, sig, args):
        return builder.load(_address(context, builder, sig.args[0], *args), align=4)

    return lanes(array, types.intp), codegen


@intrinsic
def store_lanes(typingctx, array, index, value):
    """Set `array[index : index + 16]` of a flat float32 array, unchecked."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), codegen


@intrinsic
def splat(typingctx, scalar):
    """Return one float32 in all lanes."""

    def codegen(context, builder, sig, args):
        nothing = ir.Constant(FLOAT_LANES, ir.Undefined)
        first = builder.insert_element(nothing, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, nothing, ir.Constant(INTEGER_LANES, [0] * LANES))

    return lanes(types.float32), codegen


def call_fma(builder, kind, args):
    """Return a * b + c, rounded once, of LLVM values of one type: sixteen lanes or a float64."""
    name = f"llvm.fma.v{LANES}f32" if kind is FLOAT_LANES else "llvm.fma.f64"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, args)


@intrinsic
def fma(typingctx, a, b, c):
    """Return a * b + c of lanes, rounded once."""

    def codegen(context, builder, sig, args):
        return call_fma(builder, FLOAT_LANES, args)

    return lanes(lanes, lanes, lanes), codegen


@intrinsic
def fma_float64(typingctx, a, b, c):
    """Return a * b + c in float64, rounded once."""

    def codegen(context, builder, sig, args):
        return call_fma(builder, ir.DoubleType(), args)

    return types.float64(types.float64, types.float64, types.float64), codegen


@intrinsic
def lesser(typingctx, a, b):
    """Return a where a < b, else b: b where a is not a number."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", *args, flags=("nsz",)), *args)

    return lanes(lanes, lanes), codegen


@intrinsic
def times_power_of_two(typingctx, value, exponent):
    """Return value * 2**n, n being the integer in the low bits of `exponent`."""

    def codegen(context, builder, sig, args):
        bits, low_bits = (builder.bitcast(arg, INTEGER_LANES) for arg in args)
        shifted = builder.shl(low_bits, ir.Constant(INTEGER_LANES, [23] * LANES))
        return builder.bitcast(builder.add(bits, shifted), FLOAT_LANES)

    return lanes(lanes, lanes), codegen
