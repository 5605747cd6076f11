"""Gradient tables of an image: those that are named, in its header or beside it; FSL's and MRtrix3's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.inputs import said_of_file
from mpiimg.errors import BadInput
from mpiimg.neuro.bids import inherited_tables
from mpiimg.neuro.gradients import bvec_to_scanner
from mpiimg.neuro.nifti import Image, bare_name
from mpiimg.neuro.tables.text import Table, read_table

#: Arguments of a pair of FSL's tables.
PAIR = ("bvals", "bvecs")

#: Endings of pairs that begin with the name of the image, and names of pairs that a folder may have.
PAIR_ENDINGS = ((".bval", ".bvec"), (".bvals", ".bvecs"))
PAIR_NAMES = (("bvals", "bvecs"), ("bvals.txt", "bvecs.txt"), ("bval", "bvec"))

#: Ending of MRtrix3's table beside an image.
GRAD_ENDING = ".b"


@dataclass(frozen=True)
class TableFiles:
    """Where the gradients of an image stand.

    Parameters
    ----------
    bvals, bvecs : Path, optional
        FSL's pair.
    grad : Path, optional
        MRtrix3's table.
    scheme : tuple of (float, float, float, float)
        MRtrix3's table in the header of the image.
    image : Path, optional
        The image, where its header has a table.
    """

    bvals: Path | None = None
    bvecs: Path | None = None
    grad: Path | None = None
    scheme: tuple[tuple[float, ...], ...] = ()
    image: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files by the names of their arguments."""
        named = {"bvals": self.bvals, "bvecs": self.bvecs, "grad": self.grad}
        return {name: path for name, path in named.items() if path is not None}


@dataclass(frozen=True)
class RawTable:
    """A gradient table as it stands in its files.

    Parameters
    ----------
    bvals : (V,) float64
        In whatever unit.
    bvecs : (V, 3) float64
        In FSL's frame, of whatever length.
    bvals_name, bvecs_name : str
        Of the files, for messages.
    is_plain : bool
        The files are FSL's, and any reader takes them as they are.
    warnings : tuple of str
    """

    bvals: np.ndarray
    bvecs: np.ndarray
    bvals_name: str
    bvecs_name: str
    is_plain: bool
    warnings: tuple[str, ...] = ()


# --- Where they are ---------------------------------------------------------------------------------------


def find_tables(image: Image, paths: Mapping[str, Any], needed: bool = False) -> TableFiles | None:
    """Return where the gradients of an image stand: as named, else in its header, else beside it.

    Those of an image in a BIDS dataset may stand in a folder above too, by the inheritance principle.

    Parameters
    ----------
    image : Image
    paths : mapping
        Paths by argument: bvals, bvecs, grad.
    needed : bool
        Refuse where there are none, and say what is missing.

    Raises
    ------
    BadInput
        Two tables are named, or one file of a pair is missing.
    """
    named = {name: Path(paths[name]) for name in (*PAIR, "grad") if paths.get(name)}
    if "grad" in named and len(named) > 1:
        raise BadInput(f"{named['grad']}: --grad and --bvals, --bvecs are two tables of gradients; give one")
    if "grad" in named:
        return TableFiles(grad=named["grad"])
    if named:
        return TableFiles(*(named.get(name) or _beside(image.path, name) for name in PAIR))
    if image.dw_scheme:
        return TableFiles(scheme=image.dw_scheme, image=image.path)
    for pair in _pairs(image.path):
        if all(_is_there(path) for path in pair):
            return TableFiles(*pair)
    bval, bvec = inherited_tables(image.path)
    if bval is not None and bvec is not None:
        return TableFiles(bval, bvec)
    grad = image.path.with_name(bare_name(image.path) + GRAD_ENDING)
    if _is_there(grad):
        return TableFiles(grad=grad)
    if needed:
        for name in PAIR:
            _beside(image.path, name)
    return None


def _is_there(path: Path) -> bool:
    """Say whether there is a file; so is a link that leads nowhere, and reading says what it is."""
    return path.is_file() or path.is_symlink()


def _pairs(path: Path) -> list[tuple[Path, Path]]:
    """Return the pairs of tables that may lie beside an image, the likelier first.

    In a BIDS derivative they may have its name without `desc`.
    """
    bare = bare_name(path)
    names = dict.fromkeys((bare, re.sub(r"_desc-[0-9A-Za-z+]+(?=_)", "", bare)))
    own = [tuple(path.with_name(name + ending) for ending in pair) for name in names for pair in PAIR_ENDINGS]
    return [*own, *(tuple(path.with_name(name) for name in pair) for pair in PAIR_NAMES)]


