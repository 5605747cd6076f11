"""What README and docs say is true: commands run, flags exist, links lead somewhere, examples are code."""

import ast
import re
import shlex
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from support import launch, warm

from mpiimg.engine.log import show_plan
from mpiimg.errors import Exit
from mpiimg.tools import cli, other_programs, registry

ROOT = launch.REPOSITORY
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "tutorials").glob("*.md"))]

#: Flags of programs that are not ours, which the pages may name.
FOREIGN = {
    "srun": {"--mpi", "--kill-on-bad-exit", "--ntasks-per-node"},
    "sbatch": {"--ntasks", "--mem", "--mem-per-cpu", "--constraint", "--array", "--signal"},
    "scancel": {"--signal"},
    "topup": {"--imain", "--datain", "--config", "--out"},
    "eddy": {"--imain", "--mask", "--topup", "--out", "--acqp", "--index", "--bvecs", "--bvals"},
    "pip": {"--no-deps"},
    "qsiprep": {"--output-resolution"},
    "pytest": {"--hypothesis-seed"},
}

#: Programs of the checkout and how they say what flags they have.
SCRIPTS = tuple(f"benchmarks/{name}.py" for name in ("run", "subject", "survey", "side_by_side", "scaling"))


def flags(name):
    """Return the flags of a tool."""
    return {flag for flag in cli.parser(name)._option_string_actions if flag.startswith("--")}


def script_flags(script):
    """Return the flags in the help of a script."""
    said = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    return set(re.findall(r"--[a-z][a-z-]*", said))


def code(page):
    """Return the pieces of a page that are code: fenced, indented by four, or between backticks."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4,}(\S.*)$", text, re.M)
    return (
        [line for block in fenced for line in block.splitlines()] + indented + re.findall(r"`([^`]+)`", text)
    )


def test_every_flag_on_a_page_exists():
    known = set().union(*map(flags, registry.tool_names()), *FOREIGN.values(), *map(script_flags, SCRIPTS))
    theirs = [one for of_domain in other_programs.FOREIGN.values() for one in of_domain]
    known |= {word.partition("_")[0] for one in theirs for word in one.words}
    named = [
        (page.name, flag)
        for page in PAGES
        for piece in code(page)
        for flag in re.findall(r"--[a-z][a-z-]+", piece)
    ]
    assert len(named) > 40
    assert [flag for flag in named if flag[1] not in known] == []


def test_tools_are_shown_with_flags_of_their_own():
    shown = []
    for page in PAGES:
        for piece in code(page):
            called = re.search(r"(mpiimg-[a-z]+)\b(.*)", piece)
            if called:
                shown += [(page.name, called[1], flag) for flag in re.findall(r"--[a-z][a-z-]+", called[2])]
    assert len(shown) > 20
    assert [one for one in shown if one[1] not in registry.tool_names() or one[2] not in flags(one[1])] == []


def test_every_link_and_path_leads_somewhere():
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if "://" not in target
    ]
    assert len(links) > 10
    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []
    folders = "mpiimg|tests|docs|slurm|benchmarks|install|bin"
    paths = {
        path
        for page in PAGES
        for piece in code(page)
        for path in re.findall(rf"^(?:{folders})/[\w./-]+", piece)
    }
    made = {"benchmarks/results/"}
    assert len(paths) > 15
    assert [path for path in sorted(paths - made) if not (ROOT / path).exists()] == []


def anchors(page):
    """Return the anchors of the headings of a page, as hosts of Markdown and our generator make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_every_link_into_a_page_leads_to_a_heading():
    links = [
        (page, path, anchor)
        for page in PAGES
        for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    ]
    assert len(links) > 20
    lost = [
        (page.name, path, anchor)
        for page, path, anchor in links
        if anchor not in anchors((page.parent / path) if path else page)
    ]
    assert lost == []


def test_every_page_is_on_the_site():
    listed = re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(), re.M)
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES[1:]}
    assert sorted(listed) == sorted(pages - {"index"} | {"reference/tools", "reference/python"})


def test_every_test_that_a_page_names_exists():
    named = {
        (path, name)
        for page in PAGES
        for path, name in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text())
    }
    assert len(named) > 30
    missing = [
        f"{path}::{name}" for path, name in sorted(named) if f"\ndef {name}(" not in (ROOT / path).read_text()
    ]
    assert missing == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        name for page in PAGES for piece in code(page) for name in re.findall(r"\bmake ([a-z-]+)", piece)
    }
    assert {"demo", "test", "install", "bench"} <= named <= targets


def test_every_tool_is_in_the_table_of_tools():
    text = (DOCS / "tools.md").read_text()
    assert [name for name in registry.tool_names() if f"`{name}`" not in text] == []


def declared(text):
    """Return what a piece of code declares by name, without docstrings: functions, classes, constants."""
    named = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            named[node.name] = ast.dump(node)
        elif isinstance(node, ast.Assign):
            named[node.targets[0].id] = ast.dump(node)
    return named


