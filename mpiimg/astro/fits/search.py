"""Find exposures by their headers: in files, in lists of files, in the triplets of DECam."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mpiimg.astro.fits import maskplanes
from mpiimg.astro.fits.exposure import ExposureRef, survey_order
from mpiimg.astro.fits.headers import CARDS, SENSOR_CARDS, HeaderReader, ReadOptions, noise_facts, zero_point
from mpiimg.astro.fits.reading import Extension, FitsFile, read_headers, refuse_scaling
from mpiimg.astro.fits.writing import own_history
from mpiimg.astro.sky.wcs import checked_text
from mpiimg.engine.containment import Fault, ends_run, fault_of, place_of, refuse_systematic
from mpiimg.engine.small_files import check_regular
from mpiimg.errors import BadInput

#: Names of extensions, in upper case, by what they hold.
ROLES = {
    "IMAGE": "image",
    "SCI": "image",
    "VARIANCE": "variance",
    "VAR": "variance",
    "ERR": "error",
    "MASK": "mask",
    "DQ": "mask",
}

#: Extensions that belong to an image without being one.
OTHERS = ("NIMAGE", "WEIGHT", "SEGMENTATION", "BACKGROUND", "PSF")

#: The three files of a DECam triplet differ in this part of the name.
_TRIPLET = re.compile(r"(?<![A-Za-z0-9])oo[iwd](?![A-Za-z0-9])")

#: Endings that one of a triplet's files may have where the others have another.
_ENDINGS = (".fits", ".fits.fz", ".fits.gz", ".fz")


def find_exposures(
    paths: Iterable[str | Path],
    options: ReadOptions | None = None,
    rejected: list[Fault] | None = None,
) -> list[ExposureRef]:
    """Read the headers of exposures.

    Parameters
    ----------
    paths : iterable of str or Path
        Files, in any order. ``@list.txt`` stands for the files it lists, one per line, "#" for comments;
        names in it are relative to the working directory. Of a DECam triplet, any of the three files stands
        for all.
    options : ReadOptions, optional
        Where facts are found.
    rejected : list of Fault, optional
        Takes the fault of each file that cannot be used, instead of raising for it; a name that is no
        file's is a mistake of whoever gave it, and raises all the same.

    Returns
    -------
    list of ExposureRef
        By band, visit and sensor, whatever the order of `paths`.

    Raises
    ------
    BadInput
        A file is missing, is no FITS file, is truncated, has no image, lacks planes, has planes of
        different shapes, or has no celestial coordinates; gain or read noise is missing for a single
        image; an exposure is there twice; or there is none at all.
    RunFailed
        Too many files fail alike, which is a fault of this program.
    """
    options = options or ReadOptions()
    exposures: list[ExposureRef] = []
    files = _listed(paths)
    _refuse_missing(files)
    groups = _grouped(files)
    for first, members in groups:
        try:
            refs = _found(first, members, options)
            _refuse_duplicates(exposures, refs)
        except Exception as error:
            if rejected is None or ends_run(error):
                raise
            rejected.append(fault_of(error, str(first), "headers"))
        else:
            exposures += refs
    refuse_systematic(rejected or (), len(groups), "file")
    if not exposures and rejected is None:
        raise BadInput("no exposures: name at least one FITS file")
    return sorted(_told_apart(exposures), key=survey_order)


def _found(first: Path, members: tuple[Path, ...], options: ReadOptions) -> list[ExposureRef]:
    """Find the exposures of a file, or of the files of a triplet."""
    try:
        # What astropy mends in a header is no news; what it cannot mend, it raises.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _find_triplet(members, options) if members else _find_in_file(first, options)
    except BadInput:
        raise
    except Exception as error:
        # Cards are parsed when they are looked at, and astropy raises many things about what it finds there.
        if ends_run(error) or " at astropy.io.fits." not in place_of(error):
            raise
        raise BadInput(f"{first}: corrupt header: {' '.join(str(error).split())}") from None


def _listed(paths: Iterable[str | Path]) -> list[Path]:
    """Expand lists of files."""
    files = []
    for name in map(str, paths):
        if not name.startswith("@"):
            files.append(Path(name))
            continue
        try:
            check_regular(Path(name[1:]))
            lines = Path(name[1:]).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text file"
            raise BadInput(f"{name[1:]}: cannot read this list of exposures: {reason}") from None
        entries = (line.split("#")[0].strip() for line in lines)
        files += [Path(entry) for entry in entries if entry]
    return files


def _refuse_missing(files: Sequence[Path]) -> None:
    missing = [path for path in files if not path.is_file()]
    if missing:
        what = "is a folder" if missing[0].is_dir() else "No such file"
        more = f", and so with {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(f"{missing[0]}: {what}{more}; name FITS files, or a list of them as @list.txt")


def _grouped(files: Sequence[Path]) -> list[tuple[Path, tuple[Path, ...]]]:
    """Pair each file with the three names of its triplet, or with (); each triplet once."""
    groups, seen = [], set()
    for path in files:
        if _TRIPLET.search(path.name) is None:
            groups.append((path, ()))
            continue
        members = tuple(_sibling(path, letter) for letter in "iwd")
        if members[0].absolute() not in seen:
            seen.add(members[0].absolute())
            groups.append((path, members))
    return groups


def _sibling(path: Path, letter: str) -> Path:
    """Return the file of the same triplet that holds the image (i), weight (w) or mask (d)."""
    *_, last = _TRIPLET.finditer(path.name)
    same = path.with_name(path.name[: last.start()] + "oo" + letter + path.name[last.end() :])
    if same.exists():
        return same
    ending = next((end for end in sorted(_ENDINGS, key=len, reverse=True) if same.name.endswith(end)), "")
    stem = same.name.removesuffix(ending)
    others = (same.with_name(stem + other) for other in _ENDINGS)
    return next((other for other in others if other.exists()), same)


def _refuse_duplicates(exposures: Sequence[ExposureRef], new: Sequence[ExposureRef]) -> None:
    firsts = {_measurement(ref): ref for ref in exposures}
    for ref in new:
        twin = firsts.setdefault(_measurement(ref), ref)
        if twin is not ref:
            raise BadInput(
                f"{ref.image.path}: duplicate exposure: band {ref.band}, visit {ref.visit}, sensor "
                f"{ref.sensor} is also {twin.image.path}; leave one out, or give --visit and --sensor"
            )


def _measurement(ref: ExposureRef) -> tuple[str, ...]:
    """Return what two files of one measurement share."""
    # Where the header tells no visit, the name of the file stands for it, which another night may have too.
    by_name = ref.visit == _stem(ref.image.path)
    return ref.band, ref.visit, ref.sensor, os.path.realpath(ref.image.path) if by_name else ""


def _told_apart(exposures: Sequence[ExposureRef]) -> list[ExposureRef]:
    """Return exposures of which no two have one visit: those that files of one name lend it have the path."""
    counts = Counter((ref.band, ref.visit, ref.sensor) for ref in exposures)
    return [
        replace(ref, visit=str(ref.image.path)) if counts[ref.band, ref.visit, ref.sensor] > 1 else ref
        for ref in exposures
    ]


def _find_in_file(path: Path, options: ReadOptions) -> list[ExposureRef]:
    """Find the exposures of a file that is no triplet's."""
    file = read_headers(path)
    groups = _planes_by_image(file)
    if not groups:
        raise BadInput(f"{path}: has no image: no extension holds two-dimensional pixels")
    refs = []
    for planes in groups:
        image = planes["image"]
        where = f"{path}[{image.name or image.plane.hdu}]" if len(groups) > 1 else str(path)
        missing = [role for role in ("variance", "mask") if role not in planes]
        if len(missing) == 1:
            raise BadInput(
                f"{where}: has an image but no {missing[0]} plane; give all three, or the image alone"
            )
        mask_is, named = _mask_convention(planes.get("mask"), where)
        refs.append(
            _exposure_ref(
                HeaderReader(where, image.header, file.primary, options),
                kind="single" if missing else "planes",
                planes=planes,
                identity=(file.identity(image, planes.get("variance"), planes.get("mask")),),
                conventions=(planes.get("variance_is", "model"), mask_is, named),
                siblings=len(groups),
            )
        )
    return refs


