"""Our logarithm and exponential, against extended precision, and bit for bit between lanes."""

from __future__ import annotations

import numpy as np
import pytest

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64, log64


@kernel
def log_all(x):
    result = np.empty_like(x)
    for i in range(x.size):
        result[i] = log64(x[i])
    return result


@kernel
def exp_all(x):
    result = np.empty_like(x)
    for i in range(x.size):
        result[i] = exp64(x[i])
    return result


@kernel
def log_one(x):
    return log64(x)


@kernel
def exp_one(x):
    return exp64(x)


def units_in_last_place(values, exact):
    """Error of float64 `values` against extended precision, in units of the last place."""
    return np.abs(values - exact) / np.spacing(np.abs(exact).astype(np.float64))


def log_arguments(rng):
    return np.concatenate(
        [
            np.exp(rng.uniform(-708, 709, 200_000)),
            rng.uniform(0.5, 2.0, 200_000),
            1.0 + rng.normal(0.0, 1e-7, 100_000),
            1e-4 * rng.uniform(0.99, 1.01, 1000),
            rng.integers(1, 65536, 100_000).astype(float),
            [1.0, 2.0, 0.5, np.sqrt(0.5), np.sqrt(2.0), np.finfo(float).smallest_normal, np.finfo(float).max],
        ]
    )


def exp_arguments(rng):
    return np.concatenate(
        [
            rng.uniform(-708, 708, 200_000),
            rng.normal(0.0, 1.0, 200_000),
            rng.normal(0.0, 1e-9, 10_000),
            np.log(2.0) * (rng.integers(-1000, 1000, 10_000) + 0.5),
            [0.0, -0.0, 708.0, -708.0],
        ]
    )


needs_extended = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="this machine's long double is no wider than double"
)


@needs_extended
def test_log_is_within_a_unit_in_the_last_place():
    x = log_arguments(np.random.default_rng(1))
    assert units_in_last_place(log_all(x), np.log(x.astype(np.longdouble))).max() < 1.0


@needs_extended
def test_exp_is_within_little_more_than_a_unit_in_the_last_place():
    x = exp_arguments(np.random.default_rng(2))
    assert units_in_last_place(exp_all(x), np.exp(x.astype(np.longdouble))).max() < 1.1


def test_both_agree_with_numpy():
    rng = np.random.default_rng(3)
    x, y = log_arguments(rng), exp_arguments(rng)
    np.testing.assert_allclose(log_all(x), np.log(x), rtol=4e-16)
    np.testing.assert_allclose(exp_all(y), np.exp(y), rtol=4e-16)


def test_exact_values():
    assert log_one(1.0) == 0.0
    assert exp_one(0.0) == 1.0
    assert exp_one(np.log(2.0)) == 2.0


def test_log_out_of_its_domain():
    floor = log_one(np.finfo(float).smallest_normal)
    assert floor == pytest.approx(-708.396, abs=1e-3)
    np.testing.assert_array_equal(
        log_all(np.array([0.0, -0.0, -1.0, -np.inf, 5e-324, np.inf, np.nan])),
        [floor, floor, floor, floor, floor, np.inf, np.nan],
    )


def test_exp_is_clamped():
    low, high = exp_one(-708.0), exp_one(708.0)
    np.testing.assert_array_equal(
        exp_all(np.array([-709.0, -1e300, -np.inf, 709.0, 1e300, np.inf, np.nan])),
        [low, low, low, high, high, high, np.nan],
    )


@pytest.mark.parametrize(
    "many, one, arguments", [(log_all, log_one, log_arguments), (exp_all, exp_one, exp_arguments)]
)
def test_same_bits_in_every_lane_and_alone(many, one, arguments):
    x = np.random.default_rng(4).choice(arguments(np.random.default_rng(5)), 300)
    alone = np.array([one(value) for value in x])
    for start in range(20):
        for stop in (start + 1, start + 7, 100 + start, x.size):
            assert many(x[start:stop].copy()).tobytes() == alone[start:stop].tobytes()
