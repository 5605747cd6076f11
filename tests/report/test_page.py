"""A page is one file that needs no other, says what it was given, and is no way in for what names say."""

import pytest
from support.parsed_html import parsed

from mpiimg.report.page import (
    Flicker,
    Link,
    Listing,
    Markup,
    Page,
    Picture,
    Section,
    Table,
    Text,
    duration,
    render,
    size,
    words,
)

PNG = b"\x89PNG\r\n\x1a\n"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"


def made(*items, title="A page") -> str:
    return render(Page(title, "subtitle", [Section("All", items)], {"figure": 0.5}), "9.9")


@pytest.fixture(scope="module")
def everything():
    picture = Picture(PNG, "a head")
    return made(
        Text("a paragraph", "warning"),
        Listing("mpiexec -n 2", "a command"),
        Link("other page", "other/report.html"),
        Table(["name", "value"], [["x", 1.5], [Link("y", "y.html"), None]], "a caption"),
        Table(["name"], [["z"]], "folded", folded=True),
        picture,
        Flicker(picture, Picture(SVG, "another head"), "in turn"),
        Markup("<svg><circle/></svg>", "a drawing"),
    )


def test_all_is_in_one_file(everything):
    html = parsed(everything)
    assert html.unclosed == []
    assert html.foreign == []
    assert [alt for _, alt in html.pictures] == ["a head", "a head", "another head"]
    assert all(source.startswith("data:image/") for source, _ in html.pictures)


def test_what_is_given_is_said(everything):
    text = parsed(everything).text
    for given in ("a paragraph", "mpiexec -n 2", "other page", "a caption", "1.5", "n/a", "0.5"):
        assert given in text


def test_names_are_no_markup():
    bad = '<script>alert(1)</script>"&'
    html = made(Text(bad), Picture(PNG, bad, bad), Table([bad], [[bad], [Link(bad, bad)]], bad), title=bad)
    assert "<script" not in html
    assert parsed(html).text.count(bad) >= 4


def test_sections_of_one_name_have_anchors_of_their_own():
    page = Page("A", "b", [Section("Run: mpiimg-fit", []), Section("Run: mpiimg-fit", [])])
    html = parsed(render(page, "1"))
    assert html.anchors == ["run-mpiimg-fit", "run-mpiimg-fit-2"]
    assert [target for tag, target in html.addresses if tag == "a"] == [
        "#run-mpiimg-fit",
        "#run-mpiimg-fit-2",
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "n/a"),
        (float("nan"), "n/a"),
        (True, "yes"),
        (12345, "12\u202f345"),
        (0.123456, "0.1235"),
        (1234.5, "1234"),
        ([1, 2.5], "1, 2.5"),
    ],
)
def test_values_in_words(value, said):
    assert words(value) == said


def test_sizes_and_times():
    assert [size(one) for one in (10, 2048, 3 << 30)] == ["10 B", "2 KiB", "3 GiB"]
    assert [duration(one) for one in (1.5, 120, 7200)] == ["1.5 s", "2 min", "2 h"]
