"""Who may import whom, and the rules of the house that a parser can check."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

import mpiimg

PACKAGE = pathlib.Path(mpiimg.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}

#: Layer -> layers of ours that it may import. Everybody may import errors and the version in mpiimg itself.
MAY_IMPORT = {
    "__init__": {"api"},
    "api": {"tools", "pipeline", "stages", "comm"},
    "errors": set(),
    "partition": set(),
    "kernels": {"kernels"},
    "comm": {"comm", "partition"},
    "io": {"io", "partition"},
    "stages": {"stages", "kernels", "io", "partition"},
    "simulate": {"simulate", "kernels", "io", "stages", "partition"},
    "pipeline": {"pipeline", "stages", "simulate", "comm", "io", "kernels", "partition"},
    "bids_app": {"pipeline", "comm", "io"},
    # Beside the pipeline: the parameters that stages declare, the runtime, and the target of the kernels.
    "tools": {"pipeline", "stages"},
    "cli": {"bids_app", "tools", "pipeline", "stages", "comm", "kernels"},
}

#: Libraries that a layer must not import, wherever in the file.
MUST_NOT_IMPORT = {
    "partition": {"mpi4py", "h5py", "nibabel", "astropy", "numba", "dipy", "scipy"},
    "errors": {"mpi4py", "h5py", "nibabel", "astropy", "numba", "dipy", "scipy", "numpy"},
    "kernels": {"mpi4py", "h5py", "nibabel", "astropy"},
    "comm": {"h5py", "nibabel", "astropy", "numba", "dipy", "scipy"},
    "io": {"mpi4py", "numba", "dipy", "scipy"},
    "stages": {"mpi4py", "h5py"},
    "simulate": {"mpi4py", "h5py"},
    "tools": {"mpi4py", "h5py", "numba", "dipy", "nibabel"},
    "bids_app": {"mpi4py", "h5py", "numba", "dipy", "nibabel"},
    "cli": {"mpi4py", "h5py", "numba", "dipy", "nibabel"},
    "api": {"mpi4py", "h5py", "numba", "dipy", "nibabel"},
}

#: Programs beside the layers: they start tools or draw what these wrote, and nothing imports them.
PROGRAMS = {"demo", "demo_picture"}


def layer(name):
    return pathlib.PurePath(name).with_suffix("").parts[0]


def imports(path):
    """Every module that a file imports, anywhere, as dotted names with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["mpiimg", *path.relative_to(PACKAGE).parts][: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            # `from mpiimg.io import store` names a module of ours behind "import".
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return found


def ours(module):
    """The layer that `module` belongs to, or None where it is no module of ours (or our version)."""
    parts = module.split(".")
    if parts[0] != "mpiimg" or len(parts) == 1:
        return None
    known = (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()
    return parts[1] if known else None


def places(kind):
    """Where a predicate holds for a node of the syntax tree: file -> lines."""
    found = {}
    for name, path in FILES.items():
        lines = sorted({node.lineno for node in ast.walk(ast.parse(path.read_text())) if kind(node)})
        if lines:
            found[name] = lines
    return found


def test_every_file_belongs_to_a_layer():
    assert {layer(name) for name in FILES} <= set(MAY_IMPORT) | PROGRAMS


@pytest.mark.parametrize("name", FILES)
def test_imports_follow_the_layers(name):
    here = layer(name)
    if here in PROGRAMS:
        return
    for module, line in imports(FILES[name]):
        other = ours(module)
        if other not in (None, "errors"):
            assert other in MAY_IMPORT[here], f"{name}:{line}: {here} may not import {module}"
        library = module.split(".")[0]
        assert library not in MUST_NOT_IMPORT.get(here, ()), f"{name}:{line}: {here} may not import {library}"


def loaded_by(statement, libraries):
    """Which of `libraries` a fresh Python has loaded after `statement`."""
    script = f"{statement}\nimport sys\nprint(*[m for m in {libraries!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("here", "libraries"),
    [
        ("kernels", "mpi4py h5py nibabel astropy"),
        ("simulate", "mpi4py h5py"),
        ("stages", "mpi4py h5py nibabel"),
        ("comm", "mpi4py h5py nibabel numba"),
    ],
)
def test_what_a_layer_avoids_does_not_come_in_by_the_back_door(here, libraries):
    """Loading all of a layer loads none of these, through whatever it imports of ours."""
    modules = [
        ".".join(("mpiimg", *pathlib.PurePath(name).with_suffix("").parts))
        for name in FILES
        if layer(name) == here and not name.endswith("__init__.py")
    ]
    assert modules
    assert loaded_by(f"import {', '.join(modules)}", libraries.split()) == []


def test_a_command_line_loads_nothing_heavy():
    """--help and a wrong flag answer without MPI, compilers and formats."""
    heavy = [
        "mpi4py",
        "numba",
        "dipy",
        "h5py",
        "nibabel",
        "scipy",
        "astropy",
        "matplotlib",
        "tqdm",
        "isal",
        "deflate",
    ]
    every = "[mpiimg.cli.parser(name).format_help() for name in mpiimg.cli.TOOLS]"
    assert loaded_by(f"import mpiimg.cli; {every}", heavy) == []


def test_importing_mpiimg_loads_nothing_and_declaring_a_function_little():
    heavy = ["mpi4py", "numba", "dipy", "h5py", "nibabel", "scipy", "astropy", "isal"]
    assert loaded_by("import mpiimg", [*heavy, "numpy", "mpiimg.api"]) == []
    assert loaded_by("import mpiimg; mpiimg.udf(halo=2)(lambda block: block); mpiimg.run", heavy) == []


def test_world_is_named_in_one_file():
    named = places(lambda node: isinstance(node, ast.Attribute) and node.attr.startswith("COMM_WORLD"))
    assert list(named) == ["comm/runtime.py"]


def test_mpi_is_imported_in_functions_only():
    """mpi4py starts MPI when it is imported: nobody does so by importing a module of ours."""
    for name, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not any(m.split(".")[0] == "mpi4py" for m in modules), f"{name}:{node.lineno}"
    assert loaded_by("import mpiimg.pipeline.run, mpiimg.pipeline.recipes", ["mpi4py"]) == []


def is_rank_test(node):
    """Say whether `node` compares a rank with a literal number."""
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    rank = any(getattr(side, "attr", getattr(side, "id", "")).lstrip("_") == "rank" for side in sides)
    return rank and any(isinstance(side, ast.Constant) for side in sides)


def test_no_rank_is_special_in_the_science():
    """Tests of rank 0 stay where data move, and are few. (A kernel's rank is that of a number in order.)"""
    found = {name: lines for name, lines in places(is_rank_test).items() if layer(name) != "kernels"}
    assert {layer(name) for name in found} <= {"comm", "io"}
    lines = sum(len(path.read_text().splitlines()) for path in FILES.values())
    assert sum(map(len, found.values())) < 1e-3 * lines


def test_kernels_know_no_world():
    """Kernels print nothing, open nothing, log nothing, and go through the one decorator."""
    for name, path in FILES.items():
        if layer(name) != "kernels" or pathlib.PurePath(name).stem in ("jit", "warm", "__init__"):
            continue
        modules = {module.split(".")[0] for module, _ in imports(path)}
        assert not modules & {"logging", "os", "pathlib", "sys", "io"}, name
        tree = ast.parse(path.read_text())
        assert not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"open", "print"}
        compilers = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not compilers & {"njit", "jit", "vectorize", "guvectorize"}, name
