"""The batch scripts without a cluster: what they start, and when a job goes back into the queue."""

from __future__ import annotations

import json
import os

import pytest
from support import launch

SCRIPTS = sorted((launch.REPOSITORY / "slurm").glob("*.s*"))

#: What says how it was called, and ends as FAKE_STATUS says; a step on every node asks whether these answer.
SRUN = """#!/bin/bash
for last; do :; done
[ "$last" != true ] || exit "$NODES"
printf '%s|' "$@"
printf '%s\\n' "$SLURM_KILL_BAD_EXIT$OMP_NUM_THREADS"
[ -z "$TOLD" ] || kill -USR1 "$(ps -o ppid= $PPID)"
exit "$STATUS"
"""

#: Stands for a tool that is asked how its run ended: as it is told, and with another word each time.
ENDED = """#!/bin/bash
for last; do :; done
case $last in
--ended=*)
    [ -n "$MPIIMG_RUN" ] && [ "$MPIIMG_RUN" != "$(cat "$0.run" 2>/dev/null)" ] || exit 9
    printf %s "$MPIIMG_RUN" >"$0.run"
    [[ " ${SAID-0 3 75} " = *" ${last#--ended=} "* ]] && exit 0
    echo "mpiimg: error: nothing confirms it" >&2
    exit 1 ;;
esac
"""


