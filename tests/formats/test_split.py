"""What a name means: a file, and what in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpiimg.formats.interface import split


@pytest.mark.parametrize(
    ("name", "file", "inside"),
    [
        ("x.h5:/a/b", "x.h5", "/a/b"),
        ("x.fits[SCI,2]", "x.fits", "SCI,2"),
        ("below/x.zarr/a/b", "below/x.zarr", "/a/b"),
        ("x.zarr:/a", "x.zarr", "/a"),
        ("x.ome.zarr:1", "x.ome.zarr", "1"),
        ("x.tif:1/2", "x.tif", "1/2"),
        ("x.ZARR/a", "x.ZARR", "/a"),
        ("x.zarr", "x.zarr", ""),
        ("one.zarr/two.zarr/a", "one.zarr", "/two.zarr/a"),
        ("host:x.tif", "host:x.tif", ""),
        ("x.tif:red", "x.tif:red", ""),
    ],
)
def test_names_of_files_that_are_not_there(name, file, inside):
    assert split(name) == (Path(file), inside)


def test_what_is_really_called_so_is_a_file(tmp_path):
    (tmp_path / "night.zarr").mkdir()
    for name in ("x.tif:1", "x.fits[1]", "night.zarr/x.nii"):
        (tmp_path / name).touch()
        assert split(tmp_path / name) == (tmp_path / name, "")
    (tmp_path / "night.zarr" / "a").mkdir()
    assert split(tmp_path / "night.zarr" / "a") == (tmp_path / "night.zarr", "/a")
