"""Brain mask from the b0 volumes: their mean, repeated median filter, Otsu threshold.

The method is dipy's median_otsu. From the float64 mean on (one cast to
float32), the result is that of scipy's median filter and dipy's own copy of
Otsu's threshold to the last bit. scikit-image's Otsu, which dipy takes where it
is installed, differs by some voxels. Where that would be no brain, for hot
voxels or for want of a background, the mask is another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.halo import extended
from mpiimg.engine.needs import Part, Rows
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Compute, Found, Reduce, Stages
from mpiimg.errors import BadInput
from mpiimg.neuro.images import finite
from mpiimg.neuro.kernels.otsu import MAGNITUDES
from mpiimg.neuro.lengths import Length
from mpiimg.neuro.masks import Brain, Signal, slabs, volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of

PAPER = "Otsu 1979, doi:10.1109/TSMC.1979.4310076; median_otsu of DIPY, doi:10.3389/fninf.2014.00008"

#: Voxels outside the mask whose median is above this share of that inside are tissue, and no background.
MAX_BACKGROUND = 0.45

#: Bins of the values inside and outside a mask, whose medians are compared.
BACKGROUND_BINS = 2048


class Radius(NamedTuple):
    """A median radius along z, y and x, and the length that it follows from."""

    length: Length
    voxels: tuple[int, int, int]
    is_cut: bool = False

    def __str__(self):
        return " x ".join(map(str, self.voxels[::-1])) + " voxels along x, y and z"


class Span(NamedTuple):
    """The smallest and the largest value of an image that is not hot, and how many voxels are hot."""

    low: np.float32
    high: np.float32
    hot: int = 0


def median_otsu(
    image: Image, dwi: Array, b0: tuple[int, ...], passes: int, radius: Radius, is_dipys: bool
) -> Stages[Brain]:
    """Yield the mask from the unweighted volumes.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    b0 : tuple of int
        The unweighted volumes, ascending.
    passes : int
        Of the median filter.
    radius : Radius
    is_dipys : bool
        The mask is that of DIPY's function to the voxel, though there be hot voxels or no background.
    """
    where = str(image.path)
    mean = smooth = volume(image, "b0", "float32")
    yield b0_mean(image, dwi, b0, mean)
    for number in range(1, passes + 1):
        rough, smooth = smooth, volume(image, f"median-{number}", "float32")
        yield median(rough, smooth, number, radius.voxels)
    span = yield value_range(smooth, where, radius, is_dipys)
    level = yield otsu(smooth, span)
    has_background = yield background(mean, smooth, level, span, where, is_dipys)
    mask = volume(image, "thresholded", "uint8")
    is_everything = not (has_background or is_dipys)
    yield not_zero(mean, mask) if is_everything else above_threshold(smooth, level, span, mask)
    method = "median_otsu: mean b0, median filter, Otsu's threshold (DIPY's)"
    about = {
        "Method": "all voxels that are not 0, since there is no background" if is_everything else method,
        "MedianRadius": str(radius.length),
        "MedianRadiusVoxels": radius.voxels[::-1],
        "Passes": passes,
        "Threshold": float(level),
    }
    return Brain(mask, about, Signal(Part(mean), lambda block: block), is_everything)


# --- Stages -----------------------------------------------------------------------------------------------


def b0_mean(image: Image, dwi: Array, b0: tuple[int, ...], mean: Array) -> Compute:
    """Declare the mean of the unweighted volumes: in float64, in their order, rounded once.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    b0 : tuple of int
        The unweighted volumes, ascending.
    mean : Array
        (z, y, x) float32, written.
    """

    def work(chunk, block):
        total = np.zeros(block.shape[1:])
        for one in block:
            total += finite(image.scaled(one))
        return ((total / len(b0)).astype(np.float32),)

    return Compute(
        "b0-mean",
        slabs(image.shape[-3]),
        reads=(Rows(dwi, b0),),
        writes=(mean,),
        work=work,
        parameters={"b0": b0, "slope": image.slope, "inter": image.inter},
    )


def median(source: Array, smooth: Array, number: int, radius: tuple[int, int, int]) -> Compute:
    """Declare a median filter over a box, edges mirrored.

    Parameters
    ----------
    source : Array
        (z, y, x) float32.
    smooth : Array
        Likewise, written.
    number : int
        Of the pass, from 1.
    radius : (int, int, int)
        Along z, y and x; the box has 2 radius + 1 voxels along each axis.
    """
    depth, halo = source.shape[0], radius[0]

    def work(chunk, block):
        from mpiimg.neuro.kernels.median import median_filter

        return (median_filter(extended(block, chunk.bounds["z"], halo, depth, edge=True), radius),)

    return Compute(
        f"median-{number}",
        slabs(depth),
        reads=(Part(source, {"z": halo}),),
        writes=(smooth,),
        work=work,
        parameters={"radius": radius},
        cost=("median", float(np.prod(source.shape)) * math.prod(2 * one + 1 for one in radius) ** (2 / 3)),
    )


def value_range(source: Array, where: str, radius: Radius, is_dipys: bool) -> Reduce[Span]:
    """Declare the search for the smallest and largest value, between which Otsu's histogram lies.

    Parameters
    ----------
    source : Array
        (z, y, x) float32.
    where : str
        The image's name in messages.
    radius : Radius
        Of the median filter, which is said.
    is_dipys : bool
        No voxel counts as hot.

    Returns
    -------
    Reduce
        Its end raises BadInput where all values are the same.
    """

    def work(chunk, block):
        from mpiimg.neuro.kernels.otsu import magnitudes

        return magnitudes(block)

    def finish(rows):
        from mpiimg.neuro.kernels.otsu import without_hot

        low, high, hot = without_hot(rows)
        top = np.float32(rows[:, :, 2].max())
        if is_dipys or low == high:
            high, hot = top, 0
        if low == high:
            raise BadInput(
                f"{where}: the smoothed b0 is {low:g} everywhere: there is no brain to find; "
                "give a mask with --mask, or a smaller --median-radius"
            )
        warning = (
            f"{where}: {hot} voxels of the smoothed b0 are hot or saturated: they are above {high:g}, the "
            f"largest value of all others, by {top - high:g} or less; the mask is found without them"
        )
        length = f"{radius.length}, " if radius.length.unit == "mm" else ""
        note = f"{where}: the median radius is {length}{radius}"
        return Found(Span(low, high, hot), (warning,) if hot else (), (note,))

    return Reduce(
        "range",
        slabs(source.shape[0]),
        reads=(Part(source),),
        work=work,
        row=((MAGNITUDES, 3), "float64"),
        finish=finish,
        parameters={"is_dipys": is_dipys},
        expected=Span(np.float32(0), np.float32(1)),
    )


def otsu(source: Array, span: Span) -> Reduce[np.float32]:
    """Declare Otsu's threshold from the sum of the chunks' histograms.

    Parameters
    ----------
    source : Array
        (z, y, x) float32.
    span : Span
        Of its values; those above are left out.
    """

    def work(chunk, block):
        from mpiimg.neuro.kernels.otsu import histogram

        return histogram(block, span.low, span.high)

    def finish(rows):
        from mpiimg.neuro.kernels.otsu import threshold

        return Found(threshold(rows.sum(axis=0), span.low, span.high))

    return Reduce(
        "otsu",
        slabs(source.shape[0]),
        reads=(Part(source),),
        work=work,
        row=((256,), "int64"),
        finish=finish,
        parameters={"low": float(span.low), "high": float(span.high)},
        expected=np.float32(0),
    )


def background(
    mean: Array, smooth: Array, level: np.float32, span: Span, where: str, is_dipys: bool
) -> Reduce[bool]:
    """Declare the look for a background: voxels outside the mask, not 0, that are much darker than the brain.

    Parameters
    ----------
    mean, smooth : Array
        (z, y, x) float32: the mean of the unweighted volumes, and what is cut at `level`.
    level : float32
    span : Span
        Of `smooth`.
    where : str
        The image's name in messages.
    is_dipys : bool
        The mask is left as it is.

    Returns
    -------
    Reduce
        False where there is none. Its end warns of that.
    """
    # Of the bins for the medians, up to twice the smoothed maximum; what is brighter is in the last one.
    top = 2 * max(float(span.high), 1e-30)

    def work(chunk, values, smooth_values):
        inside = smooth_values > level
        parts = values[inside], values[~inside & (values != 0)]
        return [np.histogram(np.clip(part, 0, top), BACKGROUND_BINS, (0, top))[0] for part in parts]

    def finish(rows):
        inside, outside = rows.sum(axis=0)
        if (
            not inside.any()
            or not outside.any()
            or _median_bin(outside) <= MAX_BACKGROUND * _median_bin(inside)
        ):
            return Found(True)
        share = outside.sum() / (inside.sum() + outside.sum())
        choice = "left out" if is_dipys else "taken in, as all voxels that are not 0"
        other = "--mask-method median_otsu takes it in" if is_dipys else "--mask-method dipy leaves it out"
        warning = (
            f"{where}: no background: what lies below Otsu's threshold, {share:.0%} of the voxels that are "
            f"not 0, is nearly as bright as the rest; it is {choice} ({other}); --mask takes one of yours"
        )
        return Found(False, (warning,))

    return Reduce(
        "background",
        slabs(mean.shape[0]),
        reads=(Part(mean), Part(smooth)),
        work=work,
        row=((2, BACKGROUND_BINS), "int64"),
        finish=finish,
        parameters={"level": float(level), "top": top, "is_dipys": is_dipys},
        expected=True,
    )


def _median_bin(counts: np.ndarray) -> float:
    """Return the middle of the bin that holds the median."""
    return float(np.searchsorted(counts.cumsum(), (counts.sum() + 1) // 2)) + 0.5


def not_zero(mean: Array, mask: Array) -> Compute:
    """Declare the mask of all voxels that are not 0."""
    return Compute(
        "threshold",
        slabs(mean.shape[0]),
        reads=(Part(mean),),
        writes=(mask,),
        work=lambda chunk, block: (block != 0,),
        parameters={"level": None},
    )


def above_threshold(source: Array, level: np.float32, span: Span, mask: Array) -> Compute:
    """Declare the mask of the voxels strictly above the threshold that are not hot."""
    return Compute(
        "threshold",
        slabs(source.shape[0]),
        reads=(Part(source),),
        writes=(mask,),
        work=lambda chunk, block: ((block > level) & (block <= span.high),),
        parameters={"level": float(level), "high": float(span.high)},
    )


def sample_median() -> RateSample:
    """Filter a block of slices; voxels times the columns of a cube."""
    image, voxels = image_of((24, 64, 64))
    stage = median(volume(image, "b0", "float32"), volume(image, "smooth", "float32"), 1, (4, 4, 4))
    return chunk_sample(stage, 0, voxels[:6].astype(np.float32))
