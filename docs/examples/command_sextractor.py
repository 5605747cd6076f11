"""source-extractor on every exposure of a night, and one catalogue of all that it found.

mpiexec -n 4 python command_sextractor.py 'night/*.fits' out
"""

import pathlib
import sys

import mpiimg as mi

source, out = sys.argv[1:]
columns = pathlib.Path(__file__).with_name("sextractor.param")
program = mi.command(
    f"source-extractor {{in}} -c /dev/null -FILTER N -VERBOSE_TYPE QUIET -DETECT_THRESH 3 "
    f"-PARAMETERS_NAME {columns} -CATALOG_TYPE FITS_1.0 -CATALOG_NAME {{out:.cat}}"
)
sources = mi.items(source).map(program).table("X_IMAGE Y_IMAGE FLUX_AUTO FLAGS", units={"FLUX_AUTO": "ct"})
mi.write({"sources.parquet": sources, "bright.fits": sources.filter("FLUX_AUTO > 1000")}, out)
