"""The command line of every tool, built from the parameters that its stages declare.

Nothing heavy is imported before it is needed: --help and a wrong flag answer
without MPI, numba or dipy.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpiimg
from mpiimg.comm import runtime
from mpiimg.errors import BadInput, Exit
from mpiimg.stages import calibrate, coadd, denoise, detect, fit, mask, noise, warp
from mpiimg.stages.stage import POSITIVE, Parameter

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
)

COMMON = (
    Parameter("plan", False, "print what would be done, and stop", bool),
    Parameter("force", False, "overwrite results that exist", bool),
    Parameter("in_memory", False, "stage nothing on disk; a run that dies starts over", bool),
    Parameter("keep_work", False, "keep the staged arrays and marks of a finished run", bool),
    Parameter(
        "memory", None, "memory a rank may use (e.g. 4G); default: its share of the node's", str, "bytes"
    ),
    Parameter(
        "timeout", 3600.0, "end the job when a rank hangs this long; 0 to wait for ever", float, "seconds"
    ),
    Parameter(
        "portable", False, "compile for any x86-64-v3 CPU, so that mixed nodes agree to the last bit", bool
    ),
)


@dataclass(frozen=True)
class Tool:
    """A program: what it says of itself, its arguments, and how its recipe is made.

    Parameters
    ----------
    summary, papers : for the help
    inputs : (name or flag, help, required) of paths
    parameters : options, declared by the stages
    inspect : called with the arguments on one rank, returns what headers say
    recipe : called with that and the parameters on every rank
    result : what is written: "DIR", or a file, beside which the records go
    """

    summary: str
    inputs: tuple[tuple[str, str, bool], ...]
    parameters: tuple[Parameter, ...]
    inspect: Callable
    recipe: Callable
    papers: tuple[str, ...] = ()
    result: str = "DIR"


DWI = ("dwi", "diffusion MRI: NIfTI (.nii, .nii.gz) or a staged file (.h5)", True)
EXPOSURES = (
    "exposures...",
    "FITS exposures, or @list.txt with one a line; of a DECam triplet any file",
    True,
)
TRACT = ("--tract", "tract (TOML) whose pixels to use; without it one is laid around the exposures", False)
REFERENCE = ("--reference", "reference catalogue (ra, dec, mag) that zero points are found from", False)
OUT = ("--out", "folder of the results, made if missing", True)
BVALS = ("--bvals", "b-values, FSL text format, s/mm^2", True)
BVECS = ("--bvecs", "gradient directions, FSL text format, one row or one column a volume", True)


def _inspect(fits: bool = False):
    def inspect(args: argparse.Namespace):
        from mpiimg.pipeline.recipes import inspect_subject

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


def _recipe(name: str):
    def build(found, parameters):
        from mpiimg.pipeline import recipes

        return getattr(recipes, name)(found, parameters)

    return build


def _inspect_image(args):
    from mpiimg.pipeline.recipes import inspect_image

    return inspect_image(args.dwi)


def _inspect_survey(args):
    from mpiimg.pipeline.survey import inspect

    return inspect(args)


def _astro_inspect(name: str):
    def inspect(args):
        from mpiimg.pipeline import astro_tools

        return getattr(astro_tools, f"inspect_{name}")(args)

    return inspect


def _astro_recipe(name: str):
    def build(found, parameters):
        from mpiimg.pipeline import astro_tools

        return getattr(astro_tools, f"{name}_only")(found, parameters)

    return build


def _survey(found, parameters):
    from mpiimg.pipeline.survey import astro

    return astro(found, parameters)


def _inspect_simulation(args):
    from mpiimg.pipeline.simulation import inspect

    return inspect(args)


def _simulation(found, parameters):
    from mpiimg.pipeline.simulation import recipe

    return recipe(found, parameters)


TOOLS = {
    "mpiimg-neuro": Tool(
        "Diffusion MRI from the scanner's image to maps: brain mask, denoising, diffusion tensor.",
        (DWI, BVALS, BVECS, OUT, ("--mask", "brain mask to use instead of computing one", False)),
        (*GRADIENTS, B_MAX, *mask.PARAMETERS, *noise.PARAMETERS, *denoise.PARAMETERS, *fit.PARAMETERS),
        _inspect(fits=True),
        _recipe("neuro"),
        (mask.PAPER, noise.PAPER, denoise.PAPER, fit.PAPER),
    ),
    "mpiimg-stage": Tool(
        "Copy a NIfTI image into a staged HDF5 file, in parallel, for tools to read in any order.",
        (DWI, ("staged", "file to write (.h5)", True)),
        (),
        _inspect_image,
        _recipe("stage_image"),
        result="FILE",
    ),
    "mpiimg-mask": Tool(
        "Brain mask from the b0 volumes: mean, median filter, Otsu threshold.",
        (DWI, BVALS, BVECS, OUT),
        (*GRADIENTS, *mask.PARAMETERS),
        _inspect(),
        _recipe("mask_only"),
        (mask.PAPER,),
    ),
    "mpiimg-denoise": Tool(
        "Non-local means denoising inside a mask. It belongs before eddy-current and motion correction.",
        (DWI, ("--mask", "voxels to denoise", True), OUT),
        (*noise.PARAMETERS, *denoise.PARAMETERS),
        _inspect(),
        _recipe("denoise_only"),
        (noise.PAPER, denoise.PAPER),
    ),
    "mpiimg-fit": Tool(
        "Diffusion tensor fit and its maps, inside a mask.",
        (DWI, BVALS, BVECS, ("--mask", "voxels to fit", True), OUT),
        (*GRADIENTS, B_MAX, *fit.PARAMETERS),
        _inspect(fits=True),
        _recipe("fit_only"),
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
            *CARDS,
            *calibrate.PARAMETERS,
            *coadd.PARAMETERS,
            *detect.PARAMETERS,
        ),
        _inspect_survey,
        _survey,
        (calibrate.PAPER, warp.PAPER, detect.PAPER),
    ),
    "mpiimg-calibrate": Tool(
        "Calibrate exposures: cosmic rays repaired, sky subtracted, stars measured, zero points found.",
        (EXPOSURES, OUT, REFERENCE),
        (STRICT, *CARDS, *calibrate.PARAMETERS),
        _astro_inspect("calibrate"),
        _astro_recipe("calibrate"),
        (calibrate.PAPER,),
    ),
    "mpiimg-warp": Tool(
        "Resample calibrated exposures onto the patches of a tract that they meet.",
        (EXPOSURES, OUT, TRACT),
        (*SKY, STRICT, *CARDS),
        _astro_inspect("warp"),
        _astro_recipe("warp"),
        (warp.PAPER,),
    ),
    "mpiimg-coadd": Tool(
        "Combine the warps of each patch.",
        (("warps", "folder that mpiimg-warp wrote", True), OUT),
        coadd.PARAMETERS,
        _astro_inspect("coadd"),
        _astro_recipe("coadd"),
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
        detect.PARAMETERS,
        _astro_inspect("detect"),
        _astro_recipe("detect"),
        (detect.PAPER,),
        result="CATALOGUE",
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
        _inspect_simulation,
        _simulation,
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """Say what is wrong in one line."""
        self.exit(Exit.BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def parser(name: str) -> argparse.ArgumentParser:
    """Build the command line of tool `name`."""
    tool = TOOLS[name]
    made = _Parser(
        prog=name,
        description=tool.summary,
        epilog="".join(f"\n{paper}" for paper in tool.papers).strip() or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"mpiimg {mpiimg.__version__}")
    for flag, text, required in tool.inputs:
        if flag.endswith("..."):
            made.add_argument(flag[:-3], help=text, nargs="+", metavar=flag[:-4].upper())
        elif flag.startswith("-"):
            made.add_argument(
                flag, help=text, required=required, metavar=tool.result if flag == "--out" else "FILE"
            )
        else:
            made.add_argument(flag, help=text, metavar=flag.upper())
    options = made.add_argument_group("method")
    for parameter in tool.parameters:
        _add(options, parameter)
    common = made.add_argument_group("run")
    for parameter in COMMON:
        _add(common, parameter)
    loudness = common.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="say nothing but errors")
    loudness.add_argument("--verbose", action="store_true", help="say what each stage took")
    return made


def _add(group, parameter: Parameter) -> None:
    flag = "--" + parameter.name.replace("_", "-")
    if parameter.type is bool:
        group.add_argument(flag, action="store_true", help=parameter.help)
        return
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    default = f" (default {parameter.default})" if parameter.default is not None else ""
    group.add_argument(
        flag,
        type=_checked(parameter),
        default=parameter.default,
        choices=parameter.choices,
        metavar=parameter.metavar or (None if parameter.choices else parameter.type.__name__.upper()),
        help=(parameter.help + unit + default).replace("%", "%%"),
    )


def _checked(parameter: Parameter) -> Callable:
    """Return what turns a word into a value of `parameter`, or says why it cannot be one."""
    if parameter.limits is None:
        return parameter.type
    low, high = parameter.limits

    def convert(text: str):
        value = parameter.type(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    convert.__name__ = parameter.type.__name__
    return convert


def main(name: str, arguments: list[str] | None = None) -> int:
    """Run tool `name`; return its exit status."""
    if runtime.launched_rank() != 0:
        # One rank speaks of a wrong command line; the others only leave.
        with _silence():
            args = parser(name).parse_args(arguments)
    else:
        args = parser(name).parse_args(arguments)
    level = logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="mpiimg: %(message)s", stream=sys.stderr)
    if args.portable:
        from mpiimg.kernels.jit import pin_target

        pin_target()
    try:
        comm = runtime.world()
    except BadInput as error:
        print(f"mpiimg: error: {error}", file=sys.stderr)
        return Exit.BAD_INPUT
    return runtime.guard(comm, lambda: _run(name, args, comm))


def _run(name: str, args: argparse.Namespace, comm) -> int:
    from mpiimg.pipeline.plan import Options, Resources, describe, static_plan
    from mpiimg.pipeline.run import run

    tool = TOOLS[name]
    found = runtime.on_root(comm, tool.inspect, args)
    common = {parameter.name for parameter in COMMON} | {"quiet", "verbose", "out"}
    recipe = tool.recipe(found, {k: v for k, v in sorted(vars(args).items()) if k not in common})
    memory = _bytes(args.memory) if args.memory else runtime.memory_per_rank(comm)
    if args.plan:
        resources = Resources(comm.size, memory, args.in_memory)
        runtime.say(comm, describe(static_plan(recipe, resources), resources), sys.stdout)
        return Exit.DONE
    options = Options(
        out=_folder(tool, args),
        memory=memory,
        force=args.force,
        in_memory=args.in_memory,
        keep_work=args.keep_work,
        progress=sys.stderr.isatty() and not args.quiet,
        timeout=args.timeout,
    )
    values = run(recipe, comm, options)
    return Exit.PARTIAL if values.get("left_out") else Exit.DONE


def _folder(tool: Tool, args: argparse.Namespace) -> Path:
    """Return where results go."""
    result = Path(args.out if "out" in args else args.staged)
    return result if tool.result == "DIR" else result.parent


def _bytes(text: str) -> int:
    """Return the number of bytes that e.g. 4G, 500M or 1073741824 means."""
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    number, shift = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 0)
    try:
        return int(float(number) * (1 << shift))
    except ValueError:
        raise BadInput(f"--memory {text}: give bytes, or a number with K, M, G or T") from None


class _silence:
    def __enter__(self):
        import os

        self._streams = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w")

    def __exit__(self, *error):
        sys.stdout.close()
        sys.stdout, sys.stderr = self._streams
