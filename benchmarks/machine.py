"""What one core of this machine can do at most: arithmetic by kind, and bytes from memory and from cache.

Arithmetic is measured by loops made for it in LLVM IR: vectors in registers, so many independent ones that no
instruction waits for the one before, each operation named, so that nothing is left to the compiler to fuse,
to reorder or to leave out. A loop takes any mixture of operations, with the loads and stores between them:
so the same loop gives the peak of fused multiply-adds and, with the mixture that a kernel needs, the most
that any program of that mixture could reach.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import NamedTuple

import llvmlite.ir as ir
import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mpiimg.kernels.jit import kernel


class Work(NamedTuple):
    """Operations of one kind of element; in elements, not in vectors."""

    fma: float = 0.0  # a * b + c, rounded once: counts as two
    add: float = 0.0  # and subtract
    multiply: float = 0.0
    compare: float = 0.0  # minimum, maximum, comparison
    divide: float = 0.0
    root: float = 0.0
    integer: float = 0.0  # integer operations of the element's size
    load: float = 0.0  # from the nearest cache; no operation
    store: float = 0.0

    def operations(self) -> float:
        """Return the number of operations, a fused multiply-add being two."""
        return self.fma + sum(self[:7])

    def flops(self) -> float:
        """Return the number of those that are arithmetic of floats: no comparisons, no integers."""
        return 2 * self.fma + self.add + self.multiply + self.divide + self.root

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(factor * a for a in self))

    __rmul__ = __mul__


#: Elements by name.
ELEMENTS = {
    "float32": (ir.FloatType(), 4),
    "float64": (ir.DoubleType(), 8),
    "uint8": (ir.IntType(8), 1),
    "uint16": (ir.IntType(16), 2),
}

#: Bytes of vectors that are tried: the widest is no gain where the core halves it.
WIDTHS = (32, 64)

#: Vectors that are worked on in turn, and vectors of integers among them: with two constants they fit 16
#: registers.
CHAINS, INTEGER_CHAINS = 13, 3

#: Instructions of a loop body, about; loads beyond what is added go to a sum of their own.
BODY = 96

#: Bytes that loads and stores of a loop go over: half of a first-level cache.
NEAR = 16384

#: CPU-seconds that one measurement takes at least.
LEAST = 0.02


def order(work: Work, body: int = BODY) -> list[str]:
    """Return the operations of a loop body: as mixed as in `work`, and evenly spread.

    Comparisons come in pairs (the minimum and the maximum of two vectors).
    """
    total = sum(work)
    counts = {name: round(body * n / total) for name, n in work._asdict().items()}
    counts = {name: max(1, counts[name]) for name, n in work._asdict().items() if n > 0}
    places = []
    for name, count in counts.items():
        step = 2 if name == "compare" else 1
        places += [((k + 0.5) / count, name) for k in range(0, count, step)]
    return [name for _, name in sorted(places)]


def done(names: list[str]) -> Work:
    """Return the work, in vectors, of a loop body."""
    counts = {name: names.count(name) * (2 if name == "compare" else 1) for name in set(names)}
    return Work(**counts)


class _Body:
    """Writes the operations of a loop in LLVM IR, each on the next of some vectors that live in registers."""

    def __init__(self, builder, element: str, width: int, numbers, apart: bool):
        self.builder, self.width = builder, width
        self.element, size = ELEMENTS[element]
        self.vector = ir.VectorType(self.element, width // size)
        self.whole = ir.VectorType(ir.IntType(8 * size), width // size)
        self.floating = element.startswith("float")
        scalars = numbers if size == 8 else [self._narrow(number) for number in numbers]
        self.minus, self.zero, self.number = (self._spread(scalar) for scalar in scalars)
        self.chains = self._vectors(self.vector, CHAINS - INTEGER_CHAINS * apart)
        self.wholes = self._vectors(self.whole, INTEGER_CHAINS)
        self.turns = dict.fromkeys(("chain", "integer", "load", "store"), 0)
        self.waiting, self.here = [], None

    def _narrow(self, number):
        cast = self.builder.fptrunc if self.floating else self.builder.fptosi
        return cast(number, self.element)

    def _spread(self, scalar):
        nothing, index = ir.Constant(self.vector, ir.Undefined), ir.IntType(32)
        first = self.builder.insert_element(nothing, scalar, index(0))
        zeros = ir.Constant(ir.VectorType(index, self.vector.count), [0] * self.vector.count)
        return self.builder.shuffle_vector(first, nothing, zeros)

    def _vectors(self, kind, count):
        places = [cgutils.alloca_once(self.builder, kind) for _ in range(count)]
        for place in places:
            self.builder.store(self.builder.bitcast(self.number, kind), place)
        return places

    def _next(self):
        self.turns["chain"] += 1
        return self.chains[self.turns["chain"] % len(self.chains)]

    def _address(self, name, base):
        self.turns[name] += 1
        place = self.builder.gep(self.here, [ir.IntType(64)(base + self.width * self.turns[name])])
        return self.builder.bitcast(place, self.vector.as_pointer())

    def _call(self, name, *args):
        label = f"llvm.{name}.v{self.vector.count}f{self.whole.element.width}"
        shape = ir.FunctionType(self.vector, [self.vector] * len(args))
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, shape, label), args)

    def _change(self, operation):
        """Replace the next vector by what `operation` makes of it."""
        place = self._next()
        self.builder.store(operation(self.builder.load(place)), place)

    def _loaded(self):
        """Return what was loaded and not yet used, else zero."""
        return self.waiting.pop() if self.waiting else self.zero

    def write(self, name: str, here) -> None:
        """Write one operation; loads and stores go to places from `here` on."""
        self.here = here
        getattr(self, name)()

    def fma(self):
        self._change(lambda x: self._call("fma", x, self.minus, self._loaded()))

    def add(self):
        self._change(lambda x: self.builder.fadd(x, self._loaded(), flags=("nsz",)))

    def multiply(self):
        self._change(lambda x: self.builder.fmul(x, self.minus, flags=("nsz",)))

    def divide(self):
        self._change(lambda x: self.builder.fdiv(self.number, x, flags=("nsz",)))

    def root(self):
        self._change(lambda x: self._call("sqrt", x))

    def compare(self):
        """Write the minimum and the maximum of two vectors, two operations."""
        first, second = self._next(), self._next()
        x, y = self.builder.load(first), self.builder.load(second)
        less = self.builder.fcmp_ordered("<", x, y, flags=("nsz",))
        self.builder.store(self.builder.select(less, x, y), first)
        self.builder.store(self.builder.select(less, y, x), second)

    def integer(self):
        """Add a vector of integers to the one before, so that no closed form of the loop is found."""
        pool = self.wholes if self.floating else self.chains
        self.turns["integer"] += 1
        mine, other = (pool[(self.turns["integer"] + k) % len(pool)] for k in (0, 1))
        self.builder.store(self.builder.add(self.builder.load(mine), self.builder.load(other)), mine)

    def load(self):
        self.waiting.append(self.builder.load(self._address("load", 0), align=1))

    def store(self):
        place = self.chains[self.turns["chain"] % len(self.chains)]
        self.builder.store(self.builder.load(place), self._address("store", NEAR), align=1)

    def use_rest(self) -> None:
        """Use what was loaded and not added, or LLVM would leave the loads out."""
        for k, value in enumerate(self.waiting):
            place = self.wholes[k % INTEGER_CHAINS]
            self.builder.store(
                self.builder.xor(self.builder.load(place), self.builder.bitcast(value, self.whole)), place
            )
        self.waiting.clear()

    def result(self):
        """Return a number made of all vectors."""
        builder, index = self.builder, ir.IntType(32)
        every = [builder.load(place) for place in self.wholes]
        every += [builder.bitcast(builder.load(place), self.whole) for place in self.chains]
        mixed = functools.reduce(builder.xor, every)
        lanes = [builder.extract_element(mixed, index(k)) for k in range(self.vector.count)]
        total = functools.reduce(builder.xor, lanes)
        return total if total.type.width == 64 else builder.zext(total, ir.IntType(64))


def loop(element: str, names: list[str], width: int):
    """Return a function (steps, numbers, memory) that repeats operations on vectors of `width` bytes.

    Parameters
    ----------
    element : key of :data:`ELEMENTS`; integers know "integer", "load" and "store" only
    names : from :func:`order`
    width : bytes of a vector

    Returns
    -------
    function of the number of steps, :data:`NUMBERS` (no constants, so that nothing can be left out) and
    zeros to load from and store to, as :class:`Loop` makes them
    """

    @intrinsic
    def run(typingctx, steps, numbers, memory):
        def codegen(context, builder, sig, args):
            first, data = (
                context.make_array(kind)(context, builder, array).data
                for kind, array in zip(sig.args[1:], args[1:], strict=True)
            )
            numbers = [builder.load(builder.gep(first, [ir.IntType(64)(k)]), align=8) for k in range(3)]
            apart = element.startswith("float") and "integer" in names
            body = _Body(builder, element, width, numbers, apart)
            with cgutils.for_range(builder, args[0]) as turn:
                kind = turn.index.type
                start = builder.and_(builder.mul(turn.index, kind(192)), kind(NEAR // 2 - 64))
                body.turns |= {"load": 0, "store": 0}
                for name in names:
                    body.write(name, builder.gep(data, [start]))
                body.use_rest()
            return body.result()

        return types.uint64(steps, numbers, memory), codegen

    def repeat(steps, numbers, memory):
        return run(steps, numbers, memory)

    # Without the cache on disk, which closures cannot have.
    return numba.njit(nogil=True, error_model="numpy")(repeat)


#: Minus one, zero, and a number that division and roots leave normal.
NUMBERS = np.array([-1.0, 0.0, 1.7])


class Loop:
    """A loop of one mixture that can be timed again and again."""

    def __init__(self, element: str, work: Work, width: int):
        names = order(work)
        self.element, self.width, self.body = element, width, done(names)
        self.function = loop(element, names, width)
        room = np.zeros(2 * NEAR + 2 * BODY * width + 64, np.uint8)
        self.memory = room[-room.ctypes.data % 64 :]
        self.steps = 1000
        self.seconds()  # compile
        while self.seconds() < LEAST:
            self.steps *= 2

    def seconds(self) -> float:
        """Return the CPU-seconds of all steps."""
        start = time.process_time()
        self.function(self.steps, NUMBERS, self.memory)
        return time.process_time() - start

    def rate(self) -> float:
        """Return operations a second."""
        lanes = self.width // ELEMENTS[self.element][1]
        return self.body.operations() * lanes * self.steps / self.seconds()


# --- Bytes --------------------------------------------------------------------------------------------------


@kernel
def _copy(source, other, out, turns):
    for _ in range(turns):
        for i in range(out.size):
            out[i] = source[i]


@kernel
def _triad(source, other, out, turns):
    for _ in range(turns):
        for i in range(out.size):
            out[i] = source[i] + 3.0 * other[i]


@kernel(reassoc=True)
def _read(source, other, out, turns):
    for turn in range(turns):
        total = 0.0
        for i in range(source.size):
            total += source[i]
        out[turn % out.size] += total


#: By name: the loop, and how many arrays of float64 it reads or writes.
PASSES = {"copy": (_copy, 2), "triad": (_triad, 3), "read": (_read, 1)}


class Stream:
    """A pass over arrays of float64 that take `size` bytes together."""

    def __init__(self, name: str, size: int):
        self.function, self.arrays = PASSES[name]
        self.source, self.other, self.out = (np.ones(size // 8 // self.arrays) for _ in range(3))
        self.turns = 1
        self.seconds()  # compile
        while self.seconds() < LEAST:
            self.turns *= 2

    def seconds(self) -> float:
        start = time.process_time()
        self.function(self.source, self.other, self.out, self.turns)
        return time.process_time() - start

    def rate(self) -> float:
        """Return bytes a second that the loop names; what a store reads first is not counted."""
        return self.arrays * self.source.nbytes * self.turns / self.seconds()


def cache_bytes(level: int) -> int:
    """Return the size of this core's cache of data of a level; a common one where the system does not say."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            words = [(index / name).read_text().strip() for name in ("level", "type", "size")]
        except OSError:
            continue
        if words[0] == str(level) and words[1] != "Instruction":
            return int(words[2].rstrip("KM")) << (20 if words[2].endswith("M") else 10)
    return {1: 32 << 10, 2: 512 << 10, 3: 32 << 20}[level]
