"""How scripts use mpiimg, for the type checker: each line says what type it comes to. Never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np

import mpiimg as mi

dwi = mi.read("dwi.nii.gz")
assert_type(dwi, mi.Array)
mean = dwi.isel(t=[0, 1, 2]).mean("t")
assert_type(mean, mi.Array)
assert_type(dwi.pad(x=2), mi.Array)
assert_type(dwi.transpose("t", "z", "y", "x").where(dwi > 0, 0.0), mi.Array)
assert_type(mi.from_array(np.zeros((3, 4)), "y x"), mi.Array)
assert_type(mi.map_blocks(np.sqrt, dwi), mi.Array | tuple[mi.Array, ...])
assert_type(mi.where(mean > 1, mean, 0), mi.Array)
assert_type(mi.stack([mean, mean], "k"), mi.Array)

means = mi.items("*.txt").map(len)
assert_type(means, mi.Items)
assert_type(means.compute(), list[Any] | None)
assert_type(means.group_by_key(), mi.Groups)

done = mi.run("neuro", "dwi.nii.gz", "maps", memory="2G", bvals="dwi.bval", bvecs="dwi.bvec")
assert_type(done, mi.Result)
assert_type(done.files["fa"], Path)

try:
    mi.run("neuro", "dwi.nii.gz", "maps")
except mi.BadInput as error:
    assert_type(str(error), str)
