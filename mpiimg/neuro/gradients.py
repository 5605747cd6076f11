"""The diffusion weighting of the volumes of a series: b-values and directions, in FSL's frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

#: How far the length of a bvec may be from 1, as in dipy.
UNIT_TOLERANCE = 0.01

#: Cosine of the angle below which two directions are the same.
SAME_DIRECTION = np.cos(np.radians(1))

#: s/mm^2, far above any scanner's: larger ones are in another unit, or no b-values.
MAX_B = 1_000_000

#: b-value above which a single tensor no longer describes the signal well, s/mm^2.
TENSOR_B_LIMIT = 1500.0


@dataclass(frozen=True)
class Gradients:
    """The diffusion weighting of every volume.

    Parameters
    ----------
    bvals : (V,) tuple of float
        s/mm^2; 0 where the bvec of an unweighted volume is no unit vector, as dipy does.
    bvecs : (V, 3) tuple of float
        In FSL's frame: voxel axes, x negated where the affine's determinant is positive.
    b0_threshold : float
        Volumes at or below it count as unweighted, s/mm^2.
    path : str
        The file with the b-values, for messages.
    """

    bvals: tuple[float, ...]
    bvecs: tuple[tuple[float, float, float], ...]
    b0_threshold: float
    path: str = field(default="", compare=False)

    @property
    def b0(self) -> tuple[int, ...]:
        """Numbers of the unweighted volumes, ascending."""
        return tuple(v for v, b in enumerate(self.bvals) if b <= self.b0_threshold)

    def up_to(self, b_max: float | None) -> tuple[int, ...]:
        """Numbers of the volumes whose b-value is at most `b_max` (all without one), ascending."""
        return tuple(v for v, b in enumerate(self.bvals) if b_max is None or b <= b_max)

    def of_volumes(self, volumes: Sequence[int]) -> Gradients:
        """Return the weighting of some volumes alone, in this order."""
        bvals, bvecs = (tuple(table[v] for v in volumes) for table in (self.bvals, self.bvecs))
        return dataclasses.replace(self, bvals=bvals, bvecs=bvecs)


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Return the lengths, (n,) float64, of (n, 3) vectors."""
    return np.sqrt((vectors**2).sum(axis=1))


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return (n, 3) vectors rescaled to unit length; none of them may be zero."""
    return vectors / lengths(vectors)[:, None]


def count_directions(units: np.ndarray) -> int:
    """Count the directions of (n, 3) unit vectors: opposite ones, and those within a degree, are the same."""
    count, left = 0, units
    while len(left):
        count += 1
        left = left[np.abs(left @ left[0]) < SAME_DIRECTION]
    return count


def gradients_text(bvals: np.ndarray, bvecs: np.ndarray) -> tuple[bytes, bytes]:
    """Return a gradient table as FSL writes it: one row of b-values, three rows of directions."""
    rows = [" ".join(f"{x:.8f}" for x in row) for row in np.asarray(bvecs).T]
    return (" ".join(f"{b:.10g}" for b in bvals) + "\n").encode(), ("\n".join(rows) + "\n").encode()


def bvec_to_scanner(affine: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation from the frame of FSL's bvecs to the scanner's.

    bvecs are along the voxel axes, with x negated where the determinant of
    the affine is positive.
    """
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if np.linalg.det(axes) > 0:
        axes = axes * [-1, 1, 1]
    return axes
