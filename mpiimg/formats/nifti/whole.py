"""Where the voxels of a NIfTI lie: qform and sform by nibabel's rules, and what stands in for broken ones.

The sform is taken where it has a code, else the qform; where neither has one, nibabel's guess from the sizes
of voxels. A form with a code that makes no sense gives way to the other one, with a word; where there is no
other one either, a header that has lost the place of its voxels is refused. What comes out has no NaN, no
voxel without a size and no form of zeros, so that any result in its space can be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.nifti.header import mended

#: Sizes of voxels that make sense, in whatever unit a header has them.
VOXEL_SIZES = (1e-6, 1e6)

#: Smallest volume that the axes of voxels, each of length 1, may span.
MIN_VOLUME = 1e-6

#: Share of a voxel by which a corner may lie elsewhere by the qform than by the sform: rounding does that.
ROUNDING = 0.05

#: Share by which the sizes of voxels may differ between pixdim and the sform.
SIZE_ROUNDING = 0.01

#: By how much the squares of a quaternion may sum to more than 1: float32 and printed numbers do that.
QUATERNION_ROUNDING = 1e-3

_QUATERNION, _OFFSETS = ("quatern_b", "quatern_c", "quatern_d"), ("qoffset_x", "qoffset_y", "qoffset_z")

#: Numbers that say nothing of space; one that is not finite becomes 0.
_OTHERS = ("cal_max", "cal_min", "slice_duration", "toffset", "intent_p1", "intent_p2", "intent_p3")


@dataclass(frozen=True)
class _Form:
    """One of the two transforms of a header.

    Parameters
    ----------
    name : str
        "qform" or "sform".
    code : int
        0 where it says itself that it is not there.
    matrix : (4, 4) float64 or None
        None where it has no code or makes no sense.
    fault : str
        Why it makes no sense.
    """

    name: str
    code: int
    matrix: np.ndarray | None = None
    fault: str = ""


def made_whole(header, path: Path):
    """Return a header with which any result in the same space can be written, and what was taken for what.

    Parameters
    ----------
    header : nibabel.Nifti1Header or nibabel.Nifti2Header
        As it is in the file.
    path : Path
        Of the file, for messages.

    Returns
    -------
    header : nibabel.Nifti1Header or nibabel.Nifti2Header
    words : tuple of str
        What to warn of, each with the name of the file.

    Raises
    ------
    BadInput
        It has lost the sizes of voxels, or where they lie.
    """
    whole = mended(header, path)
    words = [
        f"{name}_code {header[f'{name}_code']} in the header is none of NIfTI's, and counts as 0"
        for name in ("qform", "sform")
        if int(header[f"{name}_code"]) != int(whole[f"{name}_code"])
    ]
    _unit_quaternion(whole)
    sizes = np.array(header["pixdim"][1:4], float)
    used = min(3, len(header.get_data_shape()))
    has_sizes = _are_sizes(np.abs(sizes[:used]))
    whole["pixdim"][used + 1 : 4] = 1
    sform, qform = _sform(whole), _qform(whole, has_sizes)
    if sform.matrix is None and not has_sizes:
        raise BadInput(
            f"{path}: pixdim in the header is {_times(sizes[:used])}, and no sform says what the sizes of "
            "voxels are: they must be positive; write it again"
        )
    words += _chosen(whole, qform, sform, header, path)
    if sform.matrix is not None:
        words += _sizes_by_sform(whole, qform, sform, sizes[:used], has_sizes)
    elif (sizes[:used] < 0).any():
        words.append(f"pixdim in the header is {_times(sizes[:used])}: taken as positive, as nibabel does")
    words += _other_fields(whole, header)
    return whole, tuple(f"{path}: {text}" for text in words)


def check_result(header, name: str | Path) -> None:
    """Refuse a header of a result that other programs could not read, or would read as something else.

    Raises
    ------
    BadInput
        A number in it is not finite, a size is not positive, or its affine is not one of voxels in space.
    """
    table = header.structarr
    wrong = [
        field
        for field in table.dtype.names
        if table[field].dtype.kind == "f" and not np.isfinite(table[field]).all()
    ]
    if not (np.array(header.get_zooms(), float) > 0).all():
        wrong.append("pixdim")
    if not spans_space(best_affine(header)):
        wrong.append("the affine (qform, sform)")
    if wrong:
        raise BadInput(
            f"{name}: a NIfTI in this space cannot be written: {', '.join(dict.fromkeys(wrong))} would make "
            "no sense in its header; mend the header of the input"
        )


def best_affine(header) -> np.ndarray:
    """Return the affine of a whole header, as nibabel has it."""
    return header.get_best_affine()


def spans_space(affine: np.ndarray) -> bool:
    """Say whether an affine is one of voxels in space: finite, no axis in the plane of the others."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        if not np.isfinite(affine).all() or not _are_sizes(lengths):
            return False
        return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > MIN_VOLUME)


