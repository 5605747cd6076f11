"""The one numba decorator of the house, and the CPU target it compiles for.

Every kernel goes through :func:`kernel`, so that the rules that keep results
the same to the last bit hold everywhere: no SVML (its lanes differ from its
scalar tail), no `afn`, no `reassoc` unless a kernel asks for it and a test
shows that its bits do not move with the tile.
"""

from __future__ import annotations

import numba
import numba.core.config
from numba.core.dispatcher import Dispatcher

from mpiimg.kernels import cache

numba.core.config.USING_SVML = False

#: What LLVM may assume in every kernel. NaN and infinity keep their meaning.
FASTMATH = frozenset({"nsz", "arcp", "contract"})

#: Set by :func:`pin_target`: a target that every x86-64 node since Haswell has.
PORTABLE_CPU = "x86-64-v3"


def kernel(function=None, *, reassoc=False, inline=False):
    """Compile `function` with numba, kept on disk (cache.py), without the GIL.

    Parameters
    ----------
    reassoc : bool
        Let LLVM reorder sums. Only for a kernel whose test shows that its
        result does not depend on where a tile starts.
    inline : bool
        Inline the function into its callers at numba's level.
    """

    flags = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": sorted(FASTMATH | {"reassoc"} if reassoc else FASTMATH),
        "inline": "always" if inline else "never",
    }

    def compile_lazily(function):
        compiled = numba.njit(**{**flags, "fastmath": set(flags["fastmath"])})(function)
        if isinstance(compiled, Dispatcher):  # not so with NUMBA_DISABLE_JIT
            cache.keep(compiled, function, flags)
        return compiled

    return compile_lazily if function is None else compile_lazily(function)


def pin_target(cpu: str = PORTABLE_CPU) -> None:
    """Compile for `cpu` instead of this machine's own; before the first call of a kernel."""
    numba.core.config.CPU_NAME = cpu
    numba.core.config.CPU_FEATURES = ""


def cpu_target() -> str:
    """Return the name of the CPU that kernels are compiled for, as it enters the provenance."""
    import llvmlite.binding as llvm

    return numba.core.config.CPU_NAME or llvm.get_host_cpu_name()


def cpu_features() -> str:
    """Return the instructions that kernels may use, as numba's cache tells one CPU from another."""
    import llvmlite.binding as llvm

    features = numba.core.config.CPU_FEATURES
    return llvm.get_host_cpu_features().flatten() if features is None else features
