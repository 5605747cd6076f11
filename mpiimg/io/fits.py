"""FITS exposures in, patches out.

An exposure is one image of one sensor with its variance and mask, wherever
these lie: extensions of a file, the three files of a DECam Community Pipeline
triplet, or a single image whose variance is modelled from gain and read noise.
:func:`find_exposures` reads headers only, :func:`read_exposure` the pixels.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import io
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.errors import BadInput
from mpiimg.io import maskplanes

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

#: Cards that name the sensor, first come first served; then the extension's name.
SENSOR_CARDS = ("CCDNUM", "DETPOS", "CCDNAME", "CCD", "DETSER")

#: Cards that are kept for outputs and messages, where they are there.
CARDS = (
    "OBJECT",
    "FILTER",
    "DATE-OBS",
    "EXPTIME",
    "AIRMASS",
    "INSTRUME",
    "TELESCOP",
    "PROPID",
    "PLVER",
    "BUNIT",
)

#: Cards that make up a celestial coordinate system.
_WCS_CARD = re.compile(
    r"WCSAXES|C(TYPE|RVAL|RPIX|UNIT|DELT|ROTA)[12]|(CD|PC)[12]_[12]|P[VS][12]_\d+|LONPOLE|LATPOLE"
    r"|RADESYS|RADECSYS|EQUINOX|[AB]P?_(ORDER|DMAX|\d_\d)"
)

#: The three files of a DECam triplet differ in this part of the name.
_TRIPLET = re.compile(r"(?<![A-Za-z0-9])oo[iwd](?![A-Za-z0-9])")

#: Endings that one of a triplet's files may have where the others have another.
_ENDINGS = (".fits", ".fits.fz", ".fits.gz", ".fz")

#: Bytes of a file that are held while sums are checked.
_PIECE = 1 << 24

#: Pixels, at most, that the filling of those without data is estimated from.
_SAMPLE = 1 << 16

#: Pixels with any of these hold no signal.
_USELESS = maskplanes.bits("BAD", "SAT", "NO_DATA")

#: A setting: None for the usual cards, the name of a card, a number, or text behind "=".
Setting = str | float | None


@dataclass(frozen=True)
class ReadOptions:
    """Where the facts about exposures are found, if not in the usual cards.

    Each setting is the name of a card, or the value itself: a number, or text behind "=" ("=r").

    Parameters
    ----------
    magzero : zero point in magnitudes; card MAGZERO
    magzero_per : "exposure": the zero point holds for the pixels as they are; "second": for counts per
        second, so that 2.5 log10(EXPTIME) is added unless BUNIT says that the pixels are per second
    gain : electrons per ADU; GAIN, or the mean of GAINA and GAINB
    readnoise : electrons; RDNOISE, or the mean of RDNOISEA and RDNOISEB
    saturate : level from which pixels are saturated, in the image's unit; SATURATE
    band : name of the filter; first word of FILTER
    visit : EXPID, VISIT or EXPNUM, else DATE-OBS, else each file is its own
    sensor : CCDNUM, DETPOS, CCDNAME, CCD or DETSER, else the extension's name, else the file's
    decam_mask : what `ood` holds: "codes", "bits", or "auto" for what PLVER says
    """

    magzero: Setting = None
    magzero_per: str = "exposure"
    gain: Setting = None
    readnoise: Setting = None
    saturate: Setting = None
    band: Setting = None
    visit: Setting = None
    sensor: Setting = None
    decam_mask: str = "auto"

    def __post_init__(self):
        if self.magzero_per not in ("exposure", "second"):
            raise BadInput(f"--magzero-per is exposure or second, not {self.magzero_per}")
        if self.decam_mask not in ("auto", "codes", "bits"):
            raise BadInput(f"--decam-mask is auto, codes or bits, not {self.decam_mask}")


@dataclass(frozen=True)
class Plane:
    """Where pixels lie: number `hdu` (the primary is 0) of a file."""

    path: Path
    hdu: int


@dataclass(frozen=True)
class ExposureRef:
    """An exposure on disk: what its headers say, and where its pixels lie.

    Parameters
    ----------
    name : of the exposure, unique in a list: the file's stem, with the sensor where a file has several
    kind : "planes" (extensions of a file), "triplet" (DECam ooi, oow, ood) or "single"
    image, variance, mask : their places; None for the last two of a single image
    variance_is : "variance", "error" (its root), "weight" (its inverse), or "model"
    mask_is : "planes" (by name, see `planes`), "codes" or "bits" (DECam), "any" (what is not zero is
        bad), or "none"
    planes : (name, bit number) of the planes of the mask
    shape : (ny, nx)
    band, visit, sensor : as text
    gain : electrons per unit of the image, which is 1 where BUNIT says electrons; None if unknown
    readnoise : electrons; None if unknown
    saturate : in the unit of the image; None if unknown
    magzero : magnitude of one unit of the image; None if unknown
    exptime : seconds; None if unknown
    mjd : start of the exposure; None if unknown
    cards : (keyword, value) of `CARDS`, as far as there
    wcs : header text of the celestial coordinates, for :func:`parse_wcs`
    identity : (size, mtime_ns, CRC32 of the headers used) of each file, which enters the provenance
    """

    name: str
    kind: str
    image: Plane
    variance: Plane | None
    mask: Plane | None
    variance_is: str
    mask_is: str
    planes: tuple[tuple[str, int], ...]
    shape: tuple[int, int]
    band: str
    visit: str
    sensor: str
    gain: float | None
    readnoise: float | None
    saturate: float | None
    magzero: float | None
    exptime: float | None
    mjd: float | None
    cards: tuple[tuple[str, object], ...]
    wcs: str
    identity: tuple[tuple[int, int, int], ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(plane.path for plane in (self.image, self.variance, self.mask) if plane))

    @property
    def nbytes(self) -> int:
        """Bytes that :func:`read_exposure` returns."""
        return 12 * self.shape[0] * self.shape[1]


@dataclass(frozen=True, eq=False)
class Exposure:
    """The pixels of an exposure, C-contiguous, in the machine's byte order.

    Parameters
    ----------
    ref : what its headers say
    image : (ny, nx) float32
    variance : (ny, nx) float32, in the squared unit of the image; positive
    mask : (ny, nx) int32, bits of :data:`maskplanes.PLANES`
    """

    ref: ExposureRef
    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray


# --------------------------------------------------------------------------- finding


def find_exposures(
    paths: Iterable[str | Path],
    options: ReadOptions | None = None,
    rejected: list[tuple[str, str]] | None = None,
) -> list[ExposureRef]:
    """Read the headers of exposures.

    Parameters
    ----------
    paths : files, in any order. ``@list.txt`` stands for the files it lists, one a line, "#" for
        comments; names in it are relative to the working directory. Of a DECam triplet, any of the
        three files stands for all.
    options : where facts are found
    rejected : takes (file, reason) of each file that cannot be used, instead of raising for it

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
    """
    options = options or ReadOptions()
    found: list[ExposureRef] = []
    for first, members in _grouped(_listed(paths)):
        try:
            refs = _find_triplet(members, options) if members else _find_in_file(first, options)
            _refuse_duplicates(found, refs)
        except BadInput as error:
            if rejected is None:
                raise
            rejected.append((str(first), str(error)))
        else:
            found += refs
    if not found and rejected is None:
        raise BadInput("no exposures: name at least one FITS file")
    return sorted(found, key=survey_order)


def survey_order(ref) -> tuple:
    """Return what sorts exposures, or anything that has their facts: by band, visit, sensor and name."""
    return ref.band, _natural(ref.visit), _natural(ref.sensor), ref.name


def _natural(text: str) -> tuple:
    """Return what sorts 9 before 10, and numbers before words."""
    return (0, int(text), text) if text.isdecimal() else (1, 0, text)


def _listed(paths: Iterable[str | Path]) -> list[Path]:
    """Expand lists of files."""
    files = []
    for name in map(str, paths):
        if not name.startswith("@"):
            files.append(Path(name))
            continue
        try:
            lines = Path(name[1:]).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text file"
            raise BadInput(f"{name[1:]}: cannot read this list of exposures: {reason}") from None
        entries = (line.split("#")[0].strip() for line in lines)
        files += [Path(entry) for entry in entries if entry]
    return files


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


def _refuse_duplicates(found: Sequence[ExposureRef], new: Sequence[ExposureRef]) -> None:
    known = {(ref.band, ref.visit, ref.sensor): ref for ref in found}
    for ref in new:
        twin = known.setdefault((ref.band, ref.visit, ref.sensor), ref)
        if twin is not ref:
            raise BadInput(
                f"{ref.image.path}: duplicate exposure: band {ref.band}, visit {ref.visit}, sensor "
                f"{ref.sensor} is also {twin.image.path}; leave one out, or give --visit and --sensor"
            )


# --------------------------------------------------------------------------- one file, or three


@dataclass(frozen=True)
class _Extension:
    """An image of a file: its place, header, EXTNAME in upper case, EXTVER and shape (ny, nx)."""

    plane: Plane
    header: object
    name: str
    version: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class _File:
    """What the headers of a file say: the primary header, and all two-dimensional images."""

    path: Path
    size: int
    mtime: int
    primary: object
    images: tuple[_Extension, ...]

    def identity(self, *used: _Extension | None) -> tuple[int, int, int]:
        """Return size, time, and the checksum of the primary header and of those of images used."""
        headers = [self.primary, *(extension.header for extension in used if extension is not None)]
        text = "".join(header.tostring() for header in headers)
        return self.size, self.mtime, zlib.crc32(text.encode())


def read_headers(path: Path) -> _File:
    """Read all headers of a file, and check that the file is as long as they say."""
    try:
        status = path.stat()
        if path.is_dir():
            raise BadInput(f"{path}: is a folder; name FITS files, or a list of them as @list.txt")
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise BadInput(f"{path}: cannot read this exposure: {error.strerror}") from None
    from astropy.io import fits

    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    images = []
    with _opened(path) as hdus:
        for number, hdu in enumerate(hdus):
            end = hdu.fileinfo()["datLoc"] + hdu.fileinfo()["datSpan"]
            if not compressed and end > status.st_size:
                raise BadInput(
                    f"{path}: truncated: {status.st_size} bytes where extension {number} ends at {end}; "
                    "copy it again"
                )
            header = hdu.header
            if isinstance(hdu, kinds) and header.get("NAXIS") == 2 and header["NAXIS1"] * header["NAXIS2"]:
                images.append(
                    _Extension(
                        Plane(path, number),
                        header.copy(),
                        str(header.get("EXTNAME", "")).strip().upper(),
                        header.get("EXTVER", 1),
                        (header["NAXIS2"], header["NAXIS1"]),
                    )
                )
        primary = hdus[0].header.copy()
    return _File(path, status.st_size, status.st_mtime_ns, primary, tuple(images))


@contextlib.contextmanager
def _opened(path: Path):
    """Open a FITS file with astropy; what it only warns of, or raises in many ways, becomes BadInput."""
    from astropy.io import fits

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with fits.open(path) as hdus:
                len(hdus)  # reads all headers
                for warning in map(str, (entry.message for entry in caught)):
                    if "Error validating header" in warning or "truncated" in warning:
                        raise BadInput(
                            f"{path}: truncated or corrupt: an extension is cut short; copy it again"
                        )
                yield hdus
        except (BadInput, MemoryError):
            raise
        except Exception as error:
            if str(error).startswith(("No SIMPLE", "Empty or corrupt")):
                raise BadInput(f"{path}: is not a FITS file") from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(f"{path}: truncated or corrupt ({reason}); copy it again") from None


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
                _Facts(where, image.header, file.primary, options),
                kind="single" if missing else "planes",
                planes=planes,
                identity=(file.identity(image, planes.get("variance"), planes.get("mask")),),
                conventions=(planes.get("variance_is", "model"), mask_is, named),
                siblings=len(groups),
            )
        )
    return refs


def _planes_by_image(file: _File) -> list[dict]:
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


def _mask_convention(mask: _Extension | None, where: str) -> tuple[str, tuple]:
    """Say what the bits of a mask mean: by its MP_ cards, else ours in a MASK, else unknown."""
    if mask is None:
        return "none", ()
    try:
        planes = maskplanes.planes_of(mask.header)
    except ValueError as error:
        raise BadInput(f"{where}: the mask's header makes no sense: {error}") from None
    if planes or mask.name == "MASK":
        return "planes", tuple((planes or maskplanes.PLANES).items())
    return "any", ()


def _find_triplet(members: tuple[Path, ...], options: ReadOptions) -> list[ExposureRef]:
    """Find the exposures of a DECam triplet: sensors that all three files have by the same name."""
    missing = [str(path) for path in members if not path.exists()]
    if missing:
        given = next((path for path in members if path.exists()), members[0])
        raise BadInput(f"{given}: missing planes: this DECam triplet lacks {' and '.join(missing)}")
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
                _Facts(where, image.header, image_file.primary, options),
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


def _same_sensor(file: _File, image: _Extension, place: int) -> _Extension:
    """Return the image of `file` that belongs to an image of `ooi`: by name, or by place without names."""
    if image.name:
        found = [extension for extension in file.images if extension.name == image.name]
    else:
        found = list(file.images[place : place + 1])
    if len(found) != 1:
        raise BadInput(
            f"{file.path}: missing planes: no extension {image.name or place}, which the image has"
        )
    return found[0]


def _decam_convention(file: _File, options: ReadOptions) -> str:
    """Say what an `ood` holds: "codes" or "bits"."""
    if options.decam_mask != "auto":
        return options.decam_mask
    try:
        return "codes" if maskplanes.decam_has_codes(str(file.primary.get("PLVER", ""))) else "bits"
    except ValueError as error:
        raise BadInput(f"{file.path}: {error}, so that its mask has no meaning; give --decam-mask") from None


# --------------------------------------------------------------------------- what headers say


class _Facts:
    """Looks up what an exposure's header says, then the primary header, as the options have it."""

    def __init__(self, where: str, header, primary, options: ReadOptions):
        self.where, self.header, self.primary, self.options = where, header, primary, options

    def card(self, keyword: str):
        """Return the value of a card, or None: absent, without a value, or empty."""
        from astropy.io.fits.card import Undefined

        for header in (self.header, self.primary):
            value = header.get(keyword)
            if value is not None and not isinstance(value, Undefined) and str(value).strip():
                return value
        return None

    def setting(self, option: str):
        """Return (value, what it is called) as the option says, or None without it."""
        setting = getattr(self.options, option)
        if setting is None:
            return None
        flag = "--" + option.replace("_", "-")
        text = str(setting)
        if text.startswith("="):
            return text[1:], flag
        with contextlib.suppress(ValueError):
            return float(text) if option in ("magzero", "gain", "readnoise", "saturate") else int(text), flag
        value = self.card(text)
        if value is None:
            raise BadInput(f"{self.where}: has no card {text}, which {flag} names")
        return value, text

    def number(self, option: str, card: str, pair: bool = False) -> float | None:
        """Return a number: the option's, the card's, or the mean of its A and B; None without any."""
        given = self.setting(option)
        if given is None and self.card(card) is not None:
            given = self.card(card), card
        if given is not None:
            return self.checked(*given, option)
        halves = [self.card(card + amplifier) for amplifier in "AB"] if pair else []
        if not halves or None in halves:
            return None
        values = [self.checked(half, card + "A/B", option) for half in halves]
        return sum(values) / len(values)

    def checked(self, value, name: str, option: str) -> float:
        """Return `value` as a finite number that makes sense for what `option` stands for."""
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        wanted, sensible = {
            "magzero": ("finite number", True),
            "readnoise": ("number from 0 on", number >= 0),
        }.get(option, ("positive number", number > 0))
        if not (sensible and math.isfinite(number)):
            raise BadInput(f"{self.where}: {name} = {value!r} is no {wanted}; give --{option}")
        return number

    def text(self, option: str, cards: Sequence[str]) -> str | None:
        """Return text: the option's, or of the first card that is there; None without any."""
        given = self.setting(option)
        if given is not None:
            return str(given[0]).strip()
        value = next((self.card(card) for card in cards if self.card(card) is not None), None)
        return None if value is None else str(value).strip()

    def optional(self, card: str) -> float | None:
        """Return a number that is of use but not needed, or None where it makes no sense."""
        try:
            value = float(self.card(card))
        except (TypeError, ValueError):
            return None
        return value if math.isfinite(value) else None

    def mjd(self) -> float | None:
        """Return the start of the exposure: MJD-OBS, MJD, or from DATE-OBS."""
        for card in ("MJD-OBS", "MJD"):
            if self.optional(card) is not None:
                return self.optional(card)
        try:
            start = datetime.datetime.fromisoformat(str(self.card("DATE-OBS")))
        except ValueError:
            return None
        return (start.replace(tzinfo=None) - datetime.datetime(1858, 11, 17)) / datetime.timedelta(days=1)


