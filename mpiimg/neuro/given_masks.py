"""Masks that others made: which of their voxels are inside, by what their values look like."""

from __future__ import annotations

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Compute, Found, Reduce, Stages
from mpiimg.neuro.images import finite
from mpiimg.neuro.masks import slabs
from mpiimg.neuro.nifti import Image

#: Values between which fractions are probabilities; splines overshoot.
PROBABILITIES = (-0.25, 1.25)

#: Voxels of at least this probability are inside.
CUT = 0.5

#: Labels below this are told apart.
MAX_LABEL = 256

#: Labels that a message names.
MAX_NAMED = 8


def take_given(image: Image, voxels: Array, mask: Array, where: str) -> Stages[None]:
    """Yield how a mask that somebody else made is taken.

    What is not 0 is inside; of probabilities, what is at least 0.5. NaN and infinities are outside.

    Parameters
    ----------
    image : Image
        Whose values `voxels` holds.
    voxels : Array
        (z, y, x).
    mask : Array
        (z, y, x) uint8, written.
    where : str
        The mask's name in messages.
    """
    is_probable = yield _look(image, voxels, where)

    def work(chunk, block):
        values = finite(image.scaled(block))
        return (values >= CUT if is_probable else values != 0,)

    yield Compute(
        "mask-in",
        slabs(image.shape[-3]),
        reads=(Part(voxels),),
        writes=(mask,),
        work=work,
        parameters={"slope": image.slope, "inter": image.inter, "probabilities": bool(is_probable)},
    )


def _look(image: Image, voxels: Array, where: str) -> Reduce[bool]:
    """Declare a look at all values.

    Returns
    -------
    Reduce
        Whether they are probabilities.
    """
    return Reduce(
        "mask-values",
        slabs(image.shape[-3]),
        reads=(Part(voxels),),
        work=lambda chunk, block: value_row(image.scaled(block)),
        row=((4 + MAX_LABEL,), "float64"),
        finish=lambda rows: judged(rows, where),
        parameters={"slope": image.slope, "inter": image.inter},
        expected=False,
    )


def value_row(values: np.ndarray) -> np.ndarray:
    """Return of the values of a chunk what is told of them.

    Returns
    -------
    (4 + MAX_LABEL,) float64
        Voxels that are not finite, and that hold fractions; the smallest and the largest value that is not 0
        (infinities where there is none); and how many voxels hold each label below MAX_LABEL.
    """
    row = np.zeros(4 + MAX_LABEL)
    row[2:4] = np.inf, -np.inf
    whole = np.isfinite(values)
    row[0] = values.size - np.count_nonzero(whole)
    values = values[whole & (values != 0)]
    if values.size:
        row[2:4] = values.min(), values.max()
    is_integer = values == np.rint(values)
    row[1] = np.count_nonzero(~is_integer)
    labels = values[is_integer & (values > 0) & (values < MAX_LABEL)].astype(np.int64)
    row[4:] = np.bincount(labels, minlength=MAX_LABEL)
    return row


def judged(rows: np.ndarray, where: str) -> Found[bool]:
    """Say whether the values of a mask are probabilities, and warn where they are no plain mask."""
    broken, fractions = rows[:, 0].sum(), rows[:, 1].sum()
    low, high = rows[:, 2].min(), rows[:, 3].max()
    warnings = []
    if broken:
        warnings.append(f"{where}: {broken:.0f} voxels are NaN or infinite, and count as outside")
    is_probable = bool(fractions and low < high and PROBABILITIES[0] <= low and high <= PROBABILITIES[1])
    if is_probable:
        warnings.append(
            f"{where}: its values are probabilities, up to {high:.4g}: voxels of at least {CUT} are inside"
        )
    elif fractions and low < high:
        warnings.append(
            f"{where}: its values, from {low:.4g} to {high:.4g}, are those of an image and not of a "
            "mask: all voxels that are not 0 are inside"
        )
    elif low < high:
        warnings.append(f"{where}: it holds labels, {_labels(rows, low, high)}: all but 0 are inside")
    return Found(is_probable, tuple(warnings))


def _labels(rows: np.ndarray, low: float, high: float) -> str:
    labels = np.flatnonzero(rows[:, 4:].sum(axis=0)).tolist()
    has_others = low < 0 or high >= MAX_LABEL
    if has_others or len(labels) > MAX_NAMED:
        count = f"{len(labels)} or more" if has_others else len(labels)
        return f"{count} of them from {low:.0f} to {high:.0f}"
    return ", ".join(map(str, labels))
