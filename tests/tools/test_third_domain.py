"""A domain, a format and a pipeline from an installed package, and a step from another one.

The packages are those of docs/domain.md, installed as their users would, in a folder of their own.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter
from support import launch
from support.subjects import PATIENCE, digests, record

pytestmark = pytest.mark.tool

EXAMPLES = launch.REPOSITORY / "docs" / "examples"
PACKAGE = EXAMPLES / "microscopy" / "mpiimg_microscopy"

#: Frames, rows, columns; more than one strip of rows, and neither a power of two.
SHAPE = (6, 97, 131)

#: Centres of the cells in the first frame.
CELLS = ((20, 30), (25, 105), (40, 64), (60, 90), (75, 25))

#: Where each frame is against the first one.
DRIFT = ((0, 0), (3, -5), (-4, 2), (0, 5), (-2, -2), (5, 0))

#: Stops the process at its third frame.
STOPPING = """
import os, signal, sys
if any("mpiimg-" in word for word in sys.orig_argv[:3]):
    import mpiimg_microscopy.steps as steps
    original, calls = steps.offset, []

    def offset(*arguments):
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    steps.offset = offset
"""

#: Runs one command after the other in one process, and says how each of them ended.
IN_TURN = """
import contextlib, io, json, logging, sys
from mpiimg.tools.cli import main
answers = []
for words in json.load(open(sys.argv[1])):
    logging.root.handlers.clear()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = main("mpiimg-run", words)
        except SystemExit as end:
            status = end.code
    answers.append([int(status), said.getvalue()])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder that the packages are installed in."""
    folder = tmp_path_factory.mktemp("packages")
    sources = [shutil.copytree(EXAMPLES / name, folder / name) for name in ("microscopy", "smooth")]
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", folder / "site")
    launch.run([sys.executable, "-m", "pip", "install", *options, *sources], timeout=PATIENCE)
    return folder / "site"


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    """Cells that drift under uneven light."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    light = 0.6 + 0.4 * np.exp(-((y - 48) ** 2 + (x - 65) ** 2) / 8000)
    frames = np.empty(SHAPE, np.uint16)
    for frame, (dy, dx) in zip(frames, DRIFT, strict=True):
        scene = np.full(SHAPE[1:], 200.0)
        for row, column in CELLS:
            scene += 800 * ((y - row - dy) ** 2 + (x - column - dx) ** 2 < 16)
        frame[:] = rng.poisson(scene * light)
    path = tmp_path_factory.mktemp("frames") / "stack.btf"
    tifffile.imwrite(path, frames, photometric="minisblack")
    return path


def mpiimg_run(site: Path, *words, folders=(), **options):
    path = ":".join(map(str, (*folders, site)))
    return launch.run_tool("mpiimg-run", *words, env={"PYTHONPATH": path}, timeout=PATIENCE, **options)


@pytest.fixture(scope="module")
def alone(site, stack, tmp_path_factory) -> Path:
    """What one process without a launcher makes of the stack."""
    out = tmp_path_factory.mktemp("alone") / "out"
    mpiimg_run(site, "microscopy:timelapse", stack, "--out", out)
    return out


def by_hand(frames: np.ndarray, sigma: float = 20.0) -> np.ndarray:
    """The projection, from whole arrays; and drifts as they were simulated."""
    smooth = gaussian_filter(np.median(frames, axis=0), sigma, radius=round(4 * sigma)).astype(np.float32)
    largest = np.zeros(SHAPE[1:], np.float32)
    for frame, (dy, dx) in zip(frames, DRIFT, strict=True):
        still = np.zeros_like(largest)
        for row in range(max(-dy, 0), min(SHAPE[1] - dy, SHAPE[1])):
            for column in range(max(-dx, 0), min(SHAPE[2] - dx, SHAPE[2])):
                place = row + dy, column + dx
                still[row, column] = frame[place] / np.maximum(smooth[place], np.float32(1e-6))
        largest = np.maximum(largest, still)
    return largest


