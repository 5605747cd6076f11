"""Diffusion tensor fit in every voxel of the mask, and the maps drawn from it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.engine.array import Array, Packing
from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.needs import Need, Part, Rows
from mpiimg.engine.parameters import number_in, parameter
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Compute, Stages
from mpiimg.engine.step import Inspection, Output, Step
from mpiimg.errors import BadInput
from mpiimg.neuro import floor, noise, plausible
from mpiimg.neuro.continuity import candidates, check_continuity, worded
from mpiimg.neuro.floor import Floor
from mpiimg.neuro.gradients import MAX_B, TENSOR_B_LIMIT, Gradients, bvec_to_scanner, unit_vectors
from mpiimg.neuro.images import finite, value_bytes
from mpiimg.neuro.maps import COUNT, MAPS, PAPERS, ROWS, describe_map, draw, write_map
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.noise import SIGMA_LIMITS
from mpiimg.neuro.noise_map import map_level
from mpiimg.neuro.samples import image_of
from mpiimg.neuro.subject import Maps, Noise, Subject, gradients_of, mask_of

#: Methods of ours; the others are dipy's.
LINEAR = ("iwls", "wls", "ols")

#: z-blocks of an image: a slice each up to this many.
MAX_FIT_SLABS = 256

#: Bytes that the maps of a voxel take while they are drawn.
MAPS_BYTES = 400

#: Volumes whose fit takes as long as the maps.
MAPS_AS_VOLUMES = 60


@dataclass(frozen=True)
class FitParameters:
    """How the tensor is fitted, and written."""

    b_max: str = parameter(
        "auto",
        "Volumes with a b-value above this one are left out of the fit: a number, none, or auto, which is "
        "1500 where the volumes up to there determine a tensor, and none elsewhere.",
        unit="s/mm^2",
        limits=(0, MAX_B),
        metavar="B",
    )
    method: str = parameter(
        "iwls",
        "The tensor is fitted by least squares whose weights are found again from each solution (iwls, as in "
        "MRtrix3), or once (wls, as in dipy), by ordinary (ols), nonlinear (nlls) or robust (restore) least "
        "squares; the last two are dipy's own, and slow.",
        choices=("iwls", "wls", "ols", "nlls", "restore"),
    )
    min_signal: str = parameter(
        "auto",
        "Smaller signals are raised to this one before their logarithm is taken: a number, or auto, which is "
        "half the noise level where that is known, and elsewhere 1e-6 of the largest signal in the voxel.",
        unit="image units",
        limits=(floor.SMALLEST, 1e30),
        metavar="SIGNAL",
    )
    fit_sigma: str | None = parameter(
        None,
        "The noise level that --min-signal auto goes by: a number, or the NIfTI of a map (default: that of "
        "the denoising before).",
        unit="image units",
        limits=SIGMA_LIMITS,
        metavar="SIGMA",
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
    gradient_check: str = parameter(
        "on",
        "With on, a table of gradients whose axes seem to be flipped or swapped is warned of.",
        choices=("on", "off"),
    )
    restore_sigma: float | None = parameter(
        None, "RESTORE tells outliers by this noise level.", unit="image units", limits=SIGMA_LIMITS
    )

    def __post_init__(self):
        for flag, text, words in (
            ("--b-max", self.b_max, ("auto", "none")),
            ("--min-signal", self.min_signal, ("auto",)),
        ):
            if text not in words and number_in(text) is None:
                raise BadInput(f"{flag} {text}: give {', '.join(words)} or a number")
        level = self.noise_level
        if isinstance(level, str):
            raise BadInput(
                f"--fit-sigma {level}: give a positive number, or the NIfTI of a map (.nii, .nii.gz)"
            )

    @property
    def noise_level(self) -> float | Path | str | None:
        """The noise level that was given, or the path of its map."""
        return None if self.fit_sigma is None else noise.parse(self.fit_sigma)


def floor_of(subject: Subject, p: FitParameters, volumes: tuple[int, ...], level: Noise | None) -> Floor:
    """Return the floor of the fit of some volumes, with the noise level that the chain or the user knows."""
    if p.min_signal != "auto":
        return floor.absolute(float(p.min_signal))
    if level is not None and level.by_voxel is not None:
        return floor.of_map(level.by_voxel, level.method)
    if level is not None:
        return floor.of_noise(
            level.sigma if len(level.sigma) == 1 else level.sigma[list(volumes)], level.method
        )
    if subject.result is not None:  # of a function, which may have scaled the image
        return floor.of_largest()
    originals = [subject.volumes[v] for v in volumes]
    return floor.of_sidecar(subject.inherited, originals) or floor.of_largest()


def fitted_volumes(gradients: Gradients, b_max: str) -> tuple[int, ...]:
    """Return the numbers of the volumes that `b_max`, "auto", "none" or a number, lets into the fit.

    For "auto", b-values are rounded to hundreds, so that a shell around 1500 is taken whole.
    """
    everything = gradients.up_to(None)
    if b_max == "none":
        return everything
    if b_max != "auto":
        return gradients.up_to(float(b_max))
    low = tuple(v for v in everything if round(gradients.bvals[v], -2) <= TENSOR_B_LIMIT)
    return low if _determines_tensor(gradients.of_volumes(low)) else everything


def _determines_tensor(gradients: Gradients) -> bool:
    from mpiimg.neuro.kernels.tensor import design_matrix

    design = design_matrix(np.array(gradients.bvals), np.reshape(gradients.bvecs, (-1, 3)))
    return np.linalg.matrix_rank(design) == 7


def inspect(subject: Subject, p: FitParameters) -> Inspection:
    """Check that there are a mask and gradients, and that the volumes determine a tensor; look at a map.

    Raises
    ------
    BadInput
        Something is missing, or they do not.
    """
    mask_of(subject, STEP.name)
    gradients = gradients_of(subject)
    volumes = fitted_volumes(gradients, p.b_max)
    if not _determines_tensor(gradients.of_volumes(volumes)):
        limit = "" if p.b_max in ("auto", "none") else f" with b <= {p.b_max}"
        raise BadInput(
            f"{gradients.path}: the {len(volumes)} volumes{limit} do not determine a tensor: "
            "at least six directions and one other b-value are needed; raise --b-max or give more volumes"
        )
    sigma_image = noise.inspect(subject, p.noise_level, STEP.name) if p.min_signal == "auto" else None
    highest, left_out = max(gradients.bvals[v] for v in volumes), len(gradients.bvals) - len(volumes)
    if p.b_max == "auto" and left_out:
        text = (
            f"{gradients.path}: {left_out} of {len(gradients.bvals)} volumes, those with b above "
            f"{TENSOR_B_LIMIT:g} s/mm^2, are left out of the fit, since a tensor does not describe them; "
            "--b-max none takes all"
        )
        return Inspection(sigma_image, warnings=(text,))
    if p.b_max in ("auto", "none") and round(highest, -2) > TENSOR_B_LIMIT:
        text = (
            f"{gradients.path}: b-values up to {highest:g} s/mm^2 enter the tensor fit; "
            f"--b-max {TENSOR_B_LIMIT:g} keeps to those that a tensor describes"
        )
        return Inspection(sigma_image, warnings=(text,))
    return Inspection(sigma_image)


def stages(subject: Subject, p: FitParameters, sigma_image: Image | None) -> Stages[Subject]:
    """Yield the fit, to the voxels in the mask where only these are there, else to those that it selects."""
    mask, gradients = subject.mask, gradients_of(subject)
    volumes = fitted_volumes(gradients, p.b_max)
    level = None if subject.denoised is None else subject.denoised.noise
    if sigma_image is not None:
        level = yield from map_level(subject.image, sigma_image, mask)
    elif p.fit_sigma is not None:
        level = Noise(np.full((1, 1), p.noise_level), "given", p.noise_level)
    least = floor_of(subject, p, volumes, level)
    source = subject.dwi if subject.packed is None else subject.packed
    part = Part(source) if len(volumes) == source.shape[0] else Rows(source, volumes)
    reads = (part,)
    if subject.packed is None or least.by_voxel is not None:
        reads += (Part(mask.array),)
    if least.by_voxel is not None:
        reads += (Part(least.by_voxel),)
    voxels = Array("maps", "cn", (COUNT, mask.voxels), "float32", mask.packing)
    fitting = fit(subject.image, reads, voxels, gradients, volumes, least, p)
    yield fitting
    figures = yield plausible.look(
        voxels, fitting.grid, len(volumes), p.tensor_order, least, str(subject.original.path)
    )
    said = ""
    if p.gradient_check == "on":
        directions = Rows(voxels, (*ROWS["fa"], *ROWS["v1"]), {"z": 1})
        verdict = yield check_continuity(subject.image, directions, mask.array, p.frame)
        said = "" if verdict is None else worded(verdict, candidates(subject.image.affine))
    maps = Maps(voxels, volumes, least, figures, p.frame, p.tensor_order, said)
    return dataclasses.replace(subject, maps=maps)


def fit(
    image: Image,
    reads: tuple[Need, ...],
    voxels: Array,
    gradients: Gradients,
    volumes: tuple[int, ...],
    least: Floor,
    p: FitParameters,
) -> Compute:
    """Declare the fit.

    Parameters
    ----------
    image : Image
        Whose values are read.
    reads : tuple of Need
        The voxels in the mask (V, n), or the dwi (V, z, y, x), just `volumes` of them; where these are not
        enough the mask; and the noise level, where the floor goes by it voxel by voxel.
    voxels : Array
        (c, n) float32, the maps with their packing; written.
    gradients : Gradients
    volumes : tuple of int
        Those that are fitted, ascending.
    least : Floor
    p : FitParameters
    """
    from mpiimg.neuro.kernels.tensor import design_matrix

    bvals = np.array(gradients.bvals)[list(volumes)]
    bvecs = np.array(gradients.bvecs)[list(volumes)]
    design = design_matrix(bvals, bvecs)
    rotation = bvec_to_scanner(image.affine)

    depth = image.shape[-3]
    grid = ChunkGrid("z", (depth,), (blocks_along(depth, MAX_FIT_SLABS),))
    counts = np.diff(voxels.packing.offsets)
    packed = reads[0].array.packing is not None

    def work(chunk, block, mask_block=None, sigma_block=None):
        inside = None if mask_block is None else mask_block != 0
        signal = block if packed else finite(image.scaled(block[:, inside]))
        if not signal.shape[1]:
            return (np.empty((COUNT, 0), np.float32),)
        if signal.dtype != np.float32:
            signal = signal.astype(np.float64)
        ((first, end),) = chunk.box
        sigma = None if sigma_block is None else sigma_block[inside]
        raised, min_signal, floored = least.raise_signal(signal, first, counts[first:end], sigma)
        if p.method in LINEAR:
            tensors = _linear(raised, design, min_signal, p.method)
        else:
            tensors = _dipy(raised, bvals, bvecs, gradients.b0_threshold, min_signal, p)
        maps = draw(signal, design, tensors, rotation, p.frame, p.tensor_order)
        maps[list(ROWS["floored"])] = floored
        return (maps,)

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
            "floor": least.said,
            "frame": p.frame,
            "tensor_order": p.tensor_order,
            "restore_sigma": p.restore_sigma,
            "rotation": rotation.tolist(),
        },
        weights=tuple(int(counts[a:b].sum()) for ((a, b),) in map(grid.bounds, range(len(grid)))),
        scratch=_scratch(image, len(volumes), max(counts), p.method, packed),
        # Drawing the maps of a voxel takes as long as fitting so many volumes.
        cost=(f"fit-{p.method}", float(voxels.shape[1]) * (len(volumes) + MAPS_AS_VOLUMES)),
    )


def _scratch(image: Image, volumes: int, voxels: int, method: str, packed: bool) -> int:
    """Return the bytes that the fit of `voxels` takes: their maps on the way, and copies of their signal."""
    raised = 9
    per_sample = raised if packed else raised + np.dtype(image.native).itemsize + value_bytes(image)
    if np.dtype(image.native).kind != "f" and value_bytes(image) == 0:
        per_sample += 8  # integers as they are become float64
    if method in ("nlls", "restore"):
        per_sample += 4 * 8
    return int(voxels) * (MAPS_BYTES + volumes * per_sample) + (1 << 20)


def _linear(signal, design, min_signal: float, method: str) -> np.ndarray:
    """Fit a chunk by linear least squares; return (7, n) tensors with the logarithm of S0."""
    from mpiimg.neuro.kernels import tensor

    fitter = {"iwls": tensor.fit_iwls, "wls": tensor.fit_wls, "ols": tensor.fit_ols}[method]
    return fitter(np.ascontiguousarray(signal), design, min_signal)


def _dipy(signal, bvals, bvecs, b0_threshold: float, min_signal: float, p: FitParameters) -> np.ndarray:
    """Fit a chunk by dipy's own nonlinear or robust method; return the same."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel, lower_triangular

    gradients = gradient_table(bvals, bvecs=bvecs, b0_threshold=b0_threshold)
    options = {"sigma": p.restore_sigma} if p.method == "restore" else {}
    model = TensorModel(
        gradients, fit_method=p.method.upper(), min_signal=min_signal, return_S0_hat=True, **options
    )
    # A step of the search may overshoot far, and comes back; NumPy would say so in the middle of a run.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        fitted = model.fit(np.ascontiguousarray(signal.T, dtype=np.float64))
    tensors = np.empty((7, signal.shape[1]))
    tensors[:6] = lower_triangular(fitted.quadratic_form).T
    tensors[6] = -np.log(np.maximum(fitted.S0_hat, np.finfo(float).tiny))
    return tensors


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
    stage = fit(image, reads, voxels, gradients, tuple(range(64)), floor.of_noise([[40.0]], "given"), p)
    return chunk_sample(stage, 0, values.reshape(64, -1).astype(np.float32))


