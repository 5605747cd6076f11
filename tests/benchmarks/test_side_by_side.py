"""The comparison of systems: it counts and measures rightly, and every program gives the serial result."""

import json
import os
import re
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest
from astropy.io import fits
from support import launch

import mpiimg

BENCHMARKS = launch.REPOSITORY / "benchmarks"
PEERS = launch.REPOSITORY / ".venv-bench" / "bin" / "python"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Let tests import the scripts, which are no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def metered(tmp_path, code, *flags):
    """Run Python `code` under the meter and return its report."""
    file = tmp_path / "meter.json"
    command = [
        sys.executable,
        BENCHMARKS / "meter.py",
        "--report",
        file,
        *flags,
        "--",
        sys.executable,
        "-c",
        code,
    ]
    subprocess.run(command, check=False, timeout=100)
    return json.loads(file.read_text())


#: A program with six lines of code.
PROGRAM = '''"""Says
what."""

# why
x = [
    1,  # one
]


def f():
    """Doc."""
    return """a
b"""
'''


def busy(seconds):
    """Return code that takes so much CPU time."""
    return f"import time; end = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"


def starting(code, count):
    """Return code that starts so many processes and waits for none."""
    return (
        "import subprocess, sys\n"
        f"all = [subprocess.Popen([sys.executable, '-c', {code!r}]) for _ in range({count})]\n"
    )


def test_lines_of_code_are_those_that_hold_code():
    import lines

    assert lines.count(PROGRAM) == 6


def test_the_meter_sees_all_processes_their_memory_and_their_time(tmp_path):
    child = "held = b'x' * (64 << 20)\n" + busy(0.3) + "time.sleep(0.5)"
    report = metered(tmp_path, starting(child, 2) + "[one.wait() for one in all]")
    assert report["status"] == 0 and report["ended"] == "itself"
    assert report["processes"] == 3
    assert report["cpu_seconds"] >= 0.6
    assert report["peak_pss"] > report["peak_kept"] >= 2 * (64 << 20)
    assert report["seconds"] >= 0.8
    times, spent = zip(*report["samples"], strict=True)
    assert list(times) == sorted(times) and list(spent) == sorted(spent)


def test_the_meter_counts_orphans_too(tmp_path):
    assert metered(tmp_path, starting(busy(0.4), 1))["cpu_seconds"] >= 0.4


@pytest.mark.parametrize(
    ("flags", "ended"), [(("--limit", str(128 << 20)), "memory"), (("--timeout", "1"), "timeout")]
)
def test_the_meter_ends_what_takes_too_much(tmp_path, flags, ended):
    started = time.monotonic()
    report = metered(tmp_path, "import time; held = b'x' * (256 << 20); time.sleep(60)", *flags)
    assert report["ended"] == ended and report["status"] < 0
    assert time.monotonic() - started < 50


def row(system, cpu, **more):
    known = {
        "workload": "neuro",
        "size": "small",
        "system": system,
        "round": 0,
        "by_steps": False,
        "limit": None,
    }
    known |= {"tables": ("same", "best"), "lines": 40, "workers": 2, "where": {"commit": "abc"}}
    took = {
        "result": "done",
        "cpu_seconds": cpu,
        "seconds": cpu / 2,
        "peak_pss": 500_000_000,
        "peak_kept": 400_000_000,
        "processes": 3,
    }
    return known | took | {"steps": {}, "recorded": {}} | more


#: What a run says of itself.
TAKEN = ("result", "seconds", "cpu_seconds", "peak_pss", "peak_kept", "processes", "steps", "recorded")


def absent(system):
    """Return the row of a system that is not installed."""
    found = row(system, 0.0, result="not installed: pyspark")
    return {
        key: value
        for key, value in found.items()
        if key not in ("cpu_seconds", "seconds", "peak_pss", "peak_kept")
    }


