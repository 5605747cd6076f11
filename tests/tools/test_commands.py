"""What a user meets on the command line: help, versions, plans, wrong flags, --force, --quiet."""

from __future__ import annotations

import json
import re

import nibabel
import numpy as np
import pytest
from support import launch, warm
from support.subjects import PATIENCE, digests, neuro, record

import mpiimg

TOOLS = {
    "mpiimg-neuro": (
        "s/mm^2",
        "voxels",
        "image units",
        "doi:10.1109/TMI.2007.906087",
        "Otsu 1979",
        "default",
    ),
    "mpiimg-stage": ("STAGED", ".h5", "bytes", "default"),
    "mpiimg-mask": ("s/mm^2", "voxels", "Otsu 1979", "default 4"),
    "mpiimg-volumes": ("s/mm^2", "dropout", "doi:10.1016/j.neuroimage.2019.116131", "default: none"),
    "mpiimg-denoise": ("image units", "voxels", "doi:10.1109/TMI.2007.906087", "Koay", "default 5"),
    "mpiimg-gradcheck": ("s/mm^2", "doi:10.1016/j.mri.2018.09.025", "volumes of these shells"),
    "mpiimg-fit": ("s/mm^2", "image units", "doi:10.1006/jmrb.1994.1037", "default iwls"),
    "mpiimg-simulate": ("image units", "default 72x72x60", "voxels along x, y and z"),
}

pytestmark = pytest.mark.tool


@pytest.mark.parametrize("tool", TOOLS)
def test_help_names_units_defaults_and_papers(tool):
    text = warm.run_tool(tool, "--help").stdout
    unwrapped = " ".join(text.split())
    for word in TOOLS[tool]:
        assert word in unwrapped
    for flag in ("--plan", "--force", "--quiet", "--verbose", "--version"):
        assert flag in text


def test_help_and_version_are_said_once_by_three_ranks():
    assert warm.run_tool("mpiimg-fit", "--help", ranks=3).stdout.count("usage:") == 1
    assert warm.run_tool("mpiimg-fit", "--version", ranks=3).stdout == f"mpiimg {mpiimg.__version__}\n"