sample_iwls: Callable[[], RateSample] = functools.partial(_sample, "iwls", 64)
sample_wls: Callable[[], RateSample] = functools.partial(_sample, "wls", 64)
sample_ols: Callable[[], RateSample] = functools.partial(_sample, "ols", 64)
sample_nlls: Callable[[], RateSample] = functools.partial(_sample, "nlls", 8)
sample_restore: Callable[[], RateSample] = functools.partial(_sample, "restore", 8)


STEP = Step(
    name="fit",
    summary="Fit the diffusion tensor inside a mask, and draw its maps.",
    papers=("; ".join(PAPERS.values()),),
    takes=("dwi", "gradients", "mask"),
    gives=("maps",),
    parameters=FitParameters,
    inspect=inspect,
    stages=stages,
    outputs=tuple(
        Output("maps", functools.partial(write_map, key), documents=functools.partial(describe_map, key))
        for key in (*MAPS, "residual")
    ),
    kernels=(
        "mpiimg.neuro.kernels.tensor:precompile",
        "mpiimg.neuro.kernels.tensor_maps:precompile",
        "mpiimg.neuro.kernels.continuity:precompile",
    ),
    rates={
        "continuity": (1.5e-8, "mpiimg.neuro.continuity:sample_continuity"),
        "fit-iwls": (1.3e-8, "mpiimg.neuro.steps.fit:sample_iwls"),
        "fit-wls": (8.0e-9, "mpiimg.neuro.steps.fit:sample_wls"),
        "fit-ols": (5.5e-9, "mpiimg.neuro.steps.fit:sample_ols"),
        "fit-nlls": (2.0e-6, "mpiimg.neuro.steps.fit:sample_nlls"),
        "fit-restore": (4.0e-6, "mpiimg.neuro.steps.fit:sample_restore"),
    },
    examples=(
        (
            "The tensor and its maps, whose gradients lie beside the image.",
            "mpiexec -n 4 mpiimg-fit dwi.nii.gz --mask brain.nii.gz --out maps",
        ),
        (
            "The same from all shells, by weights that are found once.",
            "mpiimg-fit dwi.nii.gz --mask brain.nii.gz --method wls --b-max none --out maps",
        ),
    ),
)
