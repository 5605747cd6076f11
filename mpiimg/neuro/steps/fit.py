"""Diffusion tensor fit in every voxel of the mask, and the maps drawn from it."""

from __future__ import annotations

import numpy as np

from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.stage import POSITIVE, Need, Parameter, Stage
from mpiimg.engine.stores import Array
from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.images import finite, value_bytes
from mpiimg.neuro.nifti import Image

PAPER = (
    "Basser et al. 1994, doi:10.1006/jmrb.1994.1037; WLS: Chung et al. 2006, "
    "doi:10.1016/j.neuroimage.2006.07.001; RESTORE: Chang et al. 2005, doi:10.1002/mrm.20426"
)

PARAMETERS = (
    Parameter(
        "method",
        "wls",
        "least squares: weighted, ordinary, nonlinear or robust (the last two are dipy's own, and slow)",
        str,
        choices=("wls", "ols", "nlls", "restore"),
    ),
    Parameter(
        "min_signal",
        1e-4,
        "signals below are raised to it before their logarithm",
        float,
        "image units",
        limits=POSITIVE,
    ),
    Parameter(
        "frame",
        "bvec",
        "axes of tensor and v1: of the bvecs (voxel axes, as dipy and FSL), or of the scanner",
        str,
        choices=("bvec", "scanner"),
    ),
    Parameter(
        "tensor_order",
        "dipy",
        "order of the six tensor elements: dipy xx xy yy xz yz zz, fsl xx xy xz yy yz zz, "
        "mrtrix xx yy zz xy xz yz",
        str,
        choices=("dipy", "fsl", "mrtrix"),
    ),
    Parameter("fit_residual", False, "also write the root mean square residual of the fit", bool),
    Parameter(
        "restore_sigma",
        None,
        "noise level that RESTORE tells outliers by",
        float,
        "image units",
        limits=POSITIVE,
    ),
)

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
BLOCKS = 256

#: Bytes that the maps of a voxel take while they are drawn.
MAPS_BYTES = 400

#: Volumes whose fit takes as long as the maps.
MAPS_AS_VOLUMES = 60


def bvec_to_scanner(affine: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation from the frame of FSL's bvecs to the scanner's.

    bvecs are along the voxel axes, with x negated where the determinant of
    the affine is positive.
    """
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if np.linalg.det(axes) > 0:
        axes = axes * [-1, 1, 1]
    return axes


def fit(
    image: Image,
    reads: tuple[Need, ...],
    offsets: tuple[int, ...],
    gradients: Gradients,
    volumes: tuple[int, ...],
    method: str,
    min_signal: float,
    frame: str,
    tensor_order: str,
    restore_sigma: float | None = None,
) -> Stage:
    """Declare the fit.

    Parameters
    ----------
    reads : either the denoised voxels (V, n) alone, or the dwi (V, z, y, x) and the mask
    offsets : where the voxels of each slice begin
    volumes : that are fitted, ascending; `reads` delivers just these
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
        if method in ("wls", "ols"):
            parameters = _linear(signal, design, method, min_signal)
        else:
            parameters = _dipy(
                signal, bvals, bvecs, gradients.b0_threshold, method, min_signal, restore_sigma
            )
        return (_maps(signal, design, parameters, rotation, frame, tensor_order),)

    depth = image.shape[-3]
    grid = ChunkGrid("z", (depth,), (blocks_along(depth, BLOCKS),))
    counts = np.diff(offsets)
    return Stage(
        "fit",
        "map",
        grid,
        reads,
        (Array("maps", "cn", (COUNT, offsets[-1]), "float32"),),
        work,
        {
            "bvals": bvals.tolist(),
            "bvecs": bvecs.tolist(),
            "volumes": volumes,
            "method": method,
            "min_signal": min_signal,
            "frame": frame,
            "tensor_order": tensor_order,
            "restore_sigma": restore_sigma,
            "rotation": rotation.tolist(),
        },
        weights=tuple(int(counts[a:b].sum()) for ((a, b),) in map(grid.bounds, range(len(grid)))),
        offsets=offsets,
        scratch=_scratch(image, len(volumes), max(counts), method, packed=len(reads) == 1),
        # Drawing the maps of a voxel takes as long as fitting so many volumes.
        cost=(f"fit-{method}", float(offsets[-1]) * (len(volumes) + MAPS_AS_VOLUMES)),
    )


def _scratch(image: Image, volumes: int, voxels: int, method: str, packed: bool) -> int:
    """Return the bytes that the fit of `voxels` takes: their maps on the way, and copies of their signal."""
    a_sample = 0 if packed else np.dtype(image.native).itemsize + value_bytes(image) + 8
    if method in ("nlls", "restore"):
        a_sample += 4 * 8
    return int(voxels) * (MAPS_BYTES + volumes * a_sample) + (1 << 20)


def _linear(signal, design, method, min_signal):
    from mpiimg.neuro.kernels.tensor import fit_ols, fit_wls

    fitter = fit_wls if method == "wls" else fit_ols
    kind = np.float32 if signal.dtype == np.float32 else np.float64
    return fitter(np.ascontiguousarray(signal, dtype=kind), design, min_signal)


def _dipy(signal, bvals, bvecs, b0_threshold, method, min_signal, sigma):
    """Fit a chunk by dipy's own nonlinear or robust method; returns (7, n) parameters."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel, lower_triangular

    gradients = gradient_table(bvals, bvecs=bvecs, b0_threshold=b0_threshold)
    options = {"sigma": sigma} if method == "restore" else {}
    model = TensorModel(
        gradients, fit_method=method.upper(), min_signal=min_signal, return_S0_hat=True, **options
    )
    fitted = model.fit(np.ascontiguousarray(signal.T, dtype=np.float64))
    parameters = np.empty((7, signal.shape[1]))
    parameters[:6] = lower_triangular(fitted.quadratic_form).T
    parameters[6] = -np.log(np.maximum(fitted.S0_hat, np.finfo(float).tiny))
    return parameters


def _maps(signal, design, parameters, rotation, frame, tensor_order):
    from mpiimg.neuro.kernels.tensor import fit_residual, min_diffusivity, tensor_maps

    maps = tensor_maps(parameters, min_diffusivity(design))
    scanner_v1 = _rotate(rotation, maps.v1)
    tensor = parameters[:6] if frame == "bvec" else _rotate_tensor(rotation, parameters[:6])
    out = np.empty((COUNT, signal.shape[1]), np.float32)
    rows = {
        "fa": maps.fa,
        "md": maps.md,
        "ad": maps.ad,
        "rd": maps.rd,
        "s0": maps.s0,
        "rgb": maps.fa * np.abs(scanner_v1),
        "v1": maps.v1 if frame == "bvec" else scanner_v1,
        "tensor": tensor[list(ORDERS[tensor_order])],
        "residual": fit_residual(signal, design, parameters),
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
