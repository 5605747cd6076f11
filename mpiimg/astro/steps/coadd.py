"""Co-addition: the warps of a patch, clipped and averaged in strips of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.astro import mosaic
from mpiimg.astro.artifacts import find_artifacts
from mpiimg.astro.comparison import GUARD, HIT_SIGMA
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.writing import history_lines
from mpiimg.astro.patch_files import PatchOptions, write_patches
from mpiimg.astro.rejections import write_rejected
from mpiimg.astro.samples import frame
from mpiimg.astro.seeing import tract_fwhm
from mpiimg.astro.sky.layout import Layout, PatchPlanes
from mpiimg.astro.strips import (
    EXCLUDED,
    empty_strip,
    exclude,
    refuse_overflow,
    stack_bytes,
    stacked,
    strip_needs,
    strip_weights,
)
from mpiimg.astro.survey import Survey, footprint_units, lost_footprints, strip_units, tract_document
from mpiimg.engine.needs import At, Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.stage import Compute, Files, Found, Reduce, Sink, Stages
from mpiimg.engine.step import Inspection, Output, Step


@dataclass(frozen=True)
class Coaddition(PatchOptions):
    """How warps are combined."""

    statistic: str = parameter(
        "compare",
        "Inputs are averaged but for artifacts, such as trails of satellites, which a comparison with the "
        "other exposures at one seeing finds (compare); or once outliers have been clipped, which takes "
        "light of stars where one exposure is sharper than the others (clip); or all of them (mean). Or "
        "their median is taken, whose noise is 25 % higher (median).",
        choices=("compare", "clip", "mean", "median"),
    )
    sigma: float = parameter(
        3.0,
        "With --statistic clip, inputs farther from the mean than this are left out.",
        unit="standard deviations",
        limits=(0.1, 1000),
    )
    passes: int = parameter(2, "With --statistic clip, inputs are clipped so many times.", limits=(0, 100))
    weights: str = parameter(
        "exposure",
        "Inputs are weighted by exposure: by 1 / the variance of its sky on the patch. Weights by pixel are "
        "not offered: they make the sky negative, and bright stars faint.",
        choices=("exposure",),
    )
    reject_cr: bool = parameter(False, "Pixels repaired from cosmic rays are left out.")
    weight: bool = parameter(False, "Patches get a plane WEIGHT: inverse variance, 0 without data.")


def coaddition_history(p: Coaddition) -> tuple[str, ...]:
    """Return the lines of HISTORY of a coadd."""
    excluded = ", ".join([*EXCLUDED, *["CR"] * p.reject_cr])
    how = {
        "clip": f" beyond {p.sigma:g} sigma, {p.passes} passes",
        "compare": f": mean without what stands out by {HIT_SIGMA:g} sigma and {GUARD:g} of the light nearby",
    }
    return history_lines(
        "coadd", f"{p.statistic}{how.get(p.statistic, '')}; weights by {p.weights}; without {excluded} pixels"
    )


def inspect(state: Survey, p: Coaddition) -> Inspection:
    """Say which parameters have no part in the statistic that is asked for."""
    usual = Coaddition()
    unused = [
        f"--{name} {getattr(p, name):g}"
        for name in ("sigma", "passes")
        if p.statistic != "clip" and getattr(p, name) != getattr(usual, name)
    ]
    text = f"{' and '.join(unused)}: not used by --statistic {p.statistic}; give --statistic clip to clip"
    return Inspection(warnings=(text,) if unused else ())


def stages(state: Survey, p: Coaddition, data: None) -> Stages[Survey]:
    """Weigh the exposures on each patch, combine them, and look whether clipping could do its work."""
    weights = yield weigh(state)
    state = state.without_patches(_unweighted(state.layout, weights))
    weights = tuple(np.nan_to_num(weights).tolist())
    patches = state.layout.patch_planes(variance_ls=state.warps.variance_ls is not None)
    state = state.with_patches(
        patches, weights=weights, weight_plane=p.weight, compress=state.compress or p.compress
    )
    artifacts = None
    if p.statistic == "compare":
        widths = tract_fwhm(state)
        fwhm = tuple(widths[part.exposure] for part in state.layout.footprints)
        artifacts, state = yield from find_artifacts(state, fwhm, weights)
        state = dataclasses.replace(state, artifacts=artifacts)
    state = state.without_strips((yield coadd(state, p)))
    if p.statistic == "compare" or (p.statistic == "clip" and p.passes):
        yield few_inputs(state.layout, patches, p)
    return (yield from mosaic.measure(state))


def weigh(state: Survey) -> Reduce[tuple[float, ...]]:
    """Weigh an exposure on a patch by the inverse of its median variance there, which is that of its sky.

    By the large-scale variance where there is one: that of pixels also depends on how they fall on the
    exposure's.
    """
    layout, lost = state.layout, lost_footprints(state)

    def partial(chunk, variance):
        if chunk.number in lost:
            return 0.0
        positive = variance[np.isfinite(variance) & (variance > 0)]
        with np.errstate(over="ignore"):  # a variance next to nothing: the coadd says which patches it spoils
            return 1 / np.median(positive) if positive.size else 0.0

    def finish(rows):
        used = {layout.footprints[number].patch for number in np.flatnonzero(rows)}
        empty = [patch for number, patch in enumerate(layout.patches) if number not in used]
        warnings = tuple(
            f"{patch.name} in {patch.band}: no exposure is left that reaches it: it holds no data"
            for patch in empty
        )
        return Found(tuple(rows.tolist()), warnings)

    return Reduce(
        "weigh",
        layout.footprint_grid,
        reads=(
            Part(state.warps.variance_ls if state.warps.variance_ls is not None else state.warps.variance),
        ),
        work=partial,
        row=((), "float64"),
        finish=finish,
        finish_bytes=100 * len(layout.footprints),
        units=footprint_units(state),
        without=np.nan,
        parameters={"lost": sorted(lost)},
        expected=(1.0,) * len(layout.footprints),
        cost=("weigh", float(layout.warped_pixels)),
    )


def _unweighted(layout: Layout, weights: Sequence[float]) -> dict[int, str]:
    """Return the patches on which the weight of an exposure could not be found, and that it is so."""
    failed = np.flatnonzero(np.isnan(weights)).tolist()
    return {layout.footprints[number].patch: "an exposure on it could not be weighed" for number in failed}


def coadd(state: Survey, p: Coaddition) -> Compute:
    """Declare the coadd of every strip of every patch."""
    layout, weights, lost = state.layout, state.weights, lost_footprints(state)
    variance_ls = state.patches.variance_ls is not None
    warps, how = state.warps.arrays, "mean" if p.statistic == "compare" else p.statistic
    further = () if state.artifacts is None else (state.artifacts,)

    def work(chunk, *blocks):
        from mpiimg.astro.kernels.coadd import MaskValues, combine
        from mpiimg.astro.kernels.middle import combine_median

        strip = layout.strips[chunk.number]
        planes = empty_strip(strip.box, variance_ls)
        if strip.footprints:
            own = np.array([weights[part] for part in strip.footprints])
            excluded = bits(*EXCLUDED, *["CR"] * p.reject_cr, *["REJECTED"] * len(further))
            named = MaskValues(excluded, bits("NO_DATA"), bits("CLIPPED"), bits("SAT"))
            image, variance, mask, *more = stacked(layout, strip, blocks[: len(warps)], lost)
            if state.artifacts is not None:
                rejected = exclude(mask, layout, strip, blocks[len(warps)], lost)
            if p.statistic == "median":
                planes = combine_median(image, variance, mask, own, named, *more)
            else:
                planes = combine(image, variance, mask, own, named, how, p.sigma, p.passes, *more)
            if state.artifacts is not None:
                planes[2][rejected] |= bits("REJECTED")
            refuse_overflow(planes)
        return tuple(plane[None] for plane in planes)

    return Compute(
        "coadd",
        layout.strip_grid,
        reads=strip_needs(layout, (*warps, *further)),
        writes=tuple(At(array, layout.strip_in_patch) for array in state.patches.arrays),
        work=work,
        units=strip_units(state),
        without=lambda chunk: tuple(
            plane[None] for plane in empty_strip(layout.strips[chunk.number].box, variance_ls)
        ),
        parameters={
            "lost": sorted(lost),
            "weights": weights,
            "statistic": p.statistic,
            "sigma": p.sigma,
            "passes": p.passes,
            "reject_cr": p.reject_cr,
        },
        weights=strip_weights(layout),
        scratch=stack_bytes(layout, len(warps)),
        cost=("coadd", float(layout.warped_pixels)),
    )


def few_inputs(layout: Layout, patches: PatchPlanes, p: Coaddition) -> Reduce[None]:
    """Warn of pixels with too few inputs for any of them to be left out."""
    clipped = p.statistic == "clip"
    # Of one or two exposures nobody can tell which is right: as many as at 1 standard deviation.
    bit, sigma = (bits("CLIPPED"), p.sigma) if clipped else (bits("REJECTED"), 1.0)

    def partial(chunk, mask, nimage):
        from mpiimg.astro.kernels.coadd import count_unclippable

        return count_unclippable(nimage, mask, bit, sigma)

    def finish(rows):
        few, covered = rows.sum(axis=0)
        if not few:
            return Found(None)
        max_inputs = int(sigma**2 + 1)
        share = f"at {_percent(few / covered)} % of the pixels"
        if clipped:
            text = (
                f"{share} at most {max_inputs} exposures overlap: clipping at {sigma:g} sigma rejects "
                "nothing there, however far off"
            )
        else:
            text = f"{share} one or two exposures overlap: artifacts cannot be told there, and stay"
        return Found(None, (text,))

    return Reduce(
        "few-inputs",
        layout.strip_grid,
        reads=tuple(At(array, layout.strip_in_patch) for array in (patches.mask, patches.nimage)),
        work=partial,
        row=((2,), "int64"),
        finish=finish,
        parameters={"sigma": sigma, "bit": bit},
    )


def _percent(share: float) -> str:
    """Return a share in per cent, in whole numbers, or what is less than one as it is."""
    return f"{100 * share:.0f}" if share >= 0.01 else f"{100 * share:.1g}"


def _write(state: Survey, p: Coaddition, folder: Path) -> Files:
    return write_patches(state, folder)


def _write_mosaic(state: Survey, p: Coaddition, folder: Path) -> Files:
    return mosaic.write_mosaic(state, folder)


def _write_rejected(state: Survey, p: Coaddition, folder: Path) -> Sink | None:
    return write_rejected(state, folder)


def sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: the coadd of six inputs; and how many pixels they have."""
    from mpiimg.astro.kernels.coadd import MaskValues, combine

    image, variance, mask = (np.stack([plane[:256]] * 6) for plane in frame())
    return lambda: combine(image, variance, mask, np.ones(6), MaskValues(1, 2, 4, 8)), image.size


