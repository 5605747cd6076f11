"""Planes of pixels out, as a FITS file whose bytes follow from its content alone."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mpiimg.astro.fits import maskplanes
from mpiimg.astro.fits.structure import SUMMED
from mpiimg.engine.names import shown
from mpiimg.version import __version__

#: Ending of a file whose planes are compressed, beside ".fits".
COMPRESSED = ".fz"

#: Letters of a line of HISTORY.
_LINE = 72


def history_lines(step: str, text: str) -> tuple[str, ...]:
    """Return the lines of HISTORY that say what a step did: each fits a card and begins alike."""
    begin = f"mpiimg {__version__} {step}: "
    return tuple(begin + line for line in textwrap.wrap(text, _LINE - len(begin)))


def card_text(text: str) -> str:
    """Return text as a card may hold it: letters of ASCII that print; others as Python escapes them."""
    return shown(text).encode("ascii", "backslashreplace").decode()


def own_history(header) -> tuple[str, ...]:
    """Return the lines of HISTORY that :func:`history_lines` once made, and none of other programs."""
    return tuple(line for line in map(str, header.get("HISTORY", ())) if line.startswith("mpiimg "))


def write_planes(
    path: str | Path, planes: Mapping[str, np.ndarray], wcs: str, cards: Mapping[str, object]
) -> None:
    """Write planes of pixels as extensions of a FITS file.

    The bytes depend on the arguments alone: nothing in the file tells the time.

    A file that ends in ".fz" is compressed by Rice in tiles of a row, as fpack does it. Integers come back
    exactly; floats in steps of a sixteenth of their row's noise, dithered, so that means are kept, and 0 as
    0. NaN stays; infinity becomes NaN, since it would take the finite values of its row with it.

    Parameters
    ----------
    path : str or Path
        The file, ``patch-0-1.fits`` or ``patch-0-1.fits.fz``; it is replaced if there.
    planes : mapping of str to (ny, nx) array
        Extensions by name, in their order. An extension MASK holds our planes and gets the MP_ cards that
        name them; BUNIT goes to IMAGE and BACKGROUND, squared to VARIANCE, and its inverse to WEIGHT.
    wcs : str
        Header text of the celestial coordinates, one card per line, which all extensions get.
    cards : mapping
        Values, or (value, comment), by keyword, for the primary header; HISTORY has lines. NaN and None are
        written as cards without a value.

    Raises
    ------
    ValueError
        Planes of several shapes.
    """
    if len({plane.shape for plane in planes.values()}) != 1:
        raise ValueError(f"planes must have one shape, not {[plane.shape for plane in planes.values()]}")
    path = Path(path)
    with warnings.catch_warnings():
        # Long keywords and long comments are what HIERARCH and truncation are for.
        warnings.simplefilter("ignore")
        data = _file_bytes(_hdus(planes, wcs, cards, path.suffix == COMPRESSED))
    path.write_bytes(data)


def _hdus(planes, wcs, cards, compress: bool):
    """Return the HDUs of a file, without checksums."""
    from astropy.io import fits

    primary = fits.PrimaryHDU()
    for keyword, entry in cards.items():
        if keyword == "HISTORY":
            for line in entry:
                primary.header[keyword] = card_text(line)
            continue
        value, comment = entry if isinstance(entry, tuple) else (entry, None)
        if isinstance(value, float | np.floating) and not math.isfinite(value):
            value = None
        if isinstance(value, str):
            value = card_text(value)
        primary.header[keyword] = (value, comment)
    units = _units(str(primary.header.get("BUNIT") or ""))
    hdus = [primary]
    for name, pixels in planes.items():
        header = fits.Header.fromstring(wcs, sep="\n")
        header["INHERIT"] = (True, "the primary header holds for this extension too")
        if units.get(name):
            header["BUNIT"] = units[name]
        if name == "MASK":
            header.extend(fits.Card(*card) for card in maskplanes.plane_cards())
        pixels = np.ascontiguousarray(pixels)
        if compress:
            if pixels.dtype.kind == "f":
                pixels = np.where(np.isinf(pixels), pixels.dtype.type(np.nan), pixels)
            # Two: with a dither that leaves zeros alone, which in a WEIGHT say that there are no data. Minus
            # one: it starts from a sum of the pixels, not from the clock.
            hdus.append(fits.CompImageHDU(pixels, header, name=name, quantize_method=2, dither_seed=-1))
        else:
            hdus.append(fits.ImageHDU(pixels, header, name=name))
    return fits.HDUList(hdus)


def _units(unit: str) -> dict[str, str]:
    """Return BUNIT of each plane, as the FITS standard writes units."""
    from astropy.units import Unit

    if not unit:
        return {}
    if unit.isalpha():
        square, inverse = f"{unit}2", f"{unit}-2"
    else:
        try:
            parsed = Unit(unit, format="fits")
            square, inverse = (parsed**2).to_string("fits"), (parsed**-2).to_string("fits")
        except ValueError:
            square, inverse = f"({unit})**2", f"({unit})**-2"
    return {"IMAGE": unit, "BACKGROUND": unit, "VARIANCE": square, "VARIANCE_LS": square, "WEIGHT": inverse}


def _file_bytes(hdus) -> bytes:
    """Return the bytes of a file of these HDUs with their sums, whose comments tell no time."""
    from astropy.io import fits

    file = io.BytesIO()
    if any(isinstance(hdu, fits.CompImageHDU) for hdu in hdus):
        # Sums are those of the tables that compressed images are stored as.
        tables = io.BytesIO()
        hdus.writeto(tables)
        hdus = fits.open(io.BytesIO(_without_times(tables)), disable_image_compression=True)
    for hdu in hdus:
        hdu.add_checksum(when=SUMMED)
    hdus.writeto(file)
    return file.getvalue()


def _without_times(tables: io.BytesIO) -> bytearray:
    """Return the bytes of compressed planes without times.

    Rows whose floats cannot be quantized, such as those without data, are members of gzip, which astropy
    writes with the time of day.
    """
    from astropy.io import fits

    data = bytearray(tables.getvalue())
    tables.seek(0)
    with fits.open(tables, disable_image_compression=True) as hdus:
        for hdu in hdus[1:]:
            place = hdu.data.dtype.fields.get("GZIP_COMPRESSED_DATA")
            if place is None:
                continue
            descriptor, offset = place[:2]
            start, rows, width = hdu.fileinfo()["datLoc"], hdu.header["NAXIS2"], hdu.header["NAXIS1"]
            table = np.frombuffer(data, np.uint8, rows * width, start).reshape(rows, width)
            entries = np.ascontiguousarray(table[:, offset : offset + descriptor.itemsize])
            heap = start + hdu.header.get("THEAP", rows * width)
            for length, first in entries.view(descriptor.base).reshape(rows, 2).tolist():
                if length:
                    data[heap + first + 4 : heap + first + 8] = bytes(4)
            del table
    return data
