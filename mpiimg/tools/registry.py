"""The tools: what each says of itself, its arguments, and what it runs.

Nothing heavy is imported before it is needed: --help and a wrong flag answer
without MPI, numba or dipy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from mpiimg.astro.steps import calibrate, coadd, detect, patch_files, warp
from mpiimg.engine.stage import POSITIVE, Parameter
from mpiimg.functions import declare as udf
from mpiimg.neuro.steps import denoise, fit, mask, noise

GRADIENTS = (
    Parameter(
        "b0_threshold", 50.0, "volumes at or below count as b0", float, "s/mm^2", limits=(0, POSITIVE[1])
    ),
    Parameter("normalise_bvecs", False, "rescale bvecs that are not of unit length", bool),
)
B_MAX = Parameter("b_max", None, "volumes above are left out of the fit", float, "s/mm^2")

SKY = (
    Parameter("center", None, "centre of the tract", str, "degrees", metavar="RA,DEC"),
    Parameter("pixel_scale", 0.333, "of the tract", float, "arcsec", limits=POSITIVE),
    Parameter("patch", 2000, "side of a patch without its border", int, "pixels", limits=(1, 100_000)),
    Parameter("border", 100, "of a patch on each side", int, "pixels", limits=(0, 10_000)),
)
STRICT = Parameter("strict", False, "let one exposure that cannot be used end the run", bool)
CATALOGUE = Parameter("catalogue", "catalogue.fits", "name of the catalogue: .fits, .ecsv or .parquet", str)

INTERMEDIATE = (
    Parameter("calibrated", False, "write the calibrated exposures too, as mpiimg-calibrate does", bool),
    Parameter("warps", False, "write the warps too, as mpiimg-warp does", bool),
)

CARDS = (
    Parameter("zero_point", None, "magnitude of one count; default card MAGZERO", str, metavar="CARD|NUMBER"),
    Parameter("gain", None, "electrons a count; default GAIN or GAINA and GAINB", str, metavar="CARD|NUMBER"),
    Parameter(
        "read_noise", None, "electrons; default RDNOISE or RDNOISEA and RDNOISEB", str, metavar="CARD|NUMBER"
    ),
    Parameter("saturate", None, "counts; default SATURATE", str, metavar="CARD|NUMBER"),
    Parameter("filter", None, "default: first word of FILTER", str, metavar="CARD|=NAME"),
    Parameter("visit", None, "default EXPID, VISIT or EXPNUM, else DATE-OBS", str, metavar="CARD|=NAME"),
    Parameter("sensor", None, "default CCDNUM, DETPOS, CCDNAME, CCD or DETSER", str, metavar="CARD|=NAME"),
    Parameter(
        "zero_point_per",
        "exposure",
        "what a count of the zero point is of: the exposure, or a second of it",
        str,
        choices=("exposure", "second"),
    ),
    Parameter(
        "decam_mask",
        "auto",
        "what a DECam mask (ood) holds; auto: what PLVER says",
        str,
        choices=("auto", "codes", "bits"),
    ),
)

USER = (
    Parameter("udf", None, "function, or class of partial, merge and finish", str, metavar="FILE.py:NAME"),
    Parameter("param", None, "a keyword of it; may be repeated", str, metavar="NAME=VALUE", repeated=True),
    Parameter("over", None, "what it is called on (default slabs)", str, choices=udf.OVER),
    Parameter("halo", None, "slices more on both sides (default 0)", int, limits=(0, 100_000)),
    Parameter("dtype", None, "of its result (default: what it returns)", str, metavar="NAME"),
    Parameter("components", None, "values a voxel of its result, over voxels", int, limits=(1, 100_000)),
    Parameter("slices", None, "in a block, without the halo", int, limits=(1, 100_000)),
    Parameter("check_halo", False, "say whether the halo is enough, and stop", bool),
)


@dataclass(frozen=True)
class Tool:
    """A program: what it says of itself, its arguments, and how its recipe is made.

    A tool that runs no pipeline has a `program` in place of `inspect` and `recipe`.

    Parameters
    ----------
    summary, papers : for the help
    inputs : (name or flag, help, required) of paths
    parameters : options, declared by the stages
    inspect : called with the arguments on one rank, returns what headers say
    recipe : called with that and the parameters on every rank
    result : what is written: "DIR", or a file, beside which the records go
    folder : called with the arguments, returns where results go, for a tool whose arguments tell it otherwise
    program : called as program(args, comm) on every rank, returns the exit status
    mpi : whether the program needs MPI; without it, it gets None for comm
    bids : whether it takes a BIDS dataset in place of one image (bids_app.py)
    """

    summary: str
    inputs: tuple[tuple[str, str, bool], ...]
    parameters: tuple[Parameter, ...]
    inspect: Callable | None = None
    recipe: Callable | None = None
    papers: tuple[str, ...] = ()
    result: str = "DIR"
    program: Callable | None = None
    mpi: bool = True
    folder: Callable | None = None
    bids: bool = False


DWI = ("dwi", "diffusion MRI: NIfTI (.nii, .nii.gz) or a staged file (.h5)", True)
EXPOSURES = (
    "exposures...",
    "FITS exposures, or @list.txt with one a line; of a DECam triplet any file",
    True,
)
TRACT = ("--tract", "tract (TOML) whose pixels to use; without it one is laid around the exposures", False)
REFERENCE = (
    "--reference",
    "reference catalogue (ra, dec, mag) that zero points are found from, whatever cards say",
    False,
)
OUT = ("--out", "folder of the results, made if missing", True)
BVALS = ("--bvals", "b-values, FSL text format, s/mm^2", True)
BVECS = ("--bvecs", "gradient directions, FSL text format, one row or one column a volume", True)


def _from(module: str, name: str) -> Callable:
    """Return a function of mpiimg.`module` that is imported when it is called."""

    def call(*arguments):
        from importlib import import_module

        return getattr(import_module(f"mpiimg.{module}"), name)(*arguments)

    return call


def _inspect(fits: bool = False):
    def inspect(args: argparse.Namespace):
        from mpiimg.neuro.subject import inspect_subject

        return inspect_subject(
            args.dwi,
            getattr(args, "bvals", None),
            getattr(args, "bvecs", None),
            getattr(args, "mask", None),
            getattr(args, "b0_threshold", 50.0),
            getattr(args, "b_max", None),
            getattr(args, "normalise_bvecs", False),
            fits,
        )

    return inspect


TOOLS = {
    "mpiimg-neuro": Tool(
        "Diffusion MRI from the scanner's image to maps: brain mask, denoising, diffusion tensor.",
        (DWI, BVALS, BVECS, OUT, ("--mask", "brain mask to use instead of computing one", False)),
        (*GRADIENTS, B_MAX, *mask.PARAMETERS, *noise.PARAMETERS, *denoise.PARAMETERS, *fit.PARAMETERS),
        _inspect(fits=True),
        _from("neuro.subject", "neuro"),
        (mask.PAPER, noise.PAPER, denoise.PAPER, fit.PAPER),
        bids=True,
    ),
    "mpiimg-stage": Tool(
        "Copy a NIfTI image into a staged HDF5 file, in parallel, for tools to read in any order.",
        (DWI, ("staged", "file to write (.h5)", True)),
        (),
        lambda args: _from("neuro.subject", "inspect_image")(args.dwi),
        _from("neuro.subject", "stage_image"),
        result="FILE",
    ),
    "mpiimg-mask": Tool(
        "Brain mask from the b0 volumes: mean, median filter, Otsu threshold.",
        (DWI, BVALS, BVECS, OUT),
        (*GRADIENTS, *mask.PARAMETERS),
        _inspect(),
        _from("neuro.subject", "mask_only"),
        (mask.PAPER,),
    ),
    "mpiimg-denoise": Tool(
        "Non-local means denoising inside a mask. It belongs before eddy-current and motion correction.",
        (DWI, ("--mask", "voxels to denoise", True), OUT),
        (*noise.PARAMETERS, *denoise.PARAMETERS),
        _inspect(),
        _from("neuro.subject", "denoise_only"),
        (noise.PAPER, denoise.PAPER),
    ),
    "mpiimg-fit": Tool(
        "Diffusion tensor fit and its maps, inside a mask.",
        (DWI, BVALS, BVECS, ("--mask", "voxels to fit", True), OUT),
        (*GRADIENTS, B_MAX, *fit.PARAMETERS),
        _inspect(fits=True),
        _from("neuro.subject", "fit_only"),
        (fit.PAPER,),
    ),
    "mpiimg-astro": Tool(
        "A sky survey from exposures to coadds and a catalogue: calibrate, warp, coadd, detect.",
        (EXPOSURES, OUT, TRACT, REFERENCE),
        (
            *SKY,
            CATALOGUE,
            STRICT,
            *INTERMEDIATE,
            patch_files.WEIGHT,
            *patch_files.MAPS,
            patch_files.COMPRESS,
            *CARDS,
            *calibrate.PARAMETERS,
            *coadd.PARAMETERS,
            *detect.PARAMETERS,
        ),
        _from("astro.survey", "inspect"),
        _from("astro.survey", "astro"),
        (calibrate.PAPER, warp.PAPER, detect.PAPER),
    ),
    "mpiimg-calibrate": Tool(
        "Calibrate exposures: cosmic rays repaired, sky subtracted, stars measured, zero points found.",
        (EXPOSURES, OUT, REFERENCE),
        (STRICT, *CARDS, *calibrate.PARAMETERS),
        _from("astro.astro_tools", "inspect_calibrate"),
        _from("astro.astro_tools", "calibrate_only"),
        (calibrate.PAPER,),
    ),
    "mpiimg-warp": Tool(
        "Resample calibrated exposures onto the patches of a tract that they meet.",
        (EXPOSURES, OUT, TRACT),
        (*SKY, STRICT, *CARDS),
        _from("astro.astro_tools", "inspect_warp"),
        _from("astro.astro_tools", "warp_only"),
        (warp.PAPER,),
    ),
    "mpiimg-coadd": Tool(
        "Combine the warps of each patch.",
        (("warps", "folder that mpiimg-warp wrote", True), OUT),
        (*coadd.PARAMETERS, patch_files.WEIGHT, patch_files.COMPRESS),
        _from("astro.astro_tools", "inspect_coadd"),
        _from("astro.astro_tools", "coadd_only"),
    ),
    "mpiimg-detect": Tool(
        "Find and measure the sources of patches; one catalogue of all.",
        (
            ("patches", "folder that mpiimg-coadd or mpiimg-astro wrote", True),
            (
                "--out",
                "catalogue to write: .fits, .ecsv or .parquet; regions for DS9 (.reg) go beside it",
                True,
            ),
        ),
        (*detect.PARAMETERS, *patch_files.MAPS, patch_files.COMPRESS),
        _from("astro.astro_tools", "inspect_detect"),
        _from("astro.astro_tools", "detect_only"),
        (detect.PAPER,),
        result="CATALOGUE",
    ),
    "mpiimg-run": Tool(
        "Run your own function over images or exposures, or a pipeline of stages, ours and yours.",
        (
            (
                "files...",
                "with --udf what to read, and what to write (or --out); else a pipeline (.toml), and what to "
                "read: an image, exposures, or a folder of warps",
                True,
            ),
            ("--out", "folder of the results, made if missing", False),
            ("--bvals", "b-values; default: beside the image", False),
            ("--bvecs", "gradient directions; default: beside the image", False),
            ("--mask", "voxels that count, for functions and tools that need to know", False),
            TRACT,
            REFERENCE,
        ),
        USER,
        lambda args: _from("functions.run", "inspect")(args, stage_parameters()),
        _from("functions.run", "recipe"),
        folder=_from("functions.run", "result_folder"),
    ),
    "mpiimg-simulate": Tool(
        "Simulate data of any size with known truth, rank by rank.",
        (("kind", "what to simulate: neuro or astro", True), OUT),
        (
            Parameter(
                "shape",
                None,
                "neuro: voxels along x, y and z (default 72x72x60); astro: rows and columns of a sensor "
                "(default 4000x4072)",
                str,
                metavar="NxN[xN]",
            ),
            Parameter("volumes", 30, "neuro: diffusion volumes, b0 included", int),
            Parameter("sigma", 40.0, "neuro: noise level of the Rician noise", float, "image units"),
            Parameter("visits", 24, "astro: exposures of the field", int),
            Parameter("sensors", 60, "astro: sensors of the camera", int),
            Parameter("seed", 7, "of every random number", int),
        ),
        _from("simulate.recipes", "inspect"),
        _from("simulate.recipes", "recipe"),
    ),
    "mpiimg-status": Tool(
        "What the run in a folder is doing, or has done: progress, time left, slowest ranks, what failed.",
        (("folder", "folder that a tool was given as --out", True),),
        (Parameter("json", False, "print JSON", bool),),
        program=_from("tools.status", "program"),
        mpi=False,
    ),
    "mpiimg-doctor": Tool(
        "Look at the install, the machine and the file system; say what is wrong and what to do.",
        (),
        (
            Parameter("dir", ".", "where results will go", str, metavar="DIR"),
            Parameter("rates", False, "measure the kernels too, for the times that --plan predicts", bool),
        ),
        program=_from("tools.doctor.doctor", "doctor"),
    ),
}


def stage_parameters() -> dict[str, dict[str, tuple[Parameter, ...]]]:
    """Return the parameters of each tool that can be a stage of a pipeline, by the kind of its input."""
    from mpiimg.functions.request import STEPS

    found = {
        kind: {name: TOOLS[f"mpiimg-{name}"].parameters for name in names} for kind, names in STEPS.items()
    }
    found["survey"]["detect"] += (CATALOGUE,)
    return found
