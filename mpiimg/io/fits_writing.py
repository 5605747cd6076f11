"""Planes of pixels out, as a FITS file whose bytes follow from its content alone."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mpiimg.io import maskplanes

#: Compression by name: ending of the file.
COMPRESSIONS = {"none": "", "rice": ".fz", "gzip": ".gz"}


def write_planes(
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
        data = _file_bytes(_hdus(planes, wcs, cards, history, compress))
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


def _hdus(planes, wcs, cards, history, compress):
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
