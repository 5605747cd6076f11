"""Where compiled kernels are kept: a folder for each state of all that goes into them.

numba tells what it has kept of a function by the function's own file. A helper in another file, a flag or a
setting that has changed since it does not see, and hands out the old machine code in silence. So the folder
is ours to name:

    <home>/<CPU>-<digest of target, versions and settings>/<digest of sources>

A change of any source leads to another folder, in which nothing is compiled yet. `home` is the first of these
that can be written: in NUMBA_CACHE_DIR, where that is set; in `__pycache__` of the package; in the user's
cache. What is in a home belongs to one package at one path. A function's flags are in the names of its files.

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
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import llvmlite
import numba
import numba.core.config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _Cache, _CacheLocator
from numba.misc.appdirs import AppDirs

#: Our own package.
OURS = Path(__file__).parents[1]

#: How many folders of earlier sources stay for each target, so that another commit and back compiles nothing.
MAX_OLD_FOLDERS = 3

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

    def homes(self) -> list[Path]:
        """Return the folders that may hold those of these kernels, the first choice first."""
        name = f"{self.package.name}-{_digest(str(self.package))}"
        chosen = numba.core.config.CACHE_DIR
        return [
            *([Path(chosen) / name] if chosen else []),
            self.package / "__pycache__" / "kernels",
            Path(AppDirs(appname="numba", appauthor=False).user_cache_dir) / name,
        ]

    def folder(self) -> Path:
        """Return the folder of these kernels for the present target; it need not exist."""
        homes = self.homes()
        return next(filter(can_write, homes), homes[-1]) / _machine() / self.digest


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
    """numba's cache of one function, in the folder of its sources; looked for when the function is called."""

    def __init__(self, function, flags: str):
        file = inspect.getfile(function)
        if (file, function.__qualname__) in _declared:
            _declared.clear()
            _sources.cache_clear()
            _stamp.cache_clear()
        _declared.add((file, function.__qualname__))
        self._function, self._flags = function, flags
        self._sources, self._stamp = _of(function), _stamp(file)
        self.enable()

    @property
    def cache_path(self) -> str:
        """The folder."""
        return str(self._sources.folder())

    def load_overload(self, sig, target_context):
        """Return what is kept for a signature, or None."""
        if self._enabled:
            with contextlib.suppress(OSError):
                return self._located().load_overload(sig, target_context)
        return None

    def save_overload(self, sig, data):
        """Keep what was compiled for a signature; where that fails, the next process compiles it again."""
        if self._enabled:
            with contextlib.suppress(OSError):
                self._located().save_overload(sig, data)

    def enable(self):
        """Use it."""
        self._enabled = True

    def disable(self):
        """Do not use it."""
        self._enabled = False

    def flush(self):
        """Forget what is kept."""
        self._located().flush()

    def _located(self) -> FunctionCache:
        return _Located(self._function, _Locator(self._function, self.cache_path, self._stamp, self._flags))


class _Located(FunctionCache):
    def __init__(self, function, locator: _Locator):
        self._impl_class = functools.partial(_Implementation, locator=locator)
        super().__init__(function)


class _Implementation(CompileResultCacheImpl):
    def __init__(self, function, locator: _Locator):
        # numba asks each of these whether it knows where to keep a function.
        self._locator_classes = [locator]
        super().__init__(function)


class _Locator(_CacheLocator):
    """What numba asks for the place of one function."""

    def __init__(self, function, folder: str, stamp: str, flags: str):
        self._py_file = inspect.getfile(function)
        self._line = function.__code__.co_firstlineno
        self._folder, self._stamp, self._flags = folder, stamp, flags

    def from_function(self, py_func, py_file):
        """Return this: it was made for that function."""
        return self

    def get_cache_path(self):
        """Return the folder."""
        return self._folder

    def get_source_stamp(self):
        """Return a digest of the function's own file, as it was when it was imported."""
        return self._stamp

    def get_disambiguator(self):
        """Return what the file names of two functions of one name differ in."""
        return f"{self._line}-{self._flags}"

    def ensure_cache_path(self):
        """Make the folder; a new one takes the place of the oldest."""
        folder = Path(self._folder)
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _remove_old(folder)


def _remove_old(folder: Path) -> None:
    """Remove the folders beside `folder` but the newest :data:`MAX_OLD_FOLDERS`."""

    def written(path: Path) -> float:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    others = sorted((path for path in folder.parent.iterdir() if path != folder), key=written, reverse=True)
    for path in others[MAX_OLD_FOLDERS:]:
        shutil.rmtree(path, ignore_errors=True)
