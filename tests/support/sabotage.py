"""Break a run from outside: what is put into a folder changes a function before the tool starts."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from pathlib import Path

from support import launch, warm

#: Calls `before` ahead of every call of the kernel that denoises a block.
IN_DENOISING = """
import os

def before(*arguments):
{body}

import mpiimg.neuro.kernels.nlmeans as module
original = module.nonlocal_means

def changed(*arguments):
    before(*arguments)
    return original(*arguments)

module.nonlocal_means = changed
names = "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"
rank = next((int(os.environ[name]) for name in names if name in os.environ), 0)
calls = 0
"""

#: The same ahead of every compression of a block of output.
IN_COMPRESSION = IN_DENOISING.replace("mpiimg.neuro.kernels.nlmeans", "mpiimg.neuro.images").replace(
    "nonlocal_means", "gzip_part"
)

#: Progress is told at every look, where it is told after ten seconds and less and less often.
PROGRESS_AT_ONCE = """
import mpiimg.engine.log.progress as module

module.FIRST = module.LAST = 0.0
"""


def install(folder: Path, body: str, where: str = IN_DENOISING) -> Path:
    """Write a module that makes `body` run there, and return `folder`."""
    folder.mkdir(parents=True)
    code = where.format(body=textwrap.indent(textwrap.dedent(body), "    "))
    (folder / "sabotaged.py").write_text(code)
    # Only the ranks load it, not their launcher, which may be a Python program too.
    guard = "import sys\nif any('mpiimg-' in word for word in sys.orig_argv[:3]):\n    import sabotaged\n"
    (folder / "sitecustomize.py").write_text(guard)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Return the environment that makes a program load what was written to `folder`."""
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def start(*words, sabotaged: Path, ranks=None, forked=True) -> subprocess.Popen:
    """Start a broken tool in a session of its own and return at once."""
    command = (
        warm.tool_command(*words, ranks=ranks, sabotaged=sabotaged)
        if forked
        else launch.tool_command(*words, ranks=ranks)
    )
    return subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=launch.environment(**environment(sabotaged)),
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen, patience: float = 120) -> None:
    """Return once `path` exists; fail if the process ends before."""
    deadline = time.monotonic() + patience
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            out, err = launch.kill_session(process)
            raise AssertionError(f"{path} did not appear:\n{out}\n{err}")
        time.sleep(0.01)


def finish(process: subprocess.Popen, patience: float) -> tuple[int, str]:
    """Return exit status and stderr, of a run that must end within `patience` seconds."""
    try:
        _, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        out, err = launch.kill_session(process)
        raise AssertionError(f"no end within {patience} s:\n{out}\n{err}") from None
    return process.returncode, err


def rank_processes(process: subprocess.Popen) -> list[int]:
    """Return the process ids of the ranks that a launcher started, or of the tool itself.

    Where ranks are forked, it is what stands for each under the launcher: they die with it.

    By descent: a launcher may put its ranks into sessions and groups of their own.
    """
    parents, ranks = {}, set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            words = (stat.parent / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if any(b"/bin/mpiimg-" in word or word.endswith(b"/zygote.py") for word in words[1:4]):
            ranks.add(int(stat.parent.name))

    def descends(pid):
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return sorted(pid for pid in ranks if descends(pid))


def kill(pids: list[int]) -> None:
    """Kill processes so that they cannot do anything about it."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
