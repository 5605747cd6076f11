"""Ranks that start in milliseconds: each is forked from a process that has imported everything.

    zygote = Zygote(python, folder, environment)
    launch.run([*launch.mpiexec(3, python), *zygote.rank("support.lives", ...)])
    zygote.close()

A process that stays (:func:`serve`) imports the libraries, without starting
MPI, and listens on a socket. What the launcher starts as a rank is a small
program (:func:`rank`) that hands its environment and open files to a fork of that process,
passes signals on to it, and ends as it ends. So tests that need hundreds of
starts pay for the imports once; everything after the imports is as in any run.
Of this process also come the ranks that run tests (ranks.py), and the one that
runs tool after tool (warm.py).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys

#: Signals that a rank passes on.
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

#: Modules that the process imports ahead, where they are installed.
AHEAD = (
    "astropy.coordinates",
    "astropy.io.fits",
    "astropy.table",
    "astropy.wcs",
    "deflate",
    "dipy.core.gradients",
    "dipy.denoise.noise_estimate",
    "h5py",
    "isal.igzip",
    "isal.isal_zlib",
    "mpiimg.astro.pipelines",
    "mpiimg.engine.run",
    "mpiimg.functions.run",
    "mpiimg.neuro.pipelines",
    "mpiimg.tools.cli",
    "nibabel",
    "pytest",
    "scipy.ndimage",
    "scipy.spatial",
    "sep",
    "support.toy",
)


def rank(path: str, words: list[str]) -> None:
    """Be one rank: let the process at `path` fork, and end as the fork does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    # The launcher of the wheels' MPI talks to its ranks through an inherited descriptor.
    files = [0, 1, 2, *(int(os.environ[name]) for name in ("PMI_FD",) if name in os.environ)]
    os.umask(mask := os.umask(0))
    started = {"words": words, "environment": dict(os.environ), "folder": os.getcwd(), "mask": mask}
    started["files"] = files
    socket.send_fds(connection, [json.dumps(started).encode()], files)
    pid = int(connection.recv(64))

    def forward(number, frame):
        with contextlib.suppress(ProcessLookupError):  # it may have ended, or been killed, just now
            os.kill(pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    status = int(connection.recv(64) or -signal.SIGKILL)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(path: str) -> None:
    """Import everything and load the kernels, then fork for whoever connects."""
    import mpi4py

    mpi4py.rc.initialize = False
    from importlib import import_module

    for name in AHEAD:
        import_module(name)
    import_module("mpiimg.engine.precompile").compile_here(import_module("mpiimg.engine.plugins").kernels())
    gc.freeze()  # or collections in the ranks copy every page of this process
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    ranks: dict[int, Forked] = {}
    while True:
        files = [f for one in ranks.values() for f in (one.ended, one.connection) if f is not None]
        ready, _, _ = select.select([listener, sys.stdin, *files], [], [])
        if sys.stdin in ready:
            break
        if listener in ready:
            connection, _ = listener.accept()
            forked = _fork(connection, listener, ranks)
            ranks[forked.pid] = forked
        for one in [one for one in ranks.values() if one.ended in ready]:
            ranks.pop(one.pid).tell()
        for one in [one for one in ranks.values() if one.connection in ready]:
            one.kill()
    for one in ranks.values():
        one.kill()
        one.tell()


class Forked:
    """A rank that runs, and the connection to what stands for it under the launcher.

    No dataclass: every such stand-in reads this file, and would import what that takes.

    Parameters
    ----------
    pid : of the rank
    connection : None once nothing stands for it any more
    """

    def __init__(self, pid: int, connection: socket.socket | None):
        self.pid, self.connection = pid, connection
        #: Can be read when it has ended.
        self.ended = os.pidfd_open(pid)

    def kill(self) -> None:
        """Kill a rank whose stand-in is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.close()

    def tell(self) -> None:
        """Wait for its end and say how it ended."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.ended)
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.send(str(status).encode())
            self.close()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _fork(connection: socket.socket, listener: socket.socket, others: dict[int, Forked]) -> Forked:
    """Fork a rank, as its stand-in at the other end of the connection asks."""
    data, files, _, _ = socket.recv_fds(connection, 1 << 17, 8)
    pid = os.fork()
    if pid == 0:
        listener.close()
        connection.close()
        for other in others.values():
            other.close()
            os.close(other.ended)
        _leave(_be(json.loads(data), files))
    for file in files:
        os.close(file)
    connection.send(str(pid).encode())
    return Forked(pid, connection)


def _be(started: dict, files: list[int]) -> int:
    """Take over files, environment and folder of the starter, and run module.main(words)."""
    from importlib import import_module

    # Move what came out of the way of the numbers that are wanted.
    moved = [os.dup2(file, 200 + place) for place, file in enumerate(files)]
    for file, number in zip(moved, started["files"], strict=True):
        os.dup2(file, number)
    for file in {*files, *moved} - set(started["files"]):
        os.close(file)
    os.environ.clear()
    os.environ.update(started["environment"])
    os.chdir(started["folder"])
    os.umask(started["mask"])
    module, *words = started["words"]
    sys.argv = [module, *words]
    from mpi4py import MPI

    MPI.Init_thread()
    try:
        code = int(import_module(module).main(words) or 0)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    MPI.Finalize()
    return code


def _leave(code: int) -> None:
    """Exit as a program does, but for the objects of the interpreter: to free them copies all their pages.

    MPICH takes its leave of the launcher where the C library exits.
    """
    import ctypes

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).exit(code)


class Zygote:
    """The process that forks ranks for the MPI of one install."""

    def __init__(self, python: str, folder, environment: dict[str, str]):
        import subprocess

        self.python, self._path = python, str(folder / "zygote")
        tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        program = (
            f"import sys; sys.path.insert(0, {tests!r}); from support.zygote import serve; serve(sys.argv[1])"
        )
        self._process = subprocess.Popen(
            [python, "-c", program, self._path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the process that forks ranks did not come up")

    def rank(self, module: str, *words) -> list[str]:
        """Return the command of a rank that runs module.main(words)."""
        return [self.python, "-I", "-S", os.path.abspath(__file__), self._path, module, *map(str, words)]

    def close(self) -> None:
        """Let it end."""
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


if __name__ == "__main__":
    rank(sys.argv[1], sys.argv[2:])
