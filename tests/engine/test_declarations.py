"""What follows from a declaration where it says nothing: provenance, sources, grids (see test_compose)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mpiimg.engine import compose, forecast
from mpiimg.engine.array import Array
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.halo import trimmed
from mpiimg.engine.needs import Part
from mpiimg.engine.parameters import parameter
from mpiimg.engine.provenance import Lineage
from mpiimg.engine.stage import Compute, Found, Reduce
from mpiimg.engine.step import Domain, Output, Source, State, declare_step


@dataclass(frozen=True)
class Gain:
    gain: float = parameter(2.0, "Values are multiplied by it.", unit="counts")
    rows: int = parameter(1, "Rows are taken so many at a time.")


@dataclass(frozen=True, kw_only=True)
class Pair(State):
    image: Array
    flat: Array
    scaled: Array | None = None


@declare_step(takes=("image", "flat"), gives=("scaled",), parameters=Gain)
def scale_up(state, p, _):
    """Scale the flat by the mean
    of the image.

    More is not in the summary.
    """
    written = state.flat.like("scaled", dtype="float32")
    mean = yield Reduce(
        "mean",
        state.image.cut(y=2),
        reads=(Part(state.image),),
        work=lambda chunk, block: block.sum(),
        row=((), "float64"),
        finish=lambda rows: Found(rows.mean()),
        expected=1.0,
    )

    def work(chunk, block):
        return (block * mean * p.gain,)

    grid = state.flat.cut(y=2)
    yield Compute("whole", grid, reads=(Part(state.flat),), writes=(written,), work=work)
    own, said = state.flat.like("own"), {"gain": p.gain}
    yield Compute("own", grid, reads=(Part(state.flat),), writes=(own,), work=work, parameters=said)
    each = state.flat.like("each")
    yield Compute(
        "each", grid, reads=(Part(state.flat),), writes=(each,), work=work, depends=lambda number: {}
    )
    return dataclasses.replace(state, scaled=written)


@dataclass(frozen=True)
class Numbers:
    """An input that is never opened."""

    name: str
    sample: int

    parallel = True
    files = (Path("numbers"),)
    identity = "numbers"

    @property
    def array(self):
        return Array(self.name, "yx", (4, 3), "float32")


def recipe(image=1, flat=1, **parameters):
    inputs = (Numbers("image", image), Numbers("flat", flat))
    state = Pair(stem="pair", inputs=inputs, image=inputs[0].array, flat=inputs[1].array)
    source = Source("pair", ("image", "flat"), (), lambda paths, p, taken: state)
    domain = Domain("pairs", Pair, (source,), {})
    link = compose.Link(scale_up, Gain(**parameters), "scale-up")
    chain = compose.make_chain(domain, [link], {})
    return compose.make_recipe(
        chain, compose.inspect_chain(chain, {}), compose.RunName("mpiimg-run", "run.json")
    )


def provenance(**changes) -> dict[str, str]:
    """Return the provenance of each stage."""
    made = recipe(**changes)
    lineage = Lineage(made.inputs, "cpu")
    found = {}
    for stage in made.expected:
        found[stage.name] = lineage.provenance(stage)
        names = [array.name for array in stage.arrays]
        lineage.add(names, found[stage.name], forecast.stage_sizes(stage).tables, {})
    return {name: one.whole for name, one in found.items()}


def changed(**changes) -> set[str]:
    """Return the stages that are made again when something changes."""
    before, after = provenance(), provenance(**changes)
    return {name.removeprefix("scale-up.") for name in before if before[name] != after[name]}


def test_a_stage_depends_on_all_parameters_unless_it_says_itself_on_what():
    assert changed() == set()
    assert changed(gain=3.0) == {"mean", "whole", "own"}
    assert changed(rows=2) == {"mean", "whole"}
    assert changed(flat=2) == {"whole", "own", "each"}


def test_a_stage_depends_on_reductions_of_what_it_does_not_read():
    assert changed(image=2) == {"mean", "whole"}


def test_the_version_of_an_installed_package_is_in_the_provenance():
    made = recipe()
    one, other = (
        Lineage(made.inputs, "cpu", {"package": number}).provenance(made.expected[0])
        for number in ("1.0", "1.1")
    )
    assert one != other


def test_what_a_state_says_nothing_of_follows_from_its_inputs():
    made = recipe()
    assert made.files == (Path("numbers"),)
    assert made.sources["flat"] == {"files": ["numbers"], "shape": (4, 3), "identity": "numbers", "sample": 1}


def test_an_output_may_be_documents_alone():
    assert Output("scaled", documents=lambda state, p: {"a": b""}).stage(None, None, Path()) is None


def test_an_array_is_cut_and_copied_by_the_names_of_its_axes():
    array = Array("frames", "tyx", (5, 6, 7), "uint8")
    assert array.cut(y=4, t=1) == ChunkGrid("ty", (5, 6), (1, 4))
    assert array.like("sum", "yx", "int64") == Array("sum", "yx", (6, 7), "int64")
    assert array.like("same") == Array("same", "tyx", (5, 6, 7), "uint8")
    for wrong in (lambda: array.cut(z=1), lambda: array.like("volume", "zyx")):
        with pytest.raises(ValueError, match=r"frames: has axes 'tyx', and not 'z'"):
            wrong()


@pytest.mark.parametrize("bounds", [(0, 3), (1, 4), (5, 8), (7, 10)])
def test_a_halo_is_cut_off_where_it_was_there(bounds):
    items, halo = np.arange(10), 3
    read = items[max(bounds[0] - halo, 0) : bounds[1] + halo]
    np.testing.assert_array_equal(trimmed(read, bounds, halo), items[slice(*bounds)])