def _planes_by_image(file: FitsFile) -> list[dict]:
    """Group the extensions of a file: a dict of "image", "variance", "mask" and "variance_is" each."""
    members = [(ROLES.get(extension.name), extension) for extension in file.images]
    roles = [role for role, _ in members]
    if "image" not in roles:
        # The primary of LSST's and CCDData's files has no name; nor have the sensors of a raw mosaic ours.
        planes = any(role is not None for role in roles)
        images = [
            ("image", extension)
            for role, extension in members
            if role is None and extension.name not in OTHERS and (extension.plane.hdu == 0 or not planes)
        ]
        members = images + [member for member in members if member[0] is not None]
    members = [(role, extension) for role, extension in members if role is not None]
    images = [extension for role, extension in members if role == "image"]
    keys = [(role, extension.version) for role, extension in members]
    by_version = len(set(keys)) == len(keys)
    groups = []
    for place, image in enumerate(images):
        group = {"image": image}
        following = images[place + 1].plane.hdu if place + 1 < len(images) else math.inf
        for role, extension in members:
            near = image.plane.hdu < extension.plane.hdu < following
            if role != "image" and (extension.version == image.version if by_version else near):
                group["variance" if role == "error" else role] = extension
                if role != "mask":
                    group["variance_is"] = role
        groups.append(group)
    return groups


def _mask_convention(mask: Extension | None, where: str) -> tuple[str, tuple]:
    """Say what the bits of a mask mean: by its MP_ cards, else ours in a MASK, else unknown."""
    if mask is None:
        return "none", ()
    try:
        planes = maskplanes.planes_of(mask.header)
    except ValueError as error:
        raise BadInput(f"{where}: the mask's header makes no sense: {error}") from None
    if planes or mask.name == "MASK":
        return "planes", tuple((planes or maskplanes.MASK_PLANES).items())
    return "any", ()


