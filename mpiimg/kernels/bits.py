"""Reinterpret the bits of a float as an integer and back, inside kernels."""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic


def _bitcast(argument, result, llvm_type):
    @intrinsic
    def cast(typingctx, x):
        def codegen(context, builder, signature, args):
            return builder.bitcast(args[0], llvm_type)

        return result(argument), codegen

    return cast


float32_from_bits = _bitcast(types.int32, types.float32, ir.FloatType())
float64_from_bits = _bitcast(types.int64, types.float64, ir.DoubleType())
bits_from_float32 = _bitcast(types.float32, types.int32, ir.IntType(32))
bits_from_float64 = _bitcast(types.float64, types.int64, ir.IntType(64))
