"""Options in a file: what --dump-config prints is read by --config, and the command line beats it."""

from __future__ import annotations

import re
import tomllib

import pytest
from support import warm
from support.subjects import digests

from mpiimg.tools import parsing
from mpiimg.tools.registry import tool, tool_names

WITH_RUNS = [name for name in tool_names() if tool(name).recipe]


def parsed(name, *words):
    return vars(parsing.parser(name).parse_args([str(word) for word in words]))


def needed(name):
    """Return a command line with what a tool must be given."""
    words = []
    for argument, required in tool(name).arguments:
        if required:
            words += ["a.nii.gz"] if argument.positional else [f"--{argument.name}", "out"]
    return words


def dumped(name, *words, capsys):
    with pytest.raises(SystemExit) as ended:
        parsing.parser(name).parse_args([*words, "--dump-config"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.fixture
def config(tmp_path):
    """What writes a file of options, and returns its path."""

    def write(text):
        path = tmp_path / "options.toml"
        path.write_text(text)
        return path

    return write


def refused(name, path, capsys, *words):
    with pytest.raises(SystemExit) as ended:
        parsing.parser(name).parse_args([*needed(name), "--config", str(path), *words])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", WITH_RUNS)
def test_a_file_that_was_printed_changes_nothing(name, config, capsys):
    text = dumped(name, capsys=capsys)
    assert tomllib.loads(text)
    plain = parsed(name, *needed(name))
    assert parsed(name, *needed(name), "--config", config(text)) == {**plain, "config": str(config(text))}


@pytest.mark.parametrize("name", WITH_RUNS)
def test_every_option_stands_in_the_file_once_with_its_help(name, capsys):
    lines = dumped(name, capsys=capsys).splitlines()
    keys = re.findall(r"^(?:# )?([a-z0-9-]+) =", "\n".join(lines), re.M)
    assert sorted(set(keys)) == sorted(keys)
    for parameter in tool(name).parameters:
        assert parameter.flag[2:] in keys
        assert any(parameter.help[:20] in line for line in lines)


def test_what_is_given_and_what_a_recipe_says_is_printed_and_read_again(config, capsys):
    words = ["--recipe", "study", "--b-max", "1000", "--shells", "0,1000", "--out", 'a "b"', "-f"]
    text = dumped("mpiimg-neuro", *words, capsys=capsys)
    values = tomllib.loads(text)
    assert values["method"] == "wls"
    assert (values["b-max"], values["out"], values["force"]) == ("1000", 'a "b"', True)
    path = config(text)
    once = parsed("mpiimg-neuro", "dwi.nii.gz", *words, "--config", path)
    assert parsed("mpiimg-neuro", "dwi.nii.gz", "--config", path) == once


@pytest.mark.parametrize(
    ("name", "text", "words", "expected"),
    [
        ("mpiimg-fit", "b-max = 1000", ["--b-max", "2000"], {"b_max": "2000"}),
        ("mpiimg-fit", "b_max = 1000", [], {"b_max": "1000"}),
        ("mpiimg-fit", "shells = [0, 1000]", [], {"shells": "0,1000"}),
        ("mpiimg-fit", "force = true", [], {"force": True}),
        ("mpiimg-fit", "force = true", ["--no-force"], {"force": False}),
        ("mpiimg-fit", "quiet = true", ["--verbose"], {"quiet": False, "verbose": True}),
        ("mpiimg-fit", "quiet = true", ["-fv"], {"quiet": False, "verbose": True, "force": True}),
        ("mpiimg-denoise", "inside-mask = false", ["--recipe", "study"], {"inside_mask": False}),
        ("mpiimg-astro", "center = '-10.5,-30'", [], {"center": "-10.5,-30"}),
        ("mpiimg-run", "param = ['a=1', 'b=2']", [], {"param": ["a=1", "b=2"]}),
        ("mpiimg-run", "param = ['a=1', 'b=2']", ["--param", "c=3"], {"param": ["c=3"]}),
        ("mpiimg-fit", "memory = '4GB'\ntimeout = 600", [], {"memory": "4GB", "timeout": 600.0}),
    ],
)
def test_the_command_line_beats_the_file(name, text, words, expected, config):
    values = parsed(name, *needed(name), "--config", config(text), *words)
    assert {key: values[key] for key in expected} == expected


def test_labels_of_a_file_leave_the_words_of_the_command_line_alone(config, tmp_path):
    path = config("participant-label = ['01', '02']\nsigma = 20")
    values = parsed("mpiimg-neuro", "--config", path, tmp_path, "maps", "participant")
    assert values["cohort"].participant_label == ["01", "02"]
    values = parsed(
        "mpiimg-neuro", "--config", path, tmp_path, "maps", "participant", "--participant-label", "3"
    )
    assert (values["cohort"].participant_label, values["sigma"]) == (["3"], "20")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mpiimg-fit", "b-mux = 1", "options.toml: b-mux: there is no such option; did you mean b-max?"),
        ("mpiimg-fit", "passes = 1", "options.toml: passes: there is no such option; it is one of mpiimg-"),
        ("mpiimg-fit", "plan = 'table'", "options.toml: plan: is for the command line, and not for a file"),
        ("mpiimg-fit", "b-max = 1\nb_max = 2", "options.toml: b_max: is there twice"),
        ("mpiimg-fit", "method = 'iwl'", "options.toml: method = 'iwl': must be one of iwls, wls"),
        ("mpiimg-fit", "b0-threshold = 'low'", "options.toml: b0-threshold = 'low': must be of type float"),
        ("mpiimg-fit", "force = 'yes'", "options.toml: force = 'yes': must be true or false"),
        ("mpiimg-fit", "[fit]\nmethod = 'wls'", "options.toml: fit: there is no such option"),
        (
            "mpiimg-fit",
            "[method]\nwls = 1",
            "options.toml: method = is a table; write each option at the top",
        ),
        ("mpiimg-fit", "out = ''", "options.toml: out = '': is no path"),
        ("mpiimg-fit", "method = ", "options.toml: not TOML: "),
        ("mpiimg-fit", "method = " + "[" * 100_000, "options.toml: not TOML: "),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_a_line(name, text, said, config, capsys):
    assert said in refused(name, config(text), capsys)


def test_a_file_that_is_not_there_and_two_files_are_refused(config, capsys, tmp_path):
    assert "none.toml: cannot read this file of options: No such file" in refused(
        "mpiimg-fit", tmp_path / "none.toml", capsys
    )
    path = config("b-max = 1000")
    assert "options are read from one file" in refused("mpiimg-fit", path, capsys, "--config", "other.toml")


@pytest.mark.tool
def test_a_run_with_a_file_is_the_run_with_the_options(tmp_path, config):
    path = config("shape = '8x9x7'\nvolumes = 7\nseed = 3\nquiet = true")
    words = ("neuro", "--shape", "8x9x7", "--volumes", 7, "--seed", 3, "--out", tmp_path / "words")
    warm.run_tool("mpiimg-simulate", *words)
    done = warm.run_tool("mpiimg-simulate", "neuro", "--config", path, "--out", tmp_path / "file", ranks=2)
    assert done.stderr == ""
    assert digests(tmp_path / "file") == digests(tmp_path / "words")
    text = warm.run_tool("mpiimg-simulate", "--dump-config", ranks=3).stdout
    assert text.count("shape =") == 1