def _exposure_ref(facts, *, kind, planes, identity, conventions, siblings) -> ExposureRef:
    """Put together what the headers of an exposure say, and check it."""
    image, variance, mask = (planes.get(role) for role in ("image", "variance", "mask"))
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
    gain, readnoise, exptime = _noise_facts(facts, needed=variance_is == "model")
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
        band=((facts.text("band", ("FILTER",)) or "").split() or ["unknown"])[0],
        visit=facts.text("visit", ("EXPID", "VISIT", "EXPNUM", "DATE-OBS")) or _stem(path),
        sensor=sensor,
        gain=gain,
        readnoise=readnoise,
        saturate=facts.number("saturate", "SATURATE"),
        magzero=_zero_point(facts, exptime),
        exptime=exptime,
        mjd=facts.mjd(),
        cards=tuple((card, facts.card(card)) for card in CARDS if facts.card(card) is not None),
        wcs=_wcs_text(facts, image.shape),
        identity=identity,
    )


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".fz", ".gz", ".fits", ".fit"):
        name = name.removesuffix(ending)
    return name


def _unit(facts: _Facts) -> tuple[bool, bool]:
    """Say whether the image is in electrons, and whether it is per second."""
    unit = str(facts.card("BUNIT") or "").strip().lower()
    electrons = re.match(r"e(?![a-df-z])|e-|electron", unit) is not None
    return electrons, re.search(r"/\s*s|\bs(\*\*|\^)?\(?-1", unit) is not None


