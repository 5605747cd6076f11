"""The scripts of slurm/ on a cluster: done, cancelled, out of time, on a node that dies, with bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from slurm.conftest import INSTALLS, SOON
from support.astro_data import TRACT
from support.subjects import digests, images, record

from mpiimg.engine.mpi.stale_shm import segment_names

pytestmark = pytest.mark.slurm


def resumed(out) -> int:
    return sum(stage["resumed_chunks"] for stage in record(out)["stages"])


def test_astro(jobs, exposures, coadds, tmp_path):
    out = tmp_path / "out"
    number = jobs.submit("astro.sbatch", *exposures, "--out", out, *TRACT)
    jobs.end(number)
    assert digests(out) == digests(coadds)


def test_neuro_that_the_time_limit_strikes_goes_back_into_the_queue_and_on(
    cluster, jobs, head, maps, brake, tmp_path
):
    """SLURM tells the job two minutes before its limit; here that comes near once all ranks are at work."""
    out = tmp_path / "out"
    how = {"install": INSTALLS[-1], "options": ("-N2",), "env": brake.environment}
    number = jobs.submit("neuro.sbatch", *head.arguments, "--out", out, **how)
    brake.wait(jobs, number, "reached")
    hours, minutes, _ = map(int, cluster.job(number)["RunTime"].split(":"))
    limit = 60 * hours + minutes + 2
    cluster.run("scontrol", "update", f"JobId={number}", f"TimeLimit={limit}")
    brake.wait(jobs, number, "told")
    cluster.run("scontrol", "update", f"JobId={number}", f"TimeLimit={limit + 60}")
    brake.release()
    assert jobs.end(number)["Restarts"] == "1"
    assert "told that the time limit is near" in jobs.log(number)
    assert "going back into the queue" in jobs.log(number)
    assert "not requeued" not in jobs.log(number) and "cancelled" not in jobs.log(number)
    assert "mpiimg: stopped: everything done so far is marked" in jobs.log(number)
    assert digests(out) == digests(maps)
    assert resumed(out) > 0


def test_cancelled_it_stays_so_until_it_is_submitted_again_and_a_dead_node_does_not_end_it(
    cluster, jobs, head, maps, brake, tmp_path
):
    out, install = tmp_path / "out", INSTALLS[-1]
    how = {"install": install, "options": ("-N2", "--exclude=n3"), "env": brake.environment}
    words = ("neuro.sbatch", *head.arguments, "--out", out)
    number = jobs.submit(*words, **how)
    brake.wait(jobs, number, "reached")
    cluster.run("scancel", number)
    brake.wait(jobs, number, "told")
    brake.release()
    jobs.end(number, "CANCELLED")
    assert "cancelled: stopping" in jobs.log(number)
    assert "queue" not in jobs.log(number)
    assert (out / "work").exists()

    # On the other install: where two of its ranks on a node were killed, they leave shared memory of a name
    # that is that of the requeued job, too.
    brake.put_on()
    number = jobs.submit(*words, options=("-N2", "--ntasks=4"), env=brake.environment)
    segments = [Path("/dev/shm", segment_names(f"{number}.0", node)[0]) for node in ("0", "1")]
    brake.wait(jobs, number, "reached", ranks=4)
    cluster.kill_node("n2")
    try:
        assert segments[1].exists()
        brake.release()
        job = jobs.end(number)
    finally:
        cluster.start_node("n2")
    assert not any(path.exists() for path in segments)
    assert job["Restarts"] == "1"
    assert digests(out) == digests(maps)
    assert resumed(out) > 0


def test_bad_input_is_not_tried_again(jobs, head, tmp_path):
    words = (head.dwi, "--bvals", head.bvecs, "--bvecs", head.bvecs, "--out", tmp_path / "out")
    number = jobs.submit("neuro.sbatch", *words)
    job = jobs.end(number, "FAILED")
    assert (job["ExitCode"], job["Restarts"]) == ("2:0", "0")
    assert "error: " in jobs.log(number)
    assert "24 b-values for an image of 8 volumes" in jobs.log(number)


def test_cohort_takes_an_image_a_task(jobs, head, maps, tmp_path):
    """Two images of a BIDS folder, of which one has a session; a task beyond them is refused."""
    bids, out = tmp_path / "bids", tmp_path / "derivatives"
    places = ("sub-01/dwi/sub-01_dwi", "sub-02/ses-a/dwi/sub-02_ses-a_dwi")
    for place in places:
        (bids / place).parent.mkdir(parents=True)
        for path, ending in ((head.dwi, ".nii.gz"), (head.bvals, ".bval"), (head.bvecs, ".bvec")):
            shutil.copy(path, f"{bids / place}{ending}")
    number = jobs.submit("neuro-array.sbatch", bids, out, options=("--array=1-3", "--ntasks=1"))
    states = []
    jobs.wait(number, lambda job: not jobs.cluster.run("squeue", "-h", "-j", number).stdout, "over", SOON)
    for task in (1, 2, 3):
        states.append(jobs.end(f"{number}_{task}", "COMPLETED" if task < 3 else "FAILED")["ExitCode"])
    assert states == ["0:0", "0:0", "2:0"]
    for place in places:
        assert images(out / place.rpartition("/")[0]) == images(maps)


def test_scaling_prints_a_table(jobs, head, maps, tmp_path):
    out = tmp_path / "out"
    number = jobs.submit("scaling.sbatch", out, *head.arguments)
    jobs.end(number)
    head_line, *rows = (out / "scaling.txt").read_text().splitlines()
    assert head_line.split()[:3] == ["ranks", "nodes", "seconds"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert rows[0].split()[4:6] == ["1.00", "100%"]
    for ranks in (1, 2):
        assert digests(out / f"ranks-{ranks}") == digests(maps)
        assert f"{record(out / f'ranks-{ranks}')['ranks']}" == str(ranks)
