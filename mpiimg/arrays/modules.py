"""What a module is known by: the bytes of a local file and of what it imports, or an installed version.

A module is local if its file is neither of Python nor of an installed distribution: a file beside a script,
a package installed in place (pip install -e), a compiled .so of one's own. Nothing is imported here.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.arrays.bytecode import Import
from mpiimg.version import __version__

#: First names of modules that come with Python.
_PYTHON_NAMES = sys.stdlib_module_names | set(sys.builtin_module_names)


@dataclass(frozen=True)
class Place:
    """Where a module lies.

    Parameters
    ----------
    name : str
    file : str, optional
        None for what is built into Python, and for a folder without a file of its own.
    folders : tuple of str
        Where its submodules are looked for; a package has them.
    """

    name: str
    file: str | None
    folders: tuple[str, ...] = ()

    @property
    def is_of_python(self) -> bool:
        """Whether it comes with Python."""
        if self.file is None:
            return not self.folders and self.name.partition(".")[0] in _PYTHON_NAMES
        return not _is_installed(self.file) and _within(self.file, _python_folders())

    @property
    def is_made_here(self) -> bool:
        """Whether it was made in this process, of no file."""
        return self.file is None and not self.folders and not self.is_of_python

    @property
    def distribution(self) -> tuple[str, str] | None:
        """Name and version of the distribution that it was installed with, if any."""
        if self.name.partition(".")[0] == "mpiimg":
            return "mpiimg", __version__
        if self.file is None or not _is_installed(self.file):
            return None
        return _distribution(self.name.partition(".")[0])

    @property
    def is_local(self) -> bool:
        return not self.is_of_python and self.distribution is None


def place_of(name: str) -> Place | None:
    """Return where a module lies, without importing it; None if there is none of this name."""
    module = sys.modules.get(name)
    if module is not None:
        return Place(name, getattr(module, "__file__", None), _folders(getattr(module, "__path__", None)))
    return _found(name)


def _found(name: str) -> Place | None:
    """Return where the finders of this interpreter find a module; None where none does."""
    above, dot, _ = name.rpartition(".")
    folders = None
    if dot:
        package = place_of(above)
        if package is None or not package.folders:
            return None
        folders = list(package.folders)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, folders, None)
        except Exception:  # finders are anybody's
            continue
        if spec is not None:
            file = spec.origin if spec.has_location else None
            return Place(name, file, _folders(spec.submodule_search_locations))
    return None


def can_be_found(name: str, file: str | None) -> bool:
    """Say whether an interpreter with this one's sys.path would import the same file under this name."""
    place = _found(name)
    return place is not None and file is not None and place.file is not None and _same(place.file, file)


