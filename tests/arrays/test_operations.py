"""The sixteen operations, by the lines that docs/operations.md has for them, give what NumPy gives."""

import re
import sys

import nibabel
import numpy as np
import pytest
from astropy.io import fits
from support import launch, pages_of_code

PAGE = launch.REPOSITORY / "docs" / "operations.md"
SIXTEEN = launch.REPOSITORY / "benchmarks" / "sixteen"
PEERS = launch.REPOSITORY / ".venv-bench" / "bin" / "python"

#: What is compared with NumPy after the lines of each section, by the name that the benchmark has for it.
RESULTS = {
    "same_shape": "result.compute()",
    "outputs": "mi.compute(largest, where)",
    "other_shape": "result.compute()",
    "stencil": "result.compute()",
    "plane": "result.compute()",
    "over_time": "result.compute()",
    "over_space": "result.compute()",
    "ragged": "found.compute()",
    "value": "result.compute()",
    "own_map": "result.compute()",
    "join": "result.compute()",
    "group": "dict(result.keyed())",
    "loop": "(state.compute(), passes)",
    "reader": "result.compute()",
    "in_memory": "result.compute()",
    "complex": "result.compute()",
}


def cases():
    """Return the benchmark's module of inputs and NumPy's results."""
    sys.path.insert(0, str(SIXTEEN))
    try:
        import cases
    finally:
        sys.path.remove(str(SIXTEEN))
    return cases


def heading(name):
    """Return the heading of an operation's section."""
    text = cases().OPERATIONS[name]
    return text[0].upper() + text[1:]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Run all lines of the page on two ranks."""
    folder, known = tmp_path_factory.mktemp("operations"), cases()
    for name, data in (("dwi", known.SERIES), ("reference", known.REFERENCE)):
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), folder / f"{name}.nii.gz")
    fits.writeto(folder / "plane.fits", known.PLANE)
    np.save(folder / "series.npy", known.SERIES)
    before = f"import sys; sys.path.insert(0, {str(SIXTEEN)!r}); import cases"
    checks = {heading(name): f"cases.require({name!r}, {said})" for name, said in RESULTS.items()}
    return pages_of_code.run(PAGE, folder, checks, before=before)


@pytest.mark.parametrize("name", RESULTS)
def test_an_operation_is_said_in_the_lines_of_its_section(outcome, name):
    if outcome[heading(name)]:
        pytest.fail(outcome[heading(name)], pytrace=False)


def test_the_page_has_a_section_and_a_row_for_every_operation():
    assert list(pages_of_code.sections(PAGE)) == ["", *map(heading, cases().OPERATIONS)]
    assert list(RESULTS) == list(cases().OPERATIONS)
    assert list(rows()) == list(cases().OPERATIONS.values())


def rows():
    """Return the table of the page: what mpiimg, dask, Spark and Cubed have, by operation."""
    found = re.findall(r"^\| \[(.*?)\]\(#.*?\) \| (.*) \|$", PAGE.read_text(), re.M)
    return {name: cells.split(" | ") for name, cells in found}


def test_the_sums_of_the_table_are_right():
    (line,) = re.findall(r"^\| \*\*of 16\*\* \| (.*) \|$", PAGE.read_text(), re.M)
    counts = [sum(cell == "yes" for cell in column) for column in zip(*rows().values(), strict=True)]
    assert [int(cell.strip("*")) for cell in line.split(" | ")] == counts


@pytest.mark.long
@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed: make bench-systems")
@pytest.mark.parametrize(("system", "column"), [("dask", 1), ("spark", 2), ("cubed", 3)])
def test_the_other_systems_have_what_the_table_says(system, column, tmp_path):
    command = [PEERS, SIXTEEN / "check.py", system]
    said = launch.run(command, timeout=300, cwd=tmp_path).stdout
    found = dict(re.findall(r"^(\w+): (.*)$", said, re.M))
    named = cases().OPERATIONS
    assert {named[name]: cell for name, cell in found.items()} == {
        name: cells[column] for name, cells in rows().items()
    }
