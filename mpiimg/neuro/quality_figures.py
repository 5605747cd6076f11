"""The figures of a scan: how good the data are, and what came of them, under names that others use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mpiimg.neuro.gradients import SAME_DIRECTION, Gradients, bvec_to_scanner, count_directions
from mpiimg.neuro.maps import ORDERS
from mpiimg.neuro.slice_figures import PARTNERS, Predictors
from mpiimg.neuro.subject import Maps, Subject
from mpiimg.neuro.tables.shells import Shell, shells_of
from mpiimg.neuro.volume_figures import correlations

#: Bins of FA from 0 to 1, and of mean diffusivity from 0 to `MAX_MD`, mm^2/s.
FA_BINS, MD_BINS, MAX_MD = 50, 80, 4e-3

#: Free water at body temperature, mm^2/s: above `MD_OF_CSF` lies what is mostly that.
MD_OF_WATER, MD_OF_CSF = 3.0e-3, 2.0e-3

#: Bins that a peak is smoothed over, and how far it must rise above the valley before it.
SMOOTHED, MIN_RISE = 5, 1.2

#: b0s whose standard deviation says something.
MIN_B0S = 3

#: Two ways to the noise level that differ by more than this share are worth a word.
NOISE_DIFFERENCE = 0.1

#: Figures: unit and definition. Names are MRIQC's (24) where it has the figure, then QSIPrep's (0.21).
DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "size_x": ("voxels", "Voxels along the first axis."),
    "size_y": ("voxels", "Voxels along the second axis."),
    "size_z": ("voxels", "Voxels along the third axis."),
    "size_t": ("volumes", "Volumes of the series as it was scanned."),
    "spacing_x": ("mm", "Size of a voxel along the first axis."),
    "spacing_y": ("mm", "Size of a voxel along the second axis."),
    "spacing_z": ("mm", "Size of a voxel along the third axis."),
    "volumes": ("volumes", "Volumes that were used."),
    "max_b": ("s/mm^2", "The largest b-value (raw_max_b of QSIPrep)."),
    "num_shells": ("", "Shells with diffusion weighting."),
    "num_b0s": ("volumes", "Volumes without diffusion weighting."),
    "num_directions": ("", "Different directions (raw_num_directions of QSIPrep)."),
    "mask_ml": ("ml", "Volume of the brain mask."),
    "mask_share": ("1", "Share of the field that the brain mask takes."),
    "ndc": (
        "1",
        "Mean correlation of weighted volumes with the nearest in q-space, in the mask; as scanned.",
    ),
    "ndc_denoised": ("1", "The same after denoising."),
    "num_bad_slices": ("slices", "Slices far below what the other volumes predict."),
    "share_bad_slices": ("1", "Their share of all slices that could be compared."),
    "spikes_ppm": ("ppm", "Hot voxels: above 3 times their prediction, and far above all else."),
    "drift": ("1", "Change of the b0s over the series, as a line through them has it."),
    "sigma": ("image units", "Noise level that was used: the median."),
    "sigma_fit": ("image units", "Noise level from the residuals of a tensor fit."),
    "sigma_piesno": ("image units", "Noise level from the background (PIESNO)."),
    "sigma_estimate": ("image units", "Noise level from dipy's estimate_sigma."),
    "snr_b0": ("1", "Mean of the b0s over the root mean square of their standard deviation, in the mask."),
    "fa_mean": ("1", "Mean FA in the mask."),
    "md_mean": ("mm^2/s", "Mean of the mean diffusivity in the mask."),
    "md_csf_peak": (
        "mm^2/s",
        "Peak of the mean diffusivity above 2e-3, if there is one; free water has 3e-3.",
    ),
    "fa_nans": ("ppm", "Voxels of the mask whose FA is no number."),
    "fa_degenerate": ("ppm", "Voxels of the mask whose fitted tensor is none of tissue or water."),
    "floor_share": ("1", "Share of the signals of the fit that were raised to the floor."),
    "gradient_check": ("", "What the continuity of fibres says of the axes of the gradient table."),
}

#: Figures of each shell, whose names end with its b-value: unit and definition.
OF_SHELLS: Mapping[str, tuple[str, str]] = {
    "cnr_b": (
        "1",
        "Standard deviation of the prediction over a shell, over the rms residual; in the mask.",
    ),
    "snr_b": ("1", "Mean signal of the shell in the mask over the noise level."),
    "directions_b": ("", "Different directions of the shell."),
    "repeats_b": ("volumes", "Volumes whose direction another one of the shell has too."),
    "energy_b": ("1", "Electrostatic energy of the directions, over that of as many evenly spread ones."),
    "one_sided_b": ("1", "Length of the mean direction: 0 for a whole sphere, 0.5 for a half, 1 for one."),
}


@dataclass(frozen=True, eq=False)
class QualityFigures:
    """What was found of a scan.

    Parameters
    ----------
    numbers : mapping of str to float, int or str
        Figures by name; None for what cannot be said.
    histograms : mapping of str to list of int
        Voxels in each bin, "fa" and "md"; empty without a fit.
    ndc : (V,) array
        After denoising, of each volume; empty where nothing was denoised.
    extent : sequence of (int, int)
        First and last index of the mask along z, y and x.
    """

    numbers: Mapping[str, Any]
    histograms: Mapping[str, list[int]]
    ndc: np.ndarray
    extent: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class SliceSums:
    """What is summed over the voxels of one slice, as one row of numbers.

    Parameters
    ----------
    gradients : Gradients
    has_denoised, has_maps : bool
    shape : (int, int)
        Rows and columns of a slice.
    maps : Maps, optional
    rotation : (3, 3) array
        From the frame of the bvecs to the scanner's.
    """

    gradients: Gradients
    shape: tuple[int, int]
    has_denoised: bool
    maps: Maps | None
    rotation: Any = field(repr=False)

    @cached_property
    def predictors(self) -> Predictors:
        """Which volumes are near which."""
        return Predictors(self.gradients)

    @cached_property
    def shells(self) -> tuple[Shell, ...]:
        """Weighted shells."""
        threshold = self.gradients.b0_threshold
        return tuple(one for one in shells_of(self.gradients.bvals, threshold) if one.high > threshold)

    @cached_property
    def parts(self) -> dict[str, slice]:
        """Where each sum lies in a row."""
        volumes, shells = len(self.gradients.bvals), len(self.shells)
        sizes = {"rows": self.shape[0], "columns": self.shape[1], "b0": 2, "signal": volumes}
        if self.has_denoised:
            sizes |= {"denoised": 2 * volumes, "products": volumes * PARTNERS}
        if self.maps is not None:
            sizes |= {"contrast": 2 * shells, "fa": FA_BINS, "md": MD_BINS, "nans": 1}
        ends = np.cumsum(list(sizes.values())).tolist()
        return {name: slice(end - n, end) for (name, n), end in zip(sizes.items(), ends, strict=True)}

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return max(part.stop for part in self.parts.values())

    @cached_property
    def shell_of(self) -> np.ndarray:
        """(V,) int64, the shell of each volume that was fitted; -1 for others."""
        shell = np.full(len(self.gradients.bvals), -1)
        for number, one in enumerate(self.shells):
            fitted = [v for v in one.volumes if self.maps is not None and v in self.maps.volumes]
            shell[fitted] = number
        return shell

    @cached_property
    def quadratic(self) -> np.ndarray:
        """(V, 6) what the tensor's elements are multiplied with in the exponent, in dipy's order."""
        directions = np.array(self.gradients.bvecs).reshape(-1, 3)
        if self.maps is not None and self.maps.frame == "scanner":
            directions = np.stack(
                [sum(self.rotation[i, j] * directions[:, j] for j in range(3)) for i in range(3)], axis=1
            )
        x, y, z = directions.T
        rows = np.stack([x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z], axis=1)
        return -np.array(self.gradients.bvals)[:, None] * rows

    def of_slice(self, inside, values, denoised=None, maps=None) -> np.ndarray:
        """Sum up a slice.

        Parameters
        ----------
        inside : (y, x) bool array
        values : (V, n) float32 array
            As scanned, the voxels in the mask.
        denoised : (V, n) float32 array, optional
        maps : (9, n) float32 array, optional
            FA, mean diffusivity, S0, and the six elements of the tensor.

        Returns
        -------
        (width,) float64 array
        """
        from mpiimg.neuro.kernels.contrast import contrast
        from mpiimg.neuro.kernels.prediction import sums

        row = np.zeros(self.width)

        def put(name, numbers):
            row[self.parts[name]] = np.ravel(numbers)

        put("rows", inside.sum(axis=1))
        put("columns", inside.sum(axis=0))
        if not values.shape[1]:
            return row
        put("signal", sums(values, self.predictors.partners[:, :0]).signal)
        b0s = values[list(self.gradients.b0)].astype(np.float64)
        if len(b0s) >= MIN_B0S:
            put("b0", (b0s.mean(axis=0).sum(), b0s.var(axis=0, ddof=1).sum()))
        if denoised is not None:
            found = sums(denoised, self.predictors.partners)
            put("denoised", (found.signal, found.squares))
            put("products", found.products)
        if maps is not None:
            fa, md, s0 = maps[:3]
            order = ORDERS[self.maps.order]
            tensors = np.empty((6, fa.size), np.float32)
            tensors[list(order)] = maps[3:]
            put("contrast", contrast(values, s0, tensors, self.quadratic, self.shell_of, len(self.shells)))
            known = np.isfinite(fa) & np.isfinite(md)
            put("fa", _counted(fa[known], FA_BINS, 1.0))
            put("md", _counted(md[known], MD_BINS, MAX_MD))
            put("nans", np.count_nonzero(~known))
        return row

    def figures(self, rows: np.ndarray, subject: Subject) -> QualityFigures:
        """Draw the figures from the rows of all slices.

        Parameters
        ----------
        rows : (nz, width) float64 array
        subject : Subject
            With what steps have found before.
        """
        total = rows.sum(axis=0)
        voxels, volumes = float(total[self.parts["rows"]].sum()), len(self.gradients.bvals)
        numbers = {**_of_table(self.gradients, self.shells), **_of_mask(subject, voxels)}
        numbers |= _of_volumes(subject) | _of_noise(subject)
        signal = total[self.parts["signal"]] / max(voxels, 1.0)
        level = numbers.get("sigma")
        for one in self.shells if level else ():
            numbers[f"snr_b{one.b:.0f}"] = float(signal[list(one.volumes)].mean()) / level
        mean, variance = total[self.parts["b0"]]
        numbers["snr_b0"] = float(mean / voxels / math.sqrt(variance / voxels)) if variance > 0 else None
        ndc = np.empty(0)
        if self.has_denoised:
            sums, squares = total[self.parts["denoised"]].reshape(2, volumes)
            products = total[self.parts["products"]].reshape(volumes, PARTNERS)
            _, ndc = correlations(sums, squares, products, voxels, sums == 0, self.predictors)
            numbers["ndc_denoised"] = _mean(ndc)
        histograms: dict[str, list[int]] = {}
        if self.maps is not None:
            histograms = {name: total[self.parts[name]].astype(int).tolist() for name in ("fa", "md")}
            numbers |= self._of_fit(total, voxels)
        filled = [np.flatnonzero(total[self.parts[name]]) for name in ("rows", "columns")]
        slices = np.flatnonzero(rows[:, self.parts["rows"]].sum(axis=1))
        extent = [(int(one[0]), int(one[-1])) if one.size else (0, 0) for one in (slices, *filled)]
        known = {name: _plain(value) for name, value in numbers.items()}
        ordered = {name: known[name] for name in DEFINITIONS if name in known}
        return QualityFigures({**ordered, **known}, histograms, ndc, extent)

    def _of_fit(self, total: np.ndarray, voxels: float) -> dict[str, Any]:
        maps, found = self.maps, self.maps.figures
        between, within = total[self.parts["contrast"]].reshape(2, len(self.shells))
        numbers = {
            f"cnr_b{one.b:.0f}": math.sqrt(between[k] / within[k]) if within[k] > 0 else None
            for k, one in enumerate(self.shells)
            if (self.shell_of == k).any()
        }
        numbers |= {"fa_mean": found.fa, "md_mean": found.md} if found is not None else {}
        numbers["md_csf_peak"] = csf_peak(total[self.parts["md"]])
        ppm = 1e6 / max(voxels, 1.0)
        numbers["fa_nans"] = float(total[self.parts["nans"]][0] * ppm)
        if found is not None:
            numbers["fa_degenerate"] = (found.lost + found.rising + found.slow + found.fast) * ppm
            numbers["floor_share"] = found.floored / max(voxels * len(maps.volumes), 1.0)
        if maps.verdict:
            numbers["gradient_check"] = maps.verdict
        return numbers


def csf_peak(counts: np.ndarray) -> float | None:
    """Return the mean diffusivity of the peak of CSF, mm^2/s; None where there is only the tail of tissue.

    Parameters
    ----------
    counts : (MD_BINS,) array
        Voxels by their mean diffusivity, from 0 to `MAX_MD`; the last bin holds those beyond.
    """
    first = round(MD_OF_CSF / MAX_MD * MD_BINS)
    smooth = np.convolve(counts, np.ones(SMOOTHED) / SMOOTHED, "same")
    inner = np.arange(first, MD_BINS - 1 - SMOOTHED // 2)
    peaks = inner[(smooth[inner] > smooth[inner - 1]) & (smooth[inner] >= smooth[inner + 1])]
    if not peaks.size:
        return None
    best = int(peaks[np.argmax(smooth[peaks])])
    valley = smooth[first : best + 1].min()
    return (best + 0.5) * MAX_MD / MD_BINS if smooth[best] > MIN_RISE * valley else None


def _counted(values: np.ndarray, bins: int, largest: float) -> np.ndarray:
    """Count values in bins from 0 to `largest`, those beyond in the first and the last; (bins,) int64."""
    place = np.floor(values.astype(np.float64) * (bins / largest))
    return np.bincount(np.clip(place, 0, bins - 1).astype(np.int64), minlength=bins)


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _plain(value: Any) -> Any:
    """Return a figure as JSON has it, with six digits; None for what is no number."""
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _of_mask(subject: Subject, voxels: float) -> dict[str, Any]:
    image = subject.original
    zooms = np.sqrt((np.asarray(subject.image.affine)[:3, :3] ** 2).sum(axis=0))
    depth, height, width = image.shape[-3:]
    return {
        "size_x": width,
        "size_y": height,
        "size_z": depth,
        "size_t": image.shape[0],
        **{f"spacing_{axis}": float(one) for axis, one in zip("xyz", zooms, strict=True)},
        "mask_ml": voxels * float(np.prod(zooms)) / 1000,
        "mask_share": voxels / (depth * height * width),
    }


def _of_volumes(subject: Subject) -> dict[str, Any]:
    if subject.quality is None:
        return {}
    found = subject.quality.figures
    bad = sum(map(len, found.dropped))
    return {
        "ndc": found.mean_ndc,
        "num_bad_slices": bad,
        "share_bad_slices": bad / found.judged if found.judged else None,
        "spikes_ppm": float(np.mean(found.spikes_ppm)),
        "drift": found.drift,
    }


def _of_noise(subject: Subject) -> dict[str, Any]:
    if subject.denoised is None:
        return {}
    noise = subject.denoised.noise
    return {"sigma": noise.level, **{f"sigma_{name}": value for name, value in noise.found.items()}}


# --- The gradient table -----------------------------------------------------------------------------------


def _of_table(gradients: Gradients, shells: Sequence[Shell]) -> dict[str, Any]:
    """Return what the table of gradients says by itself."""
    directions = np.array(gradients.bvecs).reshape(-1, 3)
    weighted = [v for one in shells for v in one.volumes]
    numbers: dict[str, Any] = {
        "volumes": len(gradients.bvals),
        "max_b": max(gradients.bvals),
        "num_shells": len(shells),
        "num_b0s": len(gradients.b0),
        "num_directions": count_directions(directions[weighted]),
    }
    for one in shells:
        units, name = directions[list(one.volumes)], f"b{one.b:.0f}"
        different = count_directions(units)
        numbers[f"directions_{name}"] = different
        numbers[f"repeats_{name}"] = len(units) - different
        numbers[f"energy_{name}"] = spread_energy(units)
        numbers[f"one_sided_{name}"] = float(np.sqrt((units.mean(axis=0) ** 2).sum()))
    return numbers


def spread_energy(units: np.ndarray) -> float | None:
    """Return the electrostatic energy of directions over that of as many evenly spread ones.

    A direction and its opposite are one: each stands for two charges (Jones et al. 1999,
    doi:10.1002/(SICI)1522-2594(199909)42:3<515::AID-MRM14>3.0.CO;2-Q). That of n charges in all places of a
    sphere is n^2 / 2 - 0.5523 n^(3/2) (the law of the minima of Thomson's problem).

    Parameters
    ----------
    units : (n, 3) array
        Repeats count once.

    Returns
    -------
    float or None
        1 where they are spread as evenly as can be; None for fewer than six.
    """
    kept: list[np.ndarray] = []
    for one in units:
        if not any(abs(float((one * other).sum())) > SAME_DIRECTION for other in kept):
            kept.append(one)
    if len(kept) < 6:
        return None
    charges = np.concatenate([kept, np.negative(kept)])
    energy = 0.0
    for k in range(1, len(charges)):
        energy += float((1 / np.sqrt(((charges[k:] - charges[:-k]) ** 2).sum(axis=1))).sum())
    n = len(charges)
    return energy / (n * n / 2 - 0.5523 * n**1.5)


def sums_of(subject: Subject) -> SliceSums:
    """Return what is to be summed of the slices of a subject."""
    return SliceSums(
        gradients=subject.gradients,
        shape=subject.image.shape[-2:],
        has_denoised=subject.denoised is not None,
        maps=subject.maps,
        rotation=bvec_to_scanner(np.asarray(subject.image.affine)),
    )
