"""Drawings as pictures of a page: lines and points as SVG, images as PNG, all in one style."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mpiimg.report.page import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Of letters and lines, of what matters less, and of what is wrong.
INK, FAINT, WRONG = "#1a1a1a", "#555555", "#c2410c"

#: Colours of series, told apart by those who do not see all colours (Okabe and Ito 2008).
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

#: Inches across the page, and dots an inch of images.
WIDTH, DPI = 11.0, 110

_STYLE = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.prop_cycle": None,
    "svg.fonttype": "path",
    "svg.hashsalt": "mpiimg",
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the page."""
    import matplotlib

    chosen = {**_STYLE, "axes.prop_cycle": matplotlib.cycler(color=SERIES)}
    with matplotlib.rc_context(chosen):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of so many inches; no window system is asked."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def as_svg(figure: Figure, alt: str, caption: str = "", wide: bool = True) -> Picture:
    """Return a figure of lines and points as a picture."""
    return Picture(_saved(figure, "svg"), alt, caption, wide)


def as_png(figure: Figure, alt: str, caption: str = "", wide: bool = True) -> Picture:
    """Return a figure that shows images, or very many points, as a picture."""
    return Picture(_saved(figure, "png"), alt, caption, wide)


def _saved(figure: Figure, form: str) -> bytes:
    data = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(data, format=form, dpi=DPI, facecolor="white", metadata=metadata)
    return data.getvalue()
