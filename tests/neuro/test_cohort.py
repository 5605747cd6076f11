"""Cohorts: a BIDS dataset in, a BIDS derivative out, whoever fails, dies or works on it at the same time."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from support import launch, sabotage, warm
from support.parsed_html import parsed
from support.subjects import PATIENCE

from mpiimg.engine.records import read_record
from mpiimg.neuro.subject import GradientParameters, inspect_dwi

pytestmark = pytest.mark.tool

#: What a small head needs.
OPTIONS = ("--median-radius", 1, "--sigma", 20)

BVALS = np.array([0.0, *[1000.0] * 8])

#: What the sidecar of all scans says of the acquisition.
ACQUISITION = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05, "EchoTime": 0.09}

#: Scans of the dataset with the first part of their path and the file that holds their gradients.
SCANS = {
    "sub-01": ("sub-01/dwi/sub-01_dwi.nii.gz", "sub-01/dwi/sub-01_dwi"),
    "sub-02_ses-1_run-1": ("sub-02/ses-1/dwi/sub-02_ses-1_run-1_dwi.nii.gz", "sub-02/sub-02_dwi"),
    "sub-02_ses-1_run-2": ("sub-02/ses-1/dwi/sub-02_ses-1_run-2_dwi.nii", "sub-02/sub-02_dwi"),
    "sub-03": ("sub-03/dwi/sub-03_dwi.nii.gz", "sub-03/dwi/sub-03_dwi"),
}

#: Seconds within which a broken job must have ended, on a loaded machine.
SOON = 60


def head(seed: int, shape=(10, 9, 6)) -> nibabel.Nifti1Image:
    """A bright ball in noise."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(shape)
    ball = 1000.0 * (np.hypot(np.hypot(x - 5, y - 4), 1.5 * (z - 3)) < 4)
    noise = rng.normal(0, 20, (2, *shape, len(BVALS)))
    signal_ = ball[..., None] * np.exp(-7e-4 * BVALS)
    return nibabel.Nifti1Image(np.hypot(signal_ + noise[0], noise[1]).astype(np.int16), np.diag([2, 2, 2, 1]))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A dataset of three subjects; one has two runs in a session, whose gradients lie above it."""
    root = tmp_path_factory.mktemp("dataset") / "raw"
    bvecs = np.random.default_rng(0).normal(size=(3, len(BVALS)))
    for seed, (image, gradients) in enumerate(SCANS.values()):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(head(seed), root / image)
        np.savetxt(root / f"{gradients}.bval", BVALS[None], fmt="%g")
        np.savetxt(root / f"{gradients}.bvec", bvecs / np.linalg.norm(bvecs, axis=0), fmt="%.9g")
    (root / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.9.0"}')
    (root / "dwi.json").write_text(json.dumps(ACQUISITION))
    return root


@pytest.fixture
def raw(pristine, tmp_path) -> Path:
    """A dataset to spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "raw"))


@pytest.fixture(scope="module")
def alone(pristine, tmp_path_factory) -> dict[str, Path]:
    """What mpiimg-neuro makes of each scan as a single image, on one rank: scan -> folder."""
    made = {}
    for name, (image, gradients) in SCANS.items():
        made[name] = tmp_path_factory.mktemp(name)
        tables = [pristine / f"{gradients}{ending}" for ending in (".bval", ".bvec")]
        words = [pristine / image, "--bvals", tables[0], "--bvecs", tables[1], "--out", made[name], *OPTIONS]
        warm.run_tool("mpiimg-neuro", *words, timeout=PATIENCE)
    return made


def cohort(raw, out, *options, ranks=None, check=True, **how):
    """Run mpiimg-neuro on a dataset."""
    words = ("mpiimg-neuro", raw, out, "participant", *OPTIONS, *options)
    return warm.run_tool(*words, ranks=ranks, timeout=PATIENCE, check=check, **how)


def results(out: Path, name: str) -> Path:
    return out / Path(SCANS[name][0]).parent


