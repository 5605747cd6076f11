"""The rehearsal: users' functions are called once each on a little of the data, before a run.

From it the types of results are known, what a call costs, and whether it works at all. It runs in a fresh
interpreter, so that nothing that a function does there stays in this one, with a limit of time.
"""

from __future__ import annotations

import inspect
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mpiimg.arrays import call_stages
from mpiimg.arrays.graph import FromInput, Node, digest, walk
from mpiimg.arrays.lower import ONE, Costs, needed, stored_input
from mpiimg.arrays.program import Program
from mpiimg.arrays.stored import Call, Output, Reduced, StoredParent, output_key
from mpiimg.arrays.types_of import Types
from mpiimg.engine.boxes import ChunkGrid
from mpiimg.engine.inputs import Input
from mpiimg.engine.mpi.memory import anonymous_now
from mpiimg.engine.view import Cut

#: Items along an axis that a function is tried on, beside its depths; axes that are whole are shrunk if they
#: are of space, since what is given for the others, such as gradients, has as many items as they.
SIDE, OF_SPACE = 12, ("x", "y", "z")

#: A call that takes less than so many seconds is timed a second time, when all is imported and compiled.
QUICK = 0.5


@dataclass(frozen=True)
class Facts:
    """What a rehearsal found out.

    Parameters
    ----------
    types : mapping of str to str
        Of stored nodes, by key.
    costs : mapping of str to Costs
        Of calls, by key.
    seconds, cpu_seconds : float
        That it took, with the start of the interpreter for the latter.
    libraries : int
        Bytes that a rank takes when it calls the functions first, and keeps.
    unsteady : tuple of str
        The names of calls whose functions gave something else when they were called again.
    """

    types: Mapping[str, str]
    costs: Mapping[str, Costs]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    libraries: int = 0
    unsteady: tuple[str, ...] = ()


def calls_to_rehearse(
    targets: Sequence[Node], there: Mapping[str, Any], types: Types, costs: dict[str, Costs]
) -> list[Node]:
    """Return the nodes whose functions have not been rehearsed, nor others like them."""
    found = []
    for node in needed(list(targets), there):
        own = isinstance(node, Reduced) and node.functions is not None
        further = not isinstance(node, FromInput | Output | Reduced | StoredParent) and getattr(
            node, "is_tried", True
        )
        if isinstance(node, Output) and types.known(_fact_key(node)) is None:
            _take_alike(node.call, types, costs)
        if own and types.known(_fact_key(node)) is None:
            _take_alike_reduction(node, types, costs)
        if (isinstance(node, Output) or own or further) and types.known(_fact_key(node)) is None:
            found.append(node)
    return found


def _alike(call: Call, types: Types) -> str | None:
    """Return what calls have in common that are alike, as those of the passes of a loop are."""
    inputs = [(types.of(node), node.axes, node.shape, node.order) for node in call.parents]
    if any(dtype is None for dtype, *_ in inputs):
        return None
    return f"alike-{digest(call.content, inputs)}"


def _take_alike(call: Call, types: Types, costs: dict[str, Costs]) -> None:
    """Take for a call what the rehearsal of another one told that is alike."""
    alike = _alike(call, types)
    if alike is None or types.known(f"{alike}-0") is None:
        return
    for number in range(len(call.outputs)):
        key = output_key(call, number)
        types.learn(key, types.known(f"{alike}-{number}"))
        types.learn(f"rehearsed-{key}", "|b1")
    if alike in costs:
        costs[call.key] = costs[alike]


def _alike_reduction(node: Reduced, types: Types) -> str | None:
    """Return what reductions by functions of the user have in common that are alike."""
    calls = _alike(node.functions.call, types)
    if calls is None:
        return None
    return (
        f"alike-{digest(calls, node.functions.identity.digest, node.over, node.axes, node.shape, node.dtype)}"
    )


def _take_alike_reduction(node: Reduced, types: Types, costs: dict[str, Costs]) -> None:
    """Take for a reduction what the rehearsal of another one told that is alike."""
    alike = _alike_reduction(node, types)
    if alike is None or types.known(alike) is None:
        return
    types.learn(node.key, types.known(alike))
    types.learn(_fact_key(node), "|b1")
    for own, theirs in ((node.key, alike), (node.functions.call.key, f"{alike}-call")):
        if theirs in costs:
            costs[own] = costs[theirs]


def _fact_key(node: Node) -> str:
    return f"rehearsed-{node.key}"


