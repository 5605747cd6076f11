"""The recipe of mpiimg-astro: from exposures to coadds and a catalogue."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.astro.catalogue import check_ending
from mpiimg.astro.fits.exposure import ExposureRef
from mpiimg.astro.fits.headers import ReadOptions
from mpiimg.astro.fits.products import WARP_ENDING, place_cards, read_tract
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.sky.layout import Footprint, Layout, Patch
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.sky.wcs import footprint, footprint_box, parse_wcs
from mpiimg.astro.steps import calibrate, coadd, detect, exposure_files, mosaic, patch_files, warp
from mpiimg.engine.plan import SURVEY_BASELINE, Recipe, Values
from mpiimg.engine.stage import Stage
from mpiimg.errors import BadInput

#: Seconds.
DAY = 86400.0


@dataclass(frozen=True)
class Survey:
    """What headers say of a survey: exposures, tract, and which meets which patch."""

    exposures: tuple[ExposureRef, ...]
    tract: Tract
    layout: Layout
    rejected: tuple[tuple[str, str], ...]


def inspect(args: argparse.Namespace) -> Survey:
    """Read the headers of all exposures and lay out the patches.

    Raises
    ------
    BadInput : no exposure can be used, or one cannot and --strict is given
    """
    _check_name(getattr(args, "catalogue", None))
    return lay_out(args, *find(args))


def find(args: argparse.Namespace) -> tuple[list[ExposureRef], list[tuple[str, str]]]:
    """Read the headers of all exposures; return them, and (file, reason) of those that cannot be used.

    Raises
    ------
    BadInput : none can be used, or one cannot and --strict is given; or options contradict each other
    """
    names = (field.name for field in dataclasses.fields(ReadOptions))
    options = ReadOptions(**{name: getattr(args, name) for name in names})
    if getattr(args, "reference", None) is not None and args.zero_point is not None:
        raise BadInput("--zero-point and --reference both say where zero points come from: give one of them")
    rejected: list[tuple[str, str]] = []
    exposures = find_exposures(args.exposures, options, None if args.strict else rejected)
    if not exposures:
        raise BadInput(rejected[0][1] if rejected else "no exposures: name at least one FITS file")
    return exposures, rejected


def lay_out(
    args: argparse.Namespace, exposures: list[ExposureRef], rejected: list[tuple[str, str]]
) -> Survey:
    """Lay out the patches of the tract that is given, or of one around the exposures.

    Raises
    ------
    BadInput : no exposure meets the tract, or one does not and --strict is given
    """
    tract = _tract(args, exposures)
    layout, kept, outside = _layout(exposures, tract)
    if outside and args.strict:
        raise BadInput(outside[0][1])
    if not kept:
        raise BadInput("no exposure meets the tract; check --tract or --center")
    return Survey(tuple(kept), tract, layout, tuple(rejected + outside))


def _check_name(name: str | None) -> None:
    """Refuse a catalogue that could not be written after all is done, or would take another file's place."""
    if name is None:
        return
    check_ending(Path(name))
    if Path(name).name != name:
        raise BadInput(f"--catalogue {name}: give a name, which is written in --out, not a path")
    if name == "exposures.ecsv" or (name.endswith(".fits") and "patch-" in name):
        raise BadInput(f"--catalogue {name}: another result is called so; choose another name")


def _tract(args: argparse.Namespace, exposures: list[ExposureRef]) -> Tract:
    if args.tract is not None:
        return read_tract(Path(args.tract))
    center = None
    if args.center is not None:
        try:
            ra, dec = (float(word) for word in args.center.split(","))
        except ValueError:
            raise BadInput(f"--center {args.center}: give RA,DEC in degrees, e.g. 150.1,2.2") from None
        center = (ra, dec)
    outlines = [footprint(parse_wcs(ref.wcs), ref.shape) for ref in exposures]
    return Tract.around(outlines, center, args.pixel_scale, args.patch, args.border)


def _layout(exposures: list[ExposureRef], tract: Tract):
    """Return the layout, the exposures that meet the tract, and (name, reason) of those that do not."""
    kept, outside, meets = [], [], []
    for ref in exposures:
        wcs = parse_wcs(ref.wcs)
        touched = tract.touched(wcs, ref.shape)
        box = footprint_box(wcs, ref.shape, tract.wcs) if touched else None
        found = []
        for patch in touched:
            common = tuple(
                (max(a, c), min(b, d)) for (a, b), (c, d) in zip(tract.outer(patch), box, strict=True)
            )
            if all(b > a for a, b in common):
                found.append((patch, common))
        if found:
            kept.append(ref)
            meets.append(found)
        else:
            outside.append((ref.name, f"{ref.image.path}: does not meet the tract"))
    order = {patch: i for i, patch in enumerate(tract.patches)}
    keys = sorted(
        {(ref.band, order[patch]) for ref, found in zip(kept, meets, strict=True) for patch, _ in found}
    )
    number = {key: i for i, key in enumerate(keys)}
    patches = tuple(
        Patch(band, tract.patches[i], tract.outer(tract.patches[i]), tract.inner(tract.patches[i]))
        for band, i in keys
    )
    footprints = tuple(
        Footprint(exposure, number[ref.band, order[patch]], box)
        for exposure, (ref, found) in enumerate(zip(kept, meets, strict=True))
        for patch, box in found
    )
    return Layout(tuple(ref.shape for ref in kept), patches, footprints), kept, outside


