"""Code on the pages runs, and every command on them is one that the tools take."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys

import pytest
from support import launch, warm

import mpiimg as mi
from mpiimg.tools import cli

ROOT = launch.REPOSITORY
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "tutorials").glob("*.md"))]

#: Which test runs the Python of a page, or compares it with the code that it is taken from.
RUN_BY = {
    "README.md": "tests/tools/test_pages_run.py",  # with functions that take the place of the reader's
    "architecture.md": "tests/tools/test_docs.py",
    "commands.md": "tests/arrays/test_pages.py",
    "domain.md": "tests/tools/test_third_domain.py",
    "formats.md": "tests/formats/test_own_format.py",
    "operations.md": "tests/arrays/test_operations.py",
    "primitives.md": "tests/arrays/test_primitives_page.py",
    "simulate.md": "tests/tools/test_pages_run.py",
    "simulate-astro.md": "tests/tools/test_pages_run.py",
    "tables.md": "tests/arrays/test_pages.py",
    "udf.md": "tests/tools/test_pages_run.py",
    **{f"{name}.md": "tests/tools/test_tutorials.py" for name in ("astro", "dask", "neuro", "pipeline")},
}

#: A command of ours, alone or started by a launcher, or the batch script of one.
COMMAND = re.compile(
    r"(?:\w+=\S* )*(?:\S*mpiexec -n \S+ |srun .*?|sbatch .*?)?(?:\S*/)?mpiimg[- ](\w+)\b(?!\.)(.*)"
)

#: What ends a command, for a shell.
ENDS = {"&&", "||", ";", "|", ">"}


def python_of(path):
    """Return the blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)


def commands_on(page):
    """Return the commands of ours that a page shows in lines of their own, as tools and words."""
    text = page.read_text()
    lines = [
        line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in block.split("\n")
    ]
    lines += re.findall(r"^ {4}(\S.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    found = []
    for line in lines:
        called = COMMAND.fullmatch(line)
        if called and "..." not in line and called[1] != "completion":
            words = shlex.split(called[2], comments=True)
            end = next((n for n, word in enumerate(words) if word in ENDS), len(words))
            found.append((line, f"mpiimg-{called[1]}", words[:end]))
    return found


def test_every_command_on_a_page_is_taken(tmp_path, monkeypatch):
    """Also those that need a cluster, or hours: options, their values and places are looked at."""
    (tmp_path / "study").mkdir()
    (tmp_path / "neuro.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    shown, refused = 0, []
    for page in PAGES:
        for line, tool, words in commands_on(page):
            shown += 1
            said = io.StringIO()
            try:
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                    cli.parser(tool).parse_args(words)
            except SystemExit as end:
                if end.code:
                    refused.append((page.name, line, said.getvalue()))
    assert refused == []
    assert shown > 50


def test_the_python_of_every_page_is_run():
    pages = {page.name: page for page in PAGES if python_of(page)}
    assert set(pages) == set(RUN_BY)
    unnamed = {
        name: test
        for name, test in RUN_BY.items()
        if test != "tests/tools/test_tutorials.py" and name not in (ROOT / test).read_text()
    }
    assert unnamed == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small head, under the names that pages give to images."""
    folder = tmp_path_factory.mktemp("pages")
    warm.run_tool("mpiimg-simulate", "neuro", "--shape", "20x22x16", "--volumes", "8", "--out", folder)
    (folder / "in.nii.gz").write_bytes((folder / "dwi.nii.gz").read_bytes())
    return folder


def test_the_page_on_functions(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(DOCS / "examples")])
    names = {"__name__": "page"}
    for code in python_of(DOCS / "udf.md"):
        exec(compile(code, "udf.md", "exec"), names)
    assert (folder / "out.nii.gz").exists()
    assert (folder / "all" / "dwi_model-tensor_param-fa_dwimap.nii.gz").exists()


def test_the_readme(folder, tmp_path, monkeypatch):
    """Its functions are those of the reader: here the simplest of their kind."""
    (tmp_path / "dwi.nii.gz").symlink_to(folder / "dwi.nii.gz")
    monkeypatch.chdir(tmp_path)
    (code,) = python_of(ROOT / "README.md")
    given = {
        "brain": lambda block: block > block.mean(),
        "denoise": lambda block, mask: block * mask,
        "fit": lambda block, mask: (block.mean(-1), block.std(-1)),
    }
    with mi.session(tmp_path / "session"):
        exec(compile(code, "README.md", "exec"), given)
    assert (tmp_path / "maps" / "fa.nii.gz").exists()


def test_the_pages_on_simulated_data():
    """Smaller than on the page, where the size of a real instrument stands."""
    sizes = {"(145, 174, 145)": "(12, 14, 145)", "(4000, 4072)": "(200, 220)"}
    names = {"__name__": "page"}
    for page in ("simulate.md", "simulate-astro.md"):
        for code in python_of(DOCS / page):
            for large, small in sizes.items():
                code = code.replace(large, small)
            exec(compile(code, page, "exec"), names)
    assert names["frame"].image.shape == (200, 220)
    assert names["subject"].volume(17, 72, 73).shape == (1, 14, 12)
