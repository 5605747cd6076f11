"""Shells: groups of volumes of one b-value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: How far the b-value of a volume may be from its shell's: this share of it, or so many s/mm^2.
TOLERANCE, LEAST_TOLERANCE = 0.05, 20.0

#: Shells that are told one by one; more are those of a lattice.
MAX_TOLD = 12


@dataclass(frozen=True)
class Shell:
    """Volumes of one b-value.

    Parameters
    ----------
    b : float
        Their mean, s/mm^2.
    volumes : tuple of int
        Ascending.
    low, high : float
        The least and the largest of their b-values, s/mm^2.
    """

    b: float
    volumes: tuple[int, ...]
    low: float
    high: float

    @property
    def is_narrow(self) -> bool:
        """Whether all its volumes have the b-value of the shell, within the tolerance."""
        return max(self.b - self.low, self.high - self.b) <= tolerance(self.b)

    def as_record(self) -> dict:
        """Return what records say of it."""
        return {"b": round(self.b, 3), "volumes": len(self.volumes), "low": self.low, "high": self.high}


def tolerance(b: float) -> float:
    """Return how far from `b` the b-values of its shell may be, s/mm^2."""
    return max(TOLERANCE * b, LEAST_TOLERANCE)


def shells_of(bvals: Sequence[float], b0_threshold: float) -> tuple[Shell, ...]:
    """Group volumes by their b-values, ascending; those at or below the threshold are one shell."""
    b = np.asarray(bvals, np.float64)
    order = np.argsort(b, kind="stable")
    groups: list[list[int]] = []
    for volume in order.tolist():
        before = b[groups[-1][-1]] if groups else -np.inf
        is_b0 = b[volume] <= b0_threshold
        joins = is_b0 if before <= b0_threshold else b[volume] - before <= tolerance(before)
        if groups and joins:
            groups[-1].append(volume)
        else:
            groups.append([volume])
    return tuple(
        Shell(float(b[group].mean()), tuple(sorted(group)), float(b[group].min()), float(b[group].max()))
        for group in groups
    )


def told(shells: Sequence[Shell]) -> str:
    """Return shells in words: "2 volumes of b = 0, 30 of b = 1000 (995 to 1005) s/mm^2"."""
    if len(shells) > MAX_TOLD:
        count = sum(len(shell.volumes) for shell in shells)
        return (
            f"{count} volumes of {len(shells)} b-values from {shells[0].b:.0f} to {shells[-1].b:.0f} s/mm^2"
        )
    words = []
    for number, shell in enumerate(shells):
        noun = "" if number else " volume" if len(shell.volumes) == 1 else " volumes"
        spread = f" ({shell.low:.0f} to {shell.high:.0f})" if shell.high - shell.low >= 1 else ""
        words.append(f"{len(shell.volumes)}{noun} of b = {shell.b:.0f}{spread}")
    return ", ".join(words) + " s/mm^2"


def of_shells(
    bvals: Sequence[float], b0_threshold: float, wanted: Sequence[float]
) -> tuple[int, ...] | float:
    """Return the volumes of some shells, ascending; or the b-value that no volume has.

    A shell is the volumes whose b-value is within the tolerance; 0 stands for those up to the threshold.
    """
    b = np.asarray(bvals, np.float64)
    chosen = np.zeros(len(b), bool)
    for value in wanted:
        is_b0 = b <= b0_threshold
        member = is_b0 if value <= b0_threshold else ~is_b0 & (np.abs(b - value) <= tolerance(value))
        if not member.any():
            return value
        chosen |= member
    return tuple(np.flatnonzero(chosen).tolist())