def _find_triplet(members: tuple[Path, ...], options: ReadOptions) -> list[ExposureRef]:
    """Find the exposures of a DECam triplet: sensors that all three files have by the same name."""
    missing = [str(path) for path in members if not path.exists()]
    if missing:
        there = next((path for path in members if path.exists()), members[0])
        raise BadInput(f"{there}: missing planes: this DECam triplet lacks {' and '.join(missing)}")
    image_file, weight_file, mask_file = files = [read_headers(path) for path in members]
    if not image_file.images:
        raise BadInput(f"{image_file.path}: has no image: no extension holds two-dimensional pixels")
    mask_is = _decam_convention(mask_file, options)
    refs = []
    for place, image in enumerate(image_file.images):
        where = f"{image_file.path}[{image.name}]" if len(image_file.images) > 1 else str(image_file.path)
        planes = {
            "image": image,
            "variance": _same_sensor(weight_file, image, place),
            "mask": _same_sensor(mask_file, image, place),
        }
        refs.append(
            _exposure_ref(
                HeaderReader(where, image.header, image_file.primary, options),
                kind="triplet",
                planes=planes,
                identity=tuple(
                    file.identity(plane) for file, plane in zip(files, planes.values(), strict=True)
                ),
                conventions=("weight", mask_is, ()),
                siblings=len(image_file.images),
            )
        )
    return refs


def _same_sensor(file: FitsFile, image: Extension, place: int) -> Extension:
    """Return the image of `file` that belongs to an image of `ooi`: by name, or by place without names."""
    if image.name:
        extensions = [extension for extension in file.images if extension.name == image.name]
    else:
        extensions = list(file.images[place : place + 1])
    if len(extensions) != 1:
        raise BadInput(
            f"{file.path}: missing planes: no extension {image.name or place}, which the image has"
        )
    return extensions[0]


def _decam_convention(file: FitsFile, options: ReadOptions) -> str:
    """Say what an `ood` holds: "codes" or "bits"."""
    if options.decam_mask != "auto":
        return options.decam_mask
    try:
        return "codes" if maskplanes.decam_has_codes(str(file.primary.get("PLVER", ""))) else "bits"
    except ValueError as error:
        raise BadInput(f"{file.path}: {error}, so that its mask has no meaning; give --decam-mask") from None


def _exposure_ref(facts, *, kind, planes, identity, conventions, siblings) -> ExposureRef:
    """Put together what the headers of an exposure say, and check it."""
    image, variance, mask = (planes.get(role) for role in ("image", "variance", "mask"))
    for extension in (image, variance, mask):
        if extension is not None:
            refuse_scaling(extension)
    for extension, role in ((variance, "variance"), (mask, "mask")):
        if extension is not None and extension.shape != image.shape:
            shapes = ("x".join(map(str, e.shape[::-1])) for e in (image, extension))
            raise BadInput(
                f"{facts.where}: mixed shapes: the image is {next(shapes)} pixels, its {role} {next(shapes)}"
            )
    variance_is, mask_is, named = conventions
    path = image.plane.path
    sensor = facts.text("sensor", SENSOR_CARDS)
    if sensor is None:
        own = image.name if image.name not in ROLES else str(image.version) if siblings > 1 else ""
        sensor = own or (f"{_stem(path)}-{image.plane.hdu}" if siblings > 1 else _stem(path))
    gain, readnoise, exptime = noise_facts(facts, needed=variance_is == "model")
    return ExposureRef(
        name=f"{_stem(path)}.{sensor}" if siblings > 1 else _stem(path),
        kind=kind,
        image=image.plane,
        variance=variance.plane if variance else None,
        mask=mask.plane if mask else None,
        variance_is=variance_is,
        mask_is=mask_is,
        planes=named,
        shape=image.shape,
        band=((facts.text("filter", ("FILTER",)) or "").split() or ["unknown"])[0],
        visit=facts.text("visit", ("EXPID", "VISIT", "EXPNUM", "DATE-OBS")) or _stem(path),
        sensor=sensor,
        gain=gain,
        readnoise=readnoise,
        saturate=facts.number("saturate", "SATURATE"),
        magzero=zero_point(facts, exptime),
        exptime=exptime,
        mjd=facts.mjd(),
        cards=tuple((card, facts.card(card)) for card in CARDS if facts.card(card) is not None),
        wcs=_wcs(facts),
        history=own_history(facts.primary),
        identity=identity,
    )


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".fz", ".gz", ".fits", ".fit"):
        name = name.removesuffix(ending)
    return name


def _wcs(facts: HeaderReader) -> str:
    """Return the celestial coordinates as header text, having checked that they work."""
    # An extension inherits from the primary header what it does not say itself.
    header = facts.header if "CTYPE1" in facts.header else facts.primary
    return checked_text(header, facts.where)
