"""How a command line becomes a run: what every tool begins with, and how it ends."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from mpiimg.engine import presets
from mpiimg.engine.mpi import runtime, scripts
from mpiimg.engine.mpi.agreement import on_root, safe_point
from mpiimg.engine.mpi.job import launched_rank, run_word
from mpiimg.engine.mpi.lifetime import lifetime, living
from mpiimg.engine.mpi.nodes import memory_per_rank, node_count
from mpiimg.engine.names import shown
from mpiimg.engine.parameters import TIMEOUT, checked_memory, checked_path
from mpiimg.errors import BadInput, Exit
from mpiimg.tools import bids_app
from mpiimg.tools.parsing import COMMON, parser_of
from mpiimg.tools.parsing import parser as parser
from mpiimg.tools.registry import tool
from mpiimg.tools.tool import Tool

#: Seconds: a chunk takes about ten at most, the longest step of one rank about a minute, on a quiet machine.
MIN_TIMEOUT = 300.0


def main(name: str, arguments: list[str] | None = None) -> int:
    """Run tool `name`; return its exit status."""
    scripts.not_a_script()
    made = tool(name)
    words = sys.argv[1:] if arguments is None else arguments
    if name == "mpiimg-run":
        from mpiimg.tools.script_runs import run_script, script_among

        if (place := script_among(made, words)) is not None:
            return run_script(made, words[:place], words[place], words[place + 1 :])
    if not made.mpi:
        # It only looks, and may end at any time.
        lifetime().end()
        values = vars(parsed(made, arguments))
        try:
            return runtime.check_printed(made.program(values, None))
        except KeyboardInterrupt:
            return Exit.STOPPED
    with living(owner=True) as life:
        life.command = shlex.join([name, *words])
        args = parsed(made, arguments)
        if getattr(args, "portable", False):
            from mpiimg.kernels.jit import pin_target

            pin_target()
        if getattr(args, "ended", None) is not None:
            return answer_ended(made, args)
        # What is too short is refused below, once one rank can speak.
        life.watchdog.seconds = getattr(args, "timeout", TIMEOUT.default)
        try:
            comm = runtime.world()
        except BadInput as error:
            return runtime.refused(error)
        status = runtime.check_printed(runtime.guard(comm, lambda: _program(made, args, comm)))
        life.watchdog("the end")
        return status


def parsed(tool: Tool, arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line, and say so much as it asks for."""
    if launched_rank() != 0:
        # One rank speaks of a wrong command line; the others only leave.
        with _silence():
            args = parser_of(tool).parse_args(arguments)
    else:
        args = parser_of(tool).parse_args(arguments)
    level = logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Lines("mpiimg: %(message)s"))
    return args


def _program(tool: Tool, args: argparse.Namespace, comm) -> int:
    """Do what a tool does. Collective."""
    safe_point(comm)
    if tool.program is None:
        return _run(tool, args, comm, lifetime().command)
    lifetime().watchdog.seconds = 0.0  # it may take its time
    return tool.program(vars(args), comm)


def answer_ended(tool: Tool, args: argparse.Namespace) -> int:
    """Say whether the run that the environment names ended with a status, by what it says itself."""
    from mpiimg.engine.log.ended import says_so

    is_cohort = getattr(args, "cohort", None) is not None
    folder = args.cohort.out if is_cohort else tool.folder(vars(args))
    if says_so(folder, run_word(), args.ended):
        return Exit.DONE
    words = f" ({Exit(args.ended).words})" if args.ended in set(Exit) else ""
    print(
        f"mpiimg: error: {tool.name} ended with status {args.ended}{words}, which nothing in {shown(folder)} "
        "confirms: something else ended it, and it counts as failed",
        file=sys.stderr,
    )
    return Exit.FAILED


