"""What a page of HTML holds, by the parser of Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

#: Attributes that name what a browser fetches or goes to.
ADDRESSES = ("src", "href", "srcset", "data", "action", "poster", "xlink:href")

#: Elements without an end.
VOID = {"meta", "link", "img", "br", "hr", "input", "col", "wbr", "source", "area", "base"}


@dataclass
class Html:
    """Addresses with their elements, pictures by their alt text, anchors, headings, and all text."""

    addresses: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    text: str = ""
    unclosed: list[str] = field(default_factory=list)

    @property
    def foreign(self) -> list[tuple[str, str]]:
        """Addresses that lead out of the page, but for links to other pages."""
        return [one for one in self.addresses if one[0] != "a" and not one[1].startswith(("data:", "#"))]


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self._open = Html(), []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.found.addresses += [(tag, given[name] or "") for name in ADDRESSES if name in given]
        if tag == "img":
            self.found.pictures.append((given.get("src", ""), given.get("alt", "")))
        if "id" in given:
            self.found.anchors.append(given["id"])
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.found.unclosed.append(tag)

    def handle_data(self, data):
        if self._open and self._open[-1] in ("h1", "h2"):
            self.found.headings.append(data.strip())
        if "style" not in self._open:
            self.found.text += data

    def close(self):
        super().close()
        self.found.unclosed += self._open


def parsed(page: Path | str) -> Html:
    """Return what a page holds."""
    parser = _Parser()
    parser.feed(page.read_text() if isinstance(page, Path) else page)
    parser.close()
    return parser.found
