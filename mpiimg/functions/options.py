"""The arguments and options of mpiimg-run."""

from __future__ import annotations

from mpiimg.engine.parameters import Parameter
from mpiimg.engine.step import Argument
from mpiimg.functions.declare import LIMITS, OVER

RUN_ARGUMENTS = (
    (
        Argument(
            "files",
            "With --udf: the file to read, and the file to write unless --out is given. Without: a script "
            "(.py) and its own arguments, or a pipeline (.toml) or DOMAIN:NAME of a step or pipeline, and "
            "its input: an image, exposures, or a folder of warps.",
            positional=True,
            many=True,
        ),
        True,
    ),
    (Argument("out", "The folder that the results go to; it is made if it is missing."), False),
    (Argument("bvals", "The b-values; without it, the file beside the image."), False),
    (Argument("bvecs", "The gradient directions; without it, the file beside the image."), False),
    (Argument("grad", "In place of both, a table of MRtrix3."), False),
    (Argument("mask", "A mask of the voxels that count, for functions and steps that take one."), False),
    (
        Argument(
            "tract",
            "The tract (TOML) whose pixels are used; without it one is laid out around the exposures.",
        ),
        False,
    ),
)

RUN_PARAMETERS = (
    Parameter(
        "udf",
        None,
        "Your function is run, or your class with partial, merge and finish.",
        metavar="FILE.py:NAME",
    ),
    Parameter(
        "param",
        None,
        "A keyword of your function, or a parameter of the step, has this value; the option may be repeated.",
        metavar="NAME=VALUE",
        repeated=True,
    ),
    Parameter(
        "input",
        None,
        "A function of a pipeline, or a step of an installed domain, reads this file too; the option may be "
        "repeated.",
        metavar="NAME=FILE",
        repeated=True,
    ),
    Parameter(
        "recipe",
        None,
        "Parameters of steps that a pipeline does not set have the values of this recipe of the domain.",
        metavar="NAME",
    ),
    Parameter("over", None, "Your function is called on blocks of this kind (default: slabs).", choices=OVER),
    Parameter(
        "halo",
        None,
        "Blocks get this many more slices on both sides (default: 0).",
        int,
        limits=LIMITS["halo"],
    ),
    Parameter(
        "dtype",
        None,
        "The result is of this type (default: the type that your function returns).",
        metavar="NAME",
    ),
    Parameter(
        "components",
        None,
        "The result has this many values per voxel; with --over voxels.",
        int,
        limits=LIMITS["components"],
    ),
    Parameter(
        "slices",
        None,
        "Blocks have this many slices, without the halo (default: it follows from the shape).",
        int,
        limits=LIMITS["slices"],
    ),
    Parameter("check_halo", False, "Say whether the halo is large enough, and stop.", bool),
    Parameter(
        "reference",
        None,
        "A reference catalogue (ra, dec, mag) gives the zero points, whatever cards say.",
        metavar="FILE",
    ),
)
