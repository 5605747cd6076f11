"""Run tools in one process that stays: what a run without a launcher does, less the second of its imports.

Tests that look at results use it; those that look at how a process starts, ends or dies start one.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
from pathlib import Path

import launch
import pytest

_server: subprocess.Popen | None = None


def run_tool(tool, *args, timeout=60, check=True) -> subprocess.CompletedProcess:
    """Run ``tool args`` in the process that stays; as :func:`launch.run_tool` without ranks."""
    server = _running()
    words = [tool, *map(str, args)]
    server.stdin.write(json.dumps(words) + "\n")
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
            [sys.executable, Path(__file__).with_name("warm_server.py")],
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
