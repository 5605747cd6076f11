"""What a run does: its stages, and all that belongs to them; and the options of one run of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from mpiimg.engine.containment import Fault
from mpiimg.engine.inputs import Input
from mpiimg.engine.log.overall import Portion
from mpiimg.engine.names import file_name
from mpiimg.engine.stage import Files, PlacedSink, Stage, Stages, expected_stages

_S = TypeVar("_S")


#: Bytes of a rank with Python, MPI and NumPy, before it holds any data.
BASELINE = 60 << 20


@dataclass(frozen=True)
class Recipe(Generic[_S]):
    """The stages of a run, each declared when its turn comes from what is known by then.

    Parameters
    ----------
    tool : str
        Name of the program.
    stem : str
        That outputs and the work folder begin with.
    inputs : tuple of Input
        Arrays that lie in files which any rank may read in any order.
    stages : callable
        Returns a new generator of the stages; it has no side effects, since plans drive it as well as runs.
    documents : callable
        Called as documents(state) with what the generator returned; returns small files by name, written at
        the end.
    parameters : mapping
        Of the run, for run.json.
    sources : mapping
        Of the run, for run.json and to tell one run from another.
    record : str
        Name of the file that says how the run went.
    warnings : tuple of str
        To be said at the start.
    notes : tuple of str
        Likewise, where nothing is wrong; they stand below a plan too.
    left_out : mapping of str to str
        Units that cannot be used, known before the run, and why.
    faults : tuple of Fault
        The same, as far as they were met when headers were read, in full.
    staged_outputs : mapping
        Arrays whose staged file is a result: its name and the attributes of its dataset.
    kernels : tuple of str
        Functions that compile the kernels of the stages, "module:function".
    rates : mapping of str to float
        CPU-seconds per unit of what the stages cost.
    files : tuple of Path
        Inputs whose sizes and times must not change while the run reads them.
    baseline : int
        Bytes of a rank with the libraries and kernels of the stages loaded, before it holds any data.
    said : mapping
        What run.json says besides, which tells no run from another.
    packages : mapping of str to str
        Version by name of the installed packages that steps come from, and of what these require.
    kept : frozenset of str
        Arrays that stay when no later stage reads them, for whoever collects them at the end of the run.
    facts : mapping
        What was found out before the run, as JSON knows it, each by a key that says of what: kept beside the
        events, for the next run or plan.
    """

    tool: str
    stem: str
    inputs: tuple[Input, ...]
    stages: Callable[[], Stages[_S]]
    documents: Callable[[_S], Mapping[str, bytes]]
    parameters: Mapping[str, Any]
    sources: Mapping[str, Any]
    record: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    staged_outputs: Mapping[str, tuple[str, dict]] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    baseline: int = BASELINE
    said: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _expected(self) -> tuple[list[Stage], _S]:
        return expected_stages(self.stages())

    @property
    def expected(self) -> list[Stage]:
        """Every stage that may come, from what is known before the run."""
        return self._expected[0]

    @property
    def expected_state(self) -> _S:
        """What the stages come to, as far as that is known before the run."""
        return self._expected[1]


@dataclass(frozen=True)
class Options:
    """How a recipe is run.

    Parameters
    ----------
    out : Path
        Folder of the results; it is made if missing.
    memory : int
        Bytes that each rank may use.
    force : bool
        Make all results anew, and overwrite those that are there.
    in_memory : bool
        Stage nothing on disk; a run that dies starts over.
    keep_work : bool
        Leave staged arrays and marks when the run is done.
    work_dir : Path, optional
        Staged arrays lie in this folder, which all nodes share, and not in the work folder.
    progress : bool
        Show on stderr how far it is: a bar on a terminal, else a line now and then.
    timeout : float
        Seconds that a chunk or an exchange may take before a rank ends the job; 0 for ever.
    sync_every : float
        Seconds between syncs of the marks.
    records : Path, optional
        Folder of run.json, events and work; by default `out`.
    label : str
        What lines on stderr begin with, where several runs speak at a time.
    command : str
        The command as it was given, to say how to go on.
    replace : bool
        Overwrite results that are there, but for those of this very run: where they are there, it is done.
    run_id : str
        A word that tells this run from all others, which its record and its events say.
    quiet : bool
        Say nothing of what it took, nor that it was done already.
    script : mapping of str to str
        "path" and "sha256" of the script that asks for it, for run.json; empty where none does.
    worded : callable
        Called as worded(text) with what is said of options; returns it in the words of those who asked.
    portion : Portion
        What part of its job the run is.
    """

    out: Path
    memory: int
    force: bool = False
    in_memory: bool = False
    keep_work: bool = False
    progress: bool = False
    timeout: float = 3600.0
    sync_every: float = 5.0
    records: Path | None = None
    label: str = ""
    command: str = ""
    replace: bool = False
    run_id: str = ""
    quiet: bool = False
    script: Mapping[str, str] = field(default_factory=dict)
    worded: Callable[[str], str] = str
    portion: Portion = field(default_factory=Portion)
    work_dir: Path | None = None


def records_folder(options: Options) -> Path:
    """Return the folder of run.json, events and work."""
    return options.records or options.out


def work_folder(recipe: Recipe, options: Options) -> Path:
    """Return the folder of what a run has made so far."""
    return (
        records_folder(options) / "work" / f"{file_name(recipe.stem)}.{recipe.tool.removeprefix('mpiimg-')}"
    )


def output_names(recipe: Recipe) -> list[str]:
    """Return the names of all files that a run writes."""
    files, shared = [], set()
    for stage in recipe.expected:
        alike = stage.shared if isinstance(stage, Files) else ()
        if isinstance(stage, PlacedSink) and stage.shared:
            alike = stage.files
        shared.update(alike)
        files += stage.files if not alike else [name for name in stage.files if name not in alike]
    files += sorted(shared)
    staged = [name for name, _ in recipe.staged_outputs.values()]
    return [*files, *staged, *recipe.documents(recipe.expected_state), recipe.record]


def output_folders(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Return the folders that are one result each, and the names of which one is in such a folder."""
    files = (stage for stage in recipe.expected if isinstance(stage, Files) and stage.folder)
    return {stage.folder: stage.marks for stage in files}


def is_within(name: str, folders: Collection[str]) -> bool:
    """Say whether a file lies in one of some folders, all named below that of results."""
    return bool(folders) and any(str(parent) in folders for parent in PurePosixPath(name).parents)


def open_folders(recipe: Recipe) -> list[str]:
    """Return the names of the folders in which a run decides what files it writes."""
    return [name for stage in recipe.expected for name in stage.folders]


def staged_bytes(recipe: Recipe) -> int:
    """Return an upper bound of what the work folder takes on disk: staged arrays and outputs."""
    placed = sum(stage.layout.nbytes for stage in recipe.expected if isinstance(stage, PlacedSink))
    records = sum(stage.expected_bytes for stage in recipe.expected)
    return placed + records + sum(array.nbytes for stage in recipe.expected for array in stage.arrays)
