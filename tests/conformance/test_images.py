"""Every image that a tool writes, before validators and readers that nobody here wrote."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from support import conformance, launch, warm
from support.subjects import PATIENCE

pytestmark = pytest.mark.conformance

#: A small head keeps its mask with a small filter.
FILTER = ("--median-radius", 1)

#: What the scanner of a real study would have left beside the image.
ACQUISITION = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05, "EchoTime": 0.09}

DESCRIPTION = {
    "Name": "Simulated heads",
    "BIDSVersion": "1.9.0",
    "License": "CC0",
    "Authors": ["One who simulates", "Another"],
}

#: Warnings of the validator about the simulated dataset, and why they stand.
OF_RAW = {
    r"warning JSON_KEY_RECOMMENDED (HEDVersion|GeneratedBy|SourceDatasets) .*": "the tests describe no more",
    r"warning SIDECAR_KEY_RECOMMENDED \w+ .*_dwi.nii.gz": "no scanner, coil or hospital took the image",
}

#: Those about the derivative that mpiimg-neuro makes of it.
OF_DERIVATIVE = {
    r"warning SIDECAR_KEY_RECOMMENDED Description .*_dwi.(bval|bvec)": "gradients have no sidecar in BIDS",
}

#: A user's program of primitives: images of 2, 3 and 4 axes, compressed and not, of several types.
PROGRAM = """
import mpiimg as mi

