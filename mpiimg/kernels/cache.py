"""Where compiled kernels are kept: a folder for each state of all that goes into them.

numba tells what it has kept of a function by the function's own file. A helper in another file, a flag or a
setting that has changed since it does not see, and hands out the old machine code in silence. So the folder
is ours to name:

    <home>/<CPU>-<digest of target, versions and settings>/<digest of sources>

A change of any source leads to another folder, in which nothing is compiled yet. A home is in
NUMBA_CACHE_DIR, where that is set; in `__pycache__` of the package, where an install leaves what it compiled;
and in the user's cache. Kernels are looked for in these up to the first that can be written, and kept there.
A home that somebody else may have written to is passed over (disk/trust.py). What is in a home belongs to one
package at one path.

The sources are those of all kernels of mpiimg, which are the files in its folders named `kernels`; and for a
function of another package, or of a file elsewhere in mpiimg, all of that package too. Of a file in no
package they are the files beside it. What a kernel calls of a third package is not seen.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import pickle
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import llvmlite
import numba
import numba.core.config
import numba.core.serialize
from numba.core.caching import _Cache
from numba.core.errors import NumbaWarning
from numba.misc.appdirs import AppDirs

from mpiimg.kernels.disk import kept, trust

#: Our own package.
OURS = Path(__file__).parents[1]

#: How many folders of earlier sources stay for each target, so that another commit and back compiles nothing.
MAX_OLD_FOLDERS = 3

#: Names of the files that this process has loaded or written.
used_files: set[str] = set()

#: Settings of numba that change what it compiles.
SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "LLVM_REFPRUNE_FLAGS",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
)


@dataclass(frozen=True)
class Home:
    """A place for the kernels of one package.

    Parameters
    ----------
    path : Path
        The folder.
    base : Path
        The uppermost folder above it that is for kernels alone.
    above : bool
        Whether the folders above that matter; see :func:`mpiimg.kernels.trust.distrust`.
    mode : int
        Permissions of the folders that are made.
    """

    path: Path
    base: Path
    above: bool = True
    mode: int = 0o700


@dataclass(frozen=True)
class Sources:
    """All files that a kernel may be made from, as they were when it was imported.

    Parameters
    ----------
    package : Path
        Folder of the package, or of the file.
    digest : str
        Of the names and contents of the files.
    """

    package: Path
    digest: str

    def homes(self) -> list[Home]:
        """Return the places that may hold these kernels, the first choice first."""
        name = f"{self.package.name}-{_digest(str(self.package))}"
        chosen, users = numba.core.config.CACHE_DIR, AppDirs("mpiimg", False).user_cache_dir
        homes = [Path(os.path.abspath(chosen))] if chosen else []
        # Without a home of the user the name begins with ~.
        homes += [Path(users) / "kernels"] if os.path.isabs(users) else []
        made = [Home(base / name, base) for base in homes]
        beside = self.package / "__pycache__" / "kernels"
        # Whose package it is lets everybody read what was compiled for all; who may change the folders above
        # our own has its code already.
        made.insert(bool(chosen), Home(beside, beside, self.package != OURS, 0o755))
        return made

    def folders(self) -> list[Path]:
        """Return the folders in which these kernels are looked for; they need not exist.

        The last one is where what is compiled is kept, if any can be written.
        """
        trusted = [self._in(home) for home in self.homes() if not self._problem(home)]
        first = next((number for number, folder in enumerate(trusted) if can_write(folder)), len(trusted))
        return trusted[: first + 1]

    def folder(self) -> Path:
        """Return the folder in which what is compiled is kept, if it can be; it need not exist."""
        return (self.folders() or [self._in(self.homes()[-1])])[-1]

    def problems(self) -> list[str]:
        """Say of each place that is passed over why somebody else may have written to it."""
        return list(filter(None, map(self._problem, self.homes())))

    def make_folder(self) -> Path:
        """Make the folder in which what is compiled is kept, and return it.

        Raises
        ------
        OSError
            It cannot be made, or somebody else made it.
        """
        folder = self.folder()
        home = next(home for home in self.homes() if home.path in folder.parents)
        if not folder.exists() and not self._problem(home):
            trust.make_folder(folder, home.base, home.mode)
            _remove_old(folder)
        if problem := self._problem(home):
            raise PermissionError(problem)
        return folder

    def _problem(self, home: Home) -> str:
        return trust.distrust(self._in(home), home.base, home.above)

    def _in(self, home: Home) -> Path:
        return home.path / _machine() / self.digest


def can_write(path: Path) -> bool:
    """Say whether there can be files in a folder, which need not exist."""
    existing = next(place for place in (path, *path.parents) if os.path.exists(place))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def ours() -> Sources:
    """Return the sources of mpiimg's kernels."""
    return _sources(OURS, "kernels")


def _of(function) -> Sources:
    """Return the sources of a function that has a file."""
    file = Path(os.path.abspath(inspect.getfile(function)))
    top = sys.modules.get(function.__module__.partition(".")[0])
    package = next((Path(path) for path in getattr(top, "__path__", ()) if file.is_relative_to(path)), None)
    if package is None:
        # A program or a file that was loaded by its path may be part of a package all the same.
        package = next(folder for folder in file.parents if not os.path.exists(folder.parent / "__init__.py"))
        if not os.path.exists(package / "__init__.py"):
            return _sources(package, "beside")
    if package == OURS and "kernels" in file.relative_to(OURS).parts[:-1]:
        return ours()
    return _sources(package, "all")


