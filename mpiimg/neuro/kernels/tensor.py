"""The diffusion tensor: linear fits of the log-signal.

Voxels lie along the last axis and are worked on in blocks of `BLOCK_VOXELS`, so that
every inner loop runs over lanes and becomes SIMD code. The last block is filled
up with lanes that are thrown away: a voxel takes the same instructions wherever
it lies, and its result does not depend on its neighbours, on its place or on
how many voxels there are, to the last bit.
"""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64
from mpiimg.neuro.kernels.tensor_blocks import GROUP, accumulate, load_logs, scale_design, weigh
from mpiimg.neuro.kernels.tensor_solve import BLOCK_VOXELS, solve_cholesky, solve_qr, store_block

#: Of each solution of a weighted fit, whether the signals that weigh it are the measured ones or those
#: that the solution before it predicts.
_WLS_ROUNDS = np.array([False])
_IWLS_ROUNDS = np.array([True, False, False])


def design_matrix(bvals: np.ndarray, bvecs: np.ndarray) -> np.ndarray:
    """Return the matrix that takes a tensor and -ln S0 to the logarithm of the signal.

    Parameters
    ----------
    bvals : (V,) array
        Diffusion weighting, s/mm^2.
    bvecs : (V, 3) array
        Gradient directions, unit vectors, or zero where the b-value is zero.

    Returns
    -------
    (V, 7) float64 array
        Rows -[b gx gx, 2 b gx gy, b gy gy, 2 b gx gz, 2 b gy gz, b gz gz, 1], for
        the unknowns Dxx, Dxy, Dyy, Dxz, Dyz, Dzz, -ln S0: dipy's convention.

    References
    ----------
    Basser, Mattiello and LeBihan, J. Magn. Reson. B 103 (1994) 247.
    """
    bvals = np.asarray(bvals, dtype=np.float64)
    x, y, z = np.asarray(bvecs, dtype=np.float64).T
    # Factors in dipy's order, for equality to the last bit.
    columns = [x * x * 1.0, x * y * 2.0, y * y * 1.0, x * z * 2.0, y * z * 2.0, z * z * 1.0]
    return -np.stack([column * bvals for column in columns] + [np.ones_like(bvals)], axis=1)


def fit_ols(signal: np.ndarray, design: np.ndarray, min_signal: float = 1e-4) -> np.ndarray:
    """Fit the tensor by ordinary least squares of the log-signal.

    Parameters
    ----------
    signal : (V, n) float32 or float64 array
        Voxels along the last axis. NaN anywhere in a voxel gives NaN parameters.
    design : (V, 7) float64 array
        From :func:`design_matrix`.
    min_signal : float
        Smaller signals are raised to this, as in dipy.

    Returns
    -------
    (7, n) float64 array
        Dxx, Dxy, Dyy, Dxz, Dyz, Dzz in the inverse unit of b, and -ln S0.

    Raises
    ------
    ValueError
        If the design does not determine the tensor (fewer than six directions,
        or no second b-value), shapes differ or `min_signal` is not positive.
    """
    signal, scaled = _prepare(signal, design, min_signal)
    parameters = _ols(signal, scaled.inverse, float(min_signal))
    parameters[:6] /= scaled.scale
    return parameters


def fit_wls(signal: np.ndarray, design: np.ndarray, min_signal: float = 1e-4) -> np.ndarray:
    """Fit the tensor by weighted least squares of the log-signal.

    Parameters, result and errors are those of :func:`fit_ols`. Weights are the
    squared signals that the ordinary fit predicts. The correction of the ordinary
    fit is solved for from normal equations in float64, by Cholesky; where a pivot
    loses six digits, by Householder QR of the weighted design; and where that is
    singular (the weights leave fewer than seven volumes) the ordinary fit stands.
    So finite signals give finite parameters.

    References
    ----------
    Chung, Lu and Henry, NeuroImage 33 (2006) 531; dipy `wls_fit_tensor`.
    """
    signal, scaled = _prepare(signal, design, min_signal)
    return _weighted(signal, scaled, min_signal, _WLS_ROUNDS)


def fit_iwls(signal: np.ndarray, design: np.ndarray, min_signal: float = 1e-4) -> np.ndarray:
    """Fit the tensor by least squares of the log-signal, weighted anew by each solution.

    Parameters, result and errors are those of :func:`fit_ols`. The first weights are the squared signals
    themselves, then twice those that the solution predicts: the default of MRtrix3's dwi2tensor. Where a
    round of weights is singular, the solution before it stands, so finite signals give finite parameters;
    the first of all is the ordinary fit. How each is solved for is said of :func:`fit_wls`.

    References
    ----------
    Veraart et al., NeuroImage 81 (2013) 335, doi:10.1016/j.neuroimage.2013.05.028.
    """
    signal, scaled = _prepare(signal, design, min_signal)
    return _weighted(signal, scaled, min_signal, _IWLS_ROUNDS)


def _weighted(signal, scaled, min_signal, rounds):
    tables = scaled.rows, scaled.columns, scaled.products, scaled.inverse
    parameters = _solve_rounds(signal, *tables, float(min_signal), rounds)
    parameters[:6] /= scaled.scale
    return parameters


def _prepare(signal, design, min_signal):
    """Check the arguments of a fit; return the signal as the kernels take it, and the scaled design."""
    signal = np.asarray(signal)
    design = np.asarray(design, dtype=np.float64)
    if design.ndim != 2 or design.shape[1] != 7:
        raise ValueError(f"design matrix has shape {design.shape}, not (volumes, 7)")
    if signal.ndim != 2 or signal.shape[0] != design.shape[0]:
        raise ValueError(f"signal has shape {signal.shape}, not ({design.shape[0]}, voxels)")
    if not min_signal > 0:
        raise ValueError(f"min_signal is {min_signal}, but a logarithm needs it above 0")
    dtype = np.float32 if signal.dtype == np.float32 else np.float64
    return np.ascontiguousarray(signal, dtype=dtype), scale_design(design)


