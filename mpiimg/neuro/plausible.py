"""Whether the signals and tensors of a fit make sense, over the mask as a whole."""

from __future__ import annotations

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.needs import Rows
from mpiimg.engine.stage import Found, Reduce
from mpiimg.neuro.floor import MD_LIMITS, Figures, Floor
from mpiimg.neuro.maps import ORDERS, ROWS

#: Share of the signals in the mask below the floor that is warned of.
MAX_FLOORED = 0.10


def look(maps: Array, grid: ChunkGrid, volumes: int, order: str, floor: Floor, where: str) -> Reduce[Figures]:
    """Declare the counting of what makes sense.

    Parameters
    ----------
    maps : Array
        (c, n) float32, rows as in `ROWS`.
    grid : ChunkGrid
        Slices along z.
    volumes : int
        Those that were fitted.
    order : str
        Of the elements of the tensor, one of `ORDERS`.
    floor : Floor
    where : str
        The image, for messages.
    """
    first = ROWS["tensor"][0]
    diagonal = [first + ORDERS[order].index(element) for element in (0, 2, 5)]  # xx, yy, zz
    rows = tuple(sorted([*ROWS["fa"], *ROWS["md"], *diagonal, *ROWS["floored"]]))

    def work(chunk, block):
        fa, bounded, *elements, floored = block.astype(np.float64)
        md = sum(elements) / 3
        lost = floored == volumes
        rising, slow, fast = ~lost & (md <= 0), ~lost & (md > 0) & (md < MD_LIMITS[0]), md > MD_LIMITS[1]
        counts = (np.count_nonzero(one) for one in (lost, rising, slow, fast & ~lost))
        return md.size, floored.sum(), *counts, fa.sum(), bounded.sum()

    def finish(found):
        *counts, fa, md = found.sum(axis=0).tolist()
        figures = Figures(*map(int, counts), fa / counts[0], md / counts[0])
        return Found(figures, tuple(f"{where}: {text}" for text in complaints(figures, volumes, floor)))

    return Reduce(
        "plausible",
        grid,
        reads=(Rows(maps, rows),),
        work=work,
        row=((8,), "float64"),
        finish=finish,
        parameters={"volumes": volumes, "order": order, **floor.said},
        expected=Figures(voxels=1),
    )


def complaints(figures: Figures, volumes: int, floor: Floor) -> list[str]:
    """Return what is to be warned of, a sentence each with numbers and the likely cause."""
    signals = figures.voxels * volumes
    texts = []
    if figures.lost > figures.voxels / 2:
        texts.append(
            f"{_in_mask(figures.lost, figures)} all signals lie below the floor of the fit ({floor}), so "
            "there is no tensor there: is the image scaled to small numbers? give --min-signal in its units"
        )
    elif figures.floored > MAX_FLOORED * signals:
        texts.append(
            f"{figures.floored / signals:.0%} of the signals in the mask lie below the floor of the fit "
            f"({floor}) and were raised to it, which biases the maps: is the noise level right, and the mask?"
        )
    if figures.rising > figures.voxels / 2:
        texts.append(
            f"{_in_mask(figures.rising, figures)} the signal rises with b, as no diffusion makes it: "
            "do the b-values belong to this image, in the order of its volumes?"
        )
    low, high = MD_LIMITS
    if figures.slow > figures.voxels / 2:
        texts.append(
            f"{_in_mask(figures.slow, figures)} the mean diffusivity is below {low:g} mm^2/s, less than in "
            "any tissue: are the b-values in s/mm^2, and is the image as it was measured?"
        )
    if figures.fast > figures.voxels / 2:
        texts.append(
            f"{_in_mask(figures.fast, figures)} the mean diffusivity is above {high:g} mm^2/s, more than "
            "that of water: are the b-values in s/mm^2, or in ms/um^2, which are 1000 times smaller?"
        )
    return texts


def _in_mask(count: int, figures: Figures) -> str:
    return f"in {count / figures.voxels:.0%} of the mask"
