"""What voids marks is said in one line; an input that was swapped is told apart by samples."""

from __future__ import annotations

import os

import pytest

from mpiimg.engine.fingerprint import changes, read_fingerprint
from mpiimg.engine.raw import sample_file

ASKED = {
    "tool": "mpiimg-neuro",
    "mpiimg": "1.0",
    "libraries": {"numpy": "2.0"},
    "CPU": "znver4",
    "parameters": {"median_radius": 4, "sigma": "auto"},
    "inputs": {"dwi": {"bytes": 9}, "mask": {"bytes": 3}},
}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mpiimg": "1.1"}, "mpiimg 1.1 (was 1.0)"),
        ({"CPU": "haswell"}, "CPU haswell (was znver4)"),
        ({"libraries": {"numpy": "2.1"}}, "numpy 2.1 (was 2.0)"),
        ({"parameters": {"median_radius": 2, "sigma": "auto"}}, "--median-radius 2 (was 4)"),
        ({"inputs": {"dwi": {"bytes": 8}, "mask": {"bytes": 3}}}, "input dwi was changed"),
        ({"inputs": {"dwi": {"bytes": 9}}}, "input mask is gone"),
    ],
)
def test_what_changed_is_named(fields, said):
    assert changes(ASKED, {**ASKED, **fields}) == said


def test_a_request_of_which_nothing_is_known_has_changed(tmp_path):
    path = tmp_path / "request"
    assert read_fingerprint(path) is None
    path.write_text('{"tool": "mpi')
    assert read_fingerprint(path) == {}
    assert "tool mpiimg-neuro (was None)" in changes({}, ASKED)


@pytest.mark.parametrize("size", [0, 10, 5000, 1 << 20])
def test_samples_tell_measurements_apart_whose_size_and_time_are_the_same(tmp_path, size):
    paths = [tmp_path / name for name in "abc"]
    for path, fill in zip(paths, (b"x", b"x", b"y"), strict=True):
        path.write_bytes(fill * size)
        os.utime(path, ns=(1, 1))
    first, second, other = map(sample_file, paths)
    assert first == second
    assert (first == other) == (size == 0)
    assert first[:2] == other[:2] == (size, 1)
