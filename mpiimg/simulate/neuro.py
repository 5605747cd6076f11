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
from typing import NamedTuple

import numpy as np

from mpiimg.simulate.fields import random_field
from mpiimg.simulate.gradients import check_shells, check_volumes, gradients

BACKGROUND, WHITE_MATTER, GREY_MATTER, CSF, SCALP = range(5)

#: The names of the truth that `SimulatedSubject.truth` returns; the names of the truth files follow it.
TRUTH_NAMES = ("tissue", "mask", "s0", "tensor", "fa")

#: The field of view of an HCP subject in mm (1.25 mm voxels at 145 x 174 x 145).
FIELD_OF_VIEW = (181.25, 217.5, 181.25)


class Tissue(NamedTuple):
    """Signal at b = 0 (arbitrary units) and diffusivities along and across the fibre (mm^2/s)."""

    s0: float
    parallel: float
    perpendicular: float


#: By label: background, white matter, grey matter, cerebrospinal fluid, scalp.
TISSUES = (
    Tissue(0.0, 0.0, 0.0),
    Tissue(900.0, 1.7e-3, 0.3e-3),
    Tissue(1200.0, 0.9e-3, 0.75e-3),
    Tissue(2400.0, 3.0e-3, 3.0e-3),
    Tissue(350.0, 0.9e-3, 0.75e-3),
)

#: Half axes (x, y, z) of the brain in units of half the field of view: 22 % of the volume.
BRAIN_AXES = (0.70, 0.80, 0.75)

#: The scalp is the shell between these radii, in units of the brain's; bone, below it, is dark.
SCALP_RADII = (1.06, 1.16)

#: Knots of the random fields lie this far apart: the cortex folds, the fibres wander slowly.
FOLD_SPACING, WANDER_SPACING = 0.11, 0.4

#: First words of the seeds of independent random streams; 3 is that of the directions, in gradients.py.
_NOISE, _FOLD, _WANDER = range(3)

#: Slices of truth kept for the next volume: 100 MB for a whole HCP subject, less for a slab of it.
_KEPT_SLICES = 256

#: Bytes per voxel of the truth of a slice, and of the work of making one beside it.
_SLICE_BYTES, _WORK_BYTES = 34, 200


# --------------------------------------------------------------------------- the subject


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
        return _kept_gradients(self.volumes, self.seed, self.shells)

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
            for name, values in zip(TRUTH_NAMES, _slice_truth(self, z), strict=True):
                out[name][..., z - z0, :, :] = values
        return out

    @property
    def kept_bytes(self) -> int:
        """Bytes that a process takes at most to make slices, with those that it keeps for other volumes."""
        nx, ny, nz = self.shape
        return (min(nz, _KEPT_SLICES) * _SLICE_BYTES + _WORK_BYTES) * nx * ny

    def truth_bytes(self, slices: int) -> int:
        """Return the bytes of what :meth:`truth` returns of so many slices."""
        return slices * _SLICE_BYTES * self.shape[0] * self.shape[1]

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
            _, _, s0, tensor, _ = _slice_truth(self, z)
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
            stream = np.random.SFC64(np.random.SeedSequence([_NOISE, self.seed, v, z]))
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
def _kept_gradients(volumes, seed, shells):
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


# --------------------------------------------------------------------------- the head, slice by slice


@lru_cache(maxsize=_KEPT_SLICES)
def _slice_truth(subject: SimulatedSubject, z: int) -> tuple[np.ndarray, ...]:
    """Return tissue, mask, s0, tensor (6, ny, nx) and fa of slice `z`; shared, so read-only."""
    x, y, height = _coordinates(subject.shape, z)
    tissue = _tissue(subject.shape, subject.seed, z)
    parallel = _by_tissue("parallel")[tissue]
    perpendicular = _by_tissue("perpendicular")[tissue]
    mask = (_brain_radius(x, y, height) < 1).astype(np.uint8)
    s0 = (_smoothed_s0(subject, z) * (1 + 0.2 * x - 0.15 * y)).astype(np.float32)
    directions = _fibre_directions(subject, x, y, height)
    tensor = _axial_tensor(parallel, perpendicular, *directions)
    result = tissue, mask, s0, tensor, _axial_fa(parallel, perpendicular)
    for array in result:
        array.flags.writeable = False
    return result


def _coordinates(shape: tuple[int, int, int], z: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return x (1, nx), y (ny, 1) and z of the voxel centres of a slice; -1 to 1 is the field of view."""
    x, y = ((2 * np.arange(n) + 1) / n - 1 for n in shape[:2])
    return x[None, :], y[:, None], (2 * z + 1) / shape[2] - 1


def _brain_radius(x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """Return the distance from the centre in units of the brain's surface."""
    a, b, c = BRAIN_AXES
    return np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)


