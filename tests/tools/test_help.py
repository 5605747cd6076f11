"""Help texts are sentences with a subject, whatever tool says them."""

from __future__ import annotations

import re
import shlex

import pytest

from mpiimg.errors import Exit
from mpiimg.tools.parsing import parser
from mpiimg.tools.registry import tool, tool_names

#: How a help text must not begin: it would have no subject.
NO_SUBJECT = re.compile(r"(of|as|what)\b", re.IGNORECASE)


def texts(name: str) -> list[tuple[str, str]]:
    """Return what a tool says of itself and of each argument, by name."""
    made = parser(name)
    said = [
        (action.option_strings[-1] if action.option_strings else action.dest, action.help)
        for action in made._actions
    ]
    return [("the summary", made.description), *said]


@pytest.mark.parametrize("name", tool_names())
def test_help_texts_are_sentences_with_a_subject(name):
    for what, text in texts(name):
        assert text, f"{name}: {what} has no help"
        assert not NO_SUBJECT.match(text), f"{name}: {what} has no subject: {text}"
        assert text[0].isupper(), f"{name}: {what} begins with a small letter: {text}"
        assert text.endswith("."), f"{name}: {what} ends without a full stop: {text}"


@pytest.mark.parametrize("name", tool_names())
def test_help_texts_say_per_for_each_and_no_sentence_twice_ended(name):
    """'a voxel' for 'per voxel' puzzled readers, and so did '(.h5).; or'."""
    for what, text in texts(name):
        assert not re.search(
            r"\b(values|counts|bytes|MB|GB|seconds|electrons) an? \w", text, re.IGNORECASE
        ), what
        assert not re.search(r"[.;,:][.;,:]", text.replace("...", "")), f"{name}: {what}: {text}"


@pytest.mark.parametrize(
    ("name", "offered"),
    [("mpiimg-calibrate", []), ("mpiimg-warp", []), ("mpiimg-astro", ["--calibrated", "--warps"])],
)
def test_a_result_that_is_written_anyway_is_no_option(name, offered):
    """What a chain ends with needs no flag."""
    options = parser(name)._option_string_actions
    assert [flag for flag in ("--calibrated", "--warps") if flag in options] == offered


@pytest.mark.parametrize("name", tool_names())
def test_examples_in_the_help_are_command_lines_of_the_tool(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()
    examples = tool(name).examples
    assert examples
    for text, command in examples:
        assert text[0].isupper() and text.endswith(".")
        program, *words = shlex.split(re.sub(r"^mpiexec -n \d+ ", "", command))
        assert program == name
        assert vars(parser(name).parse_args(words))
        assert f"  {text}\n    {command}\n" in parser(name).format_help()


def test_the_help_says_what_each_exit_status_means():
    text = parser("mpiimg-fit").format_help()
    said = dict(re.findall(r"^  (\d+) +(.*)", text.split("exit status:")[1], re.M))
    assert {int(number): words for number, words in said.items()} == {int(one): one.words for one in Exit}


@pytest.mark.parametrize("name", ["neuro", "astro"])
def test_options_of_a_pipeline_stand_by_step(name):
    text = parser(f"mpiimg-{name}").format_help()
    steps = {
        "neuro": ("mask", "volumes", "denoise", "fit"),
        "astro": ("calibrate", "warp", "coadd", "detect"),
    }
    places = [text.index(f"\n{step}:\n") for step in (*steps[name], "run")]
    assert places == sorted(places)
    one = {"neuro": ("--sigma", "denoise", "fit"), "astro": ("--statistic", "coadd", "detect")}[name]
    assert text.index(f"\n{one[1]}:\n") < text.index(f"\n  {one[0]} ") < text.index(f"\n{one[2]}:\n")
