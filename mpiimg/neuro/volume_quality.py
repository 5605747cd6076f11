"""What the check of a series comes to: warnings, volumes that are left out, a table and its description."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.neuro.exclusion import Rule
from mpiimg.neuro.gradients import TENSOR_B_LIMIT, Gradients
from mpiimg.neuro.images import sidecar
from mpiimg.neuro.volume_figures import LARGE_DRIFT, LOW_NDC, VolumeFigures

#: Volumes that a sentence names before it counts the others.
MAX_NAMED = 8

#: What stands in a table where nothing can be said, as BIDS has it.
UNKNOWN = "n/a"

#: Columns of the table: unit and description.
COLUMNS = {
    "volume": ("", "Number of the volume in the original series, from 0."),
    "status": ("", "Whether the volume is used."),
    "reason": ("", "Why it is left out: the rules of --exclude, or what left it out before."),
    "flags": ("", "What is wrong with the volume, with commas between."),
    "bval": ("s/mm^2", "b-value."),
    "bvec_x": ("", "Gradient direction, in the frame of the bvecs."),
    "bvec_y": ("", "Gradient direction, in the frame of the bvecs."),
    "bvec_z": ("", "Gradient direction, in the frame of the bvecs."),
    "shell": ("s/mm^2", "Mean b-value of the volumes with about this b-value; 0 for b0s."),
    "mean_signal": ("arbitrary", "Mean over the brain mask."),
    "zeros": ("1", "Share of the brain mask without signal."),
    "neighbor": ("", "Number of the nearest diffusion-weighted volume in q-space."),
    "neighbor_corr": ("1", "Correlation with this volume in the brain mask (NDC)."),
    "ratio": ("1", "Mean signal over mean prediction of a slice: the median over slices."),
    "ratio_z": ("1", "Robust z-score of this ratio among the volumes of the shell."),
    "residual": (
        "1",
        "Mean absolute difference of signal and prediction, over the prediction; median over slices.",
    ),
    "num_bad_slices": (
        "",
        "Dropped slices: below 0.8 of their prediction, and far below the others of the volume.",
    ),
    "bad_slices": ("", "Numbers of these slices, from 0."),
    "spike_slices": ("", "Numbers of slices with stripes, as a spike in k-space makes, or with hot voxels."),
    "spikes_ppm": (
        "ppm",
        "Hot voxels in the brain mask: above 3 times their prediction, and far above all else.",
    ),
}

LEVELS = {
    "status": {"kept": "used by the steps that follow", "dropped": "left out of image, bval and bvec"},
    "flags": {
        "empty": "more than 99 % of the brain mask is without signal",
        "dropout": "slices are dropped",
        "spike": "slices have stripes or hot voxels",
        "step": "the intensity of the whole volume is off that of its shell",
    },
}

PREDICTION = (
    f"up to b = {TENSOR_B_LIMIT:g} s/mm^2 the ordinary tensor fit to the other volumes; above it, or where "
    "these do not determine a tensor, the mean of the three nearest directions of the shell"
)


@dataclass(frozen=True, eq=False)
class VolumeQuality:
    """What was found of the volumes of a series.

    Parameters
    ----------
    figures : VolumeFigures
    gradients : Gradients
        Of the volumes that were looked at.
    volumes : tuple of int
        Their numbers in the original series.
    rules : tuple of Rule
        That leave volumes out.
    """

    figures: VolumeFigures
    gradients: Gradients
    volumes: tuple[int, ...]
    rules: tuple[Rule, ...] = ()

    @property
    def kept(self) -> tuple[int, ...]:
        """Places of the volumes that no rule leaves out."""
        return tuple(v for v in range(len(self.volumes)) if not self.figures.broken(self.rules, v))

    def numbers(self, places: Iterable[int]) -> list[int]:
        """Return the original numbers of volumes."""
        return [self.volumes[place] for place in places]


def check_rest(quality: VolumeQuality, path: Any) -> None:
    """Refuse rules that leave too little.

    Raises
    ------
    BadInput
        No volume is left, no b0, or too few directions for a tensor where there were enough.
    """
    from mpiimg.neuro.kernels.tensor import design_matrix

    def determined(gradients: Gradients) -> bool:
        low = gradients.of_volumes(gradients.up_to(TENSOR_B_LIMIT))
        design = design_matrix(np.array(low.bvals), np.array(low.bvecs).reshape(-1, 3))
        return int(np.linalg.matrix_rank(design / np.array([TENSOR_B_LIMIT] * 6 + [1.0]))) == 7

    kept, before = quality.kept, quality.gradients
    after = before.of_volumes(kept)
    lacking = ""
    if not kept:
        lacking = "no volume"
    elif before.b0 and not after.b0:
        lacking = "no b0"
    elif determined(before) and not determined(after):
        lacking = "too few directions for a tensor"
    if lacking:
        given = ",".join(map(str, quality.rules))
        raise BadInput(
            f"{path}: --exclude {given} leaves {lacking}: {len(kept)} of {len(quality.volumes)} volumes "
            "are without fault; give fewer rules, or leave this series out"
        )


# --- Words ------------------------------------------------------------------------------------------------


def warnings_of(quality: VolumeQuality, path: Any) -> tuple[str, ...]:
    """Return what is to be said of the volumes at fault, a sentence each, and of the series."""
    figures = quality.figures
    flags = [figures.flags(v) for v in range(len(quality.volumes))]
    texts = []
    for flag in LEVELS["flags"]:
        places = [v for v, of_volume in enumerate(flags) if flag in of_volume]
        if places:
            text = _fault(flag, places, quality)
            spared = [v for v in places if v in quality.kept]
            them = "them" if len(spared) > 1 else "it"
            texts.append(text + (f"; --exclude {flag} leaves {them} out" if spared else ""))
    left_out = sorted(set(range(len(quality.volumes))) - set(quality.kept))
    if left_out:
        given = ",".join(map(str, quality.rules))
        texts.append(f"--exclude {given} leaves out {named('volume', quality.numbers(left_out))}")
    if figures.mean_ndc < LOW_NDC:
        texts.append(
            f"neighbouring volumes correlate at {figures.mean_ndc:.2f} (NDC); below {LOW_NDC:g} an image is "
            "of low quality"
        )
    if abs(figures.drift) > LARGE_DRIFT:
        texts.append(f"the signal drifts: the b0s change by {figures.drift:+.1%} over the series")
    return tuple(f"{path}: {text}" for text in texts)


def _fault(flag: str, places: Sequence[int], quality: VolumeQuality) -> str:
    figures, volumes = quality.figures, named("volume", quality.numbers(places))
    is_one = len(places) == 1
    if flag == "empty":
        return f"{volumes} {'is' if is_one else 'are'} empty"
    if flag == "dropout":
        slices = figures.dropped[places[0]] if is_one else sum((figures.dropped[v] for v in places), ())
        count = named("slice", slices) if is_one else f"{len(slices)} slices"
        return f"{count} of {volumes} {'is' if len(slices) == 1 else 'are'} dropped"
    if flag == "spike":
        where = f" in {named('slice', figures.spiked[places[0]])}" if is_one else ""
        return f"{volumes} {'has' if is_one else 'have'} spikes{where}"
    ratios = [figures.ratio[v] for v in places]
    span = f"{ratios[0]:.2f}" if is_one else f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"the intensity of {volumes} is {span} of what the other volumes predict"


def named(what: str, numbers: Sequence[int]) -> str:
    """Return a list of numbers in words: "volume 3", "volumes 3, 5 and 7", "volumes 1, 2, ... and 9 more"."""
    words = [str(number) for number in numbers]
    if len(words) == 1:
        return f"{what} {words[0]}"
    if len(words) > MAX_NAMED:
        return f"{what}s {', '.join(words[:MAX_NAMED])} and {len(words) - MAX_NAMED} more"
    return f"{what}s {', '.join(words[:-1])} and {words[-1]}"


def note_of(quality: VolumeQuality, path: Any) -> str:
    """Return what was found of a series, in a line."""
    series = series_figures(quality)
    words = [f"{len(quality.volumes)} volumes"]
    if series["NDC"] is not None:
        words.append(f"NDC {series['NDC']:.3f}")
    words.append(f"{series['NumBadSlices']} dropped of {series['NumJudgedSlices']} slices")
    words.append(f"{series['SpikesPpm']:.3g} ppm of hot voxels")
    if series["Drift"] is not None:
        words.append(f"drift of the b0s {series['Drift']:+.1%}")
    return f"{path}: {', '.join(words)}"


# --- Table ------------------------------------------------------------------------------------------------


def series_figures(quality: VolumeQuality) -> dict[str, Any]:
    """Return the figures of the whole series; None is what cannot be said."""
    figures = quality.figures
    known = [v for v in range(len(quality.volumes)) if not figures.empty[v]]
    return {
        "NDC": _number(figures.mean_ndc),
        "NumBadSlices": sum(map(len, figures.dropped)),
        "NumJudgedSlices": figures.judged,
        "SpikesPpm": _number(float(figures.spikes_ppm[known].mean())) if known else 0.0,
        "Drift": _number(figures.drift),
        "Volumes": len(quality.volumes),
        "VolumesKept": len(quality.kept),
    }


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def table(quality: VolumeQuality, volumes: int) -> bytes:
    """Return the table of a series of so many volumes, also of those left out before, tab-separated."""
    places = {number: place for place, number in enumerate(quality.volumes)}
    lines = ["\t".join(COLUMNS)]
    for number in range(volumes):
        row = _row(quality, places[number]) if number in places else _left_out_before(number)
        lines.append("\t".join(_text(row.get(column)) for column in COLUMNS))
    return ("\n".join(lines) + "\n").encode()


def _left_out_before(number: int) -> dict[str, Any]:
    return {"volume": number, "status": "dropped", "reason": "left out when the gradient table was read"}


def _row(quality: VolumeQuality, place: int) -> dict[str, Any]:
    figures, partner = quality.figures, quality.figures.partner[place]
    broken = figures.broken(quality.rules, place)
    x, y, z = quality.gradients.bvecs[place]
    return {
        "volume": quality.volumes[place],
        "status": "dropped" if broken else "kept",
        "reason": ",".join(broken),
        "flags": ",".join(figures.flags(place)),
        "bval": quality.gradients.bvals[place],
        "bvec_x": x,
        "bvec_y": y,
        "bvec_z": z,
        "shell": figures.shell[place],
        "mean_signal": figures.signal[place],
        "zeros": figures.zeros[place],
        "neighbor": quality.volumes[partner] if partner >= 0 else None,
        "neighbor_corr": figures.ndc[place],
        "ratio": figures.ratio[place],
        "ratio_z": figures.step[place],
        "residual": figures.error[place],
        "num_bad_slices": len(figures.dropped[place]),
        "bad_slices": ",".join(map(str, figures.dropped[place])),
        "spike_slices": ",".join(map(str, figures.spiked[place])),
        "spikes_ppm": figures.spikes_ppm[place],
    }


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.6g}" if np.isfinite(value) else UNKNOWN
    return UNKNOWN if value is None or value == "" else str(value)


def description(quality: VolumeQuality) -> bytes:
    """Return the JSON beside the table: its columns as BIDS has them, and the figures of the series."""
    columns: dict[str, Any] = {}
    for name, (unit, text) in COLUMNS.items():
        columns[name] = {"Description": text, **({"Units": unit} if unit else {})}
        if name in LEVELS:
            columns[name]["Levels"] = LEVELS[name]
    return sidecar(
        Description="Quality of each volume of the series",
        **columns,
        Prediction=PREDICTION,
        Exclude=[str(rule) for rule in quality.rules],
        Series=series_figures(quality),
    )
