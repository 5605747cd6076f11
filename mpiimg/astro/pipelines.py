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
    baseline=150 << 20,
)
