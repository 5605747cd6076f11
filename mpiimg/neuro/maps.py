"""The maps of a fitted tensor: how they are drawn, written and described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.stage import Sink
from mpiimg.neuro.images import sidecar, sidecar_name, write_packed
from mpiimg.neuro.subject import Subject, gradients_of, mask_source

#: Of the tensor, and of the methods of the fit.
PAPERS = {
    "tensor": "Basser et al. 1994, doi:10.1006/jmrb.1994.1037",
    "iwls": "IWLS: Veraart et al. 2013, doi:10.1016/j.neuroimage.2013.05.028",
    "wls": "WLS: Chung et al. 2006, doi:10.1016/j.neuroimage.2006.07.001",
    "restore": "RESTORE: Chang et al. 2005, doi:10.1002/mrm.20426",
}

#: Maps that every fit writes; "residual" only on request.
MAPS = ("fa", "md", "ad", "rd", "rgb", "v1", "s0", "tensor")

#: Unit and description of each map.
MAP_TEXTS = {
    "fa": ("1", "Fractional anisotropy"),
    "md": ("mm^2/s", "Mean diffusivity"),
    "ad": ("mm^2/s", "Axial diffusivity: the largest eigenvalue"),
    "rd": ("mm^2/s", "Radial diffusivity: the mean of the two smaller eigenvalues"),
    "rgb": ("1", "FA times the absolute principal direction in scanner axes: red x, green y, blue z"),
    "v1": ("1", "Principal direction, a unit vector; its sign has no meaning"),
    "s0": ("arbitrary", "Signal without diffusion weighting, as fitted"),
    "tensor": ("mm^2/s", "Diffusion tensor"),
    "residual": ("arbitrary", "Root mean square of signal minus fitted signal over the volumes"),
}

#: What sidecars say of the axes that directions are given in.
FRAMES = {
    "bvec": "bvecs: voxel axes, x negated where det(affine) > 0",
    "scanner": "scanner axes, RAS+ mm",
}

#: Rows of the array of maps.
ROWS = {
    "fa": (0,),
    "md": (1,),
    "ad": (2,),
    "rd": (3,),
    "s0": (4,),
    "rgb": (5, 6, 7),
    "v1": (8, 9, 10),
    "tensor": (11, 12, 13, 14, 15, 16),
    "residual": (17,),
    "floored": (18,),
}
COUNT = 19

#: Where each order finds its elements in dipy's: xx, xy, yy, xz, yz, zz.
ORDERS = {"dipy": (0, 1, 2, 3, 4, 5), "fsl": (0, 1, 3, 2, 4, 5), "mrtrix": (0, 2, 5, 1, 3, 4)}
ELEMENTS = ("Dxx", "Dxy", "Dyy", "Dxz", "Dyz", "Dzz")


def draw(
    signal: np.ndarray, design: np.ndarray, tensors: np.ndarray, rotation: np.ndarray, frame: str, order: str
) -> np.ndarray:
    """Draw all maps.

    Parameters
    ----------
    signal : (V, n) array
        As it was measured.
    design : (V, 7) float64 array
    tensors : (7, n) float64 array
        As a fit gives them.
    rotation : (3, 3) array
        From :func:`mpiimg.neuro.gradients.bvec_to_scanner`.
    frame, order : str
        Of the tensor and v1; one of `FRAMES`, and of `ORDERS`.

    Returns
    -------
    (c, n) float32 array
        Rows as in `ROWS`; that of "floored" is left to the caller.
    """
    from mpiimg.neuro.kernels.tensor import fit_residual
    from mpiimg.neuro.kernels.tensor_maps import min_diffusivity, tensor_maps

    maps = tensor_maps(tensors, min_diffusivity(design))
    scanner_v1 = _rotate(rotation, maps.v1)
    tensor = tensors[:6] if frame == "bvec" else _rotate_tensor(rotation, tensors[:6])
    out = np.zeros((COUNT, signal.shape[1]), np.float32)
    rows = {
        "fa": maps.fa,
        "md": maps.md,
        "ad": maps.ad,
        "rd": maps.rd,
        "s0": maps.s0,
        "rgb": maps.fa * np.abs(scanner_v1),
        "v1": maps.v1 if frame == "bvec" else scanner_v1,
        "tensor": tensor[list(ORDERS[order])],
        "residual": fit_residual(signal, design, tensors),
    }
    # Where hardly any signal is left, a fitted S0 can be beyond what float32 holds.
    largest = np.finfo(np.float32).max
    for name, values in rows.items():
        out[list(ROWS[name])] = np.clip(values, -largest, largest)
    return out


def _rotate(rotation, vectors):
    """Rotate (3, n) vectors; explicit sums, since a matrix product's bits depend on n."""
    return np.stack([sum(rotation[i, j] * vectors[j] for j in range(3)) for i in range(3)])


def _rotate_tensor(rotation, tensor):
    """Rotate (6, n) tensors in dipy's order."""
    place = ((0, 1, 3), (1, 2, 4), (3, 4, 5))
    full = [[tensor[place[i][j]] for j in range(3)] for i in range(3)]
    half = [[sum(rotation[i, k] * full[k][j] for k in range(3)) for j in range(3)] for i in range(3)]
    turned = [[sum(half[i][k] * rotation[j, k] for k in range(3)) for j in range(3)] for i in range(3)]
    return np.stack([turned[0][0], turned[0][1], turned[1][1], turned[0][2], turned[1][2], turned[2][2]])


# --- Results ----------------------------------------------------------------------------------------------


def write_map(key: str, subject: Subject, p: Any, folder: Path) -> Sink | None:
    """Declare the file of a map, if it is written."""
    if key == "residual" and not p.fit_residual:
        return None
    file = str(folder / _file(key, subject))
    return write_packed(file, subject.image, subject.mask.array, subject.maps.voxels, ROWS[key])


def describe_map(key: str, subject: Subject, p: Any) -> Mapping[str, bytes]:
    """Return the sidecar of a map, if it is written."""
    if key == "residual" and not p.fit_residual:
        return {}
    maps, (unit, text) = subject.maps, MAP_TEXTS[key]
    fields = {
        "Units": unit,
        "Description": text,
        "SkullStripped": True,
        "Model": "tensor",
        "Method": p.method,
        "Reference": "; ".join(PAPERS[one] for one in ("tensor", p.method) if one in PAPERS),
        "Shells": sorted({round(gradients_of(subject).bvals[v], -2) for v in maps.volumes}),
        "Volumes": len(maps.volumes),
        **maps.floor.said,
        "MinSignalShare": maps.figures.floored / (maps.figures.voxels * len(maps.volumes)),
        "Mask": mask_source(subject),
    }
    if key in ("fa", "md"):
        fields["MeanInMask"] = getattr(maps.figures, key)
    if key in ("v1", "tensor"):
        fields["Frame"] = FRAMES[p.frame]
    if key == "tensor":
        fields["Elements"] = [ELEMENTS[i] for i in ORDERS[p.tensor_order]]
    if key == "rgb":
        fields["Frame"] = FRAMES["scanner"]
    return {sidecar_name(_file(key, subject)): sidecar(**fields)}


def _file(key: str, subject: Subject) -> str:
    return f"{subject.stem}_model-tensor_param-{key}_dwimap.nii.gz"
