"""The roofline: counts against loops of the same bounds, the machine code of its loops, its table."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from support import launch

BENCHMARKS = launch.REPOSITORY / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Let tests import the scripts, which are no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_a_loop_has_the_instructions_that_its_rate_is_told_of():
    import machine

    names = machine.order(machine.Work(fma=2, add=1, load=1))
    assert machine.done(names).operations() == 2 * names.count("fma") + names.count("add")
    loop = machine.Loop("float32", machine.Work(fma=2, add=1, load=1), 32)
    text = "".join(loop.function.inspect_asm().values())
    if "vfmadd" not in text:
        pytest.skip("this CPU has no fused multiply-add")
    assert text.count("vfmadd") == names.count("fma")
    assert text.count("\tvaddps") == names.count("add")
    assert loop.rate() > 0


def test_work_adds_up_and_counts_a_fused_multiply_add_twice():
    from machine import Work

    work = 2 * Work(fma=3, add=1, compare=1, load=5) + Work(divide=1, integer=4)
    assert work.operations() == 2 * (6 + 1 + 1) + 1 + 4
    assert work.flops() == 2 * (6 + 1) + 1


def test_the_tiles_of_denoising_are_counted_as_the_kernel_cuts_them():
    import operations

    mask = np.zeros((5, 30, 100), bool)
    mask[1, 2:20, 3:80] = True  # one group of slices, strips of 10 and 8 rows, 62 and 15 columns
    assert operations.nlmeans_tiles(mask, 8) == (
        (64 + 32) * (10 + 2 + 8 + 2),
        (64 + 32) * (10 + 8) * 4,
    )
    mask[4, 7, 7] = True  # another group, of one row and one vector
    assert operations.nlmeans_tiles(mask, 8) == (96 * 22 + 16 * 3, 96 * 72 + 16 * 4)


def test_the_solver_is_counted_as_its_loops_run():
    """Counts by loops of the same bounds as those of a textbook's Cholesky solver."""
    import operations

    n = 7
    factor = sum(1 for q in range(n) for r in range(q + 1) for _ in range(r))
    substitution = sum(1 for q in range(n) for _ in range(q))
    counted = operations.wls_voxel()
    assert counted.fma == factor + 2 * substitution
    tests = n  # of each pivot, against a part of its diagonal element
    assert counted.multiply == n * (n - 1) // 2 + 2 * n + tests
    assert counted.root == counted.divide == n


def test_every_kernel_gets_a_row_whose_columns_agree(tmp_path, monkeypatch):
    import machine
    import operations
    import roofline

    # One width, and times too short to tell anything: for the shape alone.
    monkeypatch.setattr(machine, "LEAST", 1e-5)
    monkeypatch.setattr(machine, "WIDTHS", (32,))
    monkeypatch.setattr(roofline, "ARITHMETIC", {"fused multiply-add": machine.Work(fma=1)})
    monkeypatch.setattr(roofline, "SIZES_OF_STREAMS", {"memory": (1, 8.0), "second-level cache": (1, 0.5)})
    assert roofline.main(["--size", "tiny", "--rounds", "1", "--no-count", "--out", str(tmp_path)]) == 0
    (table,) = (path for path in tmp_path.glob("*.csv") if "limits" not in path.name)
    rows = list(csv.DictReader(table.open()))
    assert [row["kernel"] for row in rows] == list(operations.KERNELS)
    for row in rows:
        values = {
            key: float(row[key]) for key in ("operations", "bytes", "intensity", "roof_share", "useful")
        }
        assert all(value > 0 for value in values.values()) and values["useful"] <= 1
        assert values["intensity"] == pytest.approx(values["operations"] / values["bytes"])
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.md"))) == 1


def test_a_wrong_kernel_is_told_in_a_line():
    command = [sys.executable, BENCHMARKS / "roofline.py", "--only", "none"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 2 and "invalid choice" in told.stderr