def assert_same(out: Path, alone, names=SCANS) -> None:
    """Assert that the files of scans are those of single runs, with gradients under their name in BIDS.

    Sidecars say in addition what they are of.
    """
    for name in names:
        made_alone = [p for p in alone[name].iterdir() if p.is_file() and p.name != "run.json"]
        expected = {re.sub(r"_desc-denoised(_dwi\.bv)", r"\1", p.name): p for p in made_alone}
        folder = results(out, name)
        assert {p.name for p in folder.iterdir() if p.name.startswith(f"{name}_")} == expected.keys()
        for file, path in expected.items():
            if path.suffix == ".json":
                made = json.loads((folder / file).read_text())
                assert made.pop("Sources")[0] == f"bids:raw:{SCANS[name][0]}"
                assert made == json.loads(path.read_text())
            else:
                assert (folder / file).read_bytes() == path.read_bytes(), file


def ends(out: Path, name: str) -> list[str]:
    """Return how each claim on a scan ended; "" where it did not."""
    claims = sorted((out / "logs" / name / "claims").iterdir(), key=lambda path: int(path.name))
    found = [json.loads((c / "end.json").read_text()) if (c / "end.json").exists() else {} for c in claims]
    return [end.get("state", "") for end in found]


@pytest.fixture(scope="module")
def made(pristine, tmp_path_factory) -> Path:
    """What one process makes of the whole dataset."""
    out = tmp_path_factory.mktemp("derivatives") / "mpiimg"
    done = cohort(pristine, out)
    assert "mpiimg: 4 scans: 4 done" in done.stderr
    return out


@pytest.fixture
def derivative(made, tmp_path) -> Path:
    """The same to change."""
    return Path(shutil.copytree(made, tmp_path / "derivative"))


def test_one_process(made, alone):
    assert_same(made, alone)
    assert not list(made.rglob("work"))


@pytest.mark.site
def test_groups_of_ranks(pristine, alone, tmp_path):
    cohort(pristine, tmp_path / "out", "--group-size", 1, ranks=2)
    assert_same(tmp_path / "out", alone)
    assert {name: ends(tmp_path / "out", name) for name in SCANS} == {name: ["done"] for name in SCANS}


@pytest.mark.parametrize(
    "ranks, options",
    [(3, ()), (4, ("--group-size", 2, "--in-memory")), pytest.param(7, (), marks=pytest.mark.long)],
)
def test_more_groups_of_ranks(pristine, alone, tmp_path, ranks, options):
    cohort(pristine, tmp_path / "out", "--participant-label", "01", "03", *options, ranks=ranks)
    assert_same(tmp_path / "out", alone, ["sub-01", "sub-03"])


def test_the_derivative_is_bids(made, pristine):
    """Names by the schema of the standard; maps, which it has not got yet, by the proposal for them."""
    from bidsschematools.rules import regexify_filename_rules
    from bidsschematools.schema import load_schema

    schema = load_schema()
    derived = regexify_filename_rules(schema.rules.files.deriv.imaging, schema, level=1)
    of_raw = regexify_filename_rules(schema.rules.files.raw.dwi, schema, level=1)
    patterns = [rule["regex"] for rule in (*derived, *of_raw)]
    ignored = (made / ".bidsignore").read_text().split()
    model = (
        r"(sub-\w+?)(_ses-\w+?)?(_run-\d+)?(_model-tensor_param-[a-z0-9]+|_desc-noise)_dwimap\.(nii\.gz|json)"
        r"|(sub-\w+?)(_ses-\w+?)?(_run-\d+)?_desc-(volumes|qc)_dwimap\.(tsv|json|npz)"
    )
    count = 0
    for path in made.rglob("*"):
        name = path.relative_to(made).as_posix()
        if path.is_dir() or name.startswith("logs/") or "/" not in name:
            continue
        count += 1
        if "_dwimap" in name:
            assert any(path.match(pattern) for pattern in ignored), name
            assert re.fullmatch(model, path.name)
        else:
            assert not any(path.match(pattern) for pattern in ignored), name
            assert any(re.fullmatch(pattern, name) for pattern in patterns), name
    assert count == 4 * 29
    assert {path.name for path in made.iterdir() if path.is_file()} == {
        "dataset_description.json",
        ".bidsignore",
        "README.md",
    }
    said = json.loads((made / "dataset_description.json").read_text())
    required = {"Name", "BIDSVersion", "DatasetType", "GeneratedBy", "SourceDatasets"}
    assert required <= said.keys()
    assert (made / said["DatasetLinks"]["raw"].replace("%20", " ")).resolve() == pristine.resolve()


