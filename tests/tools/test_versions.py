"""numba, numpy and h5py, the oldest and newest that are supported: tools come to the same with them."""

from __future__ import annotations

import re
import sys
import tomllib

import nibabel
import numpy as np
import pytest
from astropy.table import Table
from support import launch, warm

pytestmark = [pytest.mark.tool, pytest.mark.long]

PROJECT = tomllib.loads((launch.REPOSITORY / "pyproject.toml").read_text())["project"]

#: The three that results hang on most, by the least version that the project asks for.
LEAST = {
    name: least
    for name, least in (
        re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", word).groups() for word in PROJECT["dependencies"]
    )
    if name in ("numba", "numpy", "h5py")
}

VERSIONS = {"oldest": [f"{name}=={least}.*" for name, least in LEAST.items()], "newest": list(LEAST)}

HEAD = ("--shape", "24x28x20", "--volumes", "8")
NIGHT = ("--visits", "2", "--sensors", "1", "--shape", "300x320")
SKY = ("--patch", "300", "--border", "40")


@pytest.fixture(scope="module")
def pinned(tmp_path_factory):
    """A head and a night, and what the pinned versions make of them."""
    folder = tmp_path_factory.mktemp("pinned")
    warm.run_tool("mpiimg-simulate", "neuro", *HEAD, "--out", folder / "head")
    warm.run_tool("mpiimg-simulate", "astro", *NIGHT, "--out", folder / "night")
    warm.run_tool("mpiimg-neuro", folder / "head/dwi.nii.gz", "--out", folder / "maps", timeout=120)
    exposures = sorted((folder / "night").glob("sim-*.fits"))
    warm.run_tool("mpiimg-astro", *exposures, *SKY, "--out", folder / "sky", timeout=120)
    return folder


@pytest.mark.parametrize("which", VERSIONS)
def test_tools_come_to_the_same_with_other_versions(which, pinned, tmp_path):
    venv = tmp_path / "venv"
    launch.run([sys.executable, "-m", "venv", venv], timeout=120)
    install = [venv / "bin/pip", "install", "-q", "--only-binary", ":all:", "--no-build-isolation"]
    launch.run([venv / "bin/pip", "install", "-q", "-U", "setuptools>=77", "wheel"], timeout=300)
    launch.run([*install, launch.REPOSITORY, "mpich", *VERSIONS[which]], timeout=600)
    exposures = sorted((pinned / "night").glob("sim-*.fits"))
    for tool, *words in (
        ("neuro", pinned / "head/dwi.nii.gz", "--out", tmp_path / "maps"),
        ("astro", *exposures, *SKY, "--out", tmp_path / "sky"),
    ):
        env = launch.environment(PYTHONPATH="", NUMBA_CACHE_DIR=str(tmp_path / "kernels"))
        (tmp_path / "kernels").mkdir(mode=0o700, exist_ok=True)
        launch.run([venv / f"bin/mpiimg-{tool}", *words], cwd=tmp_path, env=env, timeout=900)
    name = "dwi_model-tensor_param-fa_dwimap.nii.gz"
    fa, expected = (nibabel.load(folder / "maps" / name).get_fdata() for folder in (tmp_path, pinned))
    assert expected.max() > 0.5
    np.testing.assert_allclose(fa, expected, atol=1e-4)
    found, sources = (Table.read(folder / "sky/catalogue.fits") for folder in (tmp_path, pinned))
    assert len(found) == len(sources) > 10
    np.testing.assert_allclose(found["ra"], sources["ra"], atol=1e-8)
    np.testing.assert_allclose(found["mag_auto"], sources["mag_auto"], atol=1e-4)
