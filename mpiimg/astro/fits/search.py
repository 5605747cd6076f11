"""Find exposures by their headers: in files, in lists of files, in the triplets of DECam."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from mpiimg.astro.fits.exposure import ExposureRef, survey_order
from mpiimg.astro.fits.headers import (
    AB_JANSKY,
    CARDS,
    HeaderReader,
    ReadOptions,
    noise_facts,
    zero_point,
)
from mpiimg.astro.fits.mask_meaning import mask_meaning, triplet_meaning
from mpiimg.astro.fits.reading import Extension, FitsFile, read_headers, refuse_scaling
from mpiimg.astro.fits.twins import told_apart
from mpiimg.astro.fits.writing import own_history
from mpiimg.astro.sky.wcs import checked_text, parse_wcs
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
    "WHT": "weight",
    "MASK": "mask",
    "DQ": "mask",
    "BPM": "mask",
}

#: Extensions that belong to an image without being one.
OTHERS = ("NIMAGE", "WEIGHT", "SEGMENTATION", "BACKGROUND", "PSF")

#: The three files of a DECam triplet differ in this part of the name.
_TRIPLET = re.compile(r"(?<![A-Za-z0-9])oo[iwd](?![A-Za-z0-9])")

#: Endings that one of a triplet's files may have where the others have another.
_ENDINGS = (".fits", ".fits.fz", ".fits.gz", ".fz")

#: Nanojansky in a jansky.
NANO = 1e9


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
        except Exception as error:
            if rejected is None or ends_run(error):
                raise
            rejected.append(fault_of(error, str(first), "headers"))
        else:
            exposures += refs
    refuse_systematic(rejected or (), len(groups), "file")
    if not exposures and rejected is None:
        raise BadInput("no exposures: name at least one FITS file")
    apart, twins = told_apart(exposures)
    for twin, first in twins:
        error = BadInput(
            f"{twin.image.path}: duplicate exposure: its pixels are those of {first.image.path}; leave one "
            "out"
        )
        if rejected is None:
            raise error
        rejected.append(fault_of(error, str(twin.image.path), "headers"))
    return sorted(apart, key=survey_order)


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


def _find_in_file(path: Path, options: ReadOptions) -> list[ExposureRef]:
    """Find the exposures of a file that is no triplet's."""
    file = read_headers(path)
    groups = _planes_by_image(file)
    if not groups:
        raise BadInput(f"{path}: has no image: no extension holds two-dimensional pixels")
    if len({frozenset(planes) for planes in groups}) > 1:
        raise BadInput(
            f"{path}: missing planes: some of its images have a variance or a mask that others do not; give "
            "those that belong together the same EXTVER"
        )
    files = {"image": file, **_companions(path, options)}
    refs = []
    for place, planes in enumerate(groups):
        image = planes["image"]
        where = f"{path}[{image.name or image.plane.hdu}]" if len(groups) > 1 else str(path)
        owners = dict.fromkeys(planes, file)
        for role in files.keys() - {"image"}:
            beside = files[role].images
            # One image beside one image: a file of weights calls it what it likes, as ERR or WHT.
            alone = len(groups) == len(beside) == 1
            planes[role] = beside[0] if alone else _same_sensor(files[role], image, place)
            owners[role] = files[role]
            if role == "variance":
                planes["variance_is"] = options.weight_file_is
        roles = [role for role in ("image", "variance", "mask") if role in planes]
        facts = HeaderReader(where, image.header, file.primary, options)
        used = [(one, [planes[role] for role in roles if owners[role] is one]) for one in files.values()]
        refs.append(
            _exposure_ref(
                facts,
                kind="planes" if len(roles) > 1 else "single",
                planes=planes,
                identity=tuple(one.identity(*extensions) for one, extensions in used),
                variance_is=planes.get("variance_is", "model"),
                mask=mask_meaning(planes.get("mask"), facts),
                siblings=len(groups),
            )
        )
    return refs


def _companions(path: Path, options: ReadOptions) -> dict[str, FitsFile]:
    """Return the headers of weight and mask that lie in files of their own beside an image, by role."""
    files = {}
    for role, flag, pattern in (
        ("variance", "--weight-file", options.weight_file),
        ("mask", "--mask-file", options.mask_file),
    ):
        if pattern is None:
            continue
        beside = path.with_name(pattern.replace("{stem}", _stem(path)))
        if not beside.is_file():
            raise BadInput(f"{path}: {beside.name}, which {flag} names, is not beside it")
        files[role] = read_headers(beside)
    return files


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
                group["mask" if role == "mask" else "variance"] = extension
                if role != "mask":
                    group["variance_is"] = role
        groups.append(group)
    return groups


