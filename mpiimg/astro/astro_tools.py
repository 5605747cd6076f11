"""The recipes of the astro tools that do one step each; in a chain they give the bits of mpiimg-astro."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.astro import survey
from mpiimg.astro.catalogue import check_ending
from mpiimg.astro.fits.exposure import survey_order
from mpiimg.astro.fits.products import Product, find_patches, find_warps
from mpiimg.astro.sky.layout import Footprint, Layout, Patch
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.steps import calibrate, coadd, detect, exposure_files, mosaic, patch_files, warp
from mpiimg.astro.survey import Survey
from mpiimg.engine.plan import SURVEY_BASELINE, Recipe
from mpiimg.errors import BadInput


@dataclass(frozen=True)
class Found:
    """What the headers of warps or patches say.

    Parameters
    ----------
    survey : tract, layout, and the exposures that warps are of: any warp of each
    products : the file of each footprint (warps) or patch, in the order of the layout
    names : of the results: the catalogue and its regions, or none
    own_tract : the results go where tract.toml is already
    """

    survey: Survey
    products: tuple[Product, ...]
    names: tuple[str, ...] = ()
    own_tract: bool = False


# --- mpiimg-calibrate ---------------------------------------------------------------------------------------


def inspect_calibrate(args: argparse.Namespace) -> Survey:
    """Read the headers of all exposures; they need no tract.

    Raises
    ------
    BadInput : no exposure can be used, one cannot and --strict is given, or a result would replace one
    """
    exposures, rejected = survey.find(args)
    layout = Layout(tuple(ref.shape for ref in exposures), (), ())
    _spare(
        Path(args.out), survey.exposure_names(exposures), (path for ref in exposures for path in ref.paths)
    )
    return Survey(tuple(exposures), None, layout, tuple(rejected))


def calibrate_only(found: Survey, p: Mapping[str, Any]) -> Recipe:
    """Calibrate exposures and write them: sky subtracted, cosmic rays repaired, with their zero points."""
    layout, exposures = found.layout, found.exposures
    reference = survey.reference_catalogue(p)
    steps = [
        lambda values: calibrate.calibrate(layout, exposures, survey.calibration(p)),
        lambda values: calibrate.solve(
            layout, exposures, reference, p["match_radius"], p["strict"], dict(found.rejected)
        ),
        lambda values: survey.write_calibrated(found, values, p),
    ]
    documents = {"exposures.ecsv": lambda values: survey.exposure_table(found, values)}
    return recipe_of("calibrate", found, p, steps, documents)


# --- mpiimg-warp --------------------------------------------------------------------------------------------


def inspect_warp(args: argparse.Namespace) -> Survey:
    """Read the headers of calibrated exposures and lay out the patches that they meet.

    Raises
    ------
    BadInput : as for mpiimg-astro; or no exposure has a zero point
    """
    exposures, rejected = survey.find(args)
    without = [
        (
            ref.name,
            f"{ref.image.path}: has no zero point (MAGZERO); run mpiimg-calibrate, or give --zero-point",
        )
        for ref in exposures
        if ref.magzero is None
    ]
    kept = [ref for ref in exposures if ref.magzero is not None]
    if without and (args.strict or not kept):
        raise BadInput(without[0][1])
    return survey.lay_out(args, kept, rejected + without)


def warp_only(found: Survey, p: Mapping[str, Any]) -> Recipe:
    """Resample calibrated exposures onto the patches that they meet, and write each with its place."""
    layout, exposures, tract = found.layout, found.exposures, found.tract
    steps = [
        lambda values: exposure_files.read_exposures(layout, exposures),
        lambda values: exposure_files.take_zero_points(layout, exposures, p["strict"], dict(found.rejected)),
        lambda values: warp.warp(layout, exposures, tract, values["zero_points"]),
        lambda values: survey.write_warps(found, values),
    ]
    return recipe_of("warp", found, p, steps, {"tract.toml": lambda values: tract.to_toml().encode()})


# --- mpiimg-coadd -------------------------------------------------------------------------------------------


def inspect_coadd(args: argparse.Namespace) -> Found:
    """Read the headers of the warps in a folder and lay out the patches that they are of.

    Raises
    ------
    BadInput : there are none, no tract.toml, or they do not belong together
    """
    tract, warps = find_warps(Path(args.warps))
    exposures = sorted({_exposure(product): product for product in warps}.values(), key=survey_order)
    number = {_exposure(product): i for i, product in enumerate(exposures)}
    patches, index = _patches(warps, tract)
    warps.sort(key=lambda product: (number[_exposure(product)], index[product.band, product.patch]))
    footprints = tuple(
        Footprint(number[_exposure(product)], index[product.band, product.patch], product.box)
        for product in warps
    )
    layout = Layout((), patches, footprints)
    own_tract = Path(args.out).resolve() == Path(args.warps).resolve()
    return Found(Survey(tuple(exposures), tract, layout, ()), tuple(warps), (), own_tract)


def _exposure(product: Product) -> tuple[str, str, str]:
    return product.band, product.visit, product.sensor


def _patches(products: Iterable[Product], tract: Tract):
    """Return the patches that files are of, by filter and place, and the number of each (filter, index)."""
    order = {patch: i for i, patch in enumerate(tract.patches)}
    keys = sorted({(product.band, product.patch) for product in products}, key=lambda k: (k[0], order[k[1]]))
    patches = tuple(Patch(band, patch, tract.outer(patch), tract.inner(patch)) for band, patch in keys)
    return patches, {key: i for i, key in enumerate(keys)}


def coadd_only(found: Found, p: Mapping[str, Any]) -> Recipe:
    """Combine warps into patches."""
    layout, tract = found.survey.layout, found.survey.tract
    names = patch_files.names(layout, p["compress"])
    used = {"zero_points": (27.0,) * len(found.survey.exposures)}
    cards = survey.patch_cards(found.survey, used, coadd.history(p))
    steps = [
        lambda values: exposure_files.read_warps(layout, found.products),
        lambda values: coadd.weigh(layout),
        lambda values: survey.coadd_bands(layout, values, p),
        lambda values: coadd.few_inputs(layout, p["statistic"], p["sigma"], p["passes"]),
        lambda values: patch_files.write_patches(
            layout, tract, cards, names, survey.planes(p), detected=False
        ),
    ]
    documents = {} if found.own_tract else {"tract.toml": lambda values: tract.to_toml().encode()}
    return recipe_of("coadd", found.survey, p, steps, documents, found.products)


# --- mpiimg-detect ------------------------------------------------------------------------------------------


def inspect_detect(args: argparse.Namespace) -> Found:
    """Read the headers of the patches in a folder.

    Raises
    ------
    BadInput : there are none, no tract.toml, they do not belong together, or the catalogue has no ending
    """
    out = Path(args.out)
    check_ending(out)
    tract, products = find_patches(Path(args.patches))
    patches, index = _patches(products, tract)
    products.sort(key=lambda product: index[product.band, product.patch])
    names = tuple(dict.fromkeys((out.name, f"{out.stem}.reg")))
    _spare(out.parent, names, (product.path for product in products))
    return Found(Survey((), tract, Layout((), patches, ()), ()), tuple(products), names)


def detect_only(found: Found, p: Mapping[str, Any]) -> Recipe:
    """Find and measure the sources of patches."""
    layout, tract = found.survey.layout, found.survey.tract
    wanted = survey.planes(p)
    cards = [
        {
            **survey.patch_facts(tract, patch),
            "HISTORY": (*product.history, *detect.history(p)),
        }
        for patch, product in zip(layout.patches, found.products, strict=True)
    ]
    picture = Path(found.names[0]).with_suffix(".png").name
    maps = patch_files.names(layout, p["compress"], "detection")
    steps = [
        lambda values: exposure_files.read_patches(layout, found.products),
        *survey.find_sources(layout, tract, p, wanted),
        lambda values: patch_files.write_maps(layout, tract, cards, maps, wanted) if wanted else None,
        lambda values: detect.write_catalogue(layout, tract, values["sources"], found.names),
        lambda values: mosaic.average(layout),
        lambda values: mosaic.draw(layout, values["sources"], picture),
    ]
    p = {**p, "catalogue": found.names[0]}
    return recipe_of("detect", found.survey, p, steps, {}, found.products)


# --- What they share ----------------------------------------------------------------------------------------


def _spare(out: Path, names: Iterable[str], inputs: Iterable[Path]) -> None:
    """Refuse to replace an input by a result, --force or not."""
    given = {path.resolve() for path in inputs}
    for name in names:
        if (out / name).resolve() in given:
            raise BadInput(f"{out / name}: is an input, which the result would replace; choose another --out")


def recipe_of(
    step: str,
    found: Survey,
    p: Mapping[str, Any],
    steps: Sequence,
    documents: Mapping[str, Any],
    products: Sequence[Product] = (),
) -> Recipe:
    """Put a recipe together from what the tools have in common; `documents` are functions of the values."""
    sources = {str(ref.image.path): ref.identity for ref in found.exposures} if not products else {}
    files = tuple(path for ref in found.exposures for path in ref.paths) if not products else ()
    files += tuple(product.path for product in products)
    sources |= {str(product.path): product.identity for product in products}
    return Recipe(
        tool=f"mpiimg-{step}",
        stem="survey",
        inputs={},
        steps=steps,
        values={
            "zero_points": (27.0,) * len(found.exposures),
            "weights": (1.0,) * len(found.layout.footprints),
            "sources": detect.expected(found.layout),
            "left_out": dict(found.rejected),
        },
        documents=lambda values: {name: make(values) for name, make in documents.items()},
        parameters=p,
        sources=sources,
        record=f"run-{step}.json",
        warnings=tuple(f"left out: {reason}" for _, reason in found.rejected),
        kernels=(step,) if step != "detect" else (),
        files=files,
        baseline=SURVEY_BASELINE + found.layout.nbytes,
    )
