"""The domain of sky surveys: from exposures to coadds and a catalogue."""

from mpiimg.astro.sources import SOURCES
from mpiimg.astro.survey import Survey
from mpiimg.engine.step import Domain, Pipeline, Preset, steps_in

DOMAIN = Domain(
    name="astro",
    state=Survey,
    sources=SOURCES,
    steps=steps_in("mpiimg.astro.steps"),
    pipelines={
        "astro": Pipeline(
            "A sky survey from exposures to coadds and a catalogue: calibrate, warp, coadd, detect.",
            ("calibrate", "warp", "coadd", "detect"),
            examples=(
                (
                    "From exposures to patches and a catalogue, on eight ranks.",
                    "mpiexec -n 8 mpiimg-astro exposures/*.fits --out survey",
                ),
                (
                    "The same with zero points from a reference catalogue, and smaller patches.",
                    "mpiimg-astro exposures/*.fits --reference stars.ecsv --patch 1000 --out survey",
                ),
                (
                    "What a run on 64 ranks would take and need, without a run.",
                    "mpiimg-astro exposures/*.fits --out survey --plan --ranks 64",
                ),
            ),
        )
    },
    presets={
        "study": Preset(
            "what the study of this toolkit and its comparison with other systems ran",
            {
                "pixel_scale": 0.333,
                "noise": "given",
                "cosmic_rays": "always",
                "mesh": "64",
                "sky": "plain",
                "resampling": "lanczos3",
                "statistic": "clip",
                "sigma": 3.0,
                "passes": 2,
                "variance": "pixel",
                "detection_mesh": "64",
                "bands": "apart",
                "detection_sky": "plain",
                "star_size": "half-light",
                "widths": "isophotes",
                "threshold": 5.0,
                "threshold_noise": "pixel",
                "neighbours": "mean",
                "apertures": "4,10",
            },
        )
    },
    baseline=158 << 20,
    report="mpiimg.astro.report.page:survey_page",
)
