"""What a rank really takes: the anonymous memory of its process, which no other rank shares with it.

Resident size counts the pages of shared libraries as well, once in every rank; these are the node's.
The kernel keeps the highest resident size; taken anew at each stage, less the pages of files and of memory
shared with other ranks, it is the most anonymous memory of that stage, whatever its work does in between,
without a thread that looks.
"""

from __future__ import annotations

import ctypes

from mpiimg.engine.mpi.processes import forget_peak_memory, memory_status


def anonymous_peak() -> int:
    """Return the most bytes of anonymous memory since :func:`restart_peak`, or since the process began."""
    sizes = memory_status()
    return sizes["VmHWM"] - sizes["RssFile"] - sizes["RssShmem"]


def anonymous_now() -> int:
    """Return the bytes of anonymous memory that this process has."""
    return memory_status()["RssAnon"]


def resident_peak() -> int:
    """Return the most bytes of resident memory since :func:`restart_peak`, or since the process began."""
    return memory_status()["VmHWM"]


def give_back() -> None:
    """Give free memory back to the system: the heap keeps what was let go between blocks that are in use."""
    # Only glibc has it, and only its heap needs it.
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


def restart_peak() -> None:
    """Give free memory back to the system and forget what was the most so far."""
    give_back()
    # Not every container allows it: then the most since the beginning is told, which is never too little.
    forget_peak_memory()
