"""Charts of the benchmarks: dots of the systems, and the roofline of the kernels."""

from __future__ import annotations

import statistics
from pathlib import Path

from report import STUDY, TITLES, beside

#: Colours of mpiimg, of the other systems, and of what the study measured elsewhere.
OURS, OTHERS, THEIRS = "tab:orange", "tab:blue", "grey"


def dots(rows: list[dict], path: Path) -> list[str]:
    """Draw the CPU-seconds of each system that got through, and below them the study's figures.

    A column a workload, a row a table: medians as dots and ranges as lines, of the first size that there are
    rows of. Dots, since the axis is logarithmic: a bar would begin nowhere. Return what was drawn, in order.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["result"] == "done" and row["limit"] is None and not row["by_steps"]]
    rows = [row for row in rows if row["size"] == rows[0]["size"]]
    workloads = [name for name in STUDY if any(row["workload"] == name for row in rows)]
    if not workloads:
        return []
    shape = len(TITLES) + 1, len(workloads)
    figure, panels = pyplot.subplots(
        *shape, figsize=(6.5 * shape[1], 9.5), squeeze=False, height_ratios=(10, 9, 5)
    )
    drawn = []
    for column, workload in zip(panels.T, workloads, strict=True):
        for panel, table in zip(column, TITLES, strict=False):
            mine = [row for row in rows if row["workload"] == workload and table in row["tables"]]
            drawn += [f"{workload}, {table}: {name}" for name in draw_measured(panel, mine)]
            panel.set_title(f"{workload}, {TITLES[table].partition(':')[0]}", fontsize=11)
        drawn += [f"{workload}, study: {name}" for name in draw_study(column[-1], workload)]
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return drawn


def draw_measured(panel, rows: list[dict]) -> list[str]:
    """Draw the median of each system with its range; return the systems, the slowest first."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["system"], []).append(row["cpu_seconds"])
    medians = {name: statistics.median(found) for name, found in values.items()}
    names = sorted(medians, key=medians.get, reverse=True)
    serial = medians.get("serial")
    labels = [
        f"{medians[name]:.3g} s"
        + (f", {beside(medians[name], serial)}" if serial and name != "serial" else "")
        for name in names
    ]
    colours = [OURS if name.startswith("mpiimg") else OTHERS for name in names]
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        panel.plot([min(values[name]), max(values[name])], [place, place], color=colour, linewidth=2)
    draw_dots(panel, {name: medians[name] for name in names}, labels, colours)
    scale(panel, medians.values(), "CPU-seconds of all processes")
    return names


def draw_dots(panel, values: dict[str, float], labels: list[str], colours: list[str]) -> None:
    """Draw a dot a name, the first at the bottom, each with a guide from its name and a label beside it."""
    places = range(len(values))
    panel.scatter(list(values.values()), places, color=colours, zorder=3)
    panel.set_yticks(places, list(values))
    panel.grid(axis="y", color="lightgrey", linestyle=":")
    for place, value, label in zip(places, values.values(), labels, strict=True):
        panel.annotate(
            label, (value, place), xytext=(9, 0), textcoords="offset points", va="center", fontsize=9
        )


def draw_study(panel, workload: str) -> list[str]:
    """Draw what the study measured, on its own machines, of those that got through; return them."""
    known = {name: figures[0] for name, figures in STUDY[workload].items() if not isinstance(figures[0], str)}
    names = sorted(known, key=known.get, reverse=True)
    labels = [f"{known[name]:g} min" for name in names]
    draw_dots(panel, {name: known[name] for name in names}, labels, [THEIRS] * len(names))
    what = {"neuro": "one subject", "astro": "24 visits"}[workload]
    panel.set_title(f"{workload}, the study's own figures ({what})", fontsize=11)
    scale(panel, known.values(), "minutes on 16 nodes, 2017")
    return names


def scale(panel, values, label: str) -> None:
    """Make an axis of logarithms with room for what stands beside the dots."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panel.set_xscale("log")
    panel.set_xlabel(label)
    first, last = min(values), max(values)
    panel.set_xlim(first / 1.3, last * 4 * (last / first) ** 0.7)
    panel.margins(y=0.08)
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def roofline(peaks: dict[str, float], slopes: dict[str, float], rows: list[dict], path: Path) -> list[str]:
    """Draw what kernels reach below the limits of the machine, both axes by logarithms; return their order.

    Parameters
    ----------
    peaks : Gop/s by kind of element
    slopes : GB/s by where the bytes come from
    rows : kernel, intensity (operations a byte), gops, mixture_gops
    path : picture to write
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(9, 5))
    places = [row["intensity"] for row in rows]
    left, right = min([*places, 1]) / 2, 8 * max(places)
    for (element, peak), style in zip(peaks.items(), ("-", "--"), strict=True):
        for (place, slope), colour in zip(slopes.items(), ("tab:green", "black"), strict=True):
            ridge = peak / slope
            panel.plot([left, ridge, right], [left * slope, peak, peak], style, color=colour, linewidth=1)
            if element == next(iter(peaks)):
                panel.text(left, 1.1 * left * slope, f" {place}, {slope:.3g} GB/s", color=colour, fontsize=8)
        panel.text(right, peak, f"{element} FMA {peak:.3g} ", ha="right", va="bottom", fontsize=8)
    for row in rows:
        here = row["intensity"]
        panel.plot([here, here], [row["gops"], row["mixture_gops"]], color="tab:gray", linewidth=1)
        panel.plot(here, row["mixture_gops"], "_", color="tab:gray", markersize=12)
        panel.plot(here, row["gops"], "o", color="tab:orange")
        panel.annotate(
            row["kernel"], (here, row["gops"]), xytext=(6, -4), textcoords="offset points", fontsize=8
        )
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="operations a byte of memory",
        ylabel="Gop/s on one core",
        title="reached (points), and the most of the same mixture of operations (bars)",
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return [row["kernel"] for row in rows]