def _noise_facts(facts: _Facts, needed: bool) -> tuple[float | None, float | None, float | None]:
    """Return electrons per unit of the image, read noise in electrons, and seconds of exposure."""
    electrons, per_second = _unit(facts)
    gain = 1.0 if electrons else facts.number("gain", "GAIN", pair=True)
    readnoise = facts.number("readnoise", "RDNOISE", pair=True)
    exptime = facts.optional("EXPTIME")
    if exptime is not None and exptime <= 0:
        exptime = None
    if per_second and gain is not None:
        if exptime is None and needed:
            raise BadInput(f"{facts.where}: BUNIT says per second, but no EXPTIME says how many")
        gain = None if exptime is None else gain * exptime
    for value, what, flag in ((gain, "gain (GAIN", "gain"), (readnoise, "read noise (RDNOISE", "readnoise")):
        if value is None and needed:
            raise BadInput(
                f"{facts.where}: no {what}, or its A and B), which a single image needs for its variance; "
                f"give --{flag}, or variance and mask planes"
            )
    return gain, readnoise, exptime


def _zero_point(facts: _Facts, exptime: float | None) -> float | None:
    """Return the magnitude of one unit of the image."""
    magzero = facts.number("magzero", "MAGZERO")
    if magzero is None or facts.options.magzero_per == "exposure" or _unit(facts)[1]:
        return magzero
    if exptime is None:
        raise BadInput(
            f"{facts.where}: no EXPTIME, which a zero point per second (--magzero-per second) needs"
        )
    return magzero + 2.5 * math.log10(exptime)


