"""Noise level from what a tensor leaves unexplained inside the brain: no background is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid, blocks_along
from mpiimg.engine.needs import Part, Rows
from mpiimg.engine.rates import RateSample, chunk_sample
from mpiimg.engine.stage import Found, Reduce
from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import TENSOR_B_LIMIT, Gradients, unit_vectors
from mpiimg.neuro.images import finite, value_bytes
from mpiimg.neuro.masks import Mask, volume
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.samples import image_of

#: Volumes more than the unknowns of a tensor that its residual needs, and voxels for a median of it.
MIN_FREEDOM, MIN_VOXELS = 6, 500

#: Voxels count whose smallest predicted signal is above so many noise levels, found in so many rounds: below
#: it the noise of a magnitude is another one.
MIN_RATIO, ROUNDS = 3.0, 3

#: Voxels whose variances are brought to one rank, at most about: of larger masks every second, third, ...
MAX_VOXELS = 1 << 21

#: Correlation between neighbours' residuals from which a series counts as interpolated.
MAX_CORRELATION = 0.2

#: Signals below this one are raised to it; their weights are then 0.
MIN_SIGNAL = 1e-30

#: z-blocks of an image: a slice each up to this many.
MAX_SLABS = 256

#: Voxels that are fitted at once: their signals and copies of these take memory.
VOXELS_AT_ONCE = 4096


@dataclass(frozen=True)
class FitLevel:
    """What the residual of the fit says.

    Parameters
    ----------
    sigma : float
        The noise level, image units; 0 where there is none.
    voxels : int
        That it is the median of.
    correlation : float
        Mean correlation of the residuals of neighbours in a slice, along x or y, where it is larger.
    """

    sigma: float
    voxels: int
    correlation: float

    @property
    def problem(self) -> str:
        """Why it cannot be used; empty where it can."""
        if self.voxels >= MIN_VOXELS and self.sigma > 0:
            return ""
        return (
            f"the residual of the tensor fit says nothing: only {self.voxels} voxels of the eroded mask have "
            f"signals above the noise, and {MIN_VOXELS} are needed"
        )


def volumes_problem(gradients: Gradients | None) -> str:
    """Say why the volumes leave no residual to measure; empty where they do."""
    from mpiimg.neuro.kernels.tensor import design_matrix

    if gradients is None:
        return "there are no gradients, so no tensor fit says what the noise is"
    volumes = list(_volumes(gradients))
    design = design_matrix(np.array(gradients.bvals)[volumes], np.array(gradients.bvecs)[volumes])
    if len(volumes) < 7 + MIN_FREEDOM or np.linalg.matrix_rank(design) < 7:
        return (
            f"the {len(volumes)} volumes with b <= {TENSOR_B_LIMIT:g} are too few for a residual of a tensor "
            f"fit: {7 + MIN_FREEDOM} that determine a tensor are needed"
        )
    return ""


def _volumes(gradients: Gradients) -> tuple[int, ...]:
    """Return the numbers of the volumes that are fitted; a shell around the limit is taken whole."""
    return tuple(v for v, b in enumerate(gradients.bvals) if round(b, -2) <= TENSOR_B_LIMIT)


def fit_level(
    image: Image, dwi: Array, mask: Mask, gradients: Gradients, is_needed: bool
) -> Reduce[FitLevel]:
    """Measure the noise level by the residual of the tensor fit (IWLS) inside the mask.

    The volumes are those of b <= 1500 s/mm^2, V of them. Of a voxel the mean of r**2 / (1 - h) over the
    volumes is taken, r being signal minus prediction and h the leverage; the level is the root of the median
    over voxels, over the median of chi^2 / nu with nu = V - 7. Voxels are those of the mask, eroded by one
    along the axes, whose smallest prediction is above three times the level.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    mask : Mask
    gradients : Gradients
        For which :func:`volumes_problem` has no word.
    is_needed : bool
        The user asked for it: its end raises BadInput where it says nothing.
    """
    from mpiimg.neuro.kernels.tensor import design_matrix

    volumes = _volumes(gradients)
    bvals, bvecs = np.array(gradients.bvals)[list(volumes)], np.array(gradients.bvecs)[list(volumes)]
    design, depth = design_matrix(bvals, bvecs), image.shape[-3]
    grid = ChunkGrid("z", (depth,), (blocks_along(depth, MAX_SLABS),))
    counts = [
        mask.offsets[stop] - mask.offsets[start] for ((start, stop),) in map(grid.bounds, range(len(grid)))
    ]
    stride = -(-mask.voxels // MAX_VOXELS)
    width = -(-max(counts) // stride)

    def work(chunk, block, mask_block):
        inside = _eroded(mask_block != 0, chunk.bounds["z"]) & (block != 0).any(axis=0)
        row = np.full(2 * width + 4, np.nan, np.float32)
        row[2 * width :] = 0
        if inside.any():
            variances, smallest, row[2 * width :] = _of_slab(image, block, inside, design)
            reported = variances[::stride]
            row[: len(reported)], row[width : width + len(reported)] = reported, smallest[::stride]
        return row

    def finish(rows):
        found = _level_of(rows[:, :width], rows[:, width : 2 * width], len(volumes) - 7, rows[:, 2 * width :])
        if is_needed and found.problem:
            raise BadInput(f"{image.path}: {found.problem}; use --sigma NUMBER")
        warnings = ()
        if found.correlation > MAX_CORRELATION:
            warnings = (
                f"{image.path}: the residuals of neighbouring voxels are correlated by "
                f"{found.correlation:.2f}: this series seems to have been interpolated, and its noise is not "
                "the white noise that denoising takes away; denoise the series as it was measured",
            )
        return Found(found, warnings)

    signals = VOXELS_AT_ONCE * len(volumes) * (np.dtype(image.native).itemsize + value_bytes(image) + 12)
    return Reduce(
        "noise-fit",
        grid,
        reads=(Rows(dwi, volumes), Part(mask.array, {"z": 1})),
        work=work,
        row=((2 * width + 4,), "float32"),
        finish=finish,
        # Of the values of all voxels: copies of those that count, and their order.
        finish_bytes=6 * 4 * width * len(grid),
        parameters={
            "bvals": bvals.tolist(),
            "bvecs": bvecs.tolist(),
            "volumes": volumes,
            "slope": image.slope,
            "inter": image.inter,
            "stride": stride,
        },
        weights=tuple(counts),
        # Residuals of all voxels, and what pairs of neighbours take.
        scratch=max(counts) * (4 * len(volumes) + 200) + signals + (2 << 20),
        cost=("noise-fit", float(mask.voxels) * len(volumes)),
    )


def _eroded(inside: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    """Return a mask without the voxels that touch its edge; the field of view is no edge of the brain."""
    from scipy.ndimage import binary_erosion

    first = min(bounds[0], 1)
    return binary_erosion(inside, border_value=1)[first : first + bounds[1] - bounds[0]]


def _of_slab(image, block, inside, design):
    """Return variances and smallest predictions (n,) of the voxels inside, and sums of correlations (4,)."""
    from mpiimg.neuro.kernels.tensor import fit_iwls
    from mpiimg.neuro.kernels.unexplained import unexplained

    where = np.nonzero(inside)
    residuals = np.empty((len(block), len(where[0])), np.float32)
    smallest = np.empty(len(where[0]), np.float32)
    for first in range(0, len(smallest), VOXELS_AT_ONCE):
        some = slice(first, first + VOXELS_AT_ONCE)
        signal = finite(image.scaled(block[(slice(None), *(axis[some] for axis in where))]))
        kind = np.float32 if signal.dtype == np.float32 else np.float64
        signal = np.ascontiguousarray(signal, kind)
        fitted = fit_iwls(signal, design, MIN_SIGNAL)
        residuals[:, some], smallest[some] = unexplained(signal, design, fitted)
    squares = np.zeros(residuals.shape[1])
    for one in residuals:
        squares += one.astype(np.float64) ** 2
    numbers = np.full(inside.shape, -1)
    numbers[inside] = np.arange(len(squares))
    pairs = [(numbers[:, :, :-1], numbers[:, :, 1:]), (numbers[:, :-1], numbers[:, 1:])]
    sums = [one for pair in pairs for one in _correlations(residuals, squares, *pair)]
    return squares / len(residuals), smallest, sums


def _correlations(residuals, squares, one, other):
    """Return the sum of the correlations over volumes of pairs of voxels, and how many there are."""
    both = (one >= 0) & (other >= 0)
    one, other = one[both], other[both]
    products = np.zeros(len(one))
    # Where hardly any signal is left, a fit says what is beyond all numbers: such voxels tell nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        for values in residuals:
            products += values[one].astype(np.float64) * values[other]
    scale = np.sqrt(squares[one] * squares[other])
    good = np.isfinite(products) & (scale > 0)
    return (products[good] / scale[good]).sum(), np.count_nonzero(good)


def _level_of(variances, smallest, freedom, sums) -> FitLevel:
    from scipy.stats import chi2

    good = np.isfinite(variances)
    variances, smallest = variances[good].astype(np.float64), smallest[good]
    median_of_unit = chi2.median(freedom) / freedom
    counted, sigma = variances, 0.0
    for _ in range(ROUNDS + 1):
        sigma = float(np.sqrt(np.median(counted) / median_of_unit)) if len(counted) else 0.0
        used, counted = len(counted), variances[smallest > MIN_RATIO * sigma]
    along_x, x_pairs, along_y, y_pairs = sums.sum(axis=0, dtype=np.float64)
    correlation = max(along_x / max(x_pairs, 1), along_y / max(y_pairs, 1))
    return FitLevel(sigma, used, float(correlation))


def sample_fit() -> RateSample:
    """Measure the noise of a slice; voxels times volumes."""
    side = 64
    image, values = image_of((64, 1, side, side))
    rng = np.random.default_rng(2)
    bvals = np.where(np.arange(64) % 8 == 0, 0.0, 1000.0)
    bvecs = np.where(bvals[:, None] > 0, unit_vectors(rng.normal(size=(64, 3))), 0)
    gradients = Gradients(tuple(bvals), tuple(map(tuple, bvecs)), 50.0)
    mask = Mask(volume(image, "mask", "uint8"), (0, side * side))
    stage = fit_level(image, image.array("dwi"), mask, gradients, False)
    return chunk_sample(stage, 0, values, np.ones((1, side, side), np.uint8))
