"""Generalised fractional anisotropy of dipy's constant solid angle model, slice by slice."""

from dipy.core.gradients import gradient_table
from dipy.reconst.shm import CsaOdfModel

import mpiimg


@mpiimg.udf(over="voxels", slices=1, dtype="float32")
def csa_gfa(block, *, bvals, bvecs, mask, sh_order_max=4):
    gradients = gradient_table(bvals, bvecs=bvecs, b0_threshold=50)
    return CsaOdfModel(gradients, sh_order_max).fit(block, mask=mask).gfa
