"""The unit of an image, as its header says it: parsed by astropy, never matched by its letters."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass

#: Words that headers have for units of astropy's, in small letters.
SYNONYMS = {
    "adus": "adu",
    "count": "ct",
    "counts": "ct",
    "cts": "ct",
    "data_number": "DN",
    "dn": "DN",
    "dns": "DN",
    "e": "electron",
    "e-": "electron",
    "electrons": "electron",
    "elec": "electron",
    "sec": "s",
    "secs": "s",
    "second": "s",
    "seconds": "s",
    "pixel": "pix",
    "sq": "",
}

#: Times a nanomaggy in jansky: its zero point is at 22.5 magnitudes.
NANOMAGGY = 3.631e-6

_WORD = re.compile(r"[A-Za-z_][A-Za-z_]*-?(?![A-Za-z0-9])")


@dataclass(frozen=True)
class PixelUnit:
    """What a count of an image is.

    Parameters
    ----------
    kind : str
        "counts" (ADU, DN, or nobody knows), "electrons", or "flux" (jansky and the like).
    per_second : bool
    jansky : float
        Of one count, where the kind is "flux"; where it is per solid angle, of one count in a steradian.
    per_steradian : bool
    known : bool
        Whether the header's unit was one that can be understood; without any it is not.
    """

    kind: str = "counts"
    per_second: bool = False
    jansky: float = math.nan
    per_steradian: bool = False
    known: bool = True


UNKNOWN = PixelUnit(known=False)


def pixel_unit(text: str) -> PixelUnit:
    """Return what the text of a card BUNIT says.

    Parameters
    ----------
    text : str
        As FITS files have it: "ADU", "electron/s", "ELECTRONS/S", "MJy/sr", "counts s^-1", "e-".
    """
    from astropy import units

    unit = _parsed(text)
    if unit is None:
        return UNKNOWN
    # A count per pixel is a count: images say it of every pixel.
    unit = unit * units.pix if units.pix in unit.decompose().bases else unit
    for per_steradian, one in ((False, units.Jy), (True, units.Jy / units.sr)):
        if unit.is_equivalent(one):
            return PixelUnit("flux", jansky=unit.to(one), per_steradian=per_steradian)
    for per_second, rate in ((False, units.dimensionless_unscaled), (True, units.s**-1)):
        if unit == units.electron * rate:
            return PixelUnit("electrons", per_second)
        if unit in (units.ct * rate, units.adu * rate, units.DN * rate):
            return PixelUnit("counts", per_second)
    return UNKNOWN


def _parsed(text: str):
    """Return the unit of astropy that a text is, or None."""
    from astropy import units

    said = text.strip()
    # e- is no difference, and a count per second no count times a second.
    said = _WORD.sub(_synonym, said).replace("**", "^")
    if re.fullmatch(r"(?i)(nano ?magg(y|ies)|nmgy)", said):
        return units.Unit(NANOMAGGY * units.Jy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", units.UnitsWarning)
        try:
            return units.Unit(said) if said else None
        except (ValueError, TypeError):
            return None


def _synonym(match: re.Match) -> str:
    word = match.group()
    small = word.lower()
    if small in SYNONYMS:
        return SYNONYMS[small]
    bare = small.rstrip("-")
    if bare in ("electron", "adu") or (bare in SYNONYMS and bare != small):
        return SYNONYMS.get(bare, bare)
    # Of units in capitals alone, as IRAF has them: S is a second there, and a siemens nowhere.
    return "s" if word == "S" else word
