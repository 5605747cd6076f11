"""Whether another table of gradients fits the continuity of fibres better: flips and swaps of axes.

Directions of neighbouring voxels are as much alike for every flip; but fibres go on along themselves, and
those of a wrong table do not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Need, Part
from mpiimg.engine.rates import RateSample
from mpiimg.engine.stage import Found, Reduce
from mpiimg.neuro.gradients import bvec_to_scanner
from mpiimg.neuro.nifti import Image

PAPER = "gradient tables by the continuity of fibres: Schilling et al. 2019, doi:10.1016/j.mri.2018.09.025"

#: Voxels below this anisotropy have no direction to speak of.
MIN_FA = 0.25

#: Voxels with a direction, and slices with some along an axis, below which nothing is decided.
MIN_VOXELS, MIN_SLICES = 2000, 8

#: How many times as well as the given table another one must fit.
MIN_RATIO = 1.10

#: Cosine of the angle that tables may be turned against each other and count as one.
NEAR = np.cos(np.radians(30))

#: An affine whose axes are all this near to the scanner's is not oblique.
ALONG_AXES = np.cos(np.radians(1))

AXES = "xyz"


@dataclass(frozen=True)
class Candidate:
    """A table of gradients made from the given one.

    Parameters
    ----------
    name : str
        In words: what is done with the given one.
    axes : str
        Along which axes that is done: "voxel", "scanner", or "unrotated" where the table counts as written
        along the scanner's axes.
    matrix : (3, 3) tuple of tuple of float
        From the given table's vectors to scanner axes.
    involved : str
        Voxel axes that it is about.
    """

    name: str
    axes: str
    matrix: tuple[tuple[float, ...], ...]
    involved: str


@dataclass(frozen=True)
class Verdict:
    """What the check comes to.

    Parameters
    ----------
    scores : (tables,) tuple of float
        The sum over all pairs, the given table first.
    halves : (2, tables) tuple of tuple of float
        Those of even and of odd blocks.
    voxels : int
        Voxels with a direction.
    better : int, optional
        The table that fits better; 0 where the given one fits best, None where nothing is decided.
    reason : str
        Why nothing is decided.
    """

    scores: tuple[float, ...] = ()
    halves: tuple[tuple[float, ...], ...] = field(default=((), ()))
    voxels: int = 0
    better: int | None = None
    reason: str = ""


def candidates(affine: np.ndarray) -> tuple[Candidate, ...]:
    """Return the tables that are tried, the given one first.

    They are 24: 6 orders of the axes, each with no axis or one of them negated, which is all that changes
    anything, since a direction has no sign. Where voxels are oblique, the same along scanner axes, and the
    table as if it were written along these.
    """
    to_scanner = bvec_to_scanner(affine)
    changes = [
        (order, flipped) for order in itertools.permutations(range(3)) for flipped in (None, *range(3))
    ]
    made = [
        Candidate(
            _in_words(order, flipped),
            "voxel",
            _rows(to_scanner @ _matrix(order, flipped)),
            _moved(order, flipped),
        )
        for order, flipped in changes
    ]
    if np.abs(to_scanner).max(axis=0).min() >= ALONG_AXES:
        return tuple(made)
    for axes, along in (("scanner", to_scanner), ("unrotated", np.eye(3))):
        made += [
            Candidate(_in_words(order, flipped), axes, _rows(_matrix(order, flipped) @ along), AXES)
            for order, flipped in changes
            if axes == "unrotated" or (order, flipped) != changes[0]
        ]
    return tuple(made)


def _matrix(order: tuple[int, ...], flipped: int | None) -> np.ndarray:
    matrix = np.eye(3)[list(order)]
    if flipped is not None:
        matrix[flipped] *= -1
    return matrix


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))


def _in_words(order: tuple[int, ...], flipped: int | None) -> str:
    words = [] if order == (0, 1, 2) else [f"axes in the order {' '.join(AXES[axis] for axis in order)}"]
    words += [f"{AXES[flipped]} negated"] if flipped is not None else []
    return ", ".join(words) or "as given"


def _moved(order: tuple[int, ...], flipped: int | None) -> str:
    moved = {axis for place, axis in enumerate(order) if place != axis}
    return "".join(AXES[axis] for axis in sorted(moved | ({flipped} - {None})))


# --- The check --------------------------------------------------------------------------------------------


def check_continuity(image: Image, directions: Need, mask: Array, frame: str = "bvec") -> Reduce[Verdict]:
    """Declare the check.

    Parameters
    ----------
    image : Image
        Its space.
    directions : Need
        FA and v1 of the voxels in the mask, (4, n) float32 with their packing, and one slice more on both
        sides.
    mask : Array
        (z, y, x), not 0 inside.
    frame : str
        Of v1: that of the bvecs, or "scanner".

    Returns
    -------
    Reduce
        It warns where another table fits better.
    """
    from mpiimg.neuro.kernels.continuity import BLOCK, STEPS, continuity_scores

    depth, height, width = mask.shape
    tables = candidates(image.affine)
    steps = STEPS[:, ::-1] @ np.asarray(image.affine)[:3, :3].T
    steps = steps / np.sqrt((steps**2).sum(axis=1))[:, None]
    back = bvec_to_scanner(image.affine).T if frame == "scanner" else np.eye(3)
    turned = np.stack([steps @ np.array(one.matrix) @ back for one in tables])

    def work(chunk, packed, mask_block):
        start, stop = chunk.bounds["z"]
        below = start - max(start - 1, 0)
        inside = mask_block != 0
        laid_out = np.zeros((4, *mask_block.shape), np.float32)
        laid_out[:, inside] = packed
        fa, v1 = laid_out[0, below:], laid_out[1:, below:]
        scores, counted = continuity_scores(fa, v1, turned, start, stop - start, MIN_FA)
        slices = np.zeros(BLOCK)
        slices[: stop - start] = counted.any(axis=(1, 2))
        return np.concatenate(
            [scores.ravel(), [counted.sum()], slices, counted.any(axis=(0, 2)), counted.any(axis=(0, 1))]
        )

    def finish(rows):
        scores = rows[:, : 2 * len(tables)].sum(axis=0).reshape(2, -1)
        voxels, rest = int(rows[:, 2 * len(tables)].sum()), rows[:, 2 * len(tables) + 1 :]
        extents = {
            "z": np.count_nonzero(rest[:, :BLOCK]),
            "y": np.count_nonzero(rest[:, BLOCK : BLOCK + height].any(axis=0)),
            "x": np.count_nonzero(rest[:, BLOCK + height :].any(axis=0)),
        }
        verdict = judge(tables, scores, voxels, extents)
        return Found(verdict, warnings=tuple(warnings_of(verdict, tables, str(image.path))))

    return Reduce(
        "gradient-check",
        ChunkGrid("z", (depth,), (BLOCK,)),
        reads=(directions, Part(mask, {"z": 1})),
        work=work,
        row=((2 * len(tables) + 1 + BLOCK + height + width,), "float64"),
        finish=finish,
        parameters={"turned": turned.tolist()},
        expected=Verdict((0.0,) * len(tables), ((0.0,) * len(tables),) * 2, 0, None, "not known"),
        cost=("continuity", float(np.prod(mask.shape)) * len(tables)),
        scratch=(BLOCK + 2) * height * width * 4 * 10 + (1 << 20),
    )


def judge(tables: tuple[Candidate, ...], halves: np.ndarray, voxels: int, extents: dict[str, int]) -> Verdict:
    """Say whether another table fits better.

    Parameters
    ----------
    tables : tuple of Candidate
    halves : (2, tables) float64
        Scores of even and of odd blocks.
    voxels : int
        Voxels with a direction.
    extents : mapping of str to int
        Slices with some of them along x, y and z.
    """
    scores = halves.sum(axis=0)
    verdict = {
        "scores": tuple(scores.tolist()),
        "halves": tuple(map(tuple, halves.tolist())),
        "voxels": voxels,
    }
    if voxels < MIN_VOXELS:
        return Verdict(
            **verdict, reason=f"only {voxels} voxels have an FA above {MIN_FA}; {MIN_VOXELS} are needed"
        )
    best = int(scores.argmax())
    if scores[best] < MIN_RATIO * scores[0] and _are_near(tables[0], tables[best]):
        best = 0
    thin = next((axis for axis in tables[best].involved if extents[axis] < MIN_SLICES), None)
    if thin is not None:
        return Verdict(
            **verdict,
            reason=f"only {extents[thin]} slices along {thin} have such voxels; {MIN_SLICES} are needed",
        )
    rivals = [0] if best else [one for one in range(len(tables)) if not _are_near(tables[0], tables[one])]
    if not scores[best] >= MIN_RATIO * scores[rivals].max():
        return Verdict(**verdict, reason="tables fit equally well: fibres hardly go on from voxel to voxel")
    if not all(_are_near(tables[int(half.argmax())], tables[best]) for half in halves):
        return Verdict(**verdict, reason="two halves of the image speak for different tables")
    return Verdict(**verdict, better=best)


def _are_near(one: Candidate, other: Candidate) -> bool:
    """Say whether the directions of two tables differ by less than fibres may turn."""
    turn = np.array(one.matrix).T @ np.array(other.matrix)
    # A direction has no sign, and so an inversion is no turn.
    return bool((np.trace(turn) * np.sign(np.linalg.det(turn)) - 1) / 2 > NEAR)


def warnings_of(verdict: Verdict, tables: tuple[Candidate, ...], where: str) -> list[str]:
    """Return the warning that another table fits better, if one does."""
    if not verdict.better:
        return []
    table = tables[verdict.better]
    how = {
        "voxel": "",
        "scanner": " along scanner axes",
        "unrotated": ", taken as written along scanner axes",
    }[table.axes]
    ratio = verdict.scores[verdict.better] / verdict.scores[0] if verdict.scores[0] > 0 else np.inf
    return [
        f"{where}: fibres go on from voxel to voxel {ratio:.2f} times as well with another table of "
        f"gradients ({table.name}{how}) as with the given one; look at its conversion before directions are "
        "used"
    ]


def scores_text(verdict: Verdict, tables: tuple[Candidate, ...]) -> bytes:
    """Return the scores of all tables as text, the best first, tabs between columns."""
    highest = max(verdict.scores[0], np.finfo(float).tiny)
    lines = ["table\taxes\tscore\tof_given\teven_blocks\todd_blocks"]
    for number in sorted(range(len(tables)), key=lambda one: (-verdict.scores[one], one)):
        score, (even, odd) = verdict.scores[number], (half[number] for half in verdict.halves)
        table = tables[number]
        lines.append(f"{table.name}\t{table.axes}\t{score:.6g}\t{score / highest:.4f}\t{even:.6g}\t{odd:.6g}")
    return ("\n".join(lines) + "\n").encode()


def worded(verdict: Verdict, tables: tuple[Candidate, ...]) -> str:
    """Return what the check came to in words."""
    if verdict.reason:
        return f"not decidable: {verdict.reason}"
    if verdict.better == 0:
        return "the given table fits best"
    return f"another table fits better: {tables[verdict.better].name}"


def described(verdict: Verdict, tables: tuple[Candidate, ...]) -> dict[str, Any]:
    """Return what the sidecar of the scores says."""
    better = verdict.better
    return {
        "Description": "How well fibres go on from voxel to voxel with tables of gradients that have flipped "
        "or swapped axes",
        "Reference": PAPER,
        "Decided": better is not None,
        "Verdict": worded(verdict, tables),
        "Axes": tables[better].axes if better else "voxel",
        "Voxels": verdict.voxels,
        "MinFA": MIN_FA,
        "MinRatio": MIN_RATIO,
    }


def sample_continuity() -> RateSample:
    """Score the tables on a few slices; voxels times tables."""
    from mpiimg.neuro.kernels.continuity import continuity_scores

    rng = np.random.default_rng(4)
    v1 = rng.normal(size=(3, 9, 48, 48)).astype(np.float32)
    v1 /= np.sqrt((v1**2).sum(axis=0))
    fa, turned = np.full((9, 48, 48), 0.5, np.float32), np.ones((24, 13, 3))
    return lambda: continuity_scores(fa, v1, turned, 0, 8, 0.25), 8 * 48 * 48 * 24
