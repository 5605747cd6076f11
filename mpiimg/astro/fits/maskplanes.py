"""Mask planes: their names and bits, how FITS headers name them, and how foreign masks become ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

#: Bit number of each plane. Those up to NO_DATA are the ones that LSST's afw always defines, with its
#: numbers; it hands out later bits as they are asked for, so a reader goes by the MP_ cards, as we do.
MASK_PLANES = {
    "BAD": 0,
    "SAT": 1,
    "INTRP": 2,
    "CR": 3,
    "EDGE": 4,
    "DETECTED": 5,
    "DETECTED_NEGATIVE": 6,
    "SUSPECT": 7,
    "NO_DATA": 8,
    "CLIPPED": 9,
    "REJECTED": 10,
}

#: Planes that other programs write, by the one of ours that says the same to a coadd.
ALIASES = {
    "SATURATED": "SAT",
    "INTERPOLATED": "INTRP",
    "SENSOR_EDGE": "EDGE",
    "UNMASKEDNAN": "NO_DATA",
    "CROSSTALK": "SUSPECT",
    "VIGNETTED": "SUSPECT",
    "PARTLY_VIGNETTED": "SUSPECT",
    "STREAK": "SUSPECT",
    "SPIKE": "SUSPECT",
}

#: Planes of others that say nothing about whether a pixel can be used.
IGNORED_PLANES = (
    "BRIGHT_OBJECT",
    "NOT_DEBLENDED",
    "INEXACT_PSF",
    "INJECTED",
    "INJECTED_TEMPLATE",
)

#: Masks are looked up in a table where their bits are no more than these.
_TABLE_BITS = 16


def bits(*names: str) -> int:
    """Return the value of a pixel that is in all of these planes, and in no other."""
    return sum(1 << MASK_PLANES[name] for name in set(names))


def no_data(shape: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, variance and mask without data: float32 NaN, float32 infinity, int32 NO_DATA."""
    return (
        np.full(shape, np.nan, np.float32),
        np.full(shape, np.inf, np.float32),
        np.full(shape, bits("NO_DATA"), np.int32),
    )


def plane_cards(planes: Mapping[str, int] = MASK_PLANES) -> list[tuple[str, int, str]]:
    """Return the header cards (keyword, bit number, comment) that name the planes of a mask.

    Keywords above eight characters are ESO HIERARCH cards, as LSST writes them.
    """
    cards = []
    for name, bit in planes.items():
        keyword = f"MP_{name}"
        cards.append((keyword if len(keyword) <= 8 else f"HIERARCH {keyword}", bit, "bit of the mask plane"))
    return cards


def planes_of(header: Mapping) -> dict[str, int]:
    """Return name and bit number of the planes that a header's MP_ cards name; empty without any.

    Raises
    ------
    ValueError
        A card holds no bit number.
    """
    planes = {}
    for keyword in header:
        if keyword.startswith("MP_"):
            bit = header[keyword]
            if isinstance(bit, bool) or not isinstance(bit, int | np.integer) or not 0 <= bit < 32:
                raise ValueError(f"{keyword} = {bit!r} is no bit number from 0 to 31")
            planes[keyword[3:]] = int(bit)
    return planes


def remap(mask: np.ndarray, planes: Mapping[str, int]) -> np.ndarray:
    """Turn a mask with other bit numbers into one with ours.

    Parameters
    ----------
    mask : array of any integer type
    planes : name and bit number of each plane of `mask`

    Returns
    -------
    array of int32, of the same shape
        Planes are matched by name, or by what they mean (`ALIASES`). Bits that
        have no name, or a name we do not know, become SUSPECT: nobody said that
        such a pixel is good. Planes in `IGNORED_PLANES` are dropped.
    """
    targets = {}
    for name, bit in planes.items():
        ours = ALIASES.get(name, name)
        targets[bit] = 0 if name in IGNORED_PLANES else bits(ours if ours in MASK_PLANES else "SUSPECT")
    return _translate(mask, targets, unknown=bits("SUSPECT"))


