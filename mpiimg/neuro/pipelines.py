"""The neuro domain: diffusion MRI from the scanner's image to maps."""

from __future__ import annotations

from mpiimg.engine.step import Domain, Pipeline, Preset, steps_in
from mpiimg.neuro.subject import IMAGES, SERIES, Subject

DOMAIN = Domain(
    name="neuro",
    state=Subject,
    sources=(IMAGES, SERIES),
    steps=steps_in("mpiimg.neuro.steps"),
    pipelines={
        "neuro": Pipeline(
            "Process diffusion MRI, from the scanner's image to maps: brain mask, check of the volumes, "
            "denoising, tensor fit.",
            ("mask", "volumes", "denoise", "fit"),
        )
    },
    presets={
        "study": Preset(
            "what the study of this toolkit and its comparison with other systems ran, as dipy has it",
            {
                "mask_method": "dipy",
                "median_radius": "4",
                "sigma": "study",
                "inside_mask": True,
                "method": "wls",
                "b_max": "none",
                "min_signal": "0.0001",
                "gradient_check": "off",
            },
            without=("volumes",),
        )
    },
    baseline=125 << 20,
    rates={
        "inflate": (2.2e-9, "mpiimg.neuro.samples:sample_inflate"),
        "deflate": (3.3e-9, "mpiimg.neuro.samples:sample_deflate"),
    },
)
