"""The pipelines that campaigns kill: small enough for hundreds of lives, and of every kind of stage."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from support import astro_data, launch, warm
from support.killing import Pipeline
from support.subjects import EVERYTHING, PATIENCE, Subject

from mpiimg.simulate.astro import SimulatedSurvey

EXAMPLES = launch.REPOSITORY / "docs" / "examples"

#: What a run says of itself: times are in it.
RECORDS = ("run*.json", "events*", "logs")

#: Steps of ours and functions of a user over an image.
OVER_AN_IMAGE = """
[[stage]]
tool = "mask"
median_radius = 2

[[stage]]
udf = "{examples}/gaussian.py:gaussian"
params = {{ sigma = 0.8 }}
slices = 3

[[stage]]
udf = "{examples}/histogram.py:Histogram"
params = {{ bins = 16 }}

[[stage]]
tool = "fit"
"""


def results(out: Path) -> dict[str, str]:
    """Return a checksum of every result of a finished run, by its path; no work may be left."""
    assert not list(out.rglob("work")), "work is left"
    files = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    return {
        str(path): hashlib.sha256((out / path).read_bytes()).hexdigest()
        for path in files
        if not any(fnmatch(path.parts[0], pattern) for pattern in RECORDS)
    }


def simulated_head(folder: Path) -> Subject:
    """Return a head of 14 x 16 x 12 voxels and 8 volumes."""
    size = ("--shape", "14x16x12", "--volumes", 8, "--sigma", 40, "--seed", 7)
    warm.run_tool("mpiimg-simulate", "neuro", *size, "--out", folder, timeout=PATIENCE)
    return Subject(folder / "dwi.nii.gz", folder / "dwi.bval", folder / "dwi.bvec")


def head(folder: Path) -> Pipeline:
    """mpiimg-neuro on a head, with all files that it can write."""
    subject = simulated_head(folder / "head")
    return Pipeline(
        "neuro", lambda out: ["mpiimg-neuro", *subject.arguments, "--out", out, *EVERYTHING], results
    )


def survey(folder: Path) -> Pipeline:
    """mpiimg-astro on three small exposures, of which some stars are seen by several patches."""
    night = _night(folder)
    tract = ("--patch", 160, "--border", 30)
    return Pipeline("astro", lambda out: ["mpiimg-astro", *night.exposures, "--out", out, *tract], results)


def functions(folder: Path) -> Pipeline:
    """A user's own pipeline over an image: our steps, and functions of docs/examples."""
    subject = simulated_head(folder / "head")
    toml = folder / "pipeline.toml"
    toml.write_text(OVER_AN_IMAGE.format(examples=EXAMPLES))
    words = [toml, subject.dwi, "--bvals", subject.bvals, "--bvecs", subject.bvecs]
    return Pipeline("functions", lambda out: ["mpiimg-run", *words, "--out", out], results)


def sky(folder: Path) -> Pipeline:
    """A user's own pipeline over a survey: docs/examples/sky.toml."""
    night = _night(folder)
    return Pipeline(
        "sky", lambda out: ["mpiimg-run", EXAMPLES / "sky.toml", *night.exposures, "--out", out], results
    )


def cohort(folder: Path) -> Pipeline:
    """A dataset of three scans, by groups of ranks; whoever died with a scan, it is taken again."""
    subject, raw = simulated_head(folder / "head"), folder / "raw"
    for label in ("01", "02", "03"):
        (raw / f"sub-{label}" / "dwi").mkdir(parents=True)
        shutil.copy(subject.dwi, raw / f"sub-{label}" / "dwi" / f"sub-{label}_dwi.nii.gz")
    for path in (subject.bvals, subject.bvecs):
        shutil.copy(path, raw)
    (raw / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.9.0"}')
    options = ("--median-radius", 2, "--sigma", 40, "--group-size", 1, "--retry-suspects")
    return Pipeline("cohort", lambda out: ["mpiimg-neuro", raw, out, "participant", *options], results)


PIPELINES: dict[str, Callable[[Path], Pipeline]] = {
    make.__name__: make for make in (head, survey, functions, sky, cohort)
}


def _night(folder: Path) -> astro_data.Night:
    return astro_data.observe(folder / "night", SimulatedSurvey(3, 1, (260, 300), seed=5, density=50.0))