def test_it_does_what_it_is_for(alone, stack):
    projection = tifffile.imread(alone / "stack_max.btf")
    np.testing.assert_array_equal(projection, by_hand(tifffile.imread(stack)))
    *head, columns, first, second, third, fourth, fifth = (alone / "stack_cells.csv").read_text().splitlines()
    assert head == [
        "# flatfield: sigma 20.0 pixels",
        "# register",
        "# project",
        "# count: ratio 1.5, min_area 9 pixels",
    ]
    assert columns == "y,x,area"
    cells = np.array([row.split(",") for row in (first, second, third, fourth, fifth)], float)
    np.testing.assert_allclose(cells[:, :2], CELLS, atol=0.2)
    np.testing.assert_allclose(cells[:, 2], 45, atol=4)


@pytest.mark.parametrize(
    ("ranks", "other", "words"),
    [
        (2, True, ("--in-memory",)),
        (3, False, ()),
        (4, True, ()),
        *(
            pytest.param(ranks, ranks == 3, words, marks=pytest.mark.long)
            for ranks in (2, 3, 4)
            for words in ((), ("--in-memory",))
        ),
    ],
)
def test_any_number_of_ranks_of_either_install_makes_the_same_bytes(
    ranks, other, words, alone, site, stack, tmp_path
):
    python = launch.other_install() if other else None
    out = tmp_path / "out"
    mpiimg_run(site, "microscopy:timelapse", stack, "--out", out, *words, ranks=ranks, python=python)
    assert digests(out) == digests(alone)


def test_the_record_names_the_package_its_parameters_and_the_stages(alone):
    run = record(alone)
    assert run["libraries"]["mpiimg-microscopy"] == "1.0"
    assert run["libraries"]["tifffile"] == tifffile.__version__
    assert run["parameters"] == {"flatfield.sigma": 20.0, "count.ratio": 1.5, "count.min_area": 9}
    assert [entry["stage"] for entry in run["stages"]] == [
        "flatfield.light",
        "flatfield.divide",
        "register.offsets",
        "register.move",
        "project",
        "project.write-stack_max.btf",
        "count.cells",
    ]