def test_sidecars_name_their_sources(made, pristine):
    """Every image has a sidecar with a description and the files it was made of, as URIs that lead there."""
    images = list(made.rglob("*.nii.gz"))
    assert len(images) == 4 * 11
    for image in images:
        fields = json.loads(Path(str(image).replace(".nii.gz", ".json")).read_text())
        assert fields["Description"]
        assert len(fields["Sources"]) == 3
        for uri in fields["Sources"]:
            assert (pristine / uri.removeprefix("bids:raw:")).is_file()
        assert fields["Units"]
        assert fields["SpatialReference"] == "orig"
        if not image.name.endswith("_mask.nii.gz"):
            assert isinstance(fields["SkullStripped"], bool)
        if image.name.endswith("_dwi.nii.gz"):
            assert fields.items() >= ACQUISITION.items()
            assert image.with_name(image.name.replace("_desc-denoised_dwi.nii.gz", "_dwi.bvec")).is_file()


def test_gradients_of_the_denoised_series_are_found(made):
    """In a derivative, where BIDS has them under a name without desc."""
    series = results(made, "sub-01") / "sub-01_desc-denoised_dwi.nii.gz"
    subject = inspect_dwi({"dwi": series}, GradientParameters(), frozenset({"gradients"}))
    assert subject.gradients.bvals == tuple(BVALS)
    assert subject.inherited.items() >= ACQUISITION.items()


def test_a_cohort_that_is_done_plans_nothing(made, pristine):
    plan = json.loads(cohort(pristine, made, "--plan=json").stdout)
    assert plan["totals"] == {"peak_per_rank": 0, "seconds": 0.0}


def test_a_second_run_does_nothing(made, pristine):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("sub-*") if path.is_file()}
    done = cohort(pristine, made)
    assert "4 done before this job, 4 of them skipped" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in made.rglob("sub-*") if path.is_file()} == before


def test_what_is_missing_or_not_yet_there_is_made(derivative, raw, alone):
    results(derivative, "sub-03").joinpath("sub-03_desc-brain_mask.nii.gz").unlink()
    shutil.rmtree(derivative / "logs" / "sub-01")
    cohort(raw, derivative)
    assert_same(derivative, alone)
    assert [len(ends(derivative, name)) for name in SCANS] == [1, 1, 1, 2]


def test_selected_subjects_and_sessions(pristine, alone, tmp_path):
    out = tmp_path / "out"
    cohort(pristine, out, "--participant_label", "03", "sub-02", "--session-label", "1")
    names = ["sub-02_ses-1_run-1", "sub-02_ses-1_run-2"]
    assert_same(out, alone, names)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith("sub-")) == ["sub-02"]


@pytest.fixture
def spoilt(raw, tmp_path):
    """The dataset without the directions of one scan and half of the image of another, and what mends it."""
    bvec, image = raw / "sub-01/dwi/sub-01_dwi.bvec", raw / "sub-03/dwi/sub-03_dwi.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    bvec.rename(tmp_path / "bvec")
    return [lambda: (tmp_path / "bvec").rename(bvec), lambda: image.write_bytes(whole)]


#: Scans that are not spoilt.
GOOD = ("sub-02_ses-1_run-1", "sub-02_ses-1_run-2")


def test_scans_that_fail_are_named_and_others_go_on(raw, spoilt, alone, tmp_path):
    out = tmp_path / "out"
    done = cohort(raw, out, ranks=3, check=False)
    assert done.returncode == 3, done.stderr
    assert re.search(r"mpiimg: sub-01: broken: .*no \.bvec applies to it", done.stderr)
    assert re.search(r"mpiimg: sub-03: broken: .*truncated or corrupt gzip", done.stderr)
    assert "mpiimg: 4 scans: 2 done, 2 broken" in done.stderr
    assert "Traceback" not in done.stderr
    assert_same(out, alone, GOOD)
    assert not results(out, "sub-01").exists()
    assert not results(out, "sub-03").exists()


def test_a_rerun_takes_what_failed_alone(raw, spoilt, alone, tmp_path):
    out = tmp_path / "out"
    for mend in (*spoilt, None):
        assert cohort(raw, out, check=False).returncode == (3 if mend else 0)
        if mend:
            mend()
    assert_same(out, alone)
    histories = {name: ends(out, name) for name in SCANS}
    expected = {name: ["done"] for name in GOOD}
    expected |= {"sub-01": ["broken", "done"], "sub-03": ["broken", "done"]}
    assert histories == expected


