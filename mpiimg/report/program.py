"""mpiimg-report: the page about the results in a folder, made again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.mpi.runtime import put
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput, Exit
from mpiimg.report.build import write_page


def program(values: Mapping[str, Any], comm) -> int:
    """Write the page of a folder, and say where it is: mpiimg-report."""
    try:
        page = write_page(Path(values["folder"]))
    except BadInput as error:
        put(f"mpiimg: error: {shown(str(error))}", sys.stderr)
        return Exit.BAD_INPUT
    put(shown(str(page)), sys.stdout)
    return Exit.DONE
