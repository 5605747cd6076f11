"""What a page says of a run: when each rank did what, memory and bytes beside the plan, how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpiimg.report.drawing import FAINT, SERIES, as_svg, new_figure, style
from mpiimg.report.page import Item, Listing, Picture, Section, Table, Text, duration, size
from mpiimg.report.runs import Run

#: Steps that have a colour of their own in a timeline.
MAX_STEPS = len(SERIES) - 1

#: Stretches of a rank's time that are drawn.
MAX_BARS = 4000


def run_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section for each run of a folder."""
    return [Section(f"Run: {run.tool}", _items(run)) for run in reversed(runs)]


def _items(run: Run) -> list[Item]:
    items: list[Item] = [Text(_summary(run))]
    items += [Text(text, "warning") for text in run.texts("warnings")]
    items += [Text(f"{name}: {why}", "warning") for name, why in _left_out(run).items()]
    if timeline := draw_timeline(run):
        items.append(timeline)
    if run.stages:
        items += [_steps_table(run), _stages_table(run)]
    items.append(Text("This command makes the same results again, byte for byte, on any number of ranks:"))
    items.append(Listing(command_of(run), "The command of the run"))
    if notes := run.texts("notes"):
        items.append(Table(["note"], [[note] for note in notes], "How inputs were understood", folded=True))
    items.append(_inputs(run))
    return items


def _left_out(run: Run) -> Mapping[str, Any]:
    left_out = run.record.get("left_out")
    return left_out if isinstance(left_out, Mapping) else {}


