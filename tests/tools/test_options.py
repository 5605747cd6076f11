"""Wrong options are answered by the right ones: mistyped, shortened, or those of another program."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from support import launch

from mpiimg.engine.parameters import checked_memory
from mpiimg.errors import BadInput, Exit
from mpiimg.functions.request import _Stages
from mpiimg.simulate import recipes
from mpiimg.tools import api, cli, parsing
from mpiimg.tools.other_programs import FOREIGN
from mpiimg.tools.registry import tool, tool_names

#: What ten programs that users come from call their options.
OTHERS = list(csv.DictReader((Path(__file__).parent / "options_of_others.tsv").open(), delimiter="\t"))

#: What each tool must be given.
NEEDED = {
    "mpiimg-neuro": ["dwi.nii.gz", "--out", "out"],
    "mpiimg-denoise": ["dwi.nii.gz", "--out", "out"],
    "mpiimg-fit": ["dwi.nii.gz", "--out", "out", "--mask", "mask.nii.gz"],
    "mpiimg-mask": ["dwi.nii.gz", "--out", "out"],
    "mpiimg-calibrate": ["one.fits", "--out", "out"],
    "mpiimg-warp": ["one.fits", "--out", "out"],
    "mpiimg-coadd": ["warps", "--out", "out"],
    "mpiimg-detect": ["patches", "--out", "catalogue.fits"],
}

#: Those of the list that work as they are, as options of a tool or as flags of BIDS Apps.
WORKING = {"--b0-threshold", "--sigclip", "--nprocs", "-w"}


def refused(name, words, capsys):
    """Return the one line with which a command line is refused."""
    with pytest.raises(SystemExit) as ended:
        cli.main(name, words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_thirty_options_of_ten_programs_are_asked_for():
    assert len(OTHERS) == 30
    assert len({row["program"] for row in OTHERS}) == 10


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: f"{row['program']}{row['words']}")
def test_options_of_other_programs_work_or_are_answered_by_what_they_are_called_here(row, capsys, tmp_path):
    flag, *value = row["words"].split()
    tool = row["tool"]
    if flag in WORKING:
        needed = [str(tmp_path), "out", "participant"] if flag in ("--nprocs", "-w") else NEEDED[tool]
        parsing.parser(tool).parse_args([*needed, flag, *value])
        return
    line = refused(tool, [*NEEDED[tool], flag, *value], capsys)
    said = re.search(rf"{re.escape(flag)} of ([\w\d-]+(?: and [\w-]+)?)(: [\w-]| is --)", line)
    assert said, line
    assert row["program"] in said[1] or (said[1] == "MRtrix3" and row["program"].startswith("dwi"))
    # A name that is given is one of an option of ours.
    known = {name for one in tool_names() for name in parsing.parser(one)._option_string_actions}
    assert {name for name in re.findall(r"--[a-z][a-z-]+", line.replace("--help", ""))} - {flag} <= known


def test_all_that_is_said_of_other_programs_names_options_that_there_are():
    names = {action.dest for one in tool_names() for action in parsing.parser(one)._actions}
    flags = {name for one in tool_names() for name in parsing.parser(one)._option_string_actions}
    for foreign in (one for of_domain in FOREIGN.values() for one in of_domain):
        assert foreign.options or foreign.says
        assert set(foreign.options) <= names, foreign
        assert set(re.findall(r"--[a-z][a-z-]+", foreign.says)) <= flags, foreign


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("mpiimg-detect", ["--tresh", "3"], "--tresh: there is no such option; did you mean --threshold"),
        ("mpiimg-detect", ["--thr", "3"], "--thr: there is no such option; did you mean --threshold or"),
        ("mpiimg-mask", ["--pases", "3"], "did you mean --passes?"),
        ("mpiimg-mask", ["--median_radius", "3"], "did you mean --median-radius?"),
        ("mpiimg-mask", ["-finalize"], "did you mean --finalize?"),
        ("mpiimg-mask", ["--threshold", "3"], "--threshold: there is no such option;"),
        ("mpiimg-fit", ["--passes", "3"], "--passes is an option of mpiimg-mask"),
        (
            "mpiimg-fit",
            ["--method", "iwl"],
            "invalid choice: 'iwl' (choose from iwls, wls, ols, nlls, restore); ",
        ),
        ("mpiimg-fit", ["--method", "iwl"], "did you mean iwls"),
        ("mpiimg-mask", ["mask.nii.gz"], "unrecognized arguments: mask.nii.gz; results go where --out says"),
        ("mpiimg-mask", ["-ofolder"], "-ofolder: there is no such option"),
        ("mpiimg-mask", ["-fo", "folder"], "-fo: there is no such option"),
        ("mpiimg-mask", ["-f", "0.3"], "-f takes no value; -f of bet: "),
        ("mpiimg-mask", ["--passes"], "argument --passes: needs a value; see"),
        ("mpiimg-mask", ["--finalize", "1"], "--finalize takes no value; see"),
        ("mpiimg-mask", ["--pases=\x1b[2J"], "did you mean --passes?"),
    ],
)
def test_what_is_no_option_is_answered_by_one_like_it(name, words, said, capsys):
    line = refused(name, [*NEEDED[name], *words], capsys)
    assert said in line
    assert "\x1b" not in line


def test_options_are_written_in_full():
    """What is short for one option today may be short for two tomorrow."""
    parsed = parsing.parser("mpiimg-mask").parse_args([*NEEDED["mpiimg-mask"], "--passes", "2"])
    assert parsed.passes == 2
    with pytest.raises(SystemExit):
        parsing.parser("mpiimg-mask").parse_args([*NEEDED["mpiimg-mask"], "--passe", "2"])


@pytest.mark.parametrize("name", tool_names())
def test_letters_mean_the_same_everywhere(name):
    actions = parsing.parser(name)._option_string_actions
    for word, letter in parsing.LETTERS.items():
        if f"--{word}" in actions:
            assert actions[letter] is actions[f"--{word}"]
    letters = {flag for flag in actions if re.fullmatch(r"-\w", flag)}
    assert letters <= {"-h", "-w", *parsing.LETTERS.values()}


def test_letters_stand_alone_and_together():
    parser = parsing.parser("mpiimg-mask")
    parsed = parser.parse_args(["dwi.nii.gz", "-fq", "-o", "folder"])
    assert (parsed.force, parsed.quiet, parsed.verbose, parsed.out) == (True, True, False, "folder")
    assert parser.parse_args(["dwi.nii.gz", "-vv", "-o=folder"]).verbose


def test_a_switch_has_an_opposite_unless_another_option_is_called_so():
    parser = parsing.parser("mpiimg-astro")
    words = ["one.fits", "-o", "out"]
    assert not parser.parse_args([*words, "--force", "--no-force"]).force
    assert not parser.parse_args([*words, "--no-deblend", "--deblend"]).no_deblend
    assert parser.parse_args([*words, "--cosmic-rays", "always"]).cosmic_rays == "always"
    assert "--no-force" not in parser.format_help()


def row_of(foreign):
    """Return the line of the page that speaks of an option of another program."""
    named = " or ".join(f"`--{name.replace('_', '-')}`" for name in foreign.options)
    says = re.sub(r"(--[a-z][a-z-]+)", r"`\1`", foreign.says).replace("*", r"\*")
    return f"| `{foreign.words[0]}` | {foreign.program} | {'; '.join(filter(None, [named, says]))} |"


def test_the_page_of_the_command_line_has_what_is_said_of_other_programs():
    text = (launch.REPOSITORY / "docs" / "command-line.md").read_text()
    rows = [row_of(one) for of_domain in FOREIGN.values() for one in of_domain]
    assert [row for row in rows if row not in text] == []
    assert len(re.findall(r"^\| `", text, re.M)) == len(rows)
    statuses = [f"| {int(one)} | {one.words} |" for one in Exit]
    assert [row for row in statuses if row not in text] == []


def test_what_the_page_says_of_options_is_so(tmp_path, monkeypatch):
    text = (launch.REPOSITORY / "docs" / "command-line.md").read_text()
    letters = dict(re.findall(r"`(-\w)`\s+\(`--([a-z-]+)`\)", text))
    assert letters.pop("-h") == "help"
    assert letters == {flag: name.replace("_", "-") for name, flag in parsing.LETTERS.items()}
    (example,) = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "neuro.toml").write_text(example)
    monkeypatch.chdir(tmp_path)
    parsed = parsing.parser("mpiimg-neuro").parse_args(["dwi.nii.gz", "--config", "neuro.toml", "-o", "maps"])
    assert (parsed.b_max, parsed.sigma, parsed.shells, parsed.quiet) == ("1000", "20", "0,1000", True)
    for size in ("4G", "4GB", "4GiB"):
        assert checked_memory(size, "--memory") == 4 * 1024**3
    assert checked_memory("4e9", "--memory") == 4_000_000_000


def test_a_level_of_bids_apps_is_asked_for_too(tmp_path, capsys):
    line = refused("mpiimg-neuro", [str(tmp_path), "out", "partcipant"], capsys)
    assert "analysis level partcipant: there are participant and group; did you mean participant?" in line


def test_python_and_pipelines_are_answered_alike(tmp_path):
    with pytest.raises(BadInput, match=r"no option 'pases'; .*; did you mean passes\?"):
        api._options(tool("mpiimg-mask"), {"pases": 3})
    with pytest.raises(BadInput, match=r"^nuero: no such tool; .*; did you mean neuro\?"):
        api._tool_asked("nuero", ["dwi.nii.gz"], "out", {})
    with pytest.raises(BadInput, match="neuro and astro can be simulated; did you mean neuro"):
        recipes.inspect({"kind": "nuero"})
    with pytest.raises(BadInput, match=r"mask has no parameter 'pases'; .*; did you mean passes\?"):
        _Stages("pipeline.toml", None, "").read([{"tool": "mask", "pases": 3}])
    with pytest.raises(BadInput, match=r"must be one of iwls, .*; did you mean iwls"):
        _Stages("pipeline.toml", None, "").read([{"tool": "fit", "method": "iwl"}])
