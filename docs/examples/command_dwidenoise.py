"""MRtrix3's dwidenoise on a scan, then the mean of what it cleaned.

mpiexec -n 4 python command_dwidenoise.py dwi.nii.gz out
"""

import sys

import mpiimg as mi

source, out = sys.argv[1:]
dwi = mi.read(source)
# MP-PCA looks at cubes of voxels, in all volumes at once: nothing is cut.
clean = mi.command("dwidenoise {in:.nii} {out:.nii} -extent 5 -quiet", dwi, whole="x y z t", dtype="float32")
mi.write({"clean.nii.gz": clean, "mean.nii.gz": clean.mean("t")}, out)