def _summary(run: Run) -> str:
    """Say in a sentence or two what a run was and what it took."""
    record, stages = run.record, run.stages
    ranks, hosts = record.get("ranks", 1), record.get("hosts") or []
    seconds = sum(_number(one.get("seconds")) for one in stages)
    peak = max((_number(one.get("peak_rss_per_rank")) for one in stages), default=0.0)
    cpu = sum(_number(one.get("cpu_seconds")) for one in stages)
    where = f" on {len(hosts)} nodes" if len(hosts) > 1 else ""
    libraries = record.get("libraries")
    versions = (
        ", ".join(f"{k} {v}" for k, v in libraries.items()) if isinstance(libraries, Mapping) else "unknown"
    )
    return (
        f"{run.tool} of mpiimg {record.get('version', '?')} ran on {ranks} rank{'s' * (ranks != 1)}{where} "
        f"for {duration(seconds)}, took {duration(cpu)} of CPU time, and at most {size(peak)} of memory a "
        f"rank. Kernels were compiled for {record.get('cpu_target', '?')}; libraries: {versions}."
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def step_of(stage: str) -> str:
    """Return the step that a stage is of."""
    return stage.partition(".")[0]


def _steps_table(run: Run) -> Table:
    """Return what each step took, beside what was planned."""
    steps: dict[str, list[Mapping[str, Any]]] = {}
    for one in run.stages:
        steps.setdefault(step_of(str(one.get("stage"))), []).append(one)
    rows = [[step, *_totals(stages)] for step, stages in steps.items()]
    rows.append(["all", *_totals(run.stages)])
    return Table(["step", *_COLUMNS], rows, "What each step took, and what the plan had said")


_COLUMNS = (*("CPU", "time", "time, planned", "memory a rank", "memory, planned", "moved", "moved, planned"),)


def _totals(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    planned = [one["planned"] if isinstance(one.get("planned"), Mapping) else {} for one in stages]

    def total(rows, name):
        return sum(_number(one.get(name)) for one in rows)

    def most(rows, name):
        return max((_number(one.get(name)) for one in rows), default=0.0)

    return [
        duration(total(stages, "cpu_seconds")),
        duration(total(stages, "seconds")),
        duration(total(planned, "seconds")),
        size(most(stages, "peak_per_rank")),
        size(most(planned, "peak_per_rank")),
        size(total(stages, "bytes_moved")),
        size(total(planned, "bytes_moved")),
    ]


def _stages_table(run: Run) -> Table:
    rows = [
        [str(one.get("stage")), one.get("chunks"), one.get("resumed_chunks"), *_totals([one])]
        for one in run.stages
    ]
    columns = ["stage", "chunks", "of earlier runs", *_COLUMNS]
    return Table(columns, rows, f"The {len(rows)} stages", folded=True)


def _inputs(run: Run) -> Table:
    inputs = run.record.get("inputs")
    rows = []
    for name, one in inputs.items() if isinstance(inputs, Mapping) else ():
        if isinstance(one, Mapping) and "path" in one:
            rows.append([str(name), str(one["path"]), size(_number(one.get("bytes")))])
    given = [[name, value] for name, value in run.parameters.items() if value is not None]
    rows += [[str(name), str(value), ""] for name, value in given]
    return Table(["name", "value", "size"], rows, "Inputs and options", folded=True)


def command_of(run: Run) -> str:
    """Return the command that repeats a run, and where it was given."""
    command = str(run.record.get("command") or run.start.get("command") or run.tool)
    ranks = int(_number(run.record.get("ranks"))) or 1
    launched = command if ranks == 1 else f"mpiexec -n {ranks} {command}"
    folder = run.record.get("started_in")
    return f"cd {shlex.quote(str(folder))}\n{launched}" if folder else launched


# --- When each rank did what ------------------------------------------------------------------------------


def stretches(events: Sequence[Mapping[str, Any]], began: float) -> list[tuple[str, float, float]]:
    """Return what a rank was at: (stage, from, until), seconds since the run began.

    Parameters
    ----------
    events : sequence of mapping
        Of the rank.
    began : float
        Seconds since the epoch.
    """
    found, open_since = [], {}
    for one in events:
        now = _number(one.get("time")) - began
        stage = str(one.get("stage", ""))
        if one.get("event") == "stage":
            open_since[stage] = now
        elif one.get("event") == "ended" and stage in open_since:
            found.append((stage, open_since.pop(stage), now))
    return found


def draw_timeline(run: Run) -> Picture | None:
    """Draw which rank was at which step when, and what each held in memory; None where no events tell."""
    began = _number(run.start.get("time"))
    bars = {rank: stretches(events, began) for rank, events in run.events.items()} if began else {}
    if not any(bars.values()):
        return None
    steps = list(dict.fromkeys(step_of(stage) for ends in bars.values() for stage, _, _ in ends))
    colours = {step: SERIES[min(n, MAX_STEPS)] for n, step in enumerate(steps)}
    with style():
        figure = new_figure(1.9 + min(0.22 * len(bars), 5.0))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[max(0.22 * len(bars), 0.5), 1.0])
        for row, (rank, ends) in enumerate(sorted(bars.items())):
            for step in steps:
                of_step = [(a, max(b - a, 1e-3)) for stage, a, b in ends if step_of(stage) == step]
                above.broken_barh(of_step[:MAX_BARS], (row - 0.4, 0.8), color=colours[step], linewidth=0)
            _draw_memory(below, run.events[rank], began)
        above.set(yticks=range(len(bars)), yticklabels=sorted(bars), ylabel="rank")
        if len(bars) > 16:
            above.set(yticks=range(0, len(bars), 8), yticklabels=sorted(bars)[::8])
        above.invert_yaxis()
        handles = [above.plot([], [], color=colours[step], linewidth=6, label=step)[0] for step in steps]
        above.legend(
            handles=handles[: MAX_STEPS + 1],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=min(len(handles), 8),
            frameon=False,
        )
        below.set(xlabel="seconds since the run began", ylabel="memory [MiB]", ylim=(0, None))
        return as_svg(
            figure,
            f"Timeline of {len(bars)} ranks through the steps {', '.join(steps)}, and their memory",
            "Above: the step that each rank was at. Below: the memory that each rank held.",
        )


def _draw_memory(axes, events: Sequence[Mapping[str, Any]], began: float) -> None:
    points = [(one["time"] - began, _number(one.get("memory")) / 2**20) for one in events if "memory" in one]
    if points:
        seconds, held = np.array(points).T
        axes.step(seconds, held, where="post", color=FAINT, linewidth=0.8)
