"""Tables of the comparison of systems, in Markdown."""

from __future__ import annotations

import statistics

#: Steps in the order of each workload.
STEPS = {
    "neuro": ("start-up", "ingest", "filter", "mean", "mask", "denoise", "regroup", "fit", "write"),
    "astro": ("start-up", "ingest", "calibrate", "warp", "coadd", "detect", "write"),
    "regroup": ("start-up", "ingest", "regroup", "write"),
}

TITLES = {
    "same": "same functions: what does the system itself cost?",
    "best": "best of each",
}

#: The study's figures (Mehta et al. 2017), minutes on 16 nodes of 8 vCPUs: a subject, 25 subjects; 24 visits.
STUDY = {
    "neuro": {
        "SciDB": (20, 514),
        "Myria": (6.3, 91),
        "Spark": (6.2, 93),
        "Dask": (9.9, 80),
        "TensorFlow": (67, 1500),
    },
    "astro": {
        "SciDB": (974,),
        "Myria": (39,),
        "Spark": (44,),
        "Dask": ("out of memory",),
        "TensorFlow": ("not possible",),
    },
}


def markdown(rows: list[dict], where: dict[str, str]) -> str:
    """Return all tables of the measured rows, under a line of the conditions."""
    parts = ["  ".join(f"{name} {value}" for name, value in where.items())]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        mine = [row for row in rows if row["workload"] == workload]
        if workload == "regroup":
            parts += ["## volumes to blocks of voxels", whole_table(mine), steps_table(workload, mine, False)]
            continue
        for table, title in TITLES.items():
            chosen = [row for row in mine if table in row["tables"]]
            parts += [f"## {workload}, {title}", whole_table(chosen), steps_table(workload, chosen)]
        parts += [f"## {workload}, in the study, whose systems these were", study_table(workload)]
    return "\n\n".join(part for part in parts if part) + "\n"


def by_system(rows: list[dict], by_steps: bool) -> dict[str, list[dict]]:
    """Return the rows of each system: those of whole runs, or those of runs by steps."""
    return {
        name: [row for row in rows if row["system"] == name and row["by_steps"] == by_steps]
        for name in dict.fromkeys(row["system"] for row in rows)
    }


def median(rows: list[dict], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def whole_table(rows: list[dict]) -> str:
    """Return the table of whole runs."""
    lines = [
        "| system | end to end, CPU-s | times serial | wall, s | peak memory, MB | processes | lines of code "
        "| largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    systems = by_system(rows, False)
    serial = next((found for name, found in systems.items() if name == "serial"), [])
    base = median(serial, "cpu_seconds") if serial and serial[0]["result"] == "done" else None
    for name, found in systems.items():
        if not found:
            continue
        done = [row for row in found if row["result"] == "done"]
        if not done:
            lines.append(f"| {name} | {found[-1]['result']} | | | | | {found[-1]['lines'] or ''} | |")
            continue
        cpu = median(done, "cpu_seconds")
        lines.append(
            f"| {name} | {spread(done, 'cpu_seconds')} | {f'{cpu / base:.3g}' if base else ''} "
            f"| {spread(done, 'seconds')} | {median(done, 'peak_pss') / 1e6:.0f} "
            f"| {max(row['processes'] for row in done)} | {done[0]['lines'] or 'a command'} "
            f"| {done[0].get('difference', '')} |"
        )
    return "\n".join(lines)


def spread(rows: list[dict], key: str) -> str:
    """Return the median, and the range where there are several."""
    values = [row[key] for row in rows]
    text = f"{statistics.median(values):.3g}"
    return text if len(values) == 1 else f"{text} ({min(values):.3g}-{max(values):.3g})"


def steps_table(workload: str, rows: list[dict], by_steps: bool = True) -> str:
    """Return the table of the CPU-seconds of each step: medians of the runs that were made step by step.

    Parameters
    ----------
    by_steps : False where every run is
    """
    systems = {name: found for name, found in by_system(rows, by_steps).items() if found}
    if not systems:
        return ""
    names = STEPS[workload]
    lines = [
        "CPU-seconds over all processes, each step finished before the next:",
        "",
        "| system | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for name, found in systems.items():
        spent = [[row["steps"][step][1] for row in found if step in row["steps"]] for step in names]
        cells = [f"{statistics.median(values):.3g}" if values else "" for values in spent]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def study_table(workload: str) -> str:
    """Return the study's own figures, of systems that cannot be installed any more among them."""
    what = ("one subject", "25 subjects") if workload == "neuro" else ("24 visits",)
    lines = [
        "| system | " + " | ".join(f"{one}, minutes" for one in what) + " |",
        "|---" * (len(what) + 1) + "|",
    ]
    lines += [
        f"| {name} | " + " | ".join(map(str, figures)) + " |" for name, figures in STUDY[workload].items()
    ]
    return "\n".join(lines)