def _wcs_text(facts: _Facts, shape: tuple[int, int]) -> str:
    """Return the celestial coordinates as header text, having checked that they work."""
    from astropy.io import fits

    header, unsupported = fits.Header(), []
    # An extension inherits from the primary header what it does not say itself.
    source = facts.header if "CTYPE1" in facts.header else facts.primary
    for card in source.cards:
        if _WCS_CARD.fullmatch(card.keyword):
            header[card.keyword] = card.value
        elif card.keyword.startswith(("CPDIS", "D2IMDIS")):
            unsupported.append(card.keyword)
    ctypes = " ".join(str(header.get(f"CTYPE{axis}", "")) for axis in (1, 2)).strip()
    if unsupported or re.search("TNX|ZPX", ctypes):
        what = unsupported[0] if unsupported else ctypes
        raise BadInput(
            f"{facts.where}: distortions as {what} has them are not supported; use TAN, SIP or TPV"
        )
    if not ctypes:
        raise BadInput(f"{facts.where}: has no WCS (no CTYPE1 and CTYPE2); solve its astrometry first")
    text = header.tostring(sep="\n", endcard=False, padding=False)
    try:
        wcs = parse_wcs(text)
        if not wcs.has_celestial:
            raise BadInput(f"{facts.where}: its WCS is not celestial ({ctypes})")
        centre = wcs.all_pix2world([[(shape[1] - 1) / 2, (shape[0] - 1) / 2]], 0)
        scale = wcs.pixel_scale_matrix
        # A matrix of zeros counts as none for wcslib, which then takes a pixel for a degree.
        stated = any(header[card] for card in header if re.match(r"CD\d_|CDELT", card))
        independent = abs(np.linalg.det(scale)) > 1e-6 * (scale**2).sum()
        usable = stated and independent and np.isfinite(centre).all()
    except BadInput:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{facts.where}: its WCS cannot be used ({reason})") from None
    if not usable:
        raise BadInput(f"{facts.where}: its WCS is singular: it does not map pixels to the sky one by one")
    return text


