"""What the other volumes say of one: leave-one-out predictions of a linear tensor fit, and how far off it is.

Voxels lie along the last axis and are worked on in blocks of `LANES`, so that every inner loop becomes SIMD
code. Sums run over the lanes first: they are of one slice in one order, whatever else is worked on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64, log64

#: Voxels in a block.
LANES = 64

#: Share of a volume's fitted value that is its own, above which the other volumes say nothing of it.
MAX_LEVERAGE = 0.95

#: A signal is at most this many times its prediction, where ratios are averaged: one voxel is no slice.
MAX_RATIO = 5.0

#: A voxel is hot where its signal is above so many times its prediction, and off it by so many times what the
#: voxels of its slice are off by on average.
HOT_RATIO, HOT_ERRORS = 3.0, 10.0


class Sums(NamedTuple):
    """What is summed over the voxels of a slice, (V,) float64 each; `products` is (V, k)."""

    zeros: np.ndarray
    signal: np.ndarray
    squares: np.ndarray
    products: np.ndarray


class Comparison(NamedTuple):
    """How a slice compares with its prediction, (V,) float64 each; NaN where there is none.

    Parameters
    ----------
    ratio : array
        Mean over voxels of the signal over its prediction, each at most `MAX_RATIO`.
    error : array
        Mean absolute difference of the two over the mean prediction.
    hot : array
        Voxels that are far above it, and further than in any other volume: one that is far too bright lets
        the other volumes seem too dark or too bright there.
    level : array
        Mean signal over mean prediction.
    """

    ratio: np.ndarray
    error: np.ndarray
    hot: np.ndarray
    level: np.ndarray


def sums(values: np.ndarray, partners: np.ndarray) -> Sums:
    """Sum up the voxels of a slice.

    Parameters
    ----------
    values : (V, n) float32 array
    partners : (V, k) int64 array
        Volumes whose product with each volume is summed; -1 where there is none.
    """
    volumes = values.shape[0]
    plain, products = np.zeros((3, volumes)), np.zeros(partners.shape)
    _sums(np.ascontiguousarray(values, np.float32), partners, plain, products)
    return Sums(*plain, products)


@kernel
def _sums(values, partners, plain, products):
    volumes, n = values.shape
    total = np.empty(LANES)
    square = np.empty(LANES)
    for v in range(volumes):
        row = values[v]
        total[:] = 0.0
        square[:] = 0.0
        zeros = 0
        for start in range(0, n, LANES):
            width = min(LANES, n - start)
            for lane in range(width):
                x = np.float64(row[start + lane])
                total[lane] += x
                square[lane] += x * x
        for i in range(n):
            zeros += row[i] <= 0
        plain[0, v], plain[1, v], plain[2, v] = zeros, _in_order(total), _in_order(square)
        for k in range(partners.shape[1]):
            if partners[v, k] >= 0:
                other = values[partners[v, k]]
                total[:] = 0.0
                for start in range(0, n, LANES):
                    width = min(LANES, n - start)
                    for lane in range(width):
                        total[lane] += np.float64(row[start + lane]) * np.float64(other[start + lane])
                products[v, k] = _in_order(total)


@kernel
def _in_order(lanes):
    total = 0.0
    for lane in range(LANES):
        total += lanes[lane]
    return total


def predict(
    values: np.ndarray, floor: np.ndarray, rows: np.ndarray, used: np.ndarray, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Predict each volume from an ordinary fit of the log-signal to the others.

    One fit serves all volumes: without volume v its residual r is r / (1 - h), with its leverage h. That
    is exact for ordinary least squares.

    Parameters
    ----------
    values : (V, n) float32 array
    floor : (n,) float32 array
        Smaller signals are raised to it before their logarithm is taken; above 0.
    rows : (V, 7) float64 array
        Of the design matrix, columns of like size.
    used : (V,) bool array
        Volumes that are fitted, which determine all unknowns.
    members : (m,) int array
        Volumes that are predicted, those that are fitted among them.

    Returns
    -------
    predicted : (V, n) float32 array
        NaN for volumes that are no members, and those of which the others say nothing.
    mean_logs : (V,) float64 array
        Mean logarithms of the signals; NaN for volumes that are no members.
    """
    inverse = np.zeros((7, len(rows)))
    inverse[:, used] = np.linalg.pinv(rows[used])
    predicted, mean_logs = np.full(values.shape, np.nan, np.float32), np.full(len(rows), np.nan)
    _predict(
        np.ascontiguousarray(values, np.float32),
        np.ascontiguousarray(floor, np.float32),
        np.ascontiguousarray(rows, np.float64),
        np.ascontiguousarray(members, np.int64),
        inverse,
        loo_gain(rows, used),
        predicted,
        mean_logs,
    )
    return predicted, mean_logs


