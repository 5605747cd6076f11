"""Calibration of exposures: cosmic rays, sky, stars; and the zero points that make exposures agree.

An exposure that cannot be used is left out with its reason, and the others go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.astro.calibration_figures import calibration_figures
from mpiimg.astro.cosmic_rays import CosmicSearch, Frame, clean_frame
from mpiimg.astro.exposure_files import exposure_table, write_exposures
from mpiimg.astro.fits.exposure import Exposure, ExposureRef, read_exposure
from mpiimg.astro.fits.maskplanes import bits, no_data
from mpiimg.astro.fits.writing import history_lines
from mpiimg.astro.lengths import MESH_LIMITS, mesh_of, mesh_pixels
from mpiimg.astro.photometry import noise
from mpiimg.astro.photometry import stars as photometry
from mpiimg.astro.photometry.masked_sky import SKIES
from mpiimg.astro.photometry.overlaps import Catalogue
from mpiimg.astro.reference import colour_choice, magnitude_choice, read_references
from mpiimg.astro.samples import frame
from mpiimg.astro.sky.layout import Planes
from mpiimg.astro.sky.wcs import middle_pixel, parse_wcs, to_sky
from mpiimg.astro.survey import EXPOSURE_STATS, Survey, exposure_units
from mpiimg.astro.zero_point_stage import MAX_STARS, solve, star_tables
from mpiimg.engine.parameters import parameter
from mpiimg.engine.stage import Compute, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput

#: Bytes per pixel that reading, searching and measuring take beside the planes that come out.
CALIBRATION_SCRATCH = 30


@dataclass(frozen=True)
class Calibration:
    """How exposures are calibrated."""

    sigclip: float = parameter(
        4.5,
        "A cosmic ray stands out of its surroundings by this much.",
        unit="standard deviations",
        limits=(0.1, 1000),
    )
    sigfrac: float = parameter(
        0.3,
        "Neighbours of a cosmic ray belong to it if they stand out by this share of --sigclip.",
        limits=(0.01, 1),
    )
    objlim: float = parameter(
        5.0, "The least contrast between a cosmic ray and fine structure.", limits=(0.1, 1000)
    )
    cr_iterations: int = parameter(4, "Cosmic rays are looked for so many times.", limits=(1, 100))
    cosmic_rays: str = parameter(
        "auto",
        "Cosmic rays are looked for; and what was found is dropped, with a warning, in an exposure where it "
        "is more than cosmic rays can be, or the cores of stars, or whose stars are narrower than 1.8 pixels "
        "(auto); or it is kept in any case (always); or none are looked for (never).",
        choices=("auto", "always", "never"),
    )
    no_cosmic_rays: bool = parameter(False, "Cosmic rays are not looked for, as with --cosmic-rays never.")
    noise: str = parameter(
        "measured",
        "The noise of an exposure is as measured between its sources: a variance plane that differs from it "
        "is scaled, and an image without one takes it; or as planes, gain and read noise have it (given).",
        choices=("measured", "given"),
    )
    mesh: str = parameter(
        "17arcsec",
        "The sky is measured in meshes of this side, a number of pixels of the exposure, or a length on the "
        "sky as 17arcsec, which is rounded to 8 pixels and has 32 at least.",
        metavar="PIXELS|ARCSEC",
        limits=MESH_LIMITS,
    )
    sky: str = parameter(
        "objects-masked",
        "The sky is measured between objects, which are masked before (objects-masked), or is the mode of "
        "each mesh without the stars in it, which takes the middle of a galaxy larger than a mesh for sky "
        "(plain).",
        choices=SKIES,
    )
    star_size: str = parameter(
        "fwhm",
        "Stars are measured in apertures of one and of four times their FWHM, or of one and of three times "
        "their half-light diameter.",
        choices=tuple(photometry.SIZES),
    )
    match_radius: float = parameter(
        1.0,
        "Stars of two exposures that are this near to each other are the same.",
        unit="arcsec",
        limits=(0.01, 60),
    )
    reference: str | None = parameter(
        None,
        "A reference catalogue (ra, dec, and a magnitude in each band) gives the zero points, whatever cards "
        "say.",
        metavar="FILE",
    )
    reference_mag: str | None = parameter(
        None,
        "Magnitudes of the reference catalogue stand in these columns, as g=gmag,r=rmag, or in this one for "
        "all bands (default: what Gaia, Pan-STARRS and others call them).",
        metavar="BAND=COLUMN,...",
        form=magnitude_choice,
    )
    reference_color: str | None = parameter(
        None,
        "This is added to magnitudes of the reference catalogue, as g=0.05*(g-r), to bring them into the "
        "bands of the exposures.",
        metavar="BAND=TERM,...",
        form=colour_choice,
    )
    calibrated: bool = parameter(
        False, "Calibrated exposures are written even where later steps take them, in a folder of their own."
    )

    @property
    def method(self) -> dict[str, object]:
        """Those that say how an exposure is calibrated on its own."""
        names = ("noise", "mesh", "sky", "star_size")
        return {**self.search._asdict(), **{name: getattr(self, name) for name in names}}

    @property
    def search(self) -> CosmicSearch:
        """How cosmic rays are looked for."""
        when = "never" if self.no_cosmic_rays else self.cosmic_rays
        return CosmicSearch(when, self.sigclip, self.sigfrac, self.objlim, self.cr_iterations)


def calibration_history(p: Calibration) -> tuple[str, ...]:
    """Return the lines of HISTORY of a calibrated exposure."""
    search = (
        f"cosmic rays by L.A.Cosmic ({p.search.when}, sigclip {p.sigclip:g}, sigfrac {p.sigfrac:g}, "
        f"objlim {p.objlim:g}, {p.cr_iterations} iterations)"
    )
    return history_lines(
        "calibrate",
        f"{'cosmic rays left in' if p.search.when == 'never' else search}; noise as {p.noise}; "
        f"sky in meshes of {mesh_of(p.mesh, '--mesh')} subtracted",
    )


def inspect(state: Survey, p: Calibration) -> Inspection:
    """Read the reference catalogue.

    Raises
    ------
    BadInput
        It cannot be read, or zero points are given as well; or the mesh is no length; or cosmic rays are both
        to be looked for and not to be.
    """
    mesh_of(p.mesh, "--mesh")
    if p.no_cosmic_rays and p.cosmic_rays == "always":
        raise BadInput("--no-cosmic-rays and --cosmic-rays always contradict each other: give one of them")
    if p.reference is None:
        for flag, value in (("--reference-mag", p.reference_mag), ("--reference-color", p.reference_color)):
            if value is not None:
                raise BadInput(f"{flag} {value}: says what a reference catalogue has; give --reference too")
        return Inspection()
    if state.options.zero_point is not None:
        raise BadInput("--zero-point and --reference both say where zero points come from: give one of them")
    bands = [ref.band for ref in state.exposures]
    found = read_references(Path(p.reference), bands, p.reference_mag, p.reference_color)
    return Inspection(found)


def stages(state: Survey, p: Calibration, references: Mapping[str, Catalogue] | None) -> Stages[Survey]:
    """Calibrate each exposure on its own, then find the zero points of all."""
    pixels = state.layout.exposure_planes()
    lost = yield calibrate(state, p, pixels)
    solved = yield solve(state, references, p.match_radius, lost or {})
    return dataclasses.replace(
        state,
        pixels=pixels,
        usable=solved.usable,
        zero_points=solved.points,
        zero_point_kinds=solved.kinds,
        stats=solved.stats,
        residuals=solved.residuals,
        left_out={**state.left_out, **solved.left_out},
    )


# --- Each exposure on its own -----------------------------------------------------------------------------


def calibrate(state: Survey, p: Calibration, pixels: Planes) -> Compute:
    """Declare the calibration of each exposure on its own.

    Written are the planes of exposures without their sky, the stars (ra and dec in degrees, instrumental
    magnitude of the total flux, its error) and the EXPOSURE_STATS.
    """
    frames = state.frames

    def work(chunk):
        ref = frames[chunk.number]
        try:
            return _calibrated(ref, p)
        except BadInput as error:
            named = any(name in str(error) for name in (ref.name, str(ref.image.path)))
            raise error if named else BadInput(f"{ref.image.path}: {error}") from None

    sizes = tuple(rows * columns for rows, columns in state.layout.shapes)
    return Compute(
        "calibrate",
        state.layout.exposure_grid,
        writes=(*pixels, *star_tables(len(frames))),
        work=work,
        parameters=p.method,
        # What a count is worth enters when all is calibrated.
        depends=lambda number: {"exposure": repr(dataclasses.replace(frames[number], magzero=None))},
        units=exposure_units(state, kept=True),
        without=lambda chunk: _left_out(frames[chunk.number]),
        weights=sizes,
        scratch=CALIBRATION_SCRATCH * max(sizes),
        cost=("calibrate", float(sum(sizes))),
    )


def _calibrated(ref: ExposureRef, p: Calibration):
    exposure = read_exposure(ref)
    image, mask = exposure.image, exposure.mask
    # Edges glow, and no coadd takes them.
    edges, saturated = (mask & bits("EDGE")) != 0, (mask & bits("SAT")) != 0
    unknown = (mask & bits("BAD", "NO_DATA")) != 0
    no_data = np.count_nonzero(unknown) / unknown.size
    mesh = mesh_pixels(mesh_of(p.mesh, "--mesh"), middle_pixel(parse_wcs(ref.wcs), ref.shape))
    held, first = noise.HeldVariance(exposure.variance, np.nan, 1.0), None
    if p.noise == "measured":
        first = photometry.sky_background(image, unknown | saturated | edges, mesh)
        held = _held_variance(ref, exposure, first.map, unknown | saturated | edges)
    settings = photometry.star_settings(p.star_size)
    frame = Frame(image, held.variance, unknown | saturated, unknown | edges, saturated, first, mesh, p.sky)
    cleaned = clean_frame(frame, p.search, settings, ref.saturate, ref.exptime)
    image, sky, measured = cleaned.image, cleaned.sky, cleaned.stars
    mask[cleaned.struck] |= bits("CR", "INTRP")
    image -= sky.map
    stars, number = _star_table(measured, ref)
    stats = (
        0.0,
        sky.level,
        sky.noise,
        measured.fwhm,
        measured.half_light_diameter,
        measured.correction,
        np.count_nonzero(cleaned.struck),
        number,
        no_data,
        held.ratio,
        held.scale,
        cleaned.search,
        cleaned.share,
    )
    return image[None], held.variance[None], mask[None], stars[None], np.array([stats])


def _held_variance(ref: ExposureRef, exposure: Exposure, sky: np.ndarray, useless: np.ndarray):
    """Hold the variance of an exposure against its pixels."""
    planes = (exposure.image, exposure.variance, sky, useless)
    if ref.variance is None:
        return noise.hold_model(*planes, ref.gain, ref.readnoise)
    return noise.hold_plane(*planes)


def _star_table(measured: photometry.FrameStars, ref: ExposureRef):
    """Return the brightest isolated stars, (MAX_STARS, 4), NaN behind the last; and how many they are."""
    stars = measured.stars
    flux, error, correction = stars.flux, stars.flux_error, measured.correction
    if not np.isfinite(correction):
        # Too few stars tell what the small aperture loses. The large one, for more noise, loses nothing.
        flux, error, correction = stars.large_flux, stars.large_flux_error, 1.0
    chosen = np.flatnonzero(stars.isolated & np.isfinite(flux) & (flux > 0))
    order = np.argsort(-flux[chosen], kind="stable")[:MAX_STARS]
    chosen = np.sort(chosen[order])
    table = np.full((MAX_STARS, 4), np.nan)
    magnitude, error = photometry.star_magnitudes(flux[chosen], error[chosen], correction)
    ra, dec = to_sky(parse_wcs(ref.wcs), stars.x[chosen], stars.y[chosen])
    table[: len(chosen)] = np.stack([ra, dec, magnitude, error], axis=1)
    return table, len(chosen)


def _left_out(ref: ExposureRef):
    """Return what stands for an exposure that failed."""
    stats = np.full((1, len(EXPOSURE_STATS)), np.nan)
    stats[0, 0] = 1.0
    stars = np.full((1, MAX_STARS, 4), np.nan)
    return (*no_data((1, *ref.shape)), stars, stats)


# --- Declaration ------------------------------------------------------------------------------------------


def sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: cosmic rays, sky and stars of a frame; and how many pixels it has."""
    from mpiimg.astro.kernels.cosmics import detect_cosmics

    image, variance, mask = frame()
    nothing = mask != 0

    def work():
        struck, clean = detect_cosmics(
            image, mask=nothing, variance=variance, gain=1.0, readnoise=0.0, satlevel=np.inf
        )
        photometry.measure_frame(clean, variance, struck, nothing)

    return work, image.size


