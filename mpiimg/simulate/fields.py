"""Smooth random fields that are the same for every cut of a volume."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def random_field(x: np.ndarray, y: np.ndarray, z: float, spacing: float, seed: int, stream: tuple[int, ...]):
    """Evaluate a smooth random field of about unit variance on one slice, (ny, nx) float64.

    Normal deviates on a fixed lattice are the coefficients of a cubic B-spline,
    so a value depends on the 64 knots around it and on nothing else: unlike a
    filtered image, it is the same for every cut of the volume.
    """
    knots = int(np.ceil(2 / spacing)) + 4
    lattice = _lattice(knots, seed, stream)
    first, weights = _spline_weights(np.atleast_1d(z), spacing)
    plane = _weighted_sum(lattice, first, weights)[0]
    first, weights = _spline_weights(y[:, 0], spacing)
    rows = _weighted_sum(plane, first, weights)
    first, weights = _spline_weights(x[0], spacing)
    return _weighted_sum(np.ascontiguousarray(rows.T), first, weights).T


@lru_cache(maxsize=8)
def _lattice(knots: int, seed: int, stream: tuple[int, ...]) -> np.ndarray:
    """Return the lattice (knots, knots, knots), scaled so that the field has unit variance on average."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([stream[0], seed, *stream[1:]])))
    # The squared weights of a cubic B-spline sum to 151/315 on average over its phase, an axis.
    return generator.standard_normal((knots, knots, knots)) * (315 / 151) ** 1.5


def _spline_weights(position: np.ndarray, spacing: float) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the first of four knots and the four cubic B-spline weights at positions in [-1, 1]."""
    scaled = (np.clip(position, -1, 1) + 1) / spacing
    first = scaled.astype(np.intp)
    t = scaled - first
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    return first, tuple(w / 6 for w in weights)


def _weighted_sum(lattice: np.ndarray, first: np.ndarray, weights: tuple[np.ndarray, ...]) -> np.ndarray:
    """Interpolate the first axis of `lattice`; explicit sums, since BLAS may add in another order."""
    shape = (-1, *(1,) * (lattice.ndim - 1))
    total = weights[0].reshape(shape) * lattice[first]
    for k in range(1, 4):
        total += weights[k].reshape(shape) * lattice[first + k]
    return total
