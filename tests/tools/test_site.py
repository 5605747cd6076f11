"""What a site installs from: the lock file names the pinned set, recipes ask for what the project does."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import tomllib

import pytest
from support import launch

import mpiimg

INSTALL, SITE = launch.REPOSITORY / "install", launch.REPOSITORY / "docs" / "site"

PROJECT = tomllib.loads((launch.REPOSITORY / "pyproject.toml").read_text())["project"]

#: What a recipe of an image does, in this order.
IMAGE_STEPS = ("make install PREFIX=", "precompile --portable", "a-w")


def load_lock():
    spec = importlib.util.spec_from_file_location("lock", INSTALL / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCK = load_lock()


def requirements():
    """The packages that pyproject.toml asks for, with the least version of each."""
    asked = PROJECT["dependencies"]
    pairs = [re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", word).groups(default="") for word in asked]
    return {LOCK.normal(name): least for name, least in pairs}


def test_the_lock_file_holds_the_pinned_versions_and_their_hashes():
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (launch.REPOSITORY / "constraints.txt").read_text(), re.M)
    locked = re.findall(
        r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$",
        (INSTALL / "lock.txt").read_text(),
        re.M,
    )
    versions = {name: version for name, version, _ in locked}
    assert versions.items() <= {LOCK.normal(name): version for name, version in pinned}.items()
    assert set(requirements()) <= set(versions)
    # What is built against the MPI of a site is there as a wheel and as source.
    assert {name for name, _, hashes in locked if hashes.count("sha256") == 2} == {"mpi4py", "h5py"}


def test_a_lock_file_is_made_of_the_files_in_a_folder(tmp_path):
    (tmp_path / "Some_Thing-1.2-py3-none-any.whl").write_bytes(b"wheel")
    (tmp_path / "some-thing-1.2.tar.gz").write_bytes(b"source")
    (tmp_path / "other-0.3.1.post1-cp311-abi3-linux_x86_64.whl").write_bytes(b"")
    lines = LOCK.lock(tmp_path).splitlines()[2:]
    assert [line.split(" ")[0] for line in lines if "==" in line] == ["other==0.3.1.post1", "some-thing==1.2"]
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert lines[1] == f"    --hash=sha256:{empty}"
    assert len(lines) == 5


def test_the_spack_recipe_asks_for_what_the_project_asks_for():
    tree = ast.parse((SITE / "package.py").read_text())
    (recipe,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    calls = [node for node in ast.walk(recipe) if isinstance(node, ast.Call)]
    asked = {call.args[0].value for call in calls if call.func.id == "depends_on"}
    needed = {f"py-{name}" + (f"@{least}:" if least else "") for name, least in requirements().items()}
    assert needed <= {word.replace(" +mpi", "") for word in asked}
    assert {"mpi", "python@3.11:", "py-h5py@3.10: +mpi"} <= asked
    (version,) = [call.args[0].value for call in calls if call.func.id == "version"]
    assert version == mpiimg.__version__


def test_the_easybuild_recipe_asks_for_what_the_project_asks_for():
    (path,) = SITE.glob("*.eb")
    fields = {}
    exec(compile(path.read_text(), path, "exec"), fields)
    given = {LOCK.normal(name) for name, *_ in [*fields["dependencies"], *fields["exts_list"]]}
    # numpy and scipy are in EasyBuild's SciPy-bundle.
    assert set(requirements()) - {"numpy", "scipy"} <= given
    assert "scipy-bundle" in given
    assert (fields["version"], fields["exts_list"][-1][0]) == (mpiimg.__version__, "mpiimg")
    assert path.name == f"mpiimg-{mpiimg.__version__}-foss-{fields['toolchain']['version']}.eb"
    assert {"easyblock", "homepage", "description", "moduleclass"} <= set(fields)


def test_the_container_recipe_has_its_sections_and_good_shell():
    text = (SITE / "apptainer.def").read_text()
    sections = dict(re.findall(r"^%(\w+)\n((?:(?!%).*\n?)*)", text, re.M))
    assert list(sections) == ["files", "post", "environment", "runscript", "test"]
    assert re.search(r"^Bootstrap: docker\nFrom: debian:12", text, re.M)
    for name in ("post", "environment", "runscript", "test"):
        done = subprocess.run(["bash", "-n"], input=sections[name], text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_images_hold_the_kernels_of_two_targets():
    """Whoever runs an image cannot write into it: what is compiled is compiled when it is built."""
    for name in ("Containerfile", "apptainer.def"):
        lines = [line.strip(" \\&") for line in (SITE / name).read_text().splitlines()]
        steps = [next(n for n, line in enumerate(lines) if word in line) for word in IMAGE_STEPS]
        assert steps == sorted(steps), name
        assert "WARM=0" not in "".join(lines)


def test_the_oci_recipe_is_made_of_instructions_and_good_shell():
    text = re.sub(r"^#.*\n", "", (SITE / "Containerfile").read_text(), flags=re.M).replace("\\\n", " ")
    instructions = [line.split(" ", 1) for line in text.splitlines() if line]
    assert [words[0] for words in instructions] == [
        *("FROM", "RUN", "COPY", "RUN"),
        *("FROM", "RUN", "COPY", "ENV", "CMD"),
    ]
    for word, script in instructions:
        if word == "RUN":
            done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
            assert (done.returncode, done.stderr) == (0, "")
    ignored = (launch.REPOSITORY / ".dockerignore").read_text().split("\n")
    assert {".git", ".cache", ".venv*"} <= set(ignored)


def test_the_conda_recipe_asks_for_what_the_project_asks_for():
    yaml, jinja2 = pytest.importorskip("yaml"), pytest.importorskip("jinja2")
    recipe = yaml.safe_load(jinja2.Template((SITE / "meta.yaml").read_text()).render(PYTHON="python"))
    asked = dict(
        re.fullmatch(r"(\S+)(?: >=(\S+))?", line).groups("") for line in recipe["requirements"]["run"]
    )
    assert asked.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    theirs = {"astropy-base": "astropy", "matplotlib-base": "matplotlib", "python-isal": "isal"}
    assert {theirs.get(name, name): least for name, least in asked.items()} == requirements()
    assert (recipe["package"]["name"], recipe["package"]["version"]) == ("mpiimg", mpiimg.__version__)
    about = recipe["about"]
    assert (about["summary"], about["home"], about["license"]) == (
        PROJECT["description"],
        PROJECT["urls"]["Homepage"],
        PROJECT["license"],
    )


def test_the_module_file_is_lua():
    text = (SITE / "mpiimg.lua").read_text()
    assert f'whatis("Version: {mpiimg.__version__}")' in text
    if shutil.which("luac") is None:
        pytest.skip("luac is not installed")
    subprocess.run(["luac", "-p", SITE / "mpiimg.lua"], check=True)


@pytest.mark.parametrize("program", ["install.sh", "wheelhouse.sh", "system.sh", "venv.sh", "common.sh"])
def test_the_install_scripts_are_good_shell(program):
    done = subprocess.run(["bash", "-n", INSTALL / program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
