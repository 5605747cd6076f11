"""The package as an index has it: sdist and wheel hold what they should, links of its page are whole."""

from __future__ import annotations

import email
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from support import launch

import mpiimg

ROOT = launch.REPOSITORY
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: Makes both from a checkout, by the build backend that pip calls.
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # which the backend replaces
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


def tracked():
    """The files of the checkout, without those that only git reads."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no checkout of git: which files belong to the project is not known")
    return {name for name in listed.stdout.splitlines() if name != ".gitignore" and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Build sdist and wheel from a copy of the checkout; return the folder of the unpacked sdist."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "copy"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
        (copy / name).chmod((ROOT / name).stat().st_mode)
    launch.run([sys.executable, "-c", BUILD, folder], cwd=copy, timeout=120)
    (archive,) = folder.glob("*.tar.gz")
    assert archive.name == f"mpiimg-{mpiimg.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"mpiimg-{mpiimg.__version__}"


def wheel_of(sdist):
    (wheel,) = sdist.parent.glob("*.whl")
    assert wheel.name == f"mpiimg-{mpiimg.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(wheel)


def test_the_sdist_is_the_checkout(sdist):
    held = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    added = {name for name in held if name.startswith("mpiimg.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert held - added == tracked()


def test_tests_run_from_the_unpacked_sdist(sdist):
    files = ["tests/engine/test_boxes.py", "tests/tools/test_help.py", "tests/tools/test_site.py"]
    done = launch.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=sdist,
        env=launch.environment(PYTHONPATH=str(sdist)),
        timeout=120,
    )
    assert re.search(r"\d{2,} passed", done.stdout)


def test_the_wheel_holds_modules_data_launchers_and_what_goes_along(sdist):
    held = set(wheel_of(sdist).namelist())
    base = f"mpiimg-{mpiimg.__version__}"
    modules = {name for name in tracked() if name.startswith("mpiimg/")}
    launchers = {f"{base}.data/scripts/{name[4:]}" for name in tracked() if name.startswith("bin/")}
    along = {
        f"{base}.data/data/share/mpiimg/{name}"
        for name in tracked()
        if name.split("/")[0] in ("docs", "slurm")
    }
    own = {name for name in held if name.startswith(f"{base}.dist-info/")}
    assert held - own == modules | launchers | along
    assert "mpiimg/py.typed" in modules
    assert f"{base}.dist-info/licenses/LICENSE" in own


@pytest.mark.parametrize("option", ["--target", "--prefix"])
def test_an_install_from_the_wheel_finds_what_goes_along(sdist, tmp_path, option):
    (wheel,) = sdist.parent.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", option, tmp_path / "at"]
    launch.run([*pip, "--ignore-installed", wheel], timeout=120)
    (package,) = (tmp_path / "at").rglob("mpiimg/version.py")
    code = "from mpiimg.tools.cli import main; raise SystemExit(main('mpiimg-slurm', ['--copy', 'jobs']))"
    env = launch.environment(PYTHONPATH=str(package.parents[1]))
    launch.run([sys.executable, "-c", code], cwd=tmp_path, env=env)
    script = "MPIIMG_HOME=jobs; . jobs/slurm/env.sh; echo $MPIIMG_VENV"
    said = launch.run(["bash", "-euc", script], cwd=tmp_path).stdout
    assert said.strip() == sys.prefix
    assert (tmp_path / "jobs/slurm/neuro.sbatch").read_bytes() == (ROOT / "slurm/neuro.sbatch").read_bytes()


def test_metadata_and_links_of_the_page_are_whole(sdist):
    said = email.message_from_string((sdist / "PKG-INFO").read_text())
    assert (said["Name"], said["Version"]) == ("mpiimg", mpiimg.__version__)
    assert said["License-Expression"] == "BSD-3-Clause"
    assert said["Description-Content-Type"] == "text/markdown"
    page = said.get_payload()
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert len(targets) > 10
    assert [target for target in targets if not re.match(r"https://|#", target)] == []
    home = PROJECT["urls"]["Homepage"]
    ours = [target.removeprefix(home) for target in targets if target.startswith(home)]
    assert [link for link in ours if not (ROOT / re.sub(r"^/(blob|raw)/main/|#.*", "", link)).exists()] == []
    assert [link for link in ours if link.endswith(".png") and not link.startswith("/raw/")] == []


def test_an_extra_of_all_formats_has_each_of_them():
    extras = PROJECT["optional-dependencies"]
    (word,) = extras["all"]
    assert set(re.fullmatch(r"mpiimg\[(.+)\]", word)[1].split(",")) == set(extras) - {
        "all",
        "docs",
        "mpich",
        "test",
        "xarray",
    }


def test_what_cites_and_describes_the_project_agrees_with_it():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    described = json.loads((ROOT / "codemeta.json").read_text())
    home, version = PROJECT["urls"]["Homepage"], mpiimg.__version__
    assert (cited["version"], cited["license"], cited["url"]) == (version, PROJECT["license"], home)
    assert (described["version"], described["codeRepository"]) == (version, home)
    assert described["license"] == f"https://spdx.org/licenses/{PROJECT['license']}"
    assert described["description"] == PROJECT["description"]
    named = PROJECT["authors"][0]["name"]
    assert cited["authors"] == [{"name": named}] and described["author"][0]["name"] == named
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert newest == version
