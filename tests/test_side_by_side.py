"""The comparison of systems: it counts and measures rightly, and every program gives the serial result."""

import json
import math
import subprocess
import sys
import time

import launch
import pytest

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
    assert report["peak_pss"] >= 2 * (64 << 20)
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
    known = {"workload": "neuro", "system": system, "round": 0, "by_steps": False, "tables": ("same", "best")}
    took = {
        "result": "done",
        "cpu_seconds": cpu,
        "seconds": cpu / 2,
        "peak_pss": 5e8,
        "processes": 3,
        "lines": 40,
    }
    return known | took | {"steps": {}} | more


def test_tables_give_medians_ranges_and_what_did_not_run():
    import report

    rows = [row("serial", cpu) for cpu in (2.0, 4.0, 3.0)] + [row("Dask", 6.0, difference="FA 0")]
    rows.append({**row("Spark", 0), "result": "not installed: pyspark"})
    rows.append(row("Dask", 7.0, by_steps=True, steps={"mask": (1.0, 2.5)}))
    text = report.markdown(rows, {"commit": "abc"})
    assert "| serial | 3 (2-4) | 1 | 1.5 (1-2) | 500 | 3 | 40 |  |" in text
    assert "| Dask | 6 | 2 | 3 | 500 | 3 | 40 | FA 0 |" in text
    assert "| Spark | not installed: pyspark |" in text
    assert "| Dask |  |  |  |  | 2.5 |  |  |  |  |" in text
    assert "| SciDB | 20 | 514 |" in text


def test_charts_show_medians_of_what_got_through(tmp_path):
    import charts

    rows = [row("serial", cpu) for cpu in (2.0, 9.0, 3.0)] + [row("Dask", 4.0), row("mpiimg", 1.0)]
    rows += [row("Dask", 100.0, by_steps=True), row("Spark", 0.1, result="timeout")]
    assert charts.bars(rows, tmp_path / "bars.png") == ["neuro: Dask", "neuro: serial", "neuro: mpiimg"]
    assert (tmp_path / "bars.png").stat().st_size > 5000


def test_steps_are_told_apart_by_the_marks_of_a_program_or_by_the_stages_of_mpiimg(tmp_path):
    import contenders

    found = {"started": 100.0, "seconds": 12.0, "cpu_seconds": 9.0, "samples": [(100, 0), (104, 4), (110, 7)]}
    (tmp_path / "steps.json").write_text(json.dumps([("ingest", 102.0), ("fit", 107.0)]))
    assert contenders.steps_of(tmp_path, found) == {"ingest": (2.0, 2.0), "fit": (5.0, 3.5)}
    (tmp_path / "steps.json").unlink()
    stages = [("read-dwi", 1, 2), ("median-1", 2, 1), ("median-2", 3, 1), ("write-fa", 1, 1)]
    record = [{"stage": name, "seconds": took, "cpu_seconds": cpu} for name, took, cpu in stages]
    (tmp_path / "run.json").write_text(json.dumps({"stages": record}))
    steps = contenders.steps_of(tmp_path, found)
    assert steps == {"start-up": (5, 4), "ingest": (1, 2), "mask": (5, 2), "write": (1, 1)}


def test_outcomes_are_told_in_a_few_words():
    import contenders

    assert contenders.outcome({"ended": "memory", "status": -9}, "") == "out of memory"
    assert contenders.outcome({"ended": "itself", "status": 0}, "noise") == "done"
    assert contenders.outcome({"ended": "itself", "status": 1}, "a\nKeyError: 3\n\n") == "failed: KeyError: 3"


def test_laws_are_the_powers_by_which_numbers_grow():
    import scaling

    ranks = [1, 2, 4, 8]
    assert scaling.law(ranks, [5 * n**2 for n in ranks]) == pytest.approx(2)
    assert scaling.law(ranks, [7, 7, 7, 7]) == pytest.approx(0)
    assert scaling.law(ranks, [0, 3, 6, 12]) == pytest.approx(1)
    assert math.isnan(scaling.law(ranks, [0, 0, 0, 5]))


def test_a_cohort_takes_as_many_turns_as_its_groups_leave():
    import scaling

    plans = [{"ranks": n, "seconds": 3600 / n, "peak_a_rank": 10} for n in (1, 64, 8192)]
    one, many = scaling.cohort(plans, 4096)
    assert (one["groups"], one["turns"], one["hours"]) == (4096, 1, 1.0)
    assert (many["groups"], many["turns"], many["hours"]) == (64, 15, 15 / 64)


def test_plans_are_made_from_a_header_alone(tmp_path):
    import scaling

    source = scaling.header_only(tmp_path / "subject", "20x24x18", 12)
    words = (*scaling.subject(source), "--sigma", 40, "--out", tmp_path / "none")
    plan = scaling.predict("mpiimg-neuro", words, 8)
    assert plan["ranks"] == 8 and plan["bytes_moved"] > 0 and plan["peak_a_rank"] > 0


@pytest.mark.long
@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed: make bench-systems")
def test_every_program_gives_the_serial_result(tmp_path):
    """At the smallest size, those that call the same functions to the last bit."""
    script = BENCHMARKS / "side_by_side.py"
    flags = (
        "--size",
        "tiny",
        "--rounds",
        "1",
        "--no-steps",
        "--out",
        tmp_path / "out",
        "--keep",
        tmp_path / "in",
    )
    text = launch.run([PEERS, script, *flags], timeout=900).stdout
    same = [line for part in text.split("## ") if ", same" in part for line in part.splitlines()]
    rows = [[cell.strip() for cell in line.split("|")] for line in same if line.startswith("| ")]
    results = {cells[1]: cells[8] for cells in rows if cells[1] not in ("system", "serial")}
    assert "Dask delayed" in results and "mpiimg, their functions" in results
    assert all(found.startswith(("FA 0", "0 of the noise")) for found in results.values()), text