def test_tables_give_medians_ranges_and_what_did_not_run():
    import report

    rows = [row("serial", cpu) for cpu in (2.0, 4.0, 3.0)] + [row("Dask", 6.0, difference="FA 0")]
    rows.append(absent("Spark"))
    rows.append(row("Dask", 7.0, by_steps=True, steps={"mask": (1.0, 2.5)}))
    text = report.markdown(rows)
    assert "commit abc" in text
    assert "| serial | 3 (2-4) | 1 | 1.5 (1-2) | 500 | 3 | 40 |  |" in text
    assert "| Dask | 6 | 2 times slower | 3 | 500 | 3 | 40 | FA 0 |" in text
    assert "| Spark | not installed: pyspark |" in text
    assert "| Dask |  |  |  |  | 2.5 |  |  |  |  |" in text
    assert "| SciDB | 20 | 514 |" in text
    assert "under a limit" not in text


def test_a_table_says_how_each_system_ends_under_a_limit_of_memory():
    import report

    rows = [row("serial", 2.0), row("mpiimg", 1.0)]
    for limit, theirs, ours in (
        (600_000_000, "out of memory", "done"),
        (300_000_000, "failed: KilledWorker", "refused: needs 400M"),
        (200_000_000, "timeout", "refused: needs 400M"),
    ):
        rows += [row("serial", 3.0, limit=limit, result=theirs), row("mpiimg", 4.0, limit=limit, result=ours)]
    text = report.markdown(rows)
    assert "| system | no limit | 600 MB | 300 MB | 200 MB |" in text
    assert (
        "| serial | 400 MB, 2 CPU-s | **killed**, above the limit | **failed** | **no end** in 2 s |" in text
    )
    assert (
        "| mpiimg | 400 MB, 1 CPU-s | 400 MB, 4 CPU-s | refused in one line | refused in one line |" in text
    )
    assert "- serial, 300 MB: failed: KilledWorker\n" in text
    # The other tables are of runs without a limit.
    assert "| mpiimg | 1 | 2 times faster | 0.5 |" in text


def test_mpiimg_stands_in_the_regroup_by_the_meter_and_by_its_own_record():
    import report

    steps = {"start-up": (1.0, 2.0), "ingest": (0.5, 0.6), "regroup": (0.25, 0.3)}
    rows = [row("mpiimg", 3.0, workload="regroup", steps=steps, recorded={"ingest": 0.5, "regroup": 0.2})]
    text = report.markdown(rows)
    assert "| mpiimg | 2 | 0.6 | 0.3 |  |" in text
    assert "| mpiimg, by its own record |  | 0.5 | 0.2 |  |" in text


def test_the_chart_shows_medians_of_what_got_through_by_table_and_what_the_study_measured(tmp_path):
    import charts

    rows = [row("serial", cpu) for cpu in (2.0, 9.0, 3.0)]
    rows += [row("Dask", 4.0, tables=("same",)), row("mpiimg", 1.0, tables=("best",))]
    rows += [row("Dask", 100.0, by_steps=True), row("Spark", 0.1, result="timeout")]
    rows += [
        row("Dask", 0.1, limit=1000),
        row("Dask", 0.1, size="deep"),
        row("Dask", 0.1, workload="regroup"),
    ]
    drawn = charts.dots(rows, tmp_path / "dots.png")
    assert drawn[:4] == [
        "neuro, same: Dask",
        "neuro, same: serial",
        "neuro, best: serial",
        "neuro, best: mpiimg",
    ]
    assert drawn[4:6] == ["neuro, study: TensorFlow", "neuro, study: SciDB"] and len(drawn) == 9
    assert (tmp_path / "dots.png").stat().st_size > 5000
    assert charts.dots([row("serial", 1.0, result="timeout")], tmp_path / "none.png") == []


def test_rows_come_back_from_their_file_as_they_were(tmp_path):
    import runs

    steps, recorded = {"start-up": (1.5, 2.5), "mask": (0.1, 0.25)}, {"mask": 0.2}
    rows = [
        row("serial", 2.0, steps=steps, recorded=recorded, difference=""),
        row("Dask, it's", 3.5, by_steps=True, limit=300_000_000, difference="FA 0", tables=()),
        absent("Spark"),
    ]
    runs.write(tmp_path / "a.csv", rows)
    runs.write(tmp_path / "b.csv", rows[1:])
    found = runs.read([tmp_path / "a.csv", tmp_path / "b.csv"])
    known = [{key: value for key, value in one.items() if value not in ("", ())} for one in rows + rows[1:]]
    assert found == known


