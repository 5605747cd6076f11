"""How the partial results of a user's class lie in rows of bytes, as a reduction takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiimg.functions.results import Refused


@dataclass(frozen=True)
class Fields:
    """How a partial result lies in a row of bytes.

    Parameters
    ----------
    entries : tuple of (str or None, tuple of int, str)
        Key, shape and dtype of each array of a dict; the key is None for an array alone.
    """

    entries: tuple[tuple[str | None, tuple[int, ...], str], ...]

    @classmethod
    def of(cls, value: Any) -> Fields:
        """Return how `value` lies in a row.

        Raises
        ------
        Refused
            It is no array of numbers, nor a dict of them.
        """
        entries = []
        for key, array in _items(value):
            if array.dtype.kind not in "biufc" or not (key is None or isinstance(key, str)):
                raise Refused("partial returns numbers: an array, or a dict of arrays by name")
            entries.append((key, array.shape, array.dtype.str))
        return cls(tuple(entries))

    def pack(self, value: Any) -> np.ndarray:
        """Return `value` as a row of bytes, (nbytes,) uint8.

        Raises
        ------
        Refused
            Its keys, shapes or types are others.
        """
        fields = Fields.of(value)
        if fields != self:
            raise Refused(f"partial returns {fields} for this block, and returned {self} for another")
        return np.frombuffer(b"".join(array.tobytes() for _, array in _items(value)), np.uint8)

    def unpack(self, row: np.ndarray) -> Any:
        """Return the value that lies in a row of bytes."""
        arrays, data, start = {}, row.tobytes(), 0
        for key, shape, dtype in self.entries:
            count = int(np.prod(shape, dtype=np.int64))
            arrays[key] = np.frombuffer(data, dtype, count, start).reshape(shape).copy()
            start += arrays[key].nbytes
        return arrays.get(None, arrays)

    @property
    def nbytes(self) -> int:
        """The length of a row."""
        return sum(
            int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for _, shape, dtype in self.entries
        )

    def __str__(self) -> str:
        texts = [f"{key or ''} {dtype[1:]}{list(shape)}".strip() for key, shape, dtype in self.entries]
        return ", ".join(texts)


def _items(value: Any) -> list[tuple[str | None, np.ndarray]]:
    pairs = value.items() if isinstance(value, dict) else [(None, value)]
    return [(key, np.ascontiguousarray(array).reshape(np.shape(array))) for key, array in pairs]
