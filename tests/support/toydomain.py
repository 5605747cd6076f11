"""A toy domain: sheets of numbers are scaled, centred and counted, by steps with all that a step can have."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from support.toy import gzip_member

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid, box_slices
from mpiimg.engine.inputs import stream_input
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import POSITIVE, parameter
from mpiimg.engine.stage import Compute, Files, Found, Reduce, Sink
from mpiimg.engine.step import Argument, Domain, Inspection, Output, Pipeline, Source, State, Step
from mpiimg.errors import BadInput

#: Rows of a chunk.
ROWS = 2


# --- State and sources ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """What was found of a sheet: its mean, and its weights with it; an array within a dataclass."""

    mean: float | None
    rows: Array


@dataclass(frozen=True, kw_only=True)
class Sheet(State):
    """What a chain knows of a sheet."""

    rows: Array | None = None
    weights: Array | None = None
    level: Level | None = None
    parts: tuple[Array, ...] = ()


@dataclass(frozen=True)
class Numbers:
    """An array in a file as NumPy saves it."""

    array: Array
    path: Path
    parallel: bool = True

    @property
    def identity(self) -> str:
        return self.path.name

    @property
    def sample(self) -> int:
        return int(np.load(self.path).view("uint8").sum(dtype="int64"))

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def open(self) -> Numbers:
        return self

    def read(self, box) -> np.ndarray:
        return np.ascontiguousarray(np.load(self.path)[box_slices(box)])

    def close(self) -> None:
        """Nothing stays open."""

    def blocks(self, boxes):
        return map(self.read, boxes)


@dataclass(frozen=True)
class SourceParameters:
    """How a sheet is read."""

    offset: float = parameter(0.0, "The first number of every row stands for this one.", unit="units")
    least_weight: float = parameter(0.0, "Weights below this one count as nothing.", of="weights")


def numbers(path: Any, name: str, axes: str, parallel: bool = True) -> Numbers:
    """Describe the numbers in a file.

    Raises
    ------
    BadInput : they are not what they should be
    """
    shape = np.load(path).shape
    if len(shape) != len(axes):
        raise BadInput(f"{path}: {len(shape)} axes; {name} have {len(axes)}")
    return Numbers(Array(name, axes, shape, "float64"), Path(path), parallel)


def _inspect(parallel: bool):
    def inspect(paths: Mapping[str, Any], p: SourceParameters, taken: frozenset[str]) -> Sheet:
        inputs = [numbers(paths["sheet"], "rows", "zx", parallel)]
        weighted = "weights" in taken and paths.get("weights") is not None
        if weighted:
            inputs.append(numbers(paths["weights"], "weights", "z"))
        return Sheet(
            stem="sheet",
            inputs=tuple(inputs),
            rows=inputs[0].array,
            weights=inputs[1].array if weighted else None,
            history=(f"took {' '.join(sorted(taken))}",),
            warnings=("toy: from a file",),
        )

    return inspect


def read_through(sheet: Sheet, p: SourceParameters, taken: frozenset[str]):
    """Yield the reading of a sheet from front to back."""
    yield stream_input(sheet.inputs[0], cut(sheet.rows))
    return sheet


ARGUMENTS = (
    Argument("sheet", "The numbers.", positional=True),
    Argument("weights", "The weight of each row.", of="weights"),
)

PLAIN = Source("plain sheets", ("rows",), ARGUMENTS[:1], _inspect(True), parameters=SourceParameters)
STREAMED = Source(
    "streamed sheets", ("rows", "weights"), ARGUMENTS, _inspect(False), read_through, SourceParameters
)


def cut(array: Array) -> ChunkGrid:
    return ChunkGrid("z", array.shape[:1], (ROWS,))


# --- Steps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleParameters:
    """How a sheet is scaled."""

    factor: float = parameter(2.0, "All numbers are multiplied by this one.", unit="1", limits=POSITIVE)
    power: int | None = parameter(None, "All numbers are raised to this power.", choices=(2, 3))
    keep: bool = parameter(False, "The scaled sheet is written wherever the step stands.")
    internal: int = 3


def scale(sheet: Sheet, p: ScaleParameters, data: Any):
    """Yield the scaling."""
    scaled = Array("scaled", "zx", sheet.rows.shape, "float64")

    def work(chunk, block):
        return (p.factor * (block if p.power is None else block**p.power),)

    yield Compute(
        "scale",
        cut(scaled),
        reads=(Part(sheet.rows),),
        writes=(scaled,),
        work=work,
        parameters={"factor": p.factor, "power": p.power},
    )
    return dataclasses.replace(sheet, rows=scaled)


def write_rows(sheet: Sheet, p: Any, folder: Path) -> Sink:
    return Sink(
        "write-rows",
        cut(sheet.rows),
        reads=(Part(sheet.rows),),
        work=lambda chunk, block: gzip_member(block.tobytes()),
        file=str(folder / "sheet.gz"),
    )


def describe_rows(sheet: Sheet, p: Any) -> dict[str, bytes]:
    return {"sheet.json": json.dumps({"history": sheet.history}).encode()}


SCALE = Step(
    name="scale",
    summary="Scales a sheet.",
    papers=("Anon. 1999",),
    takes=("rows",),
    gives=("rows",),
    parameters=ScaleParameters,
    stages=scale,
    outputs=(Output("rows", write_rows, "end", flag="keep", folder="scaled", documents=describe_rows),),
    history=lambda p: (f"scaled by {p.factor:g}",),
    kernels=("support.toydomain:precompile",),
    rates={"scale": (1e-9, "support.toydomain:sample")},
)


def level(sheet: Sheet, p: Any, data: Any):
    """Yield the mean; then what lies above it or below it, whichever the mean asks for.

    Nobody can say beforehand which.
    """
    rows = sheet.rows
    weights = () if sheet.weights is None else (Part(sheet.weights),)

    def total(chunk, block, weights=None):
        return (block.mean(axis=1) * (1.0 if weights is None else weights)).sum()

    def finish(sums):
        mean = float(sums.sum() / rows.shape[0])
        left_out = {"sheet": "is dark"} if mean < 0 else {}
        return Found(mean, ("toy: a mean",), ("toy: noted",), left_out)

    mean = yield Reduce(
        "mean",
        cut(rows),
        reads=(Part(rows), *weights),
        work=total,
        row=((), "float64"),
        finish=finish,
        finish_bytes=5 << 20,
    )
    centred = Array("centred", "zx", rows.shape, "float64")
    for name, chosen in (("above", mean is None or mean >= 0), ("below", mean is None or mean < 0)):
        if chosen:
            yield Compute(
                name,
                cut(rows),
                reads=(Part(rows),),
                writes=(centred,),
                work=lambda chunk, block: (block - mean,),
                parameters={"mean": mean},
            )
    return dataclasses.replace(sheet, level=Level(mean, centred), parts=(centred, rows))


def write_level(sheet: Sheet, p: Any, folder: Path) -> Files | None:
    if p.write == "nothing":
        return None
    names = tuple(str(folder / f"level-{number}.raw") for number in range(len(cut(sheet.rows))))
    return Files(
        "write-level",
        cut(sheet.rows),
        reads=(Part(sheet.level.rows), Part(sheet.parts[1])),
        work=lambda chunk, where, block, rows: (where / names[chunk.number]).write_bytes(
            block.tobytes() + rows.tobytes()
        ),
        names=names,
    )


@dataclass(frozen=True)
class LevelParameters:
    """How a level is found, and written."""

    write: str = parameter("all", "What is written.", choices=("all", "nothing"))


LEVEL = Step(
    name="level",
    summary="Centres a sheet.",
    takes=("rows",),
    may_take=("weights",),
    gives=("level",),
    parameters=LevelParameters,
    stages=level,
    outputs=(Output("level", write_level, folder="level"),),
    kernels=("support.toydomain:precompile", "support.toydomain:other"),
)


def inspect_count(sheet: Sheet, p: Any) -> Inspection:
    """Look at the level that is expected, and at the shape of what comes."""
    if sheet.rows.shape[1] > 90:
        raise BadInput(f"{sheet.stem}: rows are too long to be counted")
    facts = {"mean": sheet.level.mean, "array": sheet.level.rows.name, "shape": sheet.rows.shape}
    return Inspection(facts, ("toy: to be counted",), 3 << 20)


def count(sheet: Sheet, p: Any, data: Any):
    """Yield how many numbers lie above the level; as many are expected as there are."""
    rows = sheet.level.rows

    def positive(chunk, block):
        return np.count_nonzero(block > 0)

    number = yield Reduce(
        "count",
        cut(rows),
        reads=(Part(rows),),
        work=positive,
        row=((), "int64"),
        finish=lambda sums: Found(int(sums.sum())),
        expected=rows.shape[0] * rows.shape[1],
    )
    picked = Array("picked", "n", (number,), "uint8")
    yield Compute(
        "fill",
        ChunkGrid("n", (number,), (4,)),
        writes=(picked,),
        work=lambda chunk: (np.ones(chunk.box[0][1] - chunk.box[0][0], "uint8"),),
    )
    return dataclasses.replace(sheet, parts=(picked,))


def describe_count(sheet: Sheet, p: Any) -> dict[str, bytes]:
    return {"count.json": json.dumps({"count": sheet.parts[0].shape[0]}).encode()}


COUNT = Step(
    name="count",
    summary="Counts what lies above the level.",
    takes=("level", "rows"),
    gives=("parts",),
    stages=count,
    inspect=inspect_count,
    outputs=(Output("parts", documents=describe_count),),
    history=lambda p: (),
    source={"made": "by hand"},
)


def weigh(sheet: Sheet, p: Any, data: Any):
    """Yield weights."""
    made = Array("made", "z", sheet.rows.shape[:1], "float64")
    yield Compute(
        "weigh", cut(made), reads=(Part(sheet.rows),), writes=(made,), work=lambda chunk, b: (b.sum(axis=1),)
    )
    return dataclasses.replace(sheet, weights=made)


WEIGH = Step(name="weigh", summary="Weighs rows.", takes=("rows",), gives=("weights",), stages=weigh)


def precompile() -> None:
    """Compile nothing."""


other = precompile


def sample():
    return (lambda: None), 1000.0


DOMAIN = Domain(
    name="toys",
    state=Sheet,
    sources=(PLAIN, STREAMED),
    steps={
        "scale": "support.toydomain:SCALE",
        "level": "support.toydomain:LEVEL",
        "count": "support.toydomain:COUNT",
        "weigh": "support.toydomain:WEIGH",
    },
    pipelines={"all": Pipeline("Scales, centres and counts.", ("scale", "level", "count"))},
    baseline=70 << 20,
    rates={"read": (2e-9, "support.toydomain:sample")},
)
