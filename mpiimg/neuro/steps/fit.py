"""Diffusion tensor fit in every voxel of the mask, and the maps drawn from it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array, Packing
from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.needs import Need, Part, Rows
from mpiimg.engine.parameters import parameter
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Compute, Sink, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import MAX_B, TENSOR_B_LIMIT, Gradients, bvec_to_scanner, unit_vectors
from mpiimg.neuro.images import finite, sidecar, sidecar_name, value_bytes, write_packed
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.subject import Maps, Subject, gradients_of, mask_of, mask_source

PAPER = (
    "Basser et al. 1994, doi:10.1006/jmrb.1994.1037; WLS: Chung et al. 2006, "
    "doi:10.1016/j.neuroimage.2006.07.001; RESTORE: Chang et al. 2005, doi:10.1002/mrm.20426"
)

#: Maps that every fit writes; "residual" only on request.
MAPS = ("fa", "md", "ad", "rd", "rgb", "v1", "s0", "tensor")

#: Unit and description of each map.
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

#: What sidecars say of the axes that directions are given in.
FRAMES = {
    "bvec": "bvecs: voxel axes, x negated where det(affine) > 0",
    "scanner": "scanner axes, RAS+ mm",
}

#: Rows of the array of maps.
ROWS = {
    "fa": (0,),
    "md": (1,),
    "ad": (2,),
    "rd": (3,),
    "s0": (4,),
    "rgb": (5, 6, 7),
    "v1": (8, 9, 10),
    "tensor": (11, 12, 13, 14, 15, 16),
    "residual": (17,),
}
COUNT = 18

#: Where each order finds its elements in dipy's: xx, xy, yy, xz, yz, zz.
ORDERS = {"dipy": (0, 1, 2, 3, 4, 5), "fsl": (0, 1, 3, 2, 4, 5), "mrtrix": (0, 2, 5, 1, 3, 4)}
ELEMENTS = ("Dxx", "Dxy", "Dyy", "Dxz", "Dyz", "Dzz")

#: z-blocks of an image: a slice each up to this many.
MAX_FIT_SLABS = 256

#: Bytes that the maps of a voxel take while they are drawn.
MAPS_BYTES = 400

#: Volumes whose fit takes as long as the maps.
MAPS_AS_VOLUMES = 60


@dataclass(frozen=True)
class FitParameters:
    """How the tensor is fitted, and written."""

    b_max: float | None = parameter(
        None,
        "Volumes with a b-value above this one are left out of the fit (default: none).",
        unit="s/mm^2",
        limits=(0, MAX_B),
    )
    method: str = parameter(
        "wls",
        "The tensor is fitted by weighted (wls), ordinary (ols), nonlinear (nlls) or robust (restore) least "
        "squares; the last two are dipy's own, and slow.",
        choices=("wls", "ols", "nlls", "restore"),
    )
    min_signal: float = parameter(
        1e-4,
        "Smaller signals are raised to this one before their logarithm is taken.",
        unit="image units",
        limits=(1e-30, 1e30),
    )
    frame: str = parameter(
        "bvec",
        "Tensor and v1 are given along the axes of the bvecs (bvec: voxel axes, as in dipy and FSL), or "
        "along those of the scanner.",
        choices=("bvec", "scanner"),
    )
    tensor_order: str = parameter(
        "dipy",
        "The six tensor elements are written in this order: dipy xx xy yy xz yz zz, fsl xx xy xz yy yz zz, "
        "mrtrix xx yy zz xy xz yz.",
        choices=("dipy", "fsl", "mrtrix"),
    )
    fit_residual: bool = parameter(False, "The root mean square residual of the fit is written too.")
    restore_sigma: float | None = parameter(
        None, "RESTORE tells outliers by this noise level.", unit="image units", limits=(1e-12, 1e12)
    )


def inspect(subject: Subject, p: FitParameters) -> Inspection:
    """Check that there are a mask and gradients, and that the volumes determine a tensor.

    Raises
    ------
    BadInput
        Something is missing, or they do not.
    """
    from mpiimg.neuro.kernels.tensor import design_matrix

    mask_of(subject, STEP.name)
    gradients = gradients_of(subject)
    volumes = list(gradients.up_to(p.b_max))
    bvals, bvecs = np.array(gradients.bvals)[volumes], np.array(gradients.bvecs)[volumes]
    if np.linalg.matrix_rank(design_matrix(bvals, bvecs.reshape(-1, 3))) < 7:
        limit = "" if p.b_max is None else f" with b <= {p.b_max:g}"
        raise BadInput(
            f"{gradients.path}: the {len(volumes)} volumes{limit} do not determine a tensor: "
            "at least six directions and one other b-value are needed; raise --b-max or give more volumes"
        )
    highest = max(gradients.bvals)
    if p.b_max is not None or highest <= TENSOR_B_LIMIT:
        return Inspection()
    text = (
        f"{gradients.path}: b-values up to {highest:g} s/mm^2 enter the tensor fit; "
        f"--b-max {TENSOR_B_LIMIT:g} keeps to those that a tensor describes"
    )
    return Inspection(warnings=(text,))


def stages(subject: Subject, p: FitParameters, data: Any) -> Stages[Subject]:
    """Yield the fit, to the voxels in the mask where only these are there, else to those that it selects."""
    mask, gradients = subject.mask, gradients_of(subject)
    volumes = gradients.up_to(p.b_max)
    source = subject.dwi if subject.packed is None else subject.packed
    part = Part(source) if len(volumes) == source.shape[0] else Rows(source, volumes)
    reads = (part,) if subject.packed is not None else (part, Part(mask.array))
    voxels = Array("maps", "cn", (COUNT, mask.voxels), "float32", mask.packing)
    yield fit(subject.image, reads, voxels, gradients, volumes, p)
    return dataclasses.replace(subject, maps=Maps(voxels, volumes))


def fit(
    image: Image,
    reads: tuple[Need, ...],
    voxels: Array,
    gradients: Gradients,
    volumes: tuple[int, ...],
    p: FitParameters,
) -> Compute:
    """Declare the fit.

    Parameters
    ----------
    image : Image
        Whose values are read.
    reads : tuple of Need
        The voxels in the mask (V, n) alone, or the dwi (V, z, y, x) and the mask; just `volumes` of them.
    voxels : Array
        (c, n) float32, the maps with their packing; written.
    gradients : Gradients
    volumes : tuple of int
        Those that are fitted, ascending.
    p : FitParameters
    """
    from mpiimg.neuro.kernels.tensor import design_matrix

    bvals = np.array(gradients.bvals)[list(volumes)]
    bvecs = np.array(gradients.bvecs)[list(volumes)]
    design = design_matrix(bvals, bvecs)
    rotation = bvec_to_scanner(image.affine)

    def work(chunk, block, mask_block=None):
        signal = block if mask_block is None else finite(image.scaled(block[:, mask_block != 0]))
        if not signal.shape[1]:
            return (np.empty((COUNT, 0), np.float32),)
        if p.method in ("wls", "ols"):
            tensors = _linear(signal, design, p)
        else:
            tensors = _dipy(signal, bvals, bvecs, gradients.b0_threshold, p)
        return (_maps(signal, design, tensors, rotation, p),)

    depth = image.shape[-3]
    grid = ChunkGrid("z", (depth,), (blocks_along(depth, MAX_FIT_SLABS),))
    counts = np.diff(voxels.packing.offsets)
    return Compute(
        "fit",
        grid,
        reads=reads,
        writes=(voxels,),
        work=work,
        parameters={
            "bvals": bvals.tolist(),
            "bvecs": bvecs.tolist(),
            "volumes": volumes,
            "method": p.method,
            "min_signal": p.min_signal,
            "frame": p.frame,
            "tensor_order": p.tensor_order,
            "restore_sigma": p.restore_sigma,
            "rotation": rotation.tolist(),
        },
        weights=tuple(int(counts[a:b].sum()) for ((a, b),) in map(grid.bounds, range(len(grid)))),
        scratch=_scratch(image, len(volumes), max(counts), p.method, packed=len(reads) == 1),
        # Drawing the maps of a voxel takes as long as fitting so many volumes.
        cost=(f"fit-{p.method}", float(voxels.shape[1]) * (len(volumes) + MAPS_AS_VOLUMES)),
    )


def _scratch(image: Image, volumes: int, voxels: int, method: str, packed: bool) -> int:
    """Return the bytes that the fit of `voxels` takes: their maps on the way, and copies of their signal."""
    per_sample = 0 if packed else np.dtype(image.native).itemsize + value_bytes(image)
    if np.dtype(image.native).kind != "f" and value_bytes(image) == 0:
        per_sample += 8  # integers as they are become float64
    if method in ("nlls", "restore"):
        per_sample += 4 * 8
    return int(voxels) * (MAPS_BYTES + volumes * per_sample) + (1 << 20)


def _linear(signal, design, p: FitParameters) -> np.ndarray:
    """Fit a chunk by linear least squares; return (7, n) tensors with the logarithm of S0."""
    from mpiimg.neuro.kernels.tensor import fit_ols, fit_wls

    fitter = fit_wls if p.method == "wls" else fit_ols
    kind = np.float32 if signal.dtype == np.float32 else np.float64
    return fitter(np.ascontiguousarray(signal, dtype=kind), design, p.min_signal)


def _dipy(signal, bvals, bvecs, b0_threshold: float, p: FitParameters) -> np.ndarray:
    """Fit a chunk by dipy's own nonlinear or robust method; return the same."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel, lower_triangular

    gradients = gradient_table(bvals, bvecs=bvecs, b0_threshold=b0_threshold)
    options = {"sigma": p.restore_sigma} if p.method == "restore" else {}
    model = TensorModel(
        gradients, fit_method=p.method.upper(), min_signal=p.min_signal, return_S0_hat=True, **options
    )
    # A step of the search may overshoot far, and comes back; NumPy would say so in the middle of a run.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        fitted = model.fit(np.ascontiguousarray(signal.T, dtype=np.float64))
    tensors = np.empty((7, signal.shape[1]))
    tensors[:6] = lower_triangular(fitted.quadratic_form).T
    tensors[6] = -np.log(np.maximum(fitted.S0_hat, np.finfo(float).tiny))
    return tensors


