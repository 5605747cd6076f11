"""Gradient tables: as people write them, what they mean, and one line for each thing that can be wrong."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dipy.io.gradients import read_bvals_bvecs

from mpiimg.errors import BadInput
from mpiimg.neuro.bids import find_scans
from mpiimg.neuro.gradients import gradients_text
from mpiimg.neuro.nifti import open_image
from mpiimg.neuro.tables.files import TableFiles, find_tables, read_raw
from mpiimg.neuro.tables.options import GradientParameters
from mpiimg.neuro.tables.shells import of_shells, shells_of, told
from mpiimg.neuro.tables.understand import understand

BVALS = [0.0, 5.0, 1000.0, 1000.0, 2000.0, 3000.0]
AFFINE = np.diag([-2.0, 2, 2, 1])


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


def understood(tables, volumes, affine=AFFINE, **options):
    return understand(read_raw(tables, volumes, affine), GradientParameters(**options))


def read(folder, bvals=BVALS, bvecs=None, volumes=6, **options):
    """What a pair of tables means."""
    bvecs = directions() if bvecs is None else bvecs
    return understood(TableFiles(*write(folder, bvals, bvecs)), volumes, **options)


def read_files(bvals, bvecs, volumes=6):
    """The weighting that a pair of files says."""
    return understood(TableFiles(bvals, bvecs), volumes).gradients


@pytest.mark.parametrize("layout", [np.asarray, np.transpose], ids=["rows", "columns"])
def test_both_orientations_are_read_as_dipy_does(tmp_path, layout):
    paths = write(tmp_path, BVALS, layout(directions()))
    table = read_files(*paths)
    bvals, bvecs = read_bvals_bvecs(*map(str, paths))
    assert table.bvals == tuple(bvals)
    assert np.array(table.bvecs).tolist() == bvecs.tolist()
    assert table.b0 == (0, 1)


def test_three_volumes_are_taken_by_rows_as_fsl_writes_them(tmp_path):
    bvecs = directions(3)
    table = read(tmp_path, [0, 1000, 1000], bvecs.T, volumes=3).gradients
    assert np.array(table.bvecs).tolist() == bvecs.tolist()


@pytest.mark.parametrize(
    "text",
    [
        b"0 5 1000 1000 2000 3000",
        b"0\n5\n1000\n1000\n2000\n3000\n\n",
        b"0,5, 1000,1000,2e3,3e3\r\n",
        b"0 5 1000\n1000 2000 3000\n",
        b"0 5\n1000 1000 2000\n3000",
        b"0;5;1000;1000;2000;3000",
        b"0 5 1.0D+03 1d3 2.D3 3e+003",
        b"[0. 5. 1000. 1000.\n 2000. 3000.]",
        b"0,0 5,0 1000,0 1000,0 2000,0 3000,0",
        b"0,0;5,0;1000,0;1000,0;2e3;3,0e3",
        b"% made by MATLAB\n0 5 1000 1000 2000 3000 // the end",
        "# Männer\n0 5 1000 1000 2000 3000".encode("latin-1"),
    ],
)
def test_b_values_come_in_any_layout(tmp_path, text):
    assert read(tmp_path, text).gradients.bvals == tuple(BVALS)


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
    "semicolons": lambda text: text.replace(b" ", b";"),
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "UTF-16 without a mark": lambda text: text.decode().encode("utf-16-be"),
    "UTF-32": lambda text: text.decode().encode("utf-32"),
    "Latin-1": lambda text: "# für\n".encode("latin-1") + text,
    "MATLAB's comments": lambda text: b"% made by hand\n" + text,
    "brackets": lambda text: b"[[" + text.strip().replace(b"\n", b"]\n [") + b"]]",
    "wrapped lines": lambda text: b"\n".join(map(wrapped, text.splitlines())),
    "true minus signs": lambda text: text.decode().replace("-", "\u2212").encode(),
    "no-break spaces": lambda text: text.decode().replace(" ", "\u00a0").encode(),
    "decimal commas": lambda text: text.replace(b".", b","),
}


def wrapped(line):
    """A row broken after four numbers."""
    words = line.split()
    return b" ".join(words[:4]) + b"\n " + b" ".join(words[4:])


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_no_number_of_a_table_changes_nothing(tmp_path, name):
    paths = write(tmp_path, BVALS, directions().T)
    expected = read_files(*paths)
    for path in paths:
        path.write_bytes(NEUTRAL[name](path.read_bytes()))
    assert read_files(*paths) == expected


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
        b"0 5 1,000 1,000 2,000 3,000",
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
    table = read(tmp_path, BVALS, bvecs).gradients
    assert table.bvals[:2] == (0.0, 0.0)
    assert table.bvecs[:2] == ((0.0, 0.0, 0.0),) * 2
    assert table.bvals[2:] == tuple(BVALS[2:])


def test_the_threshold_decides_what_is_unweighted(tmp_path):
    assert read(tmp_path, b0_threshold=0.0).gradients.b0 == (0,)
    assert read(tmp_path, b0_threshold=1000.0).gradients.b0 == (0, 1, 2, 3)


def test_shells_are_chosen_by_their_highest_b(tmp_path):
    table = read(tmp_path).gradients
    assert table.up_to(None) == tuple(range(6))
    assert table.up_to(1000) == (0, 1, 2, 3)
    assert table.up_to(1) == (0,)


def test_unit_length_has_a_tolerance_of_a_hundredth(tmp_path):
    for factor, fits in ((1.009, True), (0.991, True), (1.011, False), (0.989, False)):
        bvecs = directions()
        bvecs[3] *= factor
        if fits:
            assert np.array(read(tmp_path, BVALS, bvecs).gradients.bvecs).tolist() == bvecs.tolist()
        else:
            with pytest.raises(BadInput, match=r"bvec of volume 3 \(b = 1000\) has length"):
                read(tmp_path, BVALS, bvecs)


def test_normalising_rescales_with_a_warning(tmp_path):
    bvecs = directions()
    bvecs[2] *= 0.5
    bvecs[4] *= 3.0
    table = read(tmp_path, BVALS, bvecs, normalise_bvecs=True)
    np.testing.assert_allclose(table.gradients.bvecs, directions(), rtol=1e-15)
    assert table.warnings == (f"{tmp_path}/dwi.bvec: 2 bvecs were rescaled to unit length",)


def altered(row, value):
    bvecs = directions()
    bvecs[row] = value
    return bvecs


@pytest.mark.parametrize(
    ("bvals", "bvecs", "options", "said"),
    [
        (None, None, {}, "dwi.bval: cannot read b-values: No such file"),
        (b"\xff\xfe\x00", None, {}, "dwi.bval: b-values must be plain numbers:"),
        (
            b"0 5 1,000 1,000 2,000 3,000",
            None,
            {},
            "dwi.bval: b-values have commas that may part decimals or",
        ),
        (b"0 5 1000 b 2000 3000", None, {}, "dwi.bval: b-values must be plain numbers:"),
        (b"", None, {}, "dwi.bval: holds no b-values; name another file"),
        (
            directions(),
            None,
            {},
            "dwi.bval: 18 b-values for an image of 6 volumes; these look like directions",
        ),
        (np.ones((6, 4)), None, {}, "for an image of 6 volumes; a table of MRtrix3 is given by --grad"),
        (BVALS, np.ones((6, 4)), {}, "6 rows of 3; a table of MRtrix3 is given by --grad"),
        (BVALS[:5], None, {}, "dwi.bval: 5 b-values for an image of 6 volumes; give the file that"),
        (
            BVALS,
            directions(5),
            {},
            "dwi.bvec: 5 rows of 3 numbers; an image of 6 volumes needs 3 rows of 6 or",
        ),
        (BVALS, directions(5).T, {}, "dwi.bvec: 3 rows of 5 numbers; an image of 6 volumes needs"),
        (BVALS, b"1 0 0\n0 1\n", {}, "dwi.bvec: 5 numbers in 2 rows that are not equally long; an image of"),
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
        (BVALS, altered([2, 3, 4, 5], 0), {}, "none of the 4 volumes above --b0-threshold 50 s/mm^2 has a"),
        (BVALS, altered(4, np.nan), {}, "volume 4 (b = 2000) has no length; --drop-volumes 4 leaves it out"),
        (BVALS, altered(4, np.inf), {"normalise_bvecs": True}, "has no length; --drop-volumes 4 leaves"),
        (BVALS, altered(4, 1e300), {"b_scaling": True}, "has no length; --drop-volumes 4 leaves"),
        (BVALS, None, {"drop_volumes": "6"}, "--drop-volumes 6: there is no volume 6; the image has 6"),
        (BVALS, None, {"drop_volumes": "0-5"}, "--drop-volumes 0-5: leaves no volume"),
        (BVALS, None, {"drop_volumes": "0-1"}, "dwi.bval: no volume with b <= 50 s/mm^2 (lowest is 1000)"),
        (
            BVALS,
            None,
            {"shells": "0,700"},
            "dwi.bval: --shells 0,700: no volume of b = 700; the table has 2 volumes",
        ),
        (BVALS, None, {"shells": "1000"}, "--shells 1000: leaves no b0, which is needed; add 0 to the list"),
        (BVALS, None, {"b_unit": "ms/um2"}, "dwi.bval: b-values must be at most 1000000 s/mm^2, and the"),
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
        read_files(*paths)


def test_tables_are_written_as_fsl_reads_them(tmp_path):
    for path, text in zip(
        (tmp_path / "a.bval", tmp_path / "a.bvec"), gradients_text(np.array(BVALS), directions()), strict=True
    ):
        path.write_bytes(text)
    bvals, bvecs = read_bvals_bvecs(str(tmp_path / "a.bval"), str(tmp_path / "a.bvec"))
    assert bvals.tolist() == BVALS
    np.testing.assert_allclose(bvecs, directions(), atol=1e-8)
    assert len((tmp_path / "a.bvec").read_text().splitlines()) == 3


# --- What a table means -----------------------------------------------------------------------------------


def test_shells_are_groups_of_volumes_with_their_spread():
    bvals = [5, 2010, 995, 0, 1005, 1990, 1000]
    shells = shells_of(bvals, 50)
    assert [shell.volumes for shell in shells] == [(0, 3), (2, 4, 6), (1, 5)]
    assert told(shells) == (
        "2 volumes of b = 2 (0 to 5), 3 of b = 1000 (995 to 1005), 2 of b = 2000 (1990 to 2010) s/mm^2"
    )
    assert told(shells_of([0, *range(160, 4000, 160)], 50)).startswith("25 volumes of ")
    assert of_shells(bvals, 50, [0, 1000]) == (0, 2, 3, 4, 6)
    assert of_shells(bvals, 50, [2000, 700]) == 700


@pytest.mark.parametrize("unit", ["s/m2", None])
def test_b_values_in_si_units_are_divided(tmp_path, unit):
    options = {} if unit is None else {"b_unit": unit}
    table = read(tmp_path, np.array(BVALS) * 1e6, **options)
    assert table.gradients.bvals == tuple(BVALS)
    assert len(table.warnings) == (unit is None)
    assert not table.is_as_given


def many(count=30, seed=3):
    return directions(count, seed), np.full(count, 3000.0)


def asked(tmp_path, bvecs, bvals):
    """Whether lengths that are not 1 are taken for b-values, so that the image is to be asked."""
    try:
        return read(tmp_path, bvals, bvecs, len(bvals)).question.normalised is not None
    except BadInput as error:
        assert "--normalise-bvecs rescales it" in str(error)
        return False


def test_lengths_encode_b_values_where_these_make_shells_or_a_lattice(tmp_path):
    bvecs, bvals = many()
    bvecs[0] = 0
    bvals[0] = 0
    shells = np.resize([1000, 2000, 3000], 30) / 3000
    rng = np.random.default_rng(0)
    for encodes, lengths in {
        "shells": (True, np.sqrt(shells)),
        "one shell": (True, np.full(30, np.sqrt(1 / 3))),
        "a lattice": (True, np.sqrt(rng.integers(1, 26, 30) / 25)),
        "rounding": (False, rng.normal(1, 0.012, 30)),
        "anything": (False, rng.uniform(0.4, 1, 30)),
        "one that is nothing": (False, np.where(np.arange(30) % 15 == 7, 0.1, 1 + 1e-6 * np.arange(30))),
        "a few": (False, np.where(np.arange(30) == 7, 0.5, 1)),
    }.values():
        assert asked(tmp_path, bvecs * lengths[:, None], bvals) == encodes
    several = np.where(np.arange(30) % 2, bvals, bvals / 3)
    assert not asked(tmp_path, bvecs * np.sqrt(shells)[:, None], several)


def test_the_two_cures_of_lengths_exclude_each_other():
    with pytest.raises(BadInput, match="--b-scaling takes the lengths of bvecs for b-values, and"):
        GradientParameters(b_scaling=True, normalise_bvecs=True)


@pytest.mark.parametrize("text", ["", "1,", "3-1", "a", "-1", "1.5", "1-99999999"])
def test_lists_of_volumes_are_lists(text):
    with pytest.raises(BadInput, match="--drop-volumes"):
        GradientParameters(drop_volumes=text)
    assert GradientParameters(drop_volumes="0,3, 10-12").dropped == (0, 3, 10, 11, 12)


# --- Tables of MRtrix3, and where tables lie ---------------------------------------------------------------

OBLIQUE = np.array(
    [[-1.9, 0.3, 0.2, 5], [0.35, 1.8, 0.6, -3], [-0.15, -0.7, 2.2, 1], [0, 0, 0, 1]],
)


def image_in(folder, affine, volumes=6, name="dwi.nii.gz"):
    """Write an image whose voxels nobody reads."""
    path = folder / name
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, volumes), np.uint8), affine), path)
    return path


@pytest.mark.needs_mrtrix
@pytest.mark.parametrize("x", [-1, 1], ids=["radiological", "neurological"])
def test_a_table_in_scanner_axes_is_turned_as_mrtrix_does(tmp_path, x):
    """The same FSL tables as mrinfo exports of the same image and table, and what it makes of FSL's."""
    rotation = np.linalg.svd(OBLIQUE[:3, :3])
    affine = OBLIQUE.copy()
    affine[:3, :3] = rotation[0] @ rotation[2] @ np.diag([2.0 * x, 2, 3])
    image = image_in(tmp_path, affine)
    grad = tmp_path / "dwi.b"
    np.savetxt(grad, np.column_stack([directions(), BVALS]), fmt="%.9f", header="command_history: by hand")
    exported = tmp_path / "bvecs", tmp_path / "bvals"
    subprocess.run(["mrinfo", image, "-grad", grad, "-export_grad_fsl", *exported, "-quiet"], check=True)
    ours = understood(TableFiles(grad=grad), 6, open_image(image, 4).affine).gradients
    np.testing.assert_allclose(ours.bvals[2:], np.loadtxt(exported[1])[2:], rtol=1e-5)
    np.testing.assert_allclose(ours.bvecs[2:], np.loadtxt(exported[0]).T[2:], atol=1e-6)
    transposed = tmp_path / "across.b"
    np.savetxt(transposed, np.loadtxt(grad).T)
    assert understood(TableFiles(grad=transposed), 6, open_image(image, 4).affine).gradients == ours