def _same(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def is_own_file(path: str) -> bool:
    """Say whether code in a file is the user's: neither of Python, nor installed, nor ours."""
    if path.startswith("<frozen "):
        return False
    ours = str(Path(__file__).parents[1]) + os.sep
    return not (_is_installed(path) or _within(path, (*_python_folders(), ours)))


def _folders(paths) -> tuple[str, ...]:
    try:
        return tuple(str(path) for path in paths or ())
    except TypeError:
        return ()


def described(name: str) -> tuple[tuple[str, str], ...]:
    """Return what a module and all local modules that it imports are known by, in order of their names.

    Parameters
    ----------
    name : str

    Returns
    -------
    tuple of (str, str)
        A local module and the SHA-256 of its file, or a distribution and its version.
    """
    facts, waiting = {}, [name]
    while waiting:
        one = waiting.pop()
        if one in facts:
            continue
        place = place_of(one)
        if place is None:
            facts[one] = "missing"
        elif not place.is_of_python:
            if (distribution := place.distribution) is not None:
                facts[distribution[0]] = distribution[1]
            elif place.file is None:
                facts[one] = "no file"
            else:
                facts[one] = file_digest(place.file)
                waiting += _imported(place)
    return tuple(sorted(facts.items()))


#: Of modules that are loaded: what they were loaded from, and the digest of their file when first looked at.
_seen: dict[str, tuple[Any, str]] = {}


def is_stale(name: str) -> bool:
    """Say whether the file of a module was changed after this process loaded it, as far as can be seen."""
    module = sys.modules.get(name)
    file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    if file is None or spec is None or not file.endswith(".py"):
        return False
    digest = file_digest(file)
    loaded, first = _seen.setdefault(name, (spec, digest))
    if loaded is not spec:  # it was loaded anew since
        _seen[name], first = (spec, digest), digest
    return digest != first or _is_older(getattr(spec, "cached", None), file)


def _is_older(compiled: str | None, source: str) -> bool:
    """Say whether Python compiled another text than a file has now; it notes the time of that text."""
    with contextlib.suppress(OSError, TypeError):
        with open(compiled, "rb") as file:
            head = file.read(16)
        by_time = len(head) == 16 and head[4:8] == bytes(4)
        return by_time and int.from_bytes(head[8:12], "little") != int(os.stat(source).st_mtime) & 0xFFFFFFFF
    return False


def resolved(statement: Import, package: str) -> Iterator[str]:
    """Yield the modules that an import statement may load: the named one, and what of its names is one."""
    name = statement.name
    if statement.level:
        parts = package.split(".")
        above = parts[: len(parts) - statement.level + 1]
        if not package or not above:
            return
        name = ".".join([*above, *filter(None, [name])])
    parts = name.split(".")
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))
    place = place_of(name)
    if place is not None and place.is_local and place.folders:
        for one in statement.names:
            if one != "*" and place_of(f"{name}.{one}") is not None:
                yield f"{name}.{one}"


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file; "missing" if it cannot be read."""
    try:
        status = os.stat(path)
        return _digest_of_file(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return "missing"


@functools.lru_cache(maxsize=4096)
def _digest_of_file(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _imported(place: Place) -> list[str]:
    """Return the modules that a local module imports anywhere in its file."""
    if not place.file.endswith(".py"):
        return []
    package = place.name if place.folders else place.name.rpartition(".")[0]
    statements = _statements(place.file, file_digest(place.file))
    return [name for statement in statements for name in resolved(statement, package)]


@functools.lru_cache(maxsize=1024)
def _statements(path: str, digest: str) -> tuple[Import, ...]:
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(Import(node.module or "", node.level, tuple(alias.name for alias in node.names)))
    return tuple(found)


def is_local(kind: type | object) -> bool:
    """Say whether a class or a function is the user's: of a local module, a script or a notebook."""
    return is_local_module(module_of(kind))


def module_of(one: Any) -> str:
    """Return the name of the module of a class or a function.

    The class of functions that Cython compiles has no name there, but what gives it to these functions.
    """
    name = getattr(one, "__module__", None) or "__main__"
    return name if isinstance(name, str) else "builtins"


def is_local_module(name: str) -> bool:
    """Say whether a module is the user's own."""
    if name == "__main__":
        return True
    if name.partition(".")[0] in ("builtins", "mpiimg"):
        return False
    return _is_local_place(name, getattr(sys.modules.get(name), "__file__", None))


@functools.lru_cache(maxsize=4096)
def _is_local_place(name: str, file: str | None) -> bool:
    place = place_of(name)
    # A module that no finder knows was made in this process.
    return place is None or place.is_local


def _within(path: str, folders: tuple[str, ...]) -> bool:
    return os.path.realpath(path).startswith(folders)


def _is_installed(path: str) -> bool:
    return _within(path, _installed_folders()) or "/dist-packages/" in path


@functools.cache
def _python_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib")
    return tuple(os.path.join(os.path.realpath(sysconfig.get_path(name)), "") for name in names)


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        paths.append(site.getusersitepackages())
    return tuple({os.path.join(os.path.realpath(path), "") for path in paths})


@functools.cache
def _distribution(top: str) -> tuple[str, str] | None:
    """Return name and version of the distribution that brings a top-level module."""
    try:
        return top, importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        names = _names_of_distributions().get(top)
        return (names[0], importlib.metadata.version(names[0])) if names else None


@functools.cache
def _names_of_distributions() -> dict[str, list[str]]:
    return {top: sorted(names) for top, names in importlib.metadata.packages_distributions().items()}