class _Lines(logging.Formatter):
    """Lines of a log as a terminal may show them."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record), lines=True)


def _run(tool: Tool, args: argparse.Namespace, comm, command: str) -> int:
    from mpiimg.engine.run import run

    check_common(args)
    common = {parameter.name for parameter in COMMON} | {"quiet", "verbose", "cohort"}
    values: dict[str, Any] = {k: v for k, v in sorted(vars(args).items()) if k not in common}
    if getattr(args, "cohort", None) is not None:
        resources = _resources(args, comm)
        options = _options(args, args.cohort.out, resources.memory, command)
        return bids_app.process(tool, args, values, comm, options, resources)
    inspected = on_root(comm, tool.inspect, values, where="the inspection of inputs")
    if answer := getattr(inspected, "answer", None):
        runtime.say(comm, answer, sys.stdout)
        return Exit.DONE
    recipe = tool.recipe(inspected, values)
    resources = _resources(args, comm)
    if args.plan:
        return _plan(recipe, resources, args.plan, Path(args.work_dir or tool.folder(values)), comm)
    safe_point(comm)
    options = _options(args, tool.folder(values), resources.memory, command)
    outcome = run(recipe, comm, options)
    # Where one image is the result its folder may be anybody's.
    if tool.reports and not args.no_report and values.get("out"):
        from mpiimg.report.child import report_on

        report_on(comm, options.out, always=outcome.state is not None)
    return outcome.status


def check_common(args: argparse.Namespace) -> None:
    """Look at the options of every run, before any input is looked at."""
    if (args.ranks or args.nodes) and not args.plan:
        raise BadInput("--ranks and --nodes are for --plan; a run has the ranks that mpiexec or srun starts")
    if args.work_dir is not None:
        checked_path(args.work_dir, "--work-dir")
        if args.in_memory:
            raise BadInput("--work-dir: with --in-memory nothing is staged on disk; give one of them")
    if args.memory is not None:
        lifetime().memory = checked_memory(args.memory, "--memory")
    if 0 < args.timeout < MIN_TIMEOUT:
        raise BadInput(
            f"--timeout {args.timeout:g}: one step may well take that long on a busy machine; "
            f"give {MIN_TIMEOUT:g} or more, or 0 to wait for ever"
        )


def _options(args: argparse.Namespace, out: Path, memory: int, command: str):
    from mpiimg.engine.recipe import Options

    return Options(
        out=out,
        memory=memory,
        force=args.force,
        in_memory=args.in_memory,
        keep_work=args.keep_work,
        work_dir=None if args.work_dir is None else Path(args.work_dir),
        progress=not args.quiet,
        timeout=args.timeout,
        command=command,
        run_id=run_word(),
    )


def _resources(args: argparse.Namespace, comm):
    """Return the ranks and memory of this job, or those that a plan is asked for. Collective."""
    from mpiimg.engine import rates
    from mpiimg.engine.plan import Resources

    ranks = args.ranks or comm.size
    nodes = args.nodes or min(ranks, node_count(comm))
    if nodes > ranks:
        raise BadInput(f"--nodes {nodes}: there are only {ranks} ranks to spread over them; give --ranks")
    share = -(-ranks // nodes) if args.plan else None
    memory = memory_per_rank(comm, share) if args.memory is None else checked_memory(args.memory, "--memory")
    measured = on_root(comm, rates.load_rates) if args.plan else rates.DEFAULTS
    return Resources(ranks, memory, args.in_memory, nodes, measured)


def _plan(recipe, resources, form: str, out: Path, comm) -> int:
    """Print the plan of a run whose arrays are staged below folder `out`."""
    from mpiimg.engine.log import show_plan
    from mpiimg.engine.log.verdict import disk_of
    from mpiimg.engine.plan import plan_recipe
    from mpiimg.engine.proof import prove_heads

    def text():
        prove_heads(recipe)
        plan, named = plan_recipe(recipe, resources), recipe.said.get(presets.NAME, "")
        disk = disk_of(recipe, resources, Path(out))
        if form == "json":
            return show_plan.as_json(plan, resources, named, disk)
        return "\n".join((show_plan.table(plan, resources, named, form == "full", disk), *recipe.notes))

    runtime.say(comm, on_root(comm, text), sys.stdout)
    return Exit.DONE


class _silence:
    def __enter__(self):
        self._streams = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w")

    def __exit__(self, *error):
        sys.stdout.close()
        sys.stdout, sys.stderr = self._streams
