"""Gradient tables as scanners use them: shells of evenly spread directions between b0 volumes."""

from __future__ import annotations

import operator

import numpy as np

from mpiimg.neuro.gradients import unit_vectors

#: First word of the seeds of directions; those of the head, in neuro.py, have others.
_STREAM = 3


def gradients(
    volumes: int, seed: int, shells: tuple[float, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Make a gradient table: b0 volumes through the run, shells dealt in turn between them.

    Parameters
    ----------
    volumes : int
        Number of volumes, at least 7.
    seed : int
        Seeds the orientation and the order of the directions.
    shells : tuple of float, optional
        b-values in s/mm^2. By default 1000 below 60 volumes, 1000 and 2000
        below 120, and 1000, 2000 and 3000 from there on.

    Returns
    -------
    bvals : (volumes,) float64
        In s/mm^2. One volume in ten is a b0 with one shell, one in sixteen
        with more; 288 volumes give the HCP scheme, 18 b0 and 3 x 90 directions.
    bvecs : (volumes, 3) float64
        Unit vectors in FSL's frame, spread evenly in each shell by
        electrostatic repulsion [1]_; zeros for a b0.

    Raises
    ------
    ValueError
        With fewer than 7 volumes, fewer than 6 directions, or shells that are
        not positive and finite.

    References
    ----------
    .. [1] Jones, Horsfield, Simmons (1999), Magn. Reson. Med. 42, 515-525.
    """
    volumes = check_volumes(volumes)
    shells = check_shells(shells) if shells is not None else _default_shells(volumes)
    b0_count = max(1, round(volumes / (10 if len(shells) == 1 else 16)))
    if volumes - b0_count < 6:
        raise ValueError(
            f"{volumes} volumes hold only {volumes - b0_count} directions: at least 6 are needed"
        )
    b0 = np.arange(b0_count) * volumes // b0_count
    weighted = np.setdiff1d(np.arange(volumes), b0)
    bvals = np.zeros(volumes)
    bvecs = np.zeros((volumes, 3))
    for i, b in enumerate(shells):
        members = weighted[i :: len(shells)]
        bvals[members] = b
        bvecs[members] = _directions(len(members), np.random.SeedSequence([_STREAM, seed, i]))
    return bvals, bvecs


def _default_shells(volumes: int) -> tuple[float, ...]:
    """Return one, two or three shells: no more than leave each about 30 directions."""
    return (1000.0, 2000.0, 3000.0)[: 1 + (volumes >= 60) + (volumes >= 120)]


def _directions(count: int, seed: np.random.SeedSequence) -> np.ndarray:
    """Return `count` unit vectors that cover the sphere evenly, antipodes counting as one.

    A golden-angle spiral in a random orientation is within a few percent of the
    minimum of the potential, which from random points takes thousands of steps;
    repulsion does the rest. A signed random order follows, as scanners use, so
    that any part of a run covers the sphere.
    """
    if count == 0:
        return np.zeros((0, 3))
    random = np.random.Generator(np.random.PCG64(seed))
    height = (np.arange(count) + 0.5) / count
    azimuth = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    radius = np.sqrt(1 - height**2)
    spiral = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), height], axis=1)
    points = _rotate(spiral, random.standard_normal(4))
    if count > 1:
        from dipy.core.sphere import HemiSphere, disperse_charges

        points = disperse_charges(HemiSphere(xyz=points), 100)[0].vertices
    points = points[random.permutation(count)] * random.choice([-1.0, 1.0], (count, 1))
    return unit_vectors(points)


def _rotate(points: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Rotate (n, 3) points by a quaternion of any length; four normal deviates give a uniform rotation."""
    w, *v = quaternion / np.sqrt((quaternion**2).sum())
    twice = 2 * np.cross(v, points)
    return points + w * twice + np.cross(v, twice)


def check_volumes(volumes) -> int:
    """Return a number of volumes that can determine a tensor; ValueError for another."""
    volumes = operator.index(volumes)
    if volumes < 7:
        raise ValueError(f"{volumes} volumes cannot determine a tensor: at least 7 are needed")
    return volumes


def check_shells(shells) -> tuple[float, ...]:
    """Return b-values that shells can have, as numbers; ValueError for others."""
    checked = tuple(float(b) for b in shells)
    if not checked or not all(0 < b < np.inf for b in checked):
        raise ValueError(f"shells must be positive b-values in s/mm^2, not {checked}")
    return checked