def test_tables_are_found_under_the_names_that_people_give_them(tmp_path):
    image = open_image(image_in(tmp_path, AFFINE), 4)
    assert find_tables(image, {}) is None
    with pytest.raises(BadInput, match=r"dwi\.bval is not beside it; give --bvals, or --grad"):
        find_tables(image, {}, needed=True)
    likely = [("bval", "bvec"), ("bvals.txt", "bvecs.txt"), ("bvals", "bvecs")]
    likely += [("dwi.bvals", "dwi.bvecs"), ("dwi.bval", "dwi.bvec")]
    (tmp_path / "dwi.b").write_text("")
    assert find_tables(image, {}).files == {"grad": tmp_path / "dwi.b"}
    for pair in likely:
        paths = [tmp_path / name for name in pair]
        for path in paths:
            path.write_text("")
        assert find_tables(image, {}).files == dict(zip(("bvals", "bvecs"), paths, strict=True))
    other = tmp_path / "other.txt"
    assert find_tables(image, {"bvecs": other}).files == {"bvals": tmp_path / "dwi.bval", "bvecs": other}
    with pytest.raises(BadInput, match="are two tables of gradients; give one"):
        find_tables(image, {"grad": other, "bvals": other})


@pytest.mark.parametrize("relative", [False, True])
def test_tables_of_an_image_in_a_dataset_are_inherited_as_a_cohort_inherits_them(
    tmp_path, monkeypatch, relative
):
    """The nearest folder counts, and there the name with most parts; each of the pair for itself."""
    (tmp_path / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    folder = tmp_path / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    path = image_in(folder, AFFINE, name="sub-01_acq-a_dwi.nii.gz")
    for name in ("dwi.bval", "dwi.bvec", "acq-a_dwi.bval", "sub-01/acq-b_dwi.bvec"):
        (tmp_path / name).write_text("")
    if relative:
        monkeypatch.chdir(folder)
        path = Path(path.name)
    (scan,) = find_scans(tmp_path).scans
    assert (scan.bval, scan.bvec) == (tmp_path / "acq-a_dwi.bval", tmp_path / "dwi.bvec")
    assert find_tables(open_image(path, 4), {}).files == {"bvals": scan.bval, "bvecs": scan.bvec}
    (folder / "sub-01_dwi.bvec").write_text("")
    (scan,) = find_scans(tmp_path).scans
    found = find_tables(open_image(path, 4), {}).files
    assert {name: one.resolve() for name, one in found.items()} == {"bvals": scan.bval, "bvecs": scan.bvec}
    # What is named counts for one of the pair, and the other one is still found.
    other = tmp_path / "other.txt"
    assert find_tables(open_image(path, 4), {"bvecs": other}).files == {"bvals": scan.bval, "bvecs": other}
    (folder / "acq-a_dwi.bvec").write_text("")
    with pytest.raises(BadInput, match=r"_dwi\.bvec applies to sub-01_acq-a_dwi\.nii\.gz as well"):
        find_tables(open_image(path, 4), {})


def test_nothing_is_inherited_outside_of_a_dataset(tmp_path):
    folder = tmp_path / "sub-01" / "dwi"
    folder.mkdir(parents=True)
    for ending in ("bval", "bvec"):
        (tmp_path / f"dwi.{ending}").write_text("")
    image = open_image(image_in(folder, AFFINE, name="sub-01_dwi.nii.gz"), 4)
    assert find_tables(image, {}) is None