def corner_distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return how far apart two affines put a corner of an image, at most: along x, y or z.

    Parameters
    ----------
    one, other : (4, 4)
    shape : (x, y, z)
    """
    corners = np.array([[i, j, k, 1] for k in (0, 1) for j in (0, 1) for i in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(shape)
    return float(np.abs((corners @ (one - other).T)[:, :3]).max())


# --- Forms ------------------------------------------------------------------------------------------------


def _sform(header) -> _Form:
    code, matrix = int(header["sform_code"]), header.get_sform()
    if code <= 0:
        return _Form("sform", 0)
    if spans_space(matrix):
        return _Form("sform", code, matrix)
    return _Form(
        "sform", code, None, "is empty" if not matrix[:3, :3].any() else "is not one of voxels in space"
    )


def _qform(header, has_sizes: bool) -> _Form:
    code = int(header["qform_code"])
    if code <= 0:
        return _Form("qform", 0)
    if not has_sizes:
        return _Form("qform", code, None, "has no sizes of voxels in pixdim")
    try:
        matrix = header.get_qform()
    except ValueError:
        return _Form("qform", code, None, "has a quaternion that is longer than 1")
    if spans_space(matrix):
        return _Form("qform", code, matrix)
    return _Form("qform", code, None, "is not one of voxels in space")


def _chosen(whole, qform: _Form, sform: _Form, header, path: Path) -> list[str]:
    """Leave in a header the forms that make sense, and say which of them is taken where that is not plain."""
    words = [
        f"the {form.name} in the header (code {form.code}) {form.fault}"
        for form in (sform, qform)
        if form.fault
    ]
    if sform.matrix is not None:
        if qform.fault:
            whole.set_qform(sform.matrix, sform.code)
            return [f"{words[0]}: the sform is taken, and results get a qform that agrees with it"]
        if not all(np.isfinite(whole[field]) for field in (*_QUATERNION, *_OFFSETS)):
            whole.set_qform(sform.matrix, 0)
        return _disagreement(whole, qform, sform)
    if qform.matrix is not None:
        whole.set_sform(qform.matrix, qform.code if sform.fault else 0)
        factor = float(header["pixdim"][0])
        if factor not in (-1, 0, 1):
            words.append(
                f"qfac (pixdim[0]) in the header is {factor:g}, and counts as {whole['pixdim'][0]:g}"
            )
        return [f"{text}: the qform is taken" if sform.fault and text is words[0] else text for text in words]
    if any(form.fault not in ("", "is empty") for form in (qform, sform)):
        raise BadInput(
            f"{path}: qform and sform in the header do not say where the voxels lie: {' and '.join(words)}; "
            "write it again from its source, or set one with nibabel or fslorient"
        )
    whole["qform_code"] = whole["sform_code"] = 0
    base = whole.get_best_affine()
    whole.set_qform(base, 0)
    whole.set_sform(base, 0)
    reason = words[0] if words else "neither qform nor sform in the header has a code"
    return [
        f"{reason}, so the sizes of voxels are all that it says: the place is a guess, nibabel's, in which x "
        "runs from right to left. MRtrix guesses the other way round, so left and right may be swapped; set "
        "an sform where you know it (fslorient -setsform, or nibabel)"
    ]


def _disagreement(whole, qform: _Form, sform: _Form) -> list[str]:
    if qform.matrix is None:
        return []
    shape = (*whole.get_data_shape(), 1, 1, 1)[:3]
    distance = corner_distance(qform.matrix, sform.matrix, shape)
    if distance <= ROUNDING * _lengths(sform.matrix).min():
        return []
    flipped = np.linalg.det(qform.matrix[:3, :3]) * np.linalg.det(sform.matrix[:3, :3]) < 0
    mirrored = ", and one is a mirror image of the other" if flipped else ""
    return [
        f"qform and sform in the header put voxels up to {distance:.3g} mm apart{mirrored}: "
        "the sform is taken"
    ]


def _sizes_by_sform(whole, qform: _Form, sform: _Form, sizes: np.ndarray, has_sizes: bool) -> list[str]:
    """Let pixdim be what the sform says, where it says nothing itself, or no qform needs what it says."""
    lengths = _lengths(sform.matrix)
    agree = np.allclose(np.abs(sizes), lengths[: len(sizes)], rtol=SIZE_ROUNDING, atol=0)
    if has_sizes and (agree or qform.matrix is not None):
        negative = (sizes < 0).any()
        return (
            [f"pixdim in the header is {_times(sizes)}: taken as positive, as nibabel does"]
            if negative
            else []
        )
    whole["pixdim"][1:4] = lengths
    return [
        f"pixdim in the header is {_times(sizes)}, and the sform makes it {_times(lengths[: len(sizes)])}: "
        "the sform is taken"
    ]


def _unit_quaternion(header) -> None:
    """Shorten a quaternion that rounding has made longer than 1, which nibabel would refuse."""
    square = sum(float(header[field]) ** 2 for field in _QUATERNION)
    if 1 < square <= 1 + QUATERNION_ROUNDING:
        for field in _QUATERNION:
            header[field] = float(header[field]) / np.sqrt(square)


def _other_fields(whole, header) -> list[str]:
    """Mend steps along further axes, units, and numbers that have nothing to do with space."""
    words, axes = [], len(header.get_data_shape())
    steps = whole["pixdim"][4:]
    unknown = ~(np.isfinite(steps) & (steps >= 0))
    if axes > 3 and unknown[0]:
        words.append(f"the time step in the header (pixdim[4]) is {steps[0]:g}, and counts as unknown")
    steps[unknown] = 0
    try:
        whole.get_xyzt_units()
    except KeyError:
        words.append(
            f"xyzt_units {header['xyzt_units']} in the header are none of NIfTI's, and count as unknown"
        )
        whole["xyzt_units"] = 0
    for field in _OTHERS:
        if not np.isfinite(whole[field]):
            whole[field] = 0
    if not spans_space(whole.get_sform()):
        whole.set_sform(best_affine(whole), 0)
    return words


def _are_sizes(sizes: np.ndarray) -> bool:
    low, high = VOXEL_SIZES
    return bool(((sizes >= low) & (sizes <= high)).all())


def _lengths(matrix: np.ndarray) -> np.ndarray:
    return np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))


def _times(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
