"""The same bytes for any ranks, memory and place of arrays, killed and resumed: scripts as users run them."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support import launch

SUPPORT = launch.REPOSITORY / "tests" / "support"

ENVIRONMENT = {"PYTHONPATH": str(launch.REPOSITORY)}

pytestmark = pytest.mark.tool


def digests(folder, ranks, examples, *more):
    """Return what random graphs come to, in a run of its own."""
    command = [
        *launch.mpiexec(ranks),
        sys.executable,
        SUPPORT / "graph_digests.py",
        folder / "session",
        examples,
        *more,
    ]
    lines = launch.run(command, env=ENVIRONMENT, timeout=600, cwd=folder).stdout.split()
    assert len(lines) == ranks * examples
    found = sorted(set(lines))
    # Every rank has computed the same.
    assert all(lines.count(line) % ranks == 0 for line in found)
    return found


def test_random_graphs_are_the_same_on_any_ranks(tmp_path):
    assert digests(tmp_path, 1, 12) == digests(tmp_path, 3, 12)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 5, 7])
def test_many_random_graphs_are_the_same_on_any_ranks(tmp_path, ranks):
    assert digests(tmp_path, 1, 60) == digests(tmp_path, ranks, 60)


SCRIPT = """
import sys
import numpy as np
import mpiimg as mi

a = np.random.default_rng(0).normal(size=(24, 300, 250)).astype("f4")
x = mi.from_array(a, "t y x")

def twice(block):
    return 2 * block

def smooth(block):
    return (np.roll(block, 1, 0) + block + np.roll(block, -1, 0)) / 3

y = mi.map_blocks(twice, x, each="t")
z = mi.map_overlap(smooth, y, depth={"y": 1}, boundary="reflect", each="t")
m = (z - z.mean("t")).std("t")
options = dict(word.split("=") for word in sys.argv[2:])
mi.write({"m.npy": m, "z.npy": z, "s.npy": z.sum()}, sys.argv[1], memory=options.get("memory"),
         in_memory="in_memory" in options)
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The results of one rank, and the script that makes them."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "pipeline.py").write_text(SCRIPT)
    launch.run([sys.executable, folder / "pipeline.py", folder / "out"], env=ENVIRONMENT, cwd=folder)
    return folder


def assert_same(reference, folder):
    for name in ("m.npy", "z.npy", "s.npy"):
        assert (folder / name).read_bytes() == (reference / "out" / name).read_bytes(), name


def test_results_are_what_numpy_makes_of_the_same(reference):
    a = np.random.default_rng(0).normal(size=(24, 300, 250)).astype("f4")
    y = np.pad(2 * a, ((0, 0), (1, 1), (0, 0)), mode="symmetric")
    z = (y[:, :-2] + y[:, 1:-1] + y[:, 2:]) / np.float32(3)
    np.testing.assert_allclose(np.load(reference / "out" / "z.npy"), z, rtol=1e-6, atol=1e-6)
    z = np.load(reference / "out" / "z.npy")
    mean = z.mean(axis=0, dtype="f8").astype("f4")
    np.testing.assert_allclose(
        np.load(reference / "out" / "m.npy"), (z - mean).std(axis=0, dtype="f8"), rtol=1e-5
    )
    # Of all items by one accumulator, so to the last digits of float32.
    assert np.load(reference / "out" / "s.npy") == pytest.approx(z.sum(dtype="f8"), rel=1e-6)


@pytest.mark.parametrize(
    "ranks, words",
    [(3, ()), (2, ("in_memory=yes",)), (2, ("memory=170M",))],
    ids=["3-ranks", "in-memory", "capped"],
)
def test_ranks_memory_and_place_change_no_byte(reference, tmp_path, ranks, words):
    command = [*launch.mpiexec(ranks), sys.executable, reference / "pipeline.py", tmp_path / "out", *words]
    launch.run(command, env=ENVIRONMENT, cwd=tmp_path)
    assert_same(reference, tmp_path / "out")


def test_a_run_that_was_killed_goes_on_where_it_was(reference, tmp_path):
    """On another number of ranks, with the same bytes; what is marked is not done again."""
    slow = SCRIPT.replace("    return 2 * block", "    import time; time.sleep(0.2)\n    return 2 * block")
    (tmp_path / "pipeline.py").write_text(slow)
    command = [sys.executable, str(tmp_path / "pipeline.py"), str(tmp_path / "out")]
    first = subprocess.Popen(
        command,
        env=launch.environment(**ENVIRONMENT),
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
    )
    journals = tmp_path / "out" / "work"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and first.poll() is None:
        # Marks are written every five seconds.
        if any(path.stat().st_size for path in journals.rglob("*.jsonl")):
            break
        time.sleep(0.1)
    assert first.poll() is None, first.stderr.read()
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    launch.run([*launch.mpiexec(2), *command], env=ENVIRONMENT, cwd=tmp_path, timeout=120)
    import json

    stages = json.loads((tmp_path / "out" / "run.json").read_text())["stages"]
    twice = next(stage for stage in stages if stage["stage"].startswith("twice"))
    assert twice["resumed_chunks"] > 0
    assert_same(reference, tmp_path / "out")


ITERATED = """
import sys, time
import numpy as np
import mpiimg as mi

x = mi.from_array(np.arange(6.0), "x")

def step(block):
    with open("log", "a") as log:
        print("step", file=log)
    return block / 2

def enough(state):
    return state.max() < 0.1

with mi.session("kept", keep_work=True):
    state = mi.iterate(lambda state: mi.map_blocks(step, state), x, until=enough, at_most=30)
    print(state.sum().compute())
"""


def test_a_loop_that_is_run_again_takes_its_passes_up(tmp_path):
    (tmp_path / "loop.py").write_text(ITERATED)
    said = []
    for _ in range(2):
        said.append(launch.run([sys.executable, tmp_path / "loop.py"], env=ENVIRONMENT, cwd=tmp_path).stdout)
    assert float(said[0]) == float(said[1]) == np.arange(6.0).sum() / 2**6
    # A call for each pass, and two in the rehearsal of each; none the second time.
    assert len((tmp_path / "log").read_text().split()) <= 6 * 3
