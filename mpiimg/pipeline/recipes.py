"""The stages of each pipeline, and of each tool: a tool is a pipeline of length one.

A recipe is made in two steps. `inspect_*` reads headers and gradient tables on
one rank and refuses what cannot work; what it returns is sent to all ranks,
where the recipe is built from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.io.gradients import TENSOR_B_LIMIT, Gradients, read_gradients
from mpiimg.io.nifti import Image, bare_name, open_image, same_space, staged_attributes
from mpiimg.io.store import DATASET, Array
from mpiimg.pipeline.plan import Recipe, Values
from mpiimg.stages import denoise, fit, image, mask, noise
from mpiimg.stages.stage import Need, Stage

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
        found = {"dwi": _identity(self.dwi)}
        if self.mask is not None:
            found["mask"] = _identity(self.mask)
        return found


def inspect_image(dwi: str) -> Image:
    """Read the header of a diffusion image.

    Raises
    ------
    BadInput : it cannot be used
    """
    return open_image(Path(dwi), 4, "diffusion image")


def inspect_subject(
    dwi: str,
    bvals: str | None = None,
    bvecs: str | None = None,
    mask: str | None = None,
    b0_threshold: float = 50.0,
    b_max: float | None = None,
    normalise_bvecs: bool = False,
    fits: bool = False,
) -> Subject:
    """Read all headers of a subject.

    Parameters
    ----------
    dwi, bvals, bvecs, mask : paths
    b0_threshold, b_max : s/mm^2
    fits : a tensor will be fitted: check that the volumes determine one

    Raises
    ------
    BadInput : something is missing, unreadable, or does not fit together
    """
    path = Path(dwi)
    img = open_image(path, 4, "diffusion image")
    warnings: list[str] = []
    gradients = None
    companions = {}
    if bvals is not None:
        gradients, warnings = read_gradients(
            Path(bvals), Path(bvecs), img.shape[0], b0_threshold, normalise_bvecs
        )
        companions = {".bval": Path(bvals).read_bytes(), ".bvec": Path(bvecs).read_bytes()}
    else:
        siblings = {ending: path.with_name(bare_name(path) + ending) for ending in (".bval", ".bvec")}
        companions = {ending: other.read_bytes() for ending, other in siblings.items() if other.is_file()}
    if (path.parent / "grad_dev.nii.gz").exists():
        warnings.append(
            f"{path.parent / 'grad_dev.nii.gz'} is not used: gradients count as equal in all voxels"
        )
    if fits:
        warnings += _check_tensor_volumes(gradients, b_max, bvals)
    foreign = None
    if mask is not None:
        foreign = open_image(Path(mask), 3, "mask")
        difference = same_space(img, foreign)
        if difference:
            raise BadInput(f"{mask}: this mask is not in the space of {dwi}: they differ in {difference}")
    return Subject(img, gradients, foreign, companions, tuple(warnings))


def _check_tensor_volumes(gradients: Gradients, b_max: float | None, path: str) -> list[str]:
    from mpiimg.kernels.tensor import design_matrix

    used = list(gradients.up_to(b_max))
    design = design_matrix(np.array(gradients.bvals)[used], np.array(gradients.bvecs)[used].reshape(-1, 3))
    if np.linalg.matrix_rank(design) < 7:
        limit = "" if b_max is None else f" with b <= {b_max:g}"
        raise BadInput(
            f"{path}: the {len(used)} volumes{limit} do not determine a tensor: "
            "at least six directions and one other b-value are needed; raise --b-max or give more volumes"
        )
    highest = max(gradients.bvals)
    if b_max is None and highest > TENSOR_B_LIMIT:
        return [
            f"{path}: b-values up to {highest:g} s/mm^2 enter the tensor fit; "
            f"--b-max {TENSOR_B_LIMIT:g} keeps to those that a tensor describes"
        ]
    return []


def neuro(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Mask, denoise and fit a subject."""
    dwi = subject.dwi.array("dwi")
    brain = mask.volume(subject.dwi, "mask", "uint8")
    denoised = _denoised(subject)

    def fit_denoised(values):
        volumes = subject.gradients.up_to(p["b_max"])
        rows = None if len(volumes) == dwi.shape[0] else volumes
        need = Need(denoised(values), rows=rows, offsets=values["offsets"])
        return _fit_stage(subject, p, (need,), values)

    steps = [
        *_read_dwi(subject),
        *_mask_steps(subject, dwi, brain, p),
        *_denoise_steps(subject, dwi, brain, p),
        fit_denoised,
        *_mask_outputs(subject, brain),
        *_denoise_outputs(subject, dwi, brain, denoised, p),
        *_fit_outputs(subject, brain, p),
    ]
    return _recipe("mpiimg-neuro", subject, p, steps, ("mask", "denoise", "fit"))