def _maps(signal, design, tensors, rotation, p: FitParameters) -> np.ndarray:
    """Draw all maps from (7, n) tensors; return (c, n) float32."""
    from mpiimg.neuro.kernels.tensor import fit_residual
    from mpiimg.neuro.kernels.tensor_maps import min_diffusivity, tensor_maps

    maps = tensor_maps(tensors, min_diffusivity(design))
    scanner_v1 = _rotate(rotation, maps.v1)
    tensor = tensors[:6] if p.frame == "bvec" else _rotate_tensor(rotation, tensors[:6])
    out = np.empty((COUNT, signal.shape[1]), np.float32)
    rows = {
        "fa": maps.fa,
        "md": maps.md,
        "ad": maps.ad,
        "rd": maps.rd,
        "s0": maps.s0,
        "rgb": maps.fa * np.abs(scanner_v1),
        "v1": maps.v1 if p.frame == "bvec" else scanner_v1,
        "tensor": tensor[list(ORDERS[p.tensor_order])],
        "residual": fit_residual(signal, design, tensors),
    }
    # Where hardly any signal is left, a fitted S0 can be beyond what float32 holds.
    largest = np.finfo(np.float32).max
    for name, values in rows.items():
        out[list(ROWS[name])] = np.clip(values, -largest, largest)
    return out