@pytest.mark.parametrize("ranks", [None, 3])
def test_unknown_flag(ranks, simulated, tmp_path):
    words = (*simulated.arguments, "--out", tmp_path / "out", "--denoise-harder")
    done = warm.run_tool("mpiimg-neuro", *words, ranks=ranks, check=False)
    assert done.returncode == 2
    assert done.stderr.count("--denoise-harder: there is no such option") == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "tool, words",
    [
        ("mpiimg-neuro", ["--method", "magic"]),
        ("mpiimg-neuro", ["--b-max", "high"]),
        ("mpiimg-neuro", ["--quiet", "--verbose"]),
        ("mpiimg-neuro", ["--passes", "-1"]),
        ("mpiimg-neuro", ["--median-radius", "-1"]),
        ("mpiimg-neuro", ["--dilate", "-1"]),
        ("mpiimg-neuro", ["--patch-radius", "-1"]),
        ("mpiimg-neuro", ["--patch-radius", "5", "--block-radius", "3"]),
        ("mpiimg-neuro", ["--sigma", "estimate", "--coils", "3"]),
        ("mpiimg-neuro", ["--sigma", "piesno", "--coils", "0"]),
        ("mpiimg-neuro", ["--min-signal", "0"]),
        ("mpiimg-neuro", ["--min-signal", "nan"]),
        ("mpiimg-neuro", ["--b0-threshold", "-1"]),
        ("mpiimg-neuro", ["--method", "restore", "--restore-sigma", "-2"]),
        ("mpiimg-neuro", ["--memory", "-1"]),
    ],
    ids=lambda value: "".join(value),
)
def test_values_that_make_no_sense(tool, words, simulated, tmp_path):
    done = warm.run_tool(tool, *simulated.arguments, "--out", tmp_path / "out", *words, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert any(word in done.stderr for word in words if word.startswith("--"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["ocean"],
        ["neuro", "--shape", "10x10"],
        ["neuro", "--shape", "10x10x-1"],
        ["neuro", "--volumes", 3],
        ["neuro", "--sigma", -1],
    ],
    ids=str,
)
def test_simulations_that_make_no_sense(words, tmp_path):
    done = warm.run_tool("mpiimg-simulate", *words, "--out", tmp_path / "out", check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("mpiimg: error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ranks", [None, 3])
def test_plan_is_printed_and_nothing_written(ranks, simulated, tmp_path):
    words = (*simulated.arguments, "--out", tmp_path / "out", "--plan", "--memory", "2G")
    done = warm.run_tool("mpiimg-neuro", *words, ranks=ranks)
    verdict, worth, head, columns, *rows = done.stdout.splitlines()
    assert verdict.startswith("fits: a rank needs ") and " go to a disk with " in verdict
    assert worth.startswith("ranks worth having: ")
    assert head.startswith(f"{ranks or 1} rank{'s' * bool(ranks)} on 1 node, 2048 MB per rank")
    assert columns.split("  ")[-1].strip() == "seconds"
    assert [row.split()[0] for row in rows].index("denoise") < [row.split()[0] for row in rows].index("fit")
    assert not (tmp_path / "out").exists()


def test_a_plan_of_another_machine_for_programs(simulated, tmp_path):
    """1024 ranks on 32 nodes, as JSON; the bare flag takes no word that follows it for its value."""
    words = ("--out", tmp_path / "out", "--ranks", 1024, "--nodes", 32, "--memory", "64G")
    done = warm.run_tool("mpiimg-neuro", *simulated.arguments, *words, "--plan=json")
    plan = json.loads(done.stdout)
    assert (plan["ranks"], plan["nodes"], plan["memory_per_rank"]) == (1024, 32, 64 << 30)
    denoise = next(stage for stage in plan["stages"] if stage["stage"] == "denoise")
    assert denoise["chunks"] == 60 and denoise["chunks_per_rank"] == 1
    totals = plan["totals"]
    assert totals["peak_per_rank"] == max(stage["peak_per_rank"] for stage in plan["stages"])
    assert totals["bytes_moved"] == sum(stage["bytes_moved"] for stage in plan["stages"])
    assert 0 < totals["bytes_moved_between_nodes"] < totals["bytes_moved"]
    assert plan["verdict"]["fits"] and plan["verdict"]["ranks_worth"] < 1024
    assert plan["verdict"]["peak_per_rank"] == totals["peak_per_rank"]
    first = warm.run_tool("mpiimg-neuro", "--plan", *simulated.arguments, *words).stdout.splitlines()
    assert first[2].startswith("1024 ranks on 32 nodes, 65536 MB per rank")
    whole = warm.run_tool("mpiimg-neuro", "--plan=full", *simulated.arguments, *words).stdout.splitlines()
    assert whole[:3] == first[:3]
    table = whole[4 : 4 + len(plan["stages"])]
    assert [row.split()[0] for row in table] == [one["stage"] for one in plan["stages"]]
    steps = first[4 : next(n for n, row in enumerate(first) if row.startswith("all stages"))]
    assert sum(int(row.split()[1]) for row in steps) == len(plan["stages"])
    assert len(steps) < len(table) / 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ranks", 4), "--ranks and --nodes are for --plan"),
        (("--plan", "--ranks", 4, "--nodes", 8), "--nodes 8: there are only 4 ranks"),
        (("--plan=xml",), "invalid choice: 'xml'"),
        (("--plan", "--memory", "64M"), "--memory"),
    ],
)
def test_plans_that_cannot_be(words, said, simulated, tmp_path):
    out = tmp_path / "out"
    done = warm.run_tool("mpiimg-neuro", *simulated.arguments, "--out", out, *words, check=False)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not out.exists()


