"""The tutorials are run as their readers run them: files are saved, commands given one after the other."""

from __future__ import annotations

import os
import re
import shlex
import sys

import pytest
from support import launch, warm

pytestmark = pytest.mark.tool

FOLDER = launch.REPOSITORY / "docs" / "tutorials"

#: What each page leaves behind.
LEAVES = {
    "neuro": ("maps/logs/group_dwi.tsv", "figure.png"),
    "astro": ("sky/catalogue.fits", "sky/patch-0-0.fits", "figure.png"),
    "pipeline": ("sharp.nii.gz", "own/ratio.nii.gz", "maps/run.json"),
    "dask": ("results/smooth.npy", "results/flat.npy"),
    "cluster": ("jobs/slurm/neuro.sbatch", "data/dwi.nii.gz"),
}


def blocks(page):
    """Return the fenced blocks of a page, as pairs of language and text."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S)


def give(line, folder):
    """Run one line of a shell: ranks of a tool are forked, which is quicker than to start them."""
    found = re.fullmatch(r"(?:mpiexec -n (\d+) )?mpiimg (\w+) ?(.*)", line)
    if found:
        words = shlex.split(found[3])
        paths = [sorted(map(str, folder.glob(word))) if "*" in word else [word] for word in words]
        ranks = int(found[1]) if found[1] else None
        words = [word for some in paths for word in some]
        return warm.run_tool(f"mpiimg-{found[2]}", *words, ranks=ranks, cwd=folder, timeout=120)
    beside = os.path.dirname(sys.executable)
    env = launch.environment(PYTHONPATH=str(launch.REPOSITORY), PATH=f"{beside}:{os.environ['PATH']}")
    return launch.run(["bash", "-euc", line], cwd=folder, env=env, timeout=120)


@pytest.mark.parametrize("name", sorted(page.stem for page in FOLDER.glob("*.md")))
def test_a_tutorial_runs_from_its_first_line_to_its_last(name, tmp_path):
    for language, text in blocks(FOLDER / f"{name}.md"):
        if language == "sh":
            for line in text.splitlines():
                give(line, tmp_path)
        else:
            file = re.match(r"# ([\w.]+)\n", text)
            assert file, f"{name}: a block of {language} that begins without the name of its file"
            (tmp_path / file[1]).write_text(text)
    assert [left for left in LEAVES[name] if not (tmp_path / left).exists()] == []


def test_what_stands_in_a_tutorial_is_run_or_parsed():
    """No block of another language, and none that would pass for code and is neither run nor parsed."""
    languages = {language for page in FOLDER.glob("*.md") for language, _ in blocks(page)}
    assert languages == {"sh", "python", "toml"}
    fences = sum(page.read_text().count("\n```") for page in FOLDER.glob("*.md"))
    assert fences == 2 * sum(len(blocks(page)) for page in FOLDER.glob("*.md"))
