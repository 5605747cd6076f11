"""source-extractor on every exposure of a night, and one catalogue of all that it found.

mpiexec -n 4 python command_sextractor.py 'night/*.fits' out
"""

import sys

import mpiimg as mi

source, out = sys.argv[1:]
with open("columns.param", "w") as names:
    names.write("X_IMAGE\nY_IMAGE\nFLUX_AUTO\nFLAGS\n")
program = mi.command(
    "source-extractor {in} -c /dev/null -FILTER N -VERBOSE_TYPE QUIET "
    "-PARAMETERS_NAME columns.param -CATALOG_TYPE FITS_1.0 -CATALOG_NAME {out:.cat}"
)
sources = mi.items(source).map(program).table("X_IMAGE Y_IMAGE FLUX_AUTO FLAGS")
mi.write({"sources.parquet": sources}, out)
