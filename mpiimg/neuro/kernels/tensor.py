"""The diffusion tensor: linear fits of the log-signal, and the maps drawn from it.

Voxels lie along the last axis and are worked on in blocks of `LANES`, so that
every inner loop runs over lanes and becomes SIMD code. The last block is filled
up with lanes that are thrown away: a voxel takes the same instructions wherever
it lies, and its result does not depend on its neighbours, on its place or on
how many voxels there are, to the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64, log64

#: Voxels in a block: its logs and weights stay in the L2 cache (1 MiB) up to 1000 volumes.
LANES = 64

#: Volumes that one pass over the sums of a block takes in; :func:`_accumulate` spells them out.
_GROUP = 8

#: A pivot of the Cholesky factor below this part of its diagonal element means
#: that the normal equations have lost too many digits: the voxel is solved by QR.
_SAFE_PIVOT = 1e-6

#: A diagonal element of R below this part of the largest: no weighted solution.
_SINGULAR = 1e-13

#: Cyclic Jacobi converges quadratically; tests show what is left after these sweeps.
_SWEEPS = 5


class TensorMaps(NamedTuple):
    """What :func:`tensor_maps` returns; all float64, n voxels."""

    #: Fractional anisotropy, 0 to 1, shape (n,).
    fa: np.ndarray
    #: Mean diffusivity, unit of the tensor, shape (n,).
    md: np.ndarray
    #: Axial diffusivity, the largest eigenvalue, shape (n,).
    ad: np.ndarray
    #: Radial diffusivity, the mean of the other two, shape (n,).
    rd: np.ndarray
    #: Eigenvalues, descending and clipped, shape (3, n).
    eigenvalues: np.ndarray
    #: Principal direction, a unit vector whose largest component is positive, shape (3, n).
    v1: np.ndarray
    #: Signal without diffusion weighting, unit of the signal, shape (n,).
    s0: np.ndarray


class _Scaled(NamedTuple):
    """A design matrix made ready for the kernels, with diffusion columns near 1."""

    #: The design with its diffusion columns divided by `scale`, shape (V, 7).
    rows: np.ndarray
    #: Grouped (see :func:`_grouped`): the rows, for sums X' r.
    columns: np.ndarray
    #: Grouped: products of two columns, packed lower triangle, for sums X' W X.
    products: np.ndarray
    #: Grouped: the pseudo-inverse of the rows.
    inverse: np.ndarray
    #: A power of two, so that dividing by it is exact.
    scale: float


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


def min_diffusivity(design: np.ndarray) -> float:
    """Return dipy's lower bound of an eigenvalue, 1e-6 over the largest element of the design."""
    return 1e-6 / -float(design.min())


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
    parameters = _wls(signal, *scaled[:4], float(min_signal))
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
    return np.ascontiguousarray(signal, dtype=dtype), _scale(design)


def _scale(design: np.ndarray) -> _Scaled:
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
    return _Scaled(
        rows=rows,
        columns=_grouped(rows),
        products=_grouped(rows[:, q] * rows[:, r]),
        inverse=_grouped(np.linalg.pinv(rows).T),
        scale=scale,
    )


def _grouped(coefficients: np.ndarray) -> np.ndarray:
    """Turn (V, m) into (groups, m, _GROUP), with zeros after the last volume."""
    padded = np.pad(coefficients, ((0, -len(coefficients) % _GROUP), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, _GROUP, coefficients.shape[1]).swapaxes(1, 2))


@kernel
def _ols(signal, inverse, min_signal):
    """Return the (7, n) ordinary fit in scaled units."""
    n = signal.shape[1]
    parameters = np.empty((7, n))
    logs = np.zeros((inverse.shape[0] * _GROUP, LANES))
    beta = np.empty((7, LANES))
    for start in range(0, n, LANES):
        width = min(LANES, n - start)
        _load_logs(signal, start, width, min_signal, logs)
        _accumulate(inverse, logs, beta)
        _store(beta, width, start, parameters)
    return parameters


