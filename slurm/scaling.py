"""Print how long runs of one subject took on different numbers of ranks, out of their run.json.

python slurm/scaling.py OUT      of OUT/ranks-1, OUT/ranks-2, ...
"""

import json
import sys
from pathlib import Path


def table(folder: Path) -> str:
    """Return one line a run of `folder`, in the order of their ranks."""
    runs = [_read(record) for record in folder.glob("ranks-*/run.json")]
    lines = ["  ranks   nodes   seconds     CPU-s   faster   efficiency  MB moved  slowest stage"]
    first = None
    for run in sorted(runs, key=lambda run: run["ranks"]):
        stages = run["stages"]
        seconds = sum(stage["seconds"] for stage in stages)
        cpu = sum(stage["cpu_seconds"] for stage in stages)
        moved = sum(stage["bytes_moved"] for stage in stages) / 1e6
        slowest = max(stages, key=lambda stage: stage["seconds"])
        first = first or (run["ranks"], seconds)
        faster = first[1] / seconds
        lines.append(
            f"{run['ranks']:7d} {len(run['hosts']):7d} {seconds:9.2f} {cpu:9.2f} {faster:8.2f}"
            f" {faster * first[0] / run['ranks']:11.0%} {moved:9.1f}"
            f"  {slowest['stage']} ({slowest['seconds'] / seconds:.0%})"
        )
    return "\n".join(lines)


def _read(record: Path) -> dict:
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{record}: cannot be read ({error}); remove it, and give the same command again")


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
