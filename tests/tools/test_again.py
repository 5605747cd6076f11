"""The same command again, by the real tools: done is done, another run is refused, results are verified."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest
from support import sabotage, warm
from support.astro_data import TRACT, observe
from support.subjects import PATIENCE, Subject

from mpiimg.engine.mpi.runtime import world
from mpiimg.simulate.astro import SimulatedSurvey
from mpiimg.tools import api

pytestmark = pytest.mark.tool


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Subject:
    """A simulated head, 12 x 14 x 16 voxels and 8 volumes."""
    out = tmp_path_factory.mktemp("head")
    size = ("--shape", "12x14x16", "--volumes", 8)
    warm.run_tool("mpiimg-simulate", "neuro", *size, "--out", out, timeout=PATIENCE)
    return Subject(out / "dwi.nii.gz", out / "dwi.bval", out / "dwi.bvec")


@pytest.fixture(scope="module")
def exposures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sky") / "night"
    return observe(folder, SimulatedSurvey(2, 1, (300, 320), seed=3)).exposures


FUNCTION = """
from mpiimg import udf

@udf(over="volumes")
def twice(volume):
    return volume * {factor}.0
"""


@pytest.fixture
def function(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FUNCTION.format(factor=2))
    return path


def words_of(name, head, exposures, function, out) -> list:
    """Return a command line of a tool by its name."""
    return {
        "mask": ["mpiimg-mask", *head.arguments, "--out", out],
        "stage": ["mpiimg-stage", head.dwi, out / "dwi.h5"],
        "run": ["mpiimg-run", "--udf", f"{function}:twice", head.dwi, "--out", out],
        "astro": ["mpiimg-astro", *exposures, "--out", out, *TRACT],
        "simulate": ["mpiimg-simulate", "neuro", "--shape", "6x7x8", "--volumes", 8, "--out", out],
    }[name]


def files_of(folder):
    """Return path, time and content of all files, but of events."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".jsonl"
    }


def again(words, **how):
    done = warm.run_tool(*words, check=False, timeout=PATIENCE, **how)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("name", ["mask", "stage", "run", "astro", "simulate"])
def test_the_same_command_after_success_is_success_in_one_line(name, head, exposures, function, tmp_path):
    out = tmp_path / "out"
    words = words_of(name, head, exposures, function, out)
    warm.run_tool(*words, timeout=PATIENCE)
    before = files_of(out)
    done = again(words)
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("mpiimg: already done: ") and str(out) in line
    assert files_of(out) == before
    assert again(["mpiimg-status", "--verify", out]).stdout.endswith("as they were written\n")
    assert again([*words, "--force"]).returncode == 0
    after = files_of(out)
    results = {path: data for path, (_, data) in after.items() if path.suffix != ".json"}
    assert results == {path: data for path, (_, data) in before.items() if path.suffix != ".json"}
    assert all(time > before[path][0] for path, (time, _) in after.items())


def test_results_are_verified_against_the_record(head, tmp_path):
    out = tmp_path / "out"
    warm.run_tool("mpiimg-mask", *head.arguments, "--out", out, timeout=PATIENCE)
    mask = out / "dwi_desc-brain_mask.nii.gz"
    data = bytearray(mask.read_bytes())
    data[-20] ^= 1
    mask.write_bytes(data)
    done = again(["mpiimg-status", "--verify", out])
    (line,) = done.stdout.splitlines()
    assert done.returncode == 1 and line.startswith(f"{mask}: has the CRC32 ")
    (out / "dwi_desc-brain_mask.json").unlink()
    done = again(["mpiimg-status", "--verify", "--json", out])
    said = json.loads(done.stdout)
    assert done.returncode == 1 and len(said["differences"]) == 2
    assert again(["mpiimg-status", "--verify", tmp_path]).returncode == 2


def test_a_table_that_changed_is_another_run(head, tmp_path):
    """Its path and all parameters are the same."""
    bvals = tmp_path / "bvals"
    shutil.copy(head.bvals, bvals)
    for arguments in (
        dataclasses.replace(head, bvals=bvals).arguments,
        [_beside(head, tmp_path / "beside")],
    ):
        out = tmp_path / f"out-{len(arguments)}"
        words = ["mpiimg-mask", *arguments, "--out", out]
        if len(arguments) == 1:
            words = ["mpiimg-run", "--udf", _function_of_bvals(tmp_path), *arguments, "--out", out]
            bvals = arguments[0].with_name("dwi.bval")
        warm.run_tool(*words, timeout=PATIENCE)
        text = bvals.read_text()
        bvals.write_text(text.replace("1000", "1001", 1))
        done = again(words)
        assert done.returncode == 2 and "input bvals was changed" in done.stderr
        bvals.write_text(text)
        assert again(words).returncode == 0


def _beside(head, folder):
    folder.mkdir()
    return [shutil.copy(path, folder / path.name) for path in (head.bvals, head.bvecs, head.dwi)][-1]


def _function_of_bvals(folder):
    path = folder / "of_bvals.py"
    path.write_text(
        "from mpiimg import udf\n\n@udf(over='volumes')\ndef f(volume, bvals):\n    return volume * 1.0\n"
    )
    return f"{path}:f"