def test_force_overwrites_and_only_that(simulated, tmp_path):
    """Not --force, not a repetition of the same command: only --force touches what is there."""
    fast = ("--median-radius", 1, "--sigma", 40, "--quiet")
    out = neuro(simulated, tmp_path / "out", *fast)
    first = digests(out)
    fa = out / "dwi_model-tensor_param-fa_dwimap.nii.gz"
    fa.write_text("precious")
    again = warm.run_tool(
        "mpiimg-neuro", *simulated.arguments, "--out", out, *fast, check=False, timeout=PATIENCE
    )
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert fa.read_text() == "precious"
    (out / "notes.txt").write_text("mine")
    neuro(simulated, out, *fast, "--force")
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert digests(out) == first


def test_quiet_says_nothing_and_otherwise_warnings_and_notes(simulated, tmp_path):
    """A warning about b-values and the size of the mask are said by default, and kept in the record."""
    table = simulated.bvals.read_text().split()
    high = tmp_path / "high.bval"
    high.write_text(" ".join("3000" if b != "0" else b for b in table))
    words = [simulated.dwi, "--bvals", high, "--bvecs", simulated.bvecs, "--median-radius", 1, "--sigma", 40]
    quiet = launch.run_tool("mpiimg-neuro", *words, "--out", tmp_path / "quiet", "--quiet", timeout=PATIENCE)
    said = warm.run_tool("mpiimg-neuro", *words, "--out", tmp_path / "said", ranks=3, timeout=PATIENCE)
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert said.stdout == ""
    *lines, last, head, again, where = said.stderr.splitlines()
    (line,) = [one for one in lines if "warning: " in one]
    notes = [one for one in lines if one != line]
    assert re.fullmatch(r"mpiimg: peak \d+ MB per rank \(planned \d+\), .* s \(predicted [\d.]+\)", last)
    assert line.startswith("mpiimg: warning: ")
    assert "--b-max 1500" in line
    assert head == "mpiimg: 1 warning in all:"
    assert again == line.replace("warning:", " ")
    assert where.startswith(f"mpiimg: results in {tmp_path / 'said'}, and how they were made in ")
    for out in ("quiet", "said"):
        (warning,) = record(tmp_path / out)["warnings"]
        assert warning in line
        assert [f"mpiimg: {note}" for note in record(tmp_path / out)["notes"]] == notes
        assert any(" ml, " in note for note in notes)


def test_grad_dev_is_warned_about(simulated, tmp_path):
    for file in (simulated.dwi, simulated.bvals, simulated.bvecs):
        (tmp_path / file.name).symlink_to(file)
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((2, 2, 2, 9), np.float32), np.eye(4)), tmp_path / "grad_dev.nii.gz"
    )
    words = [tmp_path / "dwi.nii.gz", "--bvals", simulated.bvals, "--bvecs", simulated.bvecs]
    done = warm.run_tool("mpiimg-mask", *words, "--out", tmp_path / "out", "--passes", 1, timeout=PATIENCE)
    assert "grad_dev.nii.gz" in done.stderr


def test_verbose_names_every_stage(simulated, tmp_path):
    words = (*simulated.arguments, "--out", tmp_path / "out", "--passes", 1, "--verbose")
    done = warm.run_tool("mpiimg-mask", *words, ranks=2, timeout=PATIENCE)
    names = ("read-dwi", "mask.b0-mean", "mask.median-1", "mask.otsu", "mask.threshold", "brain_mask.nii.gz")
    for name in names:
        assert sum(name in line for line in done.stderr.splitlines()) == 2, (
            "when it ended, and beside the plan"
        )


def test_singletons_of_a_wrong_srun_are_refused(simulated, tmp_path):
    """Environment of a step of three tasks in which MPI sees one rank."""
    words = (*simulated.arguments, "--out", tmp_path / "out")
    told = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0"}
    done = launch.run_tool("mpiimg-neuro", *words, env=told, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--mpi=pmi2" in done.stderr
    assert not (tmp_path / "out").exists()


def test_help_is_fast_enough_to_read(monkeypatch):
    """Help imports neither MPI nor numba nor dipy."""
    code = (
        "import sys; from mpiimg.tools.cli import parser; parser('mpiimg-neuro').format_help();"
        "print([m for m in ('mpi4py.MPI', 'numba', 'dipy', 'h5py') if m in sys.modules])"
    )
    assert launch.run([launch.sys.executable, "-c", code]).stdout == "[]\n"