def rehearse(targets: Sequence[Node], there: Mapping[str, Input] = MappingProxyType({})) -> Facts:
    """Call the functions of a graph on a little of the data, in this process.

    Parameters
    ----------
    targets : sequence of Node
    there : mapping of str to Input
        Nodes that are made already, by key.

    Raises
    ------
    Exception
        What a function raises, with an attribute `rehearsed`: the name of the call, and what it was tried on.
    """
    started, before = time.perf_counter(), anonymous_now()
    rehearsal = Rehearsal({})
    for node in walk(list(targets)):
        if node.key in there:
            rehearsal.take(node, sample_of(node, there[node.key]))
    for node in needed(list(targets), there):
        rehearsal.node(node)
    samples = sum(sample.nbytes for sample in rehearsal.samples.values() if isinstance(sample, np.ndarray))
    libraries = max(0, anonymous_now() - before - samples)
    seconds = time.perf_counter() - started, time.process_time()
    return Facts(rehearsal.types.as_json(), rehearsal.costs, *seconds, libraries, tuple(rehearsal.unsteady))


class Rehearsal:
    """Samples of the stored nodes of a graph: little arrays whose values are like those of the whole."""

    def __init__(self, samples: dict[str, np.ndarray]):
        self.samples, self.types, self.costs, self.unsteady = samples, Types(), {}, {}

    def node(self, node: Node) -> None:
        """Make the sample of a node whose parents have theirs."""
        if node.key in self.samples:
            self.types.learn(node.key, self.samples[node.key].dtype.str)
        elif isinstance(node, FromInput):
            self.samples[node.key] = sample_of(node, stored_input(node))
        elif isinstance(node, Output):
            self._call(node.call)
        elif isinstance(node, Reduced):
            self._reduce(node)
        elif isinstance(node, StoredParent):
            lengths = {axis: min(length, SIDE) for axis, length in node.sizes.items()}
            self.samples[node.key] = self.values([(node.parent, spans(node.parent, lengths))])[0]
        else:
            node.rehearse(self)
        if node.key in self.samples:
            self.types.learn(node.key, self.samples[node.key].dtype.str)
        self.types.learn(_fact_key(node), "|b1")

    def take(self, node: Node, sample: np.ndarray) -> None:
        """Take the sample of a node that is made already."""
        self.samples[node.key] = sample
        self.types.learn(node.key, sample.dtype.str)

    def values(self, asked: Sequence[tuple[Node, Mapping[str, Cut]]]) -> list[np.ndarray]:
        """Return parts of expressions, made of samples in place of the stored arrays."""
        program = Program(ChunkGrid((ONE,), (1,), (1,)), lambda node: self.types.of(node))
        places = [program.add(node, cuts) for node, cuts in asked]
        program.keep(places)
        leaves = [_wrapped(self.samples[leaf.node.key], leaf.node, leaf.cuts) for leaf in program.leaves]
        values = program.run(0, leaves)
        return [values[place] for place in places]

    def _call(self, call: Call) -> None:
        """Take what a function returns for a small block as the samples of its outputs."""
        if output_key(call, 0) in self.samples:
            return
        blocks = self.tried(call, _checked_blocks)
        for number, (block, of) in enumerate(zip(blocks, call.outputs, strict=True)):
            self.samples[output_key(call, number)] = np.asarray(block, of.dtype or block.dtype)
            self.types.learn(output_key(call, number), (of.dtype or block.dtype.str))
        if alike := _alike(call, self.types):
            self.costs[alike] = self.costs[call.key]
            for number in range(len(call.outputs)):
                self.types.learn(f"{alike}-{number}", self.types.known(output_key(call, number)))

    @staticmethod
    def _stand_in_for_main(function: Any) -> None:
        """Let what a function of the script looks up by name, as pickle does, be found here."""
        plain = inspect.unwrap(getattr(function, "func", function))
        if getattr(plain, "__module__", "") != "__main__" or not hasattr(plain, "__globals__"):
            return
        main = sys.modules["__main__"]
        for name, value in {plain.__name__: plain, **plain.__globals__}.items():
            if not hasattr(main, name):
                setattr(main, name, value)

    def tried(self, call: Call, check: Callable[[Call, Any, Mapping[str, int]], Any]) -> Any:
        """Call a function on a small block, and if it fails there on one of its own; return what `check`
        returns.

        Parameters
        ----------
        call : Call
        check : callable
            Called as check(call, result, lengths) with what the function returns for a block of these
            lengths.
        """
        for node in (*call.inputs, *call.given.values()):
            self.types.of(node)
        self._stand_in_for_main(call.function)
        small = small_block(call)
        try:
            return self._try(call, small, check)
        except Exception as error:
            # On a small block a function may fail that does well on its own: then it is called on such a one.
            grid = call_stages.call_grid(call, self.types)
            block = dict(zip(grid.axes, grid.block, strict=True))
            lengths = {axis: min(block.get(axis, length), length) for axis, length in call.sizes.items()}
            if lengths == small:
                raise _about(error, call, small) from None
            try:
                return self._try(call, lengths, check)
            except Exception as again:
                raise _about(again, call, lengths) from None

    def _try(self, call: Call, lengths: Mapping[str, int], check: Callable) -> Any:
        """Call a function on blocks of so many items along each axis, and note what it takes."""
        bounds = _midst(call, lengths)
        asked = [(node, _input_spans(call, node, bounds)) for node in call.inputs]
        asked += [(node, spans(node, node.sizes)) for node in call.given.values()]
        values = self.values(asked)
        count = len(call.inputs)
        calls = call_stages.Calls(call)
        given = dict(zip(call.given, values[count:], strict=True))
        tracemalloc.start()
        try:
            started = time.process_time()
            result = calls(bounds, values[:count], given)
            seconds = time.process_time() - started
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        checked = check(call, result, lengths)
        if seconds < QUICK:
            started = time.process_time()
            again = calls(bounds, self.values(asked)[:count], given)
            seconds = time.process_time() - started
            if not same_result(result, again):
                self.unsteady[call.name] = True
        items = sum(value.size for value in values[:count])
        moved = 2 * sum(value.nbytes for value in values[:count])
        self.costs[call.key] = Costs(seconds / max(items, 1), peak / max(moved, 1))
        return checked

    def _reduce(self, node: Reduced) -> None:
        if node.functions is not None:
            from mpiimg.arrays import own_reductions

            def check(call: Call, partial: Any, lengths: Mapping[str, int]) -> tuple[np.ndarray, int]:
                return own_reductions.rehearsed(node, partial, lengths)

            self.samples[node.key], returned = self.tried(node.functions.call, check)
            self.costs[node.key] = Costs(returned=returned)
            if alike := _alike_reduction(node, self.types):
                self.types.learn(alike, self.samples[node.key].dtype.str)
                self.costs[alike] = self.costs[node.key]
                self.costs[f"{alike}-call"] = self.costs[node.functions.call.key]
            return
        parent = node.parent
        lengths = {axis: min(length, SIDE) for axis, length in parent.sizes.items()}
        self.types.of(parent)
        (values,) = self.values([(parent, spans(parent, lengths))])
        from mpiimg.arrays import reductions

        axes = tuple(parent.axes.index(axis) for axis in node.over)
        if node.operation in ("argmax", "argmin"):
            positions = np.arange(int(np.prod([values.shape[a] for a in axes]))).reshape(
                [values.shape[a] for a in axes]
            )
            parts = reductions.partial_position(values, axes, node.operation, node.options, positions)
        else:
            parts = reductions.partial(values, axes, node.operation, node.options)
        dtype = node.dtype or self.types.of(node)
        self.samples[node.key] = reductions.finished(parts, node.operation, node.options, dtype)


