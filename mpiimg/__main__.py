"""python -m mpiimg: the program mpiimg, where its folder is not on PATH."""

from mpiimg.tools.start import start

raise SystemExit(start("mpiimg"))
