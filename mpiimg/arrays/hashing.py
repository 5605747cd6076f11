"""One hash of several parts, which no other cut into parts gives."""

from __future__ import annotations

import hashlib


def hashed(tag: bytes, *parts: bytes | str | memoryview) -> bytes:
    """Return 16 bytes that tell a kind of value, and its parts in their order, from all others."""
    made = hashlib.blake2b(digest_size=16)
    for part in (tag, *parts):
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        made.update(memoryview(data).nbytes.to_bytes(8, "little"))
        made.update(data)
    return made.digest()