dwi = mi.read({dwi!r})
mean = dwi.astype("float32").mean("t")
images = {{"mean.nii.gz": mean, "mean.nii": mean, "brain.nii.gz": mean > 100, "slice.nii.gz": mean.isel(z=2)}}
more = {{"doubled.nii.gz": dwi.astype("float64") * 2, "copy.nii.gz": dwi, "copy.nii": dwi}}
mi.write({{**images, **more}}, {out!r})
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a dataset, and in others what every neuro tool, a program and a function make of it."""
    conformance.installed()
    root = tmp_path_factory.mktemp("conformance")

    def run(tool, *words, ranks=None):
        warm.run_tool(tool, *words, ranks=ranks, timeout=PATIENCE)

    size = ("--shape", "18x20x14", "--volumes", 8, "--sigma", 20)
    run("mpiimg-simulate", "neuro", *size, "--out", root / "simulated", ranks=2)
    raw = root / "raw" / "sub-01" / "dwi"
    raw.mkdir(parents=True)
    for ending in ("nii.gz", "bval", "bvec"):
        shutil.copy(root / "simulated" / f"dwi.{ending}", raw / f"sub-01_dwi.{ending}")
    (raw / "sub-01_dwi.json").write_text(json.dumps(ACQUISITION))
    describe(root / "raw", DESCRIPTION)
    (root / "raw" / "README").write_text("Heads that mpiimg-simulate made, for tests. " * 5)
    run("mpiimg-neuro", root / "raw", root / "study", "participant", *FILTER, "--residual", "--fit-residual")
    for folder in (root / "study" / "logs" / "sub-01", root / "study"):
        run("mpiimg-report", folder)  # pages lie among the results

    dwi, steps = raw / "sub-01_dwi.nii.gz", root / "steps"
    mask, denoised = (steps / f"sub-01_desc-{what}.nii.gz" for what in ("brain_mask", "denoised_dwi"))
    gradients = ("--bvals", raw / "sub-01_dwi.bval", "--bvecs", raw / "sub-01_dwi.bvec")
    run("mpiimg-stage", dwi, root / "staged.h5")
    run("mpiimg-mask", dwi, *gradients, *FILTER, "--out", steps)
    run("mpiimg-denoise", root / "staged.h5", "--mask", mask, "--out", steps)
    run("mpiimg-qc", dwi, *gradients, "--mask", mask, "--out", steps)
    run("mpiimg-fit", denoised, *gradients, "--mask", mask, "--out", steps, ranks=3)

    function = launch.REPOSITORY / "docs" / "examples" / "gaussian.py"
    run("mpiimg-run", "--udf", f"{function}:gaussian", dwi, root / "smooth.nii.gz", ranks=2)
    program = root / "program.py"
    program.write_text(PROGRAM.format(dwi=str(dwi), out=str(root / "program")))
    run("mpiimg-run", program, ranks=2)
    return root


@pytest.fixture(scope="module")
def images(made) -> list[Path]:
    found = sorted(path for path in made.rglob("*.nii*"))
    folders = {path.relative_to(made).parts[0] for path in found}
    assert folders == {"simulated", "raw", "study", "steps", "smooth.nii.gz", "program"}
    return found


def describe(dataset: Path, description: dict) -> None:
    dataset.mkdir(exist_ok=True)
    (dataset / "dataset_description.json").write_text(json.dumps(description))


def test_the_bids_validator_accepts_what_is_simulated(made):
    assert conformance.unexplained(issues(made / "raw"), OF_RAW) == []


def test_the_bids_validator_accepts_what_is_made_of_a_study(made):
    assert conformance.unexplained(issues(made / "study"), OF_DERIVATIVE) == []


def test_the_bids_validator_reads_the_header_of_every_image(made, images):
    """Under names that it looks at; and it would say so of one that it cannot read."""
    dataset = made / "renamed"
    describe(dataset, {**DESCRIPTION, "DatasetType": "derivative", "GeneratedBy": [{"Name": "mpiimg"}]})
    (dataset / "sub-01" / "dwi").mkdir(parents=True)
    for number, image in enumerate(images):
        ending = image.name[image.name.index(".nii") :]
        shutil.copy(image, dataset / "sub-01" / "dwi" / f"sub-01_desc-{number}_mask{ending}")
    raw = gzip.decompress((made / "raw" / "sub-01" / "dwi" / "sub-01_dwi.nii.gz").read_bytes())
    spoilt = dataset / "sub-01" / "dwi" / "sub-01_desc-members_mask.nii.gz"
    spoilt.write_bytes(gzip.compress(raw[:352]) + gzip.compress(raw[352:]))
    errors = [issue for issue in conformance.bids_issues(dataset) if issue["severity"] == "error"]
    assert [(issue["code"], Path(issue["location"]).name) for issue in errors] == [
        ("NIFTI_HEADER_UNREADABLE", spoilt.name)
    ]


def issues(dataset: Path) -> list[str]:
    return [
        f"{issue['severity']} {issue['code']} {issue.get('subCode', '')} {issue['location']}"
        for issue in conformance.bids_issues(dataset)
    ]


def test_browsers_read_every_image(images):
    modules = conformance.installed() / "node_modules"
    read = json.loads(conformance.deno(conformance.FOLDER / "read_images.mjs", modules, *images))
    for image in images:
        shape, voxels = held(image)
        assert read[str(image)] == {"shape": list(shape), "voxels": voxels, "stream": voxels}, image


def test_itk_reads_every_image(images):
    read = json.loads(conformance.python(conformance.FOLDER / "read_images.py", *images))
    for image in images:
        shape, voxels = held(image)
        assert read[str(image)] == {"shape": list(shape), "voxels": voxels}, image


def test_mrinfo_reads_every_image(images):
    mrinfo = conformance.program("mrinfo", "mrtrix3")
    lines = conformance.said_by(mrinfo, "-quiet", "-size", *images).splitlines()
    for image, line in zip(images, lines, strict=True):
        assert tuple(map(int, line.split()))[: len(held(image)[0])] == held(image)[0], image


def held(image: Path) -> tuple[tuple[int, ...], str]:
    """Return the shape of an image, and the SHA-256 of its voxels as they lie in the file."""
    data = image.read_bytes()
    data = gzip.decompress(data) if image.suffix == ".gz" else data
    loaded = nibabel.load(image)
    voxels = data[loaded.dataobj.offset :]
    assert len(voxels) == np.prod(loaded.shape) * loaded.get_data_dtype().itemsize
    return loaded.shape, hashlib.sha256(voxels).hexdigest()
