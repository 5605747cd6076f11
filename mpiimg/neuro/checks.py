"""What the header of an image must say, and what it takes for another to be in its space."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.formats.nifti.whole import corner_distance


def odd_units(header, path: Path) -> tuple[str, ...]:
    """Say so where a header gives lengths in another unit than all programs take them in."""
    unit = header.get_xyzt_units()[0]
    if unit in ("mm", "unknown"):
        return ()
    return (
        f"{path}: lengths are in {unit} by its header (xyzt_units), and are taken in mm, as MRtrix and FSL "
        "do; where they are not, write it again with sizes in mm",
    )


def checked_shape(header, path: Path, dimensions: int | tuple[int, ...], what: str) -> tuple[int, ...]:
    """Return the shape of an image as arrays have it, the slowest axis first; axes of length 1 may go."""
    allowed = (dimensions,) if isinstance(dimensions, int) else dimensions
    shape = header.get_data_shape()
    while len(shape) > max(allowed) and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in allowed or min(shape, default=0) < 1:
        needed = " or ".join(f"{number}-D" for number in allowed)
        has = f"{path}: this {what} has shape {'x'.join(map(str, shape))}; {needed} is needed"
        raise BadInput(f"{has}{_remedy(header, path, shape, max(allowed))}")
    return tuple(int(n) for n in shape[::-1])


def _remedy(header, path: Path, shape: tuple[int, ...], axes: int) -> str:
    """Say how an image of other dimensions becomes one that can be used."""
    if 3000 <= int(header["intent_code"]) < 3100:
        return "; it is a CIFTI, of surfaces: take the volume out of it with wb_command -cifti-separate"
    if len(shape) > axes and min(shape) > 0:
        others = " ".join(f"-coord {axis} 0" for axis in range(axes, len(shape)) if shape[axis] > 1)
        return f"; take one part of it: mrconvert {path.name} {others} part.nii.gz"
    return "; join volumes with mrcat or fslmerge -t" if len(shape) == 3 else ""


def checked_dtype(header, path: Path) -> np.dtype:
    """Return the type of the voxels, real numbers of at most 64 bits."""
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        dtype = np.dtype("V")
    if dtype.names:
        raise BadInput(
            f"{path}: voxels of type {header['datatype']} are colours, and no measurement; give the image "
            "that they were made of"
        )
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        how = f": mrcalc {path.name} -abs magnitude.nii.gz" if dtype.kind == "c" else ""
        raise BadInput(
            f"{path}: voxels of type {header['datatype']} ({dtype}) are not supported; "
            f"convert the magnitude image to a real type of at most 64 bits{how}"
        )
    return dtype


def turned_grid(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...], other_shape: tuple[int, ...]) -> str:
    """Say how the axes of a grid run, where its voxels are those of another one in another order; else "".

    Parameters
    ----------
    a, b : (4, 4)
        Affines of the one and the other.
    shape, other_shape : (x, y, z)
    """
    between = np.linalg.inv(a) @ b
    places = np.argmax(
        np.abs(between[:3, :3]), axis=0
    )  # the axis of the one that each of the other runs along
    signs = np.sign(between[places, range(3)])
    if sorted(places) != [0, 1, 2] or tuple(shape[place] for place in places) != other_shape:
        return ""
    exact = np.zeros((4, 4))
    exact[3, 3] = 1
    for axis, (place, sign) in enumerate(zip(places, signs, strict=True)):
        exact[place, axis] = sign
        exact[place, 3] = shape[place] - 1 if sign < 0 else 0
    if corner_distance(between, exact, other_shape) > 1e-2:
        return ""
    flipped = ["xyz"[place] for place, sign in zip(places, signs, strict=True) if sign < 0]
    order = "".join("xyz"[place] for place in places)
    words = [f"it is flipped along {' and '.join(sorted(flipped))}"] if flipped else []
    words += [f"its axes are in the order {' '.join(order)}"] if order != "xyz" else []
    return f"the order of their voxels ({', and '.join(words)}); turn it" if words else ""
