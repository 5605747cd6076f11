"""The second form of a command line: a folder of subjects in place of one image, as BIDS Apps have it.

mpiimg-neuro DWI [--bvals FILE --bvecs FILE] --out DIR
mpiimg-neuro BIDS_DIR OUT_DIR participant|group [--participant-label LABEL ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.names import asking
from mpiimg.engine.parameters import Parameter
from mpiimg.errors import Exit

#: Options of the form for one image; those with True must be given.
OF_ONE = {"bvals": False, "bvecs": False, "grad": False, "out": True, "mask": False}

#: Options of the form for a dataset, with their value where they are not given.
OF_MANY = {
    "participant_label": None,
    "session_label": None,
    "group_size": None,
    "strict": False,
    "retry_suspects": False,
    "bids_filter_file": None,
    "ignored": None,
}

#: What is done, in the order of the BIDS Apps: each scan by itself, and the tables of all of them.
LEVELS = ("participant", "group")


@dataclass(frozen=True)
class Ignored:
    """Flags that callers of BIDS Apps give, and that change nothing here.

    Parameters
    ----------
    flags : tuple of str
    why : str
        What is the case in their place.
    metavar : str or None
        Their value; None where they take none.
    """

    flags: tuple[str, ...]
    why: str
    metavar: str | None = None


IGNORED = (
    Ignored(
        (
            "--skip-bids-validation",
            "--skip_bids_validation",
            "--skip-bids-validator",
            "--skip_bids_validator",
        ),
        "no validator runs, and names, headers and gradients of each scan are looked at",
    ),
    Ignored(
        (
            *("--n-cpus", "--n_cpus", "--nprocs", "--n-procs", "--n_procs", "--nthreads", "--n-threads"),
            *("--n_threads", "--omp-nthreads", "--omp_nthreads"),
        ),
        "the ranks that mpiexec or srun starts do the work, one thread each",
        "N",
    ),
    Ignored(
        ("--mem-mb", "--mem_mb", "--mem-gb", "--mem_gb"),
        "--memory says how much a rank may use, by default its share of the node's",
        "SIZE",
    ),
    Ignored(("--bids-database-dir", "--bids_database_dir"), "no database of the dataset is made", "DIR"),
    Ignored(
        ("--use-plugin", "--use_plugin", "--nipype-plugin-file"), "mpiexec or srun starts the ranks", "FILE"
    ),
    Ignored(("--fs-license-file", "--fs_license_file"), "FreeSurfer is not used", "FILE"),
    Ignored(("--low-mem", "--low_mem"), "images are streamed through memory in any case"),
    Ignored(("--resource-monitor", "--resource_monitor"), "run.json has the times and memory of each stage"),
    Ignored(("--write-graph", "--write_graph"), "--plan lists the stages"),
    Ignored(("--notrack",), "nothing is sent to anybody"),
    Ignored(("--dwi-only", "--dwi_only"), "no other images are read"),
)


class _Note(argparse.Action):
    """Keep, for a flag that changes nothing, what is to be said of it."""

    def __init__(self, *, why: str, **keywords):
        super().__init__(**keywords)
        self.why = why

    def __call__(self, parser, namespace, values, option_string=None):
        notes = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*notes, f"{option_string} is ignored: {self.why}"])


#: Ranks that work on a scan.
GROUP_SIZE = Parameter(
    "group_size",
    None,
    "Each scan is worked on by this many ranks (default: the plan chooses).",
    int,
    limits=(1, 1 << 20),
    metavar="N",
)


#: What becomes of the others where one scan cannot be processed.
STRICT = Parameter("strict", False, "One scan that is broken or fails ends the job.", bool)

RETRY_SUSPECTS = Parameter(
    "retry_suspects", False, "Scans that were being processed when two jobs died are tried once more.", bool
)


def usage(prog: str) -> str:
    """Return how a program is called, in both forms."""
    return (
        f"{prog} DWI [--bvals FILE --bvecs FILE] --out DIR [options]\n"
        f"       {prog} BIDS_DIR OUT_DIR participant|group [options]"
    )


def declare(
    parser: argparse.ArgumentParser, help_of_one: str, path: Callable, add: Callable[..., Any]
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
        Called as add(group, parameter, also=flags); adds an option, which may have further names.
    """
    parser.add_argument(
        "inputs",
        nargs="+",
        type=path("DWI"),
        metavar="DWI | BIDS_DIR OUT_DIR participant|group",
        help=f"{help_of_one} In its place: a BIDS dataset, the folder of the derivative to make of all its "
        "scans, and the word participant; with the word group, or after it, the tables of all scans are "
        "written.",
    )
    group = parser.add_argument_group("with a BIDS dataset")
    for what, flags in (
        ("subjects", ("--participant-label", "--participant_label")),
        ("sessions", ("--session-label", "--session_label", "--session-id", "--session_id")),
    ):
        group.add_argument(
            *flags,
            nargs="+",
            metavar="LABEL",
            help=f"Only these {what} are processed (default: all).",
        )
    group.add_argument(
        "--bids-filter-file",
        "--bids_filter_file",
        type=path("--bids-filter-file"),
        metavar="FILE",
        help='Only scans whose names are as this JSON says are processed, e.g. {"dwi": {"session": "01"}}.',
    )
    add(group, GROUP_SIZE)
    add(group, STRICT, also=("--stop-on-first-crash", "--stop_on_first_crash"))
    add(group, RETRY_SUSPECTS)
    others = parser.add_argument_group("of other BIDS Apps, taken and ignored")
    for one in IGNORED:
        others.add_argument(
            *one.flags,
            action=_Note,
            dest="ignored",
            nargs=None if one.metavar else 0,
            metavar=one.metavar,
            why=one.why,
            help=f"Ignored, with a note: {one.why}.",
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
        if inputs[2:] and {*inputs[2:]} <= {*LEVELS}:
            parser.error(f"{inputs[0]}: no such folder")
        if inputs[1:]:
            parser.error(f"one image at a time, not {inputs[1]} as well; many go as a BIDS dataset")
        if many["ignored"]:
            flag = many["ignored"][0].partition(" ")[0]
            parser.error(f"{flag} goes with a BIDS dataset, and {inputs[0]} is no folder")
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
    if len(inputs) < 3:
        parser.error(f"{inputs[0]} is a folder: give {parser.prog} BIDS_DIR OUT_DIR participant")
    levels = tuple(inputs[2:])
    unknown = [level for level in levels if level not in LEVELS]
    if unknown:
        said = f"analysis level {unknown[0]}: there are {' and '.join(LEVELS)}"
        parser.error(asking(said, unknown[0], LEVELS))
    if levels not in (*((level,) for level in LEVELS), LEVELS):
        parser.error(f"analysis levels {' '.join(levels)}: give {', '.join(LEVELS)}, or both in this order")
    args.dwi = None
    args.cohort = argparse.Namespace(dataset=Path(inputs[0]), out=Path(inputs[1]), levels=levels, **many)


def process(tool, args: argparse.Namespace, values: Mapping[str, Any], comm, options, resources) -> Exit:
    """Process the scans of a dataset with a tool, write the tables of all of them, or both. Collective."""
    from mpiimg.neuro.cohort.work import tell

    for note in args.cohort.ignored or ():
        tell(comm, f"mpiimg: note: {note}")
    status = Exit.DONE
    if "participant" in args.cohort.levels:
        status = _process_scans(tool, args, values, comm, options, resources)
    if "group" in args.cohort.levels and (args.cohort.levels == ("group",) or not args.plan):
        _write_tables(args, comm, options, status)
    if not args.plan and not args.no_report:
        from mpiimg.report.child import report_on

        report_on(comm, args.cohort.out)
    return status


def _write_tables(args: argparse.Namespace, comm, options, status: Exit) -> None:
    """Write the tables of a cohort, unless a plan is asked for, and note that this job has. Collective."""
    from mpiimg.engine.log.ended import note_job
    from mpiimg.engine.mpi.agreement import on_root
    from mpiimg.engine.mpi.runtime import say
    from mpiimg.neuro.cohort.records import LOGS
    from mpiimg.neuro.cohort.tables import write_tables
    from mpiimg.neuro.cohort.work import tell

    request = args.cohort
    if args.plan:
        # One rank reads the small files of all scans.
        nothing = {"totals": {"peak_per_rank": 0, "seconds": 0.0}}
        text = "mpiimg: the level group reads records and sidecars alone"
        say(comm, json.dumps(nothing, indent=2) if args.plan == "json" else text, sys.stdout)
        return
    labels = (request.participant_label or (), request.session_label or ())
    tell(comm, f"mpiimg: {on_root(comm, write_tables, request.out, *labels)}")
    on_root(comm, note_job, request.out / LOGS, options.run_id, status)


def _process_scans(tool, args: argparse.Namespace, values: Mapping[str, Any], comm, options, resources):
    """Process the scans of a dataset with a tool. Collective."""
    from mpiimg.engine.mpi.agreement import on_root
    from mpiimg.neuro.bids import Scan, find_scans
    from mpiimg.neuro.bids_filter import read_filter
    from mpiimg.neuro.cohort.cohort import run_cohort
    from mpiimg.neuro.cohort.records import Cohort
    from mpiimg.neuro.cohort.work import tell

    request = args.cohort

    def of_scan(scan: Scan) -> dict[str, Any]:
        own = {"dwi": str(scan.dwi), "bvals": str(scan.bval), "bvecs": str(scan.bvec)}
        return dict(sorted({**values, **own, "out": str(request.out / scan.folder)}.items()))

    # Parameters that fit no scan are one error of the command line, not one of each scan.
    tool.check(values)
    labels = (request.participant_label or (), request.session_label or ())
    selects: tuple = ()
    if request.bids_filter_file:
        chosen, notes = on_root(comm, read_filter, Path(request.bids_filter_file))
        for note in notes:
            tell(comm, f"mpiimg: note: {note}")
        selects = (chosen,)
    study = on_root(comm, find_scans, request.dataset, *labels, *selects)
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
        reports=not args.no_report,
    )
    return run_cohort(cohort, comm, options, resources, args.plan)
