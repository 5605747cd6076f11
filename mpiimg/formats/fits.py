"""FITS images and cubes as arrays: "file.fits", "file.fits[SCI]", "file.fits[2]".

Axes are y x, z y x and so on, x being NAXIS1. Every rank reads its own part, of a tile-compressed image the
tiles that it needs; a gzipped file is read by one rank from front to back.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, box_slices
from mpiimg.engine.inputs import Reader
from mpiimg.engine.stage import Digested
from mpiimg.errors import BadInput
from mpiimg.formats.gz import gzip_head, gzip_part, gzip_tail
from mpiimg.formats.interface import FILE_AXES, Format, ResultArray, file_grid, gzipped_bytes, split
from mpiimg.formats.plain import AsTheyAre, OtherSign, PlainInput, Scaling, Values
from mpiimg.formats.sources import FileInput
from mpiimg.formats.space import Wcs, is_wcs, lost_distortions, wcs_cards

log = logging.getLogger("mpiimg")

#: Bytes of a block of a FITS file.
BLOCK = 2880

#: Types that FITS has no number for, and those that take their place.
WIDENED = {"bool": "uint8", "float16": "float32"}

#: BITPIX by the type of the numbers in the file.
BITPIX = {"uint8": 8, "int16": 16, "int32": 32, "int64": 64, "float32": -32, "float64": -64}

#: Zero points by which FITS has integers of the other sign.
OTHER_SIGN = {"int8": -(1 << 7), "uint16": 1 << 15, "uint32": 1 << 31, "uint64": 1 << 63}

#: Cards that say how the numbers lie in the file, or what they once were.
_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|GROUPS|EXTEND|EXTVER|EXTLEVEL|INHERIT|BSCALE|BZERO|BLANK|"
    r"CHECKSUM|DATASUM|DATAMIN|DATAMAX|LT[MV]\d.*|END|DP\d|D2IM.*|CPDIS\d|CPERR\d"
)

#: Cards of a WCS that say something without it too.
_OF_ANYTHING = re.compile(r"(DATE|MJD)-.*|TIMESYS|MJDREF.*|OBSGEO-.|EQUINOX|RADESYS|SPECSYS")


# --- In ---------------------------------------------------------------------------------------------------


def read(path: Path, name: str) -> PlainInput | FileInput:
    """Return an image of a file: that which is named, or the first one.

    Raises
    ------
    BadInput
        There is none, it is truncated, or its values are none.
    """
    file_path, which = split(path)
    with open(file_path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    with _opened(file_path) as hdus:
        number = _image_number(hdus, path, which)
        hdu = hdus[number]
        header, tiled = hdu.header, type(hdu).__name__ == "CompImageHDU"
        shape = tuple(map(int, hdu.shape))
        offset = None if tiled else int(hdu.fileinfo()["datLoc"])
    if tiled and gzipped:
        raise BadInput(f"{path}: is a compressed image in a compressed file; gunzip it")
    dtype = np.dtype({8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}[header["BITPIX"]])
    values = _values(header, path, dtype)
    kept = dtype if isinstance(values, AsTheyAre) else values.of(dtype)
    axes = _axes(len(shape))[::-1]
    array = Array(name, axes, shape, kept.newbyteorder("=").name)
    about = {"axes": axes, "space": _space(header, path), "attrs": _attrs(header)}
    said = header.tostring().encode("latin-1", "replace")
    if tiled:
        _check_tiles(file_path, number)
        source = FileInput(file_path, array, _Tiles(number, values), **about)
        source.__dict__["identity"] = {"dtype": array.dtype, "image": number, "header": zlib.crc32(said)}
        first = source.open()
        first.read(((0, 1),) * len(shape))  # what is wrong with the table of tiles shows here
        first.close()
        return source
    size, end = file_path.stat().st_size, offset + math.prod(shape) * dtype.itemsize
    if not gzipped and size < end:
        raise BadInput(f"{path}: truncated: {size} bytes where its header promises {end}; copy it again")
    return PlainInput(file_path, array, offset, dtype.str, said, values=values, gzipped=gzipped, **about)


def _check_tiles(path: Path, number: int) -> None:
    """Refuse a file that ends before the compressed tiles of an image do."""
    with _opened(path, disable_image_compression=True) as hdus:
        end = int(hdus[number].fileinfo()["datLoc"]) + int(hdus[number].size)
    size = path.stat().st_size
    if size < end:
        raise BadInput(f"{path}: truncated: {size} bytes where its header promises {end}; copy it again")


@contextlib.contextmanager
def _opened(path: Path, **options: Any) -> Iterator:
    """Open a file, whose pixels are not looked at; astropy's warnings are of what is said here better."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            hdus = fits.open(path, "readonly", do_not_scale_image_data=True, **options)
        except Exception as error:
            what = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(f"{path}: is no FITS file that can be read: {what}") from None
        with hdus:
            yield hdus


