"""How well exposures agree with a reference, or with each other, on the page: on the sky and by magnitude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpiimg.astro.report.results import SurveyResults
from mpiimg.astro.report.tables import columns_of, where
from mpiimg.astro.wide import blue_to_red
from mpiimg.report.drawing import SERIES, as_svg, new_figure, style
from mpiimg.report.page import Item, Picture, Section, Table, Text

#: Bands whose residuals are drawn.
MAX_BANDS = 6

#: Magnitudes and arcseconds that colours span at least: less is as good as nothing.
MIN_MAG, MIN_ARCSEC = 0.02, 0.05


def agreement_section(results: SurveyResults) -> Section | None:
    """Return the section about residuals; None where no stars were compared."""
    path = results.path("residuals.tsv")
    if path is None:
        return None
    table = columns_of(path, "\t")
    whole = where(table, table["by"] == "all")
    title = "Agreement with the reference"
    if not (table["against"] == "reference").any():
        title = "Agreement between exposures"
    if not len(whole["stars"]) or not whole["stars"].sum() > 0:
        return Section(title, [Text("No star was found in two places, so nothing can be compared.", "note")])
    names = ("dmag", "dmag_scatter", "dra", "dra_scatter", "ddec", "ddec_scatter")
    bands = blue_to_red(whole["band"][whole["stars"] > 0].tolist())
    rows = []
    for band in bands:
        (own,) = np.flatnonzero(whole["band"] == band)
        rows.append([band, int(whole["stars"][own]), *(float(whole[one][own]) for one in names)])
    heads = ["band", "stars", "\u0394mag [mag]", "scatter", "\u0394RA cos Dec [arcsec]", "scatter"]
    heads += ["\u0394Dec [arcsec]", "scatter"]
    items: list[Item] = [Table(heads, rows, f"Medians and robust standard deviations ({path.name})")]
    if len(bands) > MAX_BANDS:
        items.append(Text(f"{MAX_BANDS} of {len(bands)} bands are drawn.", "note"))
    items.append(draw_by_magnitude(where(table, table["by"] == "magnitude"), bands[:MAX_BANDS]))
    on_sky = where(table, table["by"] == "sky")
    drawn = [band for band in bands[:MAX_BANDS] if (on_sky["band"] == band).any()]
    if drawn:
        items.append(draw_on_sky(on_sky, drawn))
    return Section(title, items)


def draw_by_magnitude(bins: Mapping[str, np.ndarray], bands: Sequence[str]) -> Picture:
    """Draw the residuals of magnitude and place by magnitude: medians, and how much they scatter."""
    shown = (
        ("dmag", "\u0394mag [mag]"),
        ("dra", "\u0394RA cos Dec [arcsec]"),
        ("ddec", "\u0394Dec [arcsec]"),
    )
    with style():
        figure = new_figure(3.2)
        for axes, (name, label) in zip(figure.subplots(1, 3), shown, strict=True):
            for k, band in enumerate(bands):
                own = where(bins, bins["band"] == band)
                # Bands lie beside each other.
                place = own["mag"] + 0.06 * (k - (len(bands) - 1) / 2)
                axes.errorbar(
                    place, own[name], own[f"{name}_scatter"], fmt="o", ms=3.5, lw=1, capsize=2,
                    color=SERIES[k % len(SERIES)], label=band,
                )  # fmt: skip
            axes.axhline(0, color="#999999", lw=0.8, ls=":")
            axes.grid(axis="y", color="#e4e4e4", lw=0.6)
            axes.set(xlabel="magnitude", ylabel=label)
        if len(bands) > 1:
            axes.legend(frameon=False, ncols=2)
        return as_svg(
            figure,
            f"Residuals of magnitude and place by magnitude in {', '.join(bands)}",
            "Points: medians; bars: the scatter of single stars. Good: medians at 0 throughout, scatter "
            "that grows towards faint stars alone. Bad: a slope (nonlinearity, a wrong sky), bright stars "
            "that fall off (saturation), an offset in place (wrong coordinates), scatter of bright stars "
            "beyond 0.02 mag or a tenth of an arcsecond.",
        )


def draw_on_sky(cells: Mapping[str, np.ndarray], bands: Sequence[str]) -> Picture:
    """Draw the residuals on the sky: of magnitude as colours, of place as arrows."""
    columns = min(len(bands), 3)
    rows = -(-len(bands) // columns)
    span = max(MIN_MAG, float(np.percentile(np.abs(cells["dmag"]), 95)))
    with style():
        figure = new_figure(rows * (3.9 if columns == 1 else 3.6), 6.5 if columns == 1 else 11.0)
        panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axes, band in zip(panels, bands, strict=False):
            own = where(cells, cells["band"] == band)
            drawn = axes.scatter(
                own["ra"], own["dec"], 130, own["dmag"], marker="s", cmap="RdBu", vmin=-span, vmax=span
            )
            drawn.set_edgecolor("#888888")
            _arrows(axes, own)
            axes.set_title(band, loc="left", fontsize=10)
            axes.set(xlabel="RA [deg]", ylabel="Dec [deg]")
            axes.set_aspect(1 / max(np.cos(np.radians(np.mean(own["dec"]))), 0.05), "datalim")
            axes.margins(0.12)
            axes.invert_xaxis()
            axes.ticklabel_format(useOffset=False)
            axes.tick_params(labelsize=8)
            axes.locator_params(nbins=4)
        for axes in panels[len(bands) :]:
            axes.set_axis_off()
        figure.colorbar(drawn, ax=list(panels), label="\u0394mag [mag]", shrink=0.8)
        return as_svg(
            figure,
            f"Residuals of magnitude and place on the sky in {', '.join(bands)}",
            "Colours: the median of \u0394mag in a cell; arrows: where stars lie off, as long as the one "
            "above each map says. Good: pale colours and short arrows without order. Bad: a gradient or one "
            "colour on a sensor (flat field, clouds, zero points), arrows that all point one way or swirl "
            "(coordinates, distortion).",
            wide=columns > 1,
        )


def _arrows(axes, own: Mapping[str, np.ndarray]) -> None:
    """Draw by how much stars lie off in each cell, and how long an arrow is."""
    longest = float(np.hypot(own["dra"], own["ddec"]).max())
    unit = max(MIN_ARCSEC, float(f"{longest:.1g}"))
    # Right ascension grows to the left, and an arrow is given in units of the page.
    quiver = axes.quiver(
        own["ra"], own["dec"], -own["dra"], own["ddec"], angles="uv", scale=8 * unit, width=0.005
    )
    axes.quiverkey(quiver, 0.85, 1.04, unit, f"{unit:g}\u2033", labelpos="E", fontproperties={"size": 8})