#: Of a scan that fails and one that does not.
ONE_OF_TWO = ("--participant-label", "01", "03")

#: The image of sub-03, made wider than the others, is told by that.
BROKEN = """
if arguments[0].shape[2] > 10 + 2 * 5:
    raise ArithmeticError("made up")
"""


@pytest.mark.parametrize("strict", [False, True])
def test_a_kernel_that_raises_fails_one_scan(raw, alone, tmp_path, strict):
    nibabel.save(head(3, (11, 9, 6)), raw / SCANS["sub-03"][0])
    broken = sabotage.install(tmp_path / "broken", BROKEN)
    out = tmp_path / "out"
    options = ["--group-size", 1, *["--strict"] * strict]
    done = cohort(raw, out, *ONE_OF_TWO, *options, ranks=2, sabotaged=broken, check=False)
    if strict:
        assert done.returncode == 1
        assert re.search(r"mpiimg: failed: sub-03: rank 0 on .*, stage denoise, chunk", done.stderr)
        assert done.stderr.count("Traceback") == 1
    else:
        assert done.returncode == 3
        assert re.search(
            r"sub-03: failed.*rank 0 on .*, stage denoise, .*ArithmeticError: made up", done.stderr
        )
        assert "Traceback" not in done.stderr
        assert_same(out, alone, ["sub-01"])
    (end,) = (out / "logs/sub-03/claims").glob("*/end.json")
    assert "Traceback" in json.loads(end.read_text())["report"]


def in_function(module: str, function: str) -> str:
    """Return the frame of a sabotage that runs ahead of every call of a function of ours."""
    return sabotage.IN_DENOISING.replace("mpiimg.neuro.kernels.nlmeans", module).replace(
        "nonlocal_means", function
    )


#: Where one scan fails with what nobody has foreseen: its header, its plan, and a step between two stages.
UNFORESEEN = {
    "header": (("mpiimg.neuro.subject", "open_image"), "'sub-03' in str(arguments[0])"),
    "plan": (("mpiimg.neuro.steps.fit", "fit"), "'sub-03' in str(arguments[0].path)"),
    "step": (
        ("mpiimg.neuro.median_otsu", "otsu"),
        "arguments[0].shape[2] > 10 and tuple(arguments[1][:2]) != (0, 1)",
    ),
}


@pytest.mark.parametrize("place", UNFORESEEN)
def test_whatever_a_scan_raises_fails_that_scan_alone(raw, alone, tmp_path, place):
    """With its traceback in its record; and it is the only one that a rerun takes."""
    nibabel.save(head(3, (11, 9, 6)), raw / SCANS["sub-03"][0])
    where, condition = UNFORESEEN[place]
    body = f"if {condition}: raise ZeroDivisionError('made up')"
    broken = sabotage.install(tmp_path / "broken", body, in_function(*where))
    out = tmp_path / "out"
    done = cohort(raw, out, *ONE_OF_TWO, sabotaged=broken, check=False, ranks=2)
    assert done.returncode == 3, done.stderr
    assert re.search(r"mpiimg: sub-03: failed: .*ZeroDivisionError: made up", done.stderr)
    assert "Traceback" not in done.stderr
    assert_same(out, alone, ["sub-01"])
    (end,) = (out / "logs/sub-03/claims").glob("*/end.json")
    record = read_record(end)
    assert "Traceback" in record["report"]
    assert re.match(r"ZeroDivisionError at sabotaged:\d+$", record["place"])
    nibabel.save(head(3), raw / SCANS["sub-03"][0])
    cohort(raw, out, *ONE_OF_TWO)
    assert_same(out, alone, ["sub-01", "sub-03"])


@pytest.mark.parametrize("error", ["MemoryError()", "OSError(28, 'No space left on device')"])
def test_what_the_next_scan_would_meet_too_ends_the_job(raw, tmp_path, error):
    nibabel.save(head(3, (11, 9, 6)), raw / SCANS["sub-03"][0])
    broken = sabotage.install(tmp_path / "broken", BROKEN.replace('ArithmeticError("made up")', error))
    done = cohort(raw, tmp_path / "out", sabotaged=broken, check=False)
    assert done.returncode == 1, done.stderr
    assert "mpiimg: failed: sub-03: rank 0 on " in done.stderr


