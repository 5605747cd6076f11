"""A diffusion MRI subject of any size whose truth is known.

One head, drawn in coordinates that run from -1 to 1 over the field of view, is
sampled on any grid: small for a test, 145 x 174 x 145 with 288 volumes for a
subject of the Human Connectome Project (HCP). Every value is a pure function
of the subject's parameters, the volume and the slice, so ranks that hold
different slabs draw the same head and the same noise, to the last bit.
To keep it so, everything here is computed one whole slice at a time:
a slab is a stack of slices, whatever its cut.

Tensors and directions are in the frame of the gradient table (FSL's: voxel
axes, with x negated because the determinant of the affine is positive).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mpiimg.simulate.gradients import check_shells, check_volumes, gradients
from mpiimg.simulate.head import CACHED_SLICES, NOISE, SLICE_BYTES, TRUTH_NAMES, WORK_BYTES, slice_truth

#: The field of view of an HCP subject in mm (1.25 mm voxels at 145 x 174 x 145).
FIELD_OF_VIEW = (181.25, 217.5, 181.25)


@dataclass(frozen=True)
class SimulatedSubject:
    """A simulated head in the scanner: its truth and its noisy volumes, by slabs of slices.

    Attributes
    ----------
    shape : (nx, ny, nz) tuple of int
        Voxels, as in the NIfTI header. All arrays returned have axes (z, y, x).
    volumes : int
        Volumes of the run, at least 7.
    sigma : float
        Standard deviation of the noise in each of the two quadrature channels, in units of the signal.
    seed : int
        0 to 2^32 - 1. Another seed gives another cortex, other fibres, directions and noise.
    voxel_size : (x, y, z) tuple of float, optional
        In mm. By default the HCP field of view divided by `shape`: the same head at any sampling.
    shells : tuple of float, optional
        b-values in s/mm^2; see `gradients`.

    Raises
    ------
    ValueError
        For a shape that is not three positive numbers, fewer than 7 volumes, a
        negative sigma, a seed out of range or voxels of no size.
    """

    shape: tuple[int, int, int]
    volumes: int
    sigma: float = 40.0
    seed: int = 7
    voxel_size: tuple[float, float, float] | None = None
    shells: tuple[float, ...] | None = None

    def __post_init__(self):
        shape = _check_shape(self.shape)
        size = self.voxel_size
        if size is None:
            size = [extent / n for extent, n in zip(FIELD_OF_VIEW, shape, strict=True)]
        checked = {
            "shape": shape,
            "volumes": check_volumes(self.volumes),
            "sigma": _check_sigma(self.sigma),
            "seed": _check_seed(self.seed),
            "voxel_size": _check_voxel_size(size),
            "shells": None if self.shells is None else check_shells(self.shells),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to mm, (4, 4) float64: RAS+ (x to the right), origin at the centre of the volume."""
        affine = np.diag([*self.voxel_size, 1.0])
        affine[:3, 3] = [-size * (n - 1) / 2 for size, n in zip(self.voxel_size, self.shape, strict=True)]
        return affine

    @property
    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """The gradient table: bvals (volumes,) in s/mm^2 and bvecs (volumes, 3), read-only."""
        return _cached_gradients(self.volumes, self.seed, self.shells)

    def truth(self, z0: int, z1: int) -> dict[str, np.ndarray]:
        """Return what is true of slices z0 to z1 - 1.

        Returns
        -------
        dict
            ``tissue`` (nz, ny, nx) uint8, 0 background, 1 white matter, 2 grey
            matter, 3 cerebrospinal fluid, 4 scalp; ``mask`` (nz, ny, nx) uint8,
            1 in the brain; ``s0`` (nz, ny, nx) float32, the noise-free signal at
            b = 0; ``tensor`` (6, nz, ny, nx) float32, Dxx, Dxy, Dyy, Dxz, Dyz,
            Dzz in mm^2/s in the frame of the gradient table; ``fa``
            (nz, ny, nx) float32. All C-contiguous, the caller's own.
        """
        z0, z1 = self._check_slab(z0, z1)
        nx, ny, _ = self.shape
        plane = (z1 - z0, ny, nx)
        out = {
            "tissue": np.empty(plane, np.uint8),
            "mask": np.empty(plane, np.uint8),
            "s0": np.empty(plane, np.float32),
            "tensor": np.empty((6, *plane), np.float32),
            "fa": np.empty(plane, np.float32),
        }
        for z in range(z0, z1):
            for name, values in zip(TRUTH_NAMES, slice_truth(self.shape, self.seed, z), strict=True):
                out[name][..., z - z0, :, :] = values
        return out

    @property
    def cached_bytes(self) -> int:
        """Bytes that a process takes at most to make slices, with those that it keeps for other volumes."""
        nx, ny, nz = self.shape
        return (min(nz, CACHED_SLICES) * SLICE_BYTES + WORK_BYTES) * nx * ny

    def truth_bytes(self, slices: int) -> int:
        """Return the bytes of what :meth:`truth` returns of so many slices."""
        return slices * SLICE_BYTES * self.shape[0] * self.shape[1]

    def volume(self, v: int, z0: int, z1: int) -> np.ndarray:
        """Return slices z0 to z1 - 1 of volume `v` as the scanner gives them.

        The signal is S0 exp(-b g'Dg) with Rician noise [1]_: the magnitude of a
        complex signal with normal noise of standard deviation `sigma` in both
        channels, also outside the head; rounded to the nearest integer.

        Returns
        -------
        (z1 - z0, ny, nx) int16

        References
        ----------
        .. [1] Gudbjartsson, Patz (1995), Magn. Reson. Med. 34, 910-914.
        """
        z0, z1 = self._check_slab(z0, z1)
        v = operator.index(v)
        if not 0 <= v < self.volumes:
            raise ValueError(f"volume {v} is not one of the {self.volumes} volumes")
        nx, ny, _ = self.shape
        weights = self._b_matrix(v)
        out = np.empty((z1 - z0, ny, nx), np.int16)
        for z in range(z0, z1):
            _, _, s0, tensor, _ = slice_truth(self.shape, self.seed, z)
            out[z - z0] = self._add_noise(_signal(s0, tensor, weights), v, z)
        return out

    def _b_matrix(self, v: int) -> np.ndarray:
        """Return what the six tensor elements are multiplied with in the exponent of volume `v`."""
        bvals, bvecs = self.gradients
        x, y, z = bvecs[v]
        return (-bvals[v] * np.array([x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z])).astype(
            np.float32
        )

    def _add_noise(self, signal: np.ndarray, v: int, z: int) -> np.ndarray:
        """Return the rounded magnitude of `signal` with noise, int16; `signal` is overwritten."""
        if self.sigma > 0:
            stream = np.random.SFC64(np.random.SeedSequence([NOISE, self.seed, v, z]))
            noise = np.random.Generator(stream).standard_normal((2, *signal.shape), dtype=np.float32)
            noise *= np.float32(self.sigma)
            real, imaginary = noise
            signal += real
            signal *= signal
            imaginary *= imaginary
            signal += imaginary
            np.sqrt(signal, out=signal)
        np.rint(signal, out=signal)
        np.minimum(signal, np.iinfo(np.int16).max, out=signal)
        return signal.astype(np.int16)

    def _check_slab(self, z0: int, z1: int) -> tuple[int, int]:
        z0, z1 = operator.index(z0), operator.index(z1)
        if not 0 <= z0 <= z1 <= self.shape[2]:
            raise ValueError(f"slices {z0} to {z1} are not a slab of the {self.shape[2]} slices")
        return z0, z1


