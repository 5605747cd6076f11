"""A frame without its cosmic rays: searched, measured, and taken as it was where the search must be wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiimg.astro.photometry import hits
from mpiimg.astro.photometry import stars as photometry


class CosmicSearch(NamedTuple):
    """How cosmic rays are looked for."""

    when: str  # "auto", "always" or "never"
    sigclip: float
    sigfrac: float
    objlim: float
    iterations: int


class Frame(NamedTuple):
    """A frame whose noise is known, before anything has been repaired; all planes (h, w)."""

    image: np.ndarray  # float32
    variance: np.ndarray  # float32
    useless: np.ndarray  # bool: neither searched nor used for repairs
    unmeasured: np.ndarray  # bool: neither sky nor stars
    saturated: np.ndarray  # bool
    first: photometry.Sky | None  # its sky, where it has been measured
    mesh: int  # pixels
    how: str = "plain"  # of masked_sky.SKIES: how its sky is measured


class CleanFrame(NamedTuple):
    """A frame without its cosmic rays, and what was measured on it."""

    image: np.ndarray  # (h, w) float32, with its sky
    struck: np.ndarray  # (h, w) bool: what has been repaired
    sky: photometry.Sky
    stars: photometry.FrameStars
    search: int  # of hits.SEARCHES
    share: float  # of the useful pixels: those that were found, whether dropped or not


def clean_frame(
    frame: Frame,
    how: CosmicSearch,
    settings: photometry.StarSettings,
    saturate: float | None,
    exptime: float | None,
) -> CleanFrame:
    """Look for cosmic rays, and measure sky and stars without them.

    Parameters
    ----------
    frame : Frame
        Its image may be the one that is returned.
    how : CosmicSearch
    settings : StarSettings
    saturate : float, optional
        Counts from which pixels are saturated.
    exptime : float, optional
        Seconds.

    Raises
    ------
    BadInput
        All pixels are masked, saturated, or not finite.
    """
    nothing = np.zeros(frame.image.shape, bool)
    reason, share = hits.OFF, 0.0
    if how.when != "never":
        struck, image = _search(frame, how, saturate)
        share = np.count_nonzero(struck) / max(np.count_nonzero(~frame.useless), 1)
        reason = hits.SEARCHED
        if how.when == "auto" and share > hits.most_hits(exptime):
            reason = hits.TOO_MANY
        if reason == hits.SEARCHED:
            sky, stars = _measure(frame, settings, image, struck)
            if how.when == "auto" and struck.any():
                reason = _doubt(frame, settings, struck, sky, stars)
        if reason == hits.SEARCHED:
            return CleanFrame(image, struck, sky, stars, reason, share)
    sky, stars = _measure(frame, settings, frame.image, nothing)
    return CleanFrame(frame.image, nothing, sky, stars, reason, share)


def _measure(frame: Frame, settings: photometry.StarSettings, image: np.ndarray, struck: np.ndarray):
    """Measure sky and stars of an image in which some pixels have been repaired."""
    planes = (image, frame.variance, struck | frame.unmeasured, frame.saturated)
    return photometry.measure_frame(*planes, settings, frame.mesh, first=frame.first, how=frame.how)


def _doubt(frame: Frame, settings: photometry.StarSettings, struck: np.ndarray, sky, stars) -> int:
    """Return why hits are no cosmic rays, of hits.SEARCHES, given what was measured on the repaired frame."""
    fwhm = stars.fwhm
    if hits.are_sharp(stars):
        return hits.TOO_SHARP
    if not np.isfinite(fwhm):
        # The hits may be the stars that it lacks.
        _, unrepaired = _measure(frame, settings, frame.image, np.zeros_like(struck))
        fwhm = unrepaired.fwhm
        if hits.are_sharp(unrepaired, struck):
            return hits.TOO_SHARP
    if not fwhm >= hits.MIN_FWHM:
        return hits.SEARCHED
    on_stars, share = hits.star_hits(frame.image - sky.map, frame.variance, struck, frame.useless, fwhm)
    return hits.ON_STARS if hits.strikes_stars(on_stars, share, stars) else hits.SEARCHED


def _search(frame: Frame, how: CosmicSearch, saturate: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels cosmic rays struck, and the image without them."""
    from mpiimg.astro.kernels.cosmics import detect_cosmics

    return detect_cosmics(
        frame.image,
        mask=frame.useless,
        variance=frame.variance,
        gain=1.0,
        readnoise=0.0,
        satlevel=float(saturate) if saturate is not None else np.inf,
        sigclip=how.sigclip,
        sigfrac=how.sigfrac,
        objlim=how.objlim,
        iterations=how.iterations,
    )
