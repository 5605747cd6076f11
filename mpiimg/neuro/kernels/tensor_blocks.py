"""What the fits of a tensor share: the scaled design, logarithms and weights, sums over volumes by block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64, log64
from mpiimg.neuro.kernels.tensor_solve import BLOCK_VOXELS

#: Volumes that one pass over the sums of a block takes in; :func:`accumulate` spells them out.
GROUP = 8


class Scaled(NamedTuple):
    """A design matrix made ready for the kernels, with diffusion columns near 1."""

    #: The design with its diffusion columns divided by `scale`, shape (V, 7).
    rows: np.ndarray
    #: Grouped (see :func:`grouped`): the rows, for sums X' r.
    columns: np.ndarray
    #: Grouped: products of two columns, packed lower triangle, for sums X' W X.
    products: np.ndarray
    #: Grouped: the pseudo-inverse of the rows.
    inverse: np.ndarray
    #: A power of two, so that dividing by it is exact.
    scale: float


def scale_design(design: np.ndarray) -> Scaled:
    largest = np.abs(design[:, :6]).max(initial=0.0)
    scale = 2.0 ** np.ceil(np.log2(largest)) if largest > 0 else 1.0
    rows = design / np.array([scale] * 6 + [1.0])
    rank = np.linalg.matrix_rank(rows)
    if rank < 7:
        raise ValueError(
            f"the gradients determine {rank} of a tensor's 7 unknowns: "
            "six directions and a second b-value (usually b=0) are needed"
        )
    q, r = np.tril_indices(7)
    return Scaled(
        rows=rows,
        columns=grouped(rows),
        products=grouped(rows[:, q] * rows[:, r]),
        inverse=grouped(np.linalg.pinv(rows).T),
        scale=scale,
    )


def grouped(coefficients: np.ndarray) -> np.ndarray:
    """Turn (V, m) into (groups, m, GROUP), with zeros after the last volume."""
    padded = np.pad(coefficients, ((0, -len(coefficients) % GROUP), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, GROUP, coefficients.shape[1]).swapaxes(1, 2))


@kernel
def load_logs(signal, start, width, min_signal, logs):
    """Fill `logs` with the logarithms of a block of voxels; lanes past `width` take log 1."""
    if width == BLOCK_VOXELS:
        for volume in range(signal.shape[0]):
            _clamped_logs(signal[volume, start : start + BLOCK_VOXELS], min_signal, logs[volume])
        return
    padded = np.ones(BLOCK_VOXELS, signal.dtype)
    for volume in range(signal.shape[0]):
        for lane in range(width):
            padded[lane] = signal[volume, start + lane]
        _clamped_logs(padded, min_signal, logs[volume])


@kernel
def _clamped_logs(values, min_signal, logs):
    for lane in range(BLOCK_VOXELS):
        value = np.float64(values[lane])
        logs[lane] = log64(min_signal if value < min_signal else value)


@kernel
def accumulate(coefficients, values, totals):
    """Set totals (m, lanes) to the sum over volumes, in order, of coefficient times value.

    coefficients are grouped; values have shape (groups * GROUP, BLOCK_VOXELS). Each total is
    loaded and stored once a group, and rows that share a base address cost one check for overlap.
    """
    totals[:] = 0.0
    groups, rows, _ = coefficients.shape
    values = values.reshape(groups, GROUP * BLOCK_VOXELS)
    for group in range(groups):
        v = values[group]
        for row in range(rows):
            c = coefficients[group, row]
            c0, c1, c2, c3, c4, c5, c6, c7 = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
            total = totals[row]
            for lane in range(BLOCK_VOXELS):
                value = total[lane] + c0 * v[lane] + c1 * v[BLOCK_VOXELS + lane]
                value = value + c2 * v[2 * BLOCK_VOXELS + lane] + c3 * v[3 * BLOCK_VOXELS + lane]
                value = value + c4 * v[4 * BLOCK_VOXELS + lane] + c5 * v[5 * BLOCK_VOXELS + lane]
                total[lane] = value + c6 * v[6 * BLOCK_VOXELS + lane] + c7 * v[7 * BLOCK_VOXELS + lane]


@kernel
def weigh(rows, beta, logs, by_measured, weights, residuals):
    """Set the weights around the fit `beta` (7, lanes), and the weighted residuals of `logs` from it.

    A weight is the square of the signal that is predicted, or of the measured one if `by_measured`, over
    the largest in its voxel, so that nothing overflows. Solving for the residuals rather than for the logs
    keeps rounding errors relative to the correction.
    """
    peak = np.full(BLOCK_VOXELS, -np.inf)
    b = beta.reshape(7 * BLOCK_VOXELS)
    for volume in range(rows.shape[0]):
        x = rows[volume]
        x0, x1, x2, x3, x4, x5, x6 = x[0], x[1], x[2], x[3], x[4], x[5], x[6]
        y, w, r = logs[volume], weights[volume], residuals[volume]
        for lane in range(BLOCK_VOXELS):
            value = x0 * b[lane] + x1 * b[BLOCK_VOXELS + lane] + x2 * b[2 * BLOCK_VOXELS + lane]
            value = value + x3 * b[3 * BLOCK_VOXELS + lane] + x4 * b[4 * BLOCK_VOXELS + lane]
            w[lane] = value + x5 * b[5 * BLOCK_VOXELS + lane] + x6 * b[6 * BLOCK_VOXELS + lane]
        for lane in range(BLOCK_VOXELS):
            r[lane] = y[lane] - w[lane]
        if by_measured:
            for lane in range(BLOCK_VOXELS):
                w[lane] = y[lane]
        for lane in range(BLOCK_VOXELS):
            peak[lane] = w[lane] if w[lane] > peak[lane] else peak[lane]
    for volume in range(rows.shape[0]):
        w, r = weights[volume], residuals[volume]
        for lane in range(BLOCK_VOXELS):
            weight = exp64(2.0 * (w[lane] - peak[lane]))
            w[lane] = weight
            r[lane] = weight * r[lane]
