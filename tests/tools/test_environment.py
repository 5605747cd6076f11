"""What a tool makes of the environment that it is started in: put right and said, or refused in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import launch

from mpiimg.engine import rates
from mpiimg.kernels import cache
from mpiimg.kernels.disk import trust
from mpiimg.tools import environment


@pytest.fixture
def install(tmp_path, monkeypatch) -> Path:
    """An install with a NumPy in it, and its package elsewhere, as in a checkout."""
    site_packages = tmp_path / "install"
    module(site_packages, "numpy")
    monkeypatch.setattr(environment.site, "getsitepackages", lambda: [str(site_packages)])
    monkeypatch.setattr(trust, "PACKAGE", tmp_path / "checkout" / "mpiimg")
    return site_packages


def module(folder: Path, name: str, package: bool = True) -> Path:
    path = folder / name / "__init__.py" if package else folder / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return folder


PYTHONS_OWN = os.path.dirname(os.__file__)


@pytest.mark.parametrize("name", ["numpy", "random"])
@pytest.mark.parametrize("package", [True, False])
def test_a_module_that_pythonpath_puts_before_the_installs_is_refused(install, tmp_path, name, package):
    """Also a file of the user's that bears the name of one of Python's own modules."""
    theirs = module(tmp_path / "theirs", name, package)
    said = environment.shadowed([str(theirs), PYTHONS_OWN, str(install)], f"/nowhere:{theirs}")
    assert said.startswith(f"PYTHONPATH names {theirs}, whose {name} would be taken")
    assert environment.shadowed([str(install), PYTHONS_OWN, str(theirs)], str(theirs)) == ""


@pytest.mark.parametrize(
    "form", ["numpy.pyc", "numpy/__init__.pyc", f"numpy{EXTENSION_SUFFIXES[0]}", "all.zip"]
)
def test_so_is_one_that_is_no_source(install, tmp_path, form):
    theirs = tmp_path / "theirs"
    path = theirs / form
    path.parent.mkdir(parents=True)
    path.touch()
    if form == "all.zip":
        theirs = path
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("numpy/__init__.py", "")
    said = environment.shadowed([str(theirs), PYTHONS_OWN, str(install)], str(theirs))
    assert said.startswith(f"PYTHONPATH names {theirs}, whose numpy would be taken")


def test_one_in_the_folder_of_the_program_is_refused_too(install, tmp_path, monkeypatch):
    theirs = module(tmp_path / "theirs", "numpy")
    monkeypatch.chdir(theirs)
    said = environment.shadowed(["", PYTHONS_OWN, str(install)], "")
    assert said.startswith(f"{theirs} is on Python's path, whose numpy")


def test_what_a_user_has_for_functions_may_stay(install, tmp_path):
    """Modules of other names, folders of data that bear the name of a module, and what the install lacks."""
    theirs = module(tmp_path / "theirs", "my_functions")
    module(
        theirs, "scipy"
    )  # which this install has not: a site may bring each package in a folder of its own
    (theirs / "random").mkdir()
    (theirs / "numpy").mkdir()
    (theirs / "numpy.txt").touch()
    path = [str(tmp_path / "missing"), str(theirs), PYTHONS_OWN, str(install)]
    assert environment.shadowed(path, str(theirs)) == ""


def test_this_very_environment_has_nothing_shadowed():
    assert environment.shadowed(sys.path, os.environ.get("PYTHONPATH", "")) == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NUMBA_OPT", "0", "NUMBA_OPT=0 is not taken"),
        ("NUMBA_CPU_NAME", "nonsense", "NUMBA_CPU_NAME=nonsense is not taken"),
        ("NUMBA_BOUNDSCHECK", "1", "NUMBA_BOUNDSCHECK=1 is not taken"),
        ("NUMBA_SOMETHING_NEW", "1", "NUMBA_SOMETHING_NEW=1 is not taken"),
        ("NUMBA_NUM_THREADS", "many", "NUMBA_NUM_THREADS=many is not taken"),
        ("NUMBA_NUM_THREADS", "0", "NUMBA_NUM_THREADS=0 is not taken"),
        ("NUMBA_DEBUG", "", ""),
        ("NPY_DISABLE_CPU_FEATURES", "AVX2", "NPY_DISABLE_CPU_FEATURES=AVX2 is not taken"),
        ("HDF5_DRIVER", "core", "HDF5_DRIVER=core is not taken"),
        ("NUMBA_CACHE_DIR", "{open}", "NUMBA_CACHE_DIR is not taken, .*others may write to"),
        ("HDF5_PLUGIN_PATH", "{own}:{open}", "HDF5_PLUGIN_PATH is not taken, .*others may write to"),
    ],
)
def test_what_changes_results_or_names_code_of_others_is_set_aside(tmp_path, name, value, said):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "own").mkdir(mode=0o700)
    given = {name: value.format(open=tmp_path / "open", own=tmp_path / "own")}
    notes = environment.set_aside(given)
    assert given == {}
    assert len(notes) == bool(said)
    assert all(re.match(said, note) for note in notes)


def test_what_changes_nothing_stays(tmp_path):
    given = {
        "NUMBA_CACHE_DIR": str(tmp_path / "mine"),
        "NUMBA_NUM_THREADS": "2",
        "HDF5_PLUGIN_PATH": str(tmp_path),
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "OPENBLAS_CORETYPE": "Haswell",
        "OMP_NUM_THREADS": "1",
    }
    before = dict(given)
    assert environment.set_aside(given) == []
    assert given == before


def test_functions_of_glibc_that_were_chosen_are_said():
    (note,) = environment.set_aside({"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"})
    assert "results may differ" in note


def tool(*words, before="", env=None, cwd=None, python=()) -> subprocess.CompletedProcess:
    """Run mpiimg-status, which loads little, after some shell."""
    command = [sys.executable, *python, str(launch.REPOSITORY / "bin" / "mpiimg-status"), *words]
    shell = ["bash", "-c", f'{before} exec "$@"', "bash", *command]
    return launch.run(shell, env=env, cwd=cwd, check=False)


@pytest.mark.tool
@pytest.mark.parametrize(
    ("env", "before", "said"),
    [
        ({"NUMBA_DISABLE_JIT": "1"}, "", "NUMBA_DISABLE_JIT is set"),
        ({"PYTHONINSPECT": "1"}, "", "PYTHONINSPECT is set"),
        ({}, "touch .numba_config.yaml;", ".numba_config.yaml in this folder"),
        ({}, "umask 777;", "the umask 777"),
        ({}, "mkdir gone; cd gone; rmdir ../gone;", "the folder that this was started in"),
        ({"PYTHONPYCACHEPREFIX": "/dev/shm"}, "", "PYTHONPYCACHEPREFIX=/dev/shm"),
    ],
)
def test_what_no_tool_can_run_with_is_refused_in_one_line(tmp_path, env, before, said):
    done = tool("nowhere", env=env, before=before, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"mpiimg: error: {said}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.tool
def test_only_the_first_rank_speaks(tmp_path):
    for rank, lines in (("0", 1), ("1", 0), ("nonsense", 1)):
        done = tool("nowhere", env={"NUMBA_DISABLE_JIT": "1", "PMI_RANK": rank})
        assert (done.returncode, len(done.stderr.splitlines())) == (2, lines)


@pytest.mark.tool
def test_what_is_set_aside_is_said_and_the_tool_runs():
    done = tool("--version", env={"NUMBA_OPT": "0", "PYTHONWARNINGS": "error"})
    assert done.returncode == 0
    said = done.stderr.splitlines()
    assert [line.split()[2].partition("=")[0] for line in said] == ["NUMBA_OPT", "PYTHONWARNINGS"]
    assert tool("--version", "--quiet", env={"NUMBA_OPT": "0"}).stderr == ""


@pytest.mark.tool
def test_a_file_is_never_opened_in_place_of_a_closed_stream(tmp_path):
    """What a library prints would go into it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from mpiimg.tools import environment\n"
        "environment.prepare()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "os.write(1, b'printed by a library')\n"
        "print('printed'); sys.stderr.write('said')\n"
        "file.write(str(file.fileno() > 2))\n"
    )
    shell = f"exec {sys.executable} {program} <&- >&- 2>&-"
    launch.run(["bash", "-c", shell])
    assert (tmp_path / "file").read_text() == "True"


@pytest.mark.tool
def test_any_name_can_be_said_where_there_is_only_ascii(tmp_path):
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = tool(str(tmp_path / "fä"), env=env)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_without_a_home_there_is_no_cache_of_the_user(monkeypatch):
    """And no folder named ~ where a run is started."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert rates.load_rates() == rates.DEFAULTS
    assert all(home.path.is_absolute() for home in cache.ours().homes())
    assert "~" not in str([home.path for home in cache.ours().homes()])


def test_a_machine_without_mpi_is_told_what_to_install(tmp_path):
    """mpi4py of a wheel looks for a library when it is loaded."""
    if find_spec("mpi4py._mpiabi") is None:
        pytest.skip("this mpi4py is bound to the library that it was built with")
    env = launch.environment(MPI4PY_LIBMPI=str(tmp_path / "none.so"))
    for tool, *words in (("doctor",), ("simulate", "neuro", "--out", tmp_path / "out")):
        command = [sys.executable, launch.REPOSITORY / "bin" / f"mpiimg-{tool}", *words]
        done = launch.run(command, check=False, env=env)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "pip install 'mpiimg[mpich]'" in done.stderr
    assert not (tmp_path / "out").exists()
