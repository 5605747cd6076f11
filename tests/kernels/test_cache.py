"""Kernels are compiled anew when anything that went into them has changed, and only then."""

import ast
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import numba.core.config
import pytest
from numba.core.dispatcher import Dispatcher

import mpiimg
from mpiimg.astro.kernels import warp
from mpiimg.kernels import cache, vmath
from mpiimg.neuro.kernels import tensor

PACKAGE = Path(mpiimg.__file__).parent

CALLER = """
from {package}.{helper} import factor
from mpiimg.kernels.jit import kernel

@kernel
def scaled(x):
    return factor() * x
"""

HELPER = """
from mpiimg.kernels.jit import kernel

@kernel
def factor():
    return {value}
"""

#: Calls {module}.scaled; prints its result, how many functions were compiled for it, and where they are kept.
PROGRAM = """
import json, sys
from {module} import scaled
result = scaled(10)
print(json.dumps([result, sum(scaled.stats.cache_misses.values()), scaled.stats.cache_path]))
"""


class Site:
    """A copy of our package, and a third party's that has kernels; edited, and asked from processes."""

    def __init__(self, folder: Path):
        self.folder, self.given = folder, None
        ours = folder / "mpiimg"
        shutil.copytree(PACKAGE, ours, ignore=shutil.ignore_patterns("__pycache__"))
        # Not in the folder where kernels are today: any of that name will do.
        self.write("mpiimg/sky/kernels/caller.py", CALLER.format(package="mpiimg.kernels", helper="helper"))
        self.write("mpiimg/kernels/helper.py", HELPER.format(value=2))
        self.write("theirs/steps/caller.py", CALLER.format(package="theirs", helper="helper"))
        self.write("theirs/helper.py", HELPER.format(value=2))
        for name in ("mpiimg/sky", "mpiimg/sky/kernels", "theirs", "theirs/steps"):
            self.write(f"{name}/__init__.py", "")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def python(self, program: str, **environment) -> str:
        """Return what a program prints, in a process that has imported numba and nothing of ours yet."""
        end, start = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(start, 1)
            os.dup2(start, 2)
            os._exit(self._run(program, environment))
        os.close(start)
        with open(end) as pipe:
            said = pipe.read()
        assert os.waitpid(child, 0)[1] == 0, said
        return said

    def _run(self, program: str, environment: dict[str, str]) -> int:
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for name in [name for name in sys.modules if name.partition(".")[0] == "mpiimg"]:
            del sys.modules[name]
        sys.path.insert(0, str(self.folder))
        # Python takes byte code for fresh if an edit in the same second keeps the size.
        sys.dont_write_bytecode = True
        given = {} if self.given is None else {"NUMBA_CACHE_DIR": str(self.given)}
        os.environ.update({**given, "XDG_CACHE_HOME": str(self.folder / "home"), **environment})
        numba.core.config.reload_config()
        status = 0
        try:
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        return status

    def call(self, module: str = "mpiimg.sky.kernels.caller", before: str = "", **environment):
        """Return what `scaled(10)` is, whether it was compiled, and the folder where it is kept."""
        return json.loads(self.python(before + PROGRAM.format(module=module), **environment))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


