"""FITS files on disk: the headers of all their images, checked to be whole, and the pixels of one.

Headers, pixels and sums are read by astropy; what it warns of, or raises in many ways, becomes one line.
"""

from __future__ import annotations

import contextlib
import re
import stat
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.astro.fits.structure import Part, Promised, add_words, compression, open_plain, parts_of
from mpiimg.engine.containment import ends_run
from mpiimg.errors import BadInput

#: Bytes of a file that are held while sums are checked.
_PIECE = 1 << 24


@dataclass(frozen=True)
class Plane:
    """Where pixels lie: number `hdu` (the primary is 0) of a file, which is read up to `end`."""

    path: Path
    hdu: int
    end: int


@dataclass(frozen=True)
class Extension:
    """An image of a file: its place, header, EXTNAME in upper case, EXTVER and shape (ny, nx).

    `edited` says that its header was changed after its CHECKSUM was written.
    """

    plane: Plane
    header: object
    name: str
    version: int
    shape: tuple[int, int]
    edited: bool = False


@dataclass(frozen=True)
class FitsFile:
    """What the headers of a file say: the primary header, all two-dimensional images, and where it ends."""

    path: Path
    size: int
    mtime: int
    primary: object
    images: tuple[Extension, ...]
    end: int

    def identity(self, *used: Extension | None) -> tuple[int, int, int]:
        """Return size, time, and the checksum of the primary header and of those of images used."""
        headers = [self.primary, *(extension.header for extension in used if extension is not None)]
        text = "".join(header.tostring() for header in headers)
        return self.size, self.mtime, zlib.crc32(text.encode(errors="surrogateescape"))


def read_headers(path: Path) -> FitsFile:
    """Read all headers of a file, and check that the file is as long as they say."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path}: is no file; name FITS files")
        parts = parts_of(path)
    except OSError as error:
        if ends_run(error):
            raise
        raise BadInput(f"{path}: cannot read this exposure: {error.strerror}") from None
    from astropy.io import fits

    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    images = []
    with _opened(path, parts[-1].end) as hdus:
        for number, hdu in enumerate(hdus):
            header = hdu.header
            if isinstance(hdu, kinds) and _is_plane(header):
                images.append(
                    Extension(
                        Plane(path, number, parts[-1].end),
                        header,
                        str(header.get("EXTNAME", "")).strip().upper(),
                        header.get("EXTVER", 1),
                        (int(header["NAXIS2"]), int(header["NAXIS1"])),
                        number < len(parts) and parts[number].edited,
                    )
                )
        primary = hdus[0].header
    _refuse_edited(path, parts)
    return FitsFile(path, status.st_size, status.st_mtime_ns, primary, tuple(images), parts[-1].end)


def _is_plane(header) -> bool:
    """Say whether an image has two dimensions with pixels, and no more than one pixel in any other."""
    lengths = [header.get(f"NAXIS{axis}", 0) for axis in range(1, header.get("NAXIS", 0) + 1)]
    return len(lengths) >= 2 and lengths[0] * lengths[1] > 0 and all(length == 1 for length in lengths[2:])


def refuse_scaling(extension: Extension) -> None:
    """Refuse an image that its header scales to nothing, or by what is no number."""
    for keyword, allowed in (("BSCALE", lambda value: value != 0), ("BZERO", lambda value: True)):
        value = extension.header.get(keyword, 1)
        number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
        if not (number and allowed(value)):
            raise BadInput(
                f"{extension.plane.path}: corrupt: {keyword} of extension {extension.plane.hdu} is {value!r}"
            )


@contextlib.contextmanager
def _opened(path: Path, end: int):
    """Open a FITS file with astropy; what it only warns of, or raises in many ways, becomes BadInput.

    astropy sees the file up to `end`.
    """
    from astropy.io import fits

    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter("always")
        try:
            whole = compression(path) is None and path.stat().st_size <= end
            source = path if whole else stack.enter_context(Promised(path, end))
            with fits.open(source) as hdus:
                len(hdus)  # reads all headers
                for warning in map(str, (entry.message for entry in caught)):
                    if "Error validating header" in warning or "truncated" in warning:
                        raise BadInput(
                            f"{path}: truncated or corrupt: an extension is cut short; copy it again"
                        )
                yield hdus
        except BadInput:
            raise
        except Exception as error:
            if ends_run(error):
                raise
            if str(error).startswith(("No SIMPLE", "Empty or corrupt")):
                raise BadInput(f"{path}: is not a FITS file") from None
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(f"{path}: truncated or corrupt ({reason}); copy it again") from None


def read_pixels(plane: Plane, shape: tuple[int, int], verify: bool) -> np.ndarray:
    """Return the pixels of a plane as a new array in the machine's byte order, scaled as its header says."""
    if not plane.path.exists():
        raise BadInput(f"{plane.path}: cannot read this exposure: it has gone")
    with _opened(plane.path, plane.end) as hdus:
        if plane.hdu >= len(hdus):
            raise BadInput(f"{plane.path}: has changed since its headers were read: no extension {plane.hdu}")
        hdu = hdus[plane.hdu]
        if verify:
            _verify_sums(plane, hdu.fileinfo())
        # Of another size it would take memory that no plan knows of.
        if tuple(hdu.header.get(f"NAXIS{axis}") for axis in (2, 1)) != shape:
            raise BadInput(f"{plane.path}: has changed since its headers were read, or is truncated")
        with np.errstate(all="ignore"):
            data = hdu.data
        if data is not None and data.ndim > 2:
            data = data.reshape(data.shape[-2:]) if data.size == data.shape[-1] * data.shape[-2] else data
        if data is None or data.shape != shape:
            raise BadInput(f"{plane.path}: has changed since its headers were read, or is truncated")
        if data.dtype.kind not in "biuf":
            raise BadInput(f"{plane.path}: extension {plane.hdu} holds {data.dtype}, not numbers")
        return np.array(data, dtype=data.dtype.newbyteorder("="), order="C")


