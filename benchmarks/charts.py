"""Bar charts of the comparison of systems."""

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