@pytest.mark.parametrize(
    ("cpu", "said"), [(2.0, "1"), (2.001, "1"), (0.2, "10 times faster"), (2.5, "1.25 times slower")]
)
def test_a_system_is_so_many_times_faster_or_slower_than_serial(cpu, said):
    import report

    assert report.beside(cpu, 2.0) == said


def test_figures_of_two_cpus_are_not_set_side_by_side(tmp_path):
    import runs
    import side_by_side

    here = {"cpu": "AMD EPYC", "target": "znver5"}
    for name, where in (("a", here), ("b", here | {"commit": "abc"}), ("c", here | {"target": "znver3"})):
        runs.write(tmp_path / f"{name}.csv", [row("serial", 2.0, where=where)])
    side_by_side.main(["--from", *(str(tmp_path / f"{name}.csv") for name in "ab")])
    with pytest.raises(SystemExit, match=r"different CPUs .*znver3.*znver5"):
        side_by_side.main(["--from", *(str(tmp_path / f"{name}.csv") for name in "ac")])


def test_a_page_gets_new_figures_in_the_place_of_the_old_ones(tmp_path):
    import report
    import side_by_side

    runs_file, page = tmp_path / "a.csv", tmp_path / "page.md"
    import runs

    runs.write(runs_file, [row("serial", 2.0), row("Dask", 3.0)])
    page.write_text(f"# Page\n\n{report.BEGIN}\nold\n{report.END}\n\nrest\n")
    flags = ["--from", str(runs_file), "--page", str(page), "--chart", str(tmp_path / "chart.png")]
    for _ in range(2):
        side_by_side.main(flags)
        text = page.read_text()
        assert text.count("| Dask | 3 | 1.5 times slower |") == 2  # one for each table
        assert "](chart.png)" in text and "\n### size small\n" in text
        assert "old" not in text and text.endswith(f"{report.END}\n\nrest\n")
    page.write_text("# Page\n")
    with pytest.raises(SystemExit, match="no lines"):
        side_by_side.main(flags)


def test_what_was_spent_on_trying_functions_before_a_run_is_said_apart(tmp_path):
    import contenders
    import report
    import runs

    (tmp_path / "run-x.json").write_text(json.dumps({"stages": [], "rehearsal": {"cpu_seconds": 1.5}}))
    assert contenders.rehearsal(tmp_path) == 1.5
    rows = [row("serial", 10.0), row("mpiimg, their functions", 12.0, rehearsal=1.5)]
    runs.write(tmp_path / "a.csv", rows)
    text = report.markdown(runs.read([tmp_path / "a.csv"]))
    assert "| 1.2 times slower; 1.05 times slower without its rehearsal of 1.5 CPU-s |" in text


def test_what_a_frame_takes_with_either_kernels_is_said():
    import report

    rows = [row("serial", 10.0), row("serial, mpiimg's kernels", 2.0), row("Dask delayed", 12.0)]
    rows.append(row("mpiimg, their functions", 11.0, tables=("same",)))
    rows.append(row("mpiimg", 2.5, tables=("best",)))
    text = report.markdown(rows)
    assert "| none (serial) | 10 | 2 | 5 times faster |" in text
    assert "| mpiimg, two ranks | 11 | 2.5 | 4.4 times faster |" in text
    assert "| Dask delayed, two workers |" not in text


def test_conditions_name_the_cpu_and_what_kernels_are_compiled_for():
    import side_by_side

    from mpiimg.kernels.jit import cpu_target

    where = side_by_side.conditions()
    assert where["cpu"] and where["target"] == cpu_target()


