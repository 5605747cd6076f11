"""Solvers of seven normal equations, a block of voxels at a time, and of one voxel's weighted design."""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64

#: Voxels in a block: its logs, weights and residuals stay in the L2 cache (1 MiB) up to 650 volumes.
BLOCK_VOXELS = 64

#: A pivot of the Cholesky factor below this part of its diagonal element means
#: that the normal equations have lost too many digits: the voxel is solved by QR.
_SAFE_PIVOT = 1e-6

#: A diagonal element of R below this part of the largest: no weighted solution.
_SINGULAR = 1e-13


@kernel
def solve_cholesky(matrix, right, safe):
    """Replace `right` by the solution, where no pivot is lost; `safe` says 1.0 where, else 0.0.

    `matrix` becomes its Cholesky factor with inverted diagonal.
    """
    safe[:] = 1.0
    pivot = np.empty(BLOCK_VOXELS)
    for q in range(7):
        row = q * (q + 1) // 2
        for r in range(q):
            other = r * (r + 1) // 2
            for s in range(r):
                for lane in range(BLOCK_VOXELS):
                    matrix[row + r, lane] -= matrix[row + s, lane] * matrix[other + s, lane]
            for lane in range(BLOCK_VOXELS):
                matrix[row + r, lane] *= matrix[other + r, lane]
        for lane in range(BLOCK_VOXELS):
            pivot[lane] = matrix[row + q, lane]
        for s in range(q):
            for lane in range(BLOCK_VOXELS):
                pivot[lane] -= matrix[row + s, lane] * matrix[row + s, lane]
        for lane in range(BLOCK_VOXELS):
            # NaN compares false and so is kept, to show in the result.
            lost = pivot[lane] <= _SAFE_PIVOT * matrix[row + q, lane]
            safe[lane] = 0.0 if lost else safe[lane]
            matrix[row + q, lane] = 1.0 / np.sqrt(1.0 if lost else pivot[lane])
    for q in range(7):
        row = q * (q + 1) // 2
        for s in range(q):
            for lane in range(BLOCK_VOXELS):
                right[q, lane] -= matrix[row + s, lane] * right[s, lane]
        for lane in range(BLOCK_VOXELS):
            right[q, lane] *= matrix[row + q, lane]
    for q in range(6, -1, -1):
        for s in range(q + 1, 7):
            below = s * (s + 1) // 2
            for lane in range(BLOCK_VOXELS):
                right[q, lane] -= matrix[below + q, lane] * right[s, lane]
        for lane in range(BLOCK_VOXELS):
            right[q, lane] *= matrix[q * (q + 1) // 2 + q, lane]


@kernel
def solve_qr(logs, rows, beta, by_measured, correction):
    """Set the weighted correction of one voxel's fit `beta` by Householder QR.

    The weights are those of the signals that `beta` predicts, or if `by_measured` of the signals whose
    logarithms are `logs`. The condition number of the weighted design enters once, where normal equations
    square it. A column that depends on those before it gives a correction of zero.
    """
    volumes = logs.size
    system = np.empty((volumes, 8))
    peak = -np.inf
    for volume in range(volumes):
        predicted = 0.0
        for q in range(7):
            predicted += rows[volume, q] * beta[q]
        system[volume, 7] = predicted
        peak = max(peak, logs[volume] if by_measured else predicted)
    for volume in range(volumes):
        predicted = system[volume, 7]
        root_weight = exp64((logs[volume] if by_measured else predicted) - peak)
        system[volume, 7] = root_weight * (logs[volume] - predicted)
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
def store_block(block, width, start, array):
    """Copy the first `width` lanes of a block to the columns of `array` from `start`."""
    for row in range(block.shape[0]):
        for lane in range(width):
            array[row, start + lane] = block[row, lane]