def test_a_plan_of_many_ranks(site, stack, tmp_path):
    words = ("--out", tmp_path / "out", "--plan=json", "--ranks", 64, "--memory", "1G")
    plan = json.loads(mpiimg_run(site, "microscopy:timelapse", stack, *words).stdout)
    chunks = {stage["stage"]: stage["chunks"] for stage in plan["stages"]}
    assert (plan["ranks"], chunks["register.offsets"], chunks["flatfield.light"]) == (64, 6, 2)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def stopped(site, stack, tmp_path_factory) -> Path:
    """A run of two ranks that a signal has stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "sitecustomize.py").write_text(STOPPING)
    words = ("microscopy:timelapse", stack, "--out", folder / "out")
    done = mpiimg_run(site, *words, folders=[folder], ranks=2, check=False)
    assert done.returncode == 75, done.stderr
    return folder / "out"


def resumed_chunks(out: Path) -> int:
    return sum(entry["resumed_chunks"] for entry in record(out)["stages"])


def test_a_stopped_run_goes_on(stopped, alone, site, stack, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "out")
    mpiimg_run(site, "microscopy:timelapse", stack, "--out", out)
    assert digests(out) == digests(alone)
    # The light, all frames divided by it, and some offsets.
    assert resumed_chunks(out) > 2 + 6


def test_what_depends_on_a_changed_parameter_is_made_again(stopped, site, stack, tmp_path):
    """The steps name no provenance: all parameters of the steps so far are in it."""
    words = ("microscopy:timelapse", stack, "--param", "sigma=9")
    out = shutil.copytree(stopped, tmp_path / "out")
    done = mpiimg_run(site, *words, "--out", out)
    assert "flatfield.sigma 9" in done.stderr
    mpiimg_run(site, *words, "--out", tmp_path / "fresh")
    assert digests(out) == digests(tmp_path / "fresh")
    assert resumed_chunks(out) == 0


def test_nothing_is_taken_over_from_another_version_of_the_package(stopped, alone, site, stack, tmp_path):
    newer = shutil.copytree(site, tmp_path / "site")
    (metadata,) = newer.glob("mpiimg_microscopy-*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    out = shutil.copytree(stopped, tmp_path / "out")
    done = mpiimg_run(newer, "microscopy:timelapse", stack, "--out", out)
    assert "mpiimg-microscopy 1.1 (was 1.0)" in done.stderr
    assert resumed_chunks(out) == 0
    assert digests(out) == digests(alone)


def toml(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_steps_one_by_one_and_in_a_toml_pipeline_give_the_same(alone, site, stack, tmp_path):
    mpiimg_run(site, "microscopy:flatfield", stack, "--out", tmp_path)
    mpiimg_run(site, "microscopy:register", tmp_path / "stack_flat.btf", "--out", tmp_path, "--force")
    still = tmp_path / "stack_flat_still.btf"
    assert tifffile.TiffFile(still).pages[5].shape == SHAPE[1:]
    rest = '[[stage]]\ntool = "microscopy:project"\n[[stage]]\ntool = "microscopy:count"\n'
    mpiimg_run(site, toml(tmp_path / "rest.toml", rest), still, "--out", tmp_path / "rest")
    whole = 'domain = "microscopy"\n' + "".join(
        f'[[stage]]\ntool = "{name}"\n' for name in ("flatfield", "register", "project", "count")
    )
    mpiimg_run(site, toml(tmp_path / "whole.toml", whole), stack, "--out", tmp_path / "whole")
    assert digests(tmp_path / "whole") == digests(alone)
    assert (tmp_path / "rest/stack_flat_still_max.btf").read_bytes() == (alone / "stack_max.btf").read_bytes()


@pytest.fixture(scope="module")
def refusals(site, stack, tmp_path_factory):
    """What each of the commands that make no sense was answered."""
    folder = tmp_path_factory.mktemp("refused")
    pages = stack.read_bytes()
    (folder / "text.btf").write_text("not a picture")
    (folder / "cut.btf").write_bytes(pages[: len(pages) // 3])
    tifffile.imwrite(folder / "colours.btf", np.zeros((2, 9, 9, 3), np.uint8), photometric="rgb")
    shutil.copy(stack, folder / "stack.xyz")
    count = toml(folder / "order.toml", 'domain = "microscopy"\n[[stage]]\ntool = "count"\n')
    sigma = '[[stage]]\ntool = "microscopy:flatfield"\nsigma = -3\n'
    mixed = '[[stage]]\ntool = "mask"\n[[stage]]\ntool = "microscopy:flatfield"\n'
    commands = {
        "wrong value": ["microscopy:flatfield", stack, "--param", "sigma=0"],
        "wrong value in TOML": [toml(folder / "value.toml", sigma), stack],
        "wrong type": ["microscopy:flatfield", stack, "--param", "sigma=wide"],
        "wrong parameter": ["microscopy:flatfield", stack, "--param", "width=3"],
        "wrong order": ["microscopy:count", stack],
        "wrong order in TOML": [count, stack],
        "two domains": [toml(folder / "mixed.toml", mixed), stack],
        "no such step": ["microscopy:sharpen", stack],
        "no such domain": ["telescopy:timelapse", stack],
        "no TIFF": ["microscopy:timelapse", folder / "text.btf"],
        "truncated TIFF": ["microscopy:timelapse", folder / "cut.btf"],
        "colours": ["microscopy:timelapse", folder / "colours.btf"],
        "unknown format": ["microscopy:timelapse", folder / "stack.xyz"],
        "two stacks": ["microscopy:timelapse", stack, stack],
    }
    words = [[*map(str, command), "--out", str(folder / "out")] for command in commands.values()]
    (folder / "commands").write_text(json.dumps(words))
    command = [sys.executable, "-c", IN_TURN, folder / "commands"]
    done = launch.run(command, env={"PYTHONPATH": str(site)}, timeout=PATIENCE)
    assert not (folder / "out").exists()
    return dict(zip(commands, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("wrong value", "sigma = 0: is not between 0.5 and 500"),
        ("wrong value in TOML", "sigma = -3: is not between 0.5 and 500"),
        ("wrong type", "sigma = 'wide': must be of type float"),
        ("wrong parameter", "flatfield has no parameter 'width'; it has sigma"),
        ("wrong order", "count cannot stand first: it takes projection, which project gives"),
        ("wrong order in TOML", "count cannot stand first: it takes projection, which project gives"),
        ("two domains", "flatfield is a step of microscopy, and other stages are of neuro"),
        ("no such step", "microscopy has no such step; it has flatfield, register, project, count"),
        ("no such domain", "there is no such domain; there are astro, microscopy, neuro"),
        ("no TIFF", "text.btf: is no BigTIFF that can be read: not a TIFF file"),
        ("truncated TIFF", "cut.btf: is no BigTIFF that can be read: it is truncated"),
        ("colours", "colours.btf: has the axes tyxc, where tyx are needed"),
        ("unknown format", "stack.xyz: is a TIFF: rename it, so that its name ends with .tif"),
        ("two stacks", "takes one stack of frames, not 2"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(case, said, refusals):
    status, text = refusals[case]
    assert status == 2
    assert said in text and text.startswith("mpiimg: error: ") and text.count("\n") == 1


def test_a_step_of_an_installed_package_in_a_domain_that_is_built_in(simulated, site, tmp_path):
    mpiimg_run(
        site, "neuro:smooth", simulated.dwi, "--out", tmp_path / "out", "--param", "sigma=1.5", ranks=2
    )
    made = np.asarray(nibabel.load(tmp_path / "out/dwi_desc-smooth_dwi.nii.gz").dataobj)
    values = simulated.data.astype(np.float32)
    expected = [gaussian_filter(volume.T, 1.5, radius=6).T for volume in np.moveaxis(values, -1, 0)]
    np.testing.assert_array_equal(made, np.stack(expected, axis=-1))
    pipeline = '[[stage]]\ntool = "neuro:smooth"\n[[stage]]\ntool = "mask"\nmedian_radius = 2\n'
    mpiimg_run(site, toml(tmp_path / "p.toml", pipeline), simulated.dwi, "--out", tmp_path / "both")
    assert "dwi_desc-brain_mask.nii.gz" in digests(tmp_path / "both")


def test_a_package_that_cannot_be_imported_is_named_and_harms_no_other(site, stack, simulated, tmp_path):
    broken = shutil.copytree(site, tmp_path / "site")
    (broken / "mpiimg_microscopy" / "domain.py").write_text("import no_such_library\n")
    done = mpiimg_run(broken, "microscopy:timelapse", stack, "--out", tmp_path / "out", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "mpiimg: error: mpiimg_microscopy.domain:DOMAIN: this plugin cannot be loaded"
    )
    assert "no_such_library" in done.stderr and done.stderr.count("\n") == 1
    mpiimg_run(broken, "neuro:smooth", simulated.dwi, "--out", tmp_path / "smooth", "--plan")


def test_two_packages_with_a_domain_of_one_name_are_refused(site, stack, tmp_path):
    other = tmp_path / "other" / "other-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[mpiimg.domains]\nmicroscopy = other:DOMAIN\n")
    words = ("microscopy:timelapse", stack, "--out", tmp_path / "out")
    done = mpiimg_run(site, *words, folders=[other.parent], check=False)
    assert done.returncode == 2
    assert "two installed packages" in done.stderr and "other:DOMAIN" in done.stderr


def test_the_package_is_as_short_as_its_page_says():
    """Lines that are neither blank nor a comment; docstrings count."""
    counts = {
        path.name: len(re.findall(r"^\s*[^\s#].*$", path.read_text(), re.M)) for path in PACKAGE.glob("*.py")
    }
    page = (launch.REPOSITORY / "docs" / "domain.md").read_text()
    assert sum(counts.values()) <= 150
    for name in ("domain.py", "steps.py", "tiff.py"):
        assert f"| `{name}` | {counts[name]} |" in page


def test_the_code_on_the_page_is_that_of_the_packages():
    page = (launch.REPOSITORY / "docs" / "domain.md").read_text()
    files = [*PACKAGE.glob("*.py"), *EXAMPLES.glob("*/pyproject.toml")]
    code = "\n".join(path.read_text() for path in files)
    blocks = re.findall(r"^```(?:python|toml)\n(.*?)^```", page, re.M | re.S)
    shown = [block for block in blocks if "[[stage]]" not in block]
    assert len(shown) > 8
    assert [block for block in shown if block not in code] == []