def loo_gain(rows: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return what residuals grow by where a volume is left out of the fit, (V,) float64: 1 / (1 - leverage).

    1 for volumes that are not fitted, and NaN where the others do not determine the fit.
    """
    leverage = np.zeros(len(rows))
    leverage[used] = (rows[used] * np.linalg.pinv(rows[used]).T).sum(axis=1)
    return np.where(leverage > MAX_LEVERAGE, np.nan, 1 / (1 - np.minimum(leverage, MAX_LEVERAGE)))


@kernel
def _predict(values, floor, rows, members, inverse, gain, predicted, mean_logs):
    n = values.shape[1]
    logs = np.zeros((len(members), LANES))
    totals = np.zeros((len(members), LANES))
    # The fit of a block, parameter after parameter.
    b = np.empty(7 * LANES)
    fitted = np.empty(LANES)
    for start in range(0, n, LANES):
        width = min(LANES, n - start)
        b[:] = 0.0
        for k, v in enumerate(members):
            log, total = logs[k], totals[k]
            for lane in range(width):
                x, low = values[v, start + lane], floor[start + lane]
                log[lane] = log64(np.float64(low if x < low else x))
            for lane in range(width, LANES):
                log[lane] = 0.0
            c0, c1, c2, c3 = inverse[0, v], inverse[1, v], inverse[2, v], inverse[3, v]
            c4, c5, c6 = inverse[4, v], inverse[5, v], inverse[6, v]
            for lane in range(LANES):
                y = log[lane]
                total[lane] += y
                b[lane] += c0 * y
                b[LANES + lane] += c1 * y
                b[2 * LANES + lane] += c2 * y
                b[3 * LANES + lane] += c3 * y
                b[4 * LANES + lane] += c4 * y
                b[5 * LANES + lane] += c5 * y
                b[6 * LANES + lane] += c6 * y
        for k, v in enumerate(members):
            log, g = logs[k], gain[v]
            x0, x1, x2, x3 = rows[v, 0], rows[v, 1], rows[v, 2], rows[v, 3]
            x4, x5, x6 = rows[v, 4], rows[v, 5], rows[v, 6]
            for lane in range(LANES):
                y = x0 * b[lane] + x1 * b[LANES + lane] + x2 * b[2 * LANES + lane] + x3 * b[3 * LANES + lane]
                y = y + x4 * b[4 * LANES + lane] + x5 * b[5 * LANES + lane] + x6 * b[6 * LANES + lane]
                fitted[lane] = exp64(log[lane] - g * (log[lane] - y))
            for lane in range(width):
                predicted[v, start + lane] = fitted[lane]
    for k, v in enumerate(members):
        mean_logs[v] = _in_order(totals[k]) / n


def compare(values: np.ndarray, predicted: np.ndarray) -> Comparison:
    """Compare the voxels of a slice with their predictions, (V, n) float32 both; predictions are above 0."""
    figures = np.empty((4, values.shape[0]))
    _compare(np.ascontiguousarray(values, np.float32), predicted, figures)
    return Comparison(*figures)


@kernel
def _compare(values, predicted, figures):
    volumes, n = values.shape
    ratio, error = np.empty(LANES), np.empty(LANES)
    signal, expected = np.empty(LANES), np.empty(LANES)
    furthest = np.zeros(n)
    for v in range(volumes):
        ratio[:] = 0.0
        error[:] = 0.0
        signal[:] = 0.0
        expected[:] = 0.0
        for start in range(0, n, LANES):
            width = min(LANES, n - start)
            for lane in range(width):
                x, p = np.float64(values[v, start + lane]), np.float64(predicted[v, start + lane])
                quotient = x / p
                ratio[lane] += MAX_RATIO if quotient > MAX_RATIO else quotient
                error[lane] += abs(x - p)
                signal[lane] += x
                expected[lane] += p
                above = furthest[start + lane]
                furthest[start + lane] = x - p if x - p > above else above
        total = _in_order(expected)
        figures[0, v], figures[1, v] = _in_order(ratio) / n, _in_order(error) / total
        figures[2, v], figures[3, v] = HOT_ERRORS * _in_order(error) / n, _in_order(signal) / total
    for v in range(volumes):
        limit = figures[2, v]
        hot = 0
        for i in range(n):
            x, p = np.float64(values[v, i]), np.float64(predicted[v, i])
            hot += (x > HOT_RATIO * p) & (x - p > limit) & (x - p >= furthest[i])
        figures[2, v] = hot if figures[0, v] == figures[0, v] else np.nan


def precompile() -> None:
    """Call the kernels on a tiny input."""
    values = np.full((8, 3), 100, np.float32)
    rows = -np.random.default_rng(0).random((8, 7))
    floor = np.ones(3, np.float32)
    sums(values, np.zeros((8, 3), np.int64))
    predicted, _ = predict(values, floor, rows, np.ones(8, bool), np.arange(8))
    compare(values, predicted)