def weighing_sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: the weight of one exposure; and how many pixels it has."""
    _, variance, _ = frame()

    def work():
        positive = variance[np.isfinite(variance) & (variance > 0)]
        return 1 / np.median(positive)

    return work, variance.size


STEP = Step(
    "coadd",
    "Combine the warps of each patch.",
    takes=("warps", "tract"),
    gives=("patches",),
    stages=stages,
    parameters=Coaddition,
    inspect=inspect,
    outputs=(
        Output("patches", _write, when="end", documents=tract_document, without=Survey.without_patches),
        Output("patches", _write_mosaic, when="end"),
        Output("patches", _write_rejected),
    ),
    history=coaddition_history,
    kernels=(
        "mpiimg.astro.kernels.coadd:precompile",
        "mpiimg.astro.kernels.compare:precompile",
        "mpiimg.astro.kernels.middle:precompile",
        "mpiimg.astro.kernels.rejections:precompile",
        "mpiimg.astro.trails:precompile",
    ),
    rates={
        "coadd": (3.5e-9, "mpiimg.astro.steps.coadd:sample"),
        "compare": (1.0e-8, "mpiimg.astro.artifacts:sample"),
        "reject": (8.0e-9, "mpiimg.astro.artifacts:rejection_sample"),
        "weigh": (3.5e-9, "mpiimg.astro.steps.coadd:weighing_sample"),
    },
    examples=(
        ("The warps of each patch in one image.", "mpiexec -n 8 mpiimg-coadd warps --out coadds"),
        (
            "Their median, and a plane of weights.",
            "mpiimg-coadd warps --statistic median --weight --out coadds",
        ),
    ),
)
