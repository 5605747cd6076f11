"""Run tools without the second that each process takes for its imports.

All is forked from a process that has imported everything (zygote.py): each rank, and the one process that
does all runs without a launcher, in turn. Tests that look at results use this; those that look at how
processes start, end or die, or at the memory of one, start theirs.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from support import launch
from support.zygote import Zygote

_server: subprocess.Popen | None = None


def run_tool(
    tool, *args, ranks=None, python=None, cwd=None, sabotaged=None, timeout=60, check=True
) -> subprocess.CompletedProcess:
    """Run ``tool args``; as :func:`launch.run_tool`, or broken by what :func:`sabotage.install` wrote."""
    if (ranks, python, sabotaged) == (None, None, None):
        return _in_server(tool, *args, timeout=timeout, check=check, cwd=cwd)
    command = tool_command(tool, *args, ranks=ranks, python=python, sabotaged=sabotaged)
    return launch.run(command, timeout=timeout, check=check, cwd=cwd)


def tool_command(tool, *args, ranks=None, python=None, sabotaged=None) -> list[str]:
    """Return the command that runs a tool in ranks that are forked; as :func:`launch.tool_command`."""
    python = python or sys.executable
    launcher = launch.mpiexec(ranks, python) if ranks else []
    broken = ["--sabotaged", sabotaged] if sabotaged else []
    return [*launcher, *zygote(python).rank("support.tool", *broken, tool, *args)]


@cache
def zygote(python: str) -> Zygote:
    """Return what forks the ranks of an install; it stays until the tests end."""
    folder = tempfile.TemporaryDirectory(prefix="zygote-")
    environment = launch.environment(PYTHONPATH=str(launch.REPOSITORY / "tests"))
    made = Zygote(python, Path(folder.name), environment)
    atexit.register(folder.cleanup)
    atexit.register(made.close)
    return made


def _in_server(tool, *args, timeout, check, cwd) -> subprocess.CompletedProcess:
    server = _running()
    words = [tool, *map(str, args)]
    server.stdin.write(json.dumps([str(cwd or Path.cwd()), *words]) + "\n")
    server.stdin.flush()
    readable, _, _ = select.select([server.stdout], [], [], timeout)
    answer = server.stdout.readline() if readable else ""
    if not answer:
        _stop()
        pytest.fail(f"{'no end within the time' if not readable else 'the process died'}: {words}")
    status, out, err = json.loads(answer)
    if check and status != 0:
        pytest.fail(f"exit code {status}\n$ {' '.join(words)}\n--- stdout\n{out}\n--- stderr\n{err}")
    return subprocess.CompletedProcess(words, status, out, err)


def _running() -> subprocess.Popen:
    global _server
    if _server is None or _server.poll() is not None:
        _server = subprocess.Popen(
            zygote(sys.executable).rank("support.warm_server"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=launch.environment(),
            start_new_session=True,
        )
        atexit.register(_stop)
    return _server


def _stop() -> None:
    global _server
    if _server is not None:
        launch.kill_session(_server)
        _server = None
