"""Who may import whom, and the rules of the house that a parser can check."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

import mpiimg

PACKAGE = pathlib.Path(mpiimg.__file__).parent
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}

#: Room -> rooms of ours that it may import. Everybody may import errors and the version.
BELOW = {"engine", "formats", "kernels", "report"}
MAY_IMPORT = {
    "__init__": {"engine"},  # when it is used, and at the end of a script
    "__main__": {"tools"},
    "errors": set(),
    "version": set(),
    "kernels": {"kernels"},
    "engine": {"engine", "kernels"},
    "formats": {"formats", "engine"},
    "report": {"report", "engine"},
    "neuro": {"neuro", *BELOW},
    "astro": {"astro", *BELOW},
    "simulate": {"simulate", "neuro", "astro", *BELOW},
    "arrays": {"arrays", "simulate", "neuro", "astro", *BELOW},
    "functions": {"functions", "arrays", "neuro", "astro", *BELOW},
    "tools": {"tools", "functions", "arrays", "simulate", "neuro", "astro", *BELOW},
    "demo": {"demo", "tools", "functions", "arrays", "simulate", "neuro", "astro", *BELOW},
}

#: Rooms, or rooms within them, whose files must not import these libraries, wherever in the file.
MUST_NOT_IMPORT = {
    "errors": {"mpi4py", "h5py", "nibabel", "astropy", "numba", "dipy", "scipy", "numpy"},
    "engine/boxes": {"mpi4py", "h5py", "nibabel", "astropy", "numba", "dipy", "scipy"},
    "engine": {"nibabel", "astropy", "dipy", "scipy", "sep"},
    "engine/mpi": {"h5py", "numba"},
    "kernels": {"mpi4py", "h5py", "nibabel", "astropy"},
    "neuro": {"mpi4py"},
    "neuro/kernels": {"h5py", "nibabel"},
    "astro": {"mpi4py", "h5py"},
    "astro/kernels": {"astropy"},
    "simulate": {"mpi4py", "h5py"},
    "functions": {"mpi4py", "h5py"},
}


def layer(name):
    return pathlib.PurePath(name).with_suffix("").parts[0]


def rooms(name):
    """The room of a file and those within it, outer ones first: engine, engine/mpi, engine/mpi/runtime."""
    parts = pathlib.PurePath(name).with_suffix("").parts
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def imports(path):
    """Every module that a file imports, anywhere, as dotted names with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["mpiimg", *path.relative_to(PACKAGE).parts][: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            # `from mpiimg.engine import stores` names a module of ours behind "import".
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


def test_every_file_belongs_to_a_room():
    assert {layer(name) for name in FILES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("name", FILES)
def test_imports_follow_the_rooms(name):
    here = layer(name)
    forbidden = set().union(*(MUST_NOT_IMPORT.get(room, ()) for room in rooms(name)))
    for module, line in imports(FILES[name]):
        other = ours(module)
        if other not in (None, "errors", "version"):
            assert other in MAY_IMPORT[here], f"{name}:{line}: {here} may not import {module}"
        assert module.split(".")[0] not in forbidden, f"{name}:{line}: may not import {module}"


def test_the_command_line_is_parsed_in_tools_only():
    """No argparse, and no Namespace in a signature, below the tools and the demo, which are programs."""
    for name, path in FILES.items():
        if layer(name) not in ("tools", "demo"):
            assert "argparse" not in path.read_text(), name


def test_the_environment_is_read_where_mpi_starts_and_in_programs_only():
    reads = places(
        lambda node: isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    )
    allowed = ("engine/mpi", "tools", "demo")
    assert [name for name in reads if not any(room in allowed for room in rooms(name))] == []


def test_what_import_mpiimg_offers_is_a_table_of_places():
    """`__init__` holds names and modules, a function that looks them up, and one for the end of a script."""
    tree = ast.parse(FILES["__init__.py"].read_text())
    functions = tree.body[4:]
    assert [type(node).__name__ for node in tree.body[:2]] == ["Expr", "Import"]
    assert [node.name for node in functions] == ["__getattr__", "_end"]
    places_of = mpiimg._PLACES
    assert set(mpiimg.__all__) == {n for n in places_of if not n.startswith("_")}
    assert all((PACKAGE.parent / f"{place.replace('.', '/')}.py").exists() for place in places_of.values())


def test_editors_and_type_checkers_are_told_the_same_places():
    """The stub beside `__init__` names each place, and the type checker looks at each."""
    nodes = [node for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body]
    told = {node.names[0].asname: node.module for node in nodes}
    assert told == mpiimg._PLACES
    assert len(nodes) == len(told) and all(node.names[0].name == node.names[0].asname for node in nodes)
    checked = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    assert {f"{place.replace('.', '/')}.py" for place in told.values()} < set(checked)


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
        ("astro/kernels", "mpi4py h5py nibabel astropy"),
        ("neuro/kernels", "mpi4py h5py nibabel astropy"),
        ("neuro/steps", "mpi4py h5py nibabel"),
        ("astro/steps", "mpi4py h5py nibabel"),
        ("engine", "mpi4py h5py nibabel astropy"),
        ("engine/mpi", "mpi4py h5py nibabel numba"),
    ],
)
def test_what_a_layer_avoids_does_not_come_in_by_the_back_door(here, libraries):
    """Loading all of a layer loads none of these, through whatever it imports of ours."""
    modules = [
        ".".join(("mpiimg", *pathlib.PurePath(name).with_suffix("").parts))
        for name in FILES
        if here in rooms(name) and not name.endswith("__init__.py")
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
    every = "[cli.parser(name).format_help() for name in registry.tool_names()]"
    assert loaded_by(f"from mpiimg.tools import cli, registry; {every}", heavy) == []


def test_importing_mpiimg_loads_nothing_and_declaring_a_function_little():
    heavy = ["mpi4py", "numba", "dipy", "h5py", "nibabel", "scipy", "astropy", "isal"]
    assert loaded_by("import mpiimg", [*heavy, "numpy", "mpiimg.tools.api"]) == []
    assert loaded_by("import mpiimg; mpiimg.udf(halo=2)(lambda block: block); mpiimg.run", heavy) == []


def test_world_is_named_in_one_file():
    named = places(lambda node: isinstance(node, ast.Attribute) and node.attr.startswith("COMM_WORLD"))
    assert list(named) == ["engine/mpi/runtime.py"]


def test_mpi_is_imported_in_functions_only():
    """mpi4py starts MPI when it is imported: nobody does so by importing a module of ours."""
    for name, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not any(m.split(".")[0] == "mpi4py" for m in modules), f"{name}:{node.lineno}"
    assert loaded_by("import mpiimg.engine.run, mpiimg.neuro.subject", ["mpi4py"]) == []


def is_rank_test(node):
    """Say whether `node` compares a rank with a literal number."""
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    rank = any(getattr(side, "attr", getattr(side, "id", "")).lstrip("_") == "rank" for side in sides)
    return rank and any(isinstance(side, ast.Constant) for side in sides)


def test_no_rank_is_special_in_the_science():
    """Tests of rank 0 stay where data move, and are few. (A kernel's rank is that of a number in order.)"""
    found = {name: lines for name, lines in places(is_rank_test).items() if "kernels" not in name}
    assert {layer(name) for name in found} <= {"engine", "tools"}
    lines = sum(len(path.read_text().splitlines()) for path in FILES.values())
    assert sum(map(len, found.values())) < 1e-3 * lines


def test_kernels_know_no_world():
    """Kernels print nothing, open nothing, log nothing, and go through the one decorator."""
    for name, path in FILES.items():
        in_kernels = pathlib.PurePath(name).parent.name == "kernels"
        if not in_kernels or pathlib.PurePath(name).stem in ("jit", "cache", "__init__"):
            continue
        modules = {module.split(".")[0] for module, _ in imports(path)}
        assert not modules & {"logging", "os", "pathlib", "sys", "io"}, name
        tree = ast.parse(path.read_text())
        assert not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"open", "print"}
        compilers = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not compilers & {"njit", "jit", "vectorize", "guvectorize"}, name
