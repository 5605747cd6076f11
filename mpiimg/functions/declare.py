"""Declarations of users' functions: the blocks that they are called on, and their results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from mpiimg.errors import BadInput

#: Kinds of blocks that a function may be called on.
OVER = ("slabs", "volumes", "voxels", "exposures", "patches")


#: Those of surveys; the others are of images.
OVER_SURVEYS = ("exposures", "patches")


#: Types that images are written in.
WRITTEN = ("u1", "i2", "i4", "u2", "u4", "i8", "u8", "f4", "f8")

#: Limits of what a function declares of its blocks.
LIMITS = {"halo": (0, 100_000), "components": (1, 32_767), "slices": (1, 100_000)}


F = TypeVar("F")


_DECLARED = "__mpiimg_udf__"


@dataclass(frozen=True)
class Declaration:
    """What a function says of itself.

    Parameters
    ----------
    over : str
        What it is called on: "slabs" (x, y, z), z-blocks of one volume; "volumes" (x, y, z), one volume;
        "voxels" (x, y, z, t), z-blocks with all volumes; "exposures"; "patches".
    halo : int
        Slices more on both sides that it needs to be right inside.
    dtype : str, optional
        Type of the result; None for the type that it returns.
    components : int, optional
        Values per voxel that it returns, for "voxels"; None for as many as it returns.
    slices : int, optional
        Slices in a block, without the halo; None for a choice that follows from the image's shape.

    Raises
    ------
    BadInput
        A value makes no sense.
    """

    over: str = "slabs"
    halo: int = 0
    dtype: str | None = None
    components: int | None = None
    slices: int | None = None

    def __post_init__(self):
        if self.over not in OVER:
            raise BadInput(f"over is one of {', '.join(OVER)}, not {self.over!r}")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and low <= value <= high):
                raise BadInput(
                    f"{name} of a user's function is a whole number from {low} to {high}, not {value!r}"
                )
        if self.halo and self.over not in ("slabs", "voxels"):
            raise BadInput(f"a halo goes with slabs and voxels: {self.over} are never cut")
        if self.components and self.over != "voxels":
            raise BadInput(
                f"components go with voxels: a function over {self.over} returns the shape that it got"
            )
        if self.dtype is not None:
            object.__setattr__(self, "dtype", written_dtype(self.dtype))


def written_dtype(dtype: Any) -> str:
    """Return the name of the type that values of `dtype` are written in; truth values are uint8.

    Raises
    ------
    BadInput
        No image holds such values.
    """
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
        raise BadInput(f"dtype {dtype!r}: numpy knows no such type; e.g. float32, int16, uint8") from None
    kind = np.dtype("u1") if kind.kind == "b" else kind
    if kind.str[1:] not in WRITTEN:
        raise BadInput(f"dtype {kind.name}: no image holds it; return or declare e.g. float32")
    return kind.newbyteorder("=").name


def udf(
    function: F | None = None,
    *,
    over: str = "slabs",
    halo: int = 0,
    dtype: str | None = None,
    components: int | None = None,
    slices: int | None = None,
) -> F | Callable[[F], F]:
    """Declare a function, or a class with partial, merge and finish, that mpiimg calls on blocks.

    Parameters
    ----------
    function : callable
        Stays as it is, and is called as before.
    over : {"slabs", "volumes", "voxels", "exposures", "patches"}
        "slabs" (x, y, z), z-blocks of each volume; "volumes" (x, y, z), each volume; "voxels"
        (x, y, z, t), z-blocks with all volumes; "exposures" (image, variance, mask); "patches", the exposures
        that overlap on a strip of a patch.
    halo : int
        Slices more on both sides, where the image has them; they are cut off the result.
    dtype : str, optional
        Type of the result, e.g. "float32"; by default the type that the function returns.
    components : int, optional
        Values per voxel in the result of "voxels"; by default as many as the function returns.
    slices : int, optional
        Slices in a block, without the halo; by default a choice that follows from the image's shape.

    Raises
    ------
    BadInput
        A value makes no sense.
    """
    declared = Declaration(over, halo, dtype, components, slices)

    def declare(function: F) -> F:
        try:
            setattr(function, _DECLARED, declared)
        except AttributeError:
            raise BadInput(f"{function!r} cannot be declared: put it into a function") from None
        return function

    return declare if function is None else declare(function)


def declaration(function: Any) -> Declaration:
    """Return what `udf` declared of a function, or the default."""
    return getattr(function, _DECLARED, Declaration())


def is_aggregate(function: Any) -> bool:
    """Say whether a user's class has partial results to merge."""
    return hasattr(function, "partial") and not isinstance(function, functools.partial)
