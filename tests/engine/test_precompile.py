"""Warming compiles all that a run will call: no rank compiles after it."""

import json
import sys
from pathlib import Path

import numba.core.config
import pytest
from numba.core.dispatcher import Dispatcher
from support import launch

from mpiimg.astro.kernels import bad_pixels, coadd, cosmic_search, cosmics, robust, warp
from mpiimg.engine import plugins, precompile
from mpiimg.kernels import cache, vmath
from mpiimg.kernels.disk import kept
from mpiimg.neuro.kernels import (
    median,
    nlmeans,
    otsu,
    piesno,
    tensor,
    tensor_blocks,
    tensor_maps,
    tensor_solve,
)
from mpiimg.tools import cli

KERNELS = (
    *(median, nlmeans, otsu, piesno, tensor, tensor_blocks, tensor_maps, tensor_solve),
    *(vmath, cosmic_search, cosmics, bad_pixels, warp, coadd, robust),
)


def signatures():
    """Return how many types each kernel is compiled for."""
    return {
        f"{module.__name__}.{name}": len(kernel.signatures)
        for module in KERNELS
        for name, kernel in vars(module).items()
        if isinstance(kernel, Dispatcher)
    }


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Simulate a head with more voxels a line than a tile of the median filter has."""
    folder = tmp_path_factory.mktemp("head")
    arguments = ["neuro", "--shape", "56x52x8", "--volumes", "8", "--out", str(folder), "--quiet"]
    assert cli.main("mpiimg-simulate", arguments) == 0
    return folder


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Simulate two exposures of one field."""
    folder = tmp_path_factory.mktemp("sky")
    arguments = ["astro", "--visits", "2", "--sensors", "1", "--shape", "200x220", "--out", str(folder)]
    assert cli.main("mpiimg-simulate", [*arguments, "--quiet"]) == 0
    return sorted(map(str, folder.glob("*.fits")))


def test_a_survey_compiles_nothing_after_warming(sky, tmp_path):
    precompile.compile_here(plugins.kernels())
    before = signatures()
    assert (
        min(before["mpiimg.astro.kernels.cosmics._repair"], before["mpiimg.astro.kernels.cosmics._gather"])
        > 0
    )
    tract = ["--patch", "300", "--border", "20", "--quiet"]
    for statistic in ("clip", "median", "compare"):
        arguments = [*sky, "--out", str(tmp_path / statistic), *tract, "--statistic", statistic]
        assert cli.main("mpiimg-astro", arguments) == 0
    calibrated = tmp_path / "calibrated"
    assert cli.main("mpiimg-calibrate", [*sky, "--out", str(calibrated), "--quiet"]) == 0
    exposures = sorted(map(str, calibrated.glob("*.fits")))
    assert cli.main("mpiimg-warp", [*exposures, "--out", str(tmp_path / "warps"), *tract]) == 0
    out = ["--out", str(tmp_path / "patches"), "--quiet"]
    assert cli.main("mpiimg-coadd", [str(tmp_path / "warps"), *out]) == 0
    assert signatures() == before


def test_a_run_compiles_nothing_after_warming(head, tmp_path):
    precompile.compile_here(plugins.kernels())
    before = signatures()
    assert sum(before.values()) >= 10
    gradients = [
        str(head / "dwi.nii.gz"),
        "--bvals",
        str(head / "dwi.bval"),
        "--bvecs",
        str(head / "dwi.bvec"),
    ]
    arguments = [*gradients, "--out", str(tmp_path), "--fit-residual", "--quiet"]
    assert cli.main("mpiimg-neuro", arguments) == 0
    mask = str(tmp_path / "dwi_desc-brain_mask.nii.gz")
    arguments = [*gradients, "--mask", mask, "--out", str(tmp_path / "ols"), "--method", "ols", "--quiet"]
    assert cli.main("mpiimg-fit", arguments) == 0
    assert signatures() == before


COLD_START = """
import sys
from mpiimg.engine.mpi import runtime
from mpiimg.engine.precompile import compile_here
from mpiimg.engine.run import compile_kernels
from mpiimg.neuro.kernels import median, nlmeans

comm = runtime.world()
compile_kernels((sys.argv[1],), comm)
compile_here([sys.argv[1]])
module = median if "median" in sys.argv[1] else nlmeans
kernels = [kernel for kernel in vars(module).values() if hasattr(kernel, "stats")]
compiled = comm.gather(sum(len(kernel.stats.cache_misses) for kernel in kernels))
runtime.say(comm, compiled, sys.stdout)
"""