def parse_wcs(text: str):
    """Return the astropy.wcs.WCS that the header text of an :class:`ExposureRef` describes."""
    from astropy.io import fits
    from astropy.wcs import WCS

    with warnings.catch_warnings():
        # That an old keyword has been read as its successor is no news for whoever runs a pipeline.
        warnings.simplefilter("ignore")
        return WCS(fits.Header.fromstring(text, sep="\n"))


# --------------------------------------------------------------------------- reading


def read_exposure(ref: ExposureRef, verify: bool = True) -> Exposure:
    """Read the pixels of an exposure.

    NaN and infinity, a variance or an error that is not positive, and an
    inverse variance that is not positive are NO_DATA. Such pixels take the
    median of the image and of the variance (of a fixed sample), so that
    filters meet no NaN and no cliff there: only the mask tells.

    A single image has the variance max(image, 0) / gain + (readnoise / gain)^2,
    and its pixels from SATURATE on are SAT.

    Parameters
    ----------
    verify : check DATASUM and CHECKSUM where the headers have them

    Raises
    ------
    BadInput
        A file has gone, is truncated or corrupt, fails its checksum, or holds no pixel that can be used.
    """
    image = read_pixels(ref.image, ref.shape, verify).astype(np.float32, copy=False)
    mask = _our_mask(ref, image, verify)
    if ref.variance is None:
        variance = np.maximum(image, np.float32(0))
        variance /= np.float32(ref.gain)
        variance += np.float32((ref.readnoise / ref.gain) ** 2)
    else:
        variance = _our_variance(read_pixels(ref.variance, ref.shape, verify), ref.variance_is)
    empty = ~(np.isfinite(image) & (variance > 0) & (variance < np.inf))
    if empty.any():
        mask[empty] |= maskplanes.bits("NO_DATA")
    useful = (mask & _USELESS) == 0
    if not useful.any():
        raise BadInput(
            f"{ref.image.path}: {ref.name} has no pixel that can be used: all are masked, saturated or NaN"
        )
    if empty.any():
        image[empty] = _typical(image, useful)
        variance[empty] = _typical(variance, useful)
    return Exposure(ref, image, variance, mask)