def _documents(state: Survey, p: Calibration) -> dict[str, bytes]:
    """Return the small files: the table of exposures, and the figures of the page."""
    return {"exposures.ecsv": exposure_table(state), **calibration_figures(state)}


STEP = Step(
    "calibrate",
    "Calibrate exposures: cosmic rays repaired, sky subtracted, stars measured, zero points found.",
    takes=("frames",),
    gives=("pixels", "zero_points"),
    stages=stages,
    parameters=Calibration,
    papers=(
        "L.A.Cosmic: van Dokkum 2001, doi:10.1086/323894; background and photometry: Bertin and Arnouts "
        "1996, doi:10.1051/aas:1996164",
    ),
    inspect=inspect,
    outputs=(
        Output(
            "pixels",
            lambda state, p, folder: write_exposures(state, folder),
            when="end",
            flag="calibrated",
            without=Survey.without_exposures,
            folder="calibrated",
        ),
        Output(
            "zero_points",
            lambda state, p, folder: None,
            documents=_documents,
        ),
    ),
    history=calibration_history,
    kernels=(
        "mpiimg.astro.kernels.cosmics:precompile",
        "mpiimg.astro.kernels.noise_bins:precompile",
        "mpiimg.astro.kernels.robust:precompile",
    ),
    rates={"calibrate": (1.5e-7, "mpiimg.astro.steps.calibrate:sample")},
    examples=(
        (
            "Exposures without sky and cosmic rays.",
            "mpiexec -n 8 mpiimg-calibrate exposures/*.fits --out calibrated",
        ),
        (
            "The same for a camera whose headers lack the gain.",
            "mpiimg-calibrate exposures/*.fits --gain 4.2 --read-noise 6.5 --out calibrated",
        ),
    ),
)