@pytest.mark.parametrize(
    "ranks, part", [(4, "median"), pytest.param(16, "nlmeans", marks=pytest.mark.long)], ids=str
)
def test_ranks_that_start_cold_compile_once(tmp_path, ranks, part):
    """On two cores, with an empty cache, and none of them itself; the next start says nothing."""
    script = tmp_path / "cold.py"
    script.write_text(COLD_START)
    for count, compilers in ((ranks, 1), (2, 0)):
        kernels = f"mpiimg.neuro.kernels.{part}:precompile"
        command = [*launch.mpiexec(count), sys.executable, script, kernels]
        done = launch.run(command, env={"NUMBA_CACHE_DIR": str(tmp_path / "cache")}, timeout=240)
        compiled = json.loads(done.stdout)
        assert len(compiled) == count
        assert not any(compiled)
        assert done.stderr.count("compiling kernels on one rank of each node") == compilers


def test_a_compiler_that_does_not_start_is_done_without(monkeypatch):
    compiled = []
    monkeypatch.setattr(precompile, "missing", lambda kernels: list(kernels))
    monkeypatch.setattr(precompile, "compile_here", lambda kernels: compiled.extend(kernels))
    for program in ("/nowhere/python", "false"):
        monkeypatch.setattr(sys, "executable", program)
        precompile.compile_apart(["fit:precompile", "mask:precompile"])
        assert compiled == ["fit:precompile", "mask:precompile"]
        compiled.clear()


def test_a_compiler_is_told_its_cpu_and_takes_itself_for_no_rank(monkeypatch):
    started = []

    class Compiler:
        def __init__(self, command, env, **how):
            started.append((command, env))

        def poll(self):
            return 0

    monkeypatch.setattr(precompile.subprocess, "Popen", Compiler)
    monkeypatch.setattr(precompile, "missing", lambda kernels: [])
    monkeypatch.setattr(precompile.jit, "cpu_target", lambda: precompile.jit.PORTABLE_CPU)
    of_ranks = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    for name in of_ranks:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
    precompile.compile_apart(["fit:precompile"])
    ((command, environment),) = started
    assert command[-2:] == ["--portable", "fit:precompile"]
    assert "-P" in command, "a random.py in the current folder would be taken for Python's own"
    assert environment["NUMBA_CACHE_DIR"] == "/somewhere"
    assert not environment.keys() & set(of_ranks)


def noted(monkeypatch, folder) -> Path:
    """Compile two made-up kernels into a folder of their own, and return that."""
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(folder))
    monkeypatch.setattr(cache, "used_files", set())

    def load(name):
        def work():
            kept.write(cache.ours().make_folder() / f"{name[0]}.nbc", b"code", 0o644)
            cache.used_files.add(f"{name[0]}.nbc")

        return work

    monkeypatch.setattr(precompile, "load_object", load)
    precompile.compile_here(["a:one", "b:two"])
    assert precompile.missing(["a:one", "b:two", "c:three"]) == ["c:three"]
    return cache.ours().folder()


@pytest.mark.parametrize("damage", [b"", b"mpiimg kernel 1\n", None])
def test_what_is_noted_but_damaged_or_gone_is_missing(monkeypatch, tmp_path, damage):
    folder = noted(monkeypatch, tmp_path)
    if damage is None:
        (folder / "b.nbc").unlink()
    else:
        (folder / "b.nbc").write_bytes(damage)
    assert precompile.missing(["a:one", "b:two"]) == ["b:two"]
    precompile.compile_here(["b:two"])
    assert precompile.missing(["a:one", "b:two"]) == []


@pytest.mark.parametrize("note", ["", "{}", "[]", "null", '{"files": []}', "\0" * 100])
def test_a_damaged_note_is_as_none(monkeypatch, tmp_path, note):
    folder = noted(monkeypatch, tmp_path)
    (folder / "compiled-a.one").write_text(note)
    assert precompile.missing(["a:one", "b:two"]) == ["a:one"]


def test_a_place_that_others_may_write_to_is_said_and_has_nothing(monkeypatch, tmp_path):
    noted(monkeypatch, tmp_path / "kernels")
    (tmp_path / "kernels").chmod(0o777)
    assert precompile.untrusted() == [f"others may write to {tmp_path / 'kernels'}"]
    assert not any(folder.is_relative_to(tmp_path) for folder in cache.ours().folders())
