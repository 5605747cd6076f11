"""A toy pipeline of records, with its result by a plain loop: a flat map, groups, one of them streamed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from support.toy import Toy, blocks, nothing, recipe, sink

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.codec import decode, encode, parts
from mpiimg.engine.record_index import Index, RecordsOf
from mpiimg.engine.stage import Compute, Files, Records

WIDTH = 6


def pieces_of(exposure: int, strips: int) -> list[tuple[int, dict]]:
    """The pieces of an exposure: none, some of no pixel, several for one strip."""
    rng = np.random.default_rng(exposure)
    return [
        (int(strip), {"at": (exposure, int(start)), "data": rng.normal(size=int(length)).astype("float32")})
        for strip, start, length in zip(
            rng.integers(0, strips, exposure % 4), rng.integers(0, 3, 3), rng.integers(0, 4, 3), strict=False
        )
    ]


def combined(pieces: list[dict]) -> np.ndarray:
    """Bring pieces together; how depends on their order."""
    out = np.zeros(WIDTH, np.float32)
    for piece in pieces:
        start = piece["at"][1]
        part = out[start : start + len(piece["data"])]
        part[...] = part * np.float32(0.7) + piece["data"]
    return out


def grouped(keys) -> dict[int, list[int]]:
    """The numbers of the records of each key, in the order of keys."""
    groups: dict[int, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    return dict(sorted(groups.items()))


def records(hook: Callable = nothing, exposures: int = 7, strips: int = 5, right: bool = True) -> Toy:
    """Cut exposures into pieces by a flat map, combine those of each strip, and sum up a strip one by one.

    `right` lets the plan know how many there will be, and how large; else it is told of one that is small.
    """
    coadd = Array("coadd", "bx", (strips, WIDTH), "float32")
    exposure_grid, strip_grid = (ChunkGrid(axis, (n,), (1,)) for axis, n in (("e", exposures), ("b", strips)))
    made = [(e, key, value) for e in range(exposures) for key, value in pieces_of(e, strips)]
    true_index = Index.of("", [(e, key, len(encode(value)), None) for e, key, value in made], {})
    expected = true_index if right else Index.of("", [(0, 0, 8, None)], {})
    groups = grouped(key for _, key, _ in made)
    size = len(encode(np.float32(0)))
    sums = Index.of("", [(n, "total", size, n) for n in range(len(groups))], {})

    def scatter(chunk):
        hook("scatter", chunk.number)
        for key, value in pieces_of(chunk.number, strips):
            yield key, parts(value)

    def combine(chunk, blocks):
        hook("combine", chunk.number)
        return (combined([decode(block) for block in blocks])[None],)

    def add_up(chunk, blocks):
        hook("add-up", chunk.number)
        total = np.float32(0)
        for block in blocks:
            total += decode(block)["data"].sum()
        yield "total", parts(total), chunk.number

    def save(chunk, folder, blocks):
        hook("save", chunk.number)
        (folder / "totals.raw").write_bytes(b"".join(decode(block).tobytes() for block in blocks))

    def stages():
        index = yield Records("scatter", exposure_grid, work=scatter, expected=expected)
        own = grouped(index.keys)
        of_strip = RecordsOf(index.array, lambda chunk: own.get(chunk.number, []))
        yield Compute("combine", strip_grid, reads=(of_strip,), writes=(coadd,), work=combine)
        grid, lists = ChunkGrid("g", (len(own),), (1,)), list(own.values())
        in_turn = RecordsOf(index.array, lambda chunk: lists[chunk.number], one_by_one=True)
        totals = yield Records(
            "add-up", grid, reads=(in_turn,), work=add_up, expected=sums, weights=tuple(map(len, lists))
        )
        assert set(totals.keys) <= {"total"} and list(totals.facts) == list(range(len(totals)))
        yield sink(coadd, 2, hook)
        every = RecordsOf(totals.array, lambda chunk: range(len(totals)))
        one = ChunkGrid("k", (1,), (1,))
        yield Files("save", one, reads=(every,), work=save, names=("totals.raw",))
        return np.float32(len(index))

    result = np.stack(
        [combined([value for _, key, value in made if key == strip]) for strip in range(strips)]
    )
    totals = []
    for numbers in groups.values():
        total = np.float32(0)
        for number in numbers:
            total += made[number][2]["data"].sum()
        totals.append(total)
    files = {"totals.raw": np.array(totals, "float32").tobytes()}
    return Toy(recipe("records", stages), result, blocks(strips, 2), {"coadd": result}, files)
