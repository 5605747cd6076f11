"""The steps of a diffusion subject, from which recipes are put together: their stages, files and sidecars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.plan import Values
from mpiimg.engine.stage import Need, Stage
from mpiimg.engine.stores import Array
from mpiimg.errors import BadInput
from mpiimg.neuro import images as image
from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.steps import denoise, fit, mask, noise

Step = Callable[[Values], Stage | None]

#: Maps that every fit writes; "residual" only on request.
MAPS = ("fa", "md", "ad", "rd", "rgb", "v1", "s0", "tensor")

MAP_TEXTS = {
    "fa": ("1", "Fractional anisotropy"),
    "md": ("mm^2/s", "Mean diffusivity"),
    "ad": ("mm^2/s", "Axial diffusivity: the largest eigenvalue"),
    "rd": ("mm^2/s", "Radial diffusivity: the mean of the two smaller eigenvalues"),
    "rgb": ("1", "FA times the absolute principal direction in scanner axes: red x, green y, blue z"),
    "v1": ("1", "Principal direction, a unit vector; its sign has no meaning"),
    "s0": ("arbitrary", "Signal without diffusion weighting, as fitted"),
    "tensor": ("mm^2/s", "Diffusion tensor"),
    "residual": ("arbitrary", "Root mean square of signal minus fitted signal over the volumes"),
}


@dataclass(frozen=True)
class Subject:
    """What headers say of a subject: its image, gradients and mask."""

    dwi: Image
    gradients: Gradients | None
    mask: Image | None
    companions: Mapping[str, bytes]
    warnings: tuple[str, ...]

    def sources(self) -> dict[str, Any]:
        found = {"dwi": identity(self.dwi)}
        if self.mask is not None:
            found["mask"] = identity(self.mask)
        return found

    @property
    def files(self) -> tuple[Path, ...]:
        """The images that a run reads."""
        return tuple(image.path for image in (self.dwi, self.mask) if image is not None)


def upper_bounds(subject: Subject) -> Values:
    """Return values that stand for what the data will decide, with arrays as large as they can be."""
    depth, height, width = subject.dwi.shape[-3:]
    return {
        "low": np.float32(0),
        "high": np.float32(1),
        "threshold": 0.0,
        "sigma": np.ones((1, 1)),
        "offsets": tuple(height * width * z for z in range(depth + 1)),
    }


def read(img: Image, name: str) -> list[Step]:
    """Return how a stream gets into an array; other images are read where they lie."""
    return [lambda values: image.inflate(img, name)] if img.kind == "nii.gz" else []


def read_dwi(subject: Subject) -> list[Step]:
    """Return how the image is read, and its voxels that are not finite counted."""
    dwi = subject.dwi.array("dwi")
    return [*read(subject.dwi, "dwi"), lambda values: image.count_nonfinite(subject.dwi, dwi)]


def mask_steps(subject: Subject, dwi: Array, brain: Array, p: Mapping[str, Any]) -> list[Step]:
    """Return how `brain` comes from `dwi`, or from the mask that the user gave."""
    img = subject.dwi
    if subject.mask is not None:
        source = subject.mask.array("mask-image")
        return [
            *read(subject.mask, "mask-image"),
            lambda values: mask.foreign(subject.mask, source),
            lambda values: mask.count_voxels(img, brain, str(subject.mask.path)),
        ]
    passes = [mask.volume(img, "b0" if k == 0 else f"median-{k}", "float32") for k in range(p["passes"] + 1)]
    smooth = passes[-1]
    names = ["thresholded", *["dilated"] * (p["dilate"] > 0), *["finalized"] * p["finalize"]]
    names[-1] = "mask"
    masks = [mask.volume(img, name, "uint8") for name in names]
    steps: list[Step] = [
        lambda values: mask.b0_mean(img, dwi, subject.gradients.b0),
        *(
            lambda values, k=k: mask.median(img, passes[k], k + 1, p["median_radius"])
            for k in range(p["passes"])
        ),
        lambda values: mask.value_range(img, smooth),
        lambda values: mask.otsu(img, smooth, values["low"], values["high"]),
        lambda values: mask.above_threshold(img, smooth, values["threshold"], names[0]),
    ]
    if p["dilate"] > 0:
        steps.append(lambda values: mask.dilate(img, masks[0], p["dilate"], names[1]))
    if p["finalize"]:
        steps.append(lambda values: mask.finalize(img, masks[-2], "mask"))
    steps.append(lambda values: mask.count_voxels(img, brain, f"{img.path}: the computed mask"))
    return steps


def denoise_steps(subject: Subject, dwi: Array, brain: Array, p: Mapping[str, Any]) -> list[Step]:
    """Return how the noise level is found and the masked voxels of `dwi` are denoised.

    Raises
    ------
    BadInput : parameters do not fit together
    """
    img, method = subject.dwi, noise.parse(p["sigma"])
    noise.check_coils(method, p["coils"])
    if p["patch_radius"] >= p["block_radius"]:
        raise BadInput(
            f"--patch-radius {p['patch_radius']} does not fit into --block-radius {p['block_radius']}: "
            "the block must be larger than the patch"
        )

    def background(values):
        return noise.background(img, dwi, brain, method) if method in ("auto", "piesno") else None

    def piesno(values):
        wanted = values.get("noise_method", method) in ("auto", "piesno")
        return noise.piesno(img, dwi, brain, p["coils"] or 1, method) if wanted else None

    def estimate(values):
        wanted = values.get("noise_method", method) in ("auto", "estimate")
        return noise.estimate(img, dwi, p["coils"] or 0) if wanted else None

    def denoise_dwi(values):
        sigma = values["sigma"] if isinstance(method, str) else np.full((1, 1), method)
        return denoise.denoise(
            img,
            dwi,
            brain,
            values["offsets"],
            sigma,
            p["patch_radius"],
            p["block_radius"],
            not p["gaussian"],
        )

    return [background, piesno, estimate, denoise_dwi]


def denoised_array(subject: Subject) -> Callable[[Values], Array]:
    """Return the array that denoising writes, once the size of the mask is known."""
    return lambda values: Array("denoised", "vn", (subject.dwi.shape[0], values["offsets"][-1]), "float32")


def fit_stage(subject: Subject, p: Mapping[str, Any], reads: tuple[Need, ...], values: Values) -> Stage:
    """Declare the fit to what `reads` brings: an image and the mask, or voxels in the mask."""
    return fit.fit(
        subject.dwi,
        reads,
        values["offsets"],
        subject.gradients,
        subject.gradients.up_to(p["b_max"]),
        p["method"],
        p["min_signal"],
        p["frame"],
        p["tensor_order"],
        p["restore_sigma"],
    )


def mask_outputs(subject: Subject, brain: Array) -> list[Step]:
    """Return how the mask is written."""
    name = _names(subject)["mask"]
    return [
        lambda values: image.write_dense(
            name, subject.dwi, (Need(brain),), lambda chunk, block: block, None, "uint8"
        )
    ]


def denoise_outputs(subject, dwi: Array, brain: Array, denoised, p: Mapping[str, Any]) -> list[Step]:
    """Return how the denoised image, the noise level and, on request, the residual are written."""
    img, names = subject.dwi, _names(subject)
    volumes = range(dwi.shape[0])
    steps = [
        lambda values: image.write_packed(
            names["denoised"], img, brain, denoised(values), values["offsets"], volumes
        ),
        lambda values: denoise.write_noise(names["noise"], img, _sigma(p, values)),
    ]
    if p["residual"]:
        steps.append(
            lambda values: denoise.write_residual(
                names["residual"], img, dwi, brain, denoised(values), values["offsets"]
            )
        )
    return steps


def fit_outputs(subject: Subject, brain: Array, p: Mapping[str, Any]) -> list[Step]:
    """Return how the maps of a fit are written."""
    maps = (*MAPS, *["residual"] * p["fit_residual"])

    def write(values, key):
        packed = Array("maps", "cn", (fit.COUNT, values["offsets"][-1]), "float32")
        name = f"{_map_name(subject, key)}.nii.gz"
        return image.write_packed(name, subject.dwi, brain, packed, values["offsets"], fit.ROWS[key])

    return [lambda values, key=key: write(values, key) for key in maps]


def _sigma(p: Mapping[str, Any], values: Values) -> np.ndarray:
    method = noise.parse(p["sigma"])
    return values["sigma"] if isinstance(method, str) else np.full((1, 1), method)


def _names(subject: Subject) -> dict[str, str]:
    stem = subject.dwi.stem
    return {
        "mask": f"{stem}_desc-brain_mask.nii.gz",
        "denoised": f"{stem}_desc-denoised_dwi.nii.gz",
        "noise": f"{stem}_desc-noise_dwimap.nii.gz",
        "residual": f"{stem}_desc-residual_dwi.nii.gz",
    }


def _map_name(subject: Subject, key: str) -> str:
    return f"{subject.dwi.stem}_model-tensor_param-{key}_dwimap"


def documents(
    subject: Subject, p: Mapping[str, Any], parts: tuple[str, ...], values: Values
) -> dict[str, bytes]:
    """Return the sidecars and gradient files that stand beside the images."""
    files: dict[str, bytes] = {}
    if "mask" in parts:
        files |= _mask_documents(subject, p, values)
    if "denoise" in parts:
        files |= _denoise_documents(subject, p, values)
    if "fit" in parts:
        files |= _fit_documents(subject, p)
    return files


def _mask_documents(subject: Subject, p: Mapping[str, Any], values: Values) -> dict[str, bytes]:
    if subject.mask is not None:
        method = {"Method": "given by the user", "Sources": [subject.mask.path.name]}
    else:
        method = {
            "Method": "median_otsu: mean b0, median filter, Otsu's threshold (DIPY's)",
            "MedianRadius": p["median_radius"],
            "Passes": p["passes"],
            "Dilate": p["dilate"],
            "Finalize": p["finalize"],
            "Threshold": float(values["threshold"]),
        }
    text = image.sidecar(
        Type="Brain", Units="1", Description="1 inside the brain", Voxels=values.get("mask_voxels"), **method
    )
    return {_json(_names(subject)["mask"]): text}


def _denoise_documents(subject: Subject, p: Mapping[str, Any], values: Values) -> dict[str, bytes]:
    names = _names(subject)
    method = values.get("noise_method", noise.parse(p["sigma"]))
    common = {
        "Units": "arbitrary",
        "Method": f"non-local means, voxelwise, {'Gaussian' if p['gaussian'] else 'Rician'} noise",
        "Reference": denoise.PAPER,
        "PatchRadius": p["patch_radius"],
        "BlockRadius": p["block_radius"],
        "Mask": _mask_source(subject),
        "NoiseMethod": method if isinstance(method, str) else "given",
    }
    described = image.sidecar(Description="Denoised inside the mask, 0 outside", SkullStripped=True, **common)
    sigma = np.asarray(_sigma(p, values))
    files = {
        _json(names["denoised"]): described,
        _json(names["noise"]): image.sidecar(
            Description="Noise level: standard deviation of the noise before the magnitude was taken; "
            "where it was estimated by volume, the root mean square over volumes",
            SkullStripped=False,
            **common,
            Sigma=sigma.ravel().tolist(),
            SigmaBy="slice" if sigma.shape[1] > 1 else "volume" if sigma.shape[0] > 1 else "image",
        ),
    }
    if p["residual"]:
        text = "Input minus denoised inside the mask, 0 outside"
        files[_json(names["residual"])] = image.sidecar(Description=text, SkullStripped=True, **common)
    base = names["denoised"].removesuffix(".nii.gz")
    files |= {base + ending: data for ending, data in subject.companions.items()}
    return files


def _fit_documents(subject: Subject, p: Mapping[str, Any]) -> dict[str, bytes]:
    used = subject.gradients.up_to(p["b_max"])
    shells = sorted({round(subject.gradients.bvals[v], -2) for v in used})
    frames = {
        "bvec": "bvecs: voxel axes, x negated where det(affine) > 0",
        "scanner": "scanner axes, RAS+ mm",
    }
    order = [fit.ELEMENTS[i] for i in fit.ORDERS[p["tensor_order"]]]
    files = {}
    for key in (*MAPS, *["residual"] * p["fit_residual"]):
        unit, text = MAP_TEXTS[key]
        fields = {"Units": unit, "Description": text, "SkullStripped": True}
        fields |= {"Model": "tensor", "Method": p["method"]}
        fields |= {
            "Reference": fit.PAPER,
            "Shells": shells,
            "Volumes": len(used),
            "Mask": _mask_source(subject),
        }
        if key in ("v1", "tensor"):
            fields["Frame"] = frames[p["frame"]]
        if key == "tensor":
            fields["Elements"] = order
        if key == "rgb":
            fields["Frame"] = frames["scanner"]
        files[_map_name(subject, key) + ".json"] = image.sidecar(**fields)
    return files


def _mask_source(subject: Subject) -> str:
    return _names(subject)["mask"] if subject.mask is None else subject.mask.path.name


def _json(name: str) -> str:
    return name.removesuffix(".nii.gz") + ".json"


def identity(img: Image) -> dict[str, Any]:
    """Return what run.json says of an image."""
    size, time, crc = img.identity
    return {
        "path": str(img.path),
        "bytes": size,
        "mtime_ns": time,
        "header_crc32": crc,
        "sample_crc32": img.sample[2],
        "shape": img.shape,
    }
