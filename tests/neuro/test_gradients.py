"""Gradient tables: FSL's files in both orientations, and one line for each thing that can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from dipy.io.gradients import read_bvals_bvecs

from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import gradients_text, read_gradients

BVALS = [0.0, 5.0, 1000.0, 1000.0, 2000.0, 3000.0]


def directions(count=6, seed=0):
    found = np.random.default_rng(seed).normal(size=(count, 3))
    return found / np.linalg.norm(found, axis=1)[:, None]


def write(folder, bvals, bvecs):
    """Files of text as given, or of numbers."""
    paths = folder / "dwi.bval", folder / "dwi.bvec"
    for path, content in zip(paths, (bvals, bvecs), strict=True):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            rows = np.atleast_2d(np.asarray(content, dtype=float))
            path.write_text("\n".join(" ".join(repr(float(x)) for x in row) for row in rows) + "\n")
    return paths


def read(folder, bvals=BVALS, bvecs=None, volumes=6, **options):
    bvecs = directions() if bvecs is None else bvecs
    return read_gradients(*write(folder, bvals, bvecs), volumes, **options)


@pytest.mark.parametrize("layout", [np.asarray, np.transpose], ids=["rows", "columns"])
def test_both_orientations_are_read_as_dipy_does(tmp_path, layout):
    paths = write(tmp_path, BVALS, layout(directions()))
    table, warnings = read_gradients(*paths, len(BVALS))
    bvals, bvecs = read_bvals_bvecs(*map(str, paths))
    assert warnings == []
    assert table.bvals == tuple(bvals)
    assert np.array(table.bvecs).tolist() == bvecs.tolist()
    assert table.b0 == (0, 1)


def test_three_volumes_are_taken_by_rows_as_fsl_writes_them(tmp_path):
    bvecs = directions(3)
    table, _ = read(tmp_path, [0, 1000, 1000], bvecs.T, volumes=3)
    assert np.array(table.bvecs).tolist() == bvecs.tolist()


@pytest.mark.parametrize(
    "text", [b"0 5 1000 1000 2000 3000", b"0\n5\n1000\n1000\n2000\n3000\n\n", b"0,5, 1000,1000,2e3,3e3\r\n"]
)
def test_b_values_come_in_any_layout(tmp_path, text):
    assert read(tmp_path, text)[0].bvals == tuple(BVALS)


#: Other ways to write the same tables.
NEUTRAL = {
    "comments": lambda text: b"# made by hand\n" + text.replace(b"\n", b"  # a row\n"),
    "tabs": lambda text: text.replace(b" ", b"\t"),
    "spaces": lambda text: text.replace(b" ", b"   ") + b"   ",
    "line ends": lambda text: text.replace(b"\n", b"\r\n"),
    "empty lines": lambda text: b"\n\n" + text.replace(b"\n", b"\n\n"),
    "no last line end": lambda text: text.rstrip(b"\n"),
    "byte-order mark": lambda text: b"\xef\xbb\xbf" + text,
    "commas": lambda text: text.replace(b" ", b", "),
    "signs": lambda text: b" ".join(b"+" + w if w[:1].isdigit() else w for w in text.split(b" ")),
    "exponents": lambda text: text.replace(b"0 ", b"0e0 "),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_no_number_of_a_table_changes_nothing(tmp_path, name):
    paths = write(tmp_path, BVALS, directions().T)
    expected = read_gradients(*paths, len(BVALS))[0]
    for path in paths:
        path.write_bytes(NEUTRAL[name](path.read_bytes()))
    assert read_gradients(*paths, len(BVALS))[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        b"0 5 1000 1000 2000 \xe2\x88\x923000",
        b"0 5 1000 1000 2000 3_000",
        b"0 5 1000 1000 2000 \xd9\xa3000",
        b"0 5 1000 1000 2000 0x10",
        b"0 5 1000 1000 2000 1e7",
        b"0 5 1000 1000 2000 1e400",
        b"0 5 1000 1000 2000 nan",
        b"0 5 1000 1000 2000 inf",
        b"0 5 1000 1000 2000 -1",
        b"0,0 5,0 1000,0 1000,0 2000,0 3000,0",
        b"0 5 1000 1000 2000 3000 7",
        b"0 5 1000\n1000 2000",
        b"0 5 1000 1000 2000 \x1b[2J",
        b"0 5 1000 1000 2000 \x00",
        b"\xff\xfe0\x005\x00",
        b"",
        b"# nothing\n",
        b"0 " * (9 << 20),
    ],
    ids=lambda text: repr(text[-12:]),
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(BadInput) as refusal:
        read(tmp_path, text)
    (line,) = str(refusal.value).splitlines()
    assert "dwi.bval" in line and "\x1b" not in line


def test_unweighted_volumes_need_no_direction(tmp_path):
    """As in dipy: at or below the threshold, a bvec that is no unit vector makes volume and bvec zero."""
    bvecs = directions()
    bvecs[0], bvecs[1] = 0.0, np.nan
    table, warnings = read(tmp_path, BVALS, bvecs)
    assert warnings == []
    assert table.bvals[:2] == (0.0, 0.0)
    assert table.bvecs[:2] == ((0.0, 0.0, 0.0),) * 2
    assert table.bvals[2:] == tuple(BVALS[2:])


def test_the_threshold_decides_what_is_unweighted(tmp_path):
    assert read(tmp_path, b0_threshold=0)[0].b0 == (0,)
    assert read(tmp_path, b0_threshold=1000)[0].b0 == (0, 1, 2, 3)


def test_shells_are_chosen_by_their_highest_b(tmp_path):
    table, _ = read(tmp_path)
    assert table.up_to(None) == tuple(range(6))
    assert table.up_to(1000) == (0, 1, 2, 3)
    assert table.up_to(1) == (0,)


def test_unit_length_has_a_tolerance_of_a_hundredth(tmp_path):
    for factor, fits in ((1.009, True), (0.991, True), (1.011, False), (0.989, False)):
        bvecs = directions()
        bvecs[3] *= factor
        if fits:
            assert np.array(read(tmp_path, BVALS, bvecs)[0].bvecs).tolist() == bvecs.tolist()
        else:
            with pytest.raises(BadInput, match=r"bvec of volume 3 \(b = 1000\) has length"):
                read(tmp_path, BVALS, bvecs)


def test_normalising_rescales_with_a_warning(tmp_path):
    bvecs = directions()
    bvecs[2] *= 0.5
    bvecs[4] *= 3.0
    table, warnings = read(tmp_path, BVALS, bvecs, normalise=True)
    np.testing.assert_allclose(table.bvecs, directions(), rtol=1e-15)
    assert warnings == [f"{tmp_path}/dwi.bvec: 2 bvecs were rescaled to unit length"]


def altered(row, value):
    bvecs = directions()
    bvecs[row] = value
    return bvecs


@pytest.mark.parametrize(
    ("bvals", "bvecs", "options", "said"),
    [
        (None, None, {}, "dwi.bval: cannot read b-values: No such file"),
        (b"\xff\xfe\x00", None, {}, "dwi.bval: cannot read b-values:"),
        (b"0 5 1000 b 2000 3000", None, {}, "dwi.bval: b-values must be plain numbers:"),
        (b"", None, {}, "dwi.bval: b-values must be rows of equally many numbers"),
        (b"0 5\n1000 1000 2000\n3000", None, {}, "dwi.bval: b-values must be rows of equally many numbers"),
        (BVALS[:5], None, {}, "dwi.bval: 5 b-values for an image of 6 volumes; give the file that"),
        (
            BVALS,
            directions(5),
            {},
            "dwi.bvec: 5 rows of 3 numbers; an image of 6 volumes needs 3 rows of 6 or",
        ),
        (BVALS, directions(5).T, {}, "dwi.bvec: 3 rows of 5 numbers; an image of 6 volumes needs"),
        (BVALS, b"1 0 0\n0 1\n", {}, "dwi.bvec: gradient directions must be rows of equally many"),
        (BVALS, b"x", {}, "dwi.bvec: gradient directions must be plain numbers:"),
        ([0, -5, *BVALS[2:]], None, {}, "dwi.bval: b-values must be finite and not negative"),
        ([0, np.nan, *BVALS[2:]], None, {}, "dwi.bval: b-values must be finite and not negative"),
        ([0, np.inf, *BVALS[2:]], None, {}, "dwi.bval: b-values must be finite and not negative"),
        (
            [60, 70, *BVALS[2:]],
            None,
            {},
            "dwi.bval: no volume with b <= 50 s/mm^2 (lowest is 60); a b0 is needed, raise --b0-threshold",
        ),
        (
            BVALS,
            altered(4, [0, 0, 2]),
            {},
            "dwi.bvec: the bvec of volume 4 (b = 2000) has length 2, not 1; --normalise-bvecs rescales it",
        ),
        (BVALS, altered(4, 0), {}, "has length 0, not 1; give its direction or leave the volume out"),
        (BVALS, altered(4, 0), {"normalise": True}, "has length 0, not 1; give its direction or leave"),
        (BVALS, altered(4, np.nan), {"normalise": True}, "has length 0, not 1; give its direction or leave"),
        (BVALS, altered(4, np.inf), {"normalise": True}, "has length 0, not 1; give its direction or leave"),
        (BVALS, altered(4, 1e300), {"normalise": True}, "has length 0, not 1; give its direction or leave"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, bvals, bvecs, options, said):
    with pytest.raises(BadInput) as caught:
        read(tmp_path, bvals, bvecs, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_directions_file(tmp_path):
    paths = write(tmp_path, BVALS, None)
    with pytest.raises(BadInput, match=r"dwi\.bvec: cannot read gradient directions: No such file"):
        read_gradients(*paths, 6)


def test_tables_are_written_as_fsl_reads_them(tmp_path):
    for path, text in zip(
        (tmp_path / "a.bval", tmp_path / "a.bvec"), gradients_text(np.array(BVALS), directions()), strict=True
    ):
        path.write_bytes(text)
    bvals, bvecs = read_bvals_bvecs(str(tmp_path / "a.bval"), str(tmp_path / "a.bvec"))
    assert bvals.tolist() == BVALS
    np.testing.assert_allclose(bvecs, directions(), atol=1e-8)
    assert len((tmp_path / "a.bvec").read_text().splitlines()) == 3
