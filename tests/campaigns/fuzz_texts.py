"""TOML pipelines and BIDS datasets, changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
from campaigns.fuzz_images import AFFINE, BVALS, Image, directions, voxels
from campaigns.fuzzing import Case, Kind, mutation
from campaigns.pipelines import results
from hypothesis import strategies as st
from support.subjects import write_subject

USERS = """
import mpiimg

@mpiimg.udf(over="slabs")
def raised(block, *, by=1):
    return block + by
"""

PIPELINE = """\
[[stage]]
tool = "mask"
median_radius = 1

[[stage]]
udf = "users.py:raised"
params = { by = 2 }
slices = 3

[[stage]]
tool = "fit"
b_max = 1500
"""


class Pipeline(Image):
    """mpiimg-run on a pipeline of our steps and a function."""

    tool = "mpiimg-run"

    def __init__(self, folder: Path, sound: Path):
        super().__init__(folder, sound)
        self.toml = self.inputs / "pipeline.toml"

    @classmethod
    def prepare(cls, folder: Path) -> None:
        super().prepare(folder)
        (folder / "in" / "users.py").write_text(USERS)
        (folder / "in" / "pipeline.toml").write_text(PIPELINE)

    def command(self) -> list:
        return [self.toml, self.dwi, "--bvals", self.bvals, "--bvecs", self.bvecs, "--out", self.out]

    def replace(self, old: str, new: str) -> None:
        assert old in self.toml.read_text()
        self.toml.write_text(self.toml.read_text().replace(old, new, 1))

    def check_reading(self) -> None:
        """The values that were read are those that the standard library reads; other files are as without."""


# --- neutral ------------------------------------------------------------------------------------------------


@mutation(Pipeline, Kind.NEUTRAL)
def comments_and_spaces(it, draw):
    words = draw(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), max_size=20))
    more = draw(st.sampled_from(["  # {}", "\t#{}", "\n\n# {}", " "])).format(words)
    lines = it.toml.read_text().splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    lines[place] += more
    it.toml.write_text("\n".join(lines) + "\n")


@mutation(Pipeline, Kind.NEUTRAL)
def line_ends_of_others(it, draw):
    it.toml.write_bytes(it.toml.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


@mutation(Pipeline, Kind.NEUTRAL)
def keys_in_another_order(it, draw):
    tables = it.toml.read_text().split("\n\n")
    turned = []
    for table in tables:
        head, *keys = table.splitlines()
        turned.append("\n".join([head, *draw(st.permutations(keys))]))
    it.toml.write_text("\n\n".join(turned) + "\n")


@mutation(Pipeline, Kind.NEUTRAL)
def written_otherwise(it, draw):
    ways = [
        ('tool = "mask"', "tool = 'mask'"),
        ('tool = "mask"', 'tool = """mask"""'),
        ('tool = "mask"', '"tool" = "mask"'),
        ('tool = "mask"', 'tool = "neuro:mask"'),
        ("median_radius = 1", "median_radius = 0x1"),
        ("median_radius = 1", "median_radius = 1.0"),
        ("median_radius = 1", "median-radius = 1"),
        ("b_max = 1500", "b_max = 1_500"),
        ("b_max = 1500", "b_max = 1.5e3"),
        ("params = { by = 2 }", "params.by = 2"),
        ("[[stage]]", "[[ stage ]]"),
        ("[[stage]]", '[["stage"]]'),
    ]
    it.replace(*draw(st.sampled_from([way for way in ways if way[0] in it.toml.read_text()])))


# --- valid --------------------------------------------------------------------------------------------------


@mutation(Pipeline, Kind.VALID)
def another_parameter(it, draw):
    """What is added to every voxel is the number that stands there."""
    by = draw(st.integers(-500, 500))
    it.replace("by = 2", f"by = {by}")

    def check():
        (made,) = it.out.glob("*_desc-raised_dwi.nii.gz")
        np.testing.assert_array_equal(np.asarray(nibabel.load(made).dataobj), voxels() + by)

    it.check_reading = check


# --- damaging -----------------------------------------------------------------------------------------------


@mutation(Pipeline, Kind.DAMAGING)
def a_key_or_a_value_that_nobody_knows(it, draw):
    line = draw(st.sampled_from([one for one in PIPELINE.splitlines() if "=" in one and "params" not in one]))
    key, value = line.split(" = ")
    odd = ["true", "[]", "{}", '""', '"much"', "1979-05-27", "nan", "[[1]]", "-9" if key != "tool" else "1"]
    if draw(st.booleans()):
        it.replace(line, f"{key}_x = {value}")
    else:
        it.replace(line, f"{key} = {draw(st.sampled_from(odd))}")
    return ("pipeline.toml",)


@mutation(Pipeline, Kind.DAMAGING)
def no_toml(it, draw):
    odd = [b"\xff\xfe", b"\0", b"[[", b"[" * 5000, b'x = "', b"a = 1\na = 2\n", b"= 1", b"x = " + b"[" * 5000]
    odd += [b"x = " + b"9" * 5000, b"\x1b[31m"]
    data, piece = it.toml.read_bytes(), draw(st.sampled_from(odd))
    place = draw(st.sampled_from([0, len(data)]))
    it.toml.write_bytes(data[:place] + b"\n" * (place > 0) + piece + b"\n" + data[place:])
    return ("pipeline.toml",)


@mutation(Pipeline, Kind.DAMAGING)
def stages_that_make_no_sense(it, draw):
    odd = [
        "stage = 3",
        "stage = []",
        "stage = [1]",
        "[stage]\ntool = 'mask'",
        "[[stage]]",
        "[[stage]]\ntool = 'mask'\nudf = 'users.py:raised'",
        "[[stage]]\ntool = 'fit'\n[[stage]]\ntool = 'coadd'",
        "[[stage]]\ntool = 'no:such'",
        "[[stage]]\ntool = '../mask'",
        "[[stage]]\nudf = 'nowhere.py:f'",
        "[[stage]]\nudf = 'users.py:nothing'",
        "[[stage]]\nudf = 'users.py'",
        "[[stage]]\nudf = ''",
        "[[stage]]\nudf = 3",
        "domain = 3\n[[stage]]\ntool = 'mask'",
        "domain = 'nowhere'\n[[stage]]\ntool = 'mask'",
    ]
    it.toml.write_text(draw(st.sampled_from(odd)))


@mutation(Pipeline, Kind.DAMAGING)
def a_declaration_that_makes_no_sense(it, draw):
    odd = [
        "halo = -1",
        "halo = 1.5",
        "halo = 'x'",
        "over = 'all'",
        "over = 3",
        "dtype = 'object'",
        "dtype = 'U5'",
    ]
    odd += [
        "dtype = 3",
        "components = -1",
        "components = 'x'",
        "params = 3",
        "params = { no_such = 1 }",
        "dtype = 'nonsense'",
    ]
    it.replace("params = { by = 2 }", draw(st.sampled_from(odd)))


@mutation(Pipeline, Kind.ANY)
def an_odd_name_of_a_stage(it, draw):
    odd = [
        "../../x",
        f"{it.canary}/x",
        "a/b",
        "",
        ".",
        "\x1b[31m",
        "two\nlines",
        "x" * 300,
        "brain",
        "\u202egnp",
        "%s",
    ]
    name = draw(st.sampled_from([3, True, [], {}]) | st.sampled_from(odd) | st.text(max_size=8))
    it.replace("slices = 3", f"slices = 3\nname = {json.dumps(name)}")


@mutation(Pipeline, Kind.ANY)
def bytes_of_a_pipeline(it, draw):
    data = bytearray(it.toml.read_bytes())
    for _ in range(draw(st.integers(1, 2))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    it.toml.write_bytes(data)


class Dataset(Case):
    """mpiimg-neuro on a BIDS dataset of two scans, of which the first is changed."""

    tool, unit = "mpiimg-neuro", "sub-01"

    def __init__(self, folder: Path, sound: Path):
        super().__init__(folder, sound)
        self.description = self.inputs / "dataset_description.json"
        self.dwi = self.inputs / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
        self.bval, self.bvec = (self.dwi.with_name(f"sub-01_dwi{ending}") for ending in (".bval", ".bvec"))

    @classmethod
    def prepare(cls, folder: Path) -> None:
        for name in ("sub-01", "sub-02"):
            made = write_subject(
                folder / "in" / name / "dwi", voxels(), AFFINE, BVALS, directions(), name=f"{name}_dwi.nii.gz"
            )
            for path in (made.bvals, made.bvecs):
                path.rename(path.with_name(f"{name}_{path.name}"))
        (folder / "in" / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.9.0"}')
        (folder / "in" / "sub-01" / "dwi" / "sub-01_dwi.json").write_text('{"EchoTime": 0.08}')

    def command(self) -> list:
        return [self.inputs, self.out, "participant", "--median-radius", 1, "--sigma", 20]

    def compared(self) -> dict:
        """Results but for the sidecars, which name the files that were read."""
        return {name: value for name, value in results(self.out).items() if not name.endswith(".json")}


@mutation(Dataset, Kind.NEUTRAL)
def metadata_written_otherwise(it, draw):
    content = json.loads(it.description.read_text()) | draw(
        st.dictionaries(st.text(max_size=9), st.none() | st.integers() | st.text(max_size=9), max_size=3)
    )
    content |= {"Name": "heads", "BIDSVersion": "1.9.0"}
    it.description.write_text(
        json.dumps(content, indent=draw(st.sampled_from([None, 0, 8])), ensure_ascii=draw(st.booleans()))
    )


@mutation(Dataset, Kind.NEUTRAL)
def gradients_further_up(it, draw):
    above = draw(st.sampled_from([it.inputs, it.inputs / "sub-01"]))
    name = "dwi" if above == it.inputs and draw(st.booleans()) else "sub-01_dwi"
    for path in (it.bval, it.bvec):
        if path.exists():
            path.rename(above / f"{name}{path.suffix}")


@mutation(Dataset, Kind.NEUTRAL)
def more_files(it, draw):
    names = [
        "README",
        "participants.tsv",
        ".hidden",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "code/run.sh",
        "sub-01/dwi/notes.txt",
    ]
    for name in draw(st.lists(st.sampled_from(names), unique=True)):
        (it.inputs / name).parent.mkdir(exist_ok=True, parents=True)
        (it.inputs / name).write_bytes(b"\x1b[31m\0")


@mutation(Dataset, Kind.NEUTRAL)
def a_sidecar_of_any_kind(it, draw):
    odd = [b"", b"{", b"[]", b"\xff", b'{"EchoTime": "\\u001b[31m"}', b"null", b"[" * 5000, b'{"A": NaN}']
    place = draw(st.sampled_from([it.inputs, it.inputs / "sub-01", it.dwi.parent]))
    name = "dwi.json" if place == it.inputs else "sub-01_dwi.json"
    (place / name).write_bytes(draw(st.sampled_from(odd)))


@mutation(Dataset, Kind.NEUTRAL)
def scans_that_nobody_means_to_fit(it, draw):
    """Beside the others; they are passed over, and change nothing."""
    volumes = draw(st.sampled_from([None, 1, 3, len(BVALS)]))
    names = {None: ("sbref", "dir-PA_dwi", "ADC"), len(BVALS): ("part-phase_dwi", "dir-PA_dwi")}
    name = draw(st.sampled_from(names.get(volumes, ("dir-PA_dwi", "part-real_dwi"))))
    values = voxels()[..., 0] if volumes is None else voxels()[..., :volumes]
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), it.dwi.with_name(f"sub-01_{name}.nii.gz"))
    if volumes == len(BVALS) or draw(st.booleans()):
        count = volumes or 1
        np.savetxt(it.dwi.with_name(f"sub-01_{name}.bval"), np.zeros((1, count)), fmt="%g")
        np.savetxt(it.dwi.with_name(f"sub-01_{name}.bvec"), np.zeros((3, count)), fmt="%g")


@mutation(Dataset, Kind.DAMAGING)
def a_description_that_makes_no_sense(it, draw):
    it.unit = ""
    odd = [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"[" * 100000,
        b'{"Name": 3}',
        b'{"Name": "\x1b',
        b"{}",
    ]
    it.description.write_bytes(draw(st.sampled_from(odd)))
    return ("dataset_description.json",)


@mutation(Dataset, Kind.DAMAGING)
def a_scan_without_gradients(it, draw):
    draw(st.sampled_from([it.bval, it.bvec])).unlink()


@mutation(Dataset, Kind.DAMAGING)
def a_scan_that_cannot_be_read(it, draw):
    data = it.dwi.read_bytes()
    ways = {
        "cut": lambda: it.dwi.write_bytes(data[: draw(st.integers(0, len(data) - 1))]),
        "nothing": lambda: it.dwi.write_bytes(draw(st.binary(max_size=400))),
        "folder": lambda: (it.dwi.unlink(), it.dwi.mkdir()),
        "pipe": lambda: (it.dwi.unlink(), os.mkfifo(it.dwi)),
        "loop": lambda: (it.dwi.unlink(), it.dwi.symlink_to(it.dwi)),
        "twice": lambda: shutil.copy(it.dwi, it.dwi.with_suffix("")),
    }
    ways[draw(st.sampled_from(sorted(ways)))]()


@mutation(Dataset, Kind.DAMAGING)
def a_scan_with_a_wrong_name(it, draw):
    odd = [
        "sub-01_run-1_ses-1",
        "sub-02",
        "sub-01_run-1_run-2",
        "sub-01_nonsense-1",
        "sub-01_acq-a_b",
        "sub-01_",
    ]
    it.dwi.rename(it.dwi.with_name(draw(st.sampled_from(odd)) + "_dwi.nii.gz"))


@mutation(Dataset, Kind.ANY)
def an_odd_name(it, draw):
    odd = [
        "sub-\x1b[31m",
        "sub-a b",
        "sub-two\nlines",
        "sub-über",
        "sub-",
        "sub-..",
        "sub-a;b",
        "sub-%s",
        "sub-" + "x" * 200,
    ]
    name = draw(st.sampled_from(odd))
    it.unit = "sub-"
    folder = it.dwi.parent
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("sub-01", name))
    (it.inputs / "sub-01").rename(it.inputs / name)
