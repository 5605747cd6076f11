"""What a user may say of gradients and volumes, whatever tool reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mpiimg.engine.parameters import number_in, parameter
from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import MAX_B
from mpiimg.neuro.mask_checks import expect_ml_parameter

#: s/mm^2 that each unit of b-values stands for.
UNITS = {"s/mm2": 1.0, "ms/um2": 1e3, "s/m2": 1e-6}

#: Volumes that a list may name: no series has more, and a list is made of it.
MAX_VOLUMES = 1 << 20


@dataclass(frozen=True)
class GradientParameters:
    """How a gradient table is read, and which volumes are used.

    Raises
    ------
    BadInput
        A list is none, or two say against each other.
    """

    b0_threshold: float = parameter(
        50.0,
        "Volumes with a b-value up to this one count as b0.",
        unit="s/mm^2",
        limits=(0, MAX_B),
        of="gradients",
    )
    b_unit: str | None = parameter(
        None,
        "The table has its b-values in this unit (default: s/mm^2, if table and image do not say another).",
        choices=tuple(UNITS),
        of="gradients",
    )
    b_scaling: bool = parameter(
        False,
        "The lengths of bvecs encode b-values: b is multiplied by the square of the length, as in MRtrix3.",
        of="gradients",
    )
    normalise_bvecs: bool = parameter(
        False, "Bvecs that are not of unit length are rescaled, with a warning.", of="gradients"
    )
    shells: str | None = parameter(
        None,
        "Only the volumes of these shells are used, as in 0,1000; each within 5 percent or 20 s/mm^2.",
        unit="s/mm^2",
        metavar="LIST",
        of="gradients",
    )
    drop_volumes: str | None = parameter(
        None,
        "These volumes are left out of everything, counted from 0, as in 0,3,10-12.",
        metavar="LIST",
    )
    expect_ml: str | None = expect_ml_parameter()

    def __post_init__(self):
        if self.b_scaling and self.normalise_bvecs:
            raise BadInput(
                "--b-scaling takes the lengths of bvecs for b-values, and --normalise-bvecs takes them for "
                "mistakes; give one of them"
            )
        self.dropped, self.wanted_shells  # noqa: B018  (refused now, and not when images are read)

    @property
    def dropped(self) -> tuple[int, ...]:
        """The volumes that are left out, ascending."""
        return () if self.drop_volumes is None else numbers_of(self.drop_volumes, "--drop-volumes")

    @property
    def wanted_shells(self) -> tuple[float, ...]:
        """The b-values of the shells that are used; none where all are."""
        if self.shells is None:
            return ()
        values = [number_in(word.strip()) for word in self.shells.split(",")]
        if not all(value is not None and 0 <= value <= MAX_B for value in values):
            raise BadInput(f"--shells {self.shells}: give b-values with commas between them, as in 0,1000")
        return tuple(map(float, values))


def numbers_of(text: str, flag: str) -> tuple[int, ...]:
    """Return the numbers that a list names, ascending, each once: 0,3,10-12.

    Raises
    ------
    BadInput
        It is no such list.
    """
    numbers: set[int] = set()
    for word in text.split(","):
        matched = re.fullmatch(r"(\d{1,9})(?:[-:](\d{1,9}))?", word.strip(), re.ASCII)
        first, last = (int(matched[1]), int(matched[2] or matched[1])) if matched else (1, 0)
        if last < first or last >= MAX_VOLUMES:
            raise BadInput(f"{flag} {text}: give volumes counted from 0, as in 0,3,10-12")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))
