"""What runs make of arrays: files of any format, staged files that are kept, and inputs that these are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.arrays.graph import Node
from mpiimg.arrays.lower import Lowering, Reads, plain_cuts
from mpiimg.engine.array import Array as EngineArray
from mpiimg.engine.stage import Stages
from mpiimg.errors import BadInput


@dataclass(frozen=True, eq=False)
class ArrayResult:
    """An array that becomes a file.

    Parameters
    ----------
    node : Node
    file : str
    """

    node: Node
    file: str

    @property
    def targets(self) -> tuple[Node, ...]:
        """The nodes that it is made of."""
        return (self.node,)

    def stages(self, lowering: Lowering) -> Stages[None]:
        """Yield the stage that writes it, once what it is made of is made."""
        from mpiimg.formats import registry

        made = self._writer(lowering)
        reads = Reads(lowering, made.grid)
        reads.add(self.node, plain_cuts(self.node, made.grid))
        needs = reads.needs()

        def work(chunk, *blocks):
            (block,) = reads.values(chunk.number, blocks)
            return np.asarray(block, dtype=self._described(lowering).dtype)

        yield registry.stage_of(self.file, made, self._described(lowering), needs, work)

    def check(self, lowering: Lowering) -> None:
        """Refuse what the format of the file has no place for."""
        self._writer(lowering)

    def _writer(self, lowering: Lowering):
        from mpiimg.formats import registry

        return registry.writer(self.file)(self._described(lowering))

    def _described(self, lowering: Lowering):
        from mpiimg.formats.interface import ResultArray

        node = self.node
        return ResultArray(
            self.file, node.axes, node.shape, np.dtype(lowering.dtype_of(node)).name, node.space, node.attrs,
            node.order,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class KeptResult:
    """A stored array that is kept between runs, as a staged file in the folder of the session."""

    node: Node

    @property
    def targets(self) -> tuple[Node, ...]:
        return (self.node,)

    def stages(self, lowering: Lowering) -> Stages[None]:
        return
        yield

    def check(self, lowering: Lowering) -> None:
        """Do nothing."""


@dataclass(frozen=True, eq=False)
class KeptInput:
    """An array that an earlier run of a session has kept; an :class:`mpiimg.engine.inputs.Input`."""

    path: Path
    array: EngineArray
    key: str
    parallel = True

    @property
    def identity(self) -> dict[str, str]:
        return {"kept": self.key}

    @property
    def sample(self) -> None:
        return None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def open(self):
        """Open it, to read what its checksums verify."""
        from mpiimg.engine.staged_file import open_checked

        return open_checked(self.path, self.array)


def result_of(value: Any, file: str) -> Any:
    """Return the result that a value becomes in a file.

    Raises
    ------
    BadInput
        It is nothing that can be written.
    """
    if hasattr(value, "_node"):
        if file.endswith("/"):
            raise BadInput(
                f"write: {file}: an array becomes a file; name it with its format, e.g. x.nii.gz or x.npy"
            )
        return ArrayResult(value._node, file)
    if hasattr(value, "_as_result"):
        return value._as_result(file)
    what = type(value).__name__
    if isinstance(value, np.ndarray | np.generic | int | float):
        raise BadInput(
            f"write: {file}: takes lazy arrays, and not {what}; wrap it: mi.from_array(x, 'x y z')"
        )
    if isinstance(value, tuple | list):
        raise BadInput(
            f"write: {file}: is a {what} of {len(value)}; write each of them under a name of its own"
        )
    raise BadInput(f"write: {file}: takes an array, items or a table, and not {what}")
