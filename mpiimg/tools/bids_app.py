"""The second form of a command line: a folder of subjects in place of one image, as BIDS Apps have it.

mpiimg-neuro DWI --bvals FILE --bvecs FILE --out DIR
mpiimg-neuro BIDS_DIR OUT_DIR participant [--participant-label LABEL ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.parameters import Parameter
from mpiimg.errors import Exit

#: Options of the form for one image; those with True must be given.
OF_ONE = {"bvals": True, "bvecs": True, "out": True, "mask": False}

#: Options of the form for a dataset, with their value where they are not given.
OF_MANY = {
    "participant_label": None,
    "session_label": None,
    "group_size": None,
    "strict": False,
    "retry_suspects": False,
}


#: Ranks that work on a scan.
GROUP_SIZE = Parameter(
    "group_size",
    None,
    "Each scan is worked on by this many ranks (default: the plan chooses).",
    int,
    limits=(1, 1 << 20),
    metavar="N",
)


def declare(
    parser: argparse.ArgumentParser, help_of_one: str, path: Callable, add: Callable[[Any, Parameter], None]
) -> None:
    """Add the positional arguments of both forms, and the options of the second.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    help_of_one : str
        Help of the image of the first form.
    path : callable
        Called as path(name); returns what turns a word into the path of that name, as argparse's `type`.
    add : callable
        Called as add(group, parameter); adds an option.
    """
    prog = parser.prog
    parser.usage = (
        f"{prog} DWI --bvals FILE --bvecs FILE --out DIR [options]\n"
        f"       {prog} BIDS_DIR OUT_DIR participant [options]"
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        type=path("DWI"),
        metavar="DWI | BIDS_DIR OUT_DIR participant",
        help=f"{help_of_one} In its place: a BIDS dataset, the folder of the derivative to make of all its "
        "scans, and the word participant.",
    )
    group = parser.add_argument_group("with a BIDS dataset")
    for flag, what in (("participant", "subjects"), ("session", "sessions")):
        group.add_argument(
            f"--{flag}-label",
            f"--{flag}_label",
            nargs="+",
            metavar="LABEL",
            help=f"Only these {what} are processed (default: all).",
        )
    add(group, GROUP_SIZE)
    group.add_argument("--strict", action="store_true", help="One scan that fails ends the job.")
    group.add_argument(
        "--retry-suspects",
        action="store_true",
        help="Scans that were being processed when two jobs died are tried once more.",
    )


def tell_apart(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Leave in `args` the arguments of one form: `dwi` of the first, `cohort` of the second.

    A wrong mixture ends the program as any wrong command line does.
    """
    inputs = args.inputs
    many = {name: getattr(args, name) for name in OF_MANY}
    for name in ("inputs", *OF_MANY):
        delattr(args, name)
    flags = {name: "--" + name.replace("_", "-") for name in (*OF_ONE, *OF_MANY)}
    args.dwi, args.cohort = inputs[0], None
    if not Path(inputs[0]).is_dir():
        if len(inputs) == 3 and inputs[2] == "participant":
            parser.error(f"{inputs[0]}: no such folder")
        if inputs[1:]:
            parser.error(f"one image at a time, not {inputs[1]} as well; many go as a BIDS dataset")
        misplaced = [name for name, value in many.items() if value != OF_MANY[name]]
        if misplaced:
            parser.error(f"{flags[misplaced[0]]} goes with a BIDS dataset, and {inputs[0]} is no folder")
        missing = [flags[name] for name, needed in OF_ONE.items() if needed and getattr(args, name) is None]
        if missing:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
        return
    misplaced = [name for name in OF_ONE if getattr(args, name) is not None]
    if misplaced:
        parser.error(f"{flags[misplaced[0]]} goes with one image, and {inputs[0]} is a folder of them")
    if len(inputs) != 3:
        parser.error(f"{inputs[0]} is a folder: give {parser.prog} BIDS_DIR OUT_DIR participant")
    if inputs[2] != "participant":
        parser.error(f"analysis level {inputs[2]}: there is participant only")
    args.dwi = None
    args.cohort = argparse.Namespace(dataset=Path(inputs[0]), out=Path(inputs[1]), **many)


def process(tool, args: argparse.Namespace, values: Mapping[str, Any], comm, options, resources) -> Exit:
    """Process the scans of a dataset with a tool. Collective."""
    from mpiimg.engine.mpi.agreement import on_root
    from mpiimg.neuro.bids import Scan, find_scans
    from mpiimg.neuro.cohort.cohort import run_cohort
    from mpiimg.neuro.cohort.records import Cohort

    request = args.cohort

    def of_scan(scan: Scan) -> dict[str, Any]:
        own = {"dwi": str(scan.dwi), "bvals": str(scan.bval), "bvecs": str(scan.bvec)}
        return dict(sorted({**values, **own, "out": str(request.out / scan.folder)}.items()))

    # Parameters that fit no scan are one error of the command line, not one of each scan.
    tool.check(values)
    labels = (request.participant_label or (), request.session_label or ())
    study = on_root(comm, find_scans, request.dataset, *labels)
    cohort = Cohort(
        dataset=request.dataset,
        out=request.out,
        scans=study.scans,
        without=study.without,
        parameters={name: value for name, value in values.items() if name not in ("dwi", *OF_ONE)},
        inspect=lambda scan: tool.inspect(of_scan(scan)),
        recipe=lambda scan, inspected: tool.recipe(inspected, of_scan(scan)),
        group_size=request.group_size,
        strict=request.strict,
        retry_suspects=request.retry_suspects,
    )
    return run_cohort(cohort, comm, options, resources, args.plan)