def _image_number(hdus, path: Path, which: str) -> int:
    """Return the number of the image that is meant.

    Raises
    ------
    BadInput
        There is none of this name, or number, or it is no image.
    """
    if not which:
        for number in itertools.takewhile(lambda one: _reaches(hdus, one), itertools.count()):
            if _is_image(hdus[number]):
                return number
        raise BadInput(f"{path}: has no image in it; {_those(hdus)}")
    key: Any = int(which) if re.fullmatch(r"\d+", which.strip()) else which.strip()
    if isinstance(key, str) and re.fullmatch(r".+,\s*\d+", key):
        extension, version = key.rsplit(",", 1)
        key = (extension.strip(), int(version))
    try:
        number = hdus.index_of(key)
        hdu = hdus[number]
    except (KeyError, IndexError):
        raise BadInput(f"{path}: there is no image {which} in it; {_those(hdus)}") from None
    if not _is_image(hdu):
        raise BadInput(f"{path}: is no image; {_those(hdus)}")
    return number


def _reaches(hdus, number: int) -> bool:
    """Say whether a file has an HDU of this number; those behind it are not looked for."""
    try:
        return hdus[number] is not None
    except IndexError:
        return False


def _is_image(hdu) -> bool:
    image = getattr(hdu, "is_image", False) and type(hdu).__name__ != "GroupsHDU"
    return bool(image and hdu.shape and min(hdu.shape) > 0)


def _those(hdus) -> str:
    """Say which images there are."""
    names = [
        f"{number} ({hdu.name})" if hdu.name else str(number)
        for number, hdu in enumerate(hdus)
        if _is_image(hdu)
    ]
    return f"there are {', '.join(names)}" if names else "there are none with pixels"


def _axes(count: int) -> tuple[str, ...]:
    """Return names of axes in the order of the header, NAXIS1 first."""
    return (*FILE_AXES[:count], *(f"d{number}" for number in range(len(FILE_AXES), count)))


def _values(header, path: Path, dtype: np.dtype) -> Values:
    """Return what makes values of the numbers in the file, as BSCALE, BZERO and BLANK say."""
    try:
        slope, zero = float(header.get("BSCALE", 1)), header.get("BZERO", 0)
        inter, blank = float(zero), header.get("BLANK") if dtype.kind in "iu" else None
        blank = None if blank is None else int(blank)
    except (TypeError, ValueError):
        raise BadInput(f"{path}: BSCALE, BZERO or BLANK in its header is no number; write it again") from None
    if not np.isfinite([slope, inter]).all():
        raise BadInput(
            f"{path}: BSCALE {slope} and BZERO {inter} in its header make no sense; write it again"
        )
    other = OtherSign()
    if dtype.kind in "iu" and slope == 1 and blank is None and zero == OTHER_SIGN.get(other.of(dtype).name):
        return other
    if (slope, inter, blank) == (1.0, 0.0, None):
        return AsTheyAre()
    return Scaling(slope, inter, blank)


def _space(header, path: Path) -> Wcs | None:
    """Return where the pixels lie; what cannot be kept of it is said."""
    text = wcs_cards(header)
    lost = lost_distortions(header)
    if lost:
        names = ", ".join(lost[:4])
        log.warning("warning: %s: of its WCS the distortions in tables (%s) are left out", path, names)
    if not text:
        return None
    numbers = [int(one) for one in re.findall(r"^(?:CTYPE|CRPIX|CRVAL|CDELT|CUNIT)(\d+)", text, re.M)]
    count = max(int(header["NAXIS"]), int(header.get("WCSAXES", 0)), *numbers)
    return Wcs(_axes(count), text)