def astro(survey: Survey, p: Mapping[str, Any]) -> Recipe:
    """Calibrate, warp, coadd and detect."""
    layout, exposures, tract = survey.layout, survey.exposures, survey.tract
    method = calibration(p)
    names = patch_files.names(layout, p["compress"])
    history = (*calibrate.history(p), *warp.HISTORY, *coadd.history(p), *detect.history(p))
    catalogues = tuple(dict.fromkeys((p["catalogue"], "catalogue.reg")))

    steps = [
        lambda values: calibrate.calibrate(layout, exposures, method),
        lambda values: calibrate.solve(
            layout, exposures, reference_catalogue(p), p["match_radius"], p["strict"], dict(survey.rejected)
        ),
        lambda values: write_calibrated(survey, values, p, "calibrated/") if p["calibrated"] else None,
        lambda values: warp.warp(layout, exposures, tract, values["zero_points"]),
        lambda values: write_warps(survey, values, calibrate.history(p), "warps/") if p["warps"] else None,
        lambda values: coadd.weigh(layout),
        lambda values: coadd_bands(layout, values, p),
        lambda values: coadd.few_inputs(layout, p["statistic"], p["sigma"], p["passes"]),
        *find_sources(layout, tract, p, planes(p)),
        lambda values: patch_files.write_patches(
            layout, tract, patch_cards(survey, values, history), names, planes(p)
        ),
        lambda values: detect.write_catalogue(layout, tract, values["sources"], catalogues),
        lambda values: mosaic.average(layout),
        lambda values: mosaic.draw(layout, values["sources"], "mosaic.png"),
    ]
    bounds = {
        "zero_points": (27.0,) * len(exposures),
        "weights": (1.0,) * len(layout.footprints),
        "sources": detect.expected(layout),
        "left_out": dict(survey.rejected),
    }
    return Recipe(
        tool="mpiimg-astro",
        stem="survey",
        inputs={},
        steps=steps,
        values=bounds,
        documents=lambda values: {
            "tract.toml": tract.to_toml().encode(),
            **({"warps/tract.toml": tract.to_toml().encode()} if p["warps"] else {}),
            "exposures.ecsv": exposure_table(survey, values),
        },
        parameters=p,
        sources={ref.name: ref.identity for ref in exposures},
        record="run.json",
        warnings=tuple(f"left out: {reason}" for _, reason in survey.rejected),
        kernels=("calibrate", "warp", "coadd"),
        files=tuple(path for ref in exposures for path in ref.paths),
        baseline=SURVEY_BASELINE + layout.nbytes,
    )


def coadd_bands(layout: Layout, values: Values, p: Mapping[str, Any]) -> Stage:
    """Declare the coadd with the weights that were found."""
    by_pixel = p["weights"] == "pixel"
    method = (p["statistic"], p["sigma"], p["passes"], by_pixel, p["reject_cr"])
    return coadd.coadd(layout, values["weights"], *method)


def calibration(p: Mapping[str, Any]) -> dict:
    """Return those parameters that say how an exposure is calibrated on its own."""
    return {key: p[key] for key in ("sigclip", "sigfrac", "objlim", "cr_iterations", "mesh")}