def _find_triplet(members: tuple[Path, ...], options: ReadOptions) -> list[ExposureRef]:
    """Find the exposures of a DECam triplet: sensors that all three files have by the same name."""
    missing = [str(path) for path in members if not path.exists()]
    if missing:
        there = next((path for path in members if path.exists()), members[0])
        raise BadInput(f"{there}: missing planes: this DECam triplet lacks {' and '.join(missing)}")
    image_file, weight_file, mask_file = files = [read_headers(path) for path in members]
    if not image_file.images:
        raise BadInput(f"{image_file.path}: has no image: no extension holds two-dimensional pixels")
    refs = []
    for place, image in enumerate(image_file.images):
        where = f"{image_file.path}[{image.name}]" if len(image_file.images) > 1 else str(image_file.path)
        facts = HeaderReader(where, image.header, image_file.primary, options)
        planes = {
            "image": image,
            "variance": _same_sensor(weight_file, image, place),
            "mask": _same_sensor(mask_file, image, place),
        }
        refs.append(
            _exposure_ref(
                facts,
                kind="triplet",
                planes=planes,
                identity=tuple(
                    file.identity(plane) for file, plane in zip(files, planes.values(), strict=True)
                ),
                variance_is="weight",
                mask=triplet_meaning(mask_file, facts),
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


def _exposure_ref(facts: HeaderReader, *, kind, planes, identity, variance_is, mask, siblings) -> ExposureRef:
    """Put together what the headers of an exposure say, and check it; `mask` says what its mask means."""
    image, variance, dq = (planes.get(role) for role in ("image", "variance", "mask"))
    for extension in (image, variance, dq):
        if extension is not None:
            refuse_scaling(extension)
    for extension, role in ((variance, "variance"), (dq, "mask")):
        if extension is not None and extension.shape != image.shape:
            shapes = ("x".join(map(str, e.shape[::-1])) for e in (image, extension))
            raise BadInput(
                f"{facts.where}: mixed shapes: the image is {next(shapes)} pixels, its {role} {next(shapes)}"
            )
    if (
        any(one is not None and one.edited for one in (image, variance, dq))
        and not facts.options.no_checksums
    ):
        facts.notes.append("its header was changed after its CHECKSUM was written")
    path = image.plane.path
    sensor = facts.text("sensor")
    if sensor is None:
        own = image.name if image.name not in ROLES else str(image.version) if siblings > 1 else ""
        sensor = own or (f"{_stem(path)}-{image.plane.hdu}" if siblings > 1 else _stem(path))
    gain, readnoise, exptime = noise_facts(facts, needed=variance_is == "model")
    wcs = _wcs(facts)
    scale = _scale(facts, wcs)
    saturate = facts.number("saturate")
    marks = [card for group in facts.instrument.cards["distinguish"] for card in group]
    return ExposureRef(
        name=f"{_stem(path)}.{sensor}" if siblings > 1 else _stem(path),
        kind=kind,
        image=image.plane,
        variance=variance.plane if variance else None,
        mask=dq.plane if dq else None,
        variance_is=variance_is,
        **{"planes": (), **mask},
        shape=image.shape,
        band=facts.band(),
        visit=facts.text("visit") or _stem(path),
        sensor=sensor,
        gain=None if gain is None else gain / scale,
        readnoise=readnoise,
        saturate=None if saturate is None else saturate * scale,
        magzero=_magzero(zero_point(facts, exptime), scale),
        exptime=exptime,
        mjd=facts.mjd(),
        cards=tuple((card, facts.card(card)) for card in CARDS if facts.card(card) is not None),
        wcs=wcs,
        history=own_history(facts.primary),
        identity=identity,
        scale=scale,
        verify=not facts.options.no_checksums,
        fwhm=_fwhm(facts),
        distinguish=tuple(
            (card, str(facts.card(card)).strip()) for card in marks if facts.card(card) is not None
        ),
        notes=tuple(facts.notes),
    )


def _scale(facts: HeaderReader, wcs: str) -> float:
    """Return what makes nanojansky per pixel of what is per solid angle, by its area; 1 elsewhere."""
    unit = facts.unit
    if not unit.per_steradian:
        return 1.0
    area = facts.optional("PIXAR_SR", 1.0)
    if area is None or area <= 0:
        from astropy.wcs.utils import proj_plane_pixel_area

        area = math.radians(1) ** 2 * float(proj_plane_pixel_area(parse_wcs(wcs).celestial))
    return unit.jansky * NANO * area


def _magzero(magzero: float | None, scale: float) -> float | None:
    """Return the magnitude of one unit of pixels that are multiplied by `scale` when they are read."""
    if magzero is not None:
        return magzero if scale == 1 else magzero + 2.5 * math.log10(scale)
    return None if scale == 1 else AB_JANSKY + 2.5 * math.log10(NANO)


def _fwhm(facts: HeaderReader) -> float | None:
    """Return the FWHM of stars, in pixels, where our calibration wrote it: others' cards have any unit."""
    ours = any(" calibrate: " in line for line in own_history(facts.primary))
    value = facts.card("FWHM") if ours else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".fz", ".gz", ".bz2", ".fits", ".fit", ".fts"):
        name = name.removesuffix(ending)
    return name


def _wcs(facts: HeaderReader) -> str:
    """Return the celestial coordinates as header text, having checked that they work."""
    # An extension inherits from the primary header what it does not say itself.
    header = facts.header if "CTYPE1" in facts.header else facts.primary
    return checked_text(header, facts.where)