@pytest.fixture
def job(tmp_path):
    """Return a function that runs a script as SLURM would."""
    for name, text in (
        ("srun", SRUN),
        *((name, ENDED) for name in ("mpiimg-neuro", "mpiimg-astro")),
        *(
            (name, f'#!/bin/sh\necho "{name} $*"\n[ {name} = scancel ] || exit "${{REFUSED:-0}}"\n')
            for name in ("scontrol", "scancel")
        ),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def run(script, *words, status=0, nodes=0, told="", **environment):
        job = {
            "SLURM_SUBMIT_DIR": str(launch.REPOSITORY),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "4",
            "MPIIMG_VENV": "/some/.venv",
            "MPIIMG_PLAN": "no",
        }
        made = {"PATH": path, "STATUS": str(status), "NODES": str(nodes), "TOLD": told}
        command = ["bash", launch.REPOSITORY / "slurm" / script, *words]
        return launch.run(command, env={**job, **made, **environment}, check=False)

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    launch.run(["bash", "-n", script])


@pytest.mark.parametrize("tool", ["neuro", "astro"])
def test_a_tool_is_started_with_what_the_script_was_given(job, tool):
    words = ("a b.nii.gz", "--out", "out", "--b-max", "1500")
    done = job(f"{tool}.sbatch", *words)
    assert done.stdout == f"--ntasks=4|--mpi=pmi2|mpiimg-{tool}|a b.nii.gz|--out|out|--b-max|1500|11\n"
    assert done.returncode == 0
    done = job(f"{tool}.sbatch", *words, MPIIMG_VENV="/some/.venv-mpi", MPIIMG_SRUN_OPTIONS="--overlap -l")
    assert done.stdout.startswith("--ntasks=4|--mpi=pmix|--overlap|-l|mpiimg-")


@pytest.mark.parametrize("script", ["neuro.sbatch", "astro.sbatch", "neuro-array.sbatch", "scaling.sbatch"])
def test_usage_and_a_missing_checkout_are_told(job, script, tmp_path):
    done = job(script)
    assert done.returncode == 2
    assert f"slurm/{script}" in done.stderr
    done = job(script, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "submit from the checkout of mpiimg, or set MPIIMG_HOME\n"


@pytest.mark.parametrize(
    ("how", "requeued"),
    [
        ({"status": 0}, False),
        ({"status": 1}, False),
        ({"status": 2}, False),
        ({"status": 3}, False),
        ({"status": 75}, True),
        # A rank was killed: by a node that is gone, or by something that would happen again.
        ({"status": 137}, False),
        ({"status": 137, "nodes": 1}, True),
        ({"status": 1, "nodes": 1}, True),
        ({"status": 2, "nodes": 1}, False),
        # Told to stop, and killed as the first rank left.
        ({"status": 137, "told": "yes"}, True),
        ({"status": 1, "told": "yes"}, False),
        ({"status": 0, "told": "yes"}, False),
        ({"status": 75, "SLURM_RESTART_COUNT": "9"}, True),
        ({"status": 75, "SLURM_RESTART_COUNT": "10"}, False),
        ({"status": 75, "SLURM_RESTART_COUNT": "2", "MPIIMG_REQUEUES": "2"}, False),
    ],
    ids=str,
)
def test_a_job_goes_back_into_the_queue_where_it_can_go_on_and_only_so_often(job, how, requeued):
    done = job("neuro.sbatch", "dwi.nii.gz", **how)
    assert ("scontrol requeue 7\n" in done.stdout) == requeued
    assert ("scancel --signal=USR1 7\n" in done.stdout) == ("told" in how)
    assert done.returncode == how["status"]
    assert ("submit it again" in done.stderr) == (how["status"] == 75 and not requeued)


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [(0, "", 1), (3, "", 1), (75, "", 1), (75, "yes", 75), (2, "", 2), (1, "", 1)],
)
def test_a_status_that_the_run_did_not_say_itself_is_a_failure(job, status, told, code):
    """But for 75 of a run that was told to stop, which may not have come so far as to say anything."""
    done = job("neuro.sbatch", "dwi.nii.gz", status=status, told=told, SAID="")
    assert done.returncode == code
    assert ("scontrol requeue 7\n" in done.stdout) == (code == 75)
    assert ("nothing confirms it" in done.stderr) == (status in (0, 3, 75) and not told)


@pytest.mark.parametrize(("code", "said"), [(1, True), (143, False), (137, False)])
def test_only_what_scontrol_itself_answers_is_a_refusal(job, code, said):
    """It is ended with the job that it requeues."""
    done = job("neuro.sbatch", "dwi.nii.gz", status=75, REFUSED=str(code))
    assert ("not requeued by scontrol" in done.stderr) == said


def test_a_job_that_slurm_itself_requeued_too_often_starts_nothing(job):
    done = job("neuro.sbatch", "dwi.nii.gz", SLURM_RESTART_COUNT="11")
    assert (done.returncode, done.stdout) == (1, "")
    assert "giving up" in done.stderr


@pytest.fixture
def cohort(tmp_path):
    """A list of three images in folders of their own, one of which names its gradients."""
    for name in ("a.nii.gz", "a.bval", "a.bvec", "b.nii", "g.bval", "g.bvec", "c.nii"):
        (tmp_path / name).touch()
    paths = [tmp_path / name for name in ("a.nii.gz", "b.nii", "g.bval", "g.bvec", "c.nii")]
    text = "# images\n\n{}\n{} {} {}\n{}\n".format(*paths)
    (tmp_path / "list.txt").write_text(text)
    return tmp_path


def array(job, cohort, task):
    return job("neuro-array.sbatch", cohort / "list.txt", "out", "--quiet", SLURM_ARRAY_TASK_ID=str(task))


def test_a_task_of_an_array_takes_its_line(job, cohort):
    words = array(job, cohort, 1).stdout.split("|")
    assert words[2:4] == ["mpiimg-neuro", f"{cohort}/a.nii.gz"]
    assert words[4:11] == [
        *("--bvals", f"{cohort}/a.bval", "--bvecs", f"{cohort}/a.bvec", "--out", "out/a", "--quiet")
    ]
    words = array(job, cohort, 2).stdout.split("|")
    assert words[3:10] == [
        *(f"{cohort}/b.nii", "--bvals", f"{cohort}/g.bval", "--bvecs", f"{cohort}/g.bvec", "--out", "out/b")
    ]


def out_of(job, lines, task, folder, out="out", cohort="list.txt"):
    """Return where the results of an image of a list, or of a BIDS folder, go."""
    if lines:
        (folder / cohort).write_text("".join(f"{line}\n" for line in lines))
    done = job("neuro-array.sbatch", folder / cohort, out, SLURM_ARRAY_TASK_ID=str(task))
    words = done.stdout.split("|")
    return words[words.index("--out") + 1]


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    bare = str(path).removesuffix(".gz").removesuffix(".nii")
    for one in (path, f"{bare}.bval", f"{bare}.bvec"):
        open(one, "w").close()
    return path


@pytest.mark.parametrize(
    "text",
    [
        "{a}\r\n\r\n# two\r\n{b}\r\n",
        "\ufeff{a}\n{b}\n",
        "  {a}  # the first, of two\n\t{b}\t# the second",
        "{a} \n{b}",
    ],
    ids=["windows", "byte-order mark", "comments", "no line end"],
)
def test_a_list_is_read_as_its_writer_meant_it(job, tmp_path, text):
    a, b = (image(tmp_path / name / "dwi.nii.gz") for name in "ab")
    (tmp_path / "list.txt").write_text(text.format(a=a, b=b), newline="")
    for task, dwi in ((1, a), (2, b)):
        words = array(job, tmp_path, task).stdout.split("|")
        assert words[3:8] == [
            str(dwi),
            "--bvals",
            f"{dwi.parent}/dwi.bval",
            "--bvecs",
            f"{dwi.parent}/dwi.bvec",
        ]
    assert "has 2 images" in array(job, tmp_path, 3).stderr


def test_a_bids_folder_may_have_any_name(job, tmp_path):
    dwi = image(tmp_path / "my data" / "sub-1/dwi/sub-1_dwi.nii.gz")
    words = job("neuro-array.sbatch", tmp_path / "my data", "out", SLURM_ARRAY_TASK_ID="1").stdout.split("|")
    assert words[3:5] == [str(dwi), "--bvals"] and words[9] == "out/sub-1/dwi"


def test_an_image_that_is_there_twice_has_two_folders(job, tmp_path):
    pair = [image(tmp_path / "x" / name) for name in ("dwi.nii", "dwi.nii.gz")]
    assert len({out_of(job, pair, task, tmp_path) for task in (1, 2)}) == 2
    for name in ("sub-1_dwi.nii", "sub-1_dwi.nii.gz"):
        image(tmp_path / "bids/sub-1/dwi" / name)
    assert [out_of(job, [], task, tmp_path, "out", "bids") for task in (1, 2)] == [
        "out/sub-1/dwi/sub-1_dwi.nii",
        "out/sub-1/dwi/sub-1_dwi.nii.gz",
    ]


def record_of(out, dwi):
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.json").write_text(json.dumps({"inputs": {"dwi": {"path": str(dwi)}}}))


def test_images_of_one_name_have_folders_of_their_own_in_any_list(job, tmp_path):
    a, b = (image(tmp_path / name / "T1w" / "dwi.nii.gz") for name in "AB")
    out = tmp_path / "out"
    first, second = (out_of(job, [a, b], task, tmp_path, out) for task in (1, 2))
    assert first != second and first.startswith(f"{out}/A-T1w-dwi-")
    assert [out_of(job, [b, "", a], task, tmp_path, out) for task in (1, 2)] == [second, first]
    # A list of one of them takes the name, and keeps it when the other one comes, in that list or another.
    assert out_of(job, [a], 1, tmp_path, out) == f"{out}/dwi"
    record_of(out / "dwi", a)
    assert out_of(job, [a, b], 1, tmp_path, out) == f"{out}/dwi"
    assert out_of(job, [a, b], 2, tmp_path, out) == out_of(job, [b], 1, tmp_path, out) == second


def test_a_folder_of_another_image_that_is_in_work_or_says_nothing_is_left_alone(job, tmp_path):
    a, b = (image(tmp_path / name / "dwi.nii.gz") for name in "AB")
    work = tmp_path / "out" / "dwi" / "work" / "dwi.neuro"
    work.mkdir(parents=True)
    (work / "request").write_text(json.dumps({"inputs": {"dwi": {"path": str(a)}}}))
    assert out_of(job, [a], 1, tmp_path, tmp_path / "out") == f"{tmp_path}/out/dwi"
    assert out_of(job, [b], 1, tmp_path, tmp_path / "out").startswith(f"{tmp_path}/out/")
    assert out_of(job, [b], 1, tmp_path, tmp_path / "out") != f"{tmp_path}/out/dwi"
    (work / "request").write_text("torn")
    assert out_of(job, [b], 1, tmp_path, tmp_path / "out") != f"{tmp_path}/out/dwi"


def test_two_images_of_one_session_of_a_bids_folder_do_not_share_a_folder(job, tmp_path):
    for name in ("sub-1_run-1_dwi", "sub-1_run-2_dwi"):
        image(tmp_path / "bids/sub-1/dwi" / f"{name}.nii.gz")
    image(tmp_path / "bids/sub-2/dwi/sub-2_dwi.nii.gz")
    assert [out_of(job, [], task, tmp_path, "out", "bids") for task in (1, 2, 3)] == [
        "out/sub-1/dwi/sub-1_run-1_dwi",
        "out/sub-1/dwi/sub-1_run-2_dwi",
        "out/sub-2/dwi",
    ]


@pytest.mark.parametrize(("task", "said"), [(3, "c.nii: no "), (4, "has 3 images: sbatch --array=1-3")])
def test_a_task_without_an_image_or_gradients_is_refused(job, cohort, task, said):
    done = array(job, cohort, task)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


#: Stands for a tool with a plan: it needs NEED MB and SECONDS_NEEDED on one rank.
TOOL = """#!/usr/bin/env python3
import json, os, sys
flags = dict(word.partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
if "--ended" in flags:
    sys.exit(0)
if "--bad" in flags:
    sys.exit(print("mpiimg-neuro: error: unrecognized arguments: --bad", file=sys.stderr) or 2)
if "broken" in sys.argv[1]:
    sys.exit(print("mpiimg: error: broken: no such file", file=sys.stderr) or 2)
need, has = int(os.environ["NEED"]), int(float(flags.get("--memory", os.environ["HAS"] + "G")[:-1]) * 1024)
if need > has:
    said = f"stage fit needs {need} MB per rank and has {has}; use more ranks, or raise --memory"
    sys.exit(print(f"mpiimg: error: {said}", file=sys.stderr) or 2)
seconds = float(os.environ["SECONDS_NEEDED"]) / int(flags["--ranks"])
print(json.dumps({"totals": {"peak_per_rank": need << 20, "seconds": seconds}}))
"""


@pytest.fixture
def planned(tmp_path, job):
    """Return a function that runs a script where the tools have a plan; sbatch says how it was called."""
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    sbatch = '#!/bin/bash\nprintf "%s\\n" "$@"\n'
    for path, text in (
        (venv / "mpiimg-neuro", TOOL),
        (tmp_path / "sbatch", sbatch),
        (tmp_path / "squeue", "#!/bin/sh\necho '        10:00'\n"),
    ):
        path.write_text(text)
        path.chmod(0o755)

    def run(script, *words, need=900, has=2, seconds=1200, **environment):
        plan = {"NEED": str(need), "HAS": str(has), "SECONDS_NEEDED": str(seconds), "MPIIMG_PLAN": ""}
        return job(script, *words, MPIIMG_VENV=str(venv.parent), **plan, **environment)

    return run


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ({}, 0, "predicted 5 min, 900 MB per rank\n"),
        # More than there is on this node: with what the next job gets it.
        (
            {"need": 3000},
            2,
            "stage fit needs 3000 MB per rank and has 2048: sbatch --mem-per-cpu=3500M --time=15 ...",
        ),
        # Too long for one job, then for all that it may become.
        ({"seconds": 4800}, 0, "the limit is 10 min away, so that the job will be requeued"),
        ({"seconds": 48000}, 2, "may be requeued 10 times: sbatch --mem-per-cpu=1100M --time=405 ..."),
        ({"words": ["broken.nii"]}, 2, "mpiimg-neuro: error: broken: no such file\n"),
    ],
    ids=str,
)
def test_a_job_that_cannot_do_it_says_so_before_any_work(planned, how, status, said):
    words = how.pop("words", ["dwi.nii.gz"])
    done = planned("neuro.sbatch", *words, SLURM_JOB_NAME="mpiimg-neuro", **how)
    assert done.returncode == status
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert ("--mpi=pmi2" in done.stdout) == (status == 0)


