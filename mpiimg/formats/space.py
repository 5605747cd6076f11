"""Where the voxels of an array lie: an affine (NIfTI) or a WCS (FITS), by the names of the axes.

A space does not know the order in which an array has its axes, nor their lengths: it follows slices, flips,
coarsening and padding axis by axis, and a transposition changes nothing. All of these are one thing: index i
of the new array lies where index ``first + step * i`` of the old one lay.

- A **slice** ``start::step`` has step `step`, negative where it flips; the positions are those of the samples
  that are taken. (astropy's ``wcs[::2]`` means that pixels are joined: that is :meth:`coarsened` here.)
- **Coarsening** by f moves centres by (f - 1) / 2 voxels.
- An axis that is **dropped by index** leaves the space at that index. A NIfTI that is written has it again at
  its place, with length 1; so has a FITS file whose other axes depend on it, such as a column of an image of
  the sky. Where they do not, as of the frequency of a cube, it is gone from the header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Affine:
    """Indices along x, y and z to millimetres.

    Parameters
    ----------
    axes : tuple of str
        The axes that its columns are of, e.g. ("x", "y", "z"): the order of a NIfTI's dimensions.
    matrix : (4, 4) of float
        The affine that readers use: that of the sform where it has a code, else that of the qform.
    units : (str, str)
        Of lengths and of time, as nibabel names them, e.g. ("mm", "sec").
    codes : (int, int)
        Of qform and sform; 0 for unknown.
    qform : (4, 4) of float, optional
        That of the qform, where it is another one.
    steps : tuple of (str, float, float)
        Axis, step and offset of further axes, such as the repetition time along t.
    """

    axes: tuple[str, ...]
    matrix: Matrix
    units: tuple[str, str] = ("unknown", "unknown")
    codes: tuple[int, int] = (0, 0)
    qform: Matrix | None = None
    steps: tuple[tuple[str, float, float], ...] = ()

    def __post_init__(self):
        set_field = object.__setattr__
        set_field(self, "axes", tuple(self.axes))
        set_field(self, "units", tuple(map(str, self.units)))
        set_field(self, "codes", tuple(map(int, self.codes)))
        set_field(self, "matrix", _rows(self.matrix))
        set_field(self, "qform", None if self.qform is None else _rows(self.qform))
        steps = tuple((str(axis), float(step), float(offset)) for axis, step, offset in self.steps)
        set_field(self, "steps", steps)

    def taken(self, axis: str, start: int, step: int = 1) -> Affine:
        """Return the space of every `step`-th item along an axis, from `start` on; a negative step flips.

        The step of a further axis, such as t, stays positive: NIfTI has no other.
        """
        return self._moved(axis, start, step)

    def coarsened(self, axis: str, factor: int) -> Affine:
        """Return the space of runs of `factor` items along an axis, each taken together."""
        return self._moved(axis, (factor - 1) / 2, factor)

    def padded(self, axis: str, before: int) -> Affine:
        """Return the space with so many items more in front of the first one along an axis."""
        return self._moved(axis, -before, 1)

    def renamed(self, mapping: Mapping[str, str]) -> Affine:
        """Return the space with other names of axes."""
        steps = tuple((mapping.get(axis, axis), *rest) for axis, *rest in self.steps)
        return replace(self, axes=tuple(mapping.get(axis, axis) for axis in self.axes), steps=steps)

    def without(self, axis: str, at: float = 0) -> Affine:
        """Return the space of what lies at an index along an axis, which the array no longer has."""
        if axis in self.axes:
            return self._moved(axis, at, 1)
        return replace(self, steps=tuple(one for one in self.steps if one[0] != axis))

    def reordered(self, axes: Iterable[str]) -> Affine:
        """Return the space of the array with its axes in another order: the same."""
        return self

    def to_record(self) -> dict[str, Any]:
        """Return it as JSON knows it, for :func:`space_from`."""
        return {
            "affine": self.matrix,
            "axes": self.axes,
            "units": self.units,
            "codes": self.codes,
            "qform": self.qform,
            "steps": self.steps,
        }

    def _moved(self, axis: str, first: float, step: float) -> Affine:
        if axis in self.axes:
            column = self.axes.index(axis)
            qform = None if self.qform is None else _moved_matrix(self.qform, column, first, step)
            return replace(self, matrix=_moved_matrix(self.matrix, column, first, step), qform=qform)
        return replace(
            self,
            steps=tuple(
                (name, abs(step) * pitch, offset + first * pitch) if name == axis else (name, pitch, offset)
                for name, pitch, offset in self.steps
            ),
        )


def _rows(matrix: Any) -> Matrix:
    return tuple(tuple(row) for row in np.asarray(matrix, dtype=float).tolist())


def _moved_matrix(matrix: Matrix, column: int, first: float, step: float) -> Matrix:
    moved = np.array(matrix)
    moved[:3, 3] += first * moved[:3, column]
    moved[:3, column] *= step
    return _rows(moved)


# --- FITS -------------------------------------------------------------------------------------------------

#: Keywords of a WCS by the axes that they are of, before the letter of another description.
_OF_AXIS = re.compile(r"(CTYPE|CUNIT|CRPIX|CRVAL|CDELT|CROTA|CNAME|CRDER|CSYER)(\d+)([A-Z]?)")
_OF_TWO = re.compile(r"(PC|CD)(\d+)_(\d+)([A-Z]?)")
_OF_PARAMETER = re.compile(r"(PV|PS)(\d+)_(\d+)([A-Z]?)")
_SIP = re.compile(r"(A|B|AP|BP)_(\d+)_(\d+)")
_OTHERS = re.compile(
    r"WCSAXES[A-Z]?|WCSNAME[A-Z]?|LONPOLE[A-Z]?|LATPOLE[A-Z]?|RADESYS[A-Z]?|RADECSYS|EQUINOX[A-Z]?|EPOCH|"
    r"(A|B|AP|BP)_(ORDER|DMAX)|SPECSYS[A-Z]?|SSYSOBS[A-Z]?|SSYSSRC[A-Z]?|VELOSYS[A-Z]?|VELANGL[A-Z]?|"
    r"RESTFRQ[A-Z]?|RESTFREQ|RESTWAV[A-Z]?|ZSOURCE[A-Z]?|VELREF|OBSGEO-[XYZBLH]|MJD-OBS|MJD-AVG|MJD-BEG|"
    r"MJD-END|DATE-OBS|DATE-AVG|DATE-BEG|DATE-END|MJDREF[IF]?|DATEREF|JDREF[IF]?|TIMESYS|TREFPOS|TREFDIR|"
    r"TIMEUNIT|TIMEOFFS|PLEPHEM"
)

#: Distortions that lie in tables outside the header.
_IN_TABLES = re.compile(r"(CPDIS|CQDIS|D2IMDIS)\d|D2IMEXT")

#: Axes of the sky, of which both numbers depend on both pixels.
_SKY = re.compile(r"RA--|DEC-|[A-Z]LON|[A-Z]LAT|[A-Z]{2}LN|[A-Z]{2}LT")


@dataclass(frozen=True)
class Wcs:
    """Indices to world coordinates, as a FITS header says it.

    Parameters
    ----------
    axes : tuple of str
        In the order of the header: the first one is that of NAXIS1, the fastest in the file.
    header : str
        Its cards, with line feeds between them; others than those of a WCS are left out
        (:func:`wcs_cards`). Linear terms, projections, SIP and TPV follow slices exactly; distortions in
        tables are not kept.
    """

    axes: tuple[str, ...]
    header: str

    def __post_init__(self):
        object.__setattr__(self, "axes", tuple(self.axes))

    def taken(self, axis: str, start: int, step: int = 1) -> Wcs:
        """Return the space of every `step`-th item along an axis, from `start` on; a negative step flips."""
        return self._moved(axis, start, step)

    def coarsened(self, axis: str, factor: int) -> Wcs:
        """Return the space of runs of `factor` items along an axis, each taken together."""
        return self._moved(axis, (factor - 1) / 2, factor)

    def padded(self, axis: str, before: int) -> Wcs:
        """Return the space with so many items more in front of the first one along an axis."""
        return self._moved(axis, -before, 1)

    def renamed(self, mapping: Mapping[str, str]) -> Wcs:
        """Return the space with other names of axes."""
        return replace(self, axes=tuple(mapping.get(axis, axis) for axis in self.axes))

    def without(self, axis: str, at: float = 0) -> Wcs:
        """Return the space of what lies at an index along an axis, which the array no longer has.

        The axis is gone, where no other coordinate depends on it.
        """
        moved = self._moved(axis, at, 1)
        if axis not in self.axes:
            return moved
        cards, number = moved.cards(), self.axes.index(axis) + 1
        if not _separable(cards, number):
            return moved
        return Wcs(tuple(one for one in self.axes if one != axis), _text(_without_axis(cards, number)))

    def reordered(self, axes: Iterable[str]) -> Wcs:
        """Return the space of the array with its axes in another order: the same."""
        return self

    def cards(self):
        """Return the header as astropy has it."""
        from astropy.io.fits import Header

        return Header.fromstring(self.header, sep="\n")

    def to_record(self) -> dict[str, Any]:
        """Return it as JSON knows it, for :func:`space_from`."""
        return {"wcs": self.header, "axes": self.axes}

    def _moved(self, axis: str, first: float, step: float) -> Wcs:
        if axis not in self.axes or (first == 0 and step == 1):
            return self
        cards, number = self.cards(), self.axes.index(axis) + 1
        for letter in _descriptions(cards):
            _move_pixels(cards, number, letter, first, step)
        if number <= 2 and step != 1:
            _scale_sip(cards, number, step)
        return replace(self, header=_text(cards))


Space = Affine | Wcs


def space_from(record: Mapping[str, Any] | None) -> Space | None:
    """Return the space that `to_record` has made a record of; None of None."""
    if record is None:
        return None
    if "wcs" in record:
        return Wcs(record["axes"], record["wcs"])
    others = {name: record[name] for name in ("axes", "units", "codes", "qform", "steps")}
    return Affine(matrix=record["affine"], **others)


def is_wcs(keyword: str) -> bool:
    """Say whether a keyword of a FITS header is one of a WCS that :class:`Wcs` keeps."""
    return any(one.fullmatch(keyword) for one in (_OF_AXIS, _OF_TWO, _OF_PARAMETER, _SIP, _OTHERS))


def wcs_cards(header) -> str:
    """Return the cards of a FITS header that are of its WCS, for :class:`Wcs`; "" where there is none.

    Parameters
    ----------
    header : astropy.io.fits.Header
    """
    from astropy.io.fits import Header

    tables = {match[2] for key in header for match in [_OF_AXIS.fullmatch(key)] if _is_table(match, header)}
    kept = [card for card in header.cards if is_wcs(card.keyword) and _number(card.keyword) not in tables]
    found = any(_OF_AXIS.fullmatch(card.keyword) for card in kept)
    return _text(Header(kept)) if found else ""


def lost_distortions(header) -> list[str]:
    """Return the keywords of a FITS header that say of its WCS what :class:`Wcs` cannot keep."""
    axes = [key for key in header if _is_table(_OF_AXIS.fullmatch(key), header)]
    return axes + [key for key in header if _IN_TABLES.match(key)]


def _is_table(match: re.Match | None, header) -> bool:
    """Say whether a keyword is the type of an axis whose coordinates lie in a table."""
    return match is not None and match[1] == "CTYPE" and str(header[match[0]]).endswith("-TAB")


def _number(keyword: str) -> str | None:
    """Return the number of the axis that a keyword is of; None where it is of none, or of two."""
    match = _OF_AXIS.fullmatch(keyword) or _OF_PARAMETER.fullmatch(keyword)
    return match[2] if match else None


def _text(cards) -> str:
    return cards.tostring(sep="\n", endcard=False, padding=False)


def _descriptions(cards) -> list[str]:
    """Return the letters of the descriptions that a header has, "" for the first one."""
    letters = {match[match.re.groups] for key in cards for match in [_OF_AXIS.fullmatch(key)] if match}
    return sorted(letters | {match[4] for key in cards for match in [_OF_TWO.fullmatch(key)] if match})


def _move_pixels(cards, number: int, letter: str, first: float, step: float) -> None:
    """Let pixel p of an axis be what was pixel first + step * (p - 1) + 1, in one description."""
    pixel = f"CRPIX{number}{letter}"
    cards[pixel] = (float(cards.get(pixel, 0.0)) - 1 - first) / step + 1
    if step == 1:
        return
    terms = [match for key in cards for match in [_OF_TWO.fullmatch(key)] if match and match[4] == letter]
    kinds = {match[1] for match in terms}
    if not kinds:
        delta = f"CDELT{number}{letter}"
        cards[delta] = float(cards.get(delta, 1.0)) * step
        return
    diagonal = f"PC{number}_{number}{letter}"
    if "CD" not in kinds and diagonal not in cards:
        cards[diagonal] = float(step)
        terms = [match for match in terms if match[0] != diagonal]
    for match in terms:
        if int(match[3]) == number:
            cards[match[0]] = float(cards[match[0]]) * step


def _scale_sip(cards, number: int, step: float) -> None:
    """Let the polynomials of SIP be those of pixels that are `step` pixels long along axis 1 or 2."""
    for key in list(cards):
        match = _SIP.fullmatch(key)
        if match:
            power = int(match[1 + number])
            own = match[1].startswith("AB"[number - 1])
            cards[key] = float(cards[key]) * float(step) ** (power - own)


def _separable(cards, number: int) -> bool:
    """Say whether no other coordinate depends on an axis, nor its own on other axes."""
    for key, value in cards.items():
        axis, two = _OF_AXIS.fullmatch(key), _OF_TWO.fullmatch(key)
        if axis and axis[1] == "CTYPE" and int(axis[2]) == number and _SKY.match(str(value)):
            return False
        if axis and axis[1] == "CROTA" and int(axis[2]) == number and value:
            return False
        if two and two[2] != two[3] and str(number) in (two[2], two[3]) and value:
            return False
    return True


def _without_axis(cards, number: int):
    """Return a header without an axis; those behind it are counted anew."""
    from astropy.io.fits import Header

    kept = Header()
    for card in cards.cards:
        key = card.keyword
        if key.startswith("WCSAXES"):
            kept[key] = int(card.value) - 1
            continue
        for pattern, places in ((_OF_AXIS, (2,)), (_OF_TWO, (2, 3)), (_OF_PARAMETER, (2,))):
            match = pattern.fullmatch(key)
            if match:
                parts = [match[n] or "" for n in range(1, pattern.groups + 1)]
                numbers = [int(parts[place - 1]) for place in places]
                if number in numbers:
                    key = ""
                    break
                for place, old in zip(places, numbers, strict=True):
                    parts[place - 1] = str(old - (old > number))
                separated = pattern is not _OF_AXIS
                key = parts[0] + parts[1] + ("_" if separated else "") + "".join(parts[2:])
                break
        if key:
            kept[key] = (card.value, card.comment)
    return kept
