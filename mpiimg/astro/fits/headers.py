"""What the headers of an exposure say, as its cards or the user's options have it."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mpiimg.errors import BadInput

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

#: What numbers may be, so that what is made of them stays within float32.
LIMITS = {
    "zero_point": (-15.0, 70.0),
    "gain": (1e-12, 1e12),
    "read_noise": (0.0, 1e12),
    "saturate": (1e-30, 1e30),
}

#: Likewise of numbers that are of use, but not needed: days, and seconds.
MAX_MJD, MAX_EXPTIME = 1e6, 1e9

#: A setting: None for the usual cards, the name of a card, a number, or text behind "=".
Setting = str | float | None


@dataclass(frozen=True)
class ReadOptions:
    """Where the facts about exposures are found, if not in the usual cards.

    Each setting is the name of a card, or the value itself: a number, or text behind "=" ("=r").

    Parameters
    ----------
    zero_point : str or float, optional
        Zero point in magnitudes; card MAGZERO.
    zero_point_per : str
        "exposure": the zero point holds for the pixels as they are; "second": for counts per second, so that
        2.5 log10(EXPTIME) is added unless BUNIT says that the pixels are per second.
    gain : str or float, optional
        Electrons per ADU; GAIN, or the mean of GAINA and GAINB.
    read_noise : str or float, optional
        Electrons; RDNOISE, or the mean of RDNOISEA and RDNOISEB.
    saturate : str or float, optional
        Level from which pixels are saturated, in the image's unit; SATURATE.
    filter : str or float, optional
        Name of the filter; first word of FILTER.
    visit : str or float, optional
        EXPID, VISIT or EXPNUM, else DATE-OBS, else each file is its own.
    sensor : str or float, optional
        CCDNUM, DETPOS, CCDNAME, CCD or DETSER, else the extension's name, else the file's.
    decam_mask : str
        What `ood` holds: "codes", "bits", or "auto" for what PLVER says.
    """

    zero_point: Setting = None
    zero_point_per: str = "exposure"
    gain: Setting = None
    read_noise: Setting = None
    saturate: Setting = None
    filter: Setting = None
    visit: Setting = None
    sensor: Setting = None
    decam_mask: str = "auto"

    def __post_init__(self):
        if self.zero_point_per not in ("exposure", "second"):
            raise BadInput(f"--zero-point-per is exposure or second, not {self.zero_point_per}")
        if self.decam_mask not in ("auto", "codes", "bits"):
            raise BadInput(f"--decam-mask is auto, codes or bits, not {self.decam_mask}")


class HeaderReader:
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
            return float(text) if option in ("zero_point", "gain", "read_noise", "saturate") else int(
                text
            ), flag
        value = self.card(text)
        if value is None:
            raise BadInput(f"{self.where}: has no card {text}, which {flag} names")
        return value, text

    def number(self, option: str, card: str, pair: bool = False) -> float | None:
        """Return a number: the option's, the card's, or the mean of its A and B; None without any."""
        setting = self.setting(option)
        if setting is None and self.card(card) is not None:
            setting = self.card(card), card
        if setting is not None:
            return self.checked(*setting, option)
        halves = [self.card(card + amplifier) for amplifier in "AB"] if pair else []
        if not halves or None in halves:
            return None
        values = [self.checked(half, card + "A/B", option) for half in halves]
        return sum(values) / len(values)

    def checked(self, value, name: str, option: str) -> float:
        """Return `value` as a finite number that makes sense for what `option` stands for."""
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        kind, sensible = {
            "zero_point": ("finite number", True),
            "read_noise": ("number from 0 on", number >= 0),
        }.get(option, ("positive number", number > 0))
        low, high = LIMITS[option]
        if sensible and math.isfinite(number) and not (low <= number <= high or number == 0):
            kind = f"number from {low:g} to {high:g}"
            sensible = False
        if not (sensible and math.isfinite(number)):
            raise BadInput(
                f"{self.where}: {name} = {value!r} is no {kind}; give --{option.replace('_', '-')}"
            )
        return number

    def text(self, option: str, cards: Sequence[str]) -> str | None:
        """Return text: the option's, or of the first card that is there; None without any."""
        setting = self.setting(option)
        if setting is not None:
            return str(setting[0]).strip()
        value = next((self.card(card) for card in cards if self.card(card) is not None), None)
        return None if value is None else str(value).strip()

    def optional(self, card: str, limit: float) -> float | None:
        """Return a number that is of use but not needed, or None where it makes no sense."""
        try:
            value = float(self.card(card))
        except (TypeError, ValueError, OverflowError):
            return None
        return value if abs(value) <= limit else None

    def mjd(self) -> float | None:
        """Return the start of the exposure: MJD-OBS, MJD, or from DATE-OBS."""
        for card in ("MJD-OBS", "MJD"):
            if self.optional(card, MAX_MJD) is not None:
                return self.optional(card, MAX_MJD)
        try:
            start = datetime.datetime.fromisoformat(str(self.card("DATE-OBS")))
        except (ValueError, OverflowError):
            return None
        return (start.replace(tzinfo=None) - datetime.datetime(1858, 11, 17)) / datetime.timedelta(days=1)


def _unit(facts: HeaderReader) -> tuple[bool, bool]:
    """Say whether the image is in electrons, and whether it is per second."""
    unit = str(facts.card("BUNIT") or "").strip().lower()
    electrons = re.match(r"e(?![a-df-z])|e-|electron", unit) is not None
    return electrons, re.search(r"/\s*s|\bs(\*\*|\^)?\(?-1", unit) is not None


def noise_facts(facts: HeaderReader, needed: bool) -> tuple[float | None, float | None, float | None]:
    """Return electrons per unit of the image, read noise in electrons, and seconds of exposure."""
    electrons, per_second = _unit(facts)
    gain = 1.0 if electrons else facts.number("gain", "GAIN", pair=True)
    readnoise = facts.number("read_noise", "RDNOISE", pair=True)
    exptime = facts.optional("EXPTIME", MAX_EXPTIME)
    if exptime is not None and exptime <= 0:
        exptime = None
    if per_second and gain is not None:
        if exptime is None and needed:
            raise BadInput(f"{facts.where}: BUNIT says per second, but no EXPTIME says how many")
        gain = None if exptime is None else gain * exptime
    for value, what, flag in ((gain, "gain (GAIN", "gain"), (readnoise, "read noise (RDNOISE", "read-noise")):
        if value is None and needed:
            raise BadInput(
                f"{facts.where}: no {what}, or its A and B), which a single image needs for its variance; "
                f"give --{flag}, or variance and mask planes"
            )
    return gain, readnoise, exptime


def zero_point(facts: HeaderReader, exptime: float | None) -> float | None:
    """Return the magnitude of one unit of the image."""
    magzero = facts.number("zero_point", "MAGZERO")
    if magzero is None or facts.options.zero_point_per == "exposure" or _unit(facts)[1]:
        return magzero
    if exptime is None:
        raise BadInput(
            f"{facts.where}: no EXPTIME, which a zero point per second (--zero-point-per second) needs"
        )
    return magzero + 2.5 * math.log10(exptime)
