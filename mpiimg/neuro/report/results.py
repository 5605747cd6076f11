"""The results of a scan that a page is made of: figures, slices, maps and tables, as far as there are any."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from mpiimg.neuro.shown_slices import cut, parted, planes_to_show, steps_of
from mpiimg.report.runs import Run, last_output

#: How the names of results end by which a scan is known, with what stands before.
ENDINGS = (
    "_desc-qc_dwimap.json",
    "_desc-brain_mask.nii.gz",
    "_desc-volumes_dwimap.tsv",
    "_desc-noise_dwimap.nii.gz",
    "_model-tensor_param-fa_dwimap.nii.gz",
)


@dataclass(frozen=True)
class Scan:
    """A scan whose results lie in one folder.

    Parameters
    ----------
    stem : str
        That the names of its results begin with.
    runs : sequence of Run
        Those that have written some, the last one at the end.
    """

    stem: str
    runs: Sequence[Run]

    def path(self, ending: str) -> Path | None:
        """Return the result whose name is the stem and this ending; None where there is none."""
        return last_output(self.runs, ending, self.stem)

    def fields(self, ending: str) -> Mapping[str, Any]:
        """Return what a JSON among the results says; nothing where it is not there."""
        path = self.path(ending)
        with contextlib.suppress(OSError, ValueError):
            fields = json.loads(path.read_text()) if path else {}
            return fields if isinstance(fields, dict) else {}
        return {}

    @cached_property
    def figures(self) -> Mapping[str, Any]:
        """The figures of the scan."""
        return self.fields("_desc-qc_dwimap.json")

    @cached_property
    def slices(self) -> Mapping[str, np.ndarray]:
        """What the file of slices holds; nothing where there is none."""
        path = self.path("_desc-qc_dwimap.npz")
        if path is None:
            return {}
        with np.load(path) as held:
            return {name: held[name] for name in held.files}

    @cached_property
    def volumes(self) -> list[dict[str, str]]:
        """The rows of the table of volumes."""
        path = self.path("_desc-volumes_dwimap.tsv")
        lines = path.read_text().splitlines() if path else []
        columns = lines[0].split("\t") if lines else []
        return [dict(zip(columns, line.split("\t"), strict=True)) for line in lines[1:]]

    def image(self, ending: str):
        """Return an image among the results, as nibabel opens it; None where there is none."""
        path = self.path(ending)
        return None if path is None else nibabel.load(path)

    @cached_property
    def space(self):
        """An image whose affine all results share; None where none is there."""
        found = (self.image(one) for one in ENDINGS if one.endswith(".nii.gz"))
        return next((one for one in found if one is not None), None)

    @cached_property
    def affine(self) -> np.ndarray:
        """The affine of the voxels that are shown."""
        return self.space.affine @ np.diag([*steps_of(self.space.shape[:3]), 1])

    @cached_property
    def planes(self) -> list[list[int]]:
        """The indices of the slices that are shown, across z, y and x."""
        if self.slices:
            return [self.slices[f"planes_{axis}"].tolist() for axis in "zyx"]
        mask, shape = self.image("_desc-brain_mask.nii.gz"), self.space.shape[2::-1]
        extent = [(0, n - 1) for n in shape]
        if mask is not None:
            inside = np.nonzero(np.asarray(mask.dataobj).T)
            extent = [(int(one.min()), int(one.max())) for one in inside if one.size] or extent
        return [list(one) for one in planes_to_show(shape, extent)]

    def shown(self, number: int, kind: int) -> list[np.ndarray]:
        """Return the slices of a volume that is shown: (slices, rows, columns) across z, y and x.

        Parameters
        ----------
        number : int
            Of the volume among those that are shown.
        kind : int
            0 as scanned, 1 denoised.
        """
        low, high = (float(self.slices[name][number]) for name in ("low", "high"))
        values = low + self.slices["levels"][number, kind] * (np.float32(high - low) / 65535)
        return parted(values, self.slices["sides"])

    @property
    def is_denoised(self) -> bool:
        """Whether slices are shown as scanned and denoised."""
        return bool(self.slices) and self.slices["levels"].shape[1] > 1

    def cut(self, ending: str) -> list[np.ndarray] | None:
        """Return the same slices of a map: (slices, rows, columns) or (..., 3)."""
        image = self.image(ending)
        if image is None:
            return None
        # (x, y, z, ...) to (z, y, x, ...), without a copy.
        volume = np.asarray(image.dataobj)
        return cut(volume.transpose(2, 1, 0, *range(3, volume.ndim)), self.planes)


def scans_of(runs: Sequence[Run]) -> list[Scan]:
    """Return the scans that runs have results of, in the order in which they were made."""
    stems = dict.fromkeys(
        Path(name).name.removesuffix(ending)
        for run in runs
        for name in run.outputs
        for ending in ENDINGS
        if name.endswith(ending)
    )
    return [Scan(stem, [run for run in runs if _has(run, stem)]) for stem in stems]


def _has(run: Run, stem: str) -> bool:
    return any(Path(name).name.startswith(f"{stem}_") for name in run.outputs)
