"""The maps of fitted tensors: eigenvalues and directions, anisotropy and diffusivities.

Voxels lie along the last axis and are worked on in blocks of `BLOCK_VOXELS`, as in
:mod:`mpiimg.neuro.kernels.tensor`: a voxel takes the same instructions wherever it lies.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.kernels.jit import kernel
from mpiimg.kernels.vmath import exp64
from mpiimg.neuro.kernels.tensor_solve import BLOCK_VOXELS, store_block

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


def min_diffusivity(design: np.ndarray) -> float:
    """Return dipy's lower bound of an eigenvalue, 1e-6 over the largest element of the design."""
    return 1e-6 / -float(design.min())


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
    block = np.zeros((7, BLOCK_VOXELS))
    vectors = np.empty((3, 3, BLOCK_VOXELS))
    scalar_block = np.empty((4, BLOCK_VOXELS))
    for start in range(0, n, BLOCK_VOXELS):
        width = min(BLOCK_VOXELS, n - start)
        for row in range(7):
            for lane in range(width):
                block[row, lane] = parameters[row, start + lane]
        _diagonalise(block, vectors)
        _sort_descending(block, vectors)
        _measure(block, min_diffusivity, scalar_block)
        _orient(vectors[0])
        store_block(scalar_block, width, start, scalars)
        store_block(block[:3], width, start, eigenvalues)
        store_block(vectors[0], width, start, v1)
    return scalars, eigenvalues, v1


@kernel
def _diagonalise(block, vectors):
    """Bring tensors (xx, xy, yy, xz, yz, zz, ...) to rows 0, 1, 2 = eigenvalues; `vectors` by rows.

    Row 6 of `block` is left alone.
    """
    for lane in range(BLOCK_VOXELS):
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
    for lane in range(BLOCK_VOXELS):
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
        for lane in range(BLOCK_VOXELS):
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
    for lane in range(BLOCK_VOXELS):
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
    for lane in range(BLOCK_VOXELS):
        x, y, z = vector[0, lane], vector[1, lane], vector[2, lane]
        largest = y if abs(y) > abs(x) else x
        largest = z if abs(z) > abs(largest) else largest
        sign = -1.0 if largest < 0.0 else 1.0
        vector[0, lane], vector[1, lane], vector[2, lane] = sign * x, sign * y, sign * z


def precompile() -> None:
    """Call the kernels on a tiny input of the type that fits give them."""
    tensor_maps(np.ones((7, 3)), 1e-9)
