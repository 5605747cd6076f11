"""What a chain of the survey's steps knows at each point, and how names and numbers in it are ordered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.products import Product
from mpiimg.astro.photometry.residuals import NO_RESIDUALS, Residuals
from mpiimg.astro.sky.layout import Layout, PatchPlanes, Planes, WarpPlanes
from mpiimg.astro.sky.tract import Tract
from mpiimg.engine.array import Array, Ragged
from mpiimg.engine.containment import Units
from mpiimg.engine.step import State

#: What calibration measures of an exposure, in the order of its row of numbers.
EXPOSURE_STATS = (
    "failed",
    "sky",
    "noise",
    "fwhm",
    "half_light_diameter",
    "correction",
    "cosmic_ray_pixels",
    "stars",
    "no_data",
    "noise_ratio",
    "noise_scale",
    "cosmic_ray_search",
    "cosmic_ray_share",
)

#: What detection measures of a patch, in the order of its row of numbers.
PATCH_STATS = ("sources", "noise_correction", "background", "fwhm", "beta")


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey(State):
    """The state of a chain of steps over a survey.

    Parameters
    ----------
    exposures : tuple of ExposureRef, or of Product
        What headers say of each exposure, in the order of band, visit and sensor. Where the chain begins with
        warps, any warp of each stands for it; where it begins with patches, there are none.
    frames : tuple of ExposureRef
        The same, where the chain begins with exposures that calibration reads itself.
    tract : Tract, optional
        Only where the chain takes it.
    layout : Layout
        Shapes, and which exposure meets which patch; without a tract shapes alone.
    options : ReadOptions
        Where the facts about exposures were found.
    strict : bool
        Let one exposure that cannot be used, or one patch, end the run.
    rejected : tuple of (str, str)
        Files that were left out when headers were read, and why.
    lost_warps, lost_patches : frozenset of int
        Numbers of the warps and of the patches that failed: none of them is in any result.
    products : tuple of Product
        The file of each warp or patch that the chain begins with, in the order of the layout.
    own_tract : bool
        tract.toml is where the results go, or where they come from, and need not be written.
    pixels : Planes, optional
        Calibrated exposures, or exposures as somebody has made them.
    usable : tuple of bool
        For each exposure, whether it can be used, as far as that is known.
    zero_points : tuple of float
        Magnitude of one count of each exposure; NaN where there is none.
    zero_point_kinds : tuple of str
        How each was found; empty where no calibration looked for them.
    stats : tuple of tuple of float
        EXPOSURE_STATS of each exposure; empty without a calibration.
    residuals : Residuals
        What is left between the stars of exposures and a reference, or each other.
    warps : WarpPlanes, optional
    weights : tuple of float
        Of each footprint in the coadd.
    artifacts : Ragged, optional
        What coaddition by comparison leaves out of each warp, "fyx" uint8.
    patches : PatchPlanes, optional
    weight_plane, compress : bool
        How files of patches have been asked for.
    catalogue : Array, optional
        Rows of the catalogue of all patches as bytes, one patch after the other.
    source_counts : tuple of int
        Sources of each patch.
    patch_stats : Array, optional
        PATCH_STATS of each patch, (patches, numbers) float64.
    bands_together : bool
        Sources were found on all bands in one image: rows of patches at one place are of the same objects.
    maps : tuple of Ragged
        What detection leaves of each pixel, as far as it was asked for.
    mosaic : Array, optional
        Means of blocks of each patch, for the mosaic.
    stem, inputs, sources, files, warnings, left_out, history, nbytes
        As :class:`mpiimg.engine.step.State` has them; `history` is what this run does, while files have
        their own.
    """

    exposures: tuple[ExposureRef | Product, ...] = ()
    frames: tuple[ExposureRef, ...] = ()
    tract: Tract | None = None
    layout: Layout = field(default_factory=Layout)
    options: ReadOptions = field(default_factory=ReadOptions)
    strict: bool = False
    rejected: tuple[tuple[str, str], ...] = ()
    lost_warps: frozenset[int] = frozenset()
    lost_patches: frozenset[int] = frozenset()
    products: tuple[Product, ...] = ()
    own_tract: bool = False
    pixels: Planes | None = None
    usable: tuple[bool, ...] = ()
    zero_points: tuple[float, ...] = ()
    zero_point_kinds: tuple[str, ...] = ()
    stats: tuple[tuple[float, ...], ...] = ()
    residuals: Residuals = NO_RESIDUALS
    warps: WarpPlanes | None = None
    weights: tuple[float, ...] = ()
    artifacts: Ragged | None = None
    patches: PatchPlanes | None = None
    weight_plane: bool = False
    compress: bool = False
    catalogue: Array | None = None
    source_counts: tuple[int, ...] = ()
    patch_stats: Array | None = None
    bands_together: bool = False
    maps: tuple[Ragged, ...] = ()
    mosaic: Array | None = None
    stem: str = "survey"

    def with_patches(self, patches: PatchPlanes, **about: Any) -> Survey:
        """Return the state with new patches, on which nothing has been measured yet."""
        fresh = {"catalogue": None, "source_counts": (), "patch_stats": None, "maps": (), "mosaic": None}
        return replace(self, patches=patches, bands_together=False, **fresh, **about)

    def without_exposures(self, lost: Mapping[int, str] | None) -> Survey:
        """Return the state without the exposures of these numbers, which failed for these reasons."""
        if not lost:
            return self
        names = unit_names(self.exposures)
        return replace(
            self,
            usable=tuple(usable and number not in lost for number, usable in enumerate(self.usable)),
            zero_points=tuple(np.nan if n in lost else point for n, point in enumerate(self.zero_points)),
            left_out={**{names[number]: reason for number, reason in lost.items()}, **self.left_out},
        )

    def without_warps(self, lost: Mapping[int, str] | None) -> Survey:
        """Return the state without the warps of these numbers, which failed for these reasons."""
        return replace(self, lost_warps=self.lost_warps | set(lost)) if lost else self

    def without_patches(self, lost: Mapping[int, str] | None) -> Survey:
        """Return the state without the patches of these numbers, which failed for these reasons."""
        if not lost:
            return self
        names = patch_unit_names(self.layout)
        left_out = {**{names[number]: reason for number, reason in lost.items()}, **self.left_out}
        return replace(self, lost_patches=self.lost_patches | set(lost), left_out=left_out)

    def without_strips(self, lost: Mapping[int, str] | None) -> Survey:
        """Return the state without the patches of which these strips failed for these reasons."""
        patches: dict[int, str] = {}
        for number, reason in (lost or {}).items():
            patches.setdefault(self.layout.strips[number].patch, reason)
        return self.without_patches(patches)

    @property
    def calibrated(self) -> bool:
        """Whether this chain has calibrated the exposures."""
        return bool(self.stats)

    @property
    def from_patches(self) -> bool:
        """Whether the chain began with patches, which are in files already."""
        return bool(self.products) and not self.exposures


# --- Units ------------------------------------------------------------------------------------------------


def unit_names(exposures: Sequence[ExposureRef | Product]) -> list[str]:
    """Return what exposures go by in records: their names, and where several share one, their paths."""
    counts = Counter(ref.name for ref in exposures)
    return [ref.name if counts[ref.name] == 1 else f"{ref.paths[0]}[{ref.sensor}]" for ref in exposures]


def patch_unit_names(layout: Layout) -> list[str]:
    """Return what patches go by in records: with their band, where there are several."""
    several = len({patch.band for patch in layout.patches}) > 1
    return [f"{patch.band} {patch.name}" if several else patch.name for patch in layout.patches]


def exposure_units(state: Survey, kept: bool = False) -> Units:
    """Return the units of a stage with a chunk per exposure."""
    names = unit_names(state.exposures)
    return Units(names.__getitem__, len(names), "exposure", state.strict, kept)


def patch_units(state: Survey) -> Units:
    """Return the units of a stage with a chunk per patch."""
    names = patch_unit_names(state.layout)
    return Units(names.__getitem__, len(names), "patch", state.strict)


def strip_units(state: Survey) -> Units:
    """Return the units of a stage with a chunk per strip: the patches."""
    names, strips = patch_unit_names(state.layout), state.layout.strips
    return Units(lambda number: names[strips[number].patch], len(names), "patch", state.strict)


def footprint_units(state: Survey) -> Units:
    """Return the units of a stage with a chunk per footprint: the patches."""
    names, footprints = patch_unit_names(state.layout), state.layout.footprints
    return Units(lambda number: names[footprints[number].patch], len(names), "patch", state.strict)


def lost_footprints(state: Survey) -> frozenset[int]:
    """Return the numbers of the footprints that are in no coadd: of exposures or warps that failed."""
    usable = state.usable
    return state.lost_warps | {
        number for number, part in enumerate(state.layout.footprints) if usable and not usable[part.exposure]
    }


# --- Files ------------------------------------------------------------------------------------------------


def tract_document(state: Survey, parameters: Any = None) -> dict[str, bytes]:
    """Return the file of the tract that results lie on, unless it is there already."""
    return {} if state.own_tract else {"tract.toml": state.tract.to_toml().encode()}
