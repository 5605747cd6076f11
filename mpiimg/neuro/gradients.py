"""b-values and gradient directions, in FSL's text format."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpiimg.engine.names import shown
from mpiimg.engine.parameters import number_in
from mpiimg.engine.small_files import read_text
from mpiimg.errors import BadInput

#: How far the length of a bvec may be from 1, as in dipy.
UNIT_TOLERANCE = 0.01

#: Bytes of a table: hundreds for each of the volumes that a header can count.
MAX_TABLE_BYTES = 16 << 20

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


def read_gradients(
    bvals_path: Path, bvecs_path: Path, volumes: int, b0_threshold: float = 50.0, normalise: bool = False
) -> tuple[Gradients, list[str]]:
    """Read and check a gradient table.

    Parameters
    ----------
    bvals_path : Path
        V numbers in any layout, s/mm^2.
    bvecs_path : Path
        3 rows of V numbers (FSL) or V rows of 3.
    volumes : int
        V, those of the image.
    b0_threshold : float
        s/mm^2.
    normalise : bool
        Rescale bvecs that are not of unit length, with a warning.

    Returns
    -------
    gradients : Gradients
    warnings : list of str

    Raises
    ------
    BadInput
        A file cannot be read, counts are wrong, a weighted volume has no unit bvec, or there is no b0.
    """
    bvals = _numbers(bvals_path, "b-values").ravel()
    bvecs = _numbers(bvecs_path, "gradient directions")
    if bvals.size != volumes:
        raise BadInput(
            f"{bvals_path}: {bvals.size} b-values for an image of {volumes} volumes; give the file that "
            "belongs to this image"
        )
    if bvecs.shape == (3, volumes):
        bvecs = bvecs.T
    elif bvecs.shape != (volumes, 3):
        raise BadInput(
            f"{bvecs_path}: {bvecs.shape[0]} rows of {bvecs.shape[1]} numbers; "
            f"an image of {volumes} volumes needs 3 rows of {volumes} or {volumes} rows of 3"
        )
    if not np.isfinite(bvals).all() or bvals.min() < 0 or bvals.max() > MAX_B:
        raise BadInput(
            f"{bvals_path}: b-values must be finite and not negative (s/mm^2), and at most {MAX_B}"
        )
    if not (bvals <= b0_threshold).any():
        raise BadInput(
            f"{bvals_path}: no volume with b <= {b0_threshold:g} s/mm^2 (lowest is {bvals.min():g}); "
            "a b0 is needed, raise --b0-threshold if that one is meant"
        )
    # What is no number, or so large that it has no length, says nothing of a direction.
    bvecs = np.where((np.abs(bvecs) < 1e100).all(axis=1, keepdims=True), bvecs, 0.0)
    length = lengths(bvecs)
    off = np.abs(length - 1) > UNIT_TOLERANCE
    weighted = bvals > b0_threshold
    warnings = []
    bad = np.flatnonzero(off & weighted)
    if bad.size and not (normalise and (length[bad] > 0).all()):
        v = bad[0]
        remedy = (
            "--normalise-bvecs rescales it" if length[v] > 0 else "give its direction or leave the volume out"
        )
        raise BadInput(
            f"{bvecs_path}: the bvec of volume {v} (b = {bvals[v]:g}) has length {length[v]:.4g}, not 1; "
            + remedy
        )
    if bad.size:
        bvecs[bad] = unit_vectors(bvecs[bad])
        off[bad] = False
        warnings.append(f"{bvecs_path}: {bad.size} bvecs were rescaled to unit length")
    bvals, bvecs = np.where(off, 0.0, bvals), np.where(off[:, None], 0.0, bvecs)
    table = Gradients(
        tuple(bvals.tolist()), tuple(map(tuple, bvecs.tolist())), float(b0_threshold), str(bvals_path)
    )
    return table, warnings


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Return the lengths, (n,) float64, of (n, 3) vectors."""
    return np.sqrt((vectors**2).sum(axis=1))


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return (n, 3) vectors rescaled to unit length; none of them may be zero."""
    return vectors / lengths(vectors)[:, None]


def _numbers(path: Path, what: str) -> np.ndarray:
    """Return the numbers of a table, row by row; words may have commas between them, # begins a comment."""
    lines = read_text(path, what, MAX_TABLE_BYTES).splitlines()
    rows = [line.partition("#")[0].replace(",", " ").split() for line in lines]
    rows = [row for row in rows if row]
    wrong = next((word for row in rows for word in row if number_in(word) is None), None)
    if wrong is not None:
        raise BadInput(f"{path}: {what} must be plain numbers: not {shown(repr(wrong[:40]))}")
    if not rows or len({len(row) for row in rows}) != 1:
        raise BadInput(f"{path}: {what} must be rows of equally many numbers")
    return np.array([[number_in(word) for word in row] for row in rows], np.float64)


def gradients_text(bvals: np.ndarray, bvecs: np.ndarray) -> tuple[bytes, bytes]:
    """Return a gradient table as FSL writes it: one row of b-values, three rows of directions."""
    rows = [" ".join(f"{x:.8f}" for x in row) for row in np.asarray(bvecs).T]
    return (" ".join(f"{b:.10g}" for b in bvals) + "\n").encode(), ("\n".join(rows) + "\n").encode()
