"""What every system calls to regroup: read a volume, and look at each voxel in all volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def list_volumes(source: Path) -> list[Path]:
    return sorted(source.glob("volume-*.npy"))


def brightest(block: np.ndarray) -> np.ndarray:
    """Return for each voxel which volume is the brightest, (voxels,), of a block, (volumes, voxels)."""
    return block.argmax(axis=0).astype(np.int32)


def write(out: Path, found: np.ndarray) -> None:
    np.save(out / "brightest.npy", found)