def planes(p: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the planes that are asked for beside the usual ones of a patch."""
    return tuple(name for name in ("weight", *detect.MAPS) if p.get(name))


def find_sources(layout: Layout, tract: Tract, p: Mapping[str, Any], wanted: Sequence[str]) -> list:
    """Return the steps that find the sources of coadds and lay them end to end."""
    how = detect.settings(p)
    return [
        lambda values: detect.detect(layout, how, wanted),
        lambda values: detect.count_sources(layout),
        lambda values: detect.gather_rows(layout, tract, how, values["sources"]),
    ]


def write_calibrated(found: Survey, values: Values, p: Mapping[str, Any], folder: str = ""):
    """Declare the files of those exposures that have a zero point, in a folder of the results."""
    facts = values.get("facts", np.full((len(found.exposures), len(calibrate.FACTS)), np.nan))
    kinds = values.get("zero_point_types", ("NONE",) * len(found.exposures))
    known = zip(found.exposures, values["zero_points"], kinds, facts.tolist(), strict=True)
    done = calibrate.history(p)
    cards = [
        {**exposure_files.calibrated_cards(ref, *facts), "HISTORY": (*ref.history, *done)}
        for ref, *facts in known
    ]
    names = [
        folder + name if np.isfinite(point) else None
        for name, point in zip(exposure_names(found.exposures), values["zero_points"], strict=True)
    ]
    return exposure_files.write_exposures(found.layout, found.exposures, cards, names)


def exposure_names(exposures: Sequence[ExposureRef]) -> list[str]:
    """Return a name for the calibrated file of each exposure: its own, unless misread or shared.

    What names one of three files of a DECam triplet is replaced, since a calibrated exposure has one file.
    """
    names, taken = [], set()
    for ref in exposures:
        stem = re.sub(r"(?<![A-Za-z0-9])oo[iwd](?![A-Za-z0-9])", "calibrated", ref.name)
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        names.append(f"{name}.fits")
    return names


def write_warps(found: Survey, values: Values, done: Sequence[str] = (), folder: str = ""):
    """Declare the files of the warps of those exposures that have a zero point, in a folder of results.

    Parameters
    ----------
    done : lines of HISTORY of what this run has done before
    """
    tract, stems = found.tract, [name.removesuffix(".fits") for name in exposure_names(found.exposures)]
    cards, names = [], []
    for part in found.layout.footprints:
        ref, patch = found.exposures[part.exposure], found.layout.patches[part.patch]
        history = {"HISTORY": (*ref.history, *done, *warp.HISTORY)}
        cards.append(exposure_files.warp_cards(ref, ref.name, tract, patch.index, part.box) | history)
        used = np.isfinite(values["zero_points"][part.exposure])
        names.append(f"{folder}{stems[part.exposure]}_{patch.name}{WARP_ENDING}" if used else None)
    return exposure_files.write_warps(found.layout, tract, cards, names)


def reference_catalogue(p: Mapping[str, Any]):
    if p["reference"] is None:
        return None
    from mpiimg.astro.catalogue import read_reference
    from mpiimg.astro.photometry.overlaps import Catalogue

    ra, dec, magnitude = read_reference(Path(p["reference"]))
    return Catalogue(ra, dec, magnitude, np.zeros(len(ra)))


def patch_cards(survey: Survey, values: Values, done: Sequence[str]) -> list[dict]:
    """Return the header of each patch's file, as far as exposures tell.

    Parameters
    ----------
    done : lines of HISTORY of what this run does, after what was done to the exposures before
    """
    points = values["zero_points"]
    found = []
    meeting: list[list[ExposureRef]] = [[] for _ in survey.layout.patches]
    for part in survey.layout.footprints:
        if np.isfinite(points[part.exposure]):
            meeting[part.patch].append(survey.exposures[part.exposure])
    for patch, members in zip(survey.layout.patches, meeting, strict=True):
        dates = [
            ref.mjd + days
            for ref in members
            if ref.mjd is not None
            for days in (0.0, (ref.exptime or 0.0) / DAY)
        ]
        cards = {
            **patch_facts(survey.tract, patch),
            "EXPTIME": (sum(ref.exptime or 0.0 for ref in members), "[s] total"),
            "NCOMBINE": (len(members), "exposures"),
        }
        if dates:
            cards["MJD-BEG"] = (min(dates), "[d] start of the first exposure")
            cards["MJD-END"] = (max(dates), "[d] end of the last one")
        cards |= {f"INP{i:05d}": ref.name for i, ref in enumerate(members)}
        before = dict.fromkeys(line for ref in members for line in ref.history)
        cards["HISTORY"] = (*before, *done)
        found.append(cards)
    return found


def patch_facts(tract: Tract, patch: Patch) -> dict:
    """Return the cards that hold for anything on the pixels of a patch."""
    return {
        "BUNIT": ("ct", "flux per pixel at MAGZERO"),
        "MAGZERO": (27.0, "[mag] of one count"),
        "FILTER": patch.filter,
        **place_cards(tract, patch.index, patch.outer),
    }


def exposure_table(survey: Survey, values: Values) -> bytes:
    """Return the table of exposures: zero point, sky, FWHM, cosmic rays, status; last those left unread.

    Sky and noise are in the unit of each exposure's pixels.
    """
    import io

    from astropy.io import ascii
    from astropy.table import Table

    left_out = values["left_out"]
    unread = [name for name, _ in survey.rejected]
    names = [ref.name for ref in survey.exposures] + unread
    nothing = np.full((len(names), len(calibrate.FACTS)), np.nan)
    facts = np.concatenate([values.get("facts", nothing[len(unread) :]), nothing[: len(unread)]])
    types = values.get("zero_point_types", ("NONE",) * len(survey.exposures))
    table = Table()
    table["name"] = names
    table["band"] = [ref.band for ref in survey.exposures] + [""] * len(unread)
    table["zero_point"] = [*values["zero_points"], *[np.nan] * len(unread)]
    table["zero_point_type"] = [*types, *["NONE"] * len(unread)]
    for column, key in enumerate(calibrate.FACTS[1:], 1):
        table[key] = facts[:, column]
    table["zero_point"].unit, table["fwhm"].unit = "mag", "pix"
    table["status"] = [left_out.get(name, "used") for name in names]
    out = io.StringIO()
    ascii.write(table, out, format="ecsv")
    return out.getvalue().encode()