def test_the_worked_example_is_the_code():
    page = (ROOT / "docs/architecture.md").read_text()
    shown = declared("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)))
    assert set(shown) == {"STEP", "stages", "median"}
    actual = declared((ROOT / "mpiimg/neuro/steps/mask.py").read_text())
    actual["median"] = declared((ROOT / "mpiimg/neuro/median_otsu.py").read_text())["median"]
    assert [name for name in shown if shown[name] != actual[name]] == []


def test_the_glossary_explains_the_words_of_the_house():
    words = re.findall(r"^\*\*([\w ]+)\.?\*\*", (ROOT / "docs/glossary.md").read_text(), re.M)
    common = {
        "Rank",
        "Chunk",
        "Block",
        "Halo",
        "Plan",
        "Staged",
        "Spill",
        "Checkpoint",
        "Lease",
        "Step",
        "Stage",
    }
    ours = {"Slab", "Mask", "Exposure", "Band", "Tract", "Patch", "Strip", "Footprint", "Warp", "Coadd"}
    assert common | ours <= set(words)


def test_the_columns_of_a_plan_are_those_that_it_prints():
    table = (ROOT / "docs/plan.md").read_text().split("## Reading one")[1].split("## What decides")[0]
    columns = [name for cell in re.findall(r"^\| ([\w ,]+) \| ", table, re.M) for name in cell.split(", ")]
    assert {*columns[1:]} == {*show_plan.EVERY_STAGE, *show_plan.BY_STEP}


def test_the_figures_of_a_page_are_of_one_cpu():
    named = {page.name: set(re.findall(r"(?:Zen |znver)(\d)", page.read_text())) for page in PAGES}
    assert len(named["kernels.md"]) == len(named["performance.md"]) == len(named["README.md"]) == 1
    assert [name for name, generations in named.items() if len(generations) > 1] == []


def test_stages_on_a_page_are_declared():
    """What a page calls LABEL.STAGE is the name of a stage that the domain of this step declares."""
    rooms = {"neuro": "mask|denoise|fit", "astro": "calibrate|warp|coadd|detect"}
    for room, steps in rooms.items():
        source = "".join(path.read_text() for path in (ROOT / "mpiimg" / room).rglob("*.py"))
        named = {
            name
            for page in PAGES
            for name in re.findall(rf"(?<![\w./-])(?:{steps})\.([a-z][\w-]+)", page.read_text())
        } - {"py"}
        assert len(named) > 4
        assert [name for name in named if f'"{re.sub(r"-[0-9]+$", "-", name)}' not in source] == []


def test_exit_statuses_are_all_explained():
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs/slurm.md").read_text(), re.M)
    assert [int(row) for row in rows] == [int(status) for status in Exit]


@pytest.fixture(scope="module")
def readme_run(tmp_path_factory):
    """Run the commands of README on a small simulated subject, as a reader would, and return the folder."""
    folder = tmp_path_factory.mktemp("readme")
    warm.run_tool("mpiimg-simulate", "neuro", "--shape", "24x28x20", "--volumes", "8", "--out", folder)
    blocks = re.findall(r"^```sh\n(mpiexec.*?)^```", PAGES[0].read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [re.fullmatch(r"mpiexec -n (\d+) (mpiimg-\w+) (.*)", line).groups() for line in lines]
    tools = [tool for _, tool, _ in commands]
    assert tools == [
        "mpiimg-neuro",
        "mpiimg-stage",
        "mpiimg-mask",
        "mpiimg-volumes",
        "mpiimg-denoise",
        "mpiimg-fit",
    ]
    for ranks, tool, words in commands:
        # Every file that the table of outputs names, those on request too.
        wanted = ("--residual", "--fit-residual") if tool == "mpiimg-neuro" else ()
        warm.run_tool(tool, *shlex.split(words), *wanted, ranks=int(ranks), cwd=folder)
    return folder


def test_the_commands_of_the_readme_run_and_step_by_step_gives_the_same_maps(readme_run):
    for key in ("fa", "tensor", "s0"):
        at_once = nibabel.load(readme_run / f"maps/dwi_model-tensor_param-{key}_dwimap.nii.gz")
        in_steps = nibabel.load(
            readme_run / f"steps/dwi_desc-denoised_model-tensor_param-{key}_dwimap.nii.gz"
        )
        assert np.asarray(at_once.dataobj).any()
        np.testing.assert_array_equal(np.asarray(at_once.dataobj), np.asarray(in_steps.dataobj))


def test_the_table_of_outputs_is_what_a_run_writes(readme_run):
    section = (DOCS / "files.md").read_text().split("## Diffusion MRI")[1].split("\n## ")[0]
    named = set(re.findall(r"`((?:dwi|run)[\w.-]+)`", section.split("| file |")[1]))
    named |= {f"dwi_model-tensor_param-{key}_dwimap.nii.gz" for key in re.findall(r"`-([a-z]+)_`", section)}
    named |= {f"dwi_desc-denoised_dwi{ending}" for ending in re.findall(r"`(\.bv\w+)`", section)}
    images = {name for name in named if name.endswith(".nii.gz")}
    sidecars = {name.replace(".nii.gz", ".json") for name in images}
    assert {path.name for path in (readme_run / "maps").iterdir()} | {"report.html"} == (
        named | sidecars | {"events", "report.html"}
    )
