"""Detection on coadds, patch by patch with its border, and one catalogue of all patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpiimg.astro import catalogue, mosaic
from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.fits.maskplanes import bits
from mpiimg.astro.fits.writing import history_lines
from mpiimg.astro.lengths import MESH_LIMITS, mesh_of, mesh_pixels
from mpiimg.astro.patch_files import PatchOptions, write_maps, write_patches
from mpiimg.astro.photometry import point_sources, seams
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.samples import frame
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.survey import PATCH_STATS, Survey, patch_units, tract_document
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid, box_shape, box_size
from mpiimg.engine.needs import At, Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.rates import chunk_sample
from mpiimg.engine.stage import Compute, Files, Found, Reduce, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput

#: A patch keeps one source in so many pixels when first gone through; with more it is gone through again.
PIXELS_PER_SOURCE = 200

#: Bytes per pixel that background, filtering and segmentation take.
DETECTION_SCRATCH = 40

#: One source in so many pixels is what plans reckon with before any has been found: no run is refused for
#: sources that it may not find.
USUAL_PIXELS_PER_SOURCE = 4000

#: Bytes that writing a catalogue takes, over those of its rows, by its ending: measured at half a million.
SCRATCH_PER_ROW = {".fits": 6, ".reg": 3, ".ecsv": 20, ".parquet": 4}

#: Bytes of the libraries that write it.
SCRATCH_OF_LIBRARIES = 64 << 20

#: Pixels with these say nothing to detection; saturated stars are to be found.
USELESS = ("NO_DATA", "BAD", "EDGE")

#: What detection can leave beside the catalogue, plane by plane.
DETECTION_MAPS = {"segmentation": "int32", "background": "float32"}

#: In a segmentation: pixels of a source whose centre another patch has.
ELSEWHERE = -1


@dataclass(frozen=True)
class Detection(PatchOptions):
    """How sources are found, and what is left of that.

    `regions` and `picture` are the names of the regions for DS9 and of the mosaic.
    """

    threshold: float = parameter(
        5.0,
        "Pixels of the filtered image above this belong to a source.",
        unit="standard deviations of a pixel",
        limits=(0.1, 1_000_000),
    )
    detection_mesh: str = parameter(
        "21arcsec",
        "The background of patches is measured in meshes of this side, a number of their pixels, or a length "
        "on the sky as 21arcsec, which is rounded to 8 pixels and has 32 at least.",
        metavar="PIXELS|ARCSEC",
        limits=MESH_LIMITS,
    )
    min_area: int = parameter(5, "Sources have at least this size.", unit="pixels", limits=(1, 1_000_000))
    no_deblend: bool = parameter(False, "Blends are left in one piece.")
    widths: str = parameter(
        "profile",
        "The column fwhm has the widths of isophotes as they are (isophotes), or brought to the full width "
        "at half maximum of a profile fitted to the stars of each patch (profile).",
        choices=("profile", "isophotes"),
    )
    segmentation: bool = parameter(
        False, "Patches get a plane SEGMENTATION: which pixels belong to which source."
    )
    background: bool = parameter(
        False, "Patches get a plane BACKGROUND, which is subtracted before detection."
    )
    catalogue: str = parameter(
        "catalogue.fits", "The catalogue has this name; it ends in .fits, .ecsv or .parquet."
    )
    regions: str = "catalogue.reg"
    picture: str = "mosaic.png"

    def method(self, pixel_scale: float) -> detection.DetectionSettings:
        """Return how sources are found on pixels of `pixel_scale` arcseconds."""
        return detection.DetectionSettings(
            threshold=self.threshold,
            min_area=self.min_area,
            deblend=not self.no_deblend,
            widths=self.widths,
            mesh=mesh_pixels(mesh_of(self.detection_mesh, "--detection-mesh"), pixel_scale),
        )

    @property
    def maps(self) -> tuple[str, ...]:
        """Those of DETECTION_MAPS that are asked for."""
        return tuple(name for name in DETECTION_MAPS if getattr(self, name))

    @property
    def catalogues(self) -> tuple[str, ...]:
        """The names of the catalogue and its regions."""
        return tuple(dict.fromkeys((self.catalogue, self.regions)))


def to_file(p: Detection, name: str) -> Detection:
    """Name the catalogue, and what lies beside it by the stem of that."""
    stem = Path(name).stem
    return dataclasses.replace(p, catalogue=name, regions=f"{stem}.reg", picture=f"{stem}.png")


def detection_history(p: Detection) -> tuple[str, ...]:
    """Return the lines of HISTORY of what detection measured."""
    blends = "not split" if p.no_deblend else "split"
    return history_lines(
        "detect", f"threshold {p.threshold:g} sigma, at least {p.min_area} pixels, blends {blends}"
    )


def inspect(state: Survey, p: Detection) -> Inspection:
    """Refuse a catalogue that could not be written after all is done, or would take another file's place.

    Raises
    ------
    BadInput
        Its ending is none, it is a path, or it is the name of another result; or the mesh is no length.
    """
    mesh_of(p.detection_mesh, "--detection-mesh")
    name = p.catalogue
    catalogue.check_ending(Path(name))
    if Path(name).name != name:
        raise BadInput(f"--catalogue {name}: give a name, which is written in --out, not a path")
    patches = name.endswith(".fits") and "patch-" in name and not state.from_patches
    if name == "exposures.ecsv" or patches:
        raise BadInput(f"--catalogue {name}: another result is called so; choose another name")
    return Inspection()


def stages(state: Survey, p: Detection, data: None) -> Stages[Survey]:
    """Find the sources of each patch, lay them end to end, and average the patches for a picture."""
    layout, how = state.layout, p.method(state.tract.pixel_scale)
    maps = tuple(layout.patch_plane(f"map-{name}", DETECTION_MAPS[name]) for name in p.maps)
    state = dataclasses.replace(
        state, patch_stats=stats_array(layout), maps=maps, compress=state.compress or p.compress
    )
    state = state.without_patches((yield detect(state, how)))
    counts = yield count_sources(state)
    state = dataclasses.replace(state, source_counts=counts, catalogue=rows_array(counts))
    state = state.without_patches((yield gather_rows(state, how)))
    state = dataclasses.replace(state, mosaic=mosaic.means_array(layout))
    return state.without_patches((yield mosaic.average(state)))


# --- Patch by patch ---------------------------------------------------------------------------------------


class _Detected(NamedTuple):
    """Sources of a patch, its PATCH_STATS, and its maps, (rows, columns)."""

    table: np.ndarray
    stats: tuple[float, ...]
    segmentation: np.ndarray
    background: np.ndarray


def capacity(layout: Layout) -> int:
    """Return how many sources a patch keeps when it is first gone through."""
    pixels = max((box_size(patch.outer) for patch in layout.patches), default=0)
    return -(-pixels // PIXELS_PER_SOURCE)


def expected_counts(layout: Layout) -> tuple[int, ...]:
    """Return how many sources plans reckon with in each patch."""
    return tuple(-(-box_size(patch.outer) // USUAL_PIXELS_PER_SOURCE) for patch in layout.patches)


def stats_array(layout: Layout) -> Array:
    """Return the array of the PATCH_STATS of every patch."""
    return Array("patch-stats", "pf", (len(layout.patches), len(PATCH_STATS)), "float64")


def rows_array(counts: Sequence[int]) -> Array:
    """Return the array of the rows of all patches, one patch after the other, as bytes."""
    return Array("catalogue-rows", "r", (sum(counts) * catalogue.ROW_TYPE.itemsize,), "uint8")


def _sources_array(layout: Layout) -> Array:
    width = capacity(layout) * catalogue.ROW_TYPE.itemsize
    return Array("sources", "pr", (len(layout.patches), width), "uint8")


def detect(state: Survey, how: detection.DetectionSettings) -> Compute:
    """Declare detection: sources centred in the inner box of each patch, as rows of the catalogue.

    A patch with more sources than :func:`capacity` leaves their number alone; :func:`gather_rows` finds them.

    Parameters
    ----------
    state : Survey
        `maps` are the arrays of those DETECTION_MAPS that are asked for.
    how : DetectionSettings
    """
    layout, maps = state.layout, state.maps
    sources = _sources_array(layout)
    names = [array.name.rpartition("-")[2] for array in state.maps]

    def without(chunk):
        shape = (1, *box_shape(layout.patches[chunk.number].outer))
        stats = np.array([[0.0, np.nan, np.nan, np.nan]])
        return (
            np.zeros((1, sources.shape[1]), np.uint8),
            stats,
            *(np.zeros(shape, one.dtype) for one in maps),
        )

    def work(chunk, *planes):
        if chunk.number in state.lost_patches:
            return without(chunk)
        detected = _detected(layout.patches[chunk.number], chunk.number, planes, how)
        row = np.zeros((1, sources.shape[1]), np.uint8)
        if len(detected.table) <= capacity(layout):
            data = detected.table.tobytes()
            row[0, : len(data)] = np.frombuffer(data, np.uint8)
        return (row, np.array([detected.stats]), *(getattr(detected, name)[None] for name in names))

    sizes = tuple(box_size(patch.outer) for patch in layout.patches)
    return Compute(
        "detect",
        layout.patch_grid,
        reads=tuple(map(Part, state.patches[:4])),
        writes=(sources, state.patch_stats, *state.maps),
        work=work,
        units=patch_units(state),
        without=without,
        parameters={**vars(how), "maps": names, "lost": sorted(state.lost_patches)},
        weights=sizes,
        scratch=DETECTION_SCRATCH * max(sizes, default=0),
        cost=("detect", float(sum(sizes))),
    )


def _detected(
    patch: Patch, number: int, planes: Sequence[np.ndarray], how: detection.DetectionSettings
) -> _Detected:
    """Find and measure the sources of a patch, from its planes, (1, rows, columns) each."""
    image, variance, mask, nimage = (plane[0] for plane in planes)
    origin = (patch.outer[0][0], patch.outer[1][0])
    excluded = bits(*USELESS)
    bad = detection.unusable(image, variance, mask, excluded)
    sky, _ = detection.mesh_background(image, bad, origin, how.mesh)
    table, segmentation = detection.find_sources(image, variance, mask, nimage, sky, origin, excluded, how)
    correction = detection.noise_correction(image - sky, variance, bad, segmentation, how.radii[0])
    if np.isfinite(correction):
        table = detection.scale_errors(table, correction)
    loss = detection.aperture_correction(table, bits("SAT"), how.radii[1])
    table = detection.add_magnitudes(table, loss if np.isfinite(loss) else 1.0)
    stars = point_sources.isolated_stars(table, bits("SAT"), how.radii[1])
    fwhm, ratio = point_sources.seeing(image - sky, bad, table, origin, stars)
    if how.widths == "profile" and np.isfinite(ratio):
        table["fwhm"] *= np.float32(ratio)
    # Until they are numbered, sources go by their labels in the segmentation.
    table["id"] = np.arange(1, len(table) + 1)
    labels = np.full(len(table) + 1, ELSEWHERE, np.int32)
    table = seams.keep_inner(table, patch.inner)
    labels[0], labels[table["id"]] = 0, np.arange(1, len(table) + 1)
    table = seams.number(table, number, patch.name, patch.band)
    stats = (len(table), correction, np.median(sky), fwhm)
    return _Detected(table, stats, labels[segmentation], sky)


# --- All patches ------------------------------------------------------------------------------------------


def count_sources(state: Survey) -> Reduce[tuple[int, ...]]:
    """Tell how many sources each patch has."""
    return Reduce(
        "count-sources",
        state.layout.patch_grid,
        reads=(Part(state.patch_stats),),
        work=lambda chunk, stats: stats[0, 0],
        row=((), "int64"),
        finish=lambda rows: Found(tuple(rows.tolist())),
        expected=expected_counts(state.layout),
    )


def gather_rows(state: Survey, how: detection.DetectionSettings) -> Compute:
    """Lay the sources of all patches end to end, with their places on the sky.

    A patch in which more were found than it keeps is gone through again, now that their number is known.

    Parameters
    ----------
    state : Survey
        With the number of sources of each patch.
    how : DetectionSettings
    """
    layout, tract, counts = state.layout, state.tract, state.source_counts
    size = catalogue.ROW_TYPE.itemsize
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()
    crowded = {number for number, count in enumerate(counts) if count > capacity(layout)}

    def kept(chunk):
        number = chunk.number
        return None if number in crowded else ((number, number + 1), (0, counts[number] * size))

    def own_rows(chunk):
        return ((starts[chunk.number] * size, starts[chunk.number + 1] * size),)

    def planes_of(array):
        return At(array, lambda chunk: array.item(chunk.number) if chunk.number in crowded else None)

    def work(chunk, row, *planes):
        if chunk.number in crowded:
            table = _detected(layout.patches[chunk.number], chunk.number, planes, how).table
        else:
            table = np.frombuffer(row.tobytes(), catalogue.ROW_TYPE)
        return (np.frombuffer(seams.locate(table, tract.wcs).tobytes(), np.uint8),)

    return Compute(
        "catalogue-rows",
        layout.patch_grid,
        reads=(At(_sources_array(layout), kept), *map(planes_of, state.patches[:4])),
        writes=(At(state.catalogue, own_rows),),
        work=work,
        units=patch_units(state),
        without=lambda chunk: (np.zeros(counts[chunk.number] * size, np.uint8),),
        parameters={"tract": tract.to_toml(), "counts": list(counts)},
    )


# --- Results ----------------------------------------------------------------------------------------------


def write_patch_files(state: Survey, p: Detection, folder: Path) -> Files | None:
    """Declare the files of patches with what was measured on them; of that alone where they are in files."""
    return write_maps(state, folder) if state.from_patches else write_patches(state, folder)


def write_catalogue(state: Survey, p: Detection, folder: Path) -> Files:
    """Declare the catalogue in each of the formats that the endings of its names tell: one file per chunk."""
    tract = state.tract
    names = tuple(str(folder / name) for name in p.catalogues)

    def work(chunk, folder, rows):
        meta = {"PIXSCALE": tract.pixel_scale, "MAGZERO": ZERO_POINT}
        catalogue.save_catalogue(folder / names[chunk.number], mosaic.joined_rows(state, rows), meta)

    bytes_per_byte = max(SCRATCH_PER_ROW[Path(name).suffix.lower()] for name in names)
    return Files(
        "catalogue",
        ChunkGrid("k", (len(names),), (1,)),
        reads=(Part(state.catalogue),),
        work=work,
        names=names,
        scratch=bytes_per_byte * state.catalogue.nbytes + SCRATCH_OF_LIBRARIES,
    )


def draw_mosaic(state: Survey, p: Detection, folder: Path) -> Files:
    """Declare the picture of all patches with their sources."""
    return mosaic.write_mosaic(state, str(folder / p.picture))


def sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: detection on a patch; and how many pixels it has."""
    patch = Patch("r", (0, 0), ((0, 512), (0, 512)), ((20, 492), (20, 492)))
    layout = Layout((), (patch,))
    state = Survey(layout=layout, patches=layout.patch_planes(), patch_stats=stats_array(layout))
    planes = (*frame(), np.ones((512, 512), np.int16))
    return chunk_sample(detect(state, detection.DetectionSettings()), 0, *(plane[None] for plane in planes))


STEP = Step(
    "detect",
    "Find and measure the sources of patches; one catalogue of all.",
    takes=("patches", "tract"),
    gives=("patches", "catalogue"),
    stages=stages,
    parameters=Detection,
    papers=("Bertin and Arnouts 1996, doi:10.1051/aas:1996164; Barbary 2016, doi:10.21105/joss.00058",),
    inspect=inspect,
    outputs=(
        Output(
            "patches",
            write_patch_files,
            when="end",
            documents=tract_document,
            without=Survey.without_patches,
        ),
        Output("catalogue", write_catalogue),
        Output("catalogue", draw_mosaic),
    ),
    history=detection_history,
    rates={"detect": (1.8e-7, "mpiimg.astro.steps.detect:sample")},
    to_file=to_file,
)
