"""What the headers of an exposure say, as its cards or the user's options have it."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mpiimg.astro.fits.instruments import Instrument, find_instrument, is_like, known_instruments
from mpiimg.astro.fits.units import PixelUnit, pixel_unit
from mpiimg.errors import BadInput

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

#: Magnitude (AB) of a jansky.
AB_JANSKY = 8.90

#: The band of exposures whose headers say none.
NO_FILTER = "unknown"

#: A setting: None for the usual cards, the name of a card, a number, or text behind "=".
Setting = str | float | None


@dataclass(frozen=True)
class ReadOptions:
    """Where the facts about exposures are found, if not in the cards of their instrument.

    Each setting is the name of a card, or the value itself: a number, or text behind "=" ("=r").

    Parameters
    ----------
    instrument : tuple of str
        Files of instruments that are asked before those of the package, or the name of one of these that
        all exposures are of.
    zero_point : str or float, optional
        Magnitude of one unit of the pixels as they are in the file.
    zero_point_per : str, optional
        "exposure": the zero point holds for the pixels as they are; "second": for counts per second, so that
        2.5 log10(EXPTIME) is added unless BUNIT says that the pixels are per second. By default as the
        instrument has it.
    gain : str or float, optional
        Electrons per unit of the pixels as they are in the file.
    read_noise : str or float, optional
        Electrons.
    saturate : str or float, optional
        Level from which pixels are saturated, in the image's unit.
    filter, visit, sensor : str or float, optional
        Without a visit each file is its own; without a sensor the extension's name stands for it, or the
        file's.
    bad_bits : str, optional
        Bits, by their values, that make a pixel of a mask bad, and no other bit does: "1,2,1024"; with "~"
        before them all bits but these do; "none" stands for no bit.
    weight_file, mask_file : str, optional
        Where weights and masks lie beside an image of their own, as "{stem}.weight.fits".
    weight_file_is : str
        "weight" (inverse variance, in any scale), "variance" or "error".
    decam_mask : str
        What masks of triplets hold: "codes", "bits", or "auto" for what the instrument says.
    no_checksums : bool
        Sums in headers are not looked at.
    """

    instrument: tuple[str, ...] = ()
    zero_point: Setting = None
    zero_point_per: str | None = None
    gain: Setting = None
    read_noise: Setting = None
    saturate: Setting = None
    filter: Setting = None
    visit: Setting = None
    sensor: Setting = None
    bad_bits: str | None = None
    weight_file: str | None = None
    weight_file_is: str = "weight"
    mask_file: str | None = None
    decam_mask: str = "auto"
    no_checksums: bool = False

    def __post_init__(self):
        if self.zero_point_per not in (None, "exposure", "second"):
            raise BadInput(f"--zero-point-per is exposure or second, not {self.zero_point_per}")
        if self.decam_mask not in ("auto", "codes", "bits"):
            raise BadInput(f"--decam-mask is auto, codes or bits, not {self.decam_mask}")
        if self.weight_file_is not in ("weight", "variance", "error"):
            raise BadInput(f"--weight-file-is is weight, variance or error, not {self.weight_file_is}")
        for flag, pattern in (("--weight-file", self.weight_file), ("--mask-file", self.mask_file)):
            if pattern is not None and "{stem}" not in pattern:
                raise BadInput(
                    f"{flag} {pattern}: must have {{stem}} in it, in whose place the name of the image "
                    "comes, as {stem}.weight.fits"
                )
        if self.bad_bits is not None:
            chosen_bits(self.bad_bits)

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """The instruments that exposures may be of."""
        return known_instruments(tuple(self.instrument))


def chosen_bits(text: str) -> tuple[int, bool]:
    """Return the bits that a user has listed, and whether they are the good ones.

    Raises
    ------
    BadInput
        It is no list of values of bits.
    """
    listed = text.strip().removeprefix("~")
    words = [] if listed.strip().lower() == "none" else re.split(r"\s*[,+\s]\s*", listed.strip())
    values = [int(word) if re.fullmatch(r"\d{1,10}", word) else 0 for word in words]
    if not all(0 < value < 1 << 32 for value in values):
        raise BadInput(
            f"--bad-bits {text}: give values of bits with commas between them, as 1,2,1024; ~1,2 for all but "
            "these, or none"
        )
    total = 0
    for value in values:
        total |= value
    return total, text.strip().startswith("~")


@dataclass
class HeaderReader:
    """Looks up what an exposure's header says, then the primary header, as instrument and options have it.

    Parameters
    ----------
    where : str
        The exposure, for messages.
    header, primary : astropy.io.fits.Header
    options : ReadOptions
    notes : list of str
        What is said of the exposure though it can be used.
    """

    where: str
    header: Any
    primary: Any
    options: ReadOptions
    notes: list[str] = field(default_factory=list)

    @cached_property
    def instrument(self) -> Instrument:
        """The instrument that the headers are of."""
        return find_instrument(self.card, self.options.instruments)

    @cached_property
    def unit(self) -> PixelUnit:
        """What a count of the image is."""
        values = [self.card(one) for group in self.instrument.cards["unit"] for one in group]
        text = next((str(value) for value in values if value is not None), None)
        if text is None:
            text = str(self.instrument.values.get("unit", ""))
        unit = pixel_unit(text)
        if text.strip() and not unit.known:
            self.notes.append(
                f"the unit {text.strip()} is not known: its pixels are taken as counts of the whole exposure"
            )
        return unit

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
            return float(text) if option in LIMITS else int(text), flag
        value = self.card(text)
        if value is None:
            raise BadInput(f"{self.where}: has no card {text}, which {flag} names")
        return value, text

    def number(self, option: str) -> float | None:
        """Return a number: the option's, a card's, the mean of several, or the instrument's; None without."""
        setting = self.setting(option)
        if setting is not None:
            return self.checked(*setting, option)
        for cards in self.instrument.cards[option]:
            found = [self.card(card) for card in cards]
            if None not in found:
                values = [self.checked(value, "/".join(cards), option) for value in found]
                return sum(values) / len(values)
        value = self.instrument.values.get(option)
        return None if value is None else self.checked(value, self.instrument.name, option)

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

    def text(self, option: str, joint: str = "-") -> str | None:
        """Return text: the option's, of a card, or of several with `joint` between them; None without any."""
        setting = self.setting(option)
        if setting is not None:
            return str(setting[0]).strip()
        for cards in self.instrument.cards[option]:
            found = [str(self.card(card)).strip() for card in cards if self.card(card) is not None]
            if option == "filter":
                found = [one for one in found if not is_like(one, self.instrument.no_filter)]
            if found:
                return joint.join(found)
        return None

    def band(self) -> str:
        """Return the name of the filter: all that its card says, unless the instrument knows better."""
        words = (self.text("filter", "+") or "").split()
        if self.options.filter is None and self.instrument.filter_words:
            words = words[: self.instrument.filter_words]
        if not words:
            self.notes.append(f"no card says its filter: it counts as {NO_FILTER}; give --filter")
        return " ".join(words) or NO_FILTER

    def optional(self, card: str, limit: float) -> float | None:
        """Return a number that is of use but not needed, or None where it makes no sense."""
        try:
            value = float(self.card(card))
        except (TypeError, ValueError, OverflowError):
            return None
        return value if abs(value) <= limit else None

    def exposure_time(self) -> float | None:
        """Return the seconds of exposure, or None where no card says any."""
        cards = [card for group in self.instrument.cards["exposure_time"] for card in group]
        values = [self.optional(card, MAX_EXPTIME) for card in cards]
        return next((value for value in values if value is not None and value > 0), None)

    def hst_zero_point(self) -> float | None:
        """Return the magnitude (AB) of a count per second, from the calibration of HST's pipelines."""
        flux, pivot = self.optional("PHOTFLAM", 1.0), self.optional("PHOTPLAM", 1e6)
        if not (flux and pivot and flux > 0 and pivot > 0):
            return None
        return -2.5 * math.log10(flux) - 5 * math.log10(pivot) - 2.408

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


