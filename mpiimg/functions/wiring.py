"""What stages of a pipeline read and give by name: `reads` and `gives` of [[stage]], and [inputs]."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpiimg.errors import BadInput

#: What every chain over an image has: its image, and its mask once there is one.
IMAGE, MASK = "image", "mask"

#: Characters of a name, which stands in names of files.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Wiring:
    """What a function reads and gives in a pipeline.

    Parameters
    ----------
    reads : tuple of str
        What it is called on, in this order.
    gives : tuple of str
        What its results are called, in this order; empty where the pipeline does not say: then a result of
        the shape of the image takes its place.
    labels : tuple of str
        Of each result that has a name, for the name of its file.
    later : str
        The next stage that works on the image; empty if there is none.
    write : bool
        Whether the results are written.
    """

    reads: tuple[str, ...] = (IMAGE,)
    gives: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    later: str = ""
    write: bool = True

    @property
    def results(self) -> int:
        """How many results the function has."""
        return max(1, len(self.gives))


def names_in(table: Mapping, key: str, place: str) -> tuple[str, ...]:
    """Return the names that a stage has under a key.

    Raises
    ------
    BadInput
        They are no list of names, or one stands there twice.
    """
    value = table.get(key, [])
    if isinstance(value, str) or not isinstance(value, list | tuple) or (key in table and not value):
        raise BadInput(f'{place}: {key} = {value!r}: must be a list of names, as in {key} = ["mean"]')
    for name in value:
        check_name(name, f"{place}: {key}")
        if list(value).count(name) > 1:
            raise BadInput(f"{place}: {key}: {name} stands there twice")
    return tuple(value)


def check_name(name: Any, place: str) -> None:
    """Refuse what is no name.

    Raises
    ------
    BadInput
        It has other characters than letters, digits, - and _, or is too long.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(
            f"{place}: {name!r}: is no name; it begins with a letter, and has letters, digits, - and _, "
            "64 at most"
        )


@dataclass(frozen=True)
class Place:
    """A stage as the names go through it.

    Parameters
    ----------
    label : str
    wiring : Wiring, optional
        Of a function over an image; None for a step, which works on image and mask.
    takes_mask : bool
        Whether the function has a keyword of that name.
    aggregate : bool
        Whether what it makes is no image.
    """

    label: str
    wiring: Wiring | None = None
    takes_mask: bool = False
    aggregate: bool = False

    def uses(self, name: str) -> bool:
        """Say whether it works on what has this name."""
        if self.wiring is None:
            return name in (IMAGE, MASK)
        return name in self.wiring.reads or (name == MASK and self.takes_mask)


def wired(places: Sequence[Place], files: Collection[str], where: str) -> list[Wiring | None]:
    """Return the wiring of all stages, once it is checked that names go from one to the next.

    Parameters
    ----------
    places : sequence of Place
    files : collection of str
        Names of images in files.
    where : str
        Names the pipeline in messages.

    Raises
    ------
    BadInput
        A stage reads what nobody gives, two stages give one name, or something is made or named that nobody
        reads or writes.
    """
    given: dict[str, str] = {}
    done: list[Wiring | None] = []
    for number, place in enumerate(places):
        wiring, after = place.wiring, places[number + 1 :]
        if wiring is None:
            done.append(None)
            continue
        for name in wiring.reads:
            if name not in (IMAGE, MASK, *files, *given):
                why = _unknown(name, after, files, given)
                raise BadInput(f"{where}: stage {place.label} reads {name}, {why}")
        for name in wiring.gives:
            if name in files or (name in given and name not in (IMAGE, MASK)):
                other = f"stage {given[name]} gives" if name in given else "[inputs] has"
                raise BadInput(
                    f"{where}: stage {place.label} gives {name}, which {other} already; rename one of them"
                )
            given[name] = place.label
        _check_used(place, after, where)
        later = next((other.label for other in after if other.uses(IMAGE)), "")
        done.append(replace(wiring, later=later))
    unread = [name for name in files if not any(place.uses(name) for place in places)]
    if unread:
        raise BadInput(f"{where}: no stage reads {unread[0]}: say so there by reads, or leave it out")
    return done


def _unknown(name: str, after: Sequence[Place], files: Collection[str], given: Mapping[str, str]) -> str:
    """Say why nothing has a name, and what has one."""
    later = next((place.label for place in after if place.wiring and name in place.wiring.gives), "")
    if later:
        return f"which stage {later} gives only after it; put that one first"
    known = [IMAGE, MASK, *files, *given]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(dict.fromkeys(known))}"
    return f"which no stage before it gives, and no file has: {hint}"


def _check_used(place: Place, after: Sequence[Place], where: str) -> None:
    """Refuse a result that is neither written nor read."""
    wiring = place.wiring
    names = wiring.gives or (("",) if place.aggregate else (IMAGE,))
    unread = [name for name in names if not any(other.uses(name) for other in after)]
    if unread and not wiring.write:
        what = f"{unread[0]}, which it gives" if wiring.gives else "its result"
        raise BadInput(
            f"{where}: stage {place.label} says write = false, and no later stage reads {what}: "
            "nothing would become of it"
        )
