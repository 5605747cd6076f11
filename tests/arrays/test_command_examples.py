"""The examples that run programs of others, on two ranks; loud where the programs are not installed."""

import ast
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from support import launch

EXAMPLES = launch.REPOSITORY / "docs" / "examples"


def run(name, folder, *words):
    launch.run([*launch.mpiexec(2), sys.executable, EXAMPLES / name, *words], cwd=folder, timeout=180)


@pytest.mark.parametrize("name", ["command_dwidenoise.py", "command_sextractor.py"])
def test_examples_are_short_and_in_public_names(name):
    tree = ast.parse((EXAMPLES / name).read_text())
    lines = {node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")}
    assert len(lines) <= 20
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "mpiimg" in node.module]
    assert ours == []


@pytest.mark.long
@pytest.mark.skipif(shutil.which("dwidenoise") is None, reason="NOT RUN: MRtrix3 is not installed")
def test_dwidenoise_gives_what_it_gives_alone(tmp_path):
    series = np.random.default_rng(1).normal(100, 5, (12, 12, 10, 20)).astype("f4")
    nibabel.Nifti1Image(series, np.diag([-2.0, 2, 2, 1])).to_filename(tmp_path / "dwi.nii.gz")
    run("command_dwidenoise.py", tmp_path, "dwi.nii.gz", "out")
    command = ["dwidenoise", "dwi.nii.gz", "alone.nii.gz", "-extent", "5", "-quiet"]
    subprocess.run(command, cwd=tmp_path, check=True)
    alone, clean = (nibabel.load(tmp_path / name) for name in ("alone.nii.gz", "out/clean.nii.gz"))
    assert np.array_equal(clean.get_fdata(), alone.get_fdata())
    assert np.array_equal(clean.affine, alone.affine)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("source-extractor") is None, reason="NOT RUN: no source-extractor here")
def test_source_extractor_makes_a_catalogue_of_a_night(tmp_path):
    y, x = np.mgrid[:64, :64]
    (tmp_path / "night").mkdir()
    for number in range(3):
        image = np.random.default_rng(number).normal(10, 1, (64, 64))
        image += 400 * np.exp(-((y - 30) ** 2 + (x - 20 - number) ** 2) / 6)
        fits.PrimaryHDU(image.astype("f4")).writeto(tmp_path / "night" / f"{number}.fits")
    run("command_sextractor.py", tmp_path, "night/*.fits", "out")
    bright = Table.read(tmp_path / "out" / "bright.fits")
    assert np.rint(bright["X_IMAGE"]).tolist() == [21, 22, 23]
    assert str(bright["FLUX_AUTO"].unit) == "ct"
    assert len(Table.read(tmp_path / "out" / "sources.parquet")) >= 3
