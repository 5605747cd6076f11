"""Detection on coadds, patch by patch with its border, and one catalogue of all patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.astro import band_stages, catalogue, mosaic, number_counts, patch_sources, wide
from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.fits.writing import history_lines
from mpiimg.astro.lengths import MESH_LIMITS, aperture_pixels, apertures_of, mesh_of, mesh_pixels
from mpiimg.astro.patch_files import PatchOptions, write_maps, write_patches
from mpiimg.astro.photometry import sources as detection
from mpiimg.astro.photometry.masked_sky import SKIES
from mpiimg.astro.samples import frame
from mpiimg.astro.sky.layout import Layout, Patch
from mpiimg.astro.survey import Survey, tract_document
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.rates import chunk_sample
from mpiimg.engine.stage import Files, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput

#: Bytes that writing a catalogue takes, over those of its rows, by its ending: measured at half a million.
SCRATCH_PER_ROW = {".fits": 6, ".reg": 3, ".ecsv": 20, ".parquet": 4}

#: Bytes of the libraries that write it.
SCRATCH_OF_LIBRARIES = 64 << 20

#: What detection can leave beside the catalogue, plane by plane.
DETECTION_MAPS = {"segmentation": "int32", "background": "float32"}


@dataclass(frozen=True)
class Detection(PatchOptions):
    """How sources are found, and what is left of that.

    `regions` and `mosaic` are the names of the regions for DS9 and of the mosaic.
    """

    threshold: float = parameter(
        3.75,
        "Pixels of the filtered image above this belong to a source.",
        unit="standard deviations",
        limits=(0.1, 1_000_000),
    )
    threshold_noise: str = parameter(
        "filtered",
        "Standard deviations of --threshold are those of the filtered image, as its background has them "
        "(filtered), or those of single pixels, as VARIANCE has them (pixel), which are larger: 2.4 times.",
        choices=("filtered", "pixel"),
    )
    detection_mesh: str = parameter(
        "21arcsec",
        "The background of patches is measured in meshes of this side, a number of their pixels, or a length "
        "on the sky as 21arcsec, which is rounded to 8 pixels and has 32 at least.",
        metavar="PIXELS|ARCSEC",
        limits=MESH_LIMITS,
    )
    bands: str = parameter(
        "together",
        "Sources are found on all bands in one image, and measured in each at the same places: a row of the "
        "catalogue is an object, with columns for each band (together). Or each band is detected for itself, "
        "with a row for each source of each band (apart).",
        choices=("together", "apart"),
    )
    combine: str = parameter(
        "chi",
        "The image of all bands is the root of the sum of squares of what is positive, in units of the noise "
        "(chi), or their sum, which loses what is seen in one band alone (sum).",
        choices=("chi", "sum"),
    )
    match_psf: bool = parameter(
        False,
        "Bands are brought to the worst seeing of all, by a round Gaussian, before fluxes are measured: for "
        "colours of galaxies.",
    )
    detection_sky: str = parameter(
        "objects-masked",
        "The background of patches is measured between objects, which are masked before (objects-masked), or "
        "is the mode of each mesh as it is, which takes the middle of a galaxy larger than a mesh for sky "
        "(plain).",
        choices=SKIES,
    )
    min_area: int = parameter(5, "Sources have at least this size.", unit="pixels", limits=(1, 1_000_000))
    no_deblend: bool = parameter(False, "Blends are left in one piece.")
    widths: str = parameter(
        "profile",
        "The column fwhm has the widths of isophotes as they are (isophotes), or brought to the full width "
        "at half maximum of a profile fitted to the stars of each patch (profile).",
        choices=("profile", "isophotes"),
    )
    apertures: str = parameter(
        "4,10",
        "Fluxes are summed in two circles, a small and a large one, with these radii in pixels of the tract, "
        "or on the sky as 1.5arcsec,4arcsec.",
        metavar="SMALL,LARGE",
    )
    neighbours: str = parameter(
        "symmetric",
        "In an aperture, masked pixels and those of other sources count as the pixels opposite the centre "
        "(symmetric), or as the mean of the rest of the aperture, which makes stars too bright (mean).",
        choices=("symmetric", "mean"),
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
    mosaic: str = mosaic.FILE

    def method(self, pixel_scale: float) -> detection.DetectionSettings:
        """Return how sources are found on pixels of `pixel_scale` arcseconds."""
        return detection.DetectionSettings(
            threshold=self.threshold,
            threshold_noise=self.threshold_noise,
            min_area=self.min_area,
            deblend=not self.no_deblend,
            widths=self.widths,
            neighbours=self.neighbours,
            radii=self.radii(pixel_scale),
            mesh=mesh_pixels(mesh_of(self.detection_mesh, "--detection-mesh"), pixel_scale),
            sky=self.detection_sky,
        )

    def radii(self, pixel_scale: float) -> tuple[float, float]:
        """Return the radii of the two apertures in pixels of `pixel_scale` arcseconds."""
        place = f"--apertures {self.apertures}"
        return aperture_pixels(apertures_of(self.apertures, "--apertures"), pixel_scale, place)

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
    return dataclasses.replace(p, catalogue=name, regions=f"{stem}.reg", mosaic=f"{stem}-{mosaic.FILE}")


def detection_history(p: Detection) -> tuple[str, ...]:
    """Return the lines of HISTORY of what detection measured."""
    blends = "not split" if p.no_deblend else "split"
    what = "the filtered image" if p.threshold_noise == "filtered" else "a pixel"
    return history_lines(
        "detect",
        f"threshold {p.threshold:g} sigma of {what}, at least {p.min_area} pixels, blends {blends}; "
        f"apertures {p.apertures}",
    )


def inspect(state: Survey, p: Detection) -> Inspection:
    """Refuse a catalogue that could not be written after all is done, or would take another file's place.

    Raises
    ------
    BadInput
        Its ending is none, it is a path, or it is the name of another result; or the mesh is no length, or
        the apertures are no radii.
    """
    mesh_of(p.detection_mesh, "--detection-mesh")
    apertures_of(p.apertures, "--apertures")
    if state.tract is not None:
        p.radii(state.tract.pixel_scale)
    if p.match_psf and p.bands != "together":
        raise BadInput(
            "--match-psf goes with --bands together: bands that are detected apart have no colours"
        )
    name = p.catalogue
    catalogue.check_ending(Path(name))
    if Path(name).name != name:
        raise BadInput(f"--catalogue {name}: give a name, which is written in --out, not a path")
    patches = name.endswith(".fits") and "patch-" in name and not state.from_patches
    others = {"exposures.ecsv", "rejected.ecsv", *mosaic.mosaic_names(state.layout, p.mosaic).values()}
    if name in others or patches:
        raise BadInput(f"--catalogue {name}: another result is called so; choose another name")
    return Inspection()


def stages(state: Survey, p: Detection, data: None) -> Stages[Survey]:
    """Find the sources of each patch, lay them end to end, and average patches for the mosaic."""
    layout, how = state.layout, p.method(state.tract.pixel_scale)
    maps = tuple(layout.patch_plane(f"map-{name}", DETECTION_MAPS[name]) for name in p.maps)
    state = dataclasses.replace(
        state, patch_stats=patch_sources.stats_array(layout), maps=maps, compress=state.compress or p.compress
    )
    ratios = (yield band_stages.measure_noise(state, how)) if how.threshold_noise == "filtered" else {}
    bands = band_stages.Bands(ratios, way=p.combine)
    several = p.bands == "together" and len({patch.band for patch in layout.patches}) > 1
    if several:
        state = state.without_patches((yield band_stages.signify(state, how, ratios)))
        bands = dataclasses.replace(bands, significance=band_stages.significance_array(layout))
        if p.match_psf:
            blurs = yield patch_sources.measure_seeing(state, how, bands)
            bands = dataclasses.replace(bands, blurs=blurs)
    state = dataclasses.replace(state, bands_together=several)
    state = state.without_patches((yield patch_sources.detect(state, how, bands)))
    counts = yield patch_sources.count_sources(state)
    state = dataclasses.replace(state, source_counts=counts, catalogue=patch_sources.rows_array(counts))
    state = state.without_patches((yield patch_sources.gather_rows(state, how, bands)))
    return (yield from mosaic.measure(state))


# --- Results ----------------------------------------------------------------------------------------------


def write_patch_files(state: Survey, p: Detection, folder: Path) -> Files | None:
    """Declare the files of patches with what was measured on them; of that alone where they are in files."""
    return write_maps(state, folder) if state.from_patches else write_patches(state, folder)


def write_catalogue(state: Survey, p: Detection, folder: Path) -> Files:
    """Declare the catalogue in each of the formats that the endings of its names tell: one file per chunk."""
    tract = state.tract
    names = tuple(str(folder / name) for name in p.catalogues)

    def work(chunk, folder, rows, stats):
        small, large = (radius * tract.pixel_scale for radius in p.radii(tract.pixel_scale))
        meta = {"PIXSCALE": tract.pixel_scale, "MAGZERO": ZERO_POINT, "RADSMALL": small, "RADLARGE": large}
        table = mosaic.joined_rows(state, rows)
        if state.bands_together:
            patches = state.layout.patches
            stars = band_stages.stars_of_bands(patches, stats)
            radius = p.radii(tract.pixel_scale)[1]
            table = wide.one_row_an_object(table, patches, stars, radius, matched=p.match_psf)
        catalogue.save_catalogue(folder / names[chunk.number], table, meta)

    bytes_per_byte = max(SCRATCH_PER_ROW[Path(name).suffix.lower()] for name in names)
    return Files(
        "catalogue",
        ChunkGrid("k", (len(names),), (1,)),
        reads=(Part(state.catalogue), Part(state.patch_stats)),
        work=work,
        names=names,
        scratch=bytes_per_byte * state.catalogue.nbytes + SCRATCH_OF_LIBRARIES,
    )


def write_counts(state: Survey, p: Detection, folder: Path) -> Files:
    """Declare the table of number counts."""
    return number_counts.write_counts(state, folder, p.mosaic.removesuffix(mosaic.FILE) + "counts")


def write_mosaic(state: Survey, p: Detection, folder: Path) -> Files:
    """Declare the mosaic of all patches."""
    return mosaic.write_mosaic(state, folder, p.mosaic)


def _sample_patch() -> Survey:
    patch = Patch("r", (0, 0), ((0, 512), (0, 512)), ((20, 492), (20, 492)))
    layout = Layout((), (patch,))
    stats = patch_sources.stats_array(layout)
    return Survey(layout=layout, patches=layout.patch_planes(), patch_stats=stats)


def sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: detection on a patch; and how many pixels it has."""
    stage = patch_sources.detect(_sample_patch(), detection.DetectionSettings())
    planes = (*frame(), np.ones((512, 512), np.int16))
    return chunk_sample(stage, 0, *(plane[None] for plane in planes))


def noise_sample() -> tuple[Callable[[], object], float]:
    """Return what is timed: the noise of a filtered patch; and how many pixels it has."""
    stage = band_stages.measure_noise(_sample_patch(), detection.DetectionSettings())
    return chunk_sample(stage, 0, *(plane[None] for plane in frame()))


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
        Output("catalogue", write_mosaic),
        Output("catalogue", write_counts),
    ),
    history=detection_history,
    kernels=("mpiimg.astro.kernels.replaced:precompile",),
    rates={
        "detect": (1.8e-7, "mpiimg.astro.steps.detect:sample"),
        "filtered-noise": (9e-8, "mpiimg.astro.steps.detect:noise_sample"),
    },
    to_file=to_file,
    examples=(
        ("A catalogue of all patches.", "mpiexec -n 8 mpiimg-detect coadds --out catalogue.fits"),
        (
            "Only what is bright, with the pixels that belong to it.",
            "mpiimg-detect coadds --threshold 10 --segmentation --out bright.ecsv",
        ),
    ),
)