@functools.cache
def _sources(package: Path, which: str) -> Sources:
    """Return the sources of a package: "all", those of its "kernels", or those "beside" each other in it."""
    files = [(OURS, path) for path in OURS.rglob("*.py") if "kernels" in path.relative_to(OURS).parts[:-1]]
    if which != "kernels":
        files += [(package, path) for path in (package.glob if which == "beside" else package.rglob)("*.py")]
    return Sources(
        package, _digest([(str(path.relative_to(base)), _content(path)) for base, path in sorted(files)])
    )


def _content(path: Path) -> bytes:
    """Return what is in a file; nothing of one that nobody can import either."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


@functools.cache
def _stamp(file: str) -> str:
    return _digest(_content(Path(file)))


def _machine() -> str:
    """Return a name for all that is not in the sources: target, versions and settings."""
    from mpiimg.kernels import jit

    settings = tuple(str(getattr(numba.core.config, name, None)) for name in SETTINGS)
    return _machine_name(jit.cpu_target(), numba.core.config.CPU_FEATURES, settings)


@functools.cache
def _machine_name(cpu: str, pinned: str | None, settings: tuple[str, ...]) -> str:
    """Return the name for a CPU, of which other features than its own may be `pinned`."""
    from mpiimg.kernels import jit

    versions = (platform.python_version(), numba.__version__, llvmlite.__version__)
    return f"{cpu}-{_digest((jit.cpu_features(), settings, versions))}"


def _digest(state) -> str:
    return hashlib.sha256(state if isinstance(state, bytes) else repr(state).encode()).hexdigest()[:16]


def keep(dispatcher, function, flags: Mapping[str, object]) -> None:
    """Let numba keep what it compiles of `function` with `flags`; nothing is kept of one that has no file."""
    if os.path.exists(inspect.getfile(function)):
        dispatcher._cache = KernelCache(function, _digest(sorted(flags.items())))


#: The functions that were declared, to notice one that is declared again: its module was read anew.
_declared: set[tuple[str, str]] = set()


class KernelCache(_Cache):
    """What is kept of one function, in the folders of its sources; looked for when the function is called.

    Whatever goes wrong, the function is compiled: nothing that is or is not on disk ends a run.
    """

    def __init__(self, function, flags: str):
        file = inspect.getfile(function)
        if (file, function.__qualname__) in _declared:
            _declared.clear()
            _sources.cache_clear()
            _stamp.cache_clear()
        _declared.add((file, function.__qualname__))
        self._function = function
        self._place = (file, function.__code__.co_firstlineno, flags, _stamp(file))
        self._sources = _of(function)
        self.enable()

    @property
    def cache_path(self) -> str:
        """The folder in which what is compiled is kept."""
        return str(self._sources.folder())

    def load_overload(self, sig, target_context):
        """Return what is kept for a signature, or None."""
        target_context.refresh()
        name = self._file_name(sig, target_context.codegen()) if self._enabled else ""
        for folder in self._sources.folders() if name else ():
            with contextlib.suppress(OSError, kept.Damaged):
                content = kept.read(folder / name)
                # Whole, but of libraries that are others now: unpickling may then raise anything.
                with contextlib.suppress(Exception):
                    compiled = kept.unpacked(content, sig, target_context)
                    if compiled is not None:
                        used_files.add(name)
                        return compiled
        return None

    def save_overload(self, sig, data):
        """Keep what was compiled for a signature; where that fails, the next process compiles it again."""
        if self._enabled and self._may_be_kept(data) and (name := self._file_name(sig, data.codegen)):
            with contextlib.suppress(OSError, pickle.PicklingError, TypeError):
                kept.write(self._sources.make_folder() / name, kept.packed(sig, data), 0o644)
                used_files.add(name)

    def enable(self):
        """Use it."""
        self._enabled = True

    def disable(self):
        """Do not use it."""
        self._enabled = False

    def flush(self):
        """Forget what is kept, of all signatures."""
        for folder in self._sources.folders():
            for path in folder.glob(f"{self._stem()}-*{kept.ENDING}"):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _stem(self) -> str:
        """Return what the names of this function's files begin with: those of two functions differ."""
        module, name = self._function.__module__.rpartition(".")[2], self._function.__qualname__
        return f"{re.sub('[^A-Za-z0-9_.]', '', f'{module}.{name}')}-{_digest(self._place)}"

    def _file_name(self, sig, codegen) -> str:
        """Return the name of the file for a signature; empty where no two processes would find the same."""
        code = self._function.__code__.co_code
        closure = [cell.cell_contents for cell in self._function.__closure__ or ()]
        state = repr(
            (sig, codegen.magic_tuple(), code, [numba.core.serialize.dumps(closure)] * bool(closure))
        )
        return "" if " at 0x" in state else f"{self._stem()}-{_digest(state)}{kept.ENDING}"

    def _may_be_kept(self, compiled) -> bool:
        """Say whether what was compiled does not depend on this very process."""
        if any(not part.can_cache for part in compiled.lifted) or compiled.library.has_dynamic_globals:
            name = compiled.fndesc.qualname
            warnings.warn(f"{name}: compiled in every process", NumbaWarning, stacklevel=2)
            return False
        return True


def _remove_old(folder: Path) -> None:
    """Remove the folders beside `folder` but the newest :data:`MAX_OLD_FOLDERS`."""

    def written(path: Path) -> float:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    others = sorted((path for path in folder.parent.iterdir() if path != folder), key=written, reverse=True)
    for path in others[MAX_OLD_FOLDERS:]:
        shutil.rmtree(path, ignore_errors=True)
