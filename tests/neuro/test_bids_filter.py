"""Filter files as fMRIPrep and QSIPrep are given them."""

from __future__ import annotations

import json

import pytest

from mpiimg.errors import BadInput
from mpiimg.neuro.bids_filter import read_filter

IMAGES = [
    {"sub": "01", "ses": "a", "run": "1"},
    {"sub": "01", "ses": "a", "run": "02", "acq": "x"},
    {"sub": "02", "ses": "b", "dir": "AP"},
    {"sub": "03"},
]


@pytest.fixture
def write(tmp_path):
    def make(content):
        path = tmp_path / "filter.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return make


@pytest.mark.parametrize(
    ("query", "selected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"session": "a"}, [0, 1]),
        ({"session": ["a", "ses-b"]}, [0, 1, 2]),
        ({"session": None}, [3]),
        ({"session": "Query.NONE"}, [3]),
        ({"session": "*"}, [0, 1, 2]),
        ({"session": "Query.ANY"}, [0, 1, 2]),
        ({"session": ["a", None]}, [0, 1, 3]),
        ({"run": 2}, [1]),
        ({"run": "01"}, [0]),
        ({"session": "a", "acquisition": "x"}, [1]),
        ({"direction": "AP", "session": "a"}, []),
        ({"subject": ["02", "03"], "datatype": "dwi", "suffix": "dwi", "extension": [".nii.gz"]}, [2, 3]),
    ],
)
def test_which_images_a_filter_selects(write, query, selected):
    chosen, notes = read_filter(write({"dwi": query}))
    assert [number for number, parts in enumerate(IMAGES) if chosen(parts)] == selected
    assert notes == []


def test_what_is_meant_for_other_programs_is_ignored_with_a_note(write):
    path = write({"t1w": {"suffix": "T1w"}, "bold": {"task": "rest"}, "dwi": {"session": "a"}})
    chosen, notes = read_filter(path)
    assert notes == [f"{path}: {name} selects no diffusion image, and is ignored" for name in ("bold", "t1w")]
    assert chosen(IMAGES[0]) and not chosen(IMAGES[2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ([], "not a JSON object"),
        ({"dwii": {}}, "unknown key 'dwii'; dwi is the one"),
        ({"dwi": ["01"]}, "dwi must be an object"),
        ({"dwi": {"sesion": "01"}}, "unknown key 'sesion' of dwi; there are subject, session"),
        ({"dwi": {"session": {"a": 1}}}, "session must be a label, null or a list of these"),
        ({"dwi": {"run": True}}, "run must be a label"),
        ({"dwi": {"suffix": "bold"}}, "no diffusion image has the suffix bold"),
        ({"dwi": {"regex_search": True}}, "regex_search must be a label"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(write, content, words):
    path = write(content)
    with pytest.raises(BadInput) as caught:
        read_filter(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
