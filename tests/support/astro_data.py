"""Sky surveys for the tests of the tools: write one, run a tool on it, read what came out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table
from support import warm
from support.subjects import PATIENCE

from mpiimg.simulate.astro import SimulatedSurvey
from mpiimg.simulate.survey_files import exposure_name, files

#: A tract of a few patches under a small survey.
TRACT = ("--patch", 400, "--border", 50, "--pixel-scale", 0.333)


#: Names of the figures that a run leaves, from its steps.
FIGURES = tuple(
    f"{name}.{ending}"
    for name in ("calibration", "residuals", "depth", "counts")
    for ending in ("tsv", "json")
)


#: A crowded field that some of whose stars are saturated; its edges are seen once, its middle by all visits.
CROWDED = SimulatedSurvey(5, 2, (500, 620), seed=11, density=50.0, magnitudes=(14.0, 23.5))

_MADE: dict = {}


@dataclass(frozen=True)
class Night:
    """The files of a simulated survey, and what is true of it."""

    survey: SimulatedSurvey
    folder: Path
    layout: str = "planes"

    @property
    def names(self) -> list[str]:
        """Of the exposures, in their order."""
        sensors = range(self.survey.sensors)
        return [exposure_name(visit, sensor) for visit in range(self.survey.visits) for sensor in sensors]

    @property
    def exposures(self) -> list[Path]:
        """What a tool is given: one file an exposure."""
        ending = "*_ooi_*.fits" if self.layout == "triplet" else "*.fits"
        return sorted(self.folder.glob(ending))


def observe(folder: Path, survey: SimulatedSurvey, layout: str = "planes") -> Night:
    """Write the exposures of a survey, without the truth."""
    folder.mkdir(parents=True)
    for visit in range(survey.visits):
        for sensor in range(survey.sensors):
            for name, content in files(survey, visit, sensor, layout).items():
                if "/" not in name:
                    content.writeto(folder / name)
    return Night(survey, folder, layout)


def astro(
    exposures, out: Path, *options, tool="mpiimg-astro", timeout=PATIENCE, run=warm.run_tool, **how
) -> Path:
    """Run mpiimg-astro and return the folder with its results."""
    run(tool, *exposures, "--out", out, *options, timeout=timeout, **how)
    return Path(out)


def catalogue(out: Path, name: str = "catalogue.fits") -> Table:
    """Return the catalogue of a run."""
    return Table.read(out / name, hdu=1)


def exposure_table(out: Path) -> Table:
    """Return the table of exposures of a run."""
    return Table.read(out / "exposures.ecsv")


def separations(table, ra, dec) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the row of `table` nearest to each place (degrees), and the distance in arcsec."""
    from astropy.coordinates import SkyCoord

    places = SkyCoord(ra, dec, unit="deg")
    index, distance, _ = places.match_to_catalog_sky(SkyCoord(table["ra"], table["dec"], unit="deg"))
    return index, distance.arcsec


def once(factory, name: str, make):
    """Return what `make(folder)` returns, called once a session, whichever tests ask for it."""
    if name not in _MADE:
        _MADE[name] = make(factory.mktemp("sky") / name)
    return _MADE[name]


def crowded(factory) -> Night:
    """Return the exposures of :data:`CROWDED`, written once a session."""
    return once(factory, "crowded", lambda folder: observe(folder, CROWDED))


def crowded_results(factory) -> Path:
    """Return what one process of mpiimg-astro makes of them, run once a session."""
    return once(factory, "results", lambda folder: astro(crowded(factory).exposures, folder, *TRACT))