def _beside(path: Path, name: str) -> Path:
    """Return the file of bvals or bvecs beside an image, or above it in its dataset.

    Raises
    ------
    BadInput
        There is none.
    """
    candidates = [pair[PAIR.index(name)] for pair in _pairs(path)]
    there = (
        next((one for one in candidates if _is_there(one)), None) or inherited_tables(path)[PAIR.index(name)]
    )
    if there is None:
        raise BadInput(
            f"{path}: gradients are needed and {candidates[0].name} is not beside it; give --{name}, or "
            "--grad with a table of MRtrix3"
        )
    return there


def said_of_tables(tables: TableFiles) -> dict[str, Any]:
    """Return what run.json says of gradient files, by the names of their arguments."""
    return {name: said_of_file(path) for name, path in tables.files.items()}


# --- What they hold ---------------------------------------------------------------------------------------


def read_raw(tables: TableFiles, volumes: int, affine: np.ndarray) -> RawTable:
    """Read a gradient table of an image.

    Parameters
    ----------
    tables : TableFiles
    volumes : int
        V, those of the image.
    affine : (4, 4) array
        Of the image; turns directions in scanner axes into FSL's frame.

    Raises
    ------
    BadInput
        A file cannot be read, or is no table for so many volumes.
    """
    if tables.scheme:
        return _from_scheme(np.array(tables.scheme), affine, str(tables.image), volumes)
    if tables.grad is not None:
        table = read_table(tables.grad, "gradients", 4 * volumes)
        rows = _as_rows(table, 4, volumes)
        if rows is None:
            raise BadInput(
                f"{tables.grad}: {_extent(table)}; a table of MRtrix3 for an image of {volumes} volumes has "
                f"{volumes} rows of 4: x, y, z in scanner axes, and b"
            )
        return _from_scheme(rows, affine, str(tables.grad), volumes, table.warnings)
    bvals = read_table(tables.bvals, "b-values", volumes)
    if bvals.values.size != volumes:
        hints = {
            3: "; these look like directions: --bvals and --bvecs may be swapped",
            4: "; a table of MRtrix3 is given by --grad",
        }
        hint = hints.get(bvals.values.size / volumes, "; give the file that belongs to this image")
        raise BadInput(
            f"{tables.bvals}: {bvals.values.size} b-values for an image of {volumes} volumes{hint}"
        )
    bvecs = read_table(tables.bvecs, "gradient directions", 3 * volumes)
    rows = _as_rows(bvecs, 3, volumes)
    if rows is None:
        hint = "; a table of MRtrix3 is given by --grad" if _as_rows(bvecs, 4, volumes) is not None else ""
        raise BadInput(
            f"{tables.bvecs}: {_extent(bvecs)}; "
            f"an image of {volumes} volumes needs 3 rows of {volumes} or {volumes} rows of 3{hint}"
        )
    is_plain = (
        bvals.is_plain and bvecs.is_plain and bvals.shape == (1, volumes) and bvecs.shape == (3, volumes)
    )
    names = str(tables.bvals), str(tables.bvecs)
    return RawTable(bvals.values, rows, *names, is_plain, (*bvals.warnings, *bvecs.warnings))


def _as_rows(table: Table, columns: int, volumes: int) -> np.ndarray | None:
    """Return (volumes, columns) numbers from a table in either orientation; None where it is none."""
    across = table.in_rows(columns, volumes)
    if across is not None and (table.shape != (volumes, columns) or volumes == columns == 3):
        return across.T
    return table.in_rows(volumes, columns)


def _extent(table: Table) -> str:
    if table.shape is None:
        return f"{table.values.size} numbers in {len(table.rows)} rows that are not equally long"
    return f"{table.shape[0]} rows of {table.shape[1]} numbers"


def _from_scheme(
    rows: np.ndarray, affine: np.ndarray, name: str, volumes: int, warnings: tuple[str, ...] = ()
) -> RawTable:
    """Return a table of MRtrix3, (V, 4) of x, y, z in scanner axes and b, in FSL's frame."""
    if rows.shape != (volumes, 4):
        raise BadInput(f"{name}: {len(rows)} rows for an image of {volumes} volumes; it is no table of it")
    return RawTable(rows[:, 3], rows[:, :3] @ nearest_rotation(affine), name, name, False, warnings)


def nearest_rotation(affine: np.ndarray) -> np.ndarray:
    """Return the orthogonal (3, 3) matrix from the frame of FSL's bvecs to scanner axes, as MRtrix3 has it.

    That of an affine with shear is the nearest to its axes, so that lengths are left as they are.
    """
    left, _, right = np.linalg.svd(bvec_to_scanner(affine))
    return left @ right
