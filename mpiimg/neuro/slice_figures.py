"""What is measured of one slice of all volumes: how it compares with what the other volumes predict for it.

A volume of low b is predicted by the tensor that is fitted to the other ones, one of a high b by the mean of
the three nearest directions of its shell. All is of one slice: so nothing depends on how an image is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpiimg.neuro.gradients import TENSOR_B_LIMIT, Gradients
from mpiimg.neuro.qspace import nearest_in_q, nearest_in_shell, shells

#: Voxels in the mask without which nothing is predicted of a slice.
MIN_VOXELS = 100

#: Share of voxels without signal above which there is nothing in a slice, or a volume.
MAX_ZEROS = 0.99

#: Directions of a shell whose mean predicts another one.
NEIGHBOURS = 3

#: Nearest volumes in q-space that each is correlated with: the second and third where the first is empty.
PARTNERS = 3

#: A slice is not believed by the predictions of others where its ratio to its own is outside these.
TRUSTED = (0.8, 1.25)

#: Times that the worst volumes of a slice are left out of what predicts the others.
MAX_ROUNDS = 8

#: Signals are raised to this share of the mean of their voxel before a logarithm is taken.
FLOOR = 0.01

#: A slice is looked at for stripes where its error is so many times the median of its shell.
SUSPECT_ERROR = 1.25

#: A slice has stripes where so much of its residual is one wave.
STRIPED = 0.25

#: Pixels of a slice from which on one wave with its neighbours, eighteen numbers of its spectrum, stands out.
MIN_SPECTRUM = 300

#: Volumes of a shell whose errors have a median worth the name.
MIN_GROUP = 5

#: Stripes of a spike in k-space are closer than so many voxels; wider ones are anatomy.
MAX_STRIPE = 8

#: What is measured of each volume, in the order of the columns of a row.
COLUMNS = ("zeros", "signal", "squares", "ratio", "level", "error", "hot", "stripes")
WIDTH = len(COLUMNS) + PARTNERS


@dataclass(frozen=True)
class Predictors:
    """Which volumes predict which, as the gradient table has it.

    Parameters
    ----------
    gradients : Gradients
    """

    gradients: Gradients

    @cached_property
    def shell(self) -> np.ndarray:
        """(V,) the shell of each volume, s/mm^2."""
        return shells(self.gradients)

    @cached_property
    def fitted(self) -> np.ndarray:
        """(V,) whether a tensor describes the volume."""
        return np.array(self.gradients.bvals) <= TENSOR_B_LIMIT

    @cached_property
    def rows(self) -> np.ndarray:
        """(V, 7) the design matrix, its columns of like size."""
        from mpiimg.neuro.kernels.tensor import design_matrix

        design = design_matrix(np.array(self.gradients.bvals), np.array(self.gradients.bvecs))
        return design / np.array([TENSOR_B_LIMIT] * 6 + [1.0])

    @cached_property
    def near(self) -> list[np.ndarray]:
        """Of each volume the others of its shell, the nearest first."""
        return nearest_in_shell(self.gradients)

    @cached_property
    def partners(self) -> np.ndarray:
        """(V, PARTNERS) int64, of each weighted volume the nearest in q-space; -1 where there is none."""
        order = nearest_in_q(self.gradients)[:, :PARTNERS]
        padding = ((0, 0), (0, PARTNERS - order.shape[1]))
        return np.ascontiguousarray(np.pad(order, padding, constant_values=-1), np.int64)

    def neighbours(self, volume: int, trusted: np.ndarray) -> np.ndarray:
        """Return the nearest trusted volumes of a shell; empty where there are too few."""
        near = self.near[volume]
        near = near[trusted[near]][:NEIGHBOURS]
        return near if len(near) == NEIGHBOURS else near[:0]

    def determined(self, used: np.ndarray) -> bool:
        """Whether these volumes determine a tensor."""
        return int(np.linalg.matrix_rank(self.rows[used])) == self.rows.shape[1]


def figures_of_slice(values: np.ndarray, inside: np.ndarray, predictors: Predictors) -> np.ndarray:
    """Measure a slice of all volumes.

    Parameters
    ----------
    values : (V, n) float32 array
        The voxels in the mask.
    inside : (y, x) bool array
        Where these are.
    predictors : Predictors

    Returns
    -------
    (V, WIDTH) float64 array
        `COLUMNS`, and the sums of products with the partners. zeros, signal and squares are sums over voxels;
        NaN is what cannot be said.
    """
    from mpiimg.neuro.kernels.prediction import compare, sums

    figures = np.full((len(values), WIDTH), np.nan)
    total = sums(values, predictors.partners)
    figures[:, 0], figures[:, 1], figures[:, 2] = total.zeros, total.signal, total.squares
    figures[:, len(COLUMNS) :] = total.products
    filled = total.zeros <= MAX_ZEROS * values.shape[1]
    # Voxels that hold nothing say nothing of a ratio.
    lit = _sum(values, filled & predictors.fitted) > 0
    if np.count_nonzero(lit) < MIN_VOXELS:
        return figures
    values, where = (values, inside) if lit.all() else (values[:, lit], _narrowed(inside, lit))
    trusted = filled.copy()
    for _ in range(MAX_ROUNDS):
        predicted = predictions(values, trusted, predictors)
        measured = compare(values, predicted)
        waves = np.full(len(values), np.nan)
        for volume in _suspects(measured.error, predictors.shell):
            waves[volume] = stripes(values[volume] - predicted[volume], where)
        # Stripes of one volume are in what it says of the others.
        striped = (waves > STRIPED) & trusted
        if not striped.any():
            break
        trusted[np.argmax(np.where(striped, measured.error, -1.0))] = False
    figures[:, 3], figures[:, 5], figures[:, 6] = measured.ratio, measured.error, measured.hot
    figures[:, 4], figures[:, 7] = measured.level, waves
    return figures


def _sum(values: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    """Return the sum of some volumes, (n,) float64."""
    total = np.zeros(values.shape[1])
    for volume in np.flatnonzero(volumes):
        total += values[volume]
    return total


def _narrowed(inside: np.ndarray, lit: np.ndarray) -> np.ndarray:
    narrowed = inside.copy()
    narrowed[inside] = lit
    return narrowed


def predictions(values: np.ndarray, trusted: np.ndarray, predictors: Predictors) -> np.ndarray:
    """Predict a slice of each volume from those of the others that can be trusted.

    A volume is no longer trusted where its slice is found to be far off its own prediction, the worst first:
    one that is left out does not spoil the predictions of the others.

    Parameters
    ----------
    values : (V, n) float32 array
        The trusted volumes of low b have signal in every voxel.
    trusted : (V,) bool array
        Volumes that are believed at first.
    predictors : Predictors

    Returns
    -------
    (V, n) float32 array
        Above 0; NaN for volumes that the others say nothing of.
    """
    from mpiimg.neuro.kernels.prediction import predict

    fitted, trusted = predictors.fitted, trusted.copy()
    used, members = fitted & trusted, np.flatnonzero(fitted)
    floor = FLOOR * _sum(values, used) / max(np.count_nonzero(used), 1)
    floor = np.maximum(floor, np.finfo(np.float32).tiny).astype(np.float32)
    if predictors.determined(used):
        predicted, mean_logs = predict(values, floor, predictors.rows, used, members)
        fewer = trusted_by_fit(mean_logs, predictors.rows, used)
        if (fewer != used).any():
            trusted[fitted] = fewer[fitted]
            predicted, _ = predict(values, floor, predictors.rows, fewer, members)
    else:
        predicted = np.full(values.shape, np.nan, np.float32)
    lone = np.flatnonzero(np.isnan(predicted[:, 0]))
    trusted = trusted_by_neighbours(values, lone, trusted, predictors)
    for volume in lone:
        near = predictors.neighbours(volume, trusted)
        if near.size:
            predicted[volume] = np.maximum(values[near].mean(axis=0, dtype=np.float64), floor)
    return predicted


def trusted_by_fit(mean_logs: np.ndarray, rows: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Leave the volumes out of a fit that are far off what the others say, the worst first.

    The fit is linear in the logarithms: its mean residuals are the residuals of the mean logarithms. Over
    the root of 1 - leverage, that of a single bad volume is the largest of all.

    Parameters
    ----------
    mean_logs : (V,) float64 array
        NaN for volumes that are not predicted.
    rows : (V, 7) float64 array
    used : (V,) bool array
        Volumes that are fitted at first.

    Returns
    -------
    (V,) bool array
    """
    from mpiimg.neuro.kernels.prediction import loo_gain

    for _ in range(MAX_ROUNDS):
        gain = loo_gain(rows, used)
        solution = np.linalg.pinv(rows[used]) @ mean_logs[used]
        off = np.where(used & np.isfinite(gain), mean_logs - rows @ solution, 0.0) * np.nan_to_num(gain)
        far = (off < np.log(TRUSTED[0])) | (off > np.log(TRUSTED[1]))
        if not far.any():
            break
        weight = np.where(far, np.abs(off) / np.sqrt(np.maximum(np.nan_to_num(gain), 1)), 0.0)
        fewer = used & (weight < weight.max())
        if int(np.linalg.matrix_rank(rows[fewer])) < rows.shape[1]:
            break
        used = fewer
    return used


