"""Print the lock file of a wheelhouse: every package with its version and the SHA-256 of its files.

Usage: ``python install/lock.py FOLDER > install/lock.txt``, for the Python that the folder is for.
"""

import hashlib
import pathlib
import re
import sys

HEADER = """\
# The files of the version set of constraints.txt, for Python 3.11 on x86-64 Linux.
# After a change of constraints.txt: make lock.
"""

#: name-version of a wheel or a source archive.
FILE = re.compile(r"(?P<name>.+?)-(?P<version>\d[^-]*?)(-.+\.whl|\.tar\.gz)")


def normal(name: str) -> str:
    """Return the one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lock(folder: pathlib.Path) -> str:
    """Return the lock file of the wheels and source archives in `folder`."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.iterdir()):
        parts = FILE.fullmatch(path.name)
        key = normal(parts["name"]), parts["version"]
        found.setdefault(key, []).append(hashlib.sha256(path.read_bytes()).hexdigest())
    lines = [
        f"{name}=={version}" + "".join(f" \\\n    --hash=sha256:{digest}" for digest in digests)
        for (name, version), digests in sorted(found.items())
    ]
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(lock(pathlib.Path(sys.argv[1])))