@lru_cache(maxsize=4)
def _tissue(shape: tuple[int, int, int], seed: int, z: int) -> np.ndarray:
    """Return the label of every voxel of a slice, (ny, nx) uint8.

    Slices -1 and nz exist too: smoothing asks for them, and the head is defined everywhere.
    """
    x, y, z = _coordinates(shape, z)
    radius = _brain_radius(x, y, z)
    fold = random_field(x, y, z, FOLD_SPACING, seed, (_FOLD,))
    # Sulci are the sheets where the field crosses zero: there the surface reaches inward.
    depth = radius + 0.32 * np.exp(-((fold / 0.55) ** 2))
    side = np.abs(x)
    ventricle = _ellipsoid(side - 0.10, y - 0.02 - 0.3 * (side - 0.1), z - 0.10, 0.075, 0.30, 0.14)
    thalamus = _ellipsoid(side - 0.20, y + 0.02, z + 0.10, 0.11, 0.17, 0.11)
    brain = radius < 1
    tissue = np.full(radius.shape, BACKGROUND, np.uint8)
    tissue[brain] = WHITE_MATTER
    tissue[brain & ((depth > 0.93) | thalamus)] = GREY_MATTER
    tissue[brain & ((depth > 1.16) | (radius > 0.97) | ventricle)] = CSF
    tissue[(radius > SCALP_RADII[0]) & (radius < SCALP_RADII[1])] = SCALP
    tissue.flags.writeable = False
    return tissue


def _ellipsoid(x, y, z, a, b, c):
    return (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 < 1


def _by_tissue(name: str) -> np.ndarray:
    """Return one property of the tissues as a table to index with labels."""
    return np.array([getattr(tissue, name) for tissue in TISSUES])


def _smoothed_s0(subject: SimulatedSubject, z: int) -> np.ndarray:
    """Return S0 averaged over the neighbours with weights 1 2 1 an axis, zero outside the tissues.

    Borders of tissues then look as a scanner's point spread shows them, while air and bone stay dark.
    """
    below, middle, above = (
        _by_tissue("s0")[_tissue(subject.shape, subject.seed, z + dz)] for dz in (-1, 0, 1)
    )
    s0 = below + 2 * middle + above
    s0 = np.pad(s0, 1, mode="edge")
    s0 = s0[:-2] + 2 * s0[1:-1] + s0[2:]
    s0 = s0[:, :-2] + 2 * s0[:, 1:-1] + s0[:, 2:]
    return np.where(middle > 0, s0 / 64, 0.0)


def _fibre_directions(
    subject: SimulatedSubject, x: np.ndarray, y: np.ndarray, z: float
) -> tuple[np.ndarray, ...]:
    """Return the one fibre direction of each voxel as unit components (x, y, z), (ny, nx) each.

    Left-right in the middle (corpus callosum), turning upward at the sides
    (corona radiata) and forward or backward at the ends (forceps), front to back
    further out (association fibres); a random field lets them wander.
    """
    side = np.abs(x)
    turn = np.tanh((side / 0.28) ** 2)
    ends = np.tanh((np.abs(y) / 0.5) ** 3)
    outer = 0.5 * (1 + np.tanh((side - 0.42) / 0.07))
    sign = np.sign(x)
    components = (
        (1 - turn) * (1 - outer),
        turn * ends * sign * np.sign(y) + outer,
        turn * (1 - ends) * (1 - outer) * sign + 0.25 * outer * z,
    )
    wander = [random_field(x, y, z, WANDER_SPACING, subject.seed, (_WANDER, i)) for i in range(3)]
    dx, dy, dz = (c + 0.25 * w for c, w in zip(components, wander, strict=True))
    length = np.maximum(np.sqrt(dx * dx + dy * dy + dz * dz), 1e-12)
    return dx / length, dy / length, dz / length


def _axial_tensor(parallel, perpendicular, dx, dy, dz) -> np.ndarray:
    """Return the tensor that diffuses alike in all directions across (dx, dy, dz), (6, ny, nx) float32."""
    difference = parallel - perpendicular
    return np.stack(
        [
            perpendicular + difference * dx * dx,
            difference * dx * dy,
            perpendicular + difference * dy * dy,
            difference * dx * dz,
            difference * dy * dz,
            perpendicular + difference * dz * dz,
        ]
    ).astype(np.float32)


def _axial_fa(parallel: np.ndarray, perpendicular: np.ndarray) -> np.ndarray:
    """Return the fractional anisotropy of such a tensor [Basser, Pierpaoli 1996], float32; 0 in air."""
    norm = np.sqrt(parallel**2 + 2 * perpendicular**2)
    return ((parallel - perpendicular) / np.where(norm > 0, norm, 1.0)).astype(np.float32)


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