def test_a_tract_or_a_function_that_changed_is_another_run(head, exposures, function, tmp_path):
    tract = tmp_path / "tract.toml"
    out = tmp_path / "first"
    warm.run_tool("mpiimg-astro", *exposures, "--out", out, *TRACT, timeout=PATIENCE)
    shutil.copy(out / "tract.toml", tract)
    words = ["mpiimg-astro", *exposures, "--tract", tract, "--out", tmp_path / "second"]
    warm.run_tool(*words, timeout=PATIENCE)
    tract.write_text(tract.read_text().replace("border = 50", "border = 40"))
    done = again(words)
    assert done.returncode == 2 and "input tract was changed" in done.stderr
    words = ["mpiimg-run", "--udf", f"{function}:twice", head.dwi, "--out", tmp_path / "third"]
    warm.run_tool(*words, timeout=PATIENCE)
    function.write_text(FUNCTION.format(factor=3))
    done = again(words)
    assert done.returncode == 2 and "input functions was changed" in done.stderr


def test_images_and_exposures_of_one_name_are_two(head, exposures, tmp_path):
    """In one folder of results the second is refused; and of two exposures each has its entry in run.json."""
    images = [_beside(head, tmp_path / name) for name in "AB"]
    changed = tmp_path / "B" / "dwi.nii.gz"
    warm.run_tool(
        "mpiimg-simulate",
        "neuro",
        "--shape",
        "12x14x16",
        "--volumes",
        8,
        "--seed",
        9,
        "--out",
        tmp_path / "other",
        timeout=PATIENCE,
    )
    shutil.copy(tmp_path / "other" / "dwi.nii.gz", changed)
    words = [
        ["mpiimg-mask", one, "--bvals", head.bvals, "--bvecs", head.bvecs, "--out", tmp_path / "out"]
        for one in images
    ]
    warm.run_tool(*words[0], timeout=PATIENCE)
    done = again(words[1])
    assert (done.returncode == 2 and "dwi was changed" in done.stderr) or "--dwi" in done.stderr
    assert again(words[0]).returncode == 0
    nights = [tmp_path / f"night{n}" / "img.fits" for n in (1, 2)]
    for night, exposure in zip(nights, exposures, strict=True):
        night.parent.mkdir()
        shutil.copy(exposure, night)
    warm.run_tool("mpiimg-astro", *nights, "--out", tmp_path / "sky", *TRACT, timeout=PATIENCE)
    inputs = json.loads((tmp_path / "sky" / "run.json").read_text())["inputs"]
    assert set(inputs) == set(map(str, nights))


def test_from_python_the_record_of_then_is_returned(head, tmp_path):
    def run():
        return api.run("mask", head.dwi, tmp_path / "out", bvals=head.bvals, bvecs=head.bvecs, comm=world())

    first, second = run(), run()
    assert second.record["run"] == first.record["run"]
    assert (second.files, second.left_out) == (first.files, first.left_out)


# An exit status that the run did not write.


def test_a_status_that_something_else_ended_the_run_with_is_not_confirmed(head, tmp_path, monkeypatch):
    """Also where a run before it said so."""
    words = ["mpiimg-neuro", *head.arguments, "--out", tmp_path / "out"]

    def is_confirmed(run, status, *more, **how):
        monkeypatch.setenv("MPIIMG_RUN", run)
        if how or not more:
            again([*words, *more], ranks=1, **how)
        done = again([*words, f"--ended={status}"], ranks=1)
        assert (done.returncode == 0) == (done.stderr == "")
        assert done.returncode in (0, 1)
        return done.returncode == 0

    assert is_confirmed("7.0.1", 0)
    for status in (0, 3, 75):
        leaving = sabotage.install(tmp_path / f"leaving-{status}", f"os._exit({status})")
        assert not is_confirmed("7.0.2", status, "--force", sabotaged=leaving)
    # What finds the work done, or goes on with it, says so for itself.
    assert is_confirmed("7.0.3", 0) and not is_confirmed("7.0.4", 75)


# Durable.

#: Notes what was synced: inode, size, time, and the names in a folder.
NOTED = """
import json, os
{body}
def looking(original):
    def sync(descriptor):
        status, names = os.fstat(descriptor), []
        if os.path.isdir(f"/proc/self/fd/{{descriptor}}"):
            names = os.listdir(descriptor)
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(json.dumps([status.st_ino, status.st_size, status.st_mtime_ns, names]) + "\\n")
        return original(descriptor)
    return sync

for name in ("fsync", "fdatasync"):
    setattr(os, name, looking(getattr(os, name)))
"""


@pytest.mark.parametrize("name", ["mask", "stage", "run", "astro", "simulate"])
def test_every_result_would_survive_a_power_loss(name, head, exposures, function, tmp_path, monkeypatch):
    """Each file was synced after its last write, and each folder once it had the name."""
    out = tmp_path / "new" / "out"
    noting = sabotage.install(tmp_path / "noting", "", NOTED)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    words = words_of(name, head, exposures, function, out)
    warm.run_tool(*words, ranks=2, sabotaged=noting, timeout=PATIENCE)
    files, folders = set(), {}
    for line in (tmp_path / "notes").read_text().splitlines():
        inode, size, time, names = json.loads(line)
        files.add((inode, size, time))
        folders.setdefault(inode, set()).update(names)
    results = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    assert len(results) > 1
    for path in results:
        status = path.stat()
        assert (status.st_ino, status.st_size, status.st_mtime_ns) in files, path
        while path != tmp_path:
            assert path.name in folders[path.parent.stat().st_ino], path
            path = path.parent
    record = json.loads(
        next(
            path for path in results if path.suffix == ".json" and b'"outputs"' in path.read_bytes()
        ).read_bytes()
    )
    for file, said in record["outputs"].items():
        data = (out / file).read_bytes()
        assert said == {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    assert os.path.normpath(record["folder"]) == "."