def _verify_sums(plane: Plane, place: Mapping[str, int]) -> None:
    """Check DATASUM of an extension against its bytes on disk, or CHECKSUM where there is no DATASUM.

    The sums are those of the FITS standard 4.0, appendix J, over the bytes as
    they are: astropy's own check goes by the header as it writes it anew. A
    CHECKSUM that goes with the DATASUM is looked at when headers are read: many
    programs change cards and leave old sums behind.
    """
    with open_plain(plane.path) as file:
        file.seek(place["hdrLoc"])
        header = file.read(place["datLoc"] - place["hdrLoc"])
        stated = dict(re.findall(rb"(CHECKSUM|DATASUM )= '([^']*)'", header))
        stated = {name.decode().strip(): text.decode().strip() for name, text in stated.items()}
        if not any(stated.values()):
            return
        data_sum = 0
        for start in range(0, place["datSpan"], _PIECE):
            data_sum = add_words(data_sum, file.read(min(_PIECE, place["datSpan"] - start)))
    if stated.get("DATASUM"):
        fails = "DATASUM" if stated["DATASUM"] != str(data_sum) else ""
    else:
        fails = "CHECKSUM" if add_words(data_sum, header) not in (0, 2**32 - 1) else ""
    if fails:
        raise BadInput(
            f"{plane.path}: extension {plane.hdu} fails its {fails}: its pixels are corrupt, or were changed "
            "by a program that left the old sum behind; copy it again, or give --no-checksums if you know "
            "that they are right"
        )


def _refuse_edited(path: Path, parts: tuple[Part, ...]) -> None:
    """Refuse a header whose CHECKSUM mpiimg wrote, and which is another now.

    Where pixels lie, and what a count is worth, stand there alone. Headers of others, in which many programs
    change cards and leave old sums behind, are taken as they are.
    """
    number = next((number for number, part in enumerate(parts) if part.ours and part.edited), None)
    if number is not None:
        which = "its primary header" if number == 0 else f"the header of extension {number}"
        raise BadInput(
            f"{path}: {which} fails the CHECKSUM that mpiimg wrote; copy it again, make it again, "
            "or, if you have changed it on purpose, write new sums (astropy: checksum=True)"
        )
