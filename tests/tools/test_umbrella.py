"""mpiimg TOOL is mpiimg-TOOL, under a launcher too; what is no tool is answered by those there are."""

from __future__ import annotations

import re
import sys

import pytest
from support import launch

import mpiimg
from mpiimg.tools import umbrella
from mpiimg.tools.registry import tool_names


def chosen(*words):
    """Return the tool that words are for, and what is left of them."""
    left = list(words)
    return umbrella.chosen(left), left


def test_a_word_chooses_the_tool_and_the_rest_is_its():
    assert chosen("neuro", "dwi.nii.gz", "--out", "maps") == ("mpiimg-neuro", ["dwi.nii.gz", "--out", "maps"])
    assert chosen("mpiimg-fit") == ("mpiimg-fit", [])
    assert chosen("help", "fit") == ("mpiimg-fit", ["--help"])


@pytest.fixture(scope="module")
def overview():
    return umbrella.overview()


@pytest.mark.parametrize("name", tool_names())
def test_every_tool_is_listed_and_chosen(name, overview):
    word = name.removeprefix("mpiimg-")
    assert chosen(word) == (name, [])
    assert re.findall(rf"^  {word} ", overview, re.M) == [f"  {word} "]


def test_tools_are_listed_by_subject():
    subjects = umbrella.subjects()
    assert [one.name for one in subjects["Diffusion MRI"]][:2] == ["mpiimg-neuro", "mpiimg-denoise"]
    assert {"mpiimg-astro", "mpiimg-warp"} <= {one.name for one in subjects["Sky surveys"]}
    assert {"mpiimg-status", "mpiimg-doctor"} <= {one.name for one in subjects["Runs and installs"]}
    # What no domain has stands under words that say what it is for.
    assert all(subject and subject[0].isupper() for subject in subjects)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nuero"], "nuero: there is no such tool; did you mean neuro?"),
        (["denois"], "denois: there is no such tool; did you mean denoise?"),
        (["--out", "maps"], "--out: name a tool before its options, as in mpiimg neuro --out"),
        (["mine.py"], "mine.py: there is no such tool; write mpiimg run mine.py"),
        (["zzzz"], "zzzz: there is no such tool; see mpiimg --help"),
        (["a\x1b[2J"], "a\\x1b[2J: there is no such tool"),
    ],
)
def test_what_is_no_tool_is_answered_in_a_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        umbrella.chosen(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"mpiimg: error: {said}")


def test_without_a_word_there_is_the_list_and_no_success(capsys):
    with pytest.raises(SystemExit) as ended:
        umbrella.chosen([])
    assert ended.value.code == 2
    assert "Diffusion MRI:" in capsys.readouterr().err


@pytest.mark.tool
def test_the_program_and_the_module_run_tools_alone_and_as_ranks(tmp_path):
    version = f"mpiimg {mpiimg.__version__}\n"
    assert launch.run_tool("mpiimg", "--version").stdout == version
    assert launch.run([sys.executable, "-m", "mpiimg", "fit", "--version"]).stdout == version
    listed = launch.run_tool("mpiimg", "--help", ranks=2).stdout
    assert listed.count("usage:") == 1
    done = launch.run_tool("mpiimg", "status", tmp_path / "none", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mpiimg: error: ")
    done = launch.run_tool("mpiimg", "nuero", "dwi.nii.gz", ranks=2, check=False)
    assert done.returncode == 2
    assert done.stderr.count("did you mean neuro?") == 1


@pytest.mark.tool
def test_a_run_is_the_one_of_the_program_of_the_tool(tmp_path):
    words = ("--shape", "8x8x8", "--volumes", "7", "--out", tmp_path / "out", "--plan", "--memory", "2G")
    done = launch.run_tool("mpiimg", "simulate", "neuro", *words)
    assert done.stdout == launch.run_tool("mpiimg-simulate", "neuro", *words).stdout
