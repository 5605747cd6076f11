"""The rehearsal in a fresh interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpiimg.arrays import rehearsal
from mpiimg.arrays.graph import Node
from mpiimg.errors import BadInput


def rehearse_apart(session: Any, targets: Sequence[Node]) -> rehearsal.Facts:
    """Rehearse a graph; return what was found out."""
    try:
        return rehearsal.rehearse(targets)
    except rehearsal.Failed as failed:
        error = failed.__cause__
        raise BadInput(
            f"{failed.name}: {type(error).__name__}: {error} (tried on {failed.shapes})"
        ) from error