def same_result(first: Any, second: Any) -> bool:
    """Return whether two results of a function are the same, but for what threads round otherwise."""
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(same_result, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_result(first[name], second[name]) for name in first)
    try:
        one, other = np.asarray(first), np.asarray(second)
    except ValueError:
        return True
    if one.dtype.kind not in "biufc" or one.dtype != other.dtype:
        return True
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "biu":
        return np.array_equal(one, other)
    with np.errstate(all="ignore"):
        largest = np.nanmax(np.abs(one), initial=0, where=np.isfinite(one))
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-3 * float(largest), equal_nan=True))


def _checked_blocks(call: Call, result: Any, lengths: Mapping[str, int]) -> list[np.ndarray]:
    """Return the blocks that a function returned for a small one, once they are what they must be."""
    own = {
        axis: n for of in call.outputs for axis, n in zip(of.axes, of.shape, strict=True)
        if axis not in lengths or n != call.sizes[axis]
    }  # fmt: skip
    bounds = {**_midst(call, lengths), **{axis: (0, n) for axis, n in own.items()}}
    return call_stages.checked_results(call, result, bounds, own)


def _about(error: Exception, call: Call, lengths: Mapping[str, int]) -> Exception:
    """Return an error that says which call it is of, and what that was tried on."""
    block = " x ".join(f"{axis} {length}" for axis, length in lengths.items() if axis not in call.each)
    place = _place(call.function) if isinstance(error, call_stages.WrongResult) else ""
    error.rehearsed = (f"{place}{call.name}", f"tried on a block of {block or 'one value'}")
    return error


