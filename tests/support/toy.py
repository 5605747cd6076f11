"""Toy pipelines with every kind of stage, each with its result by a plain loop over the whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mpiimg.engine.boxes import ChunkGrid, PieceTable
from mpiimg.engine.plan import Recipe
from mpiimg.engine.stage import Need, Stage, extended, reduction
from mpiimg.engine.stores import Array
from mpiimg.neuro.nifti import gzip_member

#: Memory of a rank: more than any toy needs.
PLENTY = 1 << 40

OUTPUT = "result.gz"


def nothing(stage: str, chunk: int) -> None:
    """Do nothing at the start of the work on a chunk; tests put faults and counters in its place."""


@dataclass(frozen=True)
class Toy:
    """A pipeline and what must come out of it.

    Parameters
    ----------
    recipe : that is run
    result : the array whose chunks are compressed one by one into OUTPUT, cut by `cuts` along its first axis
    staged : expected contents of staged arrays that the last stages leave in the work folder
    files : expected contents of other files, by name
    """

    recipe: Recipe
    result: np.ndarray
    cuts: list[tuple[int, int]]
    staged: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def bytes(self) -> bytes:
        """What the file OUTPUT must hold, to the last byte."""
        return HEAD + b"".join(gzip_member(self.result[a:b].tobytes()) for a, b in self.cuts)


HEAD = gzip_member(b"toy")


def recipe(name: str, steps: list, **parameters) -> Recipe:
    return Recipe(
        tool="mpiimg-toy",
        stem=name,
        inputs={},
        steps=steps,
        values={"total": np.float32(0)},
        documents=lambda values: {"total.txt": repr(values["total"]).encode()},
        parameters=parameters,
        sources={"made": "up"},
        record="run-toy.json",
    )


def constantly(stage: Stage) -> Callable:
    return lambda values: stage


def sink(reads: Array, thickness: int, hook: Callable) -> Stage:
    """Compress an array by runs of its first axis."""

    def compress(chunk, block):
        hook("write", chunk.number)
        return gzip_member(np.ascontiguousarray(block).tobytes())

    grid = ChunkGrid(reads.axes[0], reads.shape[:1], (thickness,))
    return Stage("write", "sink", grid, (Need(reads),), work=compress, output=OUTPUT, head=lambda: HEAD)


def blocks(length: int, thickness: int) -> list[tuple[int, int]]:
    return [(a, min(a + thickness, length)) for a in range(0, length, thickness)]


# Map, stencils, reduce, map, sink.


def smooth(
    hook: Callable = nothing, depth: int = 11, width: int = 6, scale: float = 3.0, passes: int = 3
) -> Toy:
    """Make an image, blur it with a halo thicker than its chunks, divide it by a sum that minds its order."""
    halo, thickness = 3, 2
    grid = ChunkGrid("z", (depth,), (thickness,))
    arrays = [Array(f"pass-{k}", "zx", (depth, width), "float32") for k in range(passes + 1)]
    scaled = Array("scaled", "zx", (depth, width), "float64")

    def make(chunk):
        hook("make", chunk.number)
        (start, stop) = chunk.bounds["z"]
        return (np.stack([row(z, width, scale) for z in range(start, stop)]),)

    def blur(k):
        def work(chunk, block):
            hook(f"blur-{k}", chunk.number)
            return (blurred(extended(block, chunk.bounds["z"], halo, depth, edge=True), halo),)

        reads = (Need(arrays[k - 1], {"z": halo}),)
        return Stage(f"blur-{k}", "stencil", grid, reads, (arrays[k],), work)

    def partial(chunk, block):
        hook("sum", chunk.number)
        return block.sum(dtype=np.float32)

    def finish(rows):
        hook("finish", 0)
        return {"total": in_order(rows), "warnings": ["toy: a warning"]}

    def divide(values):
        def work(chunk, block):
            hook("divide", chunk.number)
            return (block.astype(np.float64) / values["total"],)

        parameters = {"total": float(values["total"])}
        return Stage("divide", "map", grid, (Need(arrays[-1]),), (scaled,), work, parameters)

    steps = [
        constantly(Stage("make", "map", grid, (), (arrays[0],), make, {"scale": scale})),
        *(constantly(blur(k)) for k in range(1, passes + 1)),
        constantly(reduction("sum", grid, (Need(arrays[-1]),), partial, ((), "float32"), finish)),
        divide,
        lambda values: None,
        constantly(sink(scaled, 3, hook)),
    ]

    image = np.stack([row(z, width, scale) for z in range(depth)])
    for _ in range(passes):
        image = blurred(np.pad(image, ((halo, halo), (0, 0)), mode="symmetric"), halo)
    rows = np.array([image[a:b].sum(dtype=np.float32) for a, b in blocks(depth, thickness)])
    result = image.astype(np.float64) / in_order(rows)
    return Toy(recipe("smooth", steps, scale=scale), result, blocks(depth, 3), {"scaled": result})


def row(z: int, width: int, scale: float) -> np.ndarray:
    """One row of an image, whoever makes it; sizes differ so much that sums depend on their order."""
    rng = np.random.default_rng(z)
    return (scale * rng.normal(size=width) * 10.0 ** rng.uniform(-4, 4, width)).astype(np.float32)


def blurred(padded: np.ndarray, halo: int) -> np.ndarray:
    """Average along the first axis, in a fixed order."""
    out = np.zeros_like(padded[2 * halo :])
    for shift in range(2 * halo + 1):
        out += padded[shift : shift + len(out)] * np.float32(1 + shift)
    return out


def in_order(rows: np.ndarray) -> np.float32:
    total = np.float32(0)
    for value in rows:
        total += value
    return total


# Source, map, transposition, sink.


def transpose(
    hook: Callable = nothing, volumes: int = 7, depth: int = 5, fail: Exception | None = None
) -> Toy:
    """Read volumes as a stream, work on each, then on slices through all of them.

    `fail` is raised by the stream in its second half; a stream that ends there has EOFError for it.
    """
    width, per = 4, 2
    shape = (volumes, depth, width)
    stream = Array("stream", "vzx", shape, "int16")
    negative, slabs = (
        Array("negative", "vzx", shape, "int16"),
        Array("slabs", "zvx", (depth, *shape[::2]), "float32"),
    )
    grid = ChunkGrid("vz", shape[:2], (1, per))
    image = np.random.default_rng(1).integers(-999, 999, shape, dtype=np.int16)

    def read():
        for number in range(len(grid)):
            if number == len(grid) // 2 and isinstance(fail, EOFError):
                return
            if number == len(grid) // 2 and fail is not None:
                raise fail
            hook("read", number)
            (v, _), (a, b) = grid.bounds(number)
            yield image[v : v + 1, a:b].copy()

    def negate(chunk, block):
        hook("negate", chunk.number)
        return (-block,)

    def turn(chunk, block):
        hook("turn", chunk.number)
        return (np.sqrt(np.abs(block[:, 0].astype(np.float32)))[None],)

    steps = [
        constantly(Stage("read", "source", grid, writes=(stream,), blocks=read)),
        constantly(
            Stage("negate", "map", ChunkGrid("v", shape[:1], (1,)), (Need(stream),), (negative,), negate)
        ),
        constantly(Stage("turn", "map", ChunkGrid("z", (depth,), (1,)), (Need(negative),), (slabs,), turn)),
        constantly(sink(slabs, 1, hook)),
    ]
    result = np.sqrt(np.abs(image.astype(np.float32))).transpose(1, 0, 2).copy()
    return Toy(recipe("transpose", steps), result, blocks(depth, 1), {"slabs": result})


# Regroup: exposures into pieces, pieces into bands.


def regroup(hook: Callable = nothing, exposures: int = 6, bands: int = 5, seed: int = 0) -> Toy:
    """Cut exposures into ragged pieces, one for each band that they touch, and combine those of each band.

    The pieces of a band come in the order of their exposures, and how they are combined depends on it.
    Some exposures touch no band, some bands are touched by none, and some pieces are empty.
    """
    rng = np.random.default_rng(seed)
    width = 8
    touches = [
        (e, b, *np.sort(rng.integers(0, width + 1, 2)).tolist())
        for e in range(exposures)
        for b in range(bands)
        if rng.random() < 0.6 and e != 1 and b != 2
    ]
    table = PieceTable(
        tuple(e for e, *_ in touches),
        tuple(b for _, b, *_ in touches),
        tuple(stop - start for *_, start, stop in touches),
    )
    pieces = Array("pieces", "n", table.offsets[-1:], "float32")
    coadd = Array("coadd", "bx", (bands, width), "float32")

    def warp(chunk):
        hook("warp", chunk.number)
        made = [piece(e, b, stop - start) for e, b, start, stop in touches if e == chunk.number]
        return (np.concatenate([np.empty(0, np.float32), *made]),)

    def combine(chunk, found):
        hook("combine", chunk.number)
        extents = [(start, stop) for _, b, start, stop in touches if b == chunk.number]
        return (combined(extents, found, width)[None],)

    def save(chunk, folder, block):
        hook("save", chunk.number)
        (folder / names[chunk.number]).write_bytes(block.tobytes())

    names = tuple(f"band-{band}.raw" for band in range(bands))
    exposure_grid, band_grid = ChunkGrid("e", (exposures,), (1,)), ChunkGrid("b", (bands,), (1,))
    need = Need(pieces, place=lambda chunk: table.of_key(chunk.number))
    steps = [
        constantly(
            Stage(
                "warp",
                "map",
                exposure_grid,
                (),
                (pieces,),
                warp,
                place={"pieces": lambda chunk: table.of_producer(chunk.number)},
                weights=tuple(
                    sum(stop - start for f, _, start, stop in touches if f == e) for e in range(exposures)
                ),
            )
        ),
        constantly(Stage("combine", "regroup", band_grid, (need,), (coadd,), combine)),
        constantly(sink(coadd, 2, hook)),
        constantly(Stage("save", "files", band_grid, (Need(coadd),), work=save, outputs=names)),
    ]
    result = np.stack(
        [
            combined(
                [(start, stop) for _, b, start, stop in touches if b == band],
                [piece(e, b, stop - start) for e, b, start, stop in touches if b == band],
                width,
            )
            for band in range(bands)
        ]
    )
    files = {name: values.tobytes() for name, values in zip(names, result, strict=True)}
    return Toy(recipe("regroup", steps), result, blocks(bands, 2), {"coadd": result}, files)


def piece(exposure: int, band: int, length: int) -> np.ndarray:
    return np.random.default_rng((exposure, band)).normal(size=length).astype(np.float32)


def combined(extents: list[tuple[int, int]], pieces: list[np.ndarray], width: int) -> np.ndarray:
    out = np.zeros(width, np.float32)
    for (start, stop), values in zip(extents, pieces, strict=True):
        out[start:stop] = out[start:stop] * np.float32(0.7) + values
    return out


TOYS = {"smooth": smooth, "transpose": transpose, "regroup": regroup}

#: Arguments that make pipelines of some dozens of chunks, to be killed at any of the steps of their way.
LONG = {"smooth": {"depth": 15}, "transpose": {"volumes": 9, "depth": 6}, "regroup": {"exposures": 12}}
