"""Logarithm and exponential that are the same to the last bit in every lane.

Straight-line float64 arithmetic on the bits of a number, without branches or
tables, so that LLVM turns a loop over them into SIMD code for any width. The C
library's versions stay scalar, and the vector libraries' scalar tails differ
from their vector bodies.
"""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.bits import bits_from_float64, float64_from_bits
from mpiimg.kernels.jit import kernel

#: Arguments of :func:`exp64` are clamped to this range: results stay finite and normal.
EXP_LIMIT = 708.0

LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
LOG2_E = 1.4426950408889634

_SMALLEST_NORMAL = float(np.finfo(np.float64).smallest_normal)
_LARGEST = float(np.finfo(np.float64).max)

# Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits of the sum.
_ROUND = 6755399441055744.0
# 2^52 with a biased exponent in its low bits, as an integer and as a number.
_TWO_52_BITS = 0x4330000000000000
_TWO_52_AND_BIAS = 4503599627370496.0 + 1023.0

_MANTISSA = 0x000FFFFFFFFFFFFF
# sqrt(1/2), cut to 20 bits of mantissa: the mantissas of log64 lie in [sqrt(1/2), sqrt(2)).
_SQRT_HALF_BITS = 0x3FE6A09E00000000
_SQRT_HALF_TO_ONE = 0x3FF0000000000000 - _SQRT_HALF_BITS


@kernel(inline=True)
def log64(x):
    """Return the natural logarithm of the float64 `x`, within one unit in the last place.

    Below the smallest normal number (2.2e-308), zero and negative numbers
    included, the result is that of the smallest normal number, -708.4. NaN
    gives NaN and infinity infinity.

    The mantissa is brought into [sqrt(1/2), sqrt(2)); log(1 + f) then is the
    series of atanh(f / (2 + f)), with the coefficients of FreeBSD's `e_log.c`
    (Sun Microsystems, 1993).
    """
    normal = _SMALLEST_NORMAL if x < _SMALLEST_NORMAL else x
    shifted = bits_from_float64(normal) + _SQRT_HALF_TO_ONE
    # The exponent by way of 2^52: AVX2 cannot convert 64-bit integers.
    exponent = float64_from_bits(((shifted >> 52) & 0x7FF) | _TWO_52_BITS) - _TWO_52_AND_BIAS
    f = float64_from_bits((shifted & _MANTISSA) + _SQRT_HALF_BITS) - 1.0
    s = f / (2.0 + f)
    z = s * s
    series = 1.479819860511658591e-01
    series = series * z + 1.531383769920937332e-01
    series = series * z + 1.818357216161805012e-01
    series = series * z + 2.222219843214978396e-01
    series = series * z + 2.857142874366239149e-01
    series = series * z + 3.999999999940941908e-01
    series = series * z + 6.666666666666735130e-01
    half_square = 0.5 * f * f
    small = s * (half_square + z * series) + exponent * LN2_LOW
    result = exponent * LN2_HIGH - ((half_square - small) - f)
    return result if x <= _LARGEST else x


@kernel(inline=True)
def exp64(x):
    """Return e to the float64 `x`, within 1.1 units in the last place; x is clamped to +-708.

    So the result lies between 3.3e-308 and 3.0e307 for every number, infinity
    included. NaN gives NaN.

    With k the integer nearest x / ln 2 and r = x - k ln 2, the result is
    2^k (1 + r + r^2 Q(r)); Q interpolates at ten Chebyshev nodes of
    |r| <= ln(2) / 2, with a relative error of 1.6e-17.
    """
    x = -EXP_LIMIT if x < -EXP_LIMIT else x
    x = EXP_LIMIT if x > EXP_LIMIT else x
    rounded = x * LOG2_E + _ROUND
    k = rounded - _ROUND
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    q = 2.510039961086538e-08
    q = q * r + 2.762008960868062e-07
    q = q * r + 2.755726841902912e-06
    q = q * r + 2.4801521293369052e-05
    q = q * r + 0.0001984126986309301
    q = q * r + 0.0013888888917215493
    q = q * r + 0.008333333333330048
    q = q * r + 0.04166666666662412
    q = q * r + 0.16666666666666669
    q = q * r + 0.5000000000000001
    power = 1.0 + (r + r * r * q)
    return float64_from_bits(bits_from_float64(power) + (bits_from_float64(rounded) << 52))
