"""How far a fitted tensor's predictions vary over a shell, and how far the signal is off them.

Voxels lie along the last axis and are worked on in blocks of `LANES`. Sums run over the lanes first: they are
of one slice in one order, whatever else is worked on.
"""

from __future__ import annotations

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64

#: Voxels in a block.
LANES = 64


def contrast(
    signal: np.ndarray, s0: np.ndarray, tensors: np.ndarray, rows: np.ndarray, shell: np.ndarray, shells: int
) -> np.ndarray:
    """Sum up the variance of the prediction over the volumes of each shell, and the squared residuals.

    Parameters
    ----------
    signal : (V, n) float32 array
    s0 : (n,) float32 array
        The fitted signal without diffusion weighting.
    tensors : (6, n) float32 array
        xx, xy, yy, xz, yz, zz, mm^2/s.
    rows : (V, 6) float64 array
        -b times the products of the direction with itself, in that order; off-diagonal ones twice.
    shell : (V,) int64 array
        The shell of each volume; -1 for volumes that are left out.
    shells : int
        How many shells there are.

    Returns
    -------
    (2, shells) float64 array
        Sums over voxels: the variance of the prediction over the shell, and the mean squared residual.
    """
    out = np.zeros((2, shells))
    count = np.bincount(shell[shell >= 0], minlength=shells).astype(np.float64)
    _contrast(
        np.ascontiguousarray(signal, np.float32),
        np.ascontiguousarray(s0, np.float32),
        np.ascontiguousarray(tensors, np.float32),
        np.ascontiguousarray(rows, np.float64),
        np.ascontiguousarray(shell, np.int64),
        np.maximum(count, 1.0),
        out,
    )
    return out


@kernel
def _contrast(signal, s0, tensors, rows, shell, count, out):
    volumes, n = signal.shape
    shells = count.shape[0]
    total = np.empty((shells, LANES))
    squares = np.empty((shells, LANES))
    rest = np.empty((shells, LANES))
    for start in range(0, n, LANES):
        width = min(LANES, n - start)
        total[:] = 0.0
        squares[:] = 0.0
        rest[:] = 0.0
        for v in range(volumes):
            k = shell[v]
            if k < 0:
                continue
            for lane in range(width):
                i = start + lane
                power = 0.0
                for q in range(6):
                    power += rows[v, q] * np.float64(tensors[q, i])
                value = np.float64(s0[i]) * exp64(power)
                off = np.float64(signal[v, i]) - value
                total[k, lane] += value
                squares[k, lane] += value * value
                rest[k, lane] += off * off
        for k in range(shells):
            for lane in range(width):
                mean = total[k, lane] / count[k]
                out[0, k] += max(squares[k, lane] / count[k] - mean * mean, 0.0)
                out[1, k] += rest[k, lane] / count[k]


def precompile() -> None:
    """Compile the kernel."""
    signal, tensors = np.ones((2, 3), np.float32), np.zeros((6, 3), np.float32)
    contrast(signal, signal[0], tensors, np.zeros((2, 6)), np.array([0, -1]), 1)
