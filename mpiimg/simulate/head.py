"""One head, drawn slice by slice in coordinates that run from -1 to 1 over the field of view.

Every value is a pure function of shape, seed and place, and everything is computed one whole slice at a time:
so it is the same in every slab, to the last bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mpiimg.simulate.fields import random_field

BACKGROUND, WHITE_MATTER, GREY_MATTER, CSF, SCALP = range(5)

#: The truth of a slice, by name; the names of the truth files follow them.
TRUTH_NAMES = ("tissue", "mask", "s0", "tensor", "fa")


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
NOISE, FOLD, WANDER = range(3)

#: Slices of truth that stay in memory for the next volume: 100 MB for a whole HCP subject, less for a slab.
CACHED_SLICES = 256

#: Bytes per voxel of the truth of a slice, and of the work of making one beside it.
SLICE_BYTES, WORK_BYTES = 34, 200


@lru_cache(maxsize=CACHED_SLICES)
def slice_truth(shape: tuple[int, int, int], seed: int, z: int) -> tuple[np.ndarray, ...]:
    """Return the truth of slice `z` of a head.

    Parameters
    ----------
    shape : (int, int, int)
        Voxels of the head along x, y and z.
    seed : int
        Another seed gives another cortex and other fibres.
    z : int

    Returns
    -------
    tissue, mask : (ny, nx) uint8
        Labels, and 1 in the brain.
    s0 : (ny, nx) float32
    tensor : (6, ny, nx) float32
        In mm^2/s.
    fa : (ny, nx) float32
        All are shared, so read-only.
    """
    x, y, height = _coordinates(shape, z)
    tissue = _tissue(shape, seed, z)
    parallel = _by_tissue("parallel")[tissue]
    perpendicular = _by_tissue("perpendicular")[tissue]
    mask = (_brain_radius(x, y, height) < 1).astype(np.uint8)
    s0 = (_smoothed_s0(shape, seed, z) * (1 + 0.2 * x - 0.15 * y)).astype(np.float32)
    directions = _fibre_directions(seed, x, y, height)
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
    fold = random_field(x, y, z, FOLD_SPACING, seed, (FOLD,))
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


def _smoothed_s0(shape: tuple[int, int, int], seed: int, z: int) -> np.ndarray:
    """Return S0 averaged over the neighbours with weights 1 2 1 along each axis, zero outside the tissues.

    Borders of tissues then look as a scanner's point spread shows them, while air and bone stay dark.
    """
    below, middle, above = (_by_tissue("s0")[_tissue(shape, seed, z + dz)] for dz in (-1, 0, 1))
    s0 = below + 2 * middle + above
    s0 = np.pad(s0, 1, mode="edge")
    s0 = s0[:-2] + 2 * s0[1:-1] + s0[2:]
    s0 = s0[:, :-2] + 2 * s0[:, 1:-1] + s0[:, 2:]
    return np.where(middle > 0, s0 / 64, 0.0)


def _fibre_directions(seed: int, x: np.ndarray, y: np.ndarray, z: float) -> tuple[np.ndarray, ...]:
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
    wander = [random_field(x, y, z, WANDER_SPACING, seed, (WANDER, i)) for i in range(3)]
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