def test_a_job_that_is_told_while_it_plans_starts_nothing_and_goes_back_into_the_queue(planned, tmp_path):
    tell = "#!/bin/bash\nkill -USR1 $(ps -o ppid= $PPID)\necho 10:00\n"
    (tmp_path / "squeue").write_text(tell)
    done = planned("neuro.sbatch", "dwi.nii.gz")
    assert done.returncode == 75
    assert "--mpi=pmi2" not in done.stdout
    assert "scontrol requeue 7\n" in done.stdout


def submitted(done) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[1:]


def test_submit_asks_for_what_the_plan_predicts(planned):
    """For the ranks that are given, or those in the script; what is given otherwise comes later, and wins."""
    script = str(launch.REPOSITORY / "slurm" / "neuro.sbatch")
    words = submitted(planned("submit.sh", script, "dwi.nii.gz", "--out", "out"))
    assert words == ["--mem-per-cpu=1100M", "--time=8", script, "dwi.nii.gz", "--out", "out"]
    words = submitted(planned("submit.sh", "--ntasks=4", "--time=30", script, "dwi.nii.gz", need=9000))
    assert words == ["--mem-per-cpu=10500M", "--time=15", "--ntasks=4", "--time=30", script, "dwi.nii.gz"]
    done = planned("submit.sh", script, "broken.nii")
    assert (done.returncode, done.stderr) == (2, "submit.sh: error: broken: no such file\n")
    done = planned("submit.sh", script, "dwi.nii.gz", "--bad")
    assert (done.returncode, done.stderr) == (2, "submit.sh: error: unrecognized arguments: --bad\n")
    done = planned("submit.sh", "neuro", "dwi.nii.gz")
    assert done.returncode == 2
    assert "usage: " in done.stderr


def test_submit_counts_a_cohort_and_plans_its_largest_image(planned, cohort):
    (cohort / "b.nii").write_text("large")
    script = str(launch.REPOSITORY / "slurm" / "neuro-array.sbatch")
    words = submitted(planned("submit.sh", "-n", "2", script, cohort / "list.txt", "out"))
    assert words[:5] == ["--mem-per-cpu=1100M", "--time=25", "--array=1-3", "-n", "2"]
    (cohort / "g.bval").unlink()
    done = planned("submit.sh", script, cohort / "list.txt", "out")
    assert done.returncode == 2
    assert "b.nii: no " in done.stderr


def test_submit_asks_for_all_runs_of_a_scaling(planned):
    script = str(launch.REPOSITORY / "slurm" / "scaling.sbatch")
    words = submitted(planned("submit.sh", script, "out", "dwi.nii.gz"))
    assert words == ["--mem-per-cpu=1100M", "--time=85", script, "out", "dwi.nii.gz"]
