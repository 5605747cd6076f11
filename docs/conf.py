"""How `make docs` builds the site: pages as they are, and reference pages that follow from the code."""

import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import mpiimg  # noqa: E402
from mpiimg.tools import cli, registry  # noqa: E402

project, author, copyright = "mpiimg", "the mpiimg developers", "2026, the mpiimg developers"
version = release = mpiimg.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["examples", "site"]
myst_heading_anchors = 4
# Files beside the pages; tests/tools/test_docs.py looks at every link.
suppress_warnings = ["myst.xref_missing"]

html_theme = "alabaster"
html_theme_options = {
    "description": "Scientific image pipelines as MPI programs",
    "fixed_sidebar": True,
    "page_width": "1100px",
    "sidebar_width": "250px",
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_copy_source = False
autodoc_typehints = "none"
napoleon_google_docstring = False


def tools_page() -> str:
    """Return the page of all tools: what --help says of each."""
    parts = ["# The tools\n\nWhat `--help` says of each, from the same declarations.\n"]
    for name in registry.tool_names():
        parts.append(f"## {name}\n\n```text\n{cli.parser(name).format_help()}```\n")
    return "\n".join(parts)


def python_page() -> str:
    """Return the page of what `import mpiimg` offers, in the words of the docstrings."""
    kinds = {True: ("autoclass", "   :members:\n"), False: ("autofunction", "")}
    parts = ["# The Python API\n\nWhat `import mpiimg as mi` offers ([primitives](../primitives.md)).\n"]
    for name in mpiimg.__all__:
        directive, options = kinds[isinstance(getattr(mpiimg, name), type)]
        parts.append(f"## {name}\n\n```{{eval-rst}}\n.. {directive}:: mpiimg.{name}\n{options}```\n")
    return "\n".join(parts)


def write_reference(app) -> None:
    """Write the pages that follow from the code, where they have changed."""
    folder = DOCS / "reference"
    folder.mkdir(exist_ok=True)
    for name, text in {"tools.md": tools_page(), "python.md": python_page()}.items():
        page = folder / name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def escape_stars(app, what, name, obj, options, lines) -> None:
    """Keep `*arrays` and `**keywords` of a docstring from being taken for emphasis."""
    lines[:] = [re.sub(r"(?<![\w*`])(\*{1,2})(?=[a-z.])(?!.*\*\*$)", r"\\\1", line) for line in lines]


def setup(app):
    """Have the reference written before pages are read."""
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", escape_stars, priority=0)
