"""What is known of each volume of a series from its slices, and which of them are at fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.neuro.exclusion import Rule
from mpiimg.neuro.slice_figures import (
    COLUMNS,
    MAX_ZEROS,
    MIN_GROUP,
    MIN_VOXELS,
    STRIPED,
    TRUSTED,
    Predictors,
)

#: A slice is dropped below this ratio to its prediction, so many robust deviations below the volume's others.
DROPPED_RATIO, DROPPED_Z = TRUSTED[0], -5.0

#: The intensity of a volume steps where its ratio is so many robust deviations off those of its kind.
STEP_Z = 6.0

#: Ratios of volumes differ by at least this much, whatever their deviation: no scanner is more even.
MIN_DEVIATION = 0.01

#: Mean neighbouring DWI correlation of an image of low quality (Yeh et al. 2019).
LOW_NDC = 0.4

#: Change of the b0s over a series that is worth a word.
LARGE_DRIFT = 0.05

#: b0s that a line through them takes.
MIN_DRIFT_VOLUMES = 3

#: From the median absolute deviation to the standard deviation of a normal distribution.
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, eq=False)
class VolumeFigures:
    """What was measured of each volume; arrays are (V,), and NaN is what cannot be said.

    Parameters
    ----------
    zeros : array
        Share of the voxels in the mask without signal.
    signal : array
        Mean over the mask.
    ndc : array
        Correlation with the nearest DWI in q-space.
    partner : array of int
        Which one that is; -1 where there is none.
    ratio : array
        Median over slices of the mean signal over the mean prediction, which hardly depends on directions.
    step : array
        Robust z-score of this ratio among the volumes of its kind.
    error : array
        Median over slices of the mean absolute difference of signal and prediction, over the mean prediction.
    spikes_ppm : array
        Voxels far above their prediction, in ppm of the mask.
    dropped, spiked : tuple of tuple of int
        Slices of each volume that are dropped, and that have stripes or hot voxels.
    judged : int
        Slices of volumes that could be compared with a prediction.
    drift : float
        Change of the b0s over the series as a line through them has it, over their value at its start.
    shell : array
        Of each volume, s/mm^2.
    ratios : (V, nz) array
        Mean signal over its prediction, of each slice.
    """

    zeros: np.ndarray
    signal: np.ndarray
    ndc: np.ndarray
    partner: np.ndarray
    ratio: np.ndarray
    step: np.ndarray
    error: np.ndarray
    spikes_ppm: np.ndarray
    dropped: tuple[tuple[int, ...], ...]
    spiked: tuple[tuple[int, ...], ...]
    judged: int
    drift: float
    shell: np.ndarray
    ratios: np.ndarray

    @property
    def empty(self) -> np.ndarray:
        """(V,) whether there is nothing in a volume."""
        return self.zeros > MAX_ZEROS

    @property
    def stepped(self) -> np.ndarray:
        """(V,) whether the intensity of a volume is off that of its kind."""
        return np.abs(self.step) > STEP_Z

    @property
    def mean_ndc(self) -> float:
        """The mean of the correlations that are known."""
        known = self.ndc[np.isfinite(self.ndc)]
        return float(known.mean()) if known.size else np.nan

    def flags(self, volume: int) -> tuple[str, ...]:
        """Return what is wrong with a volume."""
        at_fault = {
            "empty": self.empty[volume],
            "dropout": bool(self.dropped[volume]),
            "spike": bool(self.spiked[volume]),
            "step": self.stepped[volume],
        }
        return ("empty",) if at_fault["empty"] else tuple(name for name, is_one in at_fault.items() if is_one)

    def broken(self, rules: Sequence[Rule], volume: int) -> tuple[str, ...]:
        """Return the rules that leave a volume out."""
        return tuple(str(rule) for rule in rules if self._breaks(rule, volume))

    def _breaks(self, rule: Rule, volume: int) -> bool:
        if rule.name == "ndc":
            return bool(self.ndc[volume] < rule.limit)
        slices = {"dropout": self.dropped, "spike": self.spiked}.get(rule.name)
        if slices is not None:
            return len(slices[volume]) >= rule.limit
        return rule.name in self.flags(volume)


def volume_figures(rows: np.ndarray, counts: np.ndarray, predictors: Predictors) -> VolumeFigures:
    """Draw what is known of each volume from what was measured of its slices.

    Parameters
    ----------
    rows : (nz, V, WIDTH) float64 array
        From :func:`mpiimg.neuro.slice_figures.figures_of_slice`; NaN for slices without voxels.
    counts : (nz,) int array
        Voxels of each slice in the mask, at least one of them.
    predictors : Predictors
    """
    measured = {name: rows[:, :, column].T for column, name in enumerate(COLUMNS)}
    voxels = counts.sum()
    zeros, signal, squares = (np.nansum(measured[name], axis=1) for name in ("zeros", "signal", "squares"))
    products = np.nansum(rows[:, :, len(COLUMNS) :], axis=0)
    empty = zeros > MAX_ZEROS * voxels
    partner, ndc = correlations(signal, squares, products, voxels, empty, predictors)
    gradients, shell = predictors.gradients, predictors.shell
    nothing = measured["zeros"] > MAX_ZEROS * counts
    nothing &= (counts >= MIN_VOXELS) & (nothing.mean(axis=0) < 0.5)
    dropped = _dropped(measured["ratio"], nothing) & ~empty[:, None]
    ratio = _over_slices(np.where(dropped, np.nan, measured["level"]))
    striped = (measured["stripes"] > STRIPED) & ~dropped
    step = _steps(np.where(empty, np.nan, ratio), shell, predictors)
    b0s = [v for v in gradients.b0 if not empty[v] and not abs(step[v]) > STEP_Z]
    return VolumeFigures(
        zeros=zeros / voxels,
        signal=signal / voxels,
        ndc=ndc,
        partner=partner,
        ratio=ratio,
        step=step,
        error=_over_slices(measured["error"]),
        spikes_ppm=1e6 * np.nansum(measured["hot"], axis=1) / voxels,
        dropped=_places(dropped),
        spiked=_places(striped | (measured["hot"] > 0)),
        judged=int(np.isfinite(measured["ratio"]).sum()),
        drift=_drift(np.array(b0s), signal / voxels, len(shell)),
        shell=shell,
        ratios=measured["ratio"],
    )


def _over_slices(measured: np.ndarray) -> np.ndarray:
    """Return the median of each volume over the slices where something is known, NaN where nowhere."""
    known = [row[np.isfinite(row)] for row in measured]
    return np.array([np.median(row) if row.size else np.nan for row in known])


def _places(at: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in at)


def correlations(signal, squares, products, voxels, empty, predictors: Predictors):
    """Return the nearest volume that is not empty, and the correlation with it, (V,) each.

    Parameters
    ----------
    signal, squares : (V,) array
        Sums over the voxels of the mask.
    products : (V, k) array
        Sums of products with the partners.
    voxels : int
        Of the mask.
    empty : (V,) bool array
        Volumes that are no partners.
    predictors : Predictors
    """
    partner, ndc = np.full(len(signal), -1), np.full(len(signal), np.nan)
    spread = squares - signal**2 / voxels
    for volume, near in enumerate(predictors.partners):
        there = [k for k, other in enumerate(near) if other >= 0 and not empty[other]]
        if not there or empty[volume]:
            continue
        partner[volume] = other = near[there[0]]
        shared = products[volume, there[0]] - signal[volume] * signal[other] / voxels
        if spread[volume] > 0 and spread[other] > 0:
            ndc[volume] = shared / np.sqrt(spread[volume] * spread[other])
    return partner, ndc


def _dropped(ratio: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    """Return which slices (V, nz) are dropped: far below their prediction and the volume's other slices.

    A slice with nothing in it is dropped by itself: most of a volume that the scanner did not finish may be.
    """
    dropped = np.zeros(ratio.shape, bool)
    for volume, row in enumerate(ratio):
        known = np.isfinite(row)
        if known.any():
            z = _z_scores(row, row[known], smallest=np.finfo(np.float64).tiny)
            dropped[volume] = (row < DROPPED_RATIO) & (z < DROPPED_Z)
    return dropped | nothing


def _steps(ratio: np.ndarray, shell: np.ndarray, predictors: Predictors) -> np.ndarray:
    """Return the z-score of the ratio of each volume among those of its shell.

    Where these are few, b0s above all, among all that the tensor fit predicts: for them 1 is expected alike.
    """
    step = np.full(len(ratio), np.nan)
    known = np.isfinite(ratio)
    for one in np.unique(shell):
        of_shell = (shell == one) & known
        alike = of_shell if of_shell.sum() >= MIN_GROUP else predictors.fitted & known
        if alike.sum() >= MIN_GROUP and predictors.fitted[of_shell].all() | (alike is of_shell):
            step[of_shell] = _z_scores(ratio[of_shell], ratio[alike], smallest=MIN_DEVIATION)
    return step


def _z_scores(values: np.ndarray, alike: np.ndarray, smallest: float) -> np.ndarray:
    middle = np.median(alike)
    deviation = MAD_TO_SIGMA * np.median(np.abs(alike - middle))
    return (values - middle) / max(deviation, smallest)


def _drift(b0s: np.ndarray, signal: np.ndarray, volumes: int) -> float:
    """Return the change of the b0s from the first to the last volume of a series, as a share.

    References
    ----------
    Vos et al. 2017, doi:10.1002/mrm.26124.
    """
    if len(b0s) < MIN_DRIFT_VOLUMES:
        return np.nan
    slope, start = np.polyfit(b0s, signal[b0s], 1)
    return float(slope * (volumes - 1) / start) if start > 0 else np.nan