def _attrs(header) -> dict[str, Any]:
    """Return the cards of a header by their keywords; of those that stand several times a list."""
    attrs: dict[str, Any] = {}
    for card in header.cards:
        try:
            key, value = card.keyword, card.value
        except Exception:
            continue  # a card that astropy cannot read
        if key in ("COMMENT", "HISTORY"):
            attrs.setdefault(key, []).append(str(value))
        elif key and isinstance(value, str | bool | int | float):
            attrs[key] = value
    return attrs


@dataclass(frozen=True)
class _Tiles:
    """Opens a tile-compressed image by its number."""

    number: int
    values: Values

    def __call__(self, path: Path) -> Reader:
        from astropy.io import fits

        return TiledImage(
            path,
            fits.open(path, "readonly", memmap=True, do_not_scale_image_data=True),
            self.number,
            self.values,
        )


@dataclass(frozen=True)
class TiledImage:
    """An open tile-compressed image; a :class:`mpiimg.engine.inputs.Reader`."""

    path: Path
    hdus: Any
    number: int
    values: Values

    def read(self, box: Box) -> np.ndarray:
        """Return the pixels of a box; the tiles that it touches are decompressed.

        Raises
        ------
        BadInput
            They cannot be.
        """
        try:
            block = np.asarray(self.hdus[self.number].section[box_slices(box)])
        except (MemoryError, OSError):
            raise
        except Exception as error:  # whatever astropy makes of damaged tables and tiles
            what = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(
                f"{self.path}: damaged: a tile cannot be decompressed ({what}); copy it again"
            ) from None
        native = np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("="))
        return self.values(native)

    def close(self) -> None:
        """Release the file."""
        self.hdus.close()


# --- Out --------------------------------------------------------------------------------------------------


