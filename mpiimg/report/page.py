"""A page: sections of words, tables and pictures, and the one file of HTML that they become."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Parameters
    ----------
    text : str
    tone : {"", "warning", "good", "note"}
        How it is set off from other paragraphs.
    """

    text: str
    tone: str = ""

    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Listing:
    """Lines to be copied, such as a command.

    Parameters
    ----------
    text : str
    label : str
        What they are, for those who do not see them.
    """

    text: str
    label: str

    kind: ClassVar[str] = "listing"


@dataclass(frozen=True)
class Link:
    """A link to a file beside the page, or to another page."""

    text: str
    target: str

    kind: ClassVar[str] = "link"


@dataclass(frozen=True)
class Table:
    """A table.

    Parameters
    ----------
    columns : sequence of str
    rows : sequence of sequences
        Of what :func:`words` can say, or of :class:`Link`.
    caption : str
    folded : bool
        It is shown when it is asked for.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str
    folded: bool = False

    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A picture.

    Parameters
    ----------
    data : bytes
        PNG, JPEG or SVG.
    alt : str
        What it shows, for those who do not see it.
    caption : str
    wide : bool
        It takes the width of the page.
    """

    data: bytes
    alt: str
    caption: str = ""
    wide: bool = True

    kind: ClassVar[str] = "picture"

    @property
    def uri(self) -> str:
        """The picture as the address of itself."""
        if self.data.startswith(b"\x89PNG"):
            mime = "image/png"
        else:
            mime = "image/jpeg" if self.data.startswith(b"\xff\xd8") else "image/svg+xml"
        return f"data:{mime};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Flicker:
    """Two pictures of one size that are shown in turn, at one place."""

    first: Picture
    second: Picture
    caption: str

    kind: ClassVar[str] = "flicker"


@dataclass(frozen=True)
class Markup:
    """HTML of our own making, such as a drawing whose parts are links."""

    html: str
    caption: str = ""

    kind: ClassVar[str] = "markup"


Item = Text | Listing | Link | Table | Picture | Flicker | Markup


@dataclass(frozen=True)
class Section:
    """A section with a heading.

    Parameters
    ----------
    title : str
    items : sequence of Item
    """

    title: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Page:
    """A page.

    Parameters
    ----------
    title : str
    subtitle : str
    sections : sequence of Section
    facts : mapping of str to object
        The few figures that stand at its top.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    facts: Mapping[str, Any] = field(default_factory=dict)


def words(value: Any) -> str:
    """Return a value of a table or a fact as a reader expects it: four digits of a number, no "nan"."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        if value != value:
            return "n/a"
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value))
    return str(value)


def size(nbytes: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}" if unit != "B" else f"{nbytes:.0f} B"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 6000:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def anchor(title: str) -> str:
    """Return the name by which a section is linked to."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def render(page: Page, version: str) -> str:
    """Return a page as HTML that needs nothing beside itself.

    Parameters
    ----------
    page : Page
        Titles of sections are made unique.
    version : str
        Of who made it.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mpiimg.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"words": words, "anchor": anchor}
    environment.tests["link"] = lambda one: isinstance(one, Link)
    environment.tests["number"] = lambda one: isinstance(one, int | float) and not isinstance(one, bool)
    page = dataclasses.replace(page, sections=_told_apart(page.sections))
    return environment.get_template("page.html").render(page=page, version=version)


def _told_apart(sections: Sequence[Section]) -> list[Section]:
    """Return sections of which no two have one anchor."""
    made: list[Section] = []
    for section in sections:
        taken = {anchor(one.title) for one in made}
        title, number = section.title, 2
        while anchor(title) in taken:
            title, number = f"{section.title} ({number})", number + 1
        made.append(dataclasses.replace(section, title=title))
    return made
