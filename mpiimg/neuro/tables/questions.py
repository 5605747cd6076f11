"""What the image says of a gradient table that can be understood in two ways.

A sample of voxels over the whole field is enough: one pass over the image, and only for such a table. The
brain in it is what lies above Otsu's threshold of the mean of the b0s, unsmoothed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Part
from mpiimg.engine.stage import Found, Reduce
from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import TENSOR_B_LIMIT, Gradients
from mpiimg.neuro.images import finite, value_bytes
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.tables.options import UNITS
from mpiimg.neuro.tables.shells import shells_of, tolerance
from mpiimg.neuro.tables.understand import Question

#: Voxels that are looked at, and how many of them must lie in the brain.
SAMPLES, MIN_VOXELS = 1 << 14, 50

#: The share of the sample whose brightest part does not stretch Otsu's histogram.
CLIPPED_AT = 0.995

#: How fast signal falls with b in a brain, mm^2/s.
SLOPES = (1e-4, 4e-3)

#: A volume without a direction is a b0 if it is at least so bright beside the b0s, or beside the directed
#: volumes of its b-value where there are no other b0s.
LIKE_B0, ABOVE_DIRECTED = 0.8, 1.5

#: A fraction whose multiples spread evenly: that of the golden ratio.
_SPREAD = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Answer:
    """What the image said.

    Parameters
    ----------
    unweighted : tuple of int
        Volumes that are b0s, whatever their nominal b-value.
    left_out : tuple of int
        Volumes that are traces or other images made of several directions.
    """

    unweighted: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()


def ask_image(
    image: Image, dwi: Array, gradients: Gradients, kept: tuple[int, ...], question: Question
) -> Reduce[Answer]:
    """Declare the look at the image.

    Parameters
    ----------
    image : Image
        Whose values `dwi` holds.
    dwi : Array
        (V, z, y, x).
    gradients : Gradients
        Of its volumes, as far as they are known.
    kept : tuple of int
        The volumes that are used.
    question : Question

    Returns
    -------
    Reduce
        Its end raises BadInput where the image leaves the question open, or the user must choose. Nobody
        knows before what it says.
    """
    volumes, depth, height, width = dwi.shape
    count = min(height * width, max(1, SAMPLES // depth))

    def work(chunk, block):
        places = _places(height * width, count, chunk.bounds["z"][0])
        return finite(image.scaled(block[:, 0].reshape(volumes, -1)[:, places])).astype(np.float32)

    def finish(rows):
        sample = rows.transpose(1, 0, 2).reshape(volumes, -1)[list(kept)]
        return _answered(_Look(sample, gradients.of_volumes(kept), kept, question))

    return Reduce(
        "gradient-table",
        ChunkGrid("z", (depth,), (1,)),
        reads=(Part(dwi),),
        work=work,
        row=((volumes, count), "float32"),
        finish=finish,
        finish_bytes=3 * volumes * count * depth * 8,
        scratch=volumes * (height * width * value_bytes(image) + 16 * count) + (1 << 20),
        parameters={"bvals": gradients.bvals, "bvecs": gradients.bvecs, "kept": kept},
    )


def _places(voxels: int, count: int, number: int) -> np.ndarray:
    """Return `count` places in a slice of so many voxels, spread evenly, and elsewhere in the next slice."""
    if count == voxels:
        return np.arange(voxels)
    return ((np.arange(count) + number * count) * _SPREAD % 1 * voxels).astype(np.int64)


class _Look:
    """A sample of the image, and the signal of every volume in the brain."""

    def __init__(self, sample: np.ndarray, gradients: Gradients, kept: tuple[int, ...], question: Question):
        self.sample, self.gradients, self.kept, self.question = sample, gradients, kept, question
        self.bvals = np.array(gradients.bvals)
        self.open = np.isin(kept, question.undirected)
        self.b0 = (self.bvals <= gradients.b0_threshold) & ~self.open
        reference = self.b0 if self.b0.any() else ~self.open
        self.brain = _above_otsu(sample[reference].mean(axis=0, dtype=np.float64))
        voxels = sample[:, self.brain]
        self.signal = np.median(voxels, axis=1) if self.brain.sum() >= MIN_VOXELS else None


def _above_otsu(mean: np.ndarray) -> np.ndarray:
    """Return which of the sampled voxels are brain."""
    from mpiimg.neuro.kernels.otsu import histogram, threshold

    clipped = np.minimum(mean, np.quantile(mean, CLIPPED_AT)).astype(np.float32)
    low, high = clipped.min(), clipped.max()
    if low == high:
        return np.zeros(len(mean), bool)
    return mean > threshold(histogram(clipped, low, high), low, high)


def _answered(look: _Look) -> Found[Answer]:
    """Answer all that is asked."""
    question = look.question
    if look.signal is None:
        raise BadInput(
            f"{question.bvals_name}: this table can be understood in two ways, and the image shows no brain "
            "to tell them apart; say what it means by --b-unit, --b-scaling, --normalise-bvecs or "
            "--drop-volumes"
        )
    warnings = []
    if question.in_ms:
        warnings.append(_in_ms(look))
    if question.normalised is not None:
        _choose(look)
    answer, said = _undirected(look)
    return Found(answer, warnings=(*warnings, *said))


def _in_ms(look: _Look) -> str:
    """Look whether signal falls as b-values in ms/um^2 have it; return what is to be said."""
    name, factor = look.question.bvals_name, UNITS["ms/um2"]
    shells = [
        (shell.b, look.signal[list(shell.volumes)].mean())
        for shell in shells_of(look.bvals, look.gradients.b0_threshold)
    ]
    (low, bright), weighted = shells[0], shells[1:]
    high, dark = min(weighted, key=lambda shell: abs(shell[0] - factor)) if weighted else (low, bright)
    slope = np.log(bright / dark) / (high - low) if min(bright, dark) > 0 and high > low else 0.0
    largest = look.bvals.max() / factor
    if not SLOPES[0] <= slope <= SLOPES[1]:
        raise BadInput(
            f"{name}: b-values up to {largest:g} may be in ms/um^2, but signal does not fall with them as in "
            f"tissue ({slope:.2g} mm^2/s); say --b-unit ms/um2 or --b-unit s/mm2"
        )
    return (
        f"{name}: b-values up to {largest:g} are taken as ms/um^2, and multiplied by 1000: signal falls with "
        f"them by {slope:.2g} mm^2/s; --b-unit s/mm2 leaves them as they are"
    )


def _choose(look: _Look) -> None:
    """Refuse lengths that encode b-values; say what each way of reading them makes of the brain."""
    ways = [
        _mean_diffusivity(look, gradients.bvals, gradients.bvecs)
        for gradients in (look.gradients, look.question.normalised)
    ]
    scaled, plain = (
        "no tensor can be fitted" if md is None else f"MD of the brain {md:.2g} mm^2/s" for md in ways
    )
    shells = [shell for shell in shells_of(look.bvals, look.gradients.b0_threshold) if shell.b > 0]
    made = f"{shells[0].b:.0f}" if len(shells) == 1 else f"{shells[0].b:.0f} to {shells[-1].b:.0f}"
    raise BadInput(
        f"{look.question.bvecs_name}: the lengths of bvecs seem to encode b-values: b multiplied by their "
        f"squares makes {made} s/mm^2. --b-scaling does so, as MRtrix3 ({scaled}); --normalise-bvecs takes b "
        f"as it stands ({plain}): choose one"
    )


def _mean_diffusivity(look: _Look, bvals, bvecs) -> float | None:
    """Return the median over the brain of the mean diffusivity by ordinary least squares, mm^2/s."""
    from mpiimg.neuro.kernels.tensor import design_matrix

    bvals, bvecs = np.array(bvals), np.array(bvecs)
    for used in (bvals <= TENSOR_B_LIMIT, np.ones(len(bvals), bool)):
        design = design_matrix(bvals[used], bvecs[used])
        if np.linalg.matrix_rank(design) == design.shape[1]:
            signal = look.sample[used][:, look.brain].astype(np.float64)
            least = look.signal.max() * 1e-3
            tensors = np.linalg.pinv(design) @ np.log(np.maximum(signal, least))
            return float(np.median((tensors[0] + tensors[2] + tensors[5]) / 3))
    return None


def _undirected(look: _Look) -> tuple[Answer, tuple[str, ...]]:
    """Tell b0s from traces among volumes that have a b-value and no direction."""
    if not look.open.any():
        return Answer(), ()
    is_b0 = {place: _is_b0(look, place) for place in np.flatnonzero(look.open).tolist()}
    unweighted, left_out = (
        tuple(look.kept[place] for place, one in is_b0.items() if one is wanted) for wanted in (True, False)
    )
    if not unweighted and not look.b0.any():
        raise BadInput(
            f"{look.question.bvecs_name}: volumes {_listed(left_out)} have no direction and are too dark for "
            "b0s, and the table has none; a b0 is needed"
        )
    name = look.question.bvecs_name
    warnings = []
    if unweighted:
        warnings.append(
            f"{name}: volumes {_listed(unweighted)} have a b-value and no direction, and are bright as b0s: "
            "they are taken for b0s"
        )
    if left_out:
        warnings.append(
            f"{name}: volumes {_listed(left_out)} have a b-value and no direction, and are darker than b0s: "
            "they count as trace images, and are left out of everything"
        )
    return Answer(unweighted, left_out), tuple(warnings)


def _is_b0(look: _Look, place: int) -> bool:
    signal = look.signal
    if look.b0.any():
        return bool(signal[place] >= LIKE_B0 * np.median(signal[look.b0]))
    nominal = look.question.nominal[look.question.undirected.index(look.kept[place])]
    directed = ~look.open & ~look.b0
    alike = directed & (np.abs(look.bvals - nominal) <= tolerance(nominal))
    return bool(signal[place] >= ABOVE_DIRECTED * np.median(signal[alike if alike.any() else directed]))


def _listed(volumes: tuple[int, ...]) -> str:
    return ", ".join(map(str, volumes))