@pytest.mark.parametrize("workload", ["neuro", "astro"])
def test_our_kernels_can_take_the_place_of_the_libraries_wherever_the_programs_call_them(workload):
    """By name: programs that take --kernels call nothing that one of the two modules lacks."""
    import ast

    folder = BENCHMARKS / "systems"
    programs = [path for path in folder.glob(f"{workload}_*.py") if "options.kernels" in path.read_text()]
    called = {
        node.attr
        for path in programs
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "kernels"
    }
    assert len(programs) == 2 and len(called) > 8
    for name in ("kernels", "mpiimg_kernels"):
        text = (folder / f"{workload}_{name}.py").read_text()
        names = text.split("__all__ = ")[1].split("\n)")[0]
        assert called <= set(ast.literal_eval(f"{names})"))


def test_a_file_of_something_else_is_refused_in_a_line(tmp_path):
    import side_by_side

    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    for path in (other, tmp_path / "none.csv"):
        with pytest.raises(SystemExit, match=path.name):
            side_by_side.main(["--from", str(path)])


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--rounds", "0"), "at least once"), (("--chart", "nowhere/chart.png"), "that is there")],
)
def test_what_cannot_end_in_tables_and_chart_is_refused_before_anything_runs(flags, said, capsys):
    import side_by_side

    with pytest.raises(SystemExit) as ended:
        side_by_side.main([*flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_an_interrupted_comparison_keeps_its_runs_and_they_give_tables_and_chart(
    tmp_path, monkeypatch, capsys
):
    import contenders
    import side_by_side

    done, times = [], iter((2.0, 1.0, 4.0, 3.0))

    def run(system, source, out, case):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((system.name, case.memory, case.steps))
        out.mkdir(parents=True, exist_ok=True)
        cpu = next(times)
        known = row(system.name, cpu)
        return {key: value for key, value in known.items() if key in TAKEN}

    monkeypatch.setattr(contenders, "run", run)
    monkeypatch.setattr(contenders.System, "lacking", lambda system: "")
    monkeypatch.setattr(side_by_side.workloads, "simulate", lambda workload, size, folder: folder)
    monkeypatch.setattr(side_by_side.subprocess, "run", lambda *command, **known: None)
    monkeypatch.setattr(side_by_side, "conditions", lambda: {"date": "2026", "commit": "abc"})
    flags = ["--size", "tiny", "--workload", "neuro", "--only", "mpiimg, one", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        side_by_side.main([*flags, "--limits", "300M"])
    # Two without a limit, then those under it, beginning with another one.
    assert done == [
        ("serial", None, False),
        ("mpiimg, one rank", None, False),
        ("mpiimg, one rank", 300_000_000, False),
    ]
    capsys.readouterr()
    (kept,) = tmp_path.glob("*.csv")
    side_by_side.main(["--from", str(kept), "--chart", str(tmp_path / "chart.png")])
    text = capsys.readouterr().out
    assert "| serial | 2 | 1 |" in text and "| mpiimg, one rank | 400 MB, 1 CPU-s | 400 MB, 4 CPU-s |" in text
    assert (tmp_path / "chart.png").exists() and kept.with_suffix(".md").read_text() in text


def test_lines_that_start_a_system_count_for_every_program_that_uses_them():
    import contenders
    import lines

    (spark,) = [one for one in contenders.SYSTEMS if (one.name, one.workload) == ("Spark", "neuro")]
    own, shared = (
        lines.count_file(contenders.PROGRAMS / name) for name in ("neuro_spark.py", "spark_context.py")
    )
    assert spark.lines() == own + shared > own > 0


def test_steps_are_told_apart_by_the_marks_of_a_program_or_the_events_of_mpiimg(tmp_path):
    import contenders

    samples = [(100, 0), (104, 4), (110, 7), (112, 9)]
    found = {"started": 100.0, "started_at": 5000.0, "samples": samples}
    marks = [("start-up", 101.0), ("ingest", 102.0), ("fit", 107.0), ("start-up", 112.0)]
    (tmp_path / "steps.json").write_text(json.dumps(marks))
    steps = contenders.steps_between(contenders.marks_of(tmp_path, found), found)
    assert steps == {"start-up": (6, 4.5), "ingest": (1, 1), "fit": (5, 3.5)}
    (tmp_path / "steps.json").unlink()
    (tmp_path / "events").mkdir()
    # Seconds since 1970, as each rank saw them: a stage has ended when it has on both.
    for rank, late in enumerate((0, 1)):
        told = [("stage", "read-dwi", 5001), ("ended", "read-dwi", 5002), ("stage", "mask.median-1", 5003)]
        told += [
            ("ended", "mask.median-1", 5005),
            ("ended", "mask.median-2", 5007),
            ("ended", "write-fa", 5009),
        ]
        lines = [
            json.dumps({"time": moment + late, "event": event, "stage": stage})
            for event, stage, moment in told
        ]
        (tmp_path / "events" / f"{rank}.jsonl").write_text(
            "\n".join([*lines, '{"time": 5010, "event": "end"}'])
        )
    steps = contenders.steps_between(contenders.marks_of(tmp_path, found), found)
    assert steps == {"start-up": (1, 1), "ingest": (2, 2), "mask": (5, 3), "write": (2, 1)}
    record = [
        {"stage": name, "cpu_seconds": cpu}
        for name, cpu in (("mask.median-1", 1), ("mask.median-2", 2), ("fit", 4))
    ]
    (tmp_path / "run.json").write_text(json.dumps({"stages": record}))
    assert contenders.recorded(tmp_path) == {"mask": 3, "fit": 4}


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("read-dwi-85ee751c4f5b", "ingest"),
        ("mean-dwi-bcbc5e3989e6", "mean"),
        ("brain_mask-eef6b2f46795", "mask"),
        ("weights-eb30cf42a303", "fit"),
        ("write-mask.nii.gz", "write"),
        ("onto_patches-9c1ee35536e3", "warp"),
        ("rows-7c6de266a5f8", "detect"),
        ("files-fc9a53e69502", "write"),
        ("brightest-1a258f64420a", "regroup"),
        ("mask.b0-mean", "mean"),
        ("calibrate.zero-points", "calibrate"),
        ("anything", "other"),
    ],
)
def test_a_stage_belongs_to_the_step_that_it_does(stage, step):
    import contenders

    assert contenders.step_of(stage) == step


def test_outcomes_are_told_in_a_few_words():
    import contenders

    assert contenders.outcome({"ended": "memory", "status": -9}, "") == "out of memory"
    assert contenders.outcome({"ended": "itself", "status": 0}, "noise") == "done"
    assert contenders.outcome({"ended": "itself", "status": 1}, "a\nKeyError: 3\n\n") == "failed: KeyError: 3"
    refusal = "tool: error: needs 3M\nlauncher: a rank ended with 2\n"
    assert contenders.outcome({"ended": "itself", "status": 2}, refusal) == "refused: tool: error: needs 3M"


@pytest.mark.parametrize(("text", "size"), [("300M", 300_000_000), ("1.5g", 1_500_000_000), ("2048", 2048)])
def test_limits_are_given_as_sizes(text, size):
    import side_by_side

    assert side_by_side.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1G", "nan", "300 loaves"])
def test_a_limit_that_is_no_size_is_refused(text):
    import side_by_side

    with pytest.raises(ValueError):
        side_by_side.size_in_bytes(text)


#: Coadds four exposures of one star, of which each pixel is masked in one, and says what it got.
FLUX = """
import json, sys
sys.path.insert(0, sys.argv[1])
import astro_kernels as kernels, numpy as np

rows, columns = np.mgrid[:60, :60]
truth = (50 + 200 * np.exp(-((rows - 30) ** 2 + (columns - 29) ** 2) / 18)).astype(np.float32)
box, pieces = ((100, 160), (200, 260)), []
patch = kernels.Patch("patch-0-0", "", box, box)
for number, variance in enumerate((1.0, 4.0, 2.0, 3.0)):
    planes = np.stack([truth, np.full_like(truth, variance), np.zeros_like(truth)])
    # Where a pixel is unusable it holds anything; no pixel is unusable in all.
    bad = (rows + columns + number) % 4 == 0
    planes[0][bad], planes[2][bad] = 1e6 * (number + 1), 1
    pieces.append(kernels.Piece(box, planes))
image, error = kernels.coadd(pieces, patch)
print(json.dumps([float(np.abs(image / truth - 1).max()), float(error.min()), float(error.max())]))
"""


@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed: make bench-systems")
def test_the_serial_coadd_keeps_flux_where_pixels_are_masked():
    """By ccdproc, whose weights of a frame would count where its pixels are masked as well."""
    text = launch.run([PEERS, "-c", FLUX, BENCHMARKS / "systems"], timeout=300).stdout
    away, least, most = json.loads(text)
    assert away < 1e-6
    # Weights are inverse variances: the least error lacks the exposure of variance 4, the largest that of 1.
    assert least == pytest.approx((1 + 1 / 2 + 1 / 3) ** -0.5, rel=1e-5)
    assert most == pytest.approx((1 / 4 + 1 / 2 + 1 / 3) ** -0.5, rel=1e-5)


#: Warps one frame, and says how far each plane is from what reproject gives when it is called plainly.
WARP = """
import json, sys
sys.path.insert(0, sys.argv[1])
import astro_kernels as kernels, numpy as np
from astropy.wcs import WCS
from reproject import reproject_interp

def tan(pixels, scale, angle):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ("RA---TAN", "DEC--TAN"), (150, 2), (pixels / 2,) * 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = scale / 3600 * turn
    return wcs

rng = np.random.default_rng(2)
source, tract = tan(90, 0.3, 0.4), tan(200, 0.35, 0)
planes = np.stack([*rng.random((2, 90, 90)), rng.random((90, 90)) < 0.05]).astype(np.float32)
box = (40, 150), (30, 160)
patch = kernels.Patch("patch-0-0", tract.to_header().tostring(), box, box)
image, variance, flags = kernels.warp(planes, source.to_header().tostring(), patch, box).planes
target = tract[40:150, 30:160]
plain = [
    reproject_interp((plane, source), target, shape_out=(110, 130), order=order, return_footprint=False)
    for plane, order in ((planes[0], "bicubic"), (planes[2], "nearest-neighbor"))
]
ratio = np.nanmedian(image / plain[0])
away = [np.nanmax(np.abs(image - ratio * plain[0])), np.nanmax(np.abs(flags - plain[1]))]
found = [float(ratio), *map(float, away), int(np.isfinite(image).sum())]
print(json.dumps([*found, sorted(set(flags[np.isfinite(flags)].tolist()))]))
"""


@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed: make bench-systems")
def test_the_serial_warp_is_that_of_reproject_and_keeps_flags_whole():
    text = launch.run([PEERS, "-c", WARP, BENCHMARKS / "systems"], timeout=300).stdout
    ratio, image_off, flags_off, known, flags = json.loads(text)
    assert ratio == pytest.approx((0.35 / 0.3) ** 2, rel=1e-4)
    assert image_off < 1e-5 and flags_off == 0
    assert known > 3000 and flags == [0, 1]


def program(name, *words, ranks=None):
    """Run a program of systems/ that needs no peer but dipy."""
    run(BENCHMARKS / "systems" / name, words, ranks, [])


def example(name, *words, ranks, folders=()):
    """Run an example of the docs with the functions of systems/."""
    run(launch.REPOSITORY / "docs" / "examples" / name, words, ranks, [*folders, BENCHMARKS / "systems"])


def run(path, words, ranks, folders):
    launcher = launch.mpiexec(ranks) if ranks else []
    found = os.pathsep.join(
        [*map(str, folders), str(launch.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    launch.run([*launcher, sys.executable, path, *words], timeout=300, env={"PYTHONPATH": found})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("study_neuro.py", ("neuro_dask_delayed.py", "neuro_dask_array.py")),
        ("study_astro.py", ("astro_dask.py",)),
        ("study_regroup.py", ("regroup_dask.py", "regroup_dask_delayed.py")),
    ],
)
def test_the_study_in_user_code_has_no_more_lines_than_on_dask_and_public_names_only(ours, theirs):
    import contenders
    import lines

    counts = [lines.count_file(contenders.PROGRAMS / name) for name in theirs]
    text = contenders.path_of(ours).read_text()
    assert 5 < lines.count(text) <= min(counts)
    page = (launch.REPOSITORY / "docs" / "primitives.md").read_text()
    assert re.search(rf"\[{ours}\].* \| {lines.count(text)} \| {min(counts)} \|", page)
    assert set(re.findall(r"^(?:import|from) (mpiimg\S*)", text, re.M)) == {"mpiimg"}
    assert all(hasattr(mpiimg, name) for name in re.findall(r"\bmi\.(\w+)", text))


@pytest.mark.tool
def test_our_frame_with_dipys_functions_gives_what_dipy_gives_alone(simulated, tmp_path):
    source = simulated.dwi.parent
    program("neuro_serial.py", source, tmp_path / "alone", "--block-radius", 2)
    example("study_neuro.py", source, tmp_path / "ours", "--block-radius", 2, ranks=2)
    for name in ("mask", "fa", "md"):
        alone, ours = (
            nibabel.load(tmp_path / which / f"{name}.nii.gz").get_fdata() for which in ("alone", "ours")
        )
        assert (alone == ours).all()
        assert np.count_nonzero(ours) > 100


@pytest.mark.tool
def test_the_survey_in_user_code_gives_what_it_gives_alone(tmp_path):
    """With mpiimg's kernels under the names of the libraries, which only .venv-bench has."""
    import workloads

    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "astro_kernels.py").write_text("from astro_mpiimg_kernels import *\n")
    source = workloads.simulate("astro", "tiny", tmp_path)
    program("astro_serial.py", source, tmp_path / "alone", "--kernels", "astro_mpiimg_kernels")
    example("study_astro.py", source, tmp_path / "ours", ranks=2, folders=[tmp_path / "kernels"])
    found = sorted(path.name for path in (tmp_path / "alone").glob("patch-*.fits"))
    assert len(found) > 2
    assert sorted(path.name for path in (tmp_path / "ours" / "patches").iterdir()) == found
    for name in found:
        assert (tmp_path / "ours" / "patches" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    alone, ours = (fits.getdata(tmp_path / which / "catalogue.fits", 1) for which in ("alone", "ours"))
    assert len(alone) > 2 and (ours.tolist() == alone.tolist())


@pytest.mark.tool
def test_our_frame_regroups_as_numpy_does(tmp_path):
    rng = np.random.default_rng(0)
    volumes = rng.normal(size=(5, 3_000_000)).astype("float32")
    for number, volume in enumerate(volumes):
        np.save(tmp_path / f"volume-{number}.npy", volume)
    example("study_regroup.py", tmp_path, tmp_path / "out", ranks=2)
    assert (np.load(tmp_path / "out" / "brightest.npy") == volumes.argmax(axis=0)).all()


@pytest.mark.long
@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed: make bench-systems")
def test_every_program_gives_the_serial_result(tmp_path):
    """At the smallest size, those that call the same functions to the last bit."""
    script, out = BENCHMARKS / "side_by_side.py", tmp_path / "out"
    flags = ("--size", "tiny", "--rounds", "1", "--no-steps", "--out", out)
    text = launch.run([PEERS, script, *flags], timeout=900).stdout
    import runs

    rows = runs.read(list(out.glob("*.csv")))
    assert {row["workload"] for row in rows} == {"neuro", "astro", "regroup"}
    assert all(row["result"].startswith(("done", "not installed")) for row in rows), text
    same = {"neuro": "FA 0", "astro": "0 of the noise, ", "regroup": "0 voxels"}
    found = [row for row in rows if "same" in row["tables"] and row["system"] != "serial"]
    found = [row for row in found if row["result"] == "done"]
    assert {"Dask delayed", "mpiimg, their functions", "mpiimg"} <= {row["system"] for row in found}
    assert all(row["difference"].startswith(same[row["workload"]]) for row in found), text
