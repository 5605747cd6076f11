"""What a rank of each pipeline takes before it holds any data, as a Markdown table.

    python benchmarks/baseline.py --ranks 4

runs both pipelines on data of a few megabytes, so that each rank has loaded every library and kernel that it
uses, and reads /proc/self/smaps_rollup at the end: resident memory, which counts shared libraries in every
rank; the proportional share (PSS), in which the ranks of a node divide them; and anonymous memory, which no
other rank shares. Other programs of the same install that run meanwhile make the shares smaller.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import whole

SHOWN = ("pss", "anonymous", "resident")


def smaps() -> dict[str, int]:
    """Return the bytes of this process's resident, proportional and anonymous memory."""
    names = {"Rss:": "resident", "Pss:": "pss", "Anonymous:": "anonymous"}
    with open("/proc/self/smaps_rollup") as lines:
        fields = (line.split() for line in lines)
        return {names[words[0]]: int(words[1]) << 10 for words in fields if words[0] in names}


def rank(words: list[str]) -> None:
    """Run a tool as one of its ranks, and print what each of them takes at its end as JSON."""
    from mpi4py import MPI

    from mpiimg.tools import cli

    if cli.main(words[0], words[1:]):
        raise SystemExit(f"{words[0]} failed")
    MPI.COMM_WORLD.Barrier()  # all must be there while each counts what it shares with the others
    every = MPI.COMM_WORLD.gather(smaps())
    if every:
        print(json.dumps(every))


def measure(ranks: int, *words) -> list[dict[str, int]]:
    """Return what each rank of a run of a tool takes."""
    here = Path(sys.executable).parent
    launcher = shutil.which("mpiexec", path=str(here)) or "mpiexec"
    command = [launcher, "-n", ranks, sys.executable, __file__, "--rank", *words, "--quiet"]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, every: list[dict[str, int]]) -> str:
    """Return a line of the table: the middle rank, and the largest in brackets."""
    columns = []
    for key in SHOWN:
        values = sorted(one[key] / 2**20 for one in every)
        columns.append(f"{values[len(values) // 2]:.0f} ({values[-1]:.0f})")
    return f"| {name} | {' | '.join(columns)} |"


def main() -> None:
    """Simulate, run and report."""
    if sys.argv[1:2] == ["--rank"]:
        return rank(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mpiimg-baseline-"))
    try:
        size = ("--shape", "24x28x20", "--volumes", 12)
        whole.launch(1, "mpiimg-simulate", "neuro", *size, "--out", folder / "head", "--quiet")
        size = ("--shape", "300x320", "--visits", 3, "--sensors", 1)
        whole.launch(1, "mpiimg-simulate", "astro", *size, "--out", folder / "sky", "--quiet")
        head, sky = folder / "head" / "dwi", sorted((folder / "sky").glob("*.fits"))
        subject = (f"{head}.nii.gz", "--bvals", f"{head}.bval", "--bvecs", f"{head}.bvec")
        print(
            f"| {given.ranks} ranks, MB: middle (largest) | PSS | anonymous | resident |\n|---|---|---|---|"
        )
        print(row("neuro", measure(given.ranks, "mpiimg-neuro", *subject, "--out", folder / "maps")))
        print(row("astro", measure(given.ranks, "mpiimg-astro", *sky, "--out", folder / "survey")))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
