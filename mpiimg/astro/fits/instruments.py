"""Instruments: what each calls its filter, visit, gain and unit, and what the bits of its masks mean.

An instrument is a file in TOML, and no code: those of the package lie in ``mpiimg/astro/instruments``, and
users give their own by path. Cards of ``generic.toml`` are looked at after its own; docs/instruments.md has
the keys.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpiimg.astro.fits.maskplanes import MASK_PLANES
from mpiimg.engine.small_files import read_text
from mpiimg.errors import BadInput

#: Where the instruments of the package lie.
FOLDER = Path(__file__).parents[1] / "instruments"

#: The name of the one that holds for all that no other does.
GENERIC = "generic"

#: What a mask's table calls bits that say nothing against a pixel.
GOOD = "good"

#: Cards one of which is taken, the first that is there; several in a list of their own are taken together.
Alternatives = tuple[tuple[str, ...], ...]

_LISTS = (
    "filter",
    "visit",
    "sensor",
    "gain",
    "read_noise",
    "saturate",
    "zero_point",
    "exposure_time",
    "unit",
    "distinguish",
)
_VALUES = ("gain", "read_noise", "saturate", "zero_point", "unit", "filter")


@dataclass(frozen=True)
class Instrument:
    """What an instrument calls things.

    Parameters
    ----------
    name : str
    match : tuple of mapping of str to tuple of str
        Its headers are those in which each card of one of these has one of its patterns, as of a shell;
        letters of either case are alike. Without any all headers are.
    cards : mapping of str to Alternatives
        The cards of each fact.
    values : mapping of str to object
        Facts that stand in no card.
    filter_words : int
        Words of the filter that are its name; 0 for all.
    no_filter : tuple of str
        Patterns of what a wheel without a filter says.
    zero_point_per : str
        "exposure" or "second", as :class:`mpiimg.astro.fits.headers.ReadOptions` has it.
    bits, codes : mapping of int to str
        The mask plane of ours that each bit (by its value), or each code, of its masks stands for; "" for
        those that say nothing against a pixel.
    codes_since : (int, int), optional
        The first version (card PLVER) whose masks hold codes, where earlier ones hold bits.
    unlisted : str
        The plane of bits and codes that are in no table; "" where these say nothing against a pixel.
    """

    name: str
    match: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    cards: Mapping[str, Alternatives] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    filter_words: int = 0
    no_filter: tuple[str, ...] = ()
    zero_point_per: str = "exposure"
    bits: Mapping[int, str] = field(default_factory=dict)
    codes: Mapping[int, str] = field(default_factory=dict)
    codes_since: tuple[int, int] | None = None
    unlisted: str = "SUSPECT"

    def fits(self, card) -> bool:
        """Say whether headers are those of this instrument; `card` returns the value of a card, or None."""
        return not self.match or any(
            all(is_like(card(name), patterns) for name, patterns in cards.items()) for cards in self.match
        )


def is_like(value: Any, patterns: Iterable[str]) -> bool:
    """Say whether the value of a card has one of these patterns; None has none."""
    text = "" if value is None else str(value).strip().lower()
    return any(fnmatch.fnmatchcase(text, pattern.lower()) for pattern in patterns)


def find_instrument(card, instruments: Iterable[Instrument]) -> Instrument:
    """Return the instrument that headers are of: the first of which all patterns fit.

    Parameters
    ----------
    card : callable
        Called as card(name); returns the value of a card, or None.
    instruments : iterable of Instrument
        The last of them fits everything.
    """
    return next(one for one in instruments if one.fits(card))


@functools.lru_cache(maxsize=4)
def known_instruments(own: tuple[str, ...] = ()) -> tuple[Instrument, ...]:
    """Return the instruments to choose from, in the order in which they are asked.

    Parameters
    ----------
    own : tuple of str
        Paths of the user's, which come first; the name of one of the package takes that one for all
        exposures, whatever their headers say.

    Raises
    ------
    BadInput
        There is no such instrument, or its file makes no sense.
    """
    names = sorted(path.stem for path in FOLDER.glob("*.toml"))
    chosen = []
    for one in own:
        if one.endswith(".toml"):
            chosen.append(read_instrument(Path(one)))
        elif one in names:
            chosen.append(_without_match(_of_package(one)))
        else:
            raise BadInput(
                f"--instrument {one}: there is none of this name; give a file that ends in .toml, or one of "
                f"{', '.join(names)}"
            )
    others = [_of_package(name) for name in names if name != GENERIC]
    return (*chosen, *others, _of_package(GENERIC))


def _without_match(instrument: Instrument) -> Instrument:
    return dataclasses.replace(instrument, match=())


@functools.cache
def _of_package(name: str) -> Instrument:
    return read_instrument(FOLDER / f"{name}.toml")


def read_instrument(path: Path) -> Instrument:
    """Read the file of an instrument.

    Raises
    ------
    BadInput
        It cannot be read, or says what makes no sense.
    """
    text = read_text(path, "this instrument")
    try:
        return _instrument(tomllib.loads(text), path)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: is no TOML: {error}") from None


def _instrument(table: dict[str, Any], path: Path) -> Instrument:
    """Check the table of an instrument, and put the cards of the generic one behind its own."""
    _refuse_others(table, ("name", "match", "cards", "values", "mask"), path, "")
    name = _text(table.get("name"), path, "name")
    cards, values, mask = (_table(table, key, path) for key in ("cards", "values", "mask"))
    further = ("filter_words", "no_filter", "zero_point_per")
    _refuse_others(cards, (*_LISTS, *further), path, "cards.")
    _refuse_others(values, _VALUES, path, "values.")
    _refuse_others(mask, ("bits", "codes", "codes_since", "unlisted"), path, "mask.")
    usual = {} if path == FOLDER / f"{GENERIC}.toml" else _of_package(GENERIC).cards
    words, per = cards.get("filter_words", 0), cards.get("zero_point_per", "exposure")
    if not isinstance(words, int) or isinstance(words, bool) or words < 0:
        raise BadInput(f"{path}: cards.filter_words must be a whole number from 0 on")
    if per not in ("exposure", "second"):
        raise BadInput(f'{path}: cards.zero_point_per must be "exposure" or "second"')
    since = mask.get("codes_since")
    if since is not None and not (isinstance(since, list) and list(map(type, since)) == [int, int]):
        raise BadInput(f"{path}: mask.codes_since must be two whole numbers, as [3, 5]")
    return Instrument(
        name=name,
        match=_matches(table.get("match", []), path),
        cards={
            # What the instrument does not have, a program may have written as most do.
            key: (*_alternatives(cards.get(key, []), path, f"cards.{key}"), *usual.get(key, ()))
            for key in _LISTS
        },
        values=values,
        filter_words=words,
        no_filter=_texts(cards.get("no_filter", []), path, "cards.no_filter"),
        zero_point_per=per,
        bits=_planes(mask.get("bits", {}), path, "mask.bits", powers=True),
        codes=_planes(mask.get("codes", {}), path, "mask.codes", powers=False),
        codes_since=None if since is None else (since[0], since[1]),
        unlisted=_plane(mask.get("unlisted", "SUSPECT"), path, "mask.unlisted"),
    )


def _refuse_others(table: Mapping[str, Any], known: Iterable[str], path: Path, prefix: str) -> None:
    others = sorted(set(table) - set(known))
    if others:
        raise BadInput(
            f"{path}: {prefix}{others[0]} is nothing that an instrument has; it has "
            + ", ".join(f"{prefix}{one}" for one in known)
        )


def _table(table: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise BadInput(f"{path}: {key} must be a table, [{key}]")
    return value


def _matches(tables: Any, path: Path) -> tuple[dict[str, tuple[str, ...]], ...]:
    tables = tables if isinstance(tables, list) else [tables]
    if not all(isinstance(one, dict) and one for one in tables):
        raise BadInput(
            f'{path}: match must be a table of patterns by card, as {{INSTRUME = "ACS"}}, or a list'
        )
    return tuple(
        {card: _texts(value, path, f"match.{card}") for card, value in one.items()} for one in tables
    )


def _text(value: Any, path: Path, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{path}: {key} must be a text")
    return value


def _texts(value: Any, path: Path, key: str) -> tuple[str, ...]:
    return tuple(_text(one, path, key) for one in (value if isinstance(value, list) else [value]))


def _alternatives(value: Any, path: Path, key: str) -> Alternatives:
    return tuple(_texts(one, path, key) for one in (value if isinstance(value, list) else [value]))


def _plane(value: Any, path: Path, key: str) -> str:
    if value != GOOD and value not in MASK_PLANES:
        raise BadInput(
            f"{path}: {key}: {value!r} is no mask plane; there are {GOOD}, {', '.join(MASK_PLANES)}"
        )
    return "" if value == GOOD else value


def _planes(table: Any, path: Path, key: str, powers: bool) -> dict[int, str]:
    """Return the plane of each bit or code from lists of them by plane."""
    if not isinstance(table, dict):
        raise BadInput(f"{path}: {key} must be a table of lists by mask plane")
    planes: dict[int, str] = {}
    for name, numbers in table.items():
        plane = _plane(name, path, key)
        for number in numbers if isinstance(numbers, list) else [numbers]:
            whole = isinstance(number, int) and not isinstance(number, bool) and number > 0
            if not whole or (powers and number & (number - 1)):
                what = "the value of a bit: 1, 2, 4, 8 and so on" if powers else "a whole number above 0"
                raise BadInput(f"{path}: {key}.{name}: {number!r} is not {what}")
            if planes.setdefault(number, plane) != plane:
                raise BadInput(f"{path}: {key}: {number} is in two planes")
    return planes