def noise_facts(facts: HeaderReader, needed: bool) -> tuple[float | None, float | None, float | None]:
    """Return electrons per unit of the image, read noise in electrons, and seconds of exposure."""
    unit = facts.unit
    gain = 1.0 if unit.kind == "electrons" else facts.number("gain")
    readnoise = facts.number("read_noise")
    exptime = facts.exposure_time()
    if unit.per_second and gain is not None:
        if exptime is None and needed:
            raise BadInput(f"{facts.where}: BUNIT says per second, but no EXPTIME says how many")
        gain = None if exptime is None else gain * exptime
    for value, what in ((gain, "gain"), (readnoise, "read noise")):
        if value is None and needed:
            cards = facts.instrument.cards[what.replace(" ", "_")]
            raise BadInput(
                f"{facts.where}: no {what} ({', '.join('/'.join(group) for group in cards)}), which a single "
                f"image needs for its variance; give --{what.replace(' ', '-')}, or a variance plane"
            )
    return gain, readnoise, exptime


def zero_point(facts: HeaderReader, exptime: float | None) -> float | None:
    """Return the magnitude (AB) of one unit of the image as it is in the file; None where nothing says it."""
    magzero, is_rate = facts.number("zero_point"), False
    if magzero is None and facts.unit.kind == "flux" and not facts.unit.per_steradian:
        return AB_JANSKY - 2.5 * math.log10(facts.unit.jansky)
    if magzero is None:
        magzero, is_rate = facts.hst_zero_point(), True
    per = "second" if is_rate else facts.options.zero_point_per or facts.instrument.zero_point_per
    if magzero is None or per == "exposure" or facts.unit.per_second:
        return magzero
    if exptime is None:
        raise BadInput(
            f"{facts.where}: no EXPTIME, which a zero point per second (--zero-point-per second) needs"
        )
    return magzero + 2.5 * math.log10(exptime)
