"""What calibration came to as tables of figures: by exposure, and what is left between stars."""

from __future__ import annotations

import math

from mpiimg.astro.catalogue import Column
from mpiimg.astro.figure_files import figure_files
from mpiimg.astro.photometry import residuals
from mpiimg.astro.sky.wcs import middle_pixel, parse_wcs
from mpiimg.astro.survey import EXPOSURE_STATS, Survey, unit_names

#: Of a table with a row for each exposure.
COLUMNS = (
    Column("exposure", "str", "", "name, as in exposures.ecsv"),
    Column("band", "str", "", "filter"),
    Column("seeing", "f8", "arcsec", "full width at half maximum of its stars"),
    Column("sky", "f8", "mag arcsec-2", "brightness of the sky, by the zero point"),
    Column("zero_point", "f8", "mag", "magnitude of one count"),
    Column("cosmic_rays", "f8", "", "share of the pixels that look like cosmic rays"),
    Column("no_data", "f8", "", "share of the pixels that are bad or without data"),
    *residuals.FIGURES,
    Column("status", "str", "", "used, or why it was left out"),
)


def calibration_figures(state: Survey) -> dict[str, bytes]:
    """Return calibration and residuals, each as TSV and JSON, by the names of the files."""
    rows = [_row(state, number, name) for number, name in enumerate(unit_names(state.exposures))]
    rows += [{"exposure": name, "status": why} for name, why in state.rejected]
    return {
        **figure_files("calibration", COLUMNS, rows),
        **figure_files("residuals", residuals.COLUMNS, state.residuals.rows),
    }


def _row(state: Survey, number: int, name: str) -> dict[str, object]:
    ref, zero_point = state.exposures[number], state.zero_points[number]
    measured = dict(zip(EXPOSURE_STATS, state.stats[number], strict=True))
    pixel = middle_pixel(parse_wcs(ref.wcs), ref.shape)
    counts = measured["sky"] / pixel**2
    return {
        "exposure": name,
        "band": ref.band,
        "seeing": measured["fwhm"] * pixel,
        "sky": zero_point - 2.5 * math.log10(counts) if counts > 0 else math.nan,
        "zero_point": zero_point,
        "cosmic_rays": measured["cosmic_ray_share"],
        "no_data": measured["no_data"],
        **(state.residuals.of_exposure[number] if state.residuals.of_exposure else {}),
        "status": state.left_out.get(name, "used"),
    }
