"""How arrays show themselves."""

from __future__ import annotations

import html as html_text
from typing import Any

import numpy as np

from mpiimg.arrays.types_of import Types


def text(array: Any) -> str:
    """Return an array in one line: its axes with their lengths, type, bytes and chunks."""
    node = array._node
    lengths = ", ".join(f"{axis}: {length}" for axis, length in node.sizes.items())
    dtype = Types().of(node)
    size = f", {human(_nbytes(node, dtype))}" if dtype else ""
    chunks = f", chunks {_chunk(array)}" if node.axes and dtype else ""
    return f"<mpiimg.Array {node.label!r} ({lengths}) {_type_name(dtype)}{size}{chunks}>"


def html(array: Any) -> str:
    """Return an array as a small table, for notebooks."""
    node = array._node
    dtype = Types().of(node)
    rows = [
        ("Axes", " ".join(node.axes) or "none: one value"),
        ("Shape", " × ".join(map(str, node.shape)) or "1"),
        ("Type", _type_name(dtype)),
    ]
    if dtype:
        rows.append(("Bytes", human(_nbytes(node, dtype))))
        if node.axes:
            rows.append(("Chunks", f"{_chunk(array)}; {_count(array)} in all"))
    if node.space is not None:
        rows.append(("Space", type(node.space).__name__))
    body = "".join(
        f"<tr><th style='text-align:left'>{head}</th><td>{html_text.escape(value)}</td></tr>"
        for head, value in rows
    )
    title = html_text.escape(f"mpiimg.Array {node.label}")
    return f"<table><caption>{title}</caption><tbody>{body}</tbody></table>"


def _type_name(dtype: str | None) -> str:
    return np.dtype(dtype).name if dtype else "type to be found out"


def _nbytes(node: Any, dtype: str) -> int:
    return int(np.prod(node.shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _chunks(array: Any) -> tuple[tuple[int, ...], ...]:
    from mpiimg.arrays.lower import chunks_of

    return chunks_of(array._node, Types())


def _chunk(array: Any) -> str:
    return "(" + ", ".join(str(max(of_axis, default=0)) for of_axis in _chunks(array)) + ")"


def _count(array: Any) -> int:
    return int(np.prod([len(of_axis) for of_axis in _chunks(array)], dtype=np.int64))


def human(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    raise AssertionError
