"""What lies in a folder of a survey's results, as far as there is any of it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mpiimg.astro.report.tables import columns_of
from mpiimg.astro.wide import blue_to_red
from mpiimg.report.run_section import step_of
from mpiimg.report.runs import Run, last_output

#: Steps of a survey, in their order.
STEPS = ("calibrate", "warp", "coadd", "detect")


@dataclass(frozen=True)
class SurveyResults:
    """The results of the runs of a folder.

    Parameters
    ----------
    runs : sequence of Run
        The last one wins where several have a result of one name.
    """

    runs: Sequence[Run]

    def path(self, ending: str) -> Path | None:
        """Return a result by the end of its name; None where there is none."""
        return last_output(self.runs, ending)

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """The steps that these runs were of."""
        done = {step_of(str(one.get("stage"))) for run in self.runs for one in run.stages}
        return tuple(step for step in STEPS if step in done)

    @cached_property
    def parameters(self) -> dict[str, object]:
        """The options of all runs; those of later ones win."""
        merged: dict[str, object] = {}
        for run in self.runs:
            merged |= run.parameters
        return merged

    @cached_property
    def left_out(self) -> dict[str, str]:
        """What the last run left out, and why."""
        found = self.runs[-1].record.get("left_out")
        return {str(name): str(why) for name, why in found.items()} if isinstance(found, dict) else {}

    @cached_property
    def exposures(self) -> dict[str, np.ndarray]:
        """The table of exposures; empty where no run calibrated.

        With `seeing` (arcsec) and the `brightness` of the sky (mag arcsec-2), NaN where they are unknown.
        """
        path, figures = self.path("exposures.ecsv"), self.path("calibration.tsv")
        if path is None:
            return {}
        exposures = columns_of(path)
        unknown = np.full(len(exposures["name"]), np.nan)
        more = {} if figures is None else columns_of(figures, "\t")
        for name, column in (("seeing", "seeing"), ("brightness", "sky")):
            values = more.get(column, unknown)
            exposures[name] = values if len(values) == len(unknown) else unknown
        return exposures

    @cached_property
    def bands(self) -> list[str]:
        """Filters from blue to red."""
        found = self.exposures.get("band", np.array([], str))
        return blue_to_red([band for band in found.tolist() if band])

    @cached_property
    def pixel_scale(self) -> float:
        """Arcseconds of a pixel of the tract; NaN where none is known."""
        path = self.path("tract.toml")
        if path is None:
            return float("nan")
        return float(tomllib.loads(path.read_text())["tract"]["pixel_scale"])
