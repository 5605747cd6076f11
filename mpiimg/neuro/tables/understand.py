"""What a gradient table means: units, lengths that encode b-values, volumes without directions, shells.

What the table alone does not tell becomes a question to the image, which is asked when its voxels are there
(questions.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import (
    MAX_B,
    UNIT_TOLERANCE,
    Gradients,
    count_directions,
    lengths,
    unit_vectors,
)
from mpiimg.neuro.tables.files import RawTable
from mpiimg.neuro.tables.options import UNITS, GradientParameters
from mpiimg.neuro.tables.shells import Shell, of_shells, shells_of, told, tolerance

#: Shorter ones are no directions.
NO_DIRECTION = 0.01

#: Components of a vector beyond which it has no length.
LARGEST = 1e100

#: Largest b-value of a table in ms/um^2 may be between these; a table in s/m^2 has at least MIN_SI.
MS_LIMITS, MIN_SI = (0.1, 50.0), 1e6

#: Directions that a tensor needs: a table of fewer is hardly one of weighted volumes in ms/um^2.
MIN_DIRECTIONS = 6

#: Lengths that encode b-values: b is one value within this share, at least so many of the lengths are not 1,
#: and each shell has so many volumes.
NOMINAL_SPREAD, MIN_OFF, MIN_SHELL = 0.05, 0.05, 3

#: A lattice: b-values are these close to b_max k/m, k and m integer, m at most this, and would be by chance
#: with a probability below this one.
LATTICE_TOLERANCE, MAX_LATTICE, LATTICE_CHANCE = 0.01, 50, 1e-4


@dataclass(frozen=True)
class Question:
    """What only the image can tell of a gradient table.

    Parameters
    ----------
    bvals_name, bvecs_name : str
        Of the files, for messages.
    in_ms : bool
        b-values were taken as ms/um^2: does signal fall as it should?
    undirected : tuple of int
        Volumes with a b-value above the threshold and no direction: b0, or trace?
    nominal : tuple of float
        The b-values of these, s/mm^2.
    normalised : Gradients, optional
        Lengths seem to encode b-values: the table with b as it stands, against that with scaled ones.
    """

    bvals_name: str
    bvecs_name: str
    in_ms: bool = False
    undirected: tuple[int, ...] = ()
    nominal: tuple[float, ...] = ()
    normalised: Gradients | None = None

    def __bool__(self) -> bool:
        return self.in_ms or bool(self.undirected) or self.normalised is not None


@dataclass(frozen=True)
class Understood:
    """A gradient table as it is understood.

    Parameters
    ----------
    gradients : Gradients
        Of all volumes of the image; those that are left out have b = 0.
    kept : tuple of int
        The volumes that are used, ascending.
    question : Question
        What is left to the image; false where nothing is.
    is_as_given : bool
        Whether the files say what `gradients` do, in the way that any reader takes.
    warnings : tuple of str
    """

    gradients: Gradients
    kept: tuple[int, ...]
    question: Question
    is_as_given: bool
    warnings: tuple[str, ...]

    @property
    def shells(self) -> tuple[Shell, ...]:
        """The shells of the volumes that are used, and have a direction or are b0s by the table."""
        known = self.gradients.of_volumes(sorted({*self.kept} - {*self.question.undirected}))
        return shells_of(known.bvals, known.b0_threshold)

    def as_record(self) -> dict[str, Any]:
        """Return what run.json says of it."""
        shells = {"shells": [shell.as_record() for shell in self.shells]}
        return shells | ({"undirected": self.question.undirected} if self.question.undirected else {})

    @property
    def note(self) -> str:
        """The shells in words."""
        undirected = len(self.question.undirected)
        return f"{self.gradients.path}: {told(self.shells)}" + (
            f", and {undirected} of another b-value without a direction" if undirected else ""
        )


def understand(raw: RawTable, p: GradientParameters) -> Understood:
    """Understand a gradient table.

    Parameters
    ----------
    raw : RawTable
    p : GradientParameters

    Raises
    ------
    BadInput
        It makes no sense: b-values that are none, a weighted volume whose direction is none, no b0.
    """
    table = _Table(raw, p, kept_volumes(len(raw.bvals), p))
    table.settle_units()
    table.settle_lengths()
    table.settle_shells()
    table.check_b0()
    return table.understood()


def kept_volumes(volumes: int, p: GradientParameters) -> np.ndarray:
    """Return the numbers of the volumes that are not to be dropped.

    Raises
    ------
    BadInput
        One to be dropped is not there, or none is left.
    """
    beyond = [v for v in p.dropped if v >= volumes]
    if beyond:
        raise BadInput(
            f"--drop-volumes {p.drop_volumes}: there is no volume {beyond[0]}; the image has {volumes}, "
            "counted from 0"
        )
    kept = np.setdiff1d(np.arange(volumes), p.dropped)
    if not len(kept):
        raise BadInput(f"--drop-volumes {p.drop_volumes}: leaves no volume")
    return kept


class _Table:
    """A table on its way from numbers to meaning: b-values and vectors of the volumes that are kept."""

    def __init__(self, raw: RawTable, p: GradientParameters, kept: np.ndarray):
        self.raw, self.p, self.kept = raw, p, kept
        self.b, self.g = raw.bvals[kept], raw.bvecs[kept]
        self.warnings = list(raw.warnings)
        self.in_ms, self.normalised = False, None
        self.undirected = np.zeros(len(kept), bool)
        self.is_as_given = raw.is_plain
        # What is no number, or so large that it has no length, says nothing of a direction.
        self.valid = (np.abs(self.g) < LARGEST).all(axis=1)
        self.g = np.where(self.valid[:, None], self.g, 0.0)
        self.length = lengths(self.g)

    @property
    def weighted(self) -> np.ndarray:
        return self.b > self.p.b0_threshold

    def settle_units(self) -> None:
        """Bring b-values to s/mm^2."""
        name, largest = self.raw.bvals_name, self.b.max()
        if not np.isfinite(self.b).all() or self.b.min() < 0:
            raise BadInput(
                f"{name}: b-values must be finite and not negative; --drop-volumes leaves volumes out"
            )
        unit = self.p.b_unit or "s/mm2"
        if self.p.b_unit is None and self._may_be_si(largest):
            unit = "s/m2"
            self.warnings.append(
                f"{name}: b-values up to {largest:g} are taken as s/m^2, and divided by 1e6; "
                "--b-unit says another unit"
            )
        elif self.p.b_unit is None and self._may_be_ms(largest):
            unit, self.in_ms = "ms/um2", True
        self.b = self.b * UNITS[unit]
        self.is_as_given &= unit == "s/mm2"
        if self.b.max() > MAX_B:
            raise BadInput(
                f"{name}: b-values must be at most {MAX_B} s/mm^2, and the largest is {self.b.max():g}; "
                "--b-unit says the unit of the table"
            )

    def _may_be_si(self, largest: float) -> bool:
        low, high = (UNITS["s/mm2"] / UNITS["s/m2"] * b for b in (self.p.b0_threshold, MAX_B))
        return largest >= MIN_SI and low < largest <= high

    def _may_be_ms(self, largest: float) -> bool:
        low, high = MS_LIMITS
        directed = self.valid & (np.abs(self.length - 1) <= UNIT_TOLERANCE) & (self.b >= low)
        return low <= largest <= high and count_directions(self.g[directed]) >= MIN_DIRECTIONS

    def settle_lengths(self) -> None:
        """Bring directions to unit length, or b-values to what lengths say of them."""
        if self.p.b_scaling:
            self._scale()
            return
        self._check_directions()
        self.undirected = self.weighted & (self.length < NO_DIRECTION)
        if self.undirected.any() and (self.undirected == self.weighted).all():
            raise BadInput(
                f"{self.raw.bvecs_name}: none of the {self.weighted.sum()} volumes above "
                f"--b0-threshold {self.p.b0_threshold:g} s/mm^2 has a direction; give the file that belongs "
                "to this image"
            )
        off = self.weighted & ~self.undirected & (np.abs(self.length - 1) > UNIT_TOLERANCE)
        if not off.any():
            return
        encoded = self._encoded()
        if encoded and not self.p.normalise_bvecs:
            directions = np.where(self.undirected[:, None], 0.0, self._units())
            bvals = np.where(self.undirected, 0.0, self.b)
            self.normalised = self._gradients(bvals, directions)
            self._scale()
            return
        if not self.p.normalise_bvecs:
            self._refuse_length(np.flatnonzero(off)[0], "--normalise-bvecs rescales it")
        self.g[off] = unit_vectors(self.g[off])
        self.length[off] = 1.0
        self.is_as_given = False
        but = f", although b multiplied by the square of the length makes {encoded}" if encoded else ""
        self.warnings.append(f"{self.raw.bvecs_name}: {off.sum()} bvecs were rescaled to unit length{but}")

    def _check_directions(self) -> None:
        wrong = np.flatnonzero(self.weighted & ~self.valid)
        if wrong.size:
            self._refuse_length(wrong[0], f"--drop-volumes {self.kept[wrong[0]]} leaves it out")

    def _refuse_length(self, place: int, remedy: str) -> None:
        volume, b = self.kept[place], self.b[place]
        length = f"length {self.length[place]:.4g}, not 1" if self.valid[place] else "no length"
        raise BadInput(
            f"{self.raw.bvecs_name}: the bvec of volume {volume} (b = {b:g}) has {length}; {remedy}"
        )

    def _units(self) -> np.ndarray:
        """Return the directions at unit length; zeros where there is none."""
        directed = self.length >= NO_DIRECTION
        return np.where(directed[:, None], self.g, 0.0) / np.where(directed, self.length, 1.0)[:, None]

    def _scale(self) -> None:
        """Multiply b-values by the squares of lengths, which then are 1."""
        self._check_directions()
        directions = self._units()
        self.b = np.where(self.length >= NO_DIRECTION, self.b * self.length**2, 0.0)
        self.g, self.length = directions, lengths(directions)
        self.undirected[:] = False
        self.is_as_given = False

    def _encoded(self) -> str:
        """Return what b times the squares of lengths makes, where that is shells or a lattice, else ""."""
        weighted = self.weighted
        b, length = self.b[weighted], self.length[weighted]
        if b.max() - b.min() >= NOMINAL_SPREAD * b.mean():
            return ""
        if (np.abs(length - 1) > UNIT_TOLERANCE).mean() < MIN_OFF:
            return ""
        scaled = b * length**2
        scaled = scaled[scaled > self.p.b0_threshold]
        if not scaled.size:
            return ""
        shells = shells_of(scaled, self.p.b0_threshold)
        grouped = all(len(shell.volumes) >= MIN_SHELL and shell.is_narrow for shell in shells)
        # Lengths that are all near 1 are rounded, and encode nothing.
        if grouped and any(abs(shell.b - b.mean()) > tolerance(b.mean()) for shell in shells):
            return f"shells of {' and '.join(f'{shell.b:.0f}' for shell in shells)} s/mm^2"
        steps = _lattice(scaled)
        return f"a lattice of {steps} steps up to {scaled.max():.0f} s/mm^2" if steps else ""

    def settle_shells(self) -> None:
        """Keep the shells that are wanted."""
        if not self.p.wanted_shells:
            return
        # Nominal b-values of volumes without a direction are those of b0s, or these volumes are dropped.
        b = np.where(self.undirected, 0.0, self.b)
        chosen = of_shells(b, self.p.b0_threshold, self.p.wanted_shells)
        if not isinstance(chosen, tuple):
            raise BadInput(
                f"{self.raw.bvals_name}: --shells {self.p.shells}: no volume of b = {chosen:g}; the table "
                "has " + told(shells_of(b, self.p.b0_threshold))
            )
        places = list(chosen)
        self.kept, self.b, self.g, self.length = (
            array[places] for array in (self.kept, self.b, self.g, self.length)
        )
        self.undirected, self.valid = self.undirected[places], self.valid[places]
        if self.normalised is not None:
            self.normalised = self.normalised.of_volumes(places)

    def check_b0(self) -> None:
        if self.undirected.any() or not self.weighted.all():
            return
        if self.p.wanted_shells:
            raise BadInput(f"--shells {self.p.shells}: leaves no b0, which is needed; add 0 to the list")
        raise BadInput(
            f"{self.raw.bvals_name}: no volume with b <= {self.p.b0_threshold:g} s/mm^2 (lowest is "
            f"{self.b.min():g}); a b0 is needed, raise --b0-threshold if that one is meant"
        )

    def _gradients(self, bvals: np.ndarray, bvecs: np.ndarray) -> Gradients:
        """Return the weighting of the volumes that are kept; that of b0s without unit bvecs is zero."""
        off = np.abs(lengths(bvecs) - 1) > UNIT_TOLERANCE
        bvals, bvecs = np.where(off, 0.0, bvals), np.where(off[:, None], 0.0, bvecs)
        return Gradients(
            tuple(bvals.tolist()),
            tuple(map(tuple, bvecs.tolist())),
            float(self.p.b0_threshold),
            self.raw.bvals_name,
        )

    def understood(self) -> Understood:
        """Return what the table means."""
        volumes = len(self.raw.bvals)
        used = self._gradients(self.b, self.g)
        bvals, bvecs = [0.0] * volumes, [(0.0, 0.0, 0.0)] * volumes
        for volume, b, g in zip(self.kept, used.bvals, used.bvecs, strict=True):
            bvals[volume], bvecs[volume] = b, g
        gradients = Gradients(tuple(bvals), tuple(bvecs), used.b0_threshold, used.path)
        question = Question(
            self.raw.bvals_name,
            self.raw.bvecs_name,
            self.in_ms,
            tuple(self.kept[self.undirected].tolist()),
            tuple(self.b[self.undirected].tolist()),
            self.normalised,
        )
        return Understood(
            gradients,
            tuple(self.kept.tolist()),
            question,
            self.is_as_given and not self.undirected.any(),
            tuple(self.warnings),
        )


def _lattice(bvals: Sequence[float]) -> int:
    """Return into how many steps a lattice parts the largest b-value, as that of Cartesian sampling; or 0."""
    b = np.sort(bvals)
    for steps in range(2, MAX_LATTICE + 1):
        k = b * steps / b[-1]
        nearest = np.maximum(np.round(k), 1)
        if (np.abs(k - nearest) <= LATTICE_TOLERANCE * nearest).all():
            # The largest lies on every lattice.
            places = np.setdiff1d(nearest, steps)
            if np.minimum(2 * LATTICE_TOLERANCE * places, 1).prod() < LATTICE_CHANCE:
                return steps
    return 0
