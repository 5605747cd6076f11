"""Bar charts of the comparison of systems."""

from __future__ import annotations

import statistics
from pathlib import Path


def bars(rows: list[dict], path: Path) -> list[str]:
    """Draw the CPU-seconds of each system that got through, a panel a workload; return their order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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
        panel.barh(names, [medians[name] for name in names], color=colours)
        panel.set(xscale="log", xlabel="CPU-seconds, all processes", title=workload)
        drawn += [f"{workload}: {name}" for name in names]
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return drawn
