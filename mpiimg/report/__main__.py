"""The process that writes a page after a run: `python -m mpiimg.report FOLDER`."""

import sys

from mpiimg.report.program import program

raise SystemExit(program({"folder": sys.argv[1]}, None))
