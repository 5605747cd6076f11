"""What figures mean: which are as they should be, and what to look at where one is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mpiimg.neuro.quality_figures import MD_OF_WATER, NOISE_DIFFERENCE
from mpiimg.neuro.volume_figures import LARGE_DRIFT, LOW_NDC


class Judged(NamedTuple):
    """A figure that is judged."""

    text: str
    name: str
    is_good: Callable[[float], bool]
    usual: str
    advice: str


#: Figures that a reader looks at first.
FIRST = (
    Judged(
        "correlation of neighbouring volumes",
        "ndc",
        lambda value: value >= LOW_NDC,
        f"above {LOW_NDC:g}",
        "much noise, motion, or a gradient table that is not of this image",
    ),
    Judged(
        "dropped slices, share",
        "share_bad_slices",
        lambda value: value <= 0.01,
        "below 1 %",
        "sudden motion: see the carpet; --exclude dropout leaves volumes out, eddy --repol replaces slices",
    ),
    Judged(
        "change of the b0s over the series",
        "drift",
        lambda value: abs(value) <= LARGE_DRIFT,
        f"below {100 * LARGE_DRIFT:g} %",
        "the scanner drifts: correct it before a fit of high b-values",
    ),
    Judged(
        "SNR of the b0s",
        "snr_b0",
        lambda value: value >= 10,
        "above 10",
        "thin voxels, a weak coil, or motion between the b0s",
    ),
    Judged(
        "peak of the diffusivity of CSF [mm²/s]",
        "md_csf_peak",
        lambda value: abs(value / MD_OF_WATER - 1) <= 0.2,
        "2.4e-3 to 3.6e-3, in vivo",
        "b-values in another unit, a noise floor that is too high, or a head that is not in vivo",
    ),
    Judged(
        "signals raised to the floor, share",
        "floor_share",
        lambda value: value <= 0.05,
        "below 5 %",
        "the noise level may be too high, or the mask hold background",
    ),
    Judged(
        "tensors of no tissue [ppm]",
        "fa_degenerate",
        lambda value: value <= 20_000,
        "below 20 000",
        "a mask that holds background, a wrong gradient table, or too few directions",
    ),
)


def judge(figures: Mapping[str, Any]) -> list[list[Any]]:
    """Return a row for each figure that is judged: what, value, what is usual, and a word."""
    rows = []
    for one in FIRST:
        value = figures.get(one.name)
        if isinstance(value, int | float):
            word = "as usual" if one.is_good(value) else f"look: {one.advice}"
            rows.append([one.text, float(value), one.usual, word])
    return rows


def noise_words(figures: Mapping[str, Any]) -> str:
    """Say how well ways to the noise level agree; empty where there are not two."""
    found = {name: figures.get(f"sigma_{name}") for name in ("piesno", "fit")}
    known = {name: value for name, value in found.items() if isinstance(value, int | float) and value > 0}
    if len(known) < 2:
        return ""
    ratio = known["fit"] / known["piesno"]
    agree = "agree" if abs(ratio - 1) <= NOISE_DIFFERENCE else "differ"
    return (
        f"Two ways to the noise level {agree}: {known['piesno']:.4g} from the background (PIESNO), "
        f"{known['fit']:.4g} from the residuals of a tensor fit, {abs(ratio - 1):.0%} apart."
    )
