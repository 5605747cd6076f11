"""The command line of every tool, built from what its steps declare."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpiimg.engine import presets
from mpiimg.engine.mpi import runtime, scripts
from mpiimg.engine.mpi.agreement import on_root, safe_point
from mpiimg.engine.mpi.job import launched_rank, run_word
from mpiimg.engine.mpi.lifetime import lifetime, living
from mpiimg.engine.mpi.nodes import memory_per_rank, node_count
from mpiimg.engine.names import shown
from mpiimg.engine.parameters import TIMEOUT, Parameter, checked_memory, checked_path, from_word
from mpiimg.errors import BadInput, Exit
from mpiimg.tools import bids_app
from mpiimg.tools.registry import Tool, tool
from mpiimg.version import __version__

#: Seconds: a chunk takes about ten at most, the longest step of one rank about a minute, on a quiet machine.
MIN_TIMEOUT = 300.0

#: How a negative number begins, or an infinity or NaN with a sign.
_NEGATIVE = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)

COMMON = (
    Parameter(
        "plan",
        None,
        "Print what the run would do and need, and stop; --plan=full prints a line for each stage, and "
        "--plan=json is for programs.",
        choices=("table", "full", "json"),
        bare="table",
    ),
    Parameter("ranks", None, "With --plan: plan for this many ranks.", int, limits=(1, 1 << 20), metavar="N"),
    Parameter(
        "nodes",
        None,
        "With --plan: spread the ranks over this many nodes.",
        int,
        limits=(1, 1 << 20),
        metavar="N",
    ),
    Parameter(
        "ended",
        None,
        "Batch scripts ask whether the run that MPIIMG_RUN names ended with this status, and start none.",
        int,
        limits=(0, 255),
        metavar="STATUS",
    ),
    Parameter("force", False, "All results are made anew, and those that exist overwritten.", bool),
    Parameter("in_memory", False, "Stage nothing on disk; a run that dies starts over.", bool),
    Parameter("keep_work", False, "Keep the staged arrays and the checkpoints of a finished run.", bool),
    Parameter(
        "memory",
        None,
        "A rank may use this much memory, in bytes or as e.g. 4G (default: its share of the node's).",
        metavar="SIZE",
    ),
    TIMEOUT,
    Parameter(
        "portable",
        False,
        "Compile for any x86-64-v3 CPU, so that mixed nodes agree to the last bit.",
        bool,
    ),
)


class _Parser(argparse.ArgumentParser):
    #: The tool whose command line it is.
    tool: Tool

    def parse_args(self, args=None, namespace=None):
        """Read a command line of either form: for one image, or for a BIDS dataset."""
        if self.tool.bids:
            parsed = self.parse_intermixed_args(args, namespace)
            bids_app.tell_apart(self, parsed)
        else:
            parsed = super().parse_args(args, namespace)
        given = vars(parsed)
        given |= presets.settled(self.tool.parameters, self.tool.presets, given)
        return parsed

    def parse_known_args(self, args=None, namespace=None):
        """Take an option that may go without its value as such a one, whatever word comes after it."""
        bare = {
            flag: action.const
            for action in self._actions
            if action.nargs == "?"
            for flag in action.option_strings
        }
        words = sys.argv[1:] if args is None else args
        words = [f"{word}={bare[word]}" if word in bare else word for word in words]
        try:
            return super().parse_known_args(self._joined(words), namespace)
        except BadInput as error:
            self.exit(Exit.BAD_INPUT, f"mpiimg: error: {error}\n")

    def _joined(self, words: list[str]) -> list[str]:
        """Join an option and a value that looks like one: argparse knows -1, but neither -inf nor -1e5."""
        takers = {flag for action in self._actions if action.nargs is None for flag in action.option_strings}
        joined: list[str] = []
        for word in words:
            if joined and joined[-1] in takers and _NEGATIVE.match(word):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return joined

    def error(self, message: str):
        """Say what is wrong in one line."""
        self.exit(Exit.BAD_INPUT, f"{self.prog}: error: {shown(message)}; see {self.prog} --help\n")


def parser(name: str) -> argparse.ArgumentParser:
    """Build the command line of tool `name`."""
    return parser_of(tool(name))


def parser_of(tool: Tool) -> argparse.ArgumentParser:
    made = _Parser(
        prog=tool.name,
        description=tool.summary,
        epilog="".join(f"\n{paper}" for paper in tool.papers).strip() or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    made.add_argument("-h", "--help", action="help", help="Show this help, and exit.")
    made.add_argument(
        "--version", action="version", version=f"mpiimg {__version__}", help="Show the version, and exit."
    )
    made.tool = tool
    for argument, required in tool.arguments:
        name, text = argument.name, argument.help.replace("%", "%%")
        if tool.bids and argument.positional:
            bids_app.declare(made, text, _path_of, _add)
        elif argument.positional:
            made.add_argument(
                name,
                help=text,
                type=_path_of(name.upper()),
                metavar=name.upper(),
                nargs="+" if argument.many else None,
            )
        else:
            metavar = tool.result if name == "out" else "FILE"
            needed = required and not tool.bids
            made.add_argument(
                f"--{name}", help=text, type=_path_of(f"--{name}"), required=needed, metavar=metavar
            )
    options = made.add_argument_group("method") if tool.recipe else made
    negatable = presets.switches(tool.presets)
    for parameter in tool.parameters:
        # What is not given is left out, and settled when the recipe is known.
        _add(options, parameter, parameter.name in negatable).default = argparse.SUPPRESS
    common = made.add_argument_group("run") if tool.recipe else made
    for parameter in COMMON if tool.recipe else ():
        _add(common, parameter)
    loudness = common.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="Say nothing but errors.")
    # BIDS Apps are told to say more by -v, -vv and -vvv.
    more = ("-v", "--verbose") if tool.bids else ("--verbose",)
    loudness.add_argument(*more, action="store_true", help="Say what each stage took too.")
    return made


def _add(group, parameter: Parameter, negatable: bool = False) -> argparse.Action:
    """Add an option; a switch that is `negatable` with --no- as well."""
    flag = parameter.flag
    if parameter.type is bool:
        switch = argparse.BooleanOptionalAction if negatable else "store_true"
        return group.add_argument(flag, action=switch, default=False, help=parameter.help)
    if parameter.repeated:
        return group.add_argument(
            flag, action="append", type=_checked(parameter), metavar=parameter.metavar, help=parameter.help
        )
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    optional = {"nargs": "?", "const": parameter.bare} if parameter.bare is not None else {}
    number = f"{parameter.default:g}" if parameter.type is float and parameter.default is not None else None
    default = f" (default {number or parameter.default})" if parameter.default is not None else ""
    return group.add_argument(
        flag,
        type=_checked(parameter),
        default=parameter.default,
        choices=parameter.choices,
        metavar=parameter.metavar or (None if parameter.choices else parameter.type.__name__.upper()),
        help=(parameter.help.rstrip(".") + unit + default + ".").replace("%", "%%"),
        **optional,
    )


def _checked(parameter: Parameter) -> Callable:
    """Return what turns a word into a value of `parameter`; argparse itself looks at choices."""
    one = dataclasses.replace(parameter, choices=None, repeated=False)
    return lambda word: from_word(one, word, one.flag)


def _path_of(name: str) -> Callable:
    """Return what takes a word for the path that is called `name`."""
    return lambda word: checked_path(word, name)


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
    print(
        f"mpiimg: error: {tool.name} ended with status {args.ended}, which nothing in {shown(folder)} "
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
        return _plan(recipe, resources, args.plan, tool.folder(values), comm)
    safe_point(comm)
    return run(recipe, comm, _options(args, tool.folder(values), resources.memory, command)).status


def check_common(args: argparse.Namespace) -> None:
    """Look at the options of every run, before any input is looked at."""
    if (args.ranks or args.nodes) and not args.plan:
        raise BadInput("--ranks and --nodes are for --plan; a run has the ranks that mpiexec or srun starts")
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
        progress=sys.stderr.isatty() and not args.quiet,
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
    """Print the plan of a run whose results go to folder `out`."""
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
