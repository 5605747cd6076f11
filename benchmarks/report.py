"""Tables of the comparison of systems, in Markdown."""

from __future__ import annotations

import re
import statistics

#: The lines of a page between which its figures stand.
BEGIN, END = "<!-- figures: made by benchmarks/side_by_side.py --page -->", "<!-- end of the figures -->"

#: Steps in the order of each workload.
STEPS = {
    "neuro": ("start-up", "ingest", "filter", "mean", "mask", "denoise", "regroup", "fit", "write"),
    "astro": ("start-up", "ingest", "calibrate", "warp", "coadd", "detect", "write"),
    "regroup": ("start-up", "ingest", "regroup", "write"),
}

#: Systems that differ in their kernels alone, by frame.
FRAMES = {
    "none (serial)": ("serial", "serial, mpiimg's kernels"),
    "Dask delayed, two workers": ("Dask delayed", "Dask delayed, mpiimg's kernels"),
    "mpiimg, two ranks": ("mpiimg, their functions", "mpiimg"),
    "mpiimg, one rank": ("mpiimg, their functions, one rank", "mpiimg, one rank"),
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


def markdown(rows: list[dict]) -> str:
    """Return all tables of the measured rows, by size and workload, under the conditions of each size."""
    parts = []
    for size in dict.fromkeys(row["size"] for row in rows):
        of_size = [row for row in rows if row["size"] == size]
        conditions = dict.fromkeys(said_of(row["where"]) for row in of_size)
        parts += [f"# size {size}", "\n".join(conditions)]
        for workload in dict.fromkeys(row["workload"] for row in of_size):
            parts += tables_of(workload, [row for row in of_size if row["workload"] == workload])
    for workload in STUDY:
        parts += [f"# {workload}, in the study, whose systems these were", study_table(workload)]
    return "\n\n".join(part for part in parts if part) + "\n"


def on_page(page: str, text: str, chart: str) -> str:
    """Return a page of the docs with new figures in the place of those that it has.

    Parameters
    ----------
    page : text of the page
    text : tables, as :func:`markdown` makes them
    chart : where the chart is, from the folder of the page

    Raises
    ------
    SystemExit
        The page has no place for them.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise SystemExit(f"the page has no lines {BEGIN} and {END} for the figures to stand between")
    before, _, rest = page.partition(BEGIN)
    shown = f"![CPU-seconds of both pipelines on each system]({chart})"
    # Below the heading of the figures.
    deeper = re.sub(r"^#", "###", text, flags=re.M)
    return f"{before}{BEGIN}\n\n{shown}\n\n{deeper}\n{END}{rest.partition(END)[2]}"


def said_of(where: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in where.items())


def tables_of(workload: str, rows: list[dict]) -> list[str]:
    """Return the tables of a workload with their titles."""
    free, parts = [row for row in rows if row["limit"] is None], []
    if workload == "regroup" and free:
        parts += ["## regroup, volumes to blocks of voxels", whole_table(free)]
        parts += [steps_table(workload, free, False)]
    elif free:
        for table, title in TITLES.items():
            chosen = [row for row in free if table in row["tables"]]
            parts += [f"## {workload}, {title}", whole_table(chosen), steps_table(workload, chosen)]
        parts.append(frames_table(free))
    if len(free) < len(rows):
        parts += [f"## {workload}, under a limit of memory", limits_table(rows)]
    return parts


def frames_table(rows: list[dict]) -> str:
    """Return what each frame takes with the libraries' functions, and with mpiimg's kernels in place."""
    systems = by_system([row for row in rows if row["result"] == "done"], False)
    lines = [
        "| frame | their functions, CPU-s | mpiimg's kernels, CPU-s | what the kernels give |",
        "|---|---|---|---|",
    ]
    for frame, (theirs, ours) in FRAMES.items():
        if systems.get(theirs) and systems.get(ours):
            before, after = (median(systems[name], "cpu_seconds") for name in (theirs, ours))
            lines.append(f"| {frame} | {before:.3g} | {after:.3g} | {beside(after, before)} |")
    if len(lines) == 2:
        return ""
    return "\n".join(["What comes of the frame, and what of the kernels:", "", *lines])


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
        "| system | end to end, CPU-s | beside serial | wall, s | peak memory, MB | processes "
        "| lines of code | largest difference |",
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
        lines.append(
            f"| {name} | {spread(done, 'cpu_seconds')} | {compared(done, base)} "
            f"| {spread(done, 'seconds')} | {median(done, 'peak_pss') / 1e6:.0f} "
            f"| {max(row['processes'] for row in done)} | {done[0]['lines'] or 'a command'} "
            f"| {done[0].get('difference', '')} |"
        )
    return "\n".join(lines)


def compared(done: list[dict], base: float | None) -> str:
    """Return a system beside serial; where functions were tried before the run, without that as well."""
    if not base:
        return ""
    cpu = median(done, "cpu_seconds")
    tried = [row["rehearsal"] for row in done if row.get("rehearsal")]
    if not tried:
        return beside(cpu, base)
    apart = statistics.median(tried)
    return f"{beside(cpu, base)}; {beside(cpu - apart, base)} without its rehearsal of {apart:.3g} CPU-s"


def beside(cpu: float, base: float) -> str:
    """Return in words how many times faster or slower `cpu` seconds are than those of the serial run."""
    ratio = max(cpu, base) / min(cpu, base)
    if f"{ratio:.3g}" == "1":
        return "1"
    return f"{ratio:.3g} times {'faster' if cpu < base else 'slower'}"


def spread(rows: list[dict], key: str) -> str:
    """Return the median, and the range where there are several."""
    values = [row[key] for row in rows]
    text = f"{statistics.median(values):.3g}"
    return text if len(values) == 1 else f"{text} ({min(values):.3g}-{max(values):.3g})"


def steps_table(workload: str, rows: list[dict], by_steps: bool = True) -> str:
    """Return the table of the CPU-seconds of each step: medians of the runs that were made step by step.

    Parameters
    ----------
    by_steps : False where every run is; what mpiimg's own record has then stands below what the meter has
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
        measured = [{step: cpu for step, (_, cpu) in row["steps"].items()} for row in found]
        lines.append(steps_line(name, measured, names))
        if not by_steps and any(row.get("recorded") for row in found):
            lines.append(steps_line(f"{name}, by its own record", [row["recorded"] for row in found], names))
    return "\n".join(lines)


def steps_line(name: str, found: list[dict[str, float]], steps: tuple[str, ...]) -> str:
    spent = [[one[step] for one in found if step in one] for step in steps]
    cells = [f"{statistics.median(values):.3g}" if values else "" for values in spent]
    return f"| {name} | " + " | ".join(cells) + " |"


def limits_table(rows: list[dict]) -> str:
    """Return how each system ended without a limit of memory and under each, and what failures said."""
    limits = sorted({row["limit"] for row in rows if row["limit"]}, reverse=True)
    lines = [
        "| system | no limit | " + " | ".join(f"{limit / 1e6:g} MB" for limit in limits) + " |",
        "|---" * (len(limits) + 2) + "|",
    ]
    said = []
    for name in dict.fromkeys(row["system"] for row in rows):
        cells = []
        for limit in (None, *limits):
            wanted = (name, limit, False)
            found = [row for row in rows if (row["system"], row["limit"], row["by_steps"]) == wanted]
            cells.append(ending(found))
            if found and ":" in found[-1]["result"] and limit:
                said.append(f"- {name}, {limit / 1e6:g} MB: {found[-1]['result']}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Pages of files, such as those of libraries, do not count here."]
    return "\n".join(lines + [""] * bool(said) + said)


def ending(rows: list[dict]) -> str:
    """Return in a few words how runs of a system ended, with the most memory and CPU time they took."""
    if not rows:
        return ""
    done = [row for row in rows if row["result"] == "done"]
    if done:
        return f"{median(done, 'peak_kept') / 1e6:.0f} MB, {median(done, 'cpu_seconds'):.3g} CPU-s"
    how = rows[-1]["result"].partition(":")[0]
    return {
        "out of memory": "**killed**, above the limit",
        "timeout": f"**no end** in {rows[-1].get('seconds', 0):.0f} s",
        "refused": "refused in one line",
    }.get(how, how if how == "not installed" else f"**{how}**")


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
