"""One rank of a tool, as its program in bin/ runs it, after what a test has put into a folder to break it.

python -m support.tool mpiimg-neuro ...
python -m support.tool --sabotaged FOLDER mpiimg-neuro ...
"""

from __future__ import annotations

import sys

from support.no_syncs import leave_out_syncs


def main(words: list[str]) -> int:
    leave_out_syncs()
    if words[0] == "--sabotaged":
        sys.path.insert(0, words[1])
        import sabotaged  # noqa: F401

        words = words[2:]
    from mpiimg.tools import cli

    return cli.main(words[0], words[1:])