def trusted_by_neighbours(
    values: np.ndarray, volumes: Sequence[int], trusted: np.ndarray, predictors: Predictors
) -> np.ndarray:
    """Leave those of `volumes` out that are far off the mean of their neighbours, the worst first."""
    means = values.mean(axis=1, dtype=np.float64)
    trusted = trusted.copy()
    for _ in range(MAX_ROUNDS):
        off = np.zeros(len(values))
        for volume in volumes:
            near = predictors.neighbours(volume, trusted)
            if near.size and trusted[volume] and means[volume] > 0 and means[near].mean() > 0:
                off[volume] = np.log(means[volume] / means[near].mean())
        far = (off < np.log(TRUSTED[0])) | (off > np.log(TRUSTED[1]))
        if not far.any():
            break
        trusted[np.argmax(np.where(far, np.abs(off), 0.0))] = False
    return trusted


def _suspects(error: np.ndarray, shell: np.ndarray) -> np.ndarray:
    """Return the volumes whose error is large among those of their shell, or cannot be compared."""
    usual = np.zeros(len(error))
    for one in np.unique(shell):
        of_shell = error[(shell == one) & np.isfinite(error)]
        if len(of_shell) >= MIN_GROUP:
            usual[shell == one] = np.median(of_shell)
    return np.flatnonzero(error > SUSPECT_ERROR * usual)


def stripes(residual: np.ndarray, inside: np.ndarray) -> float:
    """Return the share of the energy of a residual that lies in one wave: stripes of a spike in k-space.

    It is 0 in a slice so small that a few numbers of its spectrum hold much of any residual.

    Parameters
    ----------
    residual : (n,) array
        Signal minus prediction, in the mask.
    inside : (y, x) bool array
        The mask, with n voxels.
    """
    if inside.size < MIN_SPECTRUM:
        return 0.0
    plane = np.zeros(inside.shape)
    plane[inside] = residual - residual.mean(dtype=np.float64)
    energy = np.abs(np.fft.fft2(plane)) ** 2
    y, x = (np.fft.fftfreq(n) for n in inside.shape)
    waves = np.where(np.hypot(y[:, None], x) < 1 / MAX_STRIPE, 0.0, energy)
    row, column = np.unravel_index(np.argmax(waves), waves.shape)
    near = [np.arange(at - 1, at + 2) % n for at, n in zip((row, column), inside.shape, strict=True)]
    total = energy.sum()
    # A wave stands twice in the spectrum of a real image.
    return float(min(2 * energy[np.ix_(*near)].sum() / total, 1.0)) if total > 0 else 0.0