def _rotate(rotation, vectors):
    """Rotate (3, n) vectors; explicit sums, since a matrix product's bits depend on n."""
    return np.stack([sum(rotation[i, j] * vectors[j] for j in range(3)) for i in range(3)])


def _rotate_tensor(rotation, tensor):
    """Rotate (6, n) tensors in dipy's order."""
    place = ((0, 1, 3), (1, 2, 4), (3, 4, 5))
    full = [[tensor[place[i][j]] for j in range(3)] for i in range(3)]
    half = [[sum(rotation[i, k] * full[k][j] for k in range(3)) for j in range(3)] for i in range(3)]
    turned = [[sum(half[i][k] * rotation[j, k] for k in range(3)) for j in range(3)] for i in range(3)]
    return np.stack([turned[0][0], turned[0][1], turned[1][1], turned[0][2], turned[1][2], turned[2][2]])


# --- Results ----------------------------------------------------------------------------------------------


def write_map(key: str, subject: Subject, p: FitParameters, folder: Path) -> Sink | None:
    """Declare the file of a map, if it is written."""
    if key == "residual" and not p.fit_residual:
        return None
    file = str(folder / _file(key, subject))
    return write_packed(file, subject.image, subject.mask.array, subject.maps.voxels, ROWS[key])


def describe_map(key: str, subject: Subject, p: FitParameters) -> Mapping[str, bytes]:
    """Return the sidecar of a map, if it is written."""
    if key == "residual" and not p.fit_residual:
        return {}
    volumes, (unit, text) = subject.maps.volumes, MAP_TEXTS[key]
    fields = {
        "Units": unit,
        "Description": text,
        "SkullStripped": True,
        "Model": "tensor",
        "Method": p.method,
        "Reference": PAPER,
        "Shells": sorted({round(gradients_of(subject).bvals[v], -2) for v in volumes}),
        "Volumes": len(volumes),
        "Mask": mask_source(subject),
    }
    if key in ("v1", "tensor"):
        fields["Frame"] = FRAMES[p.frame]
    if key == "tensor":
        fields["Elements"] = [ELEMENTS[i] for i in ORDERS[p.tensor_order]]
    if key == "rgb":
        fields["Frame"] = FRAMES["scanner"]
    return {sidecar_name(_file(key, subject)): sidecar(**fields)}