def any_bad(mask: np.ndarray) -> np.ndarray:
    """Turn a mask whose bits have no known meaning into one with ours: what is not zero is BAD.

    Returns int32, of the same shape.
    """
    return np.multiply(mask != 0, bits("BAD"), dtype=np.int32)


def version_of(text: str) -> tuple[int, int]:
    """Return the version of a pipeline that a card says, as "V4.8.2a": (4, 8).

    Raises
    ------
    ValueError
        There is none in it.
    """
    number = re.search(r"(\d+)\.(\d+)", text)
    if number is None:
        raise ValueError(f"PLVER = {text!r} holds no version number")
    return int(number[1]), int(number[2])


def _bit_of(plane: str) -> int:
    """Return the value of a pixel that is in this plane, 0 where there is none, ""."""
    return bits(plane) if plane else 0


def from_bits(mask: np.ndarray, planes: Mapping[int, str], unlisted: str) -> np.ndarray:
    """Turn a mask whose bits are known by their values into one with ours.

    Parameters
    ----------
    mask : array of any integer type
    planes : mapping of int to str
        The plane of ours that each bit stands for; "" for those that say nothing against a pixel.
    unlisted : str
        Likewise, of all other bits.

    Returns
    -------
    array of int32, of the same shape
    """
    table = {value.bit_length() - 1: _bit_of(name) for value, name in planes.items()}
    return _translate(mask, table, unknown=_bit_of(unlisted))


def from_codes(mask: np.ndarray, planes: Mapping[int, str], unlisted: str) -> np.ndarray:
    """Turn a mask of one code per pixel, 0 for good ones, into one with our bits; as :func:`from_bits`."""
    other = _bit_of(unlisted)
    table = np.full(max(planes, default=0) + 2, other, np.int32)
    table[0] = 0
    for code, name in planes.items():
        table[code] = _bit_of(name)
    last = len(table) - 1
    # A negative code, too, is one that nobody documents.
    return table[np.where((mask < 0) | (mask > last), last, mask).astype(np.intp)]


def count_bits(mask: np.ndarray) -> dict[int, int]:
    """Return in how many pixels each bit of a mask is set, by its value, for those that are set anywhere."""
    mask = np.asarray(mask)
    used = int(np.bitwise_or.reduce(mask, axis=None)) if mask.size else 0
    width = 8 * mask.dtype.itemsize
    values = [1 << bit for bit in range(width) if used >> bit & 1]
    return {
        value: int(np.count_nonzero(mask & mask.dtype.type(value)))
        for value in values
        if value < 1 << (width - 1)
    }


def _translate(mask: np.ndarray, targets: Mapping[int, int], unknown: int) -> np.ndarray:
    """Replace each bit of a mask by the value that `targets` gives for its number, else by `unknown`."""
    mask = np.asarray(mask)
    used = int(np.bitwise_or.reduce(mask, axis=None)) if mask.size else 0
    numbers = [bit for bit in range(8 * mask.dtype.itemsize) if used >> bit & 1]
    if all(targets.get(bit, unknown) == 1 << bit for bit in numbers):
        return mask.astype(np.int32)
    if 0 <= used < 1 << _TABLE_BITS:
        values = np.arange(used + 1, dtype=np.int32)
        return _translate_bits(values, numbers, targets, unknown)[mask]
    return _translate_bits(mask, numbers, targets, unknown)


def _translate_bits(mask: np.ndarray, numbers: Iterable[int], targets, unknown: int) -> np.ndarray:
    out = np.zeros(mask.shape, np.int32)
    for bit in numbers:
        out |= ((mask >> mask.dtype.type(bit)) & mask.dtype.type(1)).astype(np.int32) * np.int32(
            targets.get(bit, unknown)
        )
    return out