def test_a_fault_of_the_program_ends_the_job(raw, tmp_path):
    """More than three scans, and than a tenth of them, fail with one error at one line."""
    body = "raise KeyError('made up')"
    broken = sabotage.install(tmp_path / "broken", body, in_function("mpiimg.neuro.subject", "open_image"))
    done = cohort(raw, tmp_path / "out", sabotaged=broken, check=False, ranks=2)
    assert done.returncode == 1, done.stderr
    assert re.search(r"KeyError at sabotaged:\d+ in 4 of 4 scans: a fault of the program", done.stderr)


SLOWLY = """
import pathlib, time
pathlib.Path({marker!r} + str(os.getpid())).touch()
time.sleep({seconds})
"""


def start(raw, out, tmp_path, seconds, *options, ranks=2):
    """Start a job that takes `seconds` for each block it denoises, and leaves marks there."""
    marks = tmp_path / f"marks-{time.monotonic_ns()}"
    marks.mkdir()
    slow = sabotage.install(marks / "slow", SLOWLY.format(marker=f"{marks}/pid-", seconds=seconds))
    words = ("mpiimg-neuro", raw, out, "participant", *OPTIONS, *options)
    return sabotage.start(*words, sabotaged=slow, ranks=ranks, forked=False), marks


def wait_for_marks(run, marks, count, patience=120):
    deadline = time.monotonic() + patience
    while len(list(marks.glob("pid-*"))) < count:
        if run.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(launch.kill_session(run))
        time.sleep(0.01)


def test_two_jobs_at_once_share_the_scans(pristine, alone, tmp_path):
    out = tmp_path / "out"
    runs = [start(pristine, out, tmp_path, 0.05, "--group-size", 1)[0] for _ in range(2)]
    for run in runs:
        status, err = sabotage.finish(run, PATIENCE)
        assert status == 0, err
    assert_same(out, alone)
    assert {name: ends(out, name) for name in SCANS} == {name: ["done"] for name in SCANS}


def test_killed_twice_goes_on_without_what_was_in_work(pristine, alone, tmp_path):
    """What two dead jobs had in work is set aside; the rest is done, and it, too, when asked for."""
    out = tmp_path / "out"
    for _ in range(2):
        run, marks = start(pristine, out, tmp_path, 30, "--participant-label", "01", "03", "--group-size", 1)
        wait_for_marks(run, marks, 2)
        # One rank dies, as by lack of memory; its job ends the others.
        sabotage.kill(sabotage.rank_processes(run)[-1:])
        assert sabotage.finish(run, SOON)[0] != 0
    assert [ends(out, name) for name in ("sub-01", "sub-03")] == [["", ""]] * 2
    done = cohort(pristine, out, check=False)
    assert done.returncode == 3, done.stderr
    assert "2 suspect" in done.stderr
    assert "mpiimg: sub-03: suspect: 2 times a process died with it in work" in done.stderr
    assert_same(out, alone, ["sub-02_ses-1_run-1", "sub-02_ses-1_run-2"])
    cohort(pristine, out, "--retry-suspects")
    assert_same(out, alone)
    assert [ends(out, name) for name in ("sub-01", "sub-03")] == [["", "", "done"]] * 2
    record = json.loads((out / "logs/sub-01/run.json").read_text())
    assert any(stage["resumed_chunks"] for stage in record["stages"])


def test_a_signal_to_one_rank_stops_all_groups(pristine, alone, tmp_path):
    out = tmp_path / "out"
    run, marks = start(pristine, out, tmp_path, 0.5, "--group-size", 1)
    wait_for_marks(run, marks, 2)
    os.kill(sabotage.rank_processes(run)[-1], signal.SIGTERM)
    status, err = sabotage.finish(run, SOON)
    assert status == 75, err
    assert "mpiimg: stopped: scans that are done stay done" in err
    assert "Traceback" not in err
    assert {
        end for name in SCANS if (out / "logs" / name / "claims").exists() for end in ends(out, name)
    } == {"stopped"}
    cohort(pristine, out)
    assert_same(out, alone)


