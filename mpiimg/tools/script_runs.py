"""mpiimg-run script.py: a script of a user's, with the options of a tool."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

from mpiimg.engine.mpi import runtime, scripts
from mpiimg.engine.mpi.children import OF_THREADS
from mpiimg.engine.mpi.job import run_word
from mpiimg.engine.mpi.lifetime import living
from mpiimg.engine.parameters import checked_memory
from mpiimg.engine.settings import Settings
from mpiimg.engine.step import Argument
from mpiimg.errors import BadInput
from mpiimg.tools.cli import answer_ended, check_common, parsed, parser_of
from mpiimg.tools.tool import Tool


def script_among(tool: Tool, words: list[str]) -> int | None:
    """Return the place of a script of Python, if it is what comes first behind options; else None."""
    takers = {
        flag for action in parser_of(tool)._actions if action.nargs is None for flag in action.option_strings
    }
    place = 0
    while place < len(words) and words[place].startswith("-"):
        place += 1 + (words[place] in takers)
    return place if place < len(words) and words[place].endswith(".py") else None


#: What --out is of a script.
SCRIPT_OUT = Argument("out", "Records and work go to this folder, where the script names none (default: .).")


def run_script(tool: Tool, options: list[str], script: str, arguments: list[str]) -> int:
    """Run a script of Python whose calls run pipelines; return its exit status."""
    with living(owner=True) as life:
        life.command = shlex.join([tool.name, *options, script, *arguments])
        halo = tuple(one for one in tool.parameters if one.name == "check_halo")
        of_script = dataclasses.replace(tool, arguments=[(SCRIPT_OUT, False)], parameters=halo)
        args = parsed(of_script, options)
        try:
            check_common(args)
            arguments = _own_arguments(tool, script, arguments)
            if args.portable:
                from mpiimg.kernels.jit import pin_target

                pin_target()
            if args.ended is not None:
                folder = Path(args.out or ".")
                return answer_ended(dataclasses.replace(of_script, folder=lambda values: folder), args)
            settings = Settings(
                folder=args.out,
                work_dir=args.work_dir,
                memory=None if args.memory is None else checked_memory(args.memory, "--memory"),
                force=args.force,
                in_memory=args.in_memory,
                keep_work=args.keep_work,
                progress=not args.quiet,
                timeout=args.timeout,
                check_halo=args.check_halo,
                plan=args.plan,
                ranks=args.ranks,
                nodes=args.nodes,
                command=life.command,
                run_id=run_word(),
            )
            for name in OF_THREADS:
                # A rank is what works on a core: libraries that the script loads start no threads beside it.
                os.environ.setdefault(name, "1")
            return runtime.check_printed(scripts.run_file(script, arguments, settings))
        except BadInput as error:
            return runtime.refused(error)


#: Options that look before a run: behind the script they would be the script's, and nobody would look.
THAT_LOOK = ("--plan", "--check-halo")


def _own_arguments(tool: Tool, script: str, arguments: list[str]) -> list[str]:
    """Return the arguments that a script is given: all behind it, or all behind --.

    Raises
    ------
    BadInput
        One among them looks as if it were ours.
    """
    if "--" in arguments[:1]:
        return arguments[1:]
    meant = next((word for word in arguments if word.partition("=")[0] in THAT_LOOK), None)
    if meant is not None:
        raise BadInput(
            f"{meant} stands behind {script}, and would be an argument of the script: write "
            f"{tool.name} {meant} {script}, or {script} -- {meant} if the script is to have it"
        )
    return arguments
