"""Compression of images into one gzip member whose parts all ranks make, beside zlib, which writes it alone.

CPU time of one core; ours, zlib's and libdeflate's alternate in one process. The last makes a member for each
chunk, which tells what one member costs. What is made is inflated and compared.
"""

from __future__ import annotations

import statistics
import time
import zlib

import numpy as np
from deflate import gzip_compress

from mpiimg.formats.gz import gzip_head, gzip_part, gzip_tail

#: Extents (x, y, z), and volumes.
SIZES = {"small": (72, 72, 60, 8), "hcp": (145, 174, 145, 8)}

#: Bytes of a chunk, as stages compress them.
CHUNK = 4 << 20


def series(size: str, kind: str) -> bytes:
    """Return the voxels of a noisy ball: counts as a scanner has them, floats, or a map that is 0 outside."""
    *extents, volumes = SIZES[size]
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in extents), indexing="ij", sparse=True)
    inside = x**2 + y**2 + z**2 < 0.6
    rng = np.random.default_rng(1)
    values = np.abs(900.0 * inside[..., None] + rng.normal(0, 40, (*extents, volumes)))
    if kind == "map":
        values *= inside[..., None]
    return values.astype("int16" if kind == "counts" else "float32").tobytes(order="F")


def ours(data: bytes) -> bytes:
    """Return a gzip file as ranks make it."""
    head = gzip_head(b"")
    parts = [gzip_part(data[start : start + CHUNK]) for start in range(0, len(data), CHUNK)]
    tail = gzip_tail([head.digest, *(part.digest for part in parts)])
    return b"".join([head.data, *(part.data for part in parts), tail])


def by_zlib(data: bytes) -> bytes:
    """Return a gzip file as zlib writes it, at its fastest."""
    stream = zlib.compressobj(1, wbits=31)
    return stream.compress(data) + stream.flush()


def in_members(data: bytes) -> bytes:
    """Return a gzip file with a member for each chunk, as libdeflate writes it."""
    return b"".join(gzip_compress(data[start : start + CHUNK], 1) for start in range(0, len(data), CHUNK))


def run(size: str = "small", rounds: int = 3) -> list[dict]:
    """Time all three, `rounds` times in turn; return a row of medians for each kind of image.

    Raises
    ------
    RuntimeError
        What was made does not inflate to what it was made of.
    """
    rows = []
    for kind in ("counts", "floats", "map"):
        data = series(size, kind)
        seconds = {tool: [] for tool in (ours, by_zlib, in_members)}
        made = {}
        for _ in range(rounds):
            for tool, spent in seconds.items():
                start = time.process_time()
                made[tool] = tool(data)
                spent.append(time.process_time() - start)
        if zlib.decompress(made[ours], wbits=31) != data:
            raise RuntimeError("what was compressed inflates to something else")
        our, peer, members = (statistics.median(spent) for spent in seconds.values())
        rows.append(
            {
                "name": f"deflate {kind}",
                "size": f"{len(data) >> 20} MiB",
                "peer": f"zlib {zlib.ZLIB_RUNTIME_VERSION} level 1",
                "peer_cpu_s": peer,
                "our_cpu_s": our,
                "ratio": peer / our,
                "bytes against members": len(made[ours]) / len(made[in_members]),
                "CPU-s against members": our / members,
            }
        )
    return rows
