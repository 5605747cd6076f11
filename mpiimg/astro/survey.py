"""What a chain of the survey's steps knows at each point, and how names and numbers in it are ordered."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.products import Product
from mpiimg.astro.sky.layout import Layout, PatchPlanes, Planes
from mpiimg.astro.sky.tract import Tract
from mpiimg.engine.array import Array, Ragged
from mpiimg.engine.step import State

#: What calibration measures of an exposure, in the order of its row of numbers.
EXPOSURE_STATS = ("failed", "sky", "noise", "fwhm", "correction", "cosmic_ray_pixels", "stars")

#: What detection measures of a patch, in the order of its row of numbers.
PATCH_STATS = ("sources", "noise_correction", "background", "fwhm")


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
        Let one exposure that cannot be used end the run.
    rejected : tuple of (str, str)
        Files that were left out when headers were read, and why.
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
    warps : Planes, optional
    weights : tuple of float
        Of each footprint in the coadd.
    patches : PatchPlanes, optional
    weight_plane, compress : bool
        How files of patches have been asked for.
    catalogue : Array, optional
        Rows of the catalogue of all patches as bytes, one patch after the other.
    source_counts : tuple of int
        Sources of each patch.
    patch_stats : Array, optional
        PATCH_STATS of each patch, (patches, numbers) float64.
    maps : tuple of Ragged
        What detection leaves of each pixel, as far as it was asked for.
    mosaic : Array, optional
        Means of blocks of each patch, for the picture.
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
    products: tuple[Product, ...] = ()
    own_tract: bool = False
    pixels: Planes | None = None
    usable: tuple[bool, ...] = ()
    zero_points: tuple[float, ...] = ()
    zero_point_kinds: tuple[str, ...] = ()
    stats: tuple[tuple[float, ...], ...] = ()
    warps: Planes | None = None
    weights: tuple[float, ...] = ()
    patches: PatchPlanes | None = None
    weight_plane: bool = False
    compress: bool = False
    catalogue: Array | None = None
    source_counts: tuple[int, ...] = ()
    patch_stats: Array | None = None
    maps: tuple[Ragged, ...] = ()
    mosaic: Array | None = None
    stem: str = "survey"

    def with_patches(self, patches: PatchPlanes, **about: Any) -> Survey:
        """Return the state with new patches, on which nothing has been measured yet."""
        fresh = {"catalogue": None, "source_counts": (), "patch_stats": None, "maps": (), "mosaic": None}
        return replace(self, patches=patches, **fresh, **about)

    @property
    def calibrated(self) -> bool:
        """Whether this chain has calibrated the exposures."""
        return bool(self.stats)

    @property
    def from_patches(self) -> bool:
        """Whether the chain began with patches, which are in files already."""
        return bool(self.products) and not self.exposures


def tract_document(state: Survey, parameters: Any = None) -> dict[str, bytes]:
    """Return the file of the tract that results lie on, unless it is there already."""
    return {} if state.own_tract else {"tract.toml": state.tract.to_toml().encode()}
