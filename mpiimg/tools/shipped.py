"""mpiimg-slurm and mpiimg-docs: files that an install has beside the package, for a folder of the user's."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.mpi.runtime import put, refused
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, Exit

#: Where setup.py puts them, below the prefix of the environment.
PLACE = "share/mpiimg"


def slurm(values: Mapping[str, Any], comm) -> int:
    """Print where the batch scripts are, or copy them: mpiimg-slurm. Returns the exit status."""
    return _answer("slurm", values["copy"])


def docs(values: Mapping[str, Any], comm) -> int:
    """Print where documents and examples are, or copy them: mpiimg-docs. Returns the exit status."""
    return _answer("docs", values["copy"])


def _answer(name: str, target: str | None) -> int:
    try:
        folder = find(name)
        if target is None:
            put(str(folder), sys.stdout)
            return Exit.DONE
        copy = copy_to(folder, Path(target) / name)
    except BadInput as error:
        return refused(error)
    except OSError as error:
        return refused(BadInput(f"{shown(error.filename or target)}: {error.strerror}"))
    put(f"copied to {copy}", sys.stdout)
    if name == "slurm":
        put(f"next: cd {target}; look at slurm/env.sh; sbatch slurm/neuro.sbatch ...", sys.stdout)
    return Exit.DONE


def find(name: str) -> Path:
    """Return the folder `name` of the checkout, or of the install that the package belongs to.

    Raises
    ------
    BadInput
        There is none.
    """
    import mpiimg

    package = Path(mpiimg.__file__).parent
    beside = package.parent / name
    if (package.parent / "pyproject.toml").is_file() and beside.is_dir():
        return beside
    # The record of an install names every file, but does not know of pip's --target.
    recorded = (path for path in importlib.metadata.files("mpiimg") or () if f"{PLACE}/{name}/" in str(path))
    places = [package.parent / PLACE / name]
    for path in recorded:
        depth = str(path).split(f"{PLACE}/{name}/")[1].count("/")
        places.append(Path(path.locate()).resolve().parents[depth])
        break
    for folder in places:
        if folder.is_dir():
            return folder
    raise BadInput(f"this install of mpiimg has no folder {PLACE}/{name}: install it again from its wheel")


def copy_to(folder: Path, target: Path) -> Path:
    """Copy a folder; in a copy of the batch scripts, write which install runs them. Return `target`.

    Raises
    ------
    BadInput
        There is something already.
    """
    if target.exists():
        raise BadInput(f"{shown(target)} is there already, and is not overwritten: name another folder")
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"))
    settings = target / "env.sh"
    if settings.is_file() and not (folder.parent / "pyproject.toml").is_file():
        ours = f"MPIIMG_VENV=${{MPIIMG_VENV:-{sys.prefix}}}\n"
        text = settings.read_text()
        settings.write_text(re.sub(r"^# The install to run", lambda found: ours + found[0], text, flags=re.M))
    return target