def test_status_lists_every_scan(raw, spoilt, tmp_path):
    """Done, failed with the reason, in work with its owner and how far it is, died, and to do."""
    out = tmp_path / "out"
    cohort(raw, out, "--participant-label", "01", "02", check=False)
    spoilt[1]()
    run, marks = start(raw, out, tmp_path, 30, "--participant-label", "03", ranks=None)
    wait_for_marks(run, marks, 1)
    said = warm.run_tool("mpiimg-status", out, check=False)
    assert said.returncode == 1
    lines = said.stdout.splitlines()
    assert re.fullmatch(r"4 scans: 1 in work, 2 done, 1 broken; (7[5-9]|[89]\d) % in all, .* left", lines[0])
    assert re.fullmatch(r"  sub-01 +broken +.*: no \.bvec applies to it.*", lines[1])
    assert [re.fullmatch(r"  (\S+) +done", line)[1] for line in lines[2:4]] == list(GOOD)
    pid = sabotage.rank_processes(run) or [run.pid]
    words = rf"  sub-03 +in work +by \S+, process {pid[0]}; stage \d+ of \d+, denoise: \d+ of \d+ chunks"
    assert re.fullmatch(words, lines[4])
    sabotage.kill([run.pid])
    sabotage.finish(run, SOON)
    (out / "logs" / "sub-09").mkdir()
    said = json.loads(warm.run_tool("mpiimg-status", out, "--json", check=False).stdout)["scans"]
    assert [scan["state"] for scan in said] == ["broken", "done", "done", "died", "to do"]
    assert "the same command goes on" in said[3]["why"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{raw}", "{out}"], "is a folder: give mpiimg-neuro BIDS_DIR OUT_DIR participant"),
        (["{raw}", "{out}", "participant", "--out", "x"], "--out goes with one image"),
        (["{raw}", "--bvals", "x", "--bvecs", "y", "--out", "{out}"], "--bvals goes with one image"),
        (["nowhere", "{out}", "participant"], "nowhere: no such folder"),
        (["a.nii", "b.nii", "--bvals", "x", "--bvecs", "y", "--out", "{out}"], "one image at a time"),
        (["a.nii", "--bvals", "x", "--bvecs", "y", "--out", "{out}", "--strict"], "--strict goes with a"),
        (["a.nii", "--bvals", "x"], "the following arguments are required: --out"),
        (["{raw}", "{out}", "participant", "--group-size", "0"], "--group-size 0: is not between 1"),
        (["{raw}", "{out}", "participant", "--group-size", "2"], "--group-size 2: this job has 1 ranks"),
        (["{raw}", "{out}", "participant", "--participant-label", "9"], "no participant 9; there are 01, 02"),
        (["{raw}", "{raw}", "participant"], "holds the dataset itself"),
        (["{raw}/sub-01", "{out}", "participant"], "dataset_description.json: cannot read it"),
        (["{raw}", "{foreign}", "participant"], "a dataset that mpiimg did not make"),
        (["{raw}", "{raw}/dataset_description.json", "participant"], "cannot write there"),
        (["{raw}", "{out}", "participant", "--patch-radius", "5"], "does not fit into --block-radius"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_answered_in_one_line(pristine, tmp_path, words, said):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "dataset_description.json").write_text(
        '{"Name": "other", "GeneratedBy": [{"Name": "fmriprep"}]}'
    )
    places = {"raw": str(pristine), "out": str(tmp_path / "out"), "foreign": str(foreign)}
    done = warm.run_tool("mpiimg-neuro", *(word.format(**places) for word in words), check=False)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert said in line
    assert "error: " in line
    assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in pristine.iterdir()) == [
        "dataset_description.json",
        "dwi.json",
        "sub-01",
        "sub-02",
        "sub-03",
    ]


def test_other_settings_and_changed_images_take_force(derivative, raw, alone):
    done = cohort(raw, derivative, "--b-max", 2000, check=False)
    assert done.returncode == 2
    assert "its scans were done with b_max auto, not 2000" in done.stderr
    os.utime(raw / SCANS["sub-03"][0], (1, 1))
    os.utime(raw / f"{SCANS['sub-01'][1]}.bvec", (1, 1))
    done = cohort(raw, derivative, check=False)
    assert done.returncode == 3
    assert "sub-01, sub-03" in next(
        line for line in done.stderr.splitlines() if "image or gradients changed since" in line
    )
    assert ends(derivative, "sub-03") == ["done"]
    cohort(raw, derivative, "--force")
    assert_same(derivative, alone)
    assert {name: ends(derivative, name) for name in SCANS} == {name: ["done", "done"] for name in SCANS}


