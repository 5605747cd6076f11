"""The tools that run no steps of a domain, each declared in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mpiimg.engine import plugins
from mpiimg.engine.parameters import Parameter
from mpiimg.engine.step import Argument
from mpiimg.tools.tool import DATA, OUT, PREFIX, Tool


def _from(module: str, name: str) -> Callable:
    """Return a function of mpiimg.`module` that is imported when it is called."""

    def call(*arguments):
        return plugins.load_object(f"mpiimg.{module}:{name}").__call__(*arguments)

    return call


def _stage() -> Tool:
    return Tool(
        "mpiimg-stage",
        "Copy a NIfTI image into a staged HDF5 file, in parallel, for tools to read in any order.",
        [
            (Argument("dwi", "The diffusion MRI, as NIfTI (.nii, .nii.gz) or .mif.", positional=True), True),
            (Argument("staged", "The staged file to write (.h5).", positional=True), True),
        ],
        (),
        lambda values: _from("neuro.staging", "inspect")(values["dwi"]),
        lambda image, values: _from("neuro.staging", "stage_recipe")(image, values["staged"], values),
        folder=lambda values: Path(values["staged"]).parent,
        examples=(
            (
                "A staged file, which any number of ranks read in any order.",
                "mpiexec -n 4 mpiimg-stage dwi.nii.gz dwi.h5",
            ),
        ),
        subject=DATA,
    )


def _run() -> Tool:
    from mpiimg.functions.options import RUN_ARGUMENTS, RUN_PARAMETERS

    return Tool(
        "mpiimg-run",
        "Run your own function over images or exposures, or a pipeline of steps, ours and yours.",
        RUN_ARGUMENTS,
        RUN_PARAMETERS,
        _from("functions.run", "inspect"),
        _from("functions.run", "recipe"),
        folder=_from("functions.run", "result_folder"),
        examples=(
            (
                "Your own function over an image, a parameter of it, and two slices of halo.",
                "mpiimg-run --udf mine.py:sharpen --halo 2 --param strength=0.5 in.nii.gz out.nii.gz",
            ),
            (
                "A pipeline of steps, ours and yours.",
                "mpiexec -n 2 mpiimg-run pipeline.toml dwi.nii.gz --out results",
            ),
            ("A script of your own.", "mpiexec -n 8 mpiimg-run mine.py"),
        ),
        subject=DATA,
        reports=True,
    )


def _simulate() -> Tool:
    from mpiimg.simulate.recipes import PARAMETERS

    return Tool(
        "mpiimg-simulate",
        "Simulate data of any size with known truth, rank by rank.",
        [
            (Argument("kind", "The kind of data to simulate: neuro or astro.", positional=True), True),
            (OUT, True),
        ],
        PARAMETERS,
        _from("simulate.recipes", "inspect"),
        _from("simulate.recipes", "recipe"),
        examples=(
            (
                "A head of 72 x 72 x 60 voxels with 30 volumes, and its truth.",
                "mpiexec -n 4 mpiimg-simulate neuro --out head",
            ),
            (
                "Two visits of a camera of four small sensors.",
                "mpiimg-simulate astro --visits 2 --sensors 4 --shape 500x500 --out sky",
            ),
        ),
        subject=DATA,
    )


def _status() -> Tool:
    return Tool(
        "mpiimg-status",
        "Say what the run or cohort in a folder is doing or has done: progress, time left, stalls, failures.",
        [(Argument("folder", "The folder that a tool was given as --out.", positional=True), True)],
        (
            Parameter(
                "verify",
                False,
                "Compare the results with the sizes and checksums that the runs have recorded; say what "
                "differs.",
                bool,
            ),
            Parameter(
                "watch", False, "Show it again every two seconds until it is over, or until Ctrl-C.", bool
            ),
            Parameter("json", False, "Print JSON, for programs; with --watch a line at each look.", bool),
        ),
        program=_from("tools.status", "program"),
        examples=(
            ("How far the run in a folder is, or what became of a cohort.", "mpiimg-status maps"),
            ("Whether its results are as they were written.", "mpiimg-status maps --verify"),
        ),
        mpi=False,
    )


def _report() -> Tool:
    return Tool(
        "mpiimg-report",
        "Write the page about the results in a folder again: report.html, one file that needs no network.",
        [(Argument("folder", "The folder that a tool was given as --out.", positional=True), True)],
        (),
        program=_from("report.program", "program"),
        examples=(("The page about the results in a folder, made again.", "mpiimg-report maps"),),
        mpi=False,
    )


def _doctor() -> Tool:
    return Tool(
        "mpiimg-doctor",
        "Look at the install, the machine and the file system; say what is wrong and what to do.",
        (),
        (
            Parameter(
                "dir",
                ".",
                "Results will go to this folder, whose file system is looked at.",
                str,
                metavar="DIR",
            ),
            Parameter("rates", False, "Time the kernels too, for the seconds that --plan predicts.", bool),
        ),
        program=_from("tools.doctor.doctor", "doctor"),
        examples=(
            (
                "Whether an install works here, on two ranks, with results on a scratch disk.",
                "mpiexec -n 2 mpiimg-doctor --dir /scratch",
            ),
        ),
    )


def _shipped(word: str, summary: str, copied: str) -> Callable[[], Tool]:
    """Return a tool that gives files which were installed beside the package."""
    copy = Parameter("copy", None, copied, str, metavar="DIR")
    examples = (("A copy in the current folder.", f"{PREFIX}{word} --copy ."),)
    program = _from("tools.shipped", word)
    return lambda: Tool(PREFIX + word, summary, (), (copy,), program=program, mpi=False, examples=examples)


OTHERS: Mapping[str, Callable[[], Tool]] = {
    "mpiimg-stage": _stage,
    "mpiimg-run": _run,
    "mpiimg-simulate": _simulate,
    "mpiimg-status": _status,
    "mpiimg-report": _report,
    "mpiimg-doctor": _doctor,
    "mpiimg-slurm": _shipped(
        "slurm",
        "Say where the batch scripts for SLURM are, or copy them to a folder where you can edit them.",
        "The batch scripts are copied to the new folder DIR/slurm, with the place of this install in env.sh.",
    ),
    "mpiimg-docs": _shipped(
        "docs",
        "Say where the documents and their examples are, or copy them to a folder of yours.",
        "The documents and examples are copied to the new folder DIR/docs.",
    ),
}
