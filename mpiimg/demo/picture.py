"""One picture of a finished run: what came in, what was taken for brain, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpiimg.astro.constants import SIGMA_PER_MAD

#: Volumes at or below this b-value (s/mm^2) count as b0, as in the pipeline.
B0_THRESHOLD = 50.0

INK, FAINT, OUTLINE = "#1a1a1a", "#6a6a6a", "#ffb000"
WIDTH, DPI = 14.0, 100  # inches and dots an inch: 1400 pixels, a README's width twice over
MARGIN, GAP, HEADING, CAPTION = 0.18, 0.12, 0.62, 0.34  # inches


class View(NamedTuple):
    """Which part of the volumes is shown, and how it lies on the page."""

    slice: int
    columns: slice  # of the voxel axis that is shown across, which is j rather than i if `turned`
    rows: slice
    turned: bool
    letters: tuple[str, str, str, str]  # left, right, bottom, top
    aspect: float  # height of a voxel over its width

    def cut(self, image, volume=None) -> np.ndarray:
        """Return the view of a NIfTI image as (row, column, ...), reading no other slice."""
        index = (slice(None), slice(None), self.slice, *(() if volume is None else (volume,)))
        plane = np.asarray(image.dataobj[index])
        return (plane if self.turned else plane.swapaxes(0, 1))[self.rows, self.columns]


def draw_subject(paths: Mapping[str, str | PathLike], out_png: str | PathLike, title: str) -> None:
    """Draw b0, mask, a weighted slice before and after denoising, residual, FA and colour FA.

    Parameters
    ----------
    paths : mapping
        NIfTI files ``dwi``, ``mask``, ``denoised``, ``fa``, ``rgb`` (x, y, z, 3;
        0 to 1) and, if there is one, ``residual``; ``bval`` is FSL's text file.
        Without a residual it is ``dwi - denoised`` in the mask.
    out_png : path
        Where to write, about 1400 pixels wide.
    title : str
        Heading, above the panels.

    Raises
    ------
    KeyError
        If `paths` lacks a name.
    ValueError
        If the bvals are not as many as the volumes.
    """
    import nibabel

    images = {name: nibabel.load(path) for name, path in paths.items() if name != "bval"}
    bvals = np.loadtxt(paths["bval"], ndmin=1).ravel()
    if len(bvals) != images["dwi"].shape[3]:
        raise ValueError(f"{paths['bval']} has {len(bvals)} values for {images['dwi'].shape[3]} volumes")
    view = _choose_view(images["dwi"], np.asarray(images["mask"].dataobj) > 0)
    shown = _read_slices(images, bvals, view)
    figure = _lay_out(shown, view, title, _describe(images["dwi"], view))
    figure.savefig(Path(out_png), dpi=DPI, facecolor="white")


# --------------------------------------------------------------------------- reading


def _choose_view(dwi, mask: np.ndarray) -> View:
    """Choose the slice in the middle of the mask, cropped to the mask and a margin.

    Right lies to the right where the slice has a left and a right, and anterior or superior upward.
    """
    import nibabel

    if not mask.any():
        mask = np.ones_like(mask)
    middle = int(np.median(np.nonzero(mask)[2]))
    codes = nibabel.aff2axcodes(dwi.affine)
    turned = codes[1] in "LR"
    across, up = (1, 0) if turned else (0, 1)
    ranges = [_crop(mask, axis, codes[axis] in "RAS") for axis in (across, up)]
    letters = (*_ends(codes[across]), *_ends(codes[up]))
    sizes = dwi.header.get_zooms()
    aspect = float(sizes[up] / sizes[across]) if sizes[across] > 0 and sizes[up] > 0 else 1.0
    return View(middle, *ranges, turned, letters, aspect)


def _crop(mask: np.ndarray, axis: int, forward: bool) -> slice:
    """Return the range of the mask along an axis and a tenth to both sides, reversed if not `forward`."""
    inside = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    margin = round(0.1 * (inside[-1] - inside[0] + 1))
    first, last = max(inside[0] - margin, 0), min(inside[-1] + margin, mask.shape[axis] - 1)
    if forward:
        return slice(first, last + 1)
    return slice(last, first - 1 if first > 0 else None, -1)


def _ends(code: str) -> tuple[str, str]:
    """Return the letters at the low and high end of an axis that is shown in RAS sense."""
    return next(pair for pair in (("L", "R"), ("P", "A"), ("I", "S")) if code in pair)


def _read_slices(images: Mapping, bvals: np.ndarray, view: View) -> dict:
    """Read what the panels show; `volume` and `b` say which diffusion-weighted volume it is."""
    run = view.cut(images["dwi"], slice(None)).astype(np.float32)
    b0 = bvals <= B0_THRESHOLD
    weighted = _typical_volume(bvals)
    mask = view.cut(images["mask"]) > 0
    raw = run[..., weighted]
    denoised = view.cut(images["denoised"], weighted).astype(np.float32)
    if "residual" in images:
        residual = view.cut(images["residual"], weighted).astype(np.float32)
    else:
        residual = raw - denoised
    return {
        "b0": run[..., b0].mean(axis=-1) if b0.any() else run[..., 0],
        "mask": mask,
        "raw": raw,
        "denoised": denoised,
        "residual": np.where(mask, residual, 0),
        "fa": view.cut(images["fa"]),
        "rgb": np.clip(view.cut(images["rgb"], slice(None)), 0, 1),
        "volume": weighted,
        "b": float(bvals[weighted]),
    }


def _typical_volume(bvals: np.ndarray) -> int:
    """Return the first volume whose b-value is nearest to 1000 s/mm^2, where noise and contrast both show."""
    return int(np.argmin(np.abs(bvals - 1000)))


def _describe(dwi, view: View) -> str:
    voxel = " x ".join(f"{size:.3g}" for size in dwi.header.get_zooms()[:3])
    shape = " x ".join(str(n) for n in dwi.shape)
    return f"{shape}   ·   voxels {voxel} mm   ·   slice {view.slice}"


# --------------------------------------------------------------------------- drawing


def _lay_out(shown: dict, view: View, title: str, subtitle: str):
    """Return the figure: two rows of four panels of one size under a heading."""
    from matplotlib.figure import Figure

    rows, columns = shown["b0"].shape
    panel = (WIDTH - 2 * MARGIN - 3 * GAP) / 4
    tall = panel * min(max(rows * view.aspect / columns, 0.5), 1.8)
    height = HEADING + 2 * (CAPTION + tall) + GAP + MARGIN
    figure = Figure(figsize=(WIDTH, height))
    figure.text(MARGIN / WIDTH, 1 - 0.36 / height, title, fontsize=17, weight="bold", color=INK)
    figure.text(1 - MARGIN / WIDTH, 1 - 0.36 / height, subtitle, fontsize=12, color=FAINT, ha="right")

    def place(row, column, caption):
        left = MARGIN + column * (panel + GAP)
        bottom = MARGIN + (1 - row) * (tall + CAPTION + GAP)
        axes = figure.add_axes((left / WIDTH, bottom / height, panel / WIDTH, tall / height))
        axes.set_axis_off()
        figure.text(left / WIDTH, (bottom + tall + 0.09) / height, caption, fontsize=13, color=INK)
        return axes

    _fill(place, shown, view)
    return figure


def _fill(place, shown: dict, view: View) -> None:
    """Draw the panels; the weighted slice has one scale before and after, the residual one of its own."""
    b0_top = _top(shown["b0"], shown["mask"])
    weighted_top = _top(shown["raw"], shown["mask"])
    spread = 3 * _spread(shown["residual"][shown["mask"]])
    _show(place(0, 0, "b = 0"), shown["b0"], view, 0, b0_top, letters=True)
    masked = place(0, 1, "Brain mask")
    _show(masked, shown["b0"], view, 0, b0_top)
    _outline(masked, shown["mask"])
    _show(place(0, 2, f"b = {shown['b']:.0f} s/mm², as measured"), shown["raw"], view, 0, weighted_top)
    _show(place(0, 3, "Denoised, same scale"), shown["denoised"], view, 0, weighted_top)
    _show(place(1, 0, f"Residual, ±{spread:.3g}"), shown["residual"], view, -spread, spread)
    _show(place(1, 1, "FA, 0 to 1"), shown["fa"], view, 0, 1)
    _show(place(1, 2, "Colour FA"), shown["rgb"], view)
    _colour_key(place(1, 3, "Direction of the colours"))


def _show(axes, image: np.ndarray, view: View, low=None, high=None, letters: bool = False) -> None:
    """Show one slice with its voxels as they are."""
    from matplotlib.patheffects import withStroke

    axes.set_anchor("SW")
    axes.imshow(
        np.nan_to_num(image),
        cmap="gray",
        vmin=low,
        vmax=high,
        origin="lower",
        interpolation="nearest",
        aspect=view.aspect,
    )
    if letters:
        style = {
            "transform": axes.transAxes,
            "ha": "center",
            "va": "center",
            "fontsize": 12,
            "color": "white",
        }
        edge = [withStroke(linewidth=2, foreground=INK)]
        for letter, x, y in zip(view.letters, (0.05, 0.95, 0.5, 0.5), (0.5, 0.5, 0.04, 0.96), strict=True):
            axes.text(x, y, letter, path_effects=edge, weight="bold", **style)


def _top(image: np.ndarray, mask: np.ndarray) -> float:
    """Return the white of a panel: what all but one in two hundred voxels of the mask stay below."""
    values = image[mask] if mask.any() else image.ravel()
    return float(max(np.percentile(np.nan_to_num(values), 99.5), 1e-6))


def _spread(values: np.ndarray) -> float:
    """Return a robust standard deviation, 1 where there is none."""
    values = values[np.isfinite(values)]
    deviation = SIGMA_PER_MAD * np.median(np.abs(values - np.median(values))) if values.size else 0.0
    return float(deviation) or float(values.std() if values.size else 0.0) or 1.0


def _outline(axes, mask: np.ndarray) -> None:
    """Draw the border of the mask along the edges of its voxels."""
    from matplotlib.collections import LineCollection

    padded = np.pad(mask, 1)
    y, x = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = np.stack([np.stack([x - 0.5, y - 1.5], -1), np.stack([x - 0.5, y - 0.5], -1)], 1)
    y, x = np.nonzero(padded[1:] != padded[:-1])
    level = np.stack([np.stack([x - 1.5, y - 0.5], -1), np.stack([x - 0.5, y - 0.5], -1)], 1)
    segments = np.concatenate([upright, level])
    axes.add_collection(
        LineCollection(segments, colors=OUTLINE, linewidths=2, capstyle="round", clip_on=False), autolim=False
    )


def _colour_key(axes, size: int = 400) -> None:
    """Draw the half sphere of directions seen from above, each in its colour."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    beyond = x**2 + y**2
    z = np.sqrt(np.maximum(1 - beyond, 0))
    edge = np.clip((1 - np.sqrt(beyond)) * size / 4, 0, 1)
    axes.imshow(np.dstack([np.abs(x), np.abs(y), z, edge]), origin="lower", extent=(-1, 1, -1, 1))
    axes.set(xlim=(-1.8, 1.8), ylim=(-1.8, 1.8))
    style = {"ha": "center", "va": "center", "fontsize": 12, "color": INK}
    for letter, across, up in (("L", -1.15, 0), ("R", 1.15, 0), ("P", 0, -1.15), ("A", 0, 1.15)):
        axes.text(across, up, letter, **style)
    axes.text(0, 0, "I–S", **(style | {"color": "white"}))
