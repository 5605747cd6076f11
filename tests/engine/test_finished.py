"""A run that is asked for again; and what its record says of its results, which are durable when it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib

import pytest
from engine.test_executor import Calls, check, first_ranks, go, options, work_folder
from engine.test_rerun import listed
from support import toy
from support.ranks import COMM

from mpiimg.engine import fingerprint, finished, results
from mpiimg.engine.run import run
from mpiimg.errors import BadInput, Exit, RunFailed

pytestmark = pytest.mark.ranks

RECORD = "run-toy.json"


@pytest.fixture
def out(tmp_path):
    return pathlib.Path(COMM.bcast(str(tmp_path))) / "out"


def again(made, out, capfd, comm=COMM, **fields):
    """Run once more; return how that ended, and what was said."""
    capfd.readouterr()
    outcome = run(made.recipe, comm, options(out, **fields))
    return outcome, capfd.readouterr().err


def on_first(function):
    """Change files on one rank, once all have looked at them, and before any goes on."""
    COMM.Barrier()
    if COMM.rank == 0:
        function()
    COMM.Barrier()


@pytest.mark.parametrize("fields", [{}, {"in_memory": True}, {"keep_work": True}], ids=str)
def test_a_run_that_is_done_is_done_when_it_is_asked_for_again(fields, out, capfd):
    report = go(toy.smooth(), out, **fields)
    calls = Calls()
    outcome, said = again(toy.smooth(calls), out, capfd, **fields)
    assert (calls.all(), outcome.status) == ([], Exit.DONE)
    assert outcome.report["run"] == report["run"]
    assert outcome.report["outputs"] == report["outputs"]
    if COMM.rank == 0:
        said = said.splitlines()
        assert said == [f"mpiimg: already done: 2 results in {out}; --force makes them anew"]
    assert work_folder(toy.smooth(), out).exists() == ("keep_work" in fields)
    # Kept no longer than somebody wants to.
    again(toy.smooth(), out, capfd)
    assert not (out / "work").exists()


def test_force_makes_all_anew(out, capfd):
    first = go(toy.smooth(), out)
    calls = Calls()
    assert go(toy.smooth(calls), out, force=True)["run"] != first["run"]
    assert calls.all()


def test_other_ranks_versions_and_cpus_are_named_and_change_nothing(out, capfd, monkeypatch):
    with first_ranks(1) as comm:
        if comm is not None:
            go(toy.smooth(), out, comm)
    monkeypatch.setattr(fingerprint, "__version__", "9.9")
    monkeypatch.setattr("mpiimg.kernels.jit.cpu_target", lambda: "abacus")
    outcome, said = again(toy.smooth(), out, capfd)
    assert outcome.status is Exit.DONE
    if COMM.rank == 0:
        assert said.count("\n") == 1
        assert "otherwise than then: mpiimg 9.9 (was " in said and "CPU abacus (was " in said
        assert (f"ranks {COMM.size} (was 1)" in said) == (COMM.size > 1)


def spoil_file(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda out: (out / toy.OUTPUT).unlink(), f"{toy.OUTPUT}: is gone"),
        (lambda out: os.truncate(out / toy.OUTPUT, 3), f"{toy.OUTPUT}: has 3 bytes, and was written with"),
        (lambda out: spoil_file(out / RECORD), "does not have the checksum that it was written with"),
        (lambda out: (out / RECORD).write_text("{}"), "has no checksum at its end"),
        (lambda out: (out / RECORD).unlink(), ""),
    ],
    ids=["gone", "cut", "flipped", "foreign", "no-record"],
)
def test_results_that_are_not_as_recorded_are_not_taken_for_done_nor_overwritten(spoil, why, out):
    go(toy.smooth(), out)
    on_first(lambda: spoil(out))
    with pytest.raises(BadInput, match="exists; use --force to overwrite, or another --out") as caught:
        go(toy.smooth(), out)
    assert why in str(caught.value) and "\n" not in str(caught.value)
    go(toy.smooth(), out, force=True)
    check(toy.smooth(), out)


def test_other_parameters_or_inputs_are_another_run(out):
    made = toy.smooth()
    go(made, out)
    for fields, said in (
        ({"parameters": {"scale": 2}}, "--scale 2 (was 3.0)"),
        ({"sources": {"made": "otherwise"}}, "input made was changed"),
        ({"tool": "mpiimg-toys"}, "tool mpiimg-toys (was mpiimg-toy)"),
    ):
        with pytest.raises(BadInput, match="use --force to overwrite") as caught:
            run(dataclasses.replace(made.recipe, **fields), COMM, options(out))
        assert f"made otherwise, now: {said}" in str(caught.value)
    check(made, out)
    # A cohort replaces what is another run's, and leaves what is done.
    assert run(made.recipe, COMM, options(out, replace=True)).state is None
    other = dataclasses.replace(made.recipe, parameters={"scale": 2})
    assert run(other, COMM, options(out, replace=True)).state is not None


def test_the_same_files_by_other_paths_and_in_another_order_are_the_same_run(out, monkeypatch):
    """A list of exposures is no sequence, and a shell completes the name of a folder with a slash."""
    here, *files, table = out.parent, *(out.parent / name for name in ("a.fits", "b.fits", "table"))
    on_first(lambda: [path.write_bytes(b"1") for path in (*files, table)] and (here / "sub").mkdir())

    def asked(*paths, numbers=(1, 2), folder="sub"):
        return dataclasses.replace(
            toy.smooth().recipe,
            files=tuple(map(pathlib.Path, paths)),
            parameters={"exposures": list(map(str, paths)), "warps": folder, "word": "a", "n": list(numbers)},
            sources={
                **{str(path): {"path": str(path), "bytes": 1} for path in paths},
                "beside": {"path": os.path.relpath(table), "bytes": 1},  # named by nobody
            },
        )

    def is_done(recipe):
        try:
            return run(recipe, COMM, options(out)).state is None
        except BadInput:
            return False

    monkeypatch.chdir(here)
    assert not is_done(asked("a.fits", "b.fits"))
    for recipe in (
        asked("b.fits", "./a.fits"),
        asked(*files, folder="sub/"),
        asked("a.fits", "b.fits", folder=str(here / "sub")),
    ):
        assert is_done(recipe)
    for recipe in (asked("a.fits"), asked("a.fits", "b.fits", "b.fits"), asked(*files, numbers=(2, 1))):
        assert not is_done(recipe)
    monkeypatch.chdir(here / "sub")
    assert is_done(asked("../a.fits", "../b.fits", folder="."))
    # Those of the same names in another folder are others.
    on_first(lambda: [(here / "sub" / path.name).write_bytes(b"1") for path in files])
    assert not is_done(asked("a.fits", "b.fits", folder="."))


def test_a_parameter_that_is_no_number_equals_itself(out):
    recipe = dataclasses.replace(toy.smooth().recipe, parameters={"sigma": float("nan")})
    run(recipe, COMM, options(out))
    assert run(recipe, COMM, options(out)).state is None


def test_what_was_left_out_is_taken_up_as_long_as_the_work_is_there(out, capfd):
    run(listed("abc", "b"), COMM, options(out))
    assert run(listed("abc", "b"), COMM, options(out)).status is Exit.PARTIAL
    on_first(lambda: results.shutil.rmtree(out / "work"))
    calls, recipe = Calls(), listed("abc", "b")
    outcome = run(
        dataclasses.replace(recipe, stages=listed("abc", "b", hook=calls).stages), COMM, options(out)
    )
    assert (outcome.status, dict(outcome.left_out), calls.all()) == (Exit.PARTIAL, {"b": "is bad"}, [])
    if COMM.rank == 0:
        assert f"already done: 2 results in {out}, 1 left out" in capfd.readouterr().err


def test_what_a_run_left_that_died_at_its_end_is_removed(out, capfd, monkeypatch):
    """It had published all, and no result is made again."""
    with monkeypatch.context() as patch:
        patch.setattr("mpiimg.engine.run.clean", lambda *arguments: None)
        go(toy.regroup(), out)
    assert work_folder(toy.regroup(), out).exists()
    outcome, _ = again(toy.regroup(), out, capfd)
    assert outcome.state is None
    assert not (out / "work").exists()
    on_first(lambda: (out / "work" / "regroup.toy.removed.host-1").mkdir(parents=True))
    again(toy.regroup(), out, capfd)
    assert not (out / "work").exists()


# What the record says of the results.


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
@pytest.mark.parametrize("name", toy.TOYS)
def test_the_record_has_size_and_checksum_of_every_result(name, in_memory, out):
    report = go(toy.TOYS[name](), out, in_memory=in_memory)
    files = [path for path in out.iterdir() if path.is_file() and path.name != RECORD]
    expected = {
        path.name: {"bytes": path.stat().st_size, "crc32": f"{zlib.crc32(path.read_bytes()):08x}"}
        for path in files
    }
    assert report["outputs"] == expected and report["folder"] == "."
    assert list(results.verify(out / RECORD)) == []


def test_one_bit_of_a_result_is_noticed_and_named(out):
    go(toy.regroup(), out)
    on_first(lambda: [spoil_file(out / name) for name in (toy.OUTPUT, "strip-1.raw")])
    assert [line.partition(": has the CRC32 ")[0] for line in results.verify(out / RECORD)] == [
        str(out / toy.OUTPUT),
        str(out / "strip-1.raw"),
    ]
    on_first(lambda: spoil_file(out / RECORD))
    (line,) = results.verify(out / RECORD)
    assert line.startswith(f"{out / RECORD}: ")
    on_first(lambda: (out / RECORD).unlink())
    assert results.records_in(out) == [out / RECORD]
    (line,) = results.verify(out / RECORD)
    assert "the run has not come to its end" in line


@pytest.mark.parametrize(
    "record", [{}, {"folder": 3, "outputs": {}}, {"folder": ".", "outputs": {"a": {"bytes": "x"}}}], ids=str
)
def test_a_record_that_does_not_say_it_is_no_surprise(record, tmp_path):
    path = tmp_path / "run.json"
    results.write_record(path, record)
    assert list(results.verify(path)) == [f"{path}: does not say what was written"]


def test_a_result_that_is_called_like_a_record_is_none(tmp_path):
    (tmp_path / "run-b.json").write_text("[1, 2]")
    sums = {"run-b.json": results.sum_of_file(tmp_path / "run-b.json")}
    results.write_record(tmp_path / "run-a.json", {"folder": ".", "outputs": sums})
    assert results.records_in(tmp_path) == [tmp_path / "run-a.json"]


def test_a_file_that_a_stage_names_and_does_not_write_ends_the_run(out):
    made = toy.regroup()

    def stages():
        value = None
        for stage in (generator := made.recipe.stages()):
            if stage.name == "save":
                stage = dataclasses.replace(stage, names=(*stage.names, "promised.raw"))
            yield stage
        del value, generator

    recipe = dataclasses.replace(made.recipe, stages=stages, documents=lambda state: {})
    with pytest.raises(RunFailed, match=r"stage save.*\n(.*\n)*.*has not written promised.raw"):
        run(recipe, COMM, options(out))


# Publishing.


class Dies(BaseException):
    """Stands for the death of a process: nothing that comes after it is done."""


def publishing_steps(monkeypatch, action):
    """Call `action` ahead of every change that publishing makes in the folder of results."""

    def before(owner, name):
        original = getattr(owner, name)

        def changed(*arguments, **named):
            action(name, arguments)
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, changed)

    before(pathlib.Path, "replace")
    before(pathlib.Path, "unlink")
    before(results, "write_record")


def test_the_old_record_goes_before_any_result_is_replaced_and_the_new_one_comes_last(out, monkeypatch):
    go(toy.regroup(), out)
    steps = []

    def note(name, arguments):
        path = pathlib.Path(arguments[1] if name == "replace" else arguments[0])
        if path.parent == out:
            steps.append((path.name, (out / RECORD).exists()))

    with monkeypatch.context() as patch:
        publishing_steps(patch, note)
        go(toy.regroup(seed=3), out, force=True)
    if COMM.rank == 0:
        assert steps[0] == (RECORD, True)
        assert steps[-2] == (RECORD, False)  # written under another name, and then renamed
        assert not any(there for _, there in steps[1:])
    check(toy.regroup(seed=3), out)


def test_a_record_that_another_run_has_left_meanwhile_is_not_taken_away(out):
    """Runs on images of other names are let in to one folder of results."""
    other = dataclasses.replace(toy.smooth().recipe, stem="other")
    made = toy.smooth(lambda stage, chunk: stage == "make" and chunk == 0 and (out / "go").touch())
    stages = made.recipe.stages

    def late():
        generator, value = stages(), None
        try:
            while True:
                stage = generator.send(value)
                if stage.name == "write" and (out / "go").exists() and not (out / RECORD).exists():
                    run(other, COMM, options(out))
                value = yield stage
        except StopIteration as end:
            return end.value

    with pytest.raises(RunFailed, match="another run has put its results and its record there"):
        run(dataclasses.replace(made.recipe, stages=late), COMM, options(out))
    assert list(results.verify(out / RECORD)) == []
    run(made.recipe, COMM, options(out, force=True))
    assert list(results.verify(out / RECORD)) == []


# Durable.


@pytest.fixture
def synced(monkeypatch):
    """What was synced by this rank: by inode, what the file was, or which names the folder had."""
    seen = {}

    def looking(original):
        def sync(descriptor):
            status = os.fstat(descriptor)
            folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
            names = set(os.listdir(descriptor)) if folder else set()
            seen.setdefault(status.st_ino, []).append((status.st_size, status.st_mtime_ns, names))
            return original(descriptor)

        return sync

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, looking(getattr(os, name)))
    return seen


def check_synced(seen, out):
    """Every file had its last bytes when it was synced, and every folder the names that are in it."""
    for path in out.rglob("*"):
        if not path.is_file() or path.parent.name.startswith("events"):
            continue
        status = path.stat()
        assert any(one[:2] == (status.st_size, status.st_mtime_ns) for one in seen.get(status.st_ino, ())), (
            path
        )
        folder, name = path.parent, path.name
        while folder != out.parent.parent:
            assert any(name in names for *_, names in seen.get(folder.stat().st_ino, ())), folder / name
            folder, name = folder.parent, folder.name


@pytest.mark.parametrize("in_memory", [False, True], ids=["staged", "in-memory"])
@pytest.mark.parametrize("name", toy.TOYS)
def test_all_results_would_survive_a_power_loss(name, in_memory, out, synced):
    go(toy.TOYS[name](), out / "deep", in_memory=in_memory)
    together = {}
    for seen in COMM.allgather(synced):
        for inode, entries in seen.items():
            together.setdefault(inode, []).extend(entries)
    check_synced(together, out / "deep")


def test_files_are_synced_once_a_stage_by_the_rank_that_wrote_them(out, synced):
    calls = Calls()
    go(toy.regroup(calls), out)
    wrote = {f"strip-{chunk}.raw" for stage, chunk in calls.seen if stage == "save"}
    inodes = {path.name: path.stat().st_ino for path in out.glob("strip-*.raw")}
    assert {name for name, inode in inodes.items() if inode in synced} == wrote
    assert all(len(synced[inodes[name]]) == 1 for name in wrote)


def test_earlier_says_what_it_knows_of_an_unreadable_record(tmp_path):
    made = toy.smooth().recipe
    (tmp_path / RECORD).mkdir()
    earlier = finished.earlier_run(made, options(tmp_path), {}, 1)
    assert not earlier.is_the_same and "Is a directory" in earlier.why_not


def test_the_record_is_json_for_everybody(out):
    report = go(toy.smooth(), out)
    assert json.loads((out / RECORD).read_text())["crc32"] and report["format"] == 1