def _file(key: str, subject: Subject) -> str:
    return f"{subject.stem}_model-tensor_param-{key}_dwimap.nii.gz"


def _sample(method: str, side: int) -> RateSample:
    """Fit a slice; voxels times volumes, with the drawing of maps counted as volumes."""
    image, values = image_of((64, 1, side, side))
    rng = np.random.default_rng(2)
    bvecs = unit_vectors(rng.normal(size=(64, 3)))
    bvals = np.where(np.arange(64) % 8 == 0, 0.0, 1000.0)
    gradients = Gradients(tuple(bvals), tuple(map(tuple, np.where(bvals[:, None] > 0, bvecs, 0))), 50.0)
    packing = Packing("n", "z", (0, side * side))
    voxels = Array("maps", "cn", (COUNT, side * side), "float32", packing)
    reads = (Part(Array("denoised", "vn", (64, side * side), "float32", packing)),)
    p = FitParameters(method=method, restore_sigma=40.0)
    stage = fit(image, reads, voxels, gradients, tuple(range(64)), p)
    return chunk_sample(stage, 0, values.reshape(64, -1).astype(np.float32))


sample_wls: Callable[[], RateSample] = functools.partial(_sample, "wls", 64)
sample_ols: Callable[[], RateSample] = functools.partial(_sample, "ols", 64)
sample_nlls: Callable[[], RateSample] = functools.partial(_sample, "nlls", 8)
sample_restore: Callable[[], RateSample] = functools.partial(_sample, "restore", 8)


STEP = Step(
    name="fit",
    summary="Fit the diffusion tensor inside a mask, and draw its maps.",
    papers=(PAPER,),
    takes=("dwi", "gradients", "mask"),
    gives=("maps",),
    parameters=FitParameters,
    inspect=inspect,
    stages=stages,
    outputs=tuple(
        Output("maps", functools.partial(write_map, key), documents=functools.partial(describe_map, key))
        for key in (*MAPS, "residual")
    ),
    kernels=("mpiimg.neuro.kernels.tensor:precompile", "mpiimg.neuro.kernels.tensor_maps:precompile"),
    rates={
        "fit-wls": (8.0e-9, "mpiimg.neuro.steps.fit:sample_wls"),
        "fit-ols": (5.5e-9, "mpiimg.neuro.steps.fit:sample_ols"),
        "fit-nlls": (2.0e-6, "mpiimg.neuro.steps.fit:sample_nlls"),
        "fit-restore": (4.0e-6, "mpiimg.neuro.steps.fit:sample_restore"),
    },
)
