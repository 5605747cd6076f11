"""Completion for shells and manual pages say what the tools declare, in what shells and man take."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from support import launch

from mpiimg.tools import completion, man, parsing
from mpiimg.tools.registry import tool, tool_names
from mpiimg.tools.surface import options
from mpiimg.tools.tool import Tool

EVERY = completion._tools()


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The completion for bash, as a file."""
    path = tmp_path_factory.mktemp("completion") / "mpiimg.bash"
    path.write_text(completion.bash(EVERY))
    return path


def completed(script, *words):
    """Return what bash offers for the last of some words."""
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _mpiimg; echo "${COMPREPLY[@]}"'
    return launch.run(["bash", "--norc", "-c", code, "bash", script, *words]).stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mpiimg", "ne"], ["neuro"]),
        (["mpiimg", "com"], ["completion"]),
        (["mpiimg-fit", "--met"], ["--method"]),
        (["mpiimg", "fit", "--met"], ["--method"]),
        (["mpiimg-fit", "--method", ""], ["iwls", "wls", "ols", "nlls", "restore"]),
        (["mpiimg-fit", "--method", "=", "n"], ["nlls"]),
        (["mpiimg-fit", "--method", "="], ["iwls", "wls", "ols", "nlls", "restore"]),
        (["/usr/bin/mpiimg-fit", "-q", "--me"], ["--memory", "--method"]),
        (["mpiimg-fit", "--b-max", ""], []),
        (["mpiimg-coadd", "--method"], []),
    ],
)
def test_bash_completes_tools_options_and_values(script, words, expected):
    assert sorted(completed(script, *words)) == sorted(expected)


def test_bash_completes_folders_where_an_option_takes_one(script, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "map.txt").touch()
    assert completed(script, "mpiimg-fit", "--out", f"{tmp_path}/m") == [f"{tmp_path}/maps"]


@pytest.mark.parametrize("name", tool_names())
def test_every_option_of_the_help_is_completed_in_every_shell_and_in_the_manual(name):
    word = name.removeprefix("mpiimg-")
    flags = [flag for one in options(tool(name)) for flag in one.flags]
    assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]+", parsing.usage(tool(name)))} <= {
        *flags,
        "--bvals",
        "--bvecs",
    }
    only = {word: EVERY[word]}
    page = man.page(tool(name)).replace("\\-", "-")
    bash, zsh, fish = (made(only) for made in completion.SHELLS.values())
    for flag in flags:
        kind, letters = ("l", flag[2:]) if flag.startswith("--") else ("s", flag[1:])
        assert f" -{kind} {letters} " in fish
        assert re.search(rf"'{flag}=?\[", zsh), flag
        assert re.search(rf"flags='.*{flag}", bash)
        assert f"\\fB{flag}\\fR" in page


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_read_its_completion(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "completion"
    path.write_text(completion.SHELLS[shell](EVERY))
    launch.run([shell, "-n", path])


def test_words_of_a_shell_in_a_help_text_are_no_commands(tmp_path):
    """$(...), backticks and quotes stay what they are."""
    bad = parsing.Parameter("bad", None, "It's `touch x` $(touch y); [a]: done.", metavar="FILE")
    evil = Tool("mpiimg-evil", "It's `touch z`.", (), (bad,), program=print, mpi=False)
    tools = {"evil": (evil, list(options(evil)))}
    path = tmp_path / "completion"
    path.write_text(completion.bash(tools))
    launch.run(["bash", "--norc", path], cwd=tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["completion"]
    assert "-d 'It\\'s `touch x` $(touch y); [a]: done'" in completion.fish(tools)
    assert "\\[a\\]\\: done]" in completion.zsh(tools)


def test_pages_are_what_man_takes(tmp_path):
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    for name, text in man.every_page():
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z", "-Tutf8"], input=text, capture_output=True, text=True, check=True
        )
        assert done.stderr == "", name


def test_a_page_shows_what_the_help_says():
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    page = man.page(tool("mpiimg-fit"))
    shown = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-cbou", "-rLL=500n"],
        input=page,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    plain = " ".join(shown.replace("\\-", "-").split())
    made = parsing.parser("mpiimg-fit")
    for action in made._actions:
        assert " ".join(action.help.replace("%%", "%").split()) in plain
    for text, command in tool("mpiimg-fit").examples:
        assert text in plain and command in plain


@pytest.mark.tool
def test_the_commands_write_them(tmp_path):
    done = launch.run_tool("mpiimg", "man", tmp_path / "man", ranks=2)
    assert done.stdout.count("pages in") == 1
    pages = {path.stem for path in (tmp_path / "man" / "man1").iterdir()}
    assert {"mpiimg", "mpiimg-completion", *tool_names()} <= pages
    assert launch.run_tool("mpiimg", "completion", "bash").stdout == completion.bash(EVERY) + "\n"
    done = launch.run_tool("mpiimg", "completion", "bsh", check=False)
    assert done.returncode == 2
    assert "did you mean bash?" in done.stderr
    done = launch.run_tool("mpiimg", "man", "/proc/none", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
