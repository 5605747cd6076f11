"""What detection knows of each band before it finds sources: noise, significance, the stars of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.photometry.filtered_noise import filtered, noise_ratio
from mpiimg.astro.photometry.profiles import Moffat
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.survey import PATCH_STATS, Survey, patch_units
from mpiimg.engine.array import Ragged
from mpiimg.engine.boxes import box_shape, box_size
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Compute, Found, Reduce

#: Bytes per pixel that background, filtering and segmentation take.
DETECTION_SCRATCH = 40

#: Pixels with these say nothing to detection; saturated stars are to be found.
USELESS = ("NO_DATA", "BAD", "EDGE")

#: Noise of the filtered image beyond so many times the variance that VARIANCE makes it is warned of.
PLAUSIBLE_RATIO = 3.0


@dataclass(frozen=True)
class Bands:
    """What is known of the bands before sources are found.

    Parameters
    ----------
    ratios : mapping of str to float
        By band, of :func:`measure_noise`.
    significance : Ragged, optional
        The array of :func:`signify`, where sources are found on all bands together.
    way : str
        Of combining them.
    blurs : mapping of str to float
        By band, standard deviation in pixels of the Gaussian that brings it to the worst seeing of all
        before fluxes are measured; none where it is left as it is.
    """

    ratios: Mapping[str, float] = field(default_factory=dict)
    significance: Ragged | None = None
    way: str = "chi"
    blurs: Mapping[str, float] = field(default_factory=dict)

    @property
    def method(self) -> dict[str, Any]:
        """Those that results depend on."""
        return {
            "ratios": dict(self.ratios),
            "together": self.way if self.significance is not None else "",
            "blurs": dict(self.blurs),
        }


#: A band for itself, whose noise is what VARIANCE says.
ONE_BAND = Bands()


def bad_and_sky(
    patch: Patch,
    image: np.ndarray,
    variance: np.ndarray,
    mask: np.ndarray,
    how: detection.DetectionSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels of a patch say nothing, and its background, (rows, columns) bool and float32."""
    bad = detection.unusable(image, variance, mask, bits(*USELESS))
    origin = tuple(first for first, _ in patch.outer)
    return bad, detection.mesh_background(image, bad, origin, how.mesh, sky=how.sky)[0]


def measure_noise(state: Survey, how: detection.DetectionSettings) -> Reduce[dict[str, float]]:
    """Measure the variance of the filtered image over that of independent pixels, one number per band."""
    layout = state.layout
    bands = [patch.band for patch in layout.patches]

    def work(chunk, image, variance, mask):
        if chunk.number in state.lost_patches:
            return 0.0, 1.0
        bad, sky = bad_and_sky(layout.patches[chunk.number], image[0], variance[0], mask[0], how)
        return noise_ratio(image[0] - sky, variance[0], bad)

    def finish(rows):
        ratios, warnings, notes = {}, [], []
        for band in sorted(set(bands)):
            own = rows[[one == band for one in bands]]
            pixels = own[:, 0].sum()
            ratio = float((own[:, 0] * own[:, 1]).sum() / pixels) if pixels else 1.0
            ratios[band] = ratio
            deviation = (
                f"in {band} the noise of the filtered image is {ratio**0.5:.3g} times what VARIANCE says"
            )
            if not pixels:
                warnings.append(
                    f"in {band} no patch has enough pixels without sources to measure the noise of "
                    "the filtered image: the threshold relies on VARIANCE"
                )
            elif not 1 / PLAUSIBLE_RATIO < ratio < PLAUSIBLE_RATIO:
                warnings.append(f"{deviation}: errors of single pixels are wrong by as much")
            else:
                notes.append(deviation)
        return Found(ratios, tuple(warnings), tuple(notes))

    sizes = tuple(box_size(patch.outer) for patch in layout.patches)
    return Reduce(
        "filtered-noise",
        layout.patch_grid,
        reads=tuple(map(Part, state.patches[:3])),
        work=work,
        row=((2,), "float64"),
        finish=finish,
        units=patch_units(state),
        without=np.array([0.0, 1.0]),
        parameters={"mesh": how.mesh, "sky": how.sky, "lost": sorted(state.lost_patches)},
        weights=sizes,
        scratch=DETECTION_SCRATCH * max(sizes, default=0),
        expected=dict.fromkeys(sorted(set(bands)), 1.0),
        cost=("filtered-noise", float(sum(sizes))),
    )


def significance_array(layout: Layout) -> Ragged:
    """Return the array of the filtered images of all patches in units of their noise."""
    return layout.patch_plane("significance", "float32")


def signify(state: Survey, how: detection.DetectionSettings, ratios: Mapping[str, float]) -> Compute:
    """Declare the filtered image of each patch in units of its noise, NaN where there are no data."""
    layout = state.layout

    def without(chunk):
        return (np.full((1, *box_shape(layout.patches[chunk.number].outer)), np.nan, np.float32),)

    def work(chunk, image, variance, mask):
        if chunk.number in state.lost_patches:
            return without(chunk)
        patch = layout.patches[chunk.number]
        bad, sky = bad_and_sky(patch, image[0], variance[0], mask[0], how)
        data = np.where(bad, np.float32(0), image[0] - sky)
        noise = detection.threshold_variance(variance[0], bad, how, ratios.get(patch.band, 1.0))
        found = filtered(data) / np.sqrt(np.where(bad, 1, noise))
        return (np.where(bad, np.nan, found).astype(np.float32)[None],)

    sizes = tuple(box_size(patch.outer) for patch in layout.patches)
    return Compute(
        "significance",
        layout.patch_grid,
        reads=tuple(map(Part, state.patches[:3])),
        writes=(significance_array(layout),),
        work=work,
        units=patch_units(state),
        without=without,
        parameters={**vars(how), "ratios": dict(ratios), "lost": sorted(state.lost_patches)},
        weights=sizes,
        scratch=DETECTION_SCRATCH * max(sizes, default=0),
        cost=("filtered-noise", float(sum(sizes))),
    )


def siblings(state: Survey, number: int) -> list[int]:
    """Return the numbers of the patches of all bands at the place of a patch, of which none has failed."""
    same = state.layout.bands_at[state.layout.patches[number].index]
    return [other for other in same if other not in state.lost_patches]


def stars_of_bands(patches: Sequence[Patch], stats: np.ndarray) -> dict[str, Moffat]:
    """Return the median profile of the stars of each band, pixels, from PATCH_STATS; NaN without stars."""
    first = PATCH_STATS.index("fwhm")
    return median_profiles(patches, stats[:, first : first + len(Moffat._fields)])


def median_profiles(patches: Sequence[Patch], profiles: np.ndarray) -> dict[str, Moffat]:
    """Return the median of the profiles of the patches of each band, (patches, 2); NaN of none known."""
    found = {}
    for band in sorted({patch.band for patch in patches}):
        own = profiles[[patch.band == band for patch in patches]]
        own = own[np.isfinite(own).all(axis=1)]
        found[band] = Moffat(*np.median(own, axis=0).tolist()) if len(own) else Moffat(np.nan, np.nan)
    return found