def mask_only(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Make a brain mask."""
    brain = mask.volume(subject.dwi, "mask", "uint8")
    dwi = subject.dwi.array("dwi")
    steps = [
        *_read_dwi(subject),
        *_mask_steps(subject, dwi, brain, p),
        *_mask_outputs(subject, brain),
    ]
    return _recipe("mpiimg-mask", subject, p, steps, ("mask",))


def denoise_only(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Denoise inside a mask."""
    dwi, brain = subject.dwi.array("dwi"), mask.volume(subject.dwi, "mask", "uint8")
    steps = [
        *_read_dwi(subject),
        *_mask_steps(subject, dwi, brain, p),
        *_denoise_steps(subject, dwi, brain, p),
        *_denoise_outputs(subject, dwi, brain, _denoised(subject), p),
    ]
    return _recipe("mpiimg-denoise", subject, p, steps, ("denoise",))


def fit_only(subject: Subject, p: Mapping[str, Any]) -> Recipe:
    """Fit the tensor to an image as it is."""
    dwi, brain = subject.dwi.array("dwi"), mask.volume(subject.dwi, "mask", "uint8")
    volumes = subject.gradients.up_to(p["b_max"])
    rows = None if len(volumes) == dwi.shape[0] else volumes
    steps = [
        *_read_dwi(subject),
        *_mask_steps(subject, dwi, brain, p),
        lambda values: _fit_stage(subject, p, (Need(dwi, rows=rows), Need(brain)), values),
        *_fit_outputs(subject, brain, p),
    ]
    return _recipe("mpiimg-fit", subject, p, steps, ("fit",))


def stage_image(img: Image, p: Mapping[str, Any]) -> Recipe:
    """Copy an image into a staged file, in parallel."""
    dwi = img.array("input") if img.kind != "nii.gz" else img.array(DATASET)
    steps = _read(img, DATASET) if img.kind == "nii.gz" else [lambda values: image.copy(img, dwi, DATASET)]
    target = Path(p["staged"])
    return Recipe(
        tool="mpiimg-stage",
        stem=target.stem,
        inputs={"input": img} if img.kind != "nii.gz" else {},
        steps=steps,
        values={},
        documents=lambda values: {},
        parameters=p,
        sources={"image": _identity(img)},
        record=f"{target.name}.json",
        staged_outputs={DATASET: (target.name, staged_attributes(img))},
    )


def _read(img: Image, name: str) -> list[Step]:
    return [lambda values: image.inflate(img, name)] if img.kind == "nii.gz" else []


def _read_dwi(subject: Subject) -> list[Step]:
    dwi = subject.dwi.array("dwi")
    return [*_read(subject.dwi, "dwi"), lambda values: image.count_nonfinite(subject.dwi, dwi)]


def _mask_steps(subject: Subject, dwi: Array, brain: Array, p: Mapping[str, Any]) -> list[Step]:
    img = subject.dwi
    if subject.mask is not None:
        source = subject.mask.array("mask-image")
        return [
            *_read(subject.mask, "mask-image"),
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


def _denoise_steps(subject: Subject, dwi: Array, brain: Array, p: Mapping[str, Any]) -> list[Step]:
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


def _denoised(subject: Subject) -> Callable[[Values], Array]:
    """Return the array that denoising writes, once the size of the mask is known."""
    return lambda values: Array("denoised", "vn", (subject.dwi.shape[0], values["offsets"][-1]), "float32")


def _fit_stage(subject: Subject, p: Mapping[str, Any], reads: tuple[Need, ...], values: Values) -> Stage:
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


def _mask_outputs(subject: Subject, brain: Array) -> list[Step]:
    name = _names(subject)["mask"]
    return [
        lambda values: image.write_dense(
            name, subject.dwi, (Need(brain),), lambda chunk, block: block, None, "uint8"
        )
    ]


def _denoise_outputs(subject, dwi: Array, brain: Array, denoised, p: Mapping[str, Any]) -> list[Step]:
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


def _fit_outputs(subject: Subject, brain: Array, p: Mapping[str, Any]) -> list[Step]:
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


def _recipe(
    tool, subject: Subject, p: Mapping[str, Any], steps: list[Step], parts: tuple[str, ...]
) -> Recipe:
    inputs = {"dwi": subject.dwi} if subject.dwi.kind != "nii.gz" else {}
    if subject.mask is not None and subject.mask.kind != "nii.gz":
        inputs["mask-image"] = subject.mask
    depth, height, width = subject.dwi.shape[-3:]
    bounds = {
        "low": np.float32(0),
        "high": np.float32(1),
        "threshold": 0.0,
        "sigma": np.ones((1, 1)),
        "offsets": tuple(height * width * z for z in range(depth + 1)),
    }
    return Recipe(
        tool=tool,
        stem=subject.dwi.stem,
        inputs=inputs,
        steps=steps,
        values=bounds,
        documents=lambda values: _documents(subject, p, parts, values),
        parameters=p,
        sources=subject.sources(),
        record=f"run-{tool.removeprefix('mpiimg-')}.json" if tool != "mpiimg-neuro" else "run.json",
        warnings=subject.warnings,
    )


def _documents(
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
    described = image.sidecar(Description="Denoised inside the mask, 0 outside", **common)
    sigma = np.asarray(_sigma(p, values))
    files = {
        _json(names["denoised"]): described,
        _json(names["noise"]): image.sidecar(
            Description="Noise level: standard deviation of the noise before the magnitude was taken; "
            "where it was estimated by volume, the root mean square over volumes",
            **common,
            Sigma=sigma.ravel().tolist(),
            SigmaBy="slice" if sigma.shape[1] > 1 else "volume" if sigma.shape[0] > 1 else "image",
        ),
    }
    if p["residual"]:
        text = "Input minus denoised inside the mask, 0 outside"
        files[_json(names["residual"])] = image.sidecar(Description=text, **common)
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
        fields = {"Units": unit, "Description": text, "Model": "tensor", "Method": p["method"]}
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


def _identity(img: Image) -> dict[str, Any]:
    size, time, crc = img.identity
    return {"path": str(img.path), "bytes": size, "mtime_ns": time, "header_crc32": crc, "shape": img.shape}
