"""Charts of the benchmarks: bars of the systems, and the roofline of the kernels."""

from __future__ import annotations

import math
import statistics
from pathlib import Path


def bars(rows: list[dict], path: Path) -> list[str]:
    """Draw the CPU-seconds of each system that got through, a panel a workload; return their order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    figure, panels = pyplot.subplots(1, len(workloads), figsize=(6 * len(workloads), 4), squeeze=False)
    drawn = []
    for panel, workload in zip(panels[0], workloads, strict=True):
        values: dict[str, list[float]] = {}
        for row in rows:
            if row["workload"] == workload and row["result"] == "done" and not row["by_steps"]:
                values.setdefault(row["system"], []).append(row["cpu_seconds"])
        medians = {name: statistics.median(found) for name, found in values.items()}
        names = sorted(medians, key=medians.get, reverse=True)
        colours = ["tab:orange" if name.startswith("mpiimg") else "tab:blue" for name in names]
        drawn_bars = panel.barh(names, [medians[name] for name in names], color=colours)
        panel.bar_label(drawn_bars, fmt="%.3g", padding=2)
        panel.set(xscale="log", xlabel="CPU-seconds, all processes", title=workload)
        # Bars begin at a power of ten, and leave room for what stands beside them.
        least, most = min(medians.values()), max(medians.values())
        panel.set_xlim(10 ** math.floor(math.log10(least)), 2 * most)
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        drawn += [f"{workload}: {name}" for name in names]
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return drawn


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
