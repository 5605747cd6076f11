"""Charts of a scan: scores of slices, volumes, histograms, directions on the sphere."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.neuro.quality_figures import MD_OF_WATER
from mpiimg.neuro.report.results import Scan
from mpiimg.neuro.volume_figures import LOW_NDC, MAD_TO_SIGMA, MIN_DEVIATION
from mpiimg.report.drawing import FAINT, SERIES, WRONG, as_png, as_svg, new_figure, style
from mpiimg.report.page import Picture

#: Robust standard deviations at which the colours of the carpet end.
LARGEST_Z = 6.0


def slice_scores(ratios: np.ndarray) -> np.ndarray:
    """Return how far each slice of a volume is off the others of the volume, in robust standard deviations.

    These are those of the volume or of the slice over all volumes, whichever is larger: slices at the ends of
    a head have few voxels.

    Parameters
    ----------
    ratios : (V, nz) array
        Mean signal over its prediction; NaN where nothing is known.
    """
    ratios = np.asarray(ratios, float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows that hold nothing
        off = ratios - np.nanmedian(ratios, axis=1, keepdims=True)
        of_volume = np.nanmedian(np.abs(off), axis=1, keepdims=True)
        of_slice = np.nanmedian(np.abs(off - np.nanmedian(off, axis=0)), axis=0, keepdims=True)
    return off / np.maximum(MAD_TO_SIGMA * np.fmax(of_volume, of_slice), MIN_DEVIATION / 10)


def draw_carpet(ratios: np.ndarray) -> Picture:
    """Draw the score of every slice of every volume."""
    scores = slice_scores(ratios)
    with style():
        figure = new_figure(3.2)
        axes = figure.subplots()
        shown = axes.imshow(
            scores.T,
            origin="lower",
            aspect="auto",
            cmap="RdBu_r",
            vmin=-LARGEST_Z,
            vmax=LARGEST_Z,
            interpolation="nearest",
        )
        axes.set(xlabel="volume", ylabel="slice", facecolor="#dddddd")
        figure.colorbar(shown, ax=axes, label="z-score", fraction=0.03, pad=0.01)
        low = int(np.sum(scores < -LARGEST_Z))
        return as_png(
            figure,
            f"Carpet of slice scores, {len(scores)} volumes by {scores.shape[1]} slices; {low} far too dark",
            "Score of each slice of each volume: its signal over what the other volumes predict, against the "
            "other slices of the volume. Dark blue stripes are dropped slices, as sudden motion makes them; "
            "grey is where there is too little to say.",
        )


def draw_volumes(scan: Scan) -> Picture | None:
    """Draw the correlation of each volume with its neighbour, its mean signal, and its slices at fault."""
    rows = scan.volumes
    if not rows:
        return None
    number, ndc, signal, shell, bad = (
        np.array([_number(row.get(name)) for row in rows])
        for name in ("volume", "neighbor_corr", "mean_signal", "shell", "num_bad_slices")
    )
    clean = scan.slices.get("ndc_denoised", np.empty(0))
    with style():
        figure = new_figure(4.6)
        top, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=[2, 2, 1])
        top.plot(number, ndc, "o", markersize=3, label="as scanned")
        if clean.size:
            top.plot(scan.slices["original"], clean, "o", markersize=3, label="denoised")
        top.axhline(LOW_NDC, color=WRONG, linewidth=1, linestyle="--")
        top.set(ylabel="correlation with\nthe nearest volume")
        top.legend(frameon=False, loc="lower right", ncols=2)
        for one, colour in zip(np.unique(shell), _colours(len(np.unique(shell))), strict=True):
            chosen = shell == one
            middle.plot(
                number[chosen], signal[chosen], "o", markersize=3, color=colour, label=f"b = {one:.0f}"
            )
        middle.set(ylabel="mean signal", ylim=(0, None))
        if len(np.unique(shell)) <= 8:
            middle.legend(frameon=False, ncols=4, loc="upper right")
        below.bar(number, bad, color=WRONG)
        below.set(ylabel="bad slices", xlabel="volume", ylim=(0, max(np.nanmax(bad), 1)))
        return as_svg(
            figure,
            f"By volume: correlation with the neighbour, mean signal, {np.nansum(bad):.0f} bad slices",
            f"Above: correlation with the nearest volume in q-space; below {LOW_NDC:g} (dashed) it is bad, "
            "and a volume that falls out may have moved. In the middle: the mean signal, whose b0s drift "
            "with the scanner. Below: slices that are dropped.",
        )


def _number(word: str | None) -> float:
    try:
        return float(word or "nan")
    except ValueError:
        return float("nan")


def _colours(count: int) -> list[str]:
    return [SERIES[n % len(SERIES)] for n in range(count)]


def draw_histograms(histograms: Mapping[str, Mapping]) -> Picture:
    """Draw how many voxels have which FA and mean diffusivity."""
    with style():
        figure = new_figure(2.8)
        left, right = figure.subplots(1, 2)
        for axes, name, scale in ((left, "fa", 1.0), (right, "md", 1e3)):
            counts = np.array(histograms[name]["Counts"], float)
            edges = np.linspace(0, histograms[name]["Largest"] * scale, len(counts) + 1)
            axes.stairs(counts, edges, fill=True, color=SERIES[0])
            axes.set(ylabel="voxels")
        left.set(xlabel="FA")
        right.set(xlabel="mean diffusivity [10⁻³ mm²/s]")
        right.axvline(MD_OF_WATER * 1e3, color=WRONG, linewidth=1, linestyle="--")
        return as_svg(
            figure,
            "Histograms of FA and of mean diffusivity in the mask",
            "Dashed: free water at body temperature, 3 x 10⁻³ mm²/s, where the peak of CSF belongs. Grey and "
            "white matter of adults have 0.7 to 0.9 in vivo.",
        )


def draw_directions(bvals: np.ndarray, bvecs: np.ndarray, threshold: float) -> Picture:
    """Draw the directions of the gradients on the two halves of the sphere, seen from above and below."""
    weighted = bvals > threshold
    units = bvecs[weighted]
    colour = bvals[weighted]
    with style():
        figure = new_figure(3.6, 8.0)
        pair = figure.subplots(1, 2)
        for axes, sign, name in zip(pair, (1, -1), ("z ≥ 0, from above", "z < 0, from below"), strict=True):
            chosen = units[:, 2] * sign >= 0 if sign > 0 else units[:, 2] < 0
            x, y, z = units[chosen].T
            stretch = np.sqrt(1 / (1 + np.abs(z)))  # Lambert's: areas are kept
            axes.add_patch(_circle())
            shown = axes.scatter(
                x * stretch, y * stretch, c=colour[chosen], s=18, cmap="viridis", vmin=0, vmax=colour.max()
            )
            axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", title=name, xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        figure.colorbar(shown, ax=list(pair), label="b [s/mm²]", fraction=0.03)
        return as_svg(
            figure,
            f"{len(units)} gradient directions on the two halves of the sphere",
            "Directions of the gradients, in the frame of the bvecs. They should cover both halves evenly: "
            "corrections of eddy currents live on opposite directions.",
            wide=False,
        )


def _circle():
    from matplotlib.patches import Circle

    return Circle((0, 0), 1, fill=False, color=FAINT, linewidth=1)


def shells_table(figures: Mapping) -> Sequence[Sequence]:
    """Return a row for each shell: b-value, directions, repeats, evenness, one-sidedness, SNR and CNR."""
    shells = sorted(
        (name.removeprefix("directions_b") for name in figures if name.startswith("directions_b")), key=float
    )
    names = ("directions", "repeats", "energy", "one_sided", "snr", "cnr")
    return [[float(b), *(figures.get(f"{name}_b{b}") for name in names)] for b in shells]
