"""Run the Python of a page of the docs section by section, as a reader would, and look at what comes of it.

A section begins with a heading of second level. What stands before the first is run before each of them.
Blocks of a section share a namespace, in which the test's own code then says what must hold. All sections
run in one job, so that Python, MPI and libraries start once; one that fails does not keep the others from
running, since errors are raised on all ranks together.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from pathlib import Path


def sections(page: Path) -> dict[str, str]:
    """Return the code of each section of a page by its heading; that before the first heading by "".

    Other languages than Python are left out.
    """
    parts = re.split(r"^## (.*)\n", page.read_text(), flags=re.M)
    texts = dict(zip(["", *parts[1::2]], parts[0::2], strict=True))
    return {
        heading: "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
        for heading, text in texts.items()
    }


def run(
    page: Path, folder: Path, checks: dict[str, str], *, before: str = "", ranks: int | None = 2, timeout=300
):
    """Run the sections that `checks` names in `folder`.

    Parameters
    ----------
    page : Path
    folder : Path
    checks : dict of str to str
        By heading, the code to run after that of the section; it may use what `before` defines.
    before : str
        Code to run first, for the checks alone.
    ranks : int, optional
        Without it, no launcher.

    Returns
    -------
    dict of str to str
        By heading, "" or the traceback of the first rank in which something went wrong.
    """
    from support import launch

    code = sections(page)
    task = {"before": before, "preamble": code[""], "sections": {}}
    for heading, check in checks.items():
        task["sections"][heading] = [code[heading], check]
    (folder / "task.json").write_text(json.dumps(task))
    launcher = launch.mpiexec(ranks) if ranks else []
    launch.run(
        [*launcher, sys.executable, __file__, folder],
        timeout=timeout,
        cwd=folder,
        env={"PYTHONPATH": str(launch.REPOSITORY)},
    )
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("report-*.json"))]
    return {
        heading: next((report[heading] for report in reports if report[heading]), "") for heading in checks
    }


def main(folder: Path) -> None:
    """Be one of the ranks."""
    from mpi4py import MPI

    task, report = json.loads((folder / "task.json").read_text()), {}
    known: dict = {}
    exec(compile(task["before"], "<before>", "exec"), known)
    for heading, (code, check) in task["sections"].items():
        names = {"__name__": "page"}
        try:
            exec(compile(f"{task['preamble']}\n{code}", f"<{heading}>", "exec"), names)
            exec(compile(check, f"<check of {heading}>", "exec"), {**known, **names})
            report[heading] = ""
        except BaseException:
            report[heading] = traceback.format_exc()
    (folder / f"report-{MPI.COMM_WORLD.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
