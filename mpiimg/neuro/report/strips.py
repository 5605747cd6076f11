"""Strip plots: one dot for each scan, drawn so that dots do not cover each other."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

import numpy as np

from mpiimg.report.drawing import FAINT, INK, SERIES
from mpiimg.report.page import Markup, Picture

#: Pixels of a strip, its margins, and how far dots lie beside its middle.
WIDTH, HEIGHT, MARGIN, SPREAD = 1100, 84, 20, 22

#: Dots that are drawn one by one, with links; of more there is a picture.
MAX_DOTS = 300

USUAL, FALLEN = SERIES[0], SERIES[1]


def draw_strip(
    values: np.ndarray, fallen: np.ndarray, labels: Sequence[str], links: Sequence[str], title: str
) -> Markup | Picture:
    """Draw a figure of all scans.

    Parameters
    ----------
    values : (n,) array
        NaN where a scan has none.
    fallen : array of int
        Those that fall out.
    labels, links : sequence of str
        Of each scan; no link where empty.
    title : str
        What the figure is.
    """
    known = np.flatnonzero(np.isfinite(values))
    low, high = float(values[known].min()), float(values[known].max())
    x = MARGIN + (values[known] - low) / ((high - low) or 1.0) * (WIDTH - 2 * MARGIN)
    y = HEIGHT / 2 - 6 + SPREAD * _beside(x)
    ends = (low, float(np.median(values[known])), high)
    middle = MARGIN + (ends[1] - low) / ((high - low) or 1.0) * (WIDTH - 2 * MARGIN)
    out = np.isin(known, fallen)
    alt = f"Strip plot of {len(known)} scans, {int(out.sum())} fall out: {title}"
    if len(known) > MAX_DOTS:
        return Picture(_picture(x, y, out, ends, middle), alt, title)
    dots = []
    for place, across, down, is_out in zip(known, x, y, out, strict=True):
        dot = (
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{5 if is_out else 4}" '
            f'fill="{FALLEN if is_out else USUAL}"><title>{html.escape(labels[place])}</title></circle>'
        )
        link = html.escape(links[place], quote=True)
        dots.append(f'<a href="{link}" aria-label="{html.escape(labels[place])}">{dot}</a>' if link else dot)
    lines = f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="6" y2="{HEIGHT - 20}" stroke="{INK}"/>'
    texts = "".join(
        f'<text x="{at:.1f}" y="{HEIGHT - 3}" text-anchor="{anchor}" font-size="13" fill="{FAINT}">'
        f"{one:.4g}</text>"
        for one, at, anchor in zip(
            ends, (MARGIN, middle, WIDTH - MARGIN), ("start", "middle", "end"), strict=True
        )
        if anchor != "middle" or 0.1 < (middle - MARGIN) / (WIDTH - 2 * MARGIN) < 0.9
    )
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="group" aria-label="{html.escape(alt)}">'
        f"{lines}{''.join(dots)}{texts}</svg>",
        title,
    )


def _beside(x: np.ndarray) -> np.ndarray:
    """Return how far dots lie beside the middle, -1 to 1: those at one place one after the other.

    The places of a dot beside the middle follow from how many lie left of it in its bin, by a sequence that
    fills an interval evenly (van der Corput), so that the same scans are drawn alike each time.
    """
    order = np.argsort(x, kind="stable")
    bins = np.floor(x[order] / 8).astype(np.int64)
    first = np.searchsorted(bins, bins, side="left")
    number = np.arange(len(x)) - first
    beside, share = np.zeros(len(x)), 0.5
    for _ in range(16):
        beside += (number % 2) * share
        number, share = number // 2, share / 2
    out = np.empty(len(x))
    # 0, 1/2, 1/4, 3/4 and so on, about the middle.
    out[order] = ((beside + 0.5) % 1.0) * 2 - 1
    return out


def _picture(x: np.ndarray, y: np.ndarray, out: np.ndarray, ends: Sequence[float], middle: float) -> bytes:
    """Return a strip of many dots as PNG."""
    from PIL import Image, ImageColor, ImageDraw

    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for chosen, colour, reach in ((~out, USUAL, 1), (out, FALLEN, 2)):
        across, down = np.rint(x[chosen]).astype(int), np.rint(y[chosen]).astype(int)
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                pixels[np.clip(down + dy, 0, HEIGHT - 1), np.clip(across + dx, 0, WIDTH - 1)] = (
                    ImageColor.getrgb(colour)
                )
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    pen.line((middle, 6, middle, HEIGHT - 20), fill=INK)
    for one, at, anchor in zip(ends, (MARGIN, middle, WIDTH - MARGIN), ("la", "ma", "ra"), strict=True):
        if anchor != "ma" or 0.1 < (middle - MARGIN) / (WIDTH - 2 * MARGIN) < 0.9:
            pen.text((at, HEIGHT - 16), f"{one:.4g}", FAINT, anchor=anchor)
    data = io.BytesIO()
    image.quantize(32).save(data, format="png")
    return data.getvalue()