@lru_cache(maxsize=4)
def _cached_gradients(volumes, seed, shells):
    table = gradients(volumes, seed, shells)
    for array in table:
        array.flags.writeable = False
    return table


def _signal(s0: np.ndarray, tensor: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return S0 exp(sum of weights x tensor elements), float32, for one slice."""
    if not weights.any():
        return s0.copy()
    exponent = weights[0] * tensor[0]
    term = np.empty_like(exponent)
    for weight, element in zip(weights[1:], tensor[1:], strict=True):
        np.multiply(weight, element, out=term)
        exponent += term
    np.exp(exponent, out=exponent)
    exponent *= s0
    return exponent


# --------------------------------------------------------------------------- checks


def _check_shape(shape) -> tuple[int, int, int]:
    checked = tuple(operator.index(n) for n in shape)
    if len(checked) != 3 or min(checked) < 1:
        raise ValueError(f"shape must be three positive numbers of voxels, not {tuple(shape)}")
    return checked


def _check_sigma(sigma) -> float:
    sigma = float(sigma)
    if not 0 <= sigma < np.inf:
        raise ValueError(f"sigma must be zero or positive, not {sigma}")
    return sigma


def _check_seed(seed) -> int:
    seed = operator.index(seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2^32 - 1, not {seed}")
    return seed


def _check_voxel_size(size) -> tuple[float, float, float]:
    checked = tuple(float(length) for length in size)
    if len(checked) != 3 or not all(0 < length < np.inf for length in checked):
        raise ValueError(f"voxel_size must be three positive lengths in mm, not {checked}")
    return checked