@kernel
def _wls(signal, rows, columns, products, inverse, min_signal):
    """Return the (7, n) weighted fit in scaled units."""
    n = signal.shape[1]
    parameters = np.empty((7, n))
    # Rows past the last volume stay zero in both.
    logs = np.zeros((inverse.shape[0] * _GROUP, LANES))
    weights = np.zeros_like(logs)
    beta = np.empty((7, LANES))
    matrix = np.empty((28, LANES))
    correction = np.empty((7, LANES))
    safe = np.empty(LANES)
    for start in range(0, n, LANES):
        width = min(LANES, n - start)
        _load_logs(signal, start, width, min_signal, logs)
        _accumulate(inverse, logs, beta)
        _weigh(rows, beta, logs, weights)
        _accumulate(products, weights, matrix)
        _accumulate(columns, logs, correction)
        _solve_cholesky(matrix, correction, safe)
        for lane in range(width):
            if safe[lane] == 0.0:
                _solve_qr(signal[:, start + lane], rows, beta[:, lane], min_signal, correction[:, lane])
        for q in range(7):
            for lane in range(LANES):
                beta[q, lane] += correction[q, lane]
        _store(beta, width, start, parameters)
    return parameters


@kernel
def _load_logs(signal, start, width, min_signal, logs):
    """Fill `logs` with the logarithms of a block of voxels; lanes past `width` take log 1."""
    if width == LANES:
        for volume in range(signal.shape[0]):
            _clamped_logs(signal[volume, start : start + LANES], min_signal, logs[volume])
        return
    padded = np.ones(LANES, signal.dtype)
    for volume in range(signal.shape[0]):
        for lane in range(width):
            padded[lane] = signal[volume, start + lane]
        _clamped_logs(padded, min_signal, logs[volume])


@kernel
def _clamped_logs(values, min_signal, logs):
    for lane in range(LANES):
        value = np.float64(values[lane])
        logs[lane] = log64(min_signal if value < min_signal else value)


@kernel
def _accumulate(coefficients, values, totals):
    """Set totals (m, lanes) to the sum over volumes, in order, of coefficient times value.

    coefficients are grouped; values have shape (groups * _GROUP, LANES). Each total is
    loaded and stored once a group, and rows that share a base address cost one check for overlap.
    """
    totals[:] = 0.0
    groups, rows, _ = coefficients.shape
    values = values.reshape(groups, _GROUP * LANES)
    for group in range(groups):
        v = values[group]
        for row in range(rows):
            c = coefficients[group, row]
            c0, c1, c2, c3, c4, c5, c6, c7 = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
            total = totals[row]
            for lane in range(LANES):
                value = total[lane] + c0 * v[lane] + c1 * v[LANES + lane]
                value = value + c2 * v[2 * LANES + lane] + c3 * v[3 * LANES + lane]
                value = value + c4 * v[4 * LANES + lane] + c5 * v[5 * LANES + lane]
                total[lane] = value + c6 * v[6 * LANES + lane] + c7 * v[7 * LANES + lane]


@kernel
def _weigh(rows, beta, logs, weights):
    """Set the weights from the ordinary fit `beta`, and turn logs into weighted residuals.

    A weight is the square of the predicted signal over the largest in its voxel,
    so that nothing overflows. Solving for the residuals rather than for the logs
    keeps rounding errors relative to the correction.
    """
    peak = np.full(LANES, -np.inf)
    b = beta.reshape(7 * LANES)
    for volume in range(rows.shape[0]):
        x = rows[volume]
        x0, x1, x2, x3, x4, x5, x6 = x[0], x[1], x[2], x[3], x[4], x[5], x[6]
        predicted = weights[volume]
        for lane in range(LANES):
            value = x0 * b[lane] + x1 * b[LANES + lane] + x2 * b[2 * LANES + lane]
            value = value + x3 * b[3 * LANES + lane] + x4 * b[4 * LANES + lane]
            predicted[lane] = value + x5 * b[5 * LANES + lane] + x6 * b[6 * LANES + lane]
        for lane in range(LANES):
            peak[lane] = predicted[lane] if predicted[lane] > peak[lane] else peak[lane]
    for volume in range(rows.shape[0]):
        y, w = logs[volume], weights[volume]
        for lane in range(LANES):
            residual = y[lane] - w[lane]
            weight = exp64(2.0 * (w[lane] - peak[lane]))
            w[lane] = weight
            y[lane] = weight * residual


