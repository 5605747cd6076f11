"""What is said of every mask: its size, and what makes one doubt that it is a brain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import number_in, parameter
from mpiimg.engine.stage import Found, Reduce, Stages
from mpiimg.neuro.lengths import voxel_sizes
from mpiimg.neuro.masks import Counts, Mask, Signal, count_voxels
from mpiimg.neuro.nifti import Image

#: Shares of the voxels that are not 0 between which a mask is believed.
MIN_SHARE, MAX_SHARE = 0.02, 0.95

#: Share of a mask that its largest piece has at least.
MIN_LARGEST = 0.90

#: Share of a face of the field that a mask may cover.
MAX_FACE = 0.05

#: Heads of adults, children and neonates, in ml; held to where the field could hold a whole head.
HEAD_ML = (500.0, 2300.0)

#: The extent of a field that could hold a whole head, and the smallest voxels of such scans, in mm.
HEAD_FIELD, HEAD_VOXEL = 120.0, 1.0

#: Voxels of an image in which pieces of a mask are looked for: one rank holds their labels.
MAX_LABELLED = 1 << 28

_FACES = tuple(f"the {end} slice along {axis}" for axis in "zyx" for end in ("first", "last"))


def range_form(text: str) -> str:
    """Return a range of volumes as it is kept: the `form` of a parameter.

    Raises
    ------
    ValueError
        It is none.
    """
    low, high = _range(text)
    return f"{low:.12g},{high:.12g}"


def _range(text: str) -> tuple[float, float]:
    numbers = [number_in(word.strip()) for word in text.split(",")]
    if len(numbers) != 2 or None in numbers or not 0 <= numbers[0] < numbers[1] < 1e9:
        raise ValueError("must be two volumes in ml, the smaller one first, as 500,2300")
    return float(numbers[0]), float(numbers[1])


def expect_ml_parameter() -> Any:
    """Declare the parameter that the mask step and all that takes a mask share."""
    return parameter(
        None,
        "A warning is given where the volume of the mask is not between these, as 200,900; without it "
        "where a field that could hold a whole human head has a mask that could not be one.",
        unit="ml",
        metavar="LO,HI",
        of="mask",
        form=range_form,
    )


@dataclass(frozen=True)
class MaskSize:
    """How large a mask is, and where it lies.

    Parameters
    ----------
    counts : Counts
    shape : (int, int, int)
        Voxels of the field along z, y and x.
    sizes : (float, float, float)
        Of a voxel, in mm.
    """

    counts: Counts
    shape: tuple[int, int, int]
    sizes: tuple[float, float, float]

    @property
    def voxels(self) -> int:
        """Inside."""
        return self.counts.offsets[-1]

    @property
    def ml(self) -> float:
        """The volume."""
        return self.voxels * math.prod(self.sizes) / 1000

    @property
    def share(self) -> float:
        """Of the field that is inside."""
        return self.voxels / math.prod(self.shape)

    def about(self) -> dict[str, Any]:
        """Return what sidecars say."""
        return {"VolumeML": float(f"{self.ml:.6g}"), "ShareOfField": float(f"{self.share:.6g}")}

    def doubts(
        self, largest: int | None, expected: tuple[float, float] | None, all_inside: bool
    ) -> list[str]:
        """Return what makes one doubt that the mask is a brain.

        Parameters
        ----------
        largest : int, optional
            Voxels of its largest piece; None where nobody looked.
        expected : (float, float), optional
            The volumes that the user expects, in ml.
        all_inside : bool
            It is meant to hold all voxels that are not 0.
        """
        said = self._doubts_about_share(all_inside)
        if largest is not None and largest < MIN_LARGEST * self.voxels:
            said.append(
                f"its largest piece is {largest / self.voxels:.0%} of it: {self.voxels - largest} voxels "
                "are apart from it; --finalize keeps the largest piece of a computed mask"
            )
        if not all_inside:
            said += self._doubts_about_faces()
        low, high = expected or HEAD_ML
        if (expected or self._could_hold_a_head()) and not low <= self.ml <= high:
            likely = "expected" if expected else "plausible for a human brain"
            said.append(
                f"{self.ml:.4g} ml is not between the {low:g} and {high:g} ml that are {likely}; look at the "
                "mask, or give one with --mask; --expect-ml says what to expect"
            )
        return said

    def _doubts_about_share(self, all_inside: bool) -> list[str]:
        whole = self.counts.with_signal or math.prod(self.shape)
        share = self.voxels / whole
        of = "the voxels that are not 0" if self.counts.with_signal else "the field"
        if share < MIN_SHARE:
            return [f"it holds {share:.2%} of {of}: too few for a brain; look at it, or give one with --mask"]
        if share > MAX_SHARE and not all_inside:
            return [f"it holds {min(share, 1):.0%} of {of}: nearly everything; look at it"]
        return []

    def _doubts_about_faces(self) -> list[str]:
        depth, height, width = self.shape
        areas = (height * width, depth * width, depth * height)
        shares = [count / areas[face // 2] for face, count in enumerate(self.counts.faces)]
        touched = [f"{shares[face]:.0%} of {_FACES[face]}" for face in range(6) if shares[face] > MAX_FACE]
        if not touched:
            return []
        return [
            f"it touches the edge of the field, {', '.join(touched)}: the head is cut off there, or the mask "
            "holds more than the brain"
        ]

    def _could_hold_a_head(self) -> bool:
        extents = [n * size for n, size in zip(self.shape, self.sizes, strict=True)]
        return min(extents) >= HEAD_FIELD and min(self.sizes) >= HEAD_VOXEL - 1e-3


def checked_mask(
    mask: Array,
    image: Image,
    where: str,
    expect_ml: str | None,
    signal: Signal | None = None,
    all_inside: bool = False,
) -> Stages[Mask]:
    """Yield how the voxels of a mask are counted, and what is to be said of it.

    Parameters
    ----------
    mask : Array
        (z, y, x) uint8.
    image : Image
        In whose space it is.
    where : str
        The mask's name in messages.
    expect_ml : str, optional
        The volumes that are expected, as :func:`range_form` has them.
    signal : Signal, optional
        Where the image is not 0.
    all_inside : bool
        It is meant to hold all voxels that are not 0.

    Returns
    -------
    Mask
        With its size in `about`.
    """
    counts = yield count_voxels(mask, where, signal)
    size = MaskSize(counts, mask.shape, voxel_sizes(image))
    yield _say(mask, where, size, None if expect_ml is None else _range(expect_ml), all_inside)
    return Mask(mask, counts.offsets, size.about())


def _say(
    mask: Array, where: str, size: MaskSize, expected: tuple[float, float] | None, all_inside: bool
) -> Reduce[None]:
    """Declare the search for the largest piece; its end says what there is to say of the mask.

    One chunk, since a piece may cross all slices. Voxels of a piece touch each other by their faces.
    """
    depth = mask.shape[0]
    is_small = math.prod(mask.shape) <= MAX_LABELLED

    def work(chunk, *block):
        from scipy.ndimage import label

        if not block:
            return -1
        labels = np.empty(mask.shape, np.int32)
        pieces = label(block[0], output=labels)
        counts = np.zeros(pieces + 1, np.int64)
        for one in labels:
            counts += np.bincount(one.ravel(), minlength=pieces + 1)
        return counts[1:].max(initial=0)

    def finish(rows):
        largest = int(rows[0]) if is_small else None
        doubts = size.doubts(largest, expected, all_inside)
        note = f"{where}: {size.voxels} voxels, {size.ml:.4g} ml, {size.share:.1%} of the field"
        return Found(None, tuple(f"{where}: {doubt}" for doubt in doubts), (note,))

    return Reduce(
        "mask-pieces",
        ChunkGrid("z", (depth,), (depth,)),
        reads=(Part(mask),) if is_small else (),
        work=work,
        row=((), "int64"),
        finish=finish,
        parameters={},
        scratch=4 * math.prod(mask.shape) + (1 << 20) if is_small else 0,
    )