def _place(function: Any) -> str:
    """Return where a function is written, as FILE:LINE; nothing where that is not known."""
    code = getattr(inspect.unwrap(getattr(function, "func", function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}: " if code is not None else ""


def _midst(call: Call, lengths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return a chunk of so many items along each axis, in the midst; of whole axes it has the first ones."""
    bounds = {}
    for axis, length in call.sizes.items():
        first = 0 if axis in call.whole else (length - lengths[axis]) // 2
        bounds[axis] = first, first + lengths[axis]
    return bounds


def _input_spans(call: Call, node: Node, bounds: Mapping[str, tuple[int, int]]) -> dict[str, Cut]:
    """Return what a chunk reads of an input; what lies beyond its ends stands for what a boundary makes."""
    cuts = {}
    for axis, length in node.sizes.items():
        if length == 1 and call.sizes[axis] != 1:
            cuts[axis] = Cut.whole(1)
            continue
        before, after = call_stages.margins(call, axis, *bounds[axis])
        cuts[axis] = span(range(bounds[axis][0] - before, bounds[axis][1] + after), length)
    return cuts


def span(items: range, length: int) -> Cut:
    """Return items of an axis; what lies beyond its ends goes on at the other one."""
    inside = items.start >= 0 and items.stop <= length
    return Cut(None, (items if inside else tuple(item % length for item in items),))


def small_block(call: Call) -> dict[str, int]:
    """Return the length of the block along each axis that a function is tried on."""
    lengths = {}
    for axis, length in call.sizes.items():
        if axis in call.each:
            lengths[axis] = min(1, length)
        elif axis in call.whole and axis not in OF_SPACE:
            lengths[axis] = length
        else:
            lengths[axis] = min(length, call.chunks.get(axis, SIDE))
    return lengths


def spans(node: Node, lengths: Mapping[str, int]) -> dict[str, Cut]:
    """Return a part in the midst of a node, of so many items along each axis."""
    cuts = {}
    for axis, length in node.sizes.items():
        count = min(lengths.get(axis, length), length)
        first = (length - count) // 2
        cuts[axis] = Cut(None, (range(first, first + count),))
    return cuts


def _wrapped(sample: np.ndarray, node: Node, cuts: Mapping[str, Cut]) -> np.ndarray:
    """Return a block as large as `cuts` ask for, of the values of a sample."""
    block = sample
    for place, axis in enumerate(node.axes):
        (pick,) = cuts[axis].picks
        if not len(pick) or not block.shape[place]:
            shape = (*block.shape[:place], len(pick), *block.shape[place + 1 :])
            block = np.zeros(shape, block.dtype)
            continue
        items = np.asarray(pick, dtype=np.int64)
        offset = (node.shape[place] - block.shape[place]) // 2
        block = np.take(block, (items - offset) % block.shape[place], axis=place)
    return block


def sample_of(node: Node, source: Input) -> np.ndarray:
    """Return a little of what holds a node: of its midst, or of its front where it is a stream."""
    array = source.array
    sizes = dict(zip(array.axes, array.shape, strict=True))
    spans = {axis: min(length, 2 * SIDE) if axis != "t" else length for axis, length in sizes.items()}
    if source.parallel:
        box = tuple(((n - spans[a]) // 2, (n - spans[a]) // 2 + spans[a]) for a, n in sizes.items())
        reader = source.open()
        try:
            block = np.array(reader.read(box))
        finally:
            reader.close()
    else:
        # A stream is read from its front: some volumes, whose midst stands for all.
        few = (min(array.shape[0], 3), *array.shape[1:])
        boxes = [tuple((0, n) for n in few)]
        if few != array.shape:
            # Readers of streams hold a block back, to verify the end with the last one.
            boxes.append(tuple((n, n + 1) if place == 0 else (0, 1) for place, n in enumerate(few)))
        front = np.asarray(next(iter(source.blocks(iter(boxes)))))
        for place, axis in enumerate(array.axes):
            count, first = spans[axis], (few[place] - min(spans[axis], few[place])) // 2
            front = np.take(
                front, first + np.arange(count) % few[place] % max(1, few[place] - first), axis=place
            )
        block = front
    if not node.axes:
        return block.reshape(())
    return block.transpose([array.axes.index(axis) for axis in node.axes])