@kernel
def _solve_cholesky(matrix, right, safe):
    """Replace `right` by the solution, where no pivot is lost; `safe` says 1.0 where, else 0.0.

    `matrix` becomes its Cholesky factor with inverted diagonal.
    """
    safe[:] = 1.0
    pivot = np.empty(LANES)
    for q in range(7):
        row = q * (q + 1) // 2
        for r in range(q):
            other = r * (r + 1) // 2
            for s in range(r):
                for lane in range(LANES):
                    matrix[row + r, lane] -= matrix[row + s, lane] * matrix[other + s, lane]
            for lane in range(LANES):
                matrix[row + r, lane] *= matrix[other + r, lane]
        for lane in range(LANES):
            pivot[lane] = matrix[row + q, lane]
        for s in range(q):
            for lane in range(LANES):
                pivot[lane] -= matrix[row + s, lane] * matrix[row + s, lane]
        for lane in range(LANES):
            # NaN compares false and so is kept, to show in the result.
            lost = pivot[lane] <= _SAFE_PIVOT * matrix[row + q, lane]
            safe[lane] = 0.0 if lost else safe[lane]
            matrix[row + q, lane] = 1.0 / np.sqrt(1.0 if lost else pivot[lane])
    for q in range(7):
        row = q * (q + 1) // 2
        for s in range(q):
            for lane in range(LANES):
                right[q, lane] -= matrix[row + s, lane] * right[s, lane]
        for lane in range(LANES):
            right[q, lane] *= matrix[row + q, lane]
    for q in range(6, -1, -1):
        for s in range(q + 1, 7):
            below = s * (s + 1) // 2
            for lane in range(LANES):
                right[q, lane] -= matrix[below + q, lane] * right[s, lane]
        for lane in range(LANES):
            right[q, lane] *= matrix[q * (q + 1) // 2 + q, lane]


@kernel
def _solve_qr(signal, rows, beta, min_signal, correction):
    """Set the weighted correction of one voxel's ordinary fit `beta` by Householder QR.

    The condition number of the weighted design enters once, where normal equations
    square it. A column that depends on those before it gives a correction of zero.
    """
    volumes = signal.size
    system = np.empty((volumes, 8))
    peak = -np.inf
    for volume in range(volumes):
        predicted = 0.0
        for q in range(7):
            predicted += rows[volume, q] * beta[q]
        system[volume, 7] = predicted
        peak = max(peak, predicted)
    for volume in range(volumes):
        predicted = system[volume, 7]
        root_weight = exp64(predicted - peak)
        value = np.float64(signal[volume])
        system[volume, 7] = root_weight * (log64(max(value, min_signal)) - predicted)
        for q in range(7):
            system[volume, q] = root_weight * rows[volume, q]
    correction[:] = 0.0
    if not _reduce_to_triangle(system):
        return
    for q in range(6, -1, -1):
        value = system[q, 7]
        for s in range(q + 1, 7):
            value -= system[q, s] * correction[s]
        correction[q] = value / system[q, q]


@kernel
def _reduce_to_triangle(system):
    """Bring (V, 8) to upper triangular form by Householder reflections; False if it is singular."""
    volumes = system.shape[0]
    for j in range(7):
        whole = 0.0
        rest = 0.0
        for volume in range(volumes):
            square = system[volume, j] * system[volume, j]
            whole += square
            rest += square if volume >= j else 0.0
        norm = np.sqrt(rest)
        if norm <= _SINGULAR * np.sqrt(whole):
            return False
        diagonal = -norm if system[j, j] > 0.0 else norm
        system[j, j] -= diagonal
        for k in range(j + 1, 8):
            overlap = 0.0
            for volume in range(j, volumes):
                overlap += system[volume, j] * system[volume, k]
            factor = overlap / (diagonal * system[j, j])
            for volume in range(j, volumes):
                system[volume, k] += factor * system[volume, j]
        system[j, j] = diagonal
        for volume in range(j + 1, volumes):
            system[volume, j] = 0.0
    return True


@kernel
def _store(block, width, start, array):
    """Copy the first `width` lanes of a block to the columns of `array` from `start`."""
    for row in range(block.shape[0]):
        for lane in range(width):
            array[row, start + lane] = block[row, lane]


def tensor_maps(parameters: np.ndarray, min_diffusivity: float) -> TensorMaps:
    """Return the maps of fitted tensors.

    Parameters
    ----------
    parameters : (7, n) float64 array
        From :func:`fit_wls` or :func:`fit_ols`.
    min_diffusivity : float
        Smaller eigenvalues, negative ones included, are raised to this; see
        :func:`min_diffusivity`. Every map but v1 and s0 is made of the clipped ones.

    Returns
    -------
    TensorMaps
        v1 belongs to the largest eigenvalue. Its sign: the component of largest
        magnitude is positive, the first of them at a tie. A tensor with equal
        eigenvalues and no off-diagonal elements has v1 = (1, 0, 0). Parameters
        that are NaN give fa = 0 and NaN in the other maps.

    Notes
    -----
    Eigenvalues come from cyclic Jacobi rotations, which keep all digits where
    eigenvalues nearly coincide and the closed form with its arc cosine loses half.

    References
    ----------
    Basser and Pierpaoli, J. Magn. Reson. B 111 (1996) 209, for FA; Golub and Van
    Loan, Matrix Computations, 8.5, for Jacobi's method.
    """
    parameters = np.ascontiguousarray(parameters, dtype=np.float64)
    if parameters.ndim != 2 or parameters.shape[0] != 7:
        raise ValueError(f"tensor parameters have shape {parameters.shape}, not (7, voxels)")
    scalars, eigenvalues, v1 = _maps(parameters, float(min_diffusivity))
    fa, md, rd, s0 = scalars
    return TensorMaps(fa, md, eigenvalues[0], rd, eigenvalues, v1, s0)


@kernel
def _maps(parameters, min_diffusivity):
    """Return ((fa, md, rd, s0), eigenvalues, v1) for (7, n) parameters."""
    n = parameters.shape[1]
    scalars = np.empty((4, n))
    eigenvalues = np.empty((3, n))
    v1 = np.empty((3, n))
    block = np.zeros((7, LANES))
    vectors = np.empty((3, 3, LANES))
    scalar_block = np.empty((4, LANES))
    for start in range(0, n, LANES):
        width = min(LANES, n - start)
        for row in range(7):
            for lane in range(width):
                block[row, lane] = parameters[row, start + lane]
        _diagonalise(block, vectors)
        _sort_descending(block, vectors)
        _measure(block, min_diffusivity, scalar_block)
        _orient(vectors[0])
        _store(scalar_block, width, start, scalars)
        _store(block[:3], width, start, eigenvalues)
        _store(vectors[0], width, start, v1)
    return scalars, eigenvalues, v1


@kernel
def _diagonalise(block, vectors):
    """Bring tensors (xx, xy, yy, xz, yz, zz, ...) to rows 0, 1, 2 = eigenvalues; `vectors` by rows.

    Row 6 of `block` is left alone.
    """
    for lane in range(LANES):
        yy = block[2, lane]
        block[2, lane] = block[5, lane]
        block[5, lane] = block[4, lane]
        block[4, lane] = block[3, lane]
        block[3, lane] = block[1, lane]
        block[1, lane] = yy
    # Now the rows are xx, yy, zz, xy, xz, yz.
    for i in range(3):
        for j in range(3):
            vectors[i, j] = 1.0 if i == j else 0.0
    for _ in range(_SWEEPS):
        _rotate(block[0], block[1], block[3], block[4], block[5], vectors[0], vectors[1])
        _rotate(block[0], block[2], block[4], block[3], block[5], vectors[0], vectors[2])
        _rotate(block[1], block[2], block[5], block[3], block[4], vectors[1], vectors[2])


@kernel
def _rotate(app, aqq, apq, arp, arq, vector_p, vector_q):
    """Zero the elements `apq` by a Jacobi rotation in the plane (p, q); r is the third axis."""
    for lane in range(LANES):
        difference = aqq[lane] - app[lane]
        twice = 2.0 * apq[lane]
        reach = abs(difference) + np.sqrt(difference * difference + twice * twice)
        tangent = (twice if difference >= 0.0 else -twice) / (1.0 if reach == 0.0 else reach)
        c = 1.0 / np.sqrt(1.0 + tangent * tangent)
        s = tangent * c
        shift = tangent * apq[lane]
        app[lane] -= shift
        aqq[lane] += shift
        apq[lane] = 0.0
        p, q = arp[lane], arq[lane]
        arp[lane] = c * p - s * q
        arq[lane] = s * p + c * q
        for axis in range(3):
            p, q = vector_p[axis, lane], vector_q[axis, lane]
            vector_p[axis, lane] = c * p - s * q
            vector_q[axis, lane] = s * p + c * q


@kernel
def _sort_descending(block, vectors):
    """Order rows 0, 1, 2 of `block` descending, stably; only vectors[0] follows its eigenvalue."""
    for first, second in ((0, 1), (0, 2), (1, 2)):
        for lane in range(LANES):
            a, b = block[first, lane], block[second, lane]
            swap = b > a
            block[first, lane] = b if swap else a
            block[second, lane] = a if swap else b
            if first == 0:
                for axis in range(3):
                    u, v = vectors[0, axis, lane], vectors[second, axis, lane]
                    vectors[0, axis, lane] = v if swap else u


@kernel
def _measure(block, min_diffusivity, scalars):
    """Clip the eigenvalues in rows 0, 1, 2; set fa, md, rd and, from row 6, s0."""
    for lane in range(LANES):
        l1, l2, l3 = block[0, lane], block[1, lane], block[2, lane]
        l1 = min_diffusivity if l1 < min_diffusivity else l1
        l2 = min_diffusivity if l2 < min_diffusivity else l2
        l3 = min_diffusivity if l3 < min_diffusivity else l3
        block[0, lane], block[1, lane], block[2, lane] = l1, l2, l3
        a, b, c = l1 - l2, l2 - l3, l3 - l1
        fa = np.sqrt(0.5 * (a * a + b * b + c * c) / (l1 * l1 + l2 * l2 + l3 * l3))
        # NaN, from NaN parameters or from three zero eigenvalues, is the one number unlike itself.
        scalars[0, lane] = fa if fa == fa else 0.0
        scalars[1, lane] = (l1 + l2 + l3) / 3.0
        scalars[2, lane] = (l2 + l3) / 2.0
        scalars[3, lane] = exp64(-block[6, lane])


@kernel
def _orient(vector):
    """Turn (3, lanes) vectors so that the component of largest magnitude is positive."""
    for lane in range(LANES):
        x, y, z = vector[0, lane], vector[1, lane], vector[2, lane]
        largest = y if abs(y) > abs(x) else x
        largest = z if abs(z) > abs(largest) else largest
        sign = -1.0 if largest < 0.0 else 1.0
        vector[0, lane], vector[1, lane], vector[2, lane] = sign * x, sign * y, sign * z


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
    beta = np.zeros((7, LANES))
    measured = np.zeros(LANES)
    total = np.empty((1, LANES))
    for start in range(0, n, LANES):
        width = min(LANES, n - start)
        for q in range(7):
            for lane in range(width):
                beta[q, lane] = parameters[q, start + lane]
        total[:] = 0.0
        for volume in range(volumes):
            values = signal[volume, start : start + width]
            for lane in range(width):
                measured[lane] = values[lane]
            _add_squares(measured, design[volume], beta, total[0])
        for lane in range(LANES):
            total[0, lane] = np.sqrt(total[0, lane] / volumes)
        _store(total, width, start, result)
    return result[0]


@kernel
def _add_squares(measured, row, beta, total):
    """Add the squares of the measured minus the fitted signals of one volume."""
    x0, x1, x2, x3, x4, x5, x6 = row[0], row[1], row[2], row[3], row[4], row[5], row[6]
    b = beta.reshape(7 * LANES)
    for lane in range(LANES):
        value = x0 * b[lane] + x1 * b[LANES + lane] + x2 * b[2 * LANES + lane]
        value = value + x3 * b[3 * LANES + lane] + x4 * b[4 * LANES + lane]
        value = value + x5 * b[5 * LANES + lane] + x6 * b[6 * LANES + lane]
        difference = measured[lane] - exp64(value)
        total[lane] += difference * difference


def precompile() -> None:
    """Call the kernels on a tiny input of each type that the fit gives them."""
    bvecs = np.vstack([np.zeros((1, 3)), np.eye(3), (1 - np.eye(3)) / np.sqrt(2)])
    design = design_matrix(np.array([0.0] + [1000.0] * 6), bvecs)
    for dtype in (np.float32, np.float64):
        signal = np.exp(-np.ones((7, 3))).astype(dtype)
        for fitter in (fit_ols, fit_wls):
            parameters = fitter(signal, design)
            tensor_maps(parameters, min_diffusivity(design))
            fit_residual(signal, design, parameters)
