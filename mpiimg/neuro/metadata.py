"""What the JSON sidecars of a raw image say of it, by the inheritance principle of BIDS."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.small_files import read_text
from mpiimg.errors import BadInput
from mpiimg.neuro.bids import entities_of, levels_of
from mpiimg.neuro.nifti import bare_name

#: Fields that are true of the image that the scanner made, and not of what was computed from it: what kind of
#: image it is, how its stored numbers stand for values, and how it was made and named.
OF_RAW_ALONE = frozenset(
    {
        "BidsGuess",
        "Description",
        "GeneratedBy",
        "ImageType",
        "ImageTypeText",
        "IntendedFor",
        "LargestImagePixelValue",
        "PhilipsRWVIntercept",
        "PhilipsRWVSlope",
        "PhilipsRescaleIntercept",
        "PhilipsRescaleSlope",
        "PhilipsScaleSlope",
        "RawImage",
        "RawSources",
        "SkullStripped",
        "SmallestImagePixelValue",
        "Sources",
        "SpatialReference",
        "Units",
        "UsePhilipsFloatNotDisplayScaling",
        "WindowCenter",
        "WindowWidth",
    }
)

#: Fields that list one value for each volume.
OF_VOLUMES = ("VolumeTiming", "FrameTimesStart", "FrameDuration")


@dataclass(frozen=True)
class Inherited:
    """What the sidecars of a raw image say that holds for a series made from it as well.

    Parameters
    ----------
    fields : mapping
    files : tuple of Path
        The sidecars that were read.
    warnings : tuple of str
        Of sidecars that cannot be read, whose fields are lost.
    """

    fields: Mapping[str, Any]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]


def inherited_fields(image: Path) -> Inherited:
    """Return what the sidecars of a raw image say that holds for a series made from it as well.

    For an image in a BIDS dataset all sidecars that apply are read, from the top of the dataset down to the
    one beside it, and the nearer one counts where two differ; for any other image the one beside it.
    """
    fields: dict[str, Any] = {}
    files, warnings = [], []
    for path in _sidecars(image):
        try:
            fields |= _read(path)
        except BadInput as error:
            warnings.append(f"{error}; what it says of the image is not handed on")
        else:
            files.append(path)
    lasting = {
        name: value for name, value in fields.items() if name not in OF_RAW_ALONE and value is not None
    }
    return Inherited(lasting, tuple(files), tuple(warnings))


def fields_of_volumes(fields: Mapping[str, Any], count: int, kept: Sequence[int]) -> dict[str, Any]:
    """Return fields of a series of `count` volumes as they are for some of its volumes."""
    cut = {
        name: [fields[name][v] for v in kept]
        for name in OF_VOLUMES
        if isinstance(fields.get(name), list) and len(fields[name]) == count
    }
    return {**fields, **cut}


def _sidecars(image: Path) -> Iterator[Path]:
    """Yield the sidecars that apply to an image, the nearest one last."""
    folder, name = image.parent, bare_name(image)
    stem, _, suffix = name.rpartition("_")
    entities = entities_of(stem)
    if suffix != "dwi" or not entities or "sub" not in entities:
        if (folder / f"{name}.json").is_file():
            yield folder / f"{name}.json"
        return
    for level in reversed(levels_of(folder)):
        for parts in _subsets(entities):
            path = level / ("_".join([*parts, "dwi"]) + ".json")
            if path.is_file():
                yield path


def _subsets(entities: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield the parts that the name of a sidecar may have, the fewest first.

    They are looked up one by one: a list of the top of a dataset for each of its scans would take too long.
    """
    parts = [f"{key}-{label}" for key, label in entities.items()]
    for count in range(len(parts) + 1):
        yield from itertools.combinations(parts, count)


def _read(path: Path) -> dict[str, Any]:
    """Return the fields of a sidecar.

    Raises
    ------
    BadInput
        It cannot be read, or is no JSON object.
    """
    text = read_text(path, "this sidecar")
    try:
        # JSON has neither NaN nor infinities, which Python would read, and write again.
        fields = json.loads(text, parse_constant=lambda word: None)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({str(error)[:100]})") from None
    if not isinstance(fields, dict):
        raise BadInput(f"{path}: not a JSON object")
    return fields
