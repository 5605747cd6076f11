"""What one core of this machine can do at most: arithmetic by kind, and bytes from memory and from cache.

Arithmetic is measured by loops made for it in LLVM IR: vectors in registers, so many independent ones that no
instruction waits for the one before, each operation named, so that nothing is left to the compiler to fuse,
to reorder or to leave out. A loop takes any mixture of operations, with the loads and stores between them:
so the same loop gives the peak of fused multiply-adds and, with the mixture that a kernel needs, the most
that any program of that mixture could reach.
"""

from __future__ import annotations

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


def loop(element: str, names: list[str], width: int):
    """Return a function (steps, numbers, memory) that repeats operations on vectors of `width` bytes.

    Parameters
    ----------
    element : key of :data:`ELEMENTS`; integers know "integer", "load" and "store" only
    names : from :func:`order`
    width : bytes of a vector

    Returns
    -------
    function of the number of steps, three numbers (-1.0, 0.0, 1.7; not constants, so that nothing can be
    left out) and (2 NEAR + 2048,) uint8 zeros
    """
    one, size = ELEMENTS[element]
    vector = ir.VectorType(one, width // size)
    whole = ir.VectorType(ir.IntType(8 * size), width // size)
    is_float = element.startswith("float")
    integer = ir.IntType(32)

    def spread(builder, scalar):
        nothing = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(nothing, scalar, integer(0))
        zeros = ir.Constant(ir.VectorType(integer, vector.count), [0] * vector.count)
        return builder.shuffle_vector(first, nothing, zeros)

    def call(builder, name, *args):
        label = f"llvm.{name}.v{vector.count}f{8 * size}"
        shape = ir.FunctionType(vector, [vector] * len(args))
        return builder.call(cgutils.get_or_insert_function(builder.module, shape, label), args)

    @intrinsic
    def run(typingctx, steps, numbers, memory):
        def codegen(context, builder, sig, args):
            steps, numbers, memory = args
            given = cgutils.create_struct_proxy(sig.args[1])(context, builder, value=numbers)
            numbers = [builder.load(builder.gep(given.data, [ir.IntType(64)(k)]), align=8) for k in range(3)]
            data = context.make_array(sig.args[2])(context, builder, memory).data
            if is_float:
                numbers = [builder.fptrunc(n, one) if size == 4 else n for n in numbers]
                minus, zero, number = (spread(builder, n) for n in numbers)
            else:
                number = spread(builder, builder.fptoui(numbers[2], one))
            apart = is_float and "integer" in names
            count = CHAINS - INTEGER_CHAINS * apart
            chains = [cgutils.alloca_once(builder, vector) for _ in range(count)]
            wholes = [cgutils.alloca_once(builder, whole) for _ in range(INTEGER_CHAINS)]
            for chain in chains:
                builder.store(number, chain)
            for chain in wholes:
                builder.store(builder.bitcast(number, whole), chain)
            with cgutils.for_range(builder, steps) as turn:
                start = builder.and_(
                    builder.mul(turn.index, turn.index.type(192)), turn.index.type(NEAR // 2 - 64)
                )
                here = builder.gep(data, [start])
                waiting, turns = [], dict.fromkeys(("chain", "whole", "load", "store"), 0)

                def chain_after(step=1):
                    turns["chain"] += step
                    return chains[turns["chain"] % count]

                def near(name, base):
                    turns[name] += 1
                    place = builder.gep(here, [ir.IntType(64)(base + width * turns[name])])
                    return builder.bitcast(place, vector.as_pointer())

                for name in names:
                    if name == "load":
                        waiting.append(builder.load(near("load", 0), align=4 if is_float else 1))
                    elif name == "store":
                        builder.store(
                            builder.load(chain_after(0)), near("store", NEAR), align=4 if is_float else 1
                        )
                    elif name == "integer":
                        turns["whole"] += 1
                        pool = wholes if is_float else chains
                        mine, next_one = (pool[(turns["whole"] + k) % len(pool)] for k in (0, 1))
                        other = waiting.pop() if waiting and not is_float else builder.load(next_one)
                        builder.store(builder.add(builder.load(mine), other), mine)
                    elif name == "compare":
                        a, b = chain_after(), chain_after()
                        x, y = builder.load(a), builder.load(b)
                        less = builder.fcmp_ordered("<", x, y, flags=("nsz",))
                        builder.store(builder.select(less, x, y), a)
                        builder.store(builder.select(less, y, x), b)
                    else:
                        chain = chain_after()
                        x = builder.load(chain)
                        other = waiting.pop() if waiting and name in ("fma", "add") else zero
                        value = {
                            "fma": lambda x=x, other=other: call(builder, "fma", x, minus, other),
                            "add": lambda x=x, other=other: builder.fadd(x, other, flags=("nsz",)),
                            "multiply": lambda x=x: builder.fmul(x, minus, flags=("nsz",)),
                            "divide": lambda x=x: builder.fdiv(number, x, flags=("nsz",)),
                            "root": lambda x=x: call(builder, "sqrt", x),
                        }[name]()
                        builder.store(value, chain)
                for k, left in enumerate(waiting):
                    last = wholes[k % INTEGER_CHAINS]
                    builder.store(builder.xor(builder.load(last), builder.bitcast(left, whole)), last)
            everything = builder.load(wholes[0])
            for chain in chains + wholes[1:]:
                everything = builder.xor(everything, builder.bitcast(builder.load(chain), whole))
            total = builder.extract_element(everything, integer(0))
            for k in range(1, vector.count):
                total = builder.xor(total, builder.extract_element(everything, integer(k)))
            return builder.zext(total, ir.IntType(64)) if size < 8 else total

        return types.uint64(steps, numbers, memory), codegen

    def repeat(steps, numbers, memory):
        return run(steps, numbers, memory)

    # Without the cache on disk, which closures cannot have.
    return numba.njit(nogil=True, error_model="numpy")(repeat)


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
