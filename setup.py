"""What pyproject.toml cannot say: launchers, files that go along, the README with absolute links."""

import pathlib
import re
import tomllib

from setuptools import setup

HERE = pathlib.Path(__file__).parent

#: Folders that an install has beside the package, in share/mpiimg: mpiimg/tools/shared.py finds them.
SHARED = ("docs", "slurm")


def files(folder):
    """Return the files below `folder`, as pairs of where they go and what goes there."""
    found = {}
    for path in sorted((HERE / folder).rglob("*")):
        if path.is_file() and not {"__pycache__", "reference"} & {*path.parts}:
            relative = path.relative_to(HERE)
            found.setdefault(f"share/mpiimg/{relative.parent}", []).append(str(relative))
    return list(found.items())


def readme():
    """Return the README, with links that lead somewhere from a page of a package index too."""
    home = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    text = (HERE / "README.md").read_text()
    text = re.sub(r"(!\[[^\]]*\]\()(?!\w+:|#)", rf"\1{home}/raw/main/", text)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!\w+:|#)", rf"\1{home}/blob/main/", text)


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    scripts=sorted(str(path.relative_to(HERE)) for path in (HERE / "bin").glob("mpiimg*")),
    data_files=[entry for folder in SHARED for entry in files(folder)],
)
