"""The process that writes a page: `python -m mpiimg.report FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from mpiimg.errors import BadInput, Exit
from mpiimg.report.build import write_page


def main(words: list[str]) -> int:
    """Write the page of a folder; say where it is."""
    try:
        print(write_page(Path(words[0])))
    except BadInput as error:
        print(f"mpiimg: error: {error}", file=sys.stderr)
        return Exit.BAD_INPUT
    return Exit.DONE


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
