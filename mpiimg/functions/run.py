"""mpiimg-run: from what a user asks to a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.plan import Recipe
from mpiimg.functions.request import Settings, read_request


def result_folder(args: argparse.Namespace) -> Path:
    """Return the folder that results go to."""
    return Path(args.out) if args.out else Path(getattr(args, "target", args.files[-1])).parent


def inspect(args: argparse.Namespace, tools: Mapping[str, Settings]) -> Any:
    """Load the user's functions, read headers, and try each function on a little of the data.

    Parameters
    ----------
    args : of the command line
    tools : by kind, the parameters of each tool that can be a stage

    Raises
    ------
    BadInput : something cannot be used, or a function fails its trial
    """
    asked = read_request(args, tools)
    if asked.kind == "survey":
        from mpiimg.functions.on_surveys import inspect_survey

        return inspect_survey(asked, args)
    from mpiimg.functions.on_images import inspect_images

    return inspect_images(asked, args)


def recipe(found: Any, p: Mapping[str, Any]) -> Recipe:
    """Return the stages of what :func:`inspect` found."""
    return found.recipe(p)
