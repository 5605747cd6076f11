"""The floor of a fit, the smallest signal whose logarithm it takes, and what the fit came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.engine.array import Array

#: Of the noise level: a magnitude without signal is below this in one of nine cases, one with signal hardly.
OF_SIGMA = 0.5

#: Of the largest signal in a voxel, where no noise level is known: MRtrix3's.
OF_LARGEST = 1e-6

#: No floor is below this: a voxel of zeros has a logarithm too.
SMALLEST = 1e-30

#: mm^2/s: no tissue, living or fixed, and no water diffuses less or more.
MD_LIMITS = (1e-5, 1e-2)


@dataclass(frozen=True)
class Floor:
    """What smaller signals are raised to.

    Parameters
    ----------
    levels : (V or 1, nz or 1) float64
        By volume of the fit and by slice.
    is_relative : bool
        They are shares of the largest signal in a voxel, and no signals.
    origin : str
        Where they come from, in words.
    by_voxel : Array, optional
        (z, y, x) float32, the noise level; the one level is then the share of it.
    """

    levels: np.ndarray
    is_relative: bool
    origin: str
    by_voxel: Array | None = None

    @property
    def unit(self) -> str:
        """The unit of the levels."""
        if self.by_voxel is not None:
            return "share of the noise level in the voxel"
        return "share of the largest signal in the voxel" if self.is_relative else "image units"

    @property
    def said(self) -> dict[str, Any]:
        """What sidecars and provenance say of it."""
        by_voxel = {"MinSignalBy": "voxel"} if self.is_relative or self.by_voxel is not None else {}
        return {
            **levels_said("MinSignal", self.levels),
            **by_voxel,
            "MinSignalUnits": self.unit,
            "MinSignalSource": self.origin,
        }

    def __str__(self) -> str:
        return f"{np.median(self.levels):.3g} {self.unit}, {self.origin}"

    def raise_signal(
        self, signal: np.ndarray, first: int, voxels: Sequence[int], sigma: np.ndarray | None = None
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """Raise small signals to the floor.

        Parameters
        ----------
        signal : (V, n) float array
            Voxels slice by slice.
        first : int
            The slice that they begin in.
        voxels : sequence of int
            How many there are in each slice from there on.
        sigma : (n,) float array, optional
            Their noise level, from `by_voxel`.

        Returns
        -------
        raised : (V, n) float array
            Raised already; but where one level holds for all, that is left to the fit, which takes it to the
            last digit.
        min_signal : float
            The floor that is left.
        floored : (n,) int
            How many signals of each voxel lie below the floor.
        """
        if self.levels.size == 1 and not self.is_relative and sigma is None:
            level = float(self.levels[0, 0])
            return signal, level, np.count_nonzero(signal < level, axis=0)
        if sigma is not None:
            levels = self.levels[0, 0] * sigma[None]
        elif self.is_relative:
            levels = np.maximum(self.levels[0, 0] * signal.max(axis=0, keepdims=True), SMALLEST)
        elif self.levels.shape[1] == 1:
            levels = self.levels
        else:
            levels = np.repeat(self.levels[:, first : first + len(voxels)], voxels, axis=1)
        levels = levels.astype(signal.dtype)
        return np.maximum(signal, levels), SMALLEST, np.count_nonzero(signal < levels, axis=0)


def levels_said(name: str, levels: np.ndarray) -> dict[str, Any]:
    """Return what sidecars say of levels (V or 1, nz or 1): the values, and what they go by."""
    by = "slice" if levels.shape[1] > 1 else "volume" if levels.shape[0] > 1 else "image"
    return {name: levels.ravel().tolist(), f"{name}By": by}


def absolute(level: float) -> Floor:
    """Return the floor that a user gave."""
    return Floor(np.full((1, 1), level), False, "given")


def of_noise(sigma: np.ndarray, origin: str) -> Floor:
    """Return the floor where the noise level (V or 1, nz or 1) is known."""
    return Floor(OF_SIGMA * np.asarray(sigma, float), False, f"half the noise level ({origin})")


def of_map(sigma: Array, origin: str) -> Floor:
    """Return the floor where the noise level (z, y, x) is known by voxel."""
    return Floor(np.full((1, 1), OF_SIGMA), False, f"half the noise level ({origin})", sigma)


def of_sidecar(fields: Mapping[str, Any], volumes: Sequence[int]) -> Floor | None:
    """Return the floor by the noise level that the sidecar of a denoised image says, if it says one.

    Parameters
    ----------
    fields : mapping
        Of the sidecar.
    volumes : sequence of int
        Those of the fit, as that image counts them.
    """
    sigma, by = np.asarray(fields.get("Sigma", []), dtype=object).ravel(), fields.get("SigmaBy")
    if by == "voxel":
        sigma = np.asarray([fields.get("NoiseLevel", 0)], dtype=object)
    if not sigma.size or not all(isinstance(one, int | float) and one > 0 for one in sigma):
        return None
    sigma = sigma.astype(float)
    if by == "volume":
        if sigma.size <= max(volumes):
            return None
        return of_noise(sigma[list(volumes), None], "of the sidecar")
    return of_noise(sigma[None, :], "of the sidecar") if by == "slice" or sigma.size == 1 else None


def of_largest() -> Floor:
    """Return the floor where no noise level is known."""
    return Floor(np.full((1, 1), OF_LARGEST), True, "no noise level is known")


@dataclass(frozen=True)
class Figures:
    """What a fit came to, counted over the mask.

    Parameters
    ----------
    voxels : int
        Of the mask.
    floored : int
        Signals below the floor, of all volumes that were fitted.
    lost : int
        Voxels all of whose signals lie below it.
    rising : int
        Other voxels whose signal rises with b: the trace of the tensor is not above 0.
    slow, fast : int
        Others whose mean diffusivity is below or above `MD_LIMITS`.
    fa, md : float
        The means of FA and of mean diffusivity (mm^2/s).
    """

    voxels: int
    floored: int = 0
    lost: int = 0
    rising: int = 0
    slow: int = 0
    fast: int = 0
    fa: float = 0.0
    md: float = 0.0
