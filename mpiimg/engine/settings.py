"""What the command line of a script says to all runs of it; a call that says otherwise is heard first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpiimg.engine.log.watchdog import DEFAULT_TIMEOUT


@dataclass(frozen=True)
class Settings:
    """How a script is run: by `mpiimg-run [options] script.py`, or without any by `python script.py`.

    Parameters
    ----------
    folder : str, optional
        Of records and work, where a call does not say.
    memory : int or str, optional
        Bytes that a rank may use, also as "4G".
    work_dir : str, optional
        Staged arrays of runs that stage any lie in this folder.
    force, in_memory, keep_work, progress : bool
        As in :class:`mpiimg.engine.recipe.Options`.
    timeout : float
        Seconds that one step may take; 0 for ever.
    check_halo : bool
        Look whether what lies outside the declared depth of functions changes what lies within.
    plan : str, optional
        "table", "full" or "json": runs are planned, and nothing is run.
    ranks, nodes : int, optional
        With a plan: those that it is for.
    command : str
        What to give again to go on.
    run_id : str
        The word that tells this job from others, where a batch script gives one.
    script : mapping of str to str
        "path" and "sha256" of the script; empty where there is none, as at a prompt.
    """

    folder: str | None = None
    memory: int | str | None = None
    work_dir: str | None = None
    force: bool = False
    in_memory: bool = False
    keep_work: bool = False
    progress: bool = False
    timeout: float = DEFAULT_TIMEOUT
    check_halo: bool = False
    plan: str | None = None
    ranks: int | None = None
    nodes: int | None = None
    command: str = ""
    run_id: str = ""
    script: Mapping[str, str] = field(default_factory=dict)