@kernel
def _ols(signal, inverse, min_signal):
    """Return the (7, n) ordinary fit in scaled units."""
    n = signal.shape[1]
    parameters = np.empty((7, n))
    logs = np.zeros((inverse.shape[0] * GROUP, BLOCK_VOXELS))
    beta = np.empty((7, BLOCK_VOXELS))
    for start in range(0, n, BLOCK_VOXELS):
        width = min(BLOCK_VOXELS, n - start)
        load_logs(signal, start, width, min_signal, logs)
        accumulate(inverse, logs, beta)
        store_block(beta, width, start, parameters)
    return parameters


@kernel
def _solve_rounds(signal, rows, columns, products, inverse, min_signal, rounds):
    """Return the (7, n) weighted fit in scaled units, after a solution for each of `rounds`."""
    volumes, n = signal.shape
    parameters = np.empty((7, n))
    # Rows past the last volume stay zero in all three.
    logs = np.zeros((inverse.shape[0] * GROUP, BLOCK_VOXELS))
    weights, residuals = np.zeros_like(logs), np.zeros_like(logs)
    beta = np.empty((7, BLOCK_VOXELS))
    matrix = np.empty((28, BLOCK_VOXELS))
    correction = np.empty((7, BLOCK_VOXELS))
    safe = np.empty(BLOCK_VOXELS)
    for start in range(0, n, BLOCK_VOXELS):
        width = min(BLOCK_VOXELS, n - start)
        load_logs(signal, start, width, min_signal, logs)
        accumulate(inverse, logs, beta)
        for by_measured in rounds:
            weigh(rows, beta, logs, by_measured, weights, residuals)
            accumulate(products, weights, matrix)
            accumulate(columns, residuals, correction)
            solve_cholesky(matrix, correction, safe)
            for lane in range(width):
                if safe[lane] == 0.0:
                    solve_qr(logs[:volumes, lane], rows, beta[:, lane], by_measured, correction[:, lane])
            for q in range(7):
                for lane in range(BLOCK_VOXELS):
                    beta[q, lane] += correction[q, lane]
        store_block(beta, width, start, parameters)
    return parameters


def fit_residual(signal: np.ndarray, design: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Return the root mean square over volumes of the signal minus the fitted signal.

    Parameters
    ----------
    signal : (V, n) float32 or float64 array
        As given to the fit; not clamped.
    design : (V, 7) float64 array
    parameters : (7, n) float64 array

    Returns
    -------
    (n,) float64 array
        Unit of the signal.
    """
    dtype = np.float32 if signal.dtype == np.float32 else np.float64
    signal = np.ascontiguousarray(signal, dtype=dtype)
    parameters = np.ascontiguousarray(parameters, dtype=np.float64)
    design = np.ascontiguousarray(design, dtype=np.float64)
    if (7, signal.shape[1]) != parameters.shape or (signal.shape[0], 7) != design.shape:
        raise ValueError(
            f"signal {signal.shape}, design {design.shape} and parameters {parameters.shape} do not match"
        )
    return _residual(signal, design, parameters)


@kernel
def _residual(signal, design, parameters):
    volumes, n = signal.shape
    result = np.empty((1, n))
    beta = np.zeros((7, BLOCK_VOXELS))
    measured = np.zeros(BLOCK_VOXELS)
    total = np.empty((1, BLOCK_VOXELS))
    for start in range(0, n, BLOCK_VOXELS):
        width = min(BLOCK_VOXELS, n - start)
        for q in range(7):
            for lane in range(width):
                beta[q, lane] = parameters[q, start + lane]
        total[:] = 0.0
        for volume in range(volumes):
            values = signal[volume, start : start + width]
            for lane in range(width):
                measured[lane] = values[lane]
            _add_squares(measured, design[volume], beta, total[0])
        for lane in range(BLOCK_VOXELS):
            total[0, lane] = np.sqrt(total[0, lane] / volumes)
        store_block(total, width, start, result)
    return result[0]


@kernel
def _add_squares(measured, row, beta, total):
    """Add the squares of the measured minus the fitted signals of one volume."""
    x0, x1, x2, x3, x4, x5, x6 = row[0], row[1], row[2], row[3], row[4], row[5], row[6]
    b = beta.reshape(7 * BLOCK_VOXELS)
    for lane in range(BLOCK_VOXELS):
        value = x0 * b[lane] + x1 * b[BLOCK_VOXELS + lane] + x2 * b[2 * BLOCK_VOXELS + lane]
        value = value + x3 * b[3 * BLOCK_VOXELS + lane] + x4 * b[4 * BLOCK_VOXELS + lane]
        value = value + x5 * b[5 * BLOCK_VOXELS + lane] + x6 * b[6 * BLOCK_VOXELS + lane]
        difference = measured[lane] - exp64(value)
        total[lane] += difference * difference


def precompile() -> None:
    """Call the kernels on a tiny input of each type that the fit gives them."""
    bvecs = np.vstack([np.zeros((1, 3)), np.eye(3), (1 - np.eye(3)) / np.sqrt(2)])
    design = design_matrix(np.array([0.0] + [1000.0] * 6), bvecs)
    for dtype in (np.float32, np.float64):
        signal = np.exp(-np.ones((7, 3))).astype(dtype)
        for fitter in (fit_ols, fit_wls, fit_iwls):
            parameters = fitter(signal, design)
            fit_residual(signal, design, parameters)
