"""The recipe of a pipeline over a survey: stages of our astro tools, and functions of the user's."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.astro import astro_tools, survey
from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.products import Product
from mpiimg.astro.fits.writing import history
from mpiimg.astro.steps import calibrate, coadd, detect, exposure_files, mosaic, patch_files, warp
from mpiimg.astro.survey import Survey
from mpiimg.engine.plan import Recipe, Values
from mpiimg.errors import BadInput
from mpiimg.functions import over_surveys as user_survey
from mpiimg.functions.declare import Function, explained
from mpiimg.functions.request import Asked, Entry, with_libraries
from mpiimg.functions.trial import quiet, taken_by

#: What a stage starts from, first come first served, and what it leaves.
TURNS = {
    "calibrate": (("files",), "exposures"),
    "exposures": (("exposures", "files"), "exposures"),
    "warp": (("exposures", "files"), "warps"),
    "coadd": (("warps",), "patches"),
    "patches": (("warps",), "patches"),
    "detect": (("patches",), "sources"),
}

#: Pixels a side that a function is tried on.
TRIED = 256


@dataclass(frozen=True)
class SurveyRun:
    """A pipeline over a survey, whose functions have been tried.

    Parameters
    ----------
    products : warps, where the pipeline begins with a folder of them
    seconds : CPU time a pixel of each entry, as the trial took it; 0 for our tools
    own_tract : results go where tract.toml is already
    """

    asked: Asked
    survey: Survey
    products: tuple[Product, ...]
    seconds: tuple[float, ...]
    own_tract: bool

    def recipe(self, p: Mapping[str, Any]) -> Recipe:
        """Put the stages together."""
        return _recipe(self, {**self.asked.parameters, "reference": p["reference"], "tract": p["tract"]})


def inspect_survey(asked: Asked, args: argparse.Namespace) -> SurveyRun:
    """Read the headers of exposures or warps, and try every function.

    Raises
    ------
    BadInput : something cannot be used, or a function fails its trial
    """
    if asked.target is not None:
        raise BadInput(f"{asked.name}: a survey has many results: give --out DIR")
    if args.check_halo:
        raise BadInput(f"{asked.name}: --check-halo: {asked.entries[-1].name} has no halo")
    turns = [_turn(entry) for entry in asked.entries]
    folder = asked.inputs[0] if len(asked.inputs) == 1 and asked.inputs[0].is_dir() else None
    _check_order(asked, turns, "warps" if folder else "files")
    known = argparse.Namespace(
        **asked.parameters, tract=args.tract, reference=args.reference, out=args.out, warps=folder
    )
    known.exposures = [str(path) for path in asked.inputs]
    products, own_tract = (), False
    if folder is not None:
        found = astro_tools.inspect_coadd(known)
        lay_out, products, own_tract = found.survey, found.products, found.own_tract
    elif "warp" not in turns:
        lay_out = astro_tools.inspect_calibrate(known)
    elif turns[0] == "calibrate":
        lay_out = survey.inspect(known)
    else:
        lay_out = astro_tools.inspect_warp(known)
    seconds = tuple(_tried(entry.function, lay_out) if entry.function else 0.0 for entry in asked.entries)
    return SurveyRun(asked, lay_out, tuple(products), seconds, own_tract)


def _turn(entry: Entry) -> str:
    return entry.tool or entry.function.declared.over


def _check_order(asked: Asked, turns: list[str], state: str) -> None:
    for entry, turn in zip(asked.entries, turns, strict=True):
        starts, leaves = TURNS[turn]
        if state not in starts:
            made = {"files": "exposures in files", "exposures": "exposures that were read"}.get(state, state)
            raise BadInput(
                f"{asked.name}: {entry.name} does not go after {made}; "
                "the order is calibrate, over exposures, warp, coadd or over patches, detect"
            )
        if entry.function is not None and turn == "exposures" and entry.function.aggregate:
            raise BadInput(f"{asked.name}: {entry.name}: an aggregate is over patches, not exposures")
        state = leaves


def _tried(function: Function, found: Survey) -> float:
    """Call a function on a small frame, or on three that overlap; return CPU time a pixel.

    Raises
    ------
    BadInput : it raises, or returns what it must not
    """
    exposures = function.declared.over == "exposures"
    planes = _frame(found) if exposures else _overlap()
    size = " x ".join(map(str, planes[0].shape))
    tried = f"tried on {'a frame' if exposures else 'exposures'} of {size} float32"

    def call():
        copies = [plane.copy() for plane in planes]
        if exposures:
            ref = found.exposures[0]
            return user_survey.filtered(function, copies, user_survey.exposure_header(ref, ref.magzero))
        bounds = {"y": (0, planes[0].shape[1]), "x": (0, planes[0].shape[2])}
        return user_survey.combined(function, copies, bounds, user_survey.band_header(found.layout, 0))

    try:
        with quiet():
            call()
            return taken_by(call, planes[0].size)["seconds"]
    except Exception as error:
        raise explained(error, function, tried) from None


def _frame(found: Survey) -> tuple[np.ndarray, ...]:
    """Return image, variance and mask from the middle of the first exposure that can be read."""
    for ref in found.exposures:
        try:
            exposure = read_exposure(ref)
        except BadInput:
            continue
        rows, columns = (slice(max(0, (n - TRIED) // 2), (n + TRIED) // 2) for n in ref.shape)
        return tuple(plane[rows, columns] for plane in (exposure.image, exposure.variance, exposure.mask))
    raise BadInput(f"{found.exposures[0].image.path}: cannot be read, nor can any other exposure")


def _overlap(count: int = 3) -> tuple[np.ndarray, ...]:
    """Return three exposures made up, of which one has pixels without data."""
    shape = (count, TRIED // 4, TRIED // 2)
    image = np.random.default_rng(0).normal(100.0, 10.0, shape).astype(np.float32)
    variance, mask = np.full(shape, 100, np.float32), np.zeros(shape, np.int32)
    without = np.s_[0, : shape[1] // 2]
    image[without], variance[without], mask[without] = np.nan, np.inf, bits("NO_DATA")
    return image, variance, mask


class _Builder:
    """Puts stages together one after the other; knows where the pixels are at each."""

    def __init__(self, run: SurveyRun, p: Mapping[str, Any]):
        self.run, self.p = run, p
        self.found, self.layout = run.survey, run.survey.layout
        self.exposures, self.tract = run.survey.exposures, run.survey.tract
        self.strict = (p["strict"], dict(run.survey.rejected))
        self.steps, self.files, self.history = [], {}, []
        self.state, self.calibrated = "files", False
        if run.products:
            self.steps.append(lambda values: exposure_files.read_warps(self.layout, run.products))
            self.state = "warps"
        self.kernels: list[str] = []

    def add(self, entry: Entry, seconds: float) -> None:
        turn = _turn(entry)
        if self.state == "files" and turn != "calibrate":
            self._read()
        if entry.function is not None:
            source = entry.function.origin
            self.history += history("run", f"{source.name}, source SHA-256 {source.digest[:16]}")
            (self._filter if turn == "exposures" else self._combine)(entry, seconds)
        else:
            getattr(self, f"_{entry.tool}")()
            self.kernels += [turn] if turn != "detect" else []
        self.state = TURNS[turn][1]

    def _read(self) -> None:
        layout, known = self.layout, self.exposures
        # A function over exposures needs no zero point; a warp has been refused without.
        points = [dataclasses.replace(ref, magzero=np.nan) if ref.magzero is None else ref for ref in known]
        self.steps += [
            lambda values: exposure_files.read_exposures(layout, known),
            lambda values: exposure_files.take_zero_points(layout, points, *self.strict),
        ]

    def _calibrate(self) -> None:
        layout, p, known = self.layout, self.p, self.exposures
        reference = survey.reference_catalogue(p)
        self.steps += [
            lambda values: calibrate.calibrate(layout, known, survey.calibration(p)),
            lambda values: calibrate.solve(layout, known, reference, p["match_radius"], *self.strict),
        ]
        self.files["exposures.ecsv"] = lambda values: survey.exposure_table(self.found, values)
        self.history += calibrate.history(p)
        self.calibrated = True

    def _filter(self, entry: Entry, seconds: float) -> None:
        layout, function = self.layout, entry.function
        self.steps.append(
            lambda values: user_survey.filter_exposures(
                layout,
                self.exposures,
                function,
                entry.name,
                values["zero_points"],
                values["left_out"],
                seconds,
            )
        )
        self.layout = user_survey.renamed(layout, entry.name)

    def _warp(self) -> None:
        layout, tract = self.layout, self.tract
        self.steps.append(lambda values: warp.warp(layout, self.exposures, tract, values["zero_points"]))
        self.history += warp.HISTORY

    def _coadd(self) -> None:
        layout, p = self.layout, self.p
        self.steps += [
            lambda values: coadd.weigh(layout),
            lambda values: survey.coadd_bands(layout, values, p),
            lambda values: coadd.few_inputs(layout, p["statistic"], p["sigma"], p["passes"]),
        ]
        self.history += coadd.history(p)

    def _combine(self, entry: Entry, seconds: float) -> None:
        layout, function = self.layout, entry.function
        self.steps.append(lambda values: user_survey.combine_bands(layout, function, entry.name, seconds))

    def _detect(self) -> None:
        self.steps += survey.find_sources(self.layout, self.tract, self.p, survey.planes(self.p))
        self.history += detect.history(self.p)

    def finish(self) -> None:
        """Write what the last stage left."""
        if self.tract is not None and not self.run.own_tract:
            self.files["tract.toml"] = lambda values: self.tract.to_toml().encode()
        found = dataclasses.replace(self.found, layout=self.layout)
        if self.state == "exposures":
            self.steps.append(lambda values: self._write_exposures(found, values))
        elif self.state == "warps":
            self.steps.append(lambda values: survey.write_warps(found, values, tuple(self.history)))
        else:
            self._write_patches(found)

    def _write_exposures(self, found: Survey, values: Values):
        names = [
            None if ref.name in values["left_out"] else name
            for ref, name in zip(found.exposures, survey.exposure_names(found.exposures), strict=True)
        ]
        facts = values.get("facts", np.full((len(names), len(calibrate.FACTS)), np.nan)).tolist()
        kinds = values.get("zero_point_types", ("CARD",) * len(names))
        cards = []
        for ref, point, kind, known in zip(found.exposures, values["zero_points"], kinds, facts, strict=True):
            made = exposure_files.exposure_cards(ref) | {"BUNIT": dict(ref.cards).get("BUNIT") or "adu"}
            if self.calibrated:
                made = exposure_files.calibrated_cards(ref, point, kind, known)
            elif np.isfinite(point):
                made["MAGZERO"] = (point, "[mag] of one count")
            cards.append({**made, "HISTORY": (*ref.history, *self.history)})
        return exposure_files.write_exposures(found.layout, found.exposures, cards, names)

    def _write_patches(self, found: Survey) -> None:
        layout, tract, p = self.layout, self.tract, self.p
        names, detected = patch_files.names(layout, p["compress"]), self.state == "sources"
        wanted = survey.planes(p) if detected else tuple(n for n in survey.planes(p) if n == "weight")

        def write(values):
            known = values
            if self.run.products:
                known = {"zero_points": (27.0,) * len(found.exposures)}
            cards = survey.patch_cards(found, known, tuple(self.history))
            return patch_files.write_patches(layout, tract, cards, names, wanted, detected)

        self.steps.append(write)
        if detected:
            catalogues = tuple(dict.fromkeys((p["catalogue"], "catalogue.reg")))
            self.steps += [
                lambda values: detect.write_catalogue(layout, tract, values["sources"], catalogues),
                lambda values: mosaic.average(layout),
                lambda values: mosaic.draw(layout, values["sources"], "mosaic.png"),
            ]


def _recipe(run: SurveyRun, p: Mapping[str, Any]) -> Recipe:
    builder = _Builder(run, p)
    for entry, seconds in zip(run.asked.entries, run.seconds, strict=True):
        builder.add(entry, seconds)
    builder.finish()
    loaded = sum(entry.function.libraries for entry in run.asked.entries if entry.function is not None)
    steps = with_libraries(builder.steps, loaded)
    made = astro_tools.recipe_of("run", run.survey, p, steps, builder.files, run.products)
    functions = {
        entry.name: entry.function.provenance() for entry in run.asked.entries if entry.function is not None
    }
    return dataclasses.replace(
        made,
        sources={**made.sources, "functions": functions},
        record="run.json",
        kernels=tuple(builder.kernels),
    )
