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
            "denoising, tensor fit, figures of quality.",
            ("mask", "volumes", "denoise", "fit", "qc"),
            examples=(
                (
                    "From one image, whose gradients lie beside it, to maps, on four ranks.",
                    "mpiexec -n 4 mpiimg-neuro dwi.nii.gz --out maps",
                ),
                (
                    "The same with gradients from elsewhere and a mask of your own.",
                    "mpiimg-neuro dwi.nii.gz --bvals b.txt --bvecs v.txt --mask brain.nii.gz --out maps",
                ),
                (
                    "What a run on 64 ranks would take and need, without a run.",
                    "mpiimg-neuro dwi.nii.gz --out maps --plan --ranks 64",
                ),
                (
                    "Two subjects of a BIDS dataset, to a BIDS derivative.",
                    "mpiexec -n 8 mpiimg-neuro study maps participant --participant-label 01 02",
                ),
            ),
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
            without=("volumes", "qc"),
        )
    },
    baseline=125 << 20,
    report="mpiimg.neuro.report.page:page_of",
    cohort_report="mpiimg.neuro.report.cohort:cohort_page",
    rates={
        "inflate": (2.2e-9, "mpiimg.neuro.samples:sample_inflate"),
        "deflate": (3.3e-9, "mpiimg.neuro.samples:sample_deflate"),
    },
)