def test_a_damaged_record_of_the_settings_loses_no_results(derivative, raw, alone):
    """The same command mends it, and does nothing again; with other settings it is refused as before."""
    path = derivative / "logs" / "cohort.json"
    path.write_bytes(path.read_bytes().replace(b"null", b"1000"))
    done = cohort(raw, derivative, "--b-max", 2000, check=False)
    assert done.returncode == 2
    assert "the record of its settings is damaged, and sub-01" in done.stderr
    status = warm.run_tool("mpiimg-status", derivative, check=False, timeout=PATIENCE)
    assert (status.returncode, status.stdout) == (2, "")
    (line,) = status.stderr.splitlines()
    assert line.startswith(f"mpiimg: error: {path}: does not have the checksum")
    done = cohort(raw, derivative)
    assert f"warning: {path}: does not have the checksum" in done.stderr
    assert_same(derivative, alone)
    assert {name: ends(derivative, name) for name in SCANS} == {name: ["done"] for name in SCANS}
    cohort(raw, derivative)
    assert warm.run_tool("mpiimg-status", derivative, timeout=PATIENCE).returncode == 0


def test_settings_with_which_nothing_was_done_may_change(raw, spoilt, tmp_path):
    out = tmp_path / "out"
    words = (raw, out, "--participant-label", "01", "03")
    assert "2 broken" in cohort(*words, check=False).stderr
    assert "2 broken" in cohort(*words, "--b-max", 2000, check=False).stderr


def test_a_plan_writes_nothing(pristine, tmp_path):
    done = cohort(pristine, tmp_path / "out", "--plan")
    assert "4 scans to do by 1 group of 1 rank" in done.stdout
    assert "the largest, sub-01" in done.stdout
    done = cohort(pristine, tmp_path / "out", "--plan=json", "--ranks", 16, "--group-size", 4)
    assert json.loads(done.stdout)["groups"] == [4, 4, 4, 4]
    plan = json.loads(done.stdout)["plan"]
    assert plan["ranks"] == 4
    # A group for each of four scans of one size.
    assert json.loads(done.stdout)["totals"].items() <= plan["totals"].items()
    done = cohort(pristine, tmp_path / "out", "--plan=json", "--ranks", 4, "--group-size", 4)
    job = json.loads(done.stdout)
    assert job["totals"]["seconds"] == pytest.approx(4 * job["plan"]["totals"]["seconds"], rel=1e-3)
    assert not (tmp_path / "out").exists()


def test_the_page_of_a_cohort(derivative):
    """It lists all scans, leads to the pages that are there, and reads no image."""
    for image in derivative.rglob("*.nii.gz"):
        image.write_bytes(b"")
    scan = sorted(SCANS)[0]
    (derivative / "logs" / scan / "report.html").write_text("a page")
    page = Path(warm.run_tool("mpiimg-report", derivative).stdout.strip())
    html = parsed(page)
    assert page == derivative / "report.html"
    assert {name for name in SCANS if name in html.text} == set(SCANS)
    assert {target for tag, target in html.addresses if tag == "a" and target[0] != "#"} == {
        f"logs/{scan}/report.html"
    }
    assert html.foreign == [] and html.unclosed == []


def test_scans_and_cohorts_get_pages(raw, tmp_path):
    label = sorted(SCANS)[-1].split("_")[0].removeprefix("sub-")
    words = [raw, tmp_path / "out", "participant", "--participant-label", label, *OPTIONS]
    done = launch.run_tool("mpiimg-neuro", *words, env={"MPIIMG_REPORT": "on"}, timeout=PATIENCE)
    assert done.stderr.splitlines()[-1] == f"mpiimg: report: {tmp_path}/out/report.html"
    html = parsed(tmp_path / "out" / "report.html")
    links = [target for tag, target in html.addresses if tag == "a" and target[0] != "#"]
    assert links and all((tmp_path / "out" / link).is_file() for link in links)