def read_pixels(plane: Plane, shape: tuple[int, int], verify: bool) -> np.ndarray:
    """Return the pixels of a plane as a new array in the machine's byte order, scaled as its header says."""
    if not plane.path.exists():
        raise BadInput(f"{plane.path}: cannot read this exposure: it has gone")
    with _opened(plane.path) as hdus:
        if plane.hdu >= len(hdus):
            raise BadInput(f"{plane.path}: has changed since its headers were read: no extension {plane.hdu}")
        hdu = hdus[plane.hdu]
        if verify:
            _verify_sums(plane, hdu.fileinfo())
        data = hdu.data
        if data is None or data.shape != shape:
            raise BadInput(f"{plane.path}: has changed since its headers were read, or is truncated")
        return np.array(data, dtype=data.dtype.newbyteorder("="), order="C")


def _our_variance(values: np.ndarray, convention: str) -> np.ndarray:
    """Turn what a variance plane holds into a variance, float32; not positive or not finite: no data."""
    values = values.astype(np.float32, copy=False)
    if convention == "variance":
        return values
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if convention == "weight":
            return np.divide(np.float32(1), values, out=values)
        # The square of a negative error would look like a variance.
        return np.multiply(values, np.abs(values), out=values)


def _our_mask(ref: ExposureRef, image: np.ndarray, verify: bool) -> np.ndarray:
    """Return the mask of an exposure with our bits, int32."""
    if ref.mask is None:
        mask = np.zeros(ref.shape, np.int32)
        if ref.saturate is not None:
            mask[image >= np.float32(ref.saturate)] = maskplanes.bits("SAT")
        return mask
    values = read_pixels(ref.mask, ref.shape, verify)
    if values.dtype.kind not in "iu":
        # IRAF writes masks as floats at times; a NaN is no good pixel.
        values = np.where(np.isfinite(values), values, 1).astype(np.int64)
    if ref.mask_is == "planes":
        return maskplanes.remap(values, dict(ref.planes))
    if ref.mask_is == "any":
        return maskplanes.any_bad(values)
    return maskplanes.from_decam(values, codes=ref.mask_is == "codes")