class FitsWriter:
    """An image in the primary HDU of a file; a :class:`mpiimg.formats.interface.PlacedWriter`.

    The axes of a WCS come first, in the order of its header, and one that the array does not have stands
    there with length 1. Without a WCS x and y come first, where there are both, and else the last axis.

    Parameters
    ----------
    result : ResultArray
        Its `attrs` whose names are keywords become cards, but for those of the structure of the file.

    Raises
    ------
    BadInput
        FITS has no such values.
    """

    def __init__(self, result: ResultArray):
        if split(result.name)[1]:
            raise BadInput(f"{result.name}: a FITS file is written with one image; name each by a file")
        kind = np.dtype(WIDENED.get(result.dtype, result.dtype))
        self._zero = OTHER_SIGN.get(kind.name)
        stored = OtherSign().of(kind) if self._zero is not None else kind
        if stored.name not in BITPIX:
            what = "complex values" if kind.kind == "c" else f"values of type {result.dtype}"
            raise BadInput(f"{result.name}: FITS has no {what}; write its parts, or change it by astype")
        self.dtype = stored.newbyteorder(">")
        self._result = result
        self._wcs = result.space if isinstance(result.space, Wcs) else None
        self._names = _dimensions(result, self._wcs)
        self.axes = tuple(axis for axis in reversed(self._names) if axis in result.axes)
        shape = tuple(result.sizes[axis] for axis in self.axes)
        self.grid = file_grid(self.axes, shape, stored.itemsize)
        self._size = math.prod(shape) * stored.itemsize

    @property
    def offset(self) -> int:
        """Bytes of the header."""
        return len(self.head())

    def head(self) -> bytes:
        """Return the header."""
        from astropy.io.fits import Header

        if self._result.dtype == "float16":
            log.warning("warning: %s: FITS has no float16: written as float32", self._result.name)
        header = Header()
        header["SIMPLE"] = (True, "conforms to FITS standard")
        header["BITPIX"] = BITPIX[self.dtype.newbyteorder("=").name]
        header["NAXIS"] = len(self._names)
        for number, axis in enumerate(self._names, 1):
            header[f"NAXIS{number}"] = self._result.sizes.get(axis, 1)
        if self._zero is not None:
            header["BSCALE"], header["BZERO"] = 1, self._zero
        for card in self._space_cards():
            header.append(card, end=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key, value in self._result.attrs.items():
                _add(header, key, value)
            return header.tostring().encode("ascii", "replace")

    def tail(self) -> bytes:
        """Return what fills the last block of the file."""
        return bytes(-self._size % BLOCK)

    def stored(self, block: np.ndarray) -> np.ndarray:
        """Return the numbers of a block as they are in the file, but for their byte order."""
        return OtherSign()(block) if self._zero is not None else block

    def _space_cards(self) -> list:
        """Return the cards of the WCS, for all axes of the file."""
        if self._wcs is None:
            return []
        cards = self._wcs.cards()
        further = range(len(self._wcs.axes) + 1, len(self._names) + 1)
        if "WCSAXES" in cards and further:
            cards["WCSAXES"] = len(self._names)
        if any(re.fullmatch(r"CD\d+_\d+", key) for key in cards):
            for number in further:
                cards[f"CD{number}_{number}"] = 1.0
        return list(cards.cards)


class FitsGzWriter(FitsWriter):
    """An image in a gzipped file; a :class:`mpiimg.formats.interface.Writer`: one gzip member."""

    def __init__(self, result: ResultArray):
        super().__init__(result)
        self.chunk_bytes = gzipped_bytes(self.grid, self.axes, result, self.dtype.itemsize) + BLOCK

    def head(self) -> Digested:
        """Return the header, compressed."""
        return gzip_head(super().head())

    def encode(self, chunk, block: np.ndarray) -> Digested:
        """Return the bytes of a chunk, compressed; those of the last one fill its block of the file."""
        data = np.ascontiguousarray(self.stored(block), dtype=self.dtype).tobytes()
        return gzip_part(data + (super().tail() if chunk.number == len(self.grid) - 1 else b""))

    def tail(self, digests: Sequence[tuple[int, int]]) -> bytes:
        """Return the checksum and the length of all that is compressed."""
        return gzip_tail(digests)


def _dimensions(result: ResultArray, wcs: Wcs | None) -> tuple[str, ...]:
    """Return the names of NAXIS1, NAXIS2 and so on; those that the array does not have are of length 1."""
    axes = result.axes
    first = ("x", "y", *(("z",) if "z" in axes else ())) if {"x", "y"} <= set(axes) else ()
    if wcs is not None and set(wcs.axes) & set(axes):
        first = wcs.axes
    others = [axis for axis in axes if axis not in first]
    present = [axis for axis in first if axis in axes]
    slowest_first = not present or [axis for axis in axes if axis in present] != present or len(present) == 1
    names = [*first, *(others[::-1] if slowest_first else others)]
    while names and names[-1] not in axes:
        names.pop()
    return tuple(names) or ("x",)


def _add(header, key: str, value: Any) -> None:
    """Add a card of what is known of an array, if it can be one and says nothing of the structure."""
    if key in ("COMMENT", "HISTORY") and isinstance(value, list | tuple):
        for line in value:
            header.add_history(str(line)) if key == "HISTORY" else header.add_comment(str(line))
        return
    if not re.fullmatch(r"[A-Z0-9_-]{1,8}|[A-Z0-9_ -]{9,60}", key) or key in header:
        return
    if _STRUCTURE.fullmatch(key) or (is_wcs(key) and not _OF_ANYTHING.fullmatch(key)):
        return
    finite = not isinstance(value, float) or np.isfinite(value)
    if isinstance(value, str | bool | int | float) and finite:
        try:
            header[key if len(key) <= 8 and " " not in key else f"HIERARCH {key}"] = value
        except ValueError:
            return  # text that no card can hold


FITS = Format("FITS image", read, FitsWriter)
COMPRESSED = Format("tile-compressed FITS image", read)
FITS_GZ = Format("gzipped FITS image", read, FitsGzWriter, parallel=False)
