"""Validators and readers that nobody here wrote, where tests/run.sh has installed them; and what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from support import launch

FOLDER = launch.REPOSITORY / "tests" / "conformance"

#: Seconds that a validator may take on a loaded machine.
PATIENCE = 120


def installed() -> Path:
    """Return the folder of what PyPI and the npm registry have; skip the test where it is not there."""
    folder = launch.REPOSITORY / (os.environ.get("CACHE") or ".cache") / "conformance"
    if not (folder / ".installed").exists():
        pytest.skip(f"NO VALIDATORS: {folder} is not there (tests/run.sh makes it), and nothing is validated")
    return folder


def program(name: str, package: str) -> str:
    """Return the path of a program of a Debian package; skip the test where it is not there."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"NO {name}: the Debian package {package} is not installed, and nothing is validated")
    return path


def said_by(*words, codes: Iterable[int] = (0,), **environment) -> str:
    """Return what a program prints."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


def python(*words) -> str:
    """Return what a Python program prints that uses what is installed."""
    return said_by(sys.executable, *words, codes=(0, 16), PYTHONPATH=installed() / "python")


def deno(script: Path, *words) -> str:
    """Return what a script prints in the Deno runtime, without a network."""
    folder = installed()
    runtime = folder / "python" / "bin" / "deno"
    return said_by(runtime, "run", "--allow-read", script, *words, DENO_DIR=folder / "deno", NO_COLOR=1)


def deno_in_browser(script: str, browser: str, *words) -> str:
    """Return what a script of tests/conformance prints that lets a browser look at pages."""
    folder = installed()
    # It is there that modules find each other.
    shutil.copy(FOLDER / script, folder)
    runtime = folder / "python" / "bin" / "deno"
    words = (runtime, "run", "--allow-all", folder / script, browser, *words)
    return said_by(*words, DENO_DIR=folder / "deno", NO_COLOR=1)


def bids_issues(dataset: Path) -> list[dict]:
    """Return what the BIDS validator finds in a dataset."""
    validator = installed() / "python" / "bin" / "bids-validator-deno"
    return json.loads(python(validator, "--format", "json", dataset))["issues"]["issues"]


def unexplained(found: Iterable[str], explained: Mapping[str, str]) -> list[str]:
    """Return what is found that no pattern of those explained is for; each of these must be for something."""
    found = list(found)
    needless = [one for one in explained if not any(re.fullmatch(one, text) for text in found)]
    assert not needless, f"explained, and not found: {needless}"
    return [text for text in found if not any(re.fullmatch(one, text) for one in explained)]
