"""Toy pipelines with every kind of stage, each with its result by a plain loop over the whole arrays."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mpiimg.engine.array import Array, Ragged
from mpiimg.engine.boxes import Box, ChunkGrid, box_slices
from mpiimg.engine.halo import extended
from mpiimg.engine.needs import At, Part, Pieces
from mpiimg.engine.recipe import Recipe
from mpiimg.engine.stage import Compute, Digested, Files, Found, Reduce, Sink, Stages, Stream

#: Memory of a rank: more than any toy needs.
PLENTY = 1 << 40

OUTPUT = "result.gz"


def nothing(stage: str, chunk: int) -> None:
    """Do nothing at the start of the work on a chunk; tests put faults and counters in its place."""


def gzip_member(data: bytes) -> bytes:
    """Return data compressed, the same bytes whenever it is done."""
    return gzip.compress(data, 1, mtime=0)


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
        return file_of([self.result[a:b].tobytes() for a, b in self.cuts])


HEAD = gzip_member(b"toy")


def file_of(blocks: list[bytes]) -> bytes:
    """What a file of these blocks holds: a head, each block, and a tail with the sums of all of them."""
    return HEAD + b"".join(map(gzip_member, blocks)) + tail([None, *map(zlib.crc32, blocks)])


def tail(digests: list) -> bytes:
    return gzip_member(repr(digests).encode())


def recipe(name: str, stages: Callable[[], Stages], **parameters) -> Recipe:
    """Return a recipe of stages that come to a number, which a document holds."""
    return Recipe(
        tool="mpiimg-toy",
        stem=name,
        inputs=(),
        stages=stages,
        documents=lambda total: {"total.txt": repr(total).encode()},
        parameters=parameters,
        sources={"made": "up"},
        record="run-toy.json",
    )


def sink(reads: Array, thickness: int, hook: Callable) -> Sink:
    """Compress an array by runs of its first axis."""

    def compress(chunk, block):
        hook("write", chunk.number)
        data = np.ascontiguousarray(block).tobytes()
        return Digested(gzip_member(data), zlib.crc32(data))

    grid = ChunkGrid(reads.axes[:1], reads.shape[:1], (thickness,))
    return Sink(
        "write",
        grid,
        reads=(Part(reads),),
        work=compress,
        file=OUTPUT,
        head=lambda: Digested(HEAD, None),
        tail=tail,
    )


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

        reads = (Part(arrays[k - 1], {"z": halo}),)
        return Compute(f"blur-{k}", grid, reads=reads, writes=(arrays[k],), work=work)

    def partial(chunk, block):
        hook("sum", chunk.number)
        return block.sum(dtype=np.float32)

    def finish(rows):
        hook("finish", 0)
        return Found(in_order(rows), warnings=("toy: a warning",), notes=("toy: a note",))

    def divide(total):
        def work(chunk, block):
            hook("divide", chunk.number)
            return (block.astype(np.float64) / total,)

        return Compute(
            "divide",
            grid,
            reads=(Part(arrays[-1]),),
            writes=(scaled,),
            work=work,
            parameters={"total": float(total)},
        )

    def stages():
        yield Compute("make", grid, writes=(arrays[0],), work=make, parameters={"scale": scale})
        for k in range(1, passes + 1):
            yield blur(k)
        total = yield Reduce(
            "sum",
            grid,
            reads=(Part(arrays[-1]),),
            work=partial,
            row=((), "float32"),
            finish=finish,
            expected=np.float32(0),
        )
        yield divide(total)
        yield sink(scaled, 3, hook)
        return total

    image = np.stack([row(z, width, scale) for z in range(depth)])
    for _ in range(passes):
        image = blurred(np.pad(image, ((halo, halo), (0, 0)), mode="symmetric"), halo)
    rows = np.array([image[a:b].sum(dtype=np.float32) for a, b in blocks(depth, thickness)])
    result = image.astype(np.float64) / in_order(rows)
    return Toy(recipe("smooth", stages, scale=scale), result, blocks(depth, 3), {"scaled": result})


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

    def stages():
        yield Stream("read", grid, array=stream, blocks=read)
        yield Compute(
            "negate",
            ChunkGrid("v", shape[:1], (1,)),
            reads=(Part(stream),),
            writes=(negative,),
            work=negate,
        )
        yield Compute(
            "turn", ChunkGrid("z", (depth,), (1,)), reads=(Part(negative),), writes=(slabs,), work=turn
        )
        yield sink(slabs, 1, hook)
        return np.float32(0)

    result = np.sqrt(np.abs(image.astype(np.float32))).transpose(1, 0, 2).copy()
    return Toy(recipe("transpose", stages), result, blocks(depth, 1), {"slabs": result})


# Regroup: exposures into pieces, pieces into strips.


def regroup(hook: Callable = nothing, exposures: int = 6, strips: int = 5, seed: int = 0) -> Toy:
    """Cut exposures into ragged pieces, one for each strip that they touch, and combine those of each strip.

    The pieces of a strip come in the order of their exposures, and how they are combined depends on it.
    Some exposures touch no strip, some strips are touched by none, and some pieces are empty.
    """
    rng = np.random.default_rng(seed)
    width = 8
    touches = [
        (e, b, *np.sort(rng.integers(0, width + 1, 2)).tolist())
        for e in range(exposures)
        for b in range(strips)
        if rng.random() < 0.6 and e != 1 and b != 2
    ]
    pieces = Ragged("pieces", "px", tuple((stop - start,) for *_, start, stop in touches), "float32")
    coadd = Array("coadd", "bx", (strips, width), "float32")

    def warp(chunk):
        hook("warp", chunk.number)
        return ([piece(e, b, stop - start)[None] for e, b, start, stop in touches if e == chunk.number],)

    def combine(chunk, blocks):
        hook("combine", chunk.number)
        extents = [(start, stop) for _, b, start, stop in touches if b == chunk.number]
        return (combined(extents, [block[0] for block in blocks], width)[None],)

    def save(chunk, folder, block):
        hook("save", chunk.number)
        (folder / names[chunk.number]).write_bytes(block.tobytes())

    def of_exposure(chunk):
        return [pieces.item(i) for i, (e, *_) in enumerate(touches) if e == chunk.number]

    def of_strip(chunk):
        return [pieces.item(i) for i, (_, b, *_) in enumerate(touches) if b == chunk.number]

    names = tuple(f"strip-{strip}.raw" for strip in range(strips))
    exposure_grid, strip_grid = ChunkGrid("e", (exposures,), (1,)), ChunkGrid("b", (strips,), (1,))
    sizes = [sum(stop - start for f, _, start, stop in touches if f == e) for e in range(exposures)]

    def stages():
        yield Compute(
            "warp", exposure_grid, writes=(Pieces(pieces, of_exposure),), work=warp, weights=tuple(sizes)
        )
        yield Compute("combine", strip_grid, reads=(Pieces(pieces, of_strip),), writes=(coadd,), work=combine)
        yield sink(coadd, 2, hook)
        yield Files("save", strip_grid, reads=(Part(coadd),), work=save, names=names)
        return np.float32(0)

    result = np.stack(
        [
            combined(
                [(start, stop) for _, b, start, stop in touches if b == strip],
                [piece(e, b, stop - start) for e, b, start, stop in touches if b == strip],
                width,
            )
            for strip in range(strips)
        ]
    )
    files = {name: values.tobytes() for name, values in zip(names, result, strict=True)}
    return Toy(recipe("regroup", stages), result, blocks(strips, 2), {"coadd": result}, files)


def published(seed: int) -> Toy:
    """Return a toy with every kind of result, whose parameters tell it from that of another seed."""
    made = regroup(exposures=3, strips=3, seed=seed)
    array = Array("coadd", "bx", made.result.shape, "float32")
    recipe = dataclasses.replace(
        made.recipe,
        parameters={"seed": seed},
        sources={"seed": seed},
        staged_outputs={array.name: ("coadd.h5", {"seed": seed})},
    )
    return dataclasses.replace(made, recipe=recipe)


def piece(exposure: int, strip: int, length: int) -> np.ndarray:
    return np.random.default_rng((exposure, strip)).normal(size=length).astype(np.float32)


def combined(extents: list[tuple[int, int]], pieces: list[np.ndarray], width: int) -> np.ndarray:
    out = np.zeros(width, np.float32)
    for (start, stop), values in zip(extents, pieces, strict=True):
        out[start:stop] = out[start:stop] * np.float32(0.7) + values
    return out


# Ragged: stencils within items of different shapes, a box elsewhere, tiles of items, tiles brought together.

#: Items of all kinds: higher and lower than a chunk and than the halo, one row, none, no pixel in a row.
SHAPES = ((7, 5), (1, 9), (4, 3), (0, 6), (6, 1), (3, 0), (2, 8), (5, 4))


def ragged(hook: Callable = nothing, shapes: tuple[tuple[int, int], ...] = SHAPES, seed: int = 0) -> Toy:
    """Blur exposures by strips of rows, subtract a row of another one, cut them into tiles, and add these up.

    A strip sees `halo` rows more on both sides, and no row of another exposure. The tiles of an exposure go
    to three mosaics in turn; those of a mosaic are added in the order of the exposures, in its corner.
    """
    halo, rows, mosaics, side = 2, 2, 3, 4
    items, most = len(shapes), max((height for height, _ in shapes), default=0)
    rng = np.random.default_rng(seed)
    images = [
        (rng.normal(size=shape) * 10.0 ** rng.uniform(-4, 4, shape)).astype("float32") for shape in shapes
    ]
    raw, soft, level = (Ragged(name, "eyx", shapes, "float32") for name in ("raw", "soft", "level"))
    boxes = [tile for number, shape in enumerate(shapes) for tile in tiles(number, shape, side)]
    tile_array = Ragged("tiles", "tyx", tuple(tuple(b - a for a, b in box[1:]) for box in boxes), "float64")
    sums = Array("sums", "myx", (mosaics, 2 * side, side + 1), "float64")
    item_grid, mosaic_grid = ChunkGrid("e", (items,), (1,)), ChunkGrid("m", (mosaics,), (1,))
    strip_grid = ChunkGrid("ey", (items, most), (1, rows))

    def make(chunk):
        hook("make", chunk.number)
        return (images[chunk.number][None],)

    def blur(chunk, block):
        hook("blur", chunk.number)
        ((number, _), (start, stop)) = chunk.box
        return (strip_of(block[0], start, stop, len(images[number]), halo)[None],)

    def elsewhere(chunk):
        """The last row of the exposure before, as far as there is one."""
        number = chunk.bounds["e"][0] - 1
        if number < 0 or 0 in shapes[number]:
            return None
        height, width = shapes[number]
        return ((number, number + 1), (height - 1, height), (0, width))

    def subtract(chunk, block, other):
        hook("subtract", chunk.number)
        return (block - (np.float32(0) if other is None else other.max()),)

    def of_item(chunk):
        return [tile_array.item(i) for i, box in enumerate(boxes) if box[0] == chunk.bounds["e"]]

    def of_mosaic(chunk):
        return [tile_array.item(i) for i in range(len(boxes)) if i % mosaics == chunk.number]

    def cut(chunk, block):
        hook("cut", chunk.number)
        mine = [((0, 1), *box[1:]) for box in boxes if box[0] == chunk.bounds["e"]]
        return ([block[box_slices(box)].astype(np.float64) for box in mine],)

    def lower_part(chunk):
        return (chunk.bounds["m"], (side, 2 * side), (0, side + 1))

    def upper_part(chunk):
        return (chunk.bounds["m"], (0, side), (0, side + 1))

    def gather(chunk, blocks):
        hook("gather", chunk.number)
        return (added([block[0] for block in blocks], side)[None],)

    def mirror(chunk, block):
        hook("mirror", chunk.number)
        return (-block,)

    def save(chunk, folder, block):
        hook("save", chunk.number)
        (folder / f"item-{chunk.number}.raw").write_bytes(block.tobytes())

    upper, lower = (Array(name, "myx", sums.shape, "float64") for name in ("upper", "lower"))

    def stages():
        yield Compute("make", item_grid, writes=(raw,), work=make)
        yield Compute("blur", strip_grid, reads=(Part(raw, {"y": halo}),), writes=(soft,), work=blur)
        yield Compute(
            "subtract", strip_grid, reads=(Part(soft), At(soft, elsewhere)), writes=(level,), work=subtract
        )
        yield Compute("cut", item_grid, reads=(Part(level),), writes=(Pieces(tile_array, of_item),), work=cut)
        yield Compute(
            "gather",
            mosaic_grid,
            reads=(Pieces(tile_array, of_mosaic),),
            writes=(At(upper, upper_part),),
            work=gather,
        )
        yield Compute(
            "mirror",
            mosaic_grid,
            reads=(At(upper, upper_part),),
            writes=(At(lower, lower_part),),
            work=mirror,
        )

        def both(chunk, above, below):
            hook("both", chunk.number)
            return (np.concatenate([above, below], axis=1),)

        reads = (At(upper, upper_part), At(lower, lower_part))
        yield Compute("both", mosaic_grid, reads=reads, writes=(sums,), work=both)
        yield sink(sums, 2, hook)
        names = tuple(f"item-{number}.raw" for number in range(items))
        yield Files("save", item_grid, reads=(Part(level),), work=save, names=names)
        return np.float32(0)

    blurs = [clipped_blur(image, halo) for image in images]
    levels = []
    for number, image in enumerate(blurs):
        before = blurs[number - 1] if number else image[:0]
        levels.append(image - (before[-1].max() if before.size else np.float32(0)))
    cuts = [levels[box[0][0]][box_slices(box[1:])].astype(np.float64) for box in boxes]
    above = np.stack([added(cuts[mosaic::mosaics], side) for mosaic in range(mosaics)])
    result = np.concatenate([above, -above], axis=1)
    flat = [
        np.concatenate([np.empty(0, "f4"), *(image.ravel() for image in kind)]) for kind in (blurs, levels)
    ]
    return Toy(
        recipe("ragged", stages),
        result,
        blocks(mosaics, 2),
        {"soft": flat[0], "level": flat[1], "sums": result},
        {f"item-{number}.raw": image.tobytes() for number, image in enumerate(levels)},
    )


def strip_of(block: np.ndarray, start: int, stop: int, height: int, halo: int) -> np.ndarray:
    """Return rows start to stop of a blurred image, from these rows and those around them that there are."""
    first, last = min(start, height), min(stop, height)
    above = first - max(first - halo, 0)
    return clipped_blur(block, halo)[above : above + last - first]


def clipped_blur(image: np.ndarray, halo: int) -> np.ndarray:
    """Add up the rows around each row, as far as there are any, in a fixed order."""
    out = np.zeros_like(image)
    for y in range(len(image)):
        for other in range(max(y - halo, 0), min(y + halo + 1, len(image))):
            out[y] += image[other] * np.float32(1 + other - y + halo)
    return out


def tiles(number: int, shape: tuple[int, int], side: int) -> list[Box]:
    """Return the boxes of tiles of an item: `side` rows of at most `side` pixels, fewer at its ends."""
    ys, xs = (blocks(length, side) for length in shape)
    return [((number, number + 1), y, x) for y, x in itertools.product(ys, xs)]


def added(tiles: list[np.ndarray], side: int) -> np.ndarray:
    """Add tiles up in a corner, in their order, which the result depends on."""
    out = np.zeros((side, side + 1))
    for tile in tiles:
        part = out[: tile.shape[0], : tile.shape[1]]
        part[...] = part * 0.7 + tile
    return out


from support.toy_records import records  # noqa: E402  it is made of what is here

TOYS = {
    "smooth": smooth,
    "transpose": transpose,
    "regroup": regroup,
    "ragged": ragged,
    "records": records,
}

#: Arguments that make pipelines of some dozens of chunks, to be killed at any of the steps of their way.
LONG = {
    "smooth": {"depth": 15},
    "transpose": {"volumes": 9, "depth": 6},
    "regroup": {"exposures": 12},
    "ragged": {},
    "records": {"exposures": 14},
}