@pytest.mark.parametrize(
    ("module", "helper"),
    [
        ("mpiimg.sky.kernels.caller", "mpiimg/kernels/helper.py"),
        ("theirs.steps.caller", "theirs/helper.py"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_an_edit_of_a_helper_in_another_file_changes_the_result(site, tmp_path, module, helper, given):
    site.given = tmp_path / "given" if given else None
    home = site.given or site.folder / module.split(".")[0] / "__pycache__"
    result, compiled, first = site.call(module)
    assert (result, compiled) == (20, 1)
    assert Path(first).is_relative_to(home)
    assert site.call(module) == [20, 0, first]
    site.edit(helper, "return 2", "return 6")
    result, compiled, second = site.call(module)
    assert (result, compiled) == (60, 1)
    site.edit(helper, "return 6", "return 2")
    assert site.call(module) == [20, 0, first]
    assert second != first


def test_a_third_party_depends_on_our_kernels_too(site):
    site.edit("theirs/steps/caller.py", "from theirs.helper", "from mpiimg.kernels.helper")
    assert site.call("theirs.steps.caller")[:2] == [20, 1]
    site.edit("mpiimg/kernels/helper.py", "return 2", "return 6")
    assert site.call("theirs.steps.caller")[:2] == [60, 1]


def test_what_is_no_kernel_changes_nothing(site):
    """Other code of ours; and of a third party's package all counts, since anything may be a kernel there."""
    ours, theirs = site.call(), site.call("theirs.steps.caller")
    site.write("mpiimg/errors.py", (site.folder / "mpiimg/errors.py").read_text() + "\n# Edited.\n")
    assert site.call() == [20, 0, ours[2]]
    assert site.call("theirs.steps.caller") == [20, 0, theirs[2]]
    site.write("theirs/steps/other.py", "")
    assert site.call("theirs.steps.caller")[1] == 1


def test_a_kernel_of_ours_outside_the_folders_of_kernels_depends_on_the_whole_package(site):
    site.write("mpiimg/sky/stray.py", CALLER.format(package="mpiimg.sky", helper="astray"))
    site.write("mpiimg/sky/astray.py", HELPER.format(value=2))
    assert site.call("mpiimg.sky.stray")[:2] == [20, 1]
    site.edit("mpiimg/sky/astray.py", "return 2", "return 6")
    assert site.call("mpiimg.sky.stray")[:2] == [60, 1]


def test_a_file_in_no_package_depends_on_those_beside_it(site):
    site.write("alone.py", CALLER.replace("{package}.", "").format(helper="beside"))
    site.write("beside.py", HELPER.format(value=2))
    assert site.call("alone")[:2] == [20, 1]
    site.edit("beside.py", "return 2", "return 6")
    assert site.call("alone")[:2] == [60, 1]


def test_what_has_no_file_is_compiled_in_every_process(site):
    program = HELPER.format(value=2) + "print(factor(), factor.stats.cache_path)"
    assert site.python(program).split() == ["2", "None"]


def test_other_flags_are_compiled_anew(site):
    """Those of all kernels, of one, and numba's own settings."""
    folders = [site.call()[2]]
    changes = [
        ("mpiimg/kernels/jit.py", '{"nsz", "arcp", "contract"}', '{"nsz", "arcp"}'),
        ("mpiimg/sky/kernels/caller.py", "@kernel", "@kernel(reassoc=True)"),
    ]
    for change in changes:
        site.edit(*change)
        result, compiled, folder = site.call()
        assert (result, compiled) == (20, 1)
        folders.append(folder)
    folders += [site.call(NUMBA_OPT="1")[2], site.call(NUMBA_BOUNDSCHECK="1")[2]]
    assert len(set(folders)) == len(folders)


def test_flags_that_a_program_sets_are_compiled_anew(site):
    """In one folder, beside each other, since the sources are the same."""
    before = "from mpiimg.kernels import jit\njit.FASTMATH = frozenset()\n"
    (_, first, folder), (_, second, other) = site.call(), site.call(before=before)
    assert (first, second, other) == (1, 1, folder)
    assert [site.call(), site.call(before=before)] == [[20, 0, folder]] * 2


def test_the_portable_target_has_a_folder_of_its_own(site):
    portable = "from mpiimg.kernels import jit\nimport {module}\njit.pin_target()\n"
    portable = portable.format(module="mpiimg.sky.kernels.caller")
    native = site.call()
    result, compiled, folder = site.call(before=portable)
    assert (result, compiled) == (20, 1)
    assert folder != native[2] and "x86-64-v3-" in folder
    assert site.call() == [20, 0, native[2]]
    assert site.call(before=portable) == [20, 0, folder]


def test_two_checkouts_share_nothing(site, tmp_path):
    other = Site(tmp_path / "other")
    site.given = other.given = tmp_path / "given"
    mine, theirs = site.call(), other.call()
    assert (mine[1], theirs[1]) == (1, 1)
    assert mine[2] != theirs[2]
    assert (site.call(), other.call()) == ([20, 0, mine[2]], [20, 0, theirs[2]])


def test_a_copy_of_the_cache_serves(site, tmp_path):
    """As of PREFIX/kernels to a disk of the node."""
    site.given = tmp_path / "prefix"
    site.call()
    shutil.copytree(tmp_path / "prefix", tmp_path / "node")
    site.given = tmp_path / "node"
    result, compiled, folder = site.call()
    assert (result, compiled) == (20, 0)
    assert Path(folder).is_relative_to(tmp_path / "node")


@pytest.mark.parametrize("given", [False, True])
def test_a_package_that_cannot_be_written_to_is_kept_by_the_user(site, tmp_path, given):
    """A file stands in the way, since nothing is forbidden to root; the same for NUMBA_CACHE_DIR."""
    site.write("mpiimg/__pycache__", "")
    if given:
        site.given = tmp_path / "given"
        site.given.write_text("")
    result, compiled, folder = site.call()
    assert (result, compiled) == (20, 1)
    assert Path(folder).is_relative_to(site.folder / "home")
    assert site.call() == [20, 0, folder]


def test_where_nothing_can_be_kept_all_is_compiled(site):
    site.write("mpiimg/__pycache__", "")
    site.write("home", "")
    assert [site.call()[:2] for _ in range(2)] == [[20, 1]] * 2


NOTED = """
from mpiimg.kernels import cache


def one():
    cache.ours().folder().mkdir(parents=True, exist_ok=True)


two = one
"""

MARKERS = """
import json
from mpiimg.engine import precompile
both = ["theirs.noted:one", "theirs.noted:two"]
before = precompile.missing(both)
precompile.compile_here(before[:1])
print(json.dumps([before, precompile.missing(both)]))
"""


def test_what_is_noted_as_compiled_follows(site):
    both = ["theirs.noted:one", "theirs.noted:two"]
    site.write("theirs/noted.py", NOTED)
    assert json.loads(site.python(MARKERS)) == [both, both[1:]]
    assert json.loads(site.python(MARKERS.replace("before[:1]", "[]"))) == [both[1:], both[1:]]
    site.edit("mpiimg/kernels/helper.py", "return 2", "return 6")
    assert json.loads(site.python(MARKERS)) == [both, both[1:]]


def test_a_module_that_is_read_anew_is_compiled_anew(site):
    """As in a notebook."""
    program = """
import importlib, pathlib
from theirs import helper
from theirs.steps import caller
first = caller.scaled(10)
pathlib.Path(helper.__file__).write_text(pathlib.Path(helper.__file__).read_text().replace("2", "6"))
for module in (helper, caller):
    importlib.reload(module)
print(first, caller.scaled(10))
"""
    assert site.python(program).split() == ["20", "60"]
    assert site.call("theirs.steps.caller")[:2] == [60, 0]


def test_old_sources_do_not_pile_up(site):
    for value in range(cache.MAX_OLD_FOLDERS + 4):
        site.write("mpiimg/kernels/helper.py", HELPER.format(value=value))
        result, _, folder = site.call()
        assert result == 10 * value
    assert len(list(Path(folder).parent.iterdir())) == cache.MAX_OLD_FOLDERS + 1
    assert site.call() == [result, 0, folder]


def test_help_looks_at_no_kernel():
    program = """
import sys
from mpiimg.tools.cli import main
try:
    main("mpiimg-neuro", ["--help"])
except SystemExit:
    print(*(name for name in sys.modules if name.startswith("mpiimg.kernels.") or name == "numba"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "", done.stderr


def test_kernels_import_kernels_only():
    """So that the folders of that name hold all that goes into a kernel."""
    kernels = [path for path in PACKAGE.rglob("*.py") if "kernels" in path.relative_to(PACKAGE).parts[:-1]]
    assert len(kernels) > 10
    for path in kernels:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                above = ["mpiimg", *path.relative_to(PACKAGE).parts][: -node.level] if node.level else []
                module = [*above, *(node.module or "").split(".")]
                assert module[0] != "mpiimg" or "kernels" in module, path


def test_all_kernels_of_ours_are_kept_in_one_folder():
    kernels = [value for module in (tensor, vmath, warp) for value in vars(module).values()]
    places = {kernel.stats.cache_path for kernel in kernels if isinstance(kernel, Dispatcher)}
    assert places == {str(cache.ours().folder())}
