"""The sections of a page on the scans of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpiimg.neuro.report import charts, methods
from mpiimg.neuro.report.planes import Plane, Row, difference, draw_rows, oriented, values_inside, white
from mpiimg.neuro.report.results import Scan, scans_of
from mpiimg.neuro.report.verdicts import judge, noise_words
from mpiimg.neuro.volume_figures import MAD_TO_SIGMA
from mpiimg.report.page import Flicker, Item, Listing, Page, Section, Table, Text
from mpiimg.report.runs import Run

#: What a reader might take for done.
NOT_DONE = (
    "Not done here: correction of motion, of eddy currents, of susceptibility distortion, of gradient "
    "non-linearity and of bias fields. They need a registration, and come after denoising (topup and eddy, "
    "or QSIPrep); so there is no framewise displacement on this page."
)

#: The last colour of maps of mean diffusivity, 10^-3 mm^2/s.
MD_WHITE = 3.0


def page_of(runs: Sequence[Run]) -> Page:
    """Return what there is to say of the scans that runs have results of."""
    scans = scans_of(runs)
    sections: list[Section] = []
    for scan in scans:
        of_scan = _sections(scan)
        if len(scans) > 1:
            of_scan = [Section(f"{scan.stem}: {one.title}", one.items) for one in of_scan]
        sections += of_scan
    title = ", ".join(scan.stem for scan in scans[:3]) + (" and others" if len(scans) > 3 else "")
    return Page(title, "", sections, _facts(scans[0]) if len(scans) == 1 else {})


def _facts(scan: Scan) -> dict[str, Any]:
    figures = scan.figures
    names = {
        "volumes": "volumes",
        "brain [ml]": "mask_ml",
        "NDC": "ndc",
        "SNR of b0": "snr_b0",
        "noise level": "sigma",
        "mean FA": "fa_mean",
    }
    return {text: figures[name] for text, name in names.items() if figures.get(name) is not None}


def _sections(scan: Scan) -> list[Section]:
    inside = _inside(scan)
    made = {
        "At a glance": _glance(scan),
        "Brain mask": _mask(scan, inside),
        "Volumes": _volumes(scan),
        "Denoising": _denoising(scan, inside),
        "Tensor": _tensor(scan),
        "Gradients": _gradients(scan),
        "All figures": _all_figures(scan),
        "Methods": _methods(scan),
    }
    return [Section(title, items) for title, items in made.items() if items]


def _glance(scan: Scan) -> list[Item]:
    rows = judge(scan.figures)
    items: list[Item] = []
    if rows:
        items.append(Table(["figure", "value", "usual", "verdict"], rows, "Figures to look at first"))
        check = scan.figures.get("gradient_check")
        if check:
            tone = "warning" if "another table" in str(check) else "note"
            items.append(Text(f"Axes of the gradient table: {check}.", tone))
    items.append(Text(NOT_DONE, "note"))
    return items


def _turned(scan: Scan, parts) -> list[Plane]:
    return oriented(parts, scan.affine)


def _inside(scan: Scan) -> list[Plane]:
    parts = scan.cut("_desc-brain_mask.nii.gz")
    return [] if parts is None else _turned(scan, parts)


def _underlay(scan: Scan) -> list[Plane] | None:
    """Return what a mask is shown on: the b0, or the fitted S0."""
    if scan.slices and scan.space is not None:
        return _turned(scan, scan.shown(0, 0))
    parts = scan.cut("_model-tensor_param-s0_dwimap.nii.gz")
    return None if parts is None else _turned(scan, parts)


def _mask(scan: Scan, inside: Sequence[Plane]) -> list[Item]:
    if not inside:
        return []
    fields = scan.fields("_desc-brain_mask.json")
    words = [
        f"{fields['VolumeML']:.0f} ml" if isinstance(fields.get("VolumeML"), int | float) else "",
        f"{fields['ShareOfField']:.1%} of the field" if isinstance(fields.get("ShareOfField"), float) else "",
        str(fields.get("Method", "")),
    ]
    under = _underlay(scan)
    shown = under if under is not None else inside
    picture = draw_rows(
        [Row("b0" if under is not None else "mask", shown, high=white(shown))],
        f"Outline of the brain mask on {len(shown)} slices",
        "The border of the mask should follow the brain: no eyes, no skull, no holes, nothing cut off. "
        "Letters are the sides of the body.",
        outline=inside,
    )
    doubts = [text for run in scan.runs for text in run.texts("warnings") if "mask" in text]
    return [
        Text(", ".join(filter(None, words)) + "."),
        *(Text(text, "warning") for text in dict.fromkeys(doubts)),
        picture,
    ]


def _volumes(scan: Scan) -> list[Item]:
    items: list[Item] = []
    if "ratios" in scan.slices:
        items.append(charts.draw_carpet(scan.slices["ratios"]))
    if (picture := charts.draw_volumes(scan)) is not None:
        items.append(picture)
    flagged = [row for row in scan.volumes if row.get("flags", "n/a") != "n/a"]
    if flagged:
        names = ("volume", "shell", "flags", "neighbor_corr", "num_bad_slices", "bad_slices", "status")
        rows = [[row.get(name, "") for name in names] for row in flagged[:100]]
        more = f", the first 100 of {len(flagged)}" if len(flagged) > 100 else ""
        items.append(Table(names, rows, f"Volumes with something wrong{more}"))
    elif scan.volumes:
        items.append(Text("No volume has a dropped slice, a spike or a step of its intensity.", "good"))
    return items


def _denoising(scan: Scan, inside: Sequence[Plane]) -> list[Item]:
    items: list[Item] = []
    if words := noise_words(scan.figures):
        items.append(Text(words, "warning" if "differ" in words else "note"))
    for number, volume in enumerate(scan.slices.get("volumes", ())) if scan.is_denoised else ():
        items += _denoised_volume(scan, number, int(volume), inside)
    parts = scan.cut("_desc-noise_dwimap.nii.gz")
    if parts is not None:
        planes = _turned(scan, parts)
        top = max(float(np.max(plane.values)) for plane in planes) or 1.0
        rows = [Row("noise level", planes, high=top, colours="viridis", unit="image units")]
        items.append(draw_rows(rows, "Slices of the map of the noise level", "The noise level."))
    return items


def _denoised_volume(scan: Scan, number: int, volume: int, inside: Sequence[Plane]) -> list[Item]:
    """Show a volume as scanned and denoised; the first weighted one also in turn."""
    raw, clean = (_turned(scan, scan.shown(number, kind)) for kind in (0, 1))
    rest, top = difference(raw, clean), white(clean, inside)
    spread = _spread(values_inside(rest, inside))
    name, original = f"b = {scan.slices['bvals'][volume]:.0f} s/mm²", int(scan.slices["original"][volume])
    items: list[Item] = [
        draw_rows(
            [
                Row(f"{name}, volume {original}, as scanned", raw, high=top),
                Row("denoised, same scale", clean, high=top),
                Row(f"residual, ±{spread:.3g}", rest, -spread, spread),
            ],
            f"Slices of a volume of {name}: as scanned, denoised, and their difference",
            "The residual should be noise alone: edges and anatomy in it are signal that was taken away.",
        )
    ]
    if number == min(1, len(scan.slices["volumes"]) - 1):
        first, second = (
            draw_rows([Row(text, planes, high=top)], f"Slices of {name}, {text}", "")
            for text, planes in (("as scanned", raw), ("denoised", clean))
        )
        words = f"{name}, as scanned and denoised in turn; the pointer on the picture stops it."
        items.append(Flicker(first, second, words))
    return items


def _spread(values: np.ndarray) -> float:
    """Return three robust standard deviations, or what else there is."""
    spread = 3 * MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values))))
    return spread or float(np.abs(values).max()) or 1.0


def _tensor(scan: Scan) -> list[Item]:
    rows = [
        _map_row(scan, "rgb", "colour FA: red left-right, green front-back, blue up-down"),
        _map_row(scan, "fa", "fractional anisotropy", unit="FA"),
        _map_row(scan, "md", "mean diffusivity", 1e3, high=MD_WHITE, colours="viridis", unit="10⁻³ mm²/s"),
    ]
    rows = [row for row in rows if row is not None]
    items: list[Item] = []
    if rows:
        items.append(
            draw_rows(
                rows,
                "Slices of colour FA, FA and mean diffusivity",
                "The corpus callosum should be red, the cingulum green, the corticospinal tract blue; CSF "
                "should be bright in mean diffusivity and dark in FA.",
            )
        )
    if scan.figures.get("Histograms"):
        items.append(charts.draw_histograms(scan.figures["Histograms"]))
    return items


def _map_row(scan: Scan, name: str, text: str, scale: float = 1.0, **how) -> Row | None:
    parts = scan.cut(f"_model-tensor_param-{name}_dwimap.nii.gz")
    return None if parts is None else Row(text, _turned(scan, [part * scale for part in parts]), **how)


def _gradients(scan: Scan) -> list[Item]:
    rows = charts.shells_table(scan.figures)
    if not rows or "bvals" not in scan.slices:
        return []
    columns = ["b [s/mm²]", "directions", "repeats", "energy", "one-sidedness", "SNR", "CNR"]
    caption = (
        "Shells. Energy is 1 for directions that are spread as evenly as can be; one-sidedness is 0 for a "
        "whole sphere and 0.5 for half of one"
    )
    threshold = float(scan.runs[-1].parameters.get("b0_threshold") or 50.0)
    picture = charts.draw_directions(scan.slices["bvals"], scan.slices["bvecs"], threshold)
    return [Table(columns, rows, caption), picture]


def _all_figures(scan: Scan) -> list[Item]:
    definitions = scan.figures.get("Definitions")
    if not isinstance(definitions, dict):
        return []
    rows = [
        [name, scan.figures.get(name), about.get("Units", ""), about.get("Description", "")]
        for name, about in definitions.items()
    ]
    path = scan.path("_desc-qc_dwimap.tsv")
    where = f"; the same as a table: {path.name}" if path is not None else ""
    return [
        Table(["figure", "value", "unit", "what it is"], rows, f"{len(rows)} figures{where}", folded=True)
    ]


def _methods(scan: Scan) -> list[Item]:
    return [
        Text("For the methods of a paper; change what your study did otherwise."),
        Listing(methods.paragraph(scan), "Methods of the run"),
        Table(["to cite"], [[one] for one in methods.references(scan)], "References"),
    ]
