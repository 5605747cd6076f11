"""What a fitted tensor leaves unexplained of the signal: residuals with the leverage of their volumes.

Voxels lie along the last axis, and are worked on in blocks as by the fits: a voxel's values do not depend on
its neighbours, nor on how many there are, to the last bit.
"""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64
from mpiimg.neuro.kernels.tensor_blocks import GROUP, accumulate, scale_design
from mpiimg.neuro.kernels.tensor_solve import BLOCK_VOXELS, solve_cholesky

#: 1 - leverage is taken as this where it is less: a volume that alone fixes an unknown has no residual.
MIN_REST = 1e-6


def unexplained(
    signal: np.ndarray, design: np.ndarray, parameters: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the residuals of a weighted fit, each as large as the noise of its volume.

    Parameters
    ----------
    signal : (V, n) float32 or float64 array
        As given to the fit.
    design : (V, 7) float64 array
    parameters : (7, n) float64 array
        Fitted with the squares of the predicted signals as weights.

    Returns
    -------
    residuals : (V, n) float32 array
        (S - P) / sqrt(1 - h), S the signal, P the prediction and h the leverage of the volume: the diagonal
        of sqrt(W) X (X' W X)^-1 X' sqrt(W) with W = P**2. Unit of the signal; NaN in voxels whose weights
        leave the tensor undetermined.
    smallest : (n,) float32 array
        The smallest prediction of each voxel.
    """
    scaled = scale_design(np.asarray(design, np.float64))
    parameters = np.array(parameters, np.float64)
    parameters[:6] *= scaled.scale
    residuals = np.empty(signal.shape, np.float32)
    smallest = np.empty(signal.shape[1], np.float32)
    _unexplained(np.ascontiguousarray(signal), scaled.rows, scaled.products, parameters, residuals, smallest)
    return residuals, smallest


@kernel
def _unexplained(signal, rows, products, parameters, residuals, smallest):
    volumes, n = signal.shape
    predicted = np.empty((volumes, BLOCK_VOXELS))
    # Rows past the last volume stay zero.
    weights = np.zeros((products.shape[0] * GROUP, BLOCK_VOXELS))
    beta = np.zeros((7, BLOCK_VOXELS))
    factor = np.empty((28, BLOCK_VOXELS))
    nothing = np.zeros((7, BLOCK_VOXELS))
    safe = np.empty(BLOCK_VOXELS)
    leverage = np.empty(BLOCK_VOXELS)
    for start in range(0, n, BLOCK_VOXELS):
        width = min(BLOCK_VOXELS, n - start)
        for q in range(7):
            for lane in range(width):
                beta[q, lane] = parameters[q, start + lane]
        _predict(rows, beta, predicted, weights)
        accumulate(products, weights, factor)
        nothing[:] = 0.0
        solve_cholesky(factor, nothing, safe)
        least = np.full(BLOCK_VOXELS, np.inf)
        for volume in range(volumes):
            _leverage(rows[volume], factor, weights[volume], leverage)
            for lane in range(width):
                value = predicted[volume, lane]
                least[lane] = min(least[lane], value)
                rest = max(1.0 - leverage[lane], MIN_REST)
                residual = (np.float64(signal[volume, start + lane]) - value) / np.sqrt(rest)
                residuals[volume, start + lane] = residual if safe[lane] == 1.0 else np.nan
        for lane in range(width):
            smallest[start + lane] = least[lane]


@kernel
def _predict(rows, beta, predicted, weights):
    """Set the predicted signals, and weights: their squares over the largest in the voxel."""
    peak = np.full(BLOCK_VOXELS, -np.inf)
    b = beta.reshape(7 * BLOCK_VOXELS)
    for volume in range(rows.shape[0]):
        x, p = rows[volume], predicted[volume]
        x0, x1, x2, x3, x4, x5, x6 = x[0], x[1], x[2], x[3], x[4], x[5], x[6]
        for lane in range(BLOCK_VOXELS):
            value = x0 * b[lane] + x1 * b[BLOCK_VOXELS + lane] + x2 * b[2 * BLOCK_VOXELS + lane]
            value = value + x3 * b[3 * BLOCK_VOXELS + lane] + x4 * b[4 * BLOCK_VOXELS + lane]
            p[lane] = value + x5 * b[5 * BLOCK_VOXELS + lane] + x6 * b[6 * BLOCK_VOXELS + lane]
        for lane in range(BLOCK_VOXELS):
            peak[lane] = p[lane] if p[lane] > peak[lane] else peak[lane]
    for volume in range(rows.shape[0]):
        p, w = predicted[volume], weights[volume]
        for lane in range(BLOCK_VOXELS):
            w[lane] = exp64(2.0 * (p[lane] - peak[lane]))
        for lane in range(BLOCK_VOXELS):
            p[lane] = exp64(p[lane])


@kernel
def _leverage(row, factor, weights, leverage):
    """Set the leverage of a volume: its weight times the squared norm of L^-1 x, L L' being X' W X."""
    solved = np.empty((7, BLOCK_VOXELS))
    leverage[:] = 0.0
    for q in range(7):
        first = q * (q + 1) // 2
        one = solved[q]
        one[:] = row[q]
        for s in range(q):
            for lane in range(BLOCK_VOXELS):
                one[lane] -= factor[first + s, lane] * solved[s, lane]
        for lane in range(BLOCK_VOXELS):
            # The diagonal of the factor is inverted already.
            one[lane] *= factor[first + q, lane]
            leverage[lane] += one[lane] * one[lane]
    for lane in range(BLOCK_VOXELS):
        leverage[lane] *= weights[lane]


def precompile() -> None:
    """Call the kernel on a tiny input of each type that the noise level gives it."""
    from mpiimg.neuro.kernels.tensor import design_matrix, fit_iwls

    bvecs = np.vstack([np.zeros((1, 3)), np.eye(3), (1 - np.eye(3)) / np.sqrt(2)])
    design = design_matrix(np.array([0.0] + [1000.0] * 6), bvecs)
    for dtype in (np.float32, np.float64):
        signal = np.exp(-np.ones((7, 3))).astype(dtype)
        unexplained(signal, design, fit_iwls(signal, design))
