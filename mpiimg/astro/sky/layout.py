"""How a survey is laid out: which exposure meets which patch, and where every piece of it lies.

All of it follows from headers: a patch is cut into bands of rows, an exposure
makes one piece for each band that its footprint meets, and the pieces of a
band are brought together for the coadd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mpiimg.engine.boxes import Box, ChunkGrid, PieceTable, box_size
from mpiimg.engine.stage import Chunk
from mpiimg.engine.stores import Array

#: Most rows in a band of a patch, the unit of coaddition; and least rows, however many exposures meet.
BAND_ROWS, LEAST_BAND_ROWS = 256, 32

#: Most rows that the exposures of a patch bring to a band together, so that deep patches take no more memory.
INPUT_ROWS = 8192

#: Bytes that Python takes for a footprint, and for a piece with its place in the tables.
BYTES_A_FOOTPRINT, BYTES_A_PIECE = 530, 420


@dataclass(frozen=True)
class Patch:
    """A patch of sky in one filter.

    Parameters
    ----------
    filter : name of the filter; filters are coadded apart
    index : (x, y) of the patch in the tract
    outer, inner : boxes (rows, columns) in tract pixels; inner boxes tile the tract
    """

    filter: str
    index: tuple[int, int]
    outer: Box
    inner: Box

    @property
    def name(self) -> str:
        return f"patch-{self.index[0]}-{self.index[1]}"

    def bands(self, exposures: int = 0) -> list[Box]:
        """Return the bands of rows that a patch of so many exposures is cut into, in tract pixels."""
        rows = min(BAND_ROWS, max(LEAST_BAND_ROWS, INPUT_ROWS // max(1, exposures)))
        (first, last), columns = self.outer
        return [((row, min(row + rows, last)), columns) for row in range(first, last, rows)]


@dataclass(frozen=True)
class Footprint:
    """Where an exposure meets a patch: the box of tract pixels that it can reach inside the patch."""

    exposure: int
    patch: int
    box: Box


@dataclass(frozen=True)
class Layout:
    """The geometry of a survey.

    Parameters
    ----------
    shapes : (rows, columns) of each exposure, in the order of visit and sensor
    patches : that anything reaches, in the order of filter and index
    footprints : in the order of exposure and patch
    planes : what the names of the arrays of exposures begin with: stages between them give other names
    """

    shapes: tuple[tuple[int, int], ...]
    patches: tuple[Patch, ...]
    footprints: tuple[Footprint, ...]
    planes: str = "exposure"

    @cached_property
    def bands(self) -> tuple[tuple[int, Box], ...]:
        """Every band of every patch: (patch, box). Their numbers are the keys of pieces."""
        return tuple((number, box) for number, boxes in enumerate(self._bands) for box in boxes)

    @cached_property
    def _bands(self) -> list[list[Box]]:
        """The bands of each patch."""
        depths = Counter(footprint.patch for footprint in self.footprints)
        return [patch.bands(depths[number]) for number, patch in enumerate(self.patches)]

    @cached_property
    def pieces(self) -> tuple[tuple[int, int, Box], ...]:
        """Every piece: (footprint, band, box), in the order of footprints and bands."""
        first = {}
        for band, (patch, _) in enumerate(self.bands):
            first.setdefault(patch, band)
        found = []
        for number, footprint in enumerate(self.footprints):
            start = first[footprint.patch]
            top, bottom = footprint.box[0]
            for k, band in enumerate(self._bands[footprint.patch]):
                # Most bands of a patch lie above or below: there are too many of them to look closer.
                if top < band[0][1] and bottom > band[0][0]:
                    box = _common(band, footprint.box)
                    if box is not None:
                        found.append((number, start + k, box))
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Bytes that all this takes in the memory of every rank, be there few of them or many."""
        return BYTES_A_FOOTPRINT * len(self.footprints) + BYTES_A_PIECE * len(self.pieces)

    @cached_property
    def table(self) -> PieceTable:
        """The pieces as the exchange sees them: made by exposures, gathered by bands."""
        return PieceTable(
            tuple(self.footprints[footprint].exposure for footprint, _, _ in self.pieces),
            tuple(band for _, band, _ in self.pieces),
            tuple(box_size(box) for _, _, box in self.pieces),
        )

    @cached_property
    def exposure_starts(self) -> tuple[int, ...]:
        """Where each exposure's pixels begin in the flat arrays of exposures; ends with their length."""
        return _starts(rows * columns for rows, columns in self.shapes)

    @cached_property
    def band_starts(self) -> tuple[int, ...]:
        """Where each band's pixels begin in the flat arrays of coadds; ends with their length."""
        return _starts(box_size(box) for _, box in self.bands)

    @cached_property
    def patch_bands(self) -> tuple[range, ...]:
        """The bands of each patch."""
        numbers = [[] for _ in self.patches]
        for band, (patch, _) in enumerate(self.bands):
            numbers[patch].append(band)
        return tuple(range(bands[0], bands[-1] + 1) for bands in numbers)

    def exposure_run(self, chunk: Chunk) -> Box:
        """Return the pixels of an exposure in the flat arrays of exposures."""
        return ((self.exposure_starts[chunk.number], self.exposure_starts[chunk.number + 1]),)

    def band_run(self, chunk: Chunk) -> Box:
        """Return the pixels of a band in the flat arrays of coadds."""
        return ((self.band_starts[chunk.number], self.band_starts[chunk.number + 1]),)

    def patch_run(self, chunk: Chunk) -> Box:
        """Return the pixels of a patch in the flat arrays of coadds: its bands lie end to end."""
        bands = self.patch_bands[chunk.number]
        return ((self.band_starts[bands.start], self.band_starts[bands.stop]),)

    def footprint_runs(self, chunk: Chunk) -> tuple[Box, ...]:
        """Return the pixels of one footprint in the flat arrays of pieces."""
        return (((self._footprint_starts[chunk.number], self._footprint_starts[chunk.number + 1]),),)

    @cached_property
    def _footprint_starts(self) -> tuple[int, ...]:
        """Where each footprint begins in the flat arrays of pieces: its bands lie end to end, as rows do."""
        return _starts(box_size(footprint.box) for footprint in self.footprints)

    @property
    def exposure_grid(self) -> ChunkGrid:
        return ChunkGrid("e", (len(self.shapes),), (1,))

    @property
    def footprint_grid(self) -> ChunkGrid:
        return ChunkGrid("f", (len(self.footprints),), (1,))

    @property
    def band_grid(self) -> ChunkGrid:
        return ChunkGrid("b", (len(self.bands),), (1,))

    @property
    def patch_grid(self) -> ChunkGrid:
        return ChunkGrid("p", (len(self.patches),), (1,))

    def exposure_planes(self) -> tuple[Array, Array, Array]:
        return _planes(self.planes, self.exposure_starts[-1])

    def piece_planes(self) -> tuple[Array, Array, Array]:
        return _planes("piece", self.table.offsets[-1])

    def coadd_planes(self) -> tuple[Array, Array, Array, Array]:
        length = self.band_starts[-1]
        return (*_planes("coadd", length), Array("coadd-nimage", "s", (length,), "int16"))


def _planes(name: str, length: int) -> tuple[Array, Array, Array]:
    kinds = {"image": "float32", "variance": "float32", "mask": "int32"}
    return tuple(Array(f"{name}-{plane}", "s", (length,), dtype) for plane, dtype in kinds.items())


def _common(one: Box, other: Box) -> Box | None:
    box = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return box if all(b > a for a, b in box) else None


def _starts(lengths: Sequence[int]) -> tuple[int, ...]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return tuple(starts)