def _typical(values: np.ndarray, useful: np.ndarray) -> np.float32:
    """Return the median of the useful pixels in a regular sample, or of all of them where it has none."""
    step = max(1, values.size // _SAMPLE)
    sample = values.reshape(-1)[::step][useful.reshape(-1)[::step]]
    return np.float32(np.median(sample if sample.size else values[useful]))


# --------------------------------------------------------------------------- checksums


def _verify_sums(plane: Plane, place: Mapping[str, int]) -> None:
    """Check DATASUM and CHECKSUM of an extension against its bytes on disk.

    The sums are those of the FITS standard 4.0, appendix J, over the bytes as
    they are: astropy's own check goes by the header as it writes it anew.
    """
    with open(plane.path, "rb") as file:
        magic = file.read(2)
    opener = gzip.open if magic == b"\x1f\x8b" else open
    with opener(plane.path, "rb") as file:
        file.seek(place["hdrLoc"])
        header = file.read(place["datLoc"] - place["hdrLoc"])
        stated = dict(re.findall(rb"(CHECKSUM|DATASUM )= '([^']*)'", header))
        stated = {name.decode().strip(): text.decode().strip() for name, text in stated.items()}
        if not any(stated.values()):
            return
        data_sum = 0
        for start in range(0, place["datSpan"], _PIECE):
            data_sum = _add_words(data_sum, file.read(min(_PIECE, place["datSpan"] - start)))
    if stated.get("DATASUM") and stated["DATASUM"] != str(data_sum):
        raise BadInput(
            f"{plane.path}: extension {plane.hdu} fails its DATASUM: pixels are corrupt; copy it again"
        )
    if stated.get("CHECKSUM") and _add_words(data_sum, header) not in (0, 2**32 - 1):
        raise BadInput(
            f"{plane.path}: extension {plane.hdu} fails its CHECKSUM: its header is corrupt; copy it again"
        )


def _add_words(total: int, data: bytes) -> int:
    """Add the big-endian words of 32 bits in `data` to a sum in ones' complement."""
    total += int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


# --------------------------------------------------------------------------- writing

#: Compression by name: ending of the file.
COMPRESSIONS = {"none": "", "rice": ".fz", "gzip": ".gz"}


def write_patch(
    path: str | Path,
    planes: Mapping[str, np.ndarray],
    wcs: str,
    cards: Mapping[str, object],
    history: Sequence[str] = (),
    compress: str = "none",
) -> Path:
    """Write planes of pixels as extensions of a FITS file, whole or not at all.

    The bytes depend on the arguments alone: nothing in the file tells the time.

    Parameters
    ----------
    path : to write, ``patch-0-1.fits``; it is replaced if there
    planes : extensions by name, in their order: (ny, nx) arrays. An extension MASK holds our planes and
        gets the MP_ cards that name them; BUNIT goes to IMAGE, and squared to VARIANCE.
    wcs : header text of the celestial coordinates, one card a line, which all extensions get
    cards : keyword: value or (value, comment), for the primary header. NaN and None are written as
        cards without a value.
    history : lines of HISTORY
    compress : "none"; "rice": by tiles, integers exactly, floats in steps of a sixteenth of the noise;
        "gzip": the whole file, exactly

    Returns
    -------
    Path
        What was written: `path` with the ending of its compression.

    Raises
    ------
    ValueError
        Planes of several shapes, or an unknown compression.
    """
    if len({plane.shape for plane in planes.values()}) != 1:
        raise ValueError(f"planes must have one shape, not {[plane.shape for plane in planes.values()]}")
    path = Path(str(path) + COMPRESSIONS[_known(compress)])
    with warnings.catch_warnings():
        # Long keywords and long comments are what HIERARCH and truncation are for.
        warnings.simplefilter("ignore")
        data = _file_bytes(_patch_hdus(planes, wcs, cards, history, compress))
    if compress == "gzip":
        from mpiimg.io.nifti import gzip_member

        data = gzip_member(data)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def _known(compress: str) -> str:
    if compress not in COMPRESSIONS:
        raise ValueError(f"compress is one of {', '.join(COMPRESSIONS)}, not {compress}")
    return compress


def _patch_hdus(planes, wcs, cards, history, compress):
    """Return the HDUs of a patch, without checksums."""
    from astropy.io import fits

    primary = fits.PrimaryHDU()
    for keyword, entry in cards.items():
        value, comment = entry if isinstance(entry, tuple) else (entry, None)
        if isinstance(value, float | np.floating) and not math.isfinite(value):
            value = None
        primary.header[keyword] = (value, comment)
    for line in history:
        primary.header["HISTORY"] = line
    unit = str(primary.header.get("BUNIT") or "")
    units = {"IMAGE": unit, "VARIANCE": unit and f"({unit})**2", "BACKGROUND": unit}
    hdus = [primary]
    for name, pixels in planes.items():
        header = fits.Header.fromstring(wcs, sep="\n")
        header["INHERIT"] = (True, "the primary header holds for this extension too")
        if units.get(name):
            header["BUNIT"] = units[name]
        if name == "MASK":
            header.extend(fits.Card(*card) for card in maskplanes.plane_cards())
        pixels = np.ascontiguousarray(pixels)
        if compress == "rice":
            # Minus one: the dither starts from a sum of the pixels, not from the clock.
            hdus.append(fits.CompImageHDU(pixels, header, name=name, quantize_method=1, dither_seed=-1))
        else:
            hdus.append(fits.ImageHDU(pixels, header, name=name))
    return fits.HDUList(hdus)


def _file_bytes(hdus) -> bytes:
    """Return the bytes of a file of these HDUs with their sums, whose comments tell no time."""
    from astropy.io import fits

    file = io.BytesIO()
    if any(isinstance(hdu, fits.CompImageHDU) for hdu in hdus):
        # Sums are those of the tables that compressed images are stored as.
        tables = io.BytesIO()
        hdus.writeto(tables)
        tables.seek(0)
        hdus = fits.open(tables, disable_image_compression=True)
    for hdu in hdus:
        hdu.add_checksum(when="FITS standard 4.0, appendix J")
    hdus.writeto(file)
    return file.getvalue()
