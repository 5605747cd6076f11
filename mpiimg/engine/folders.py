"""The folders of a run: made and furnished before it, removed or kept after it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiimg.engine.atomic import make_folder
from mpiimg.engine.checkpoint import keep_marks
from mpiimg.engine.fingerprint import changes, read_fingerprint
from mpiimg.engine.finished import LEFT_OUT, earlier_run
from mpiimg.engine.lease import CLAIMS, Kind, WorkLease, acquire_work, remove_work
from mpiimg.engine.log.activity import activity_files, last_activity
from mpiimg.engine.log.events import events_folder
from mpiimg.engine.raw import free_bytes
from mpiimg.engine.recipe import (
    Options,
    Recipe,
    is_within,
    open_folders,
    output_folders,
    output_names,
    records_folder,
    staged_bytes,
    work_folder,
)
from mpiimg.engine.record_store import records_in
from mpiimg.engine.records import DamagedRecord, read_record, write_record
from mpiimg.engine.results import OUTPUTS, prepare_outputs
from mpiimg.engine.stage import Compute, Records
from mpiimg.engine.staged_file import remove_staged
from mpiimg.engine.staging_place import place_staged
from mpiimg.engine.system_errors import ADVICE, OF_PLACE
from mpiimg.errors import BadInput

log = logging.getLogger("mpiimg")

#: Name of the file beside the events that holds what was found out before the run.
FACTS = "facts"

#: Name of the file in the work folder that says what its run was asked for.
REQUEST = "request"


@dataclass(frozen=True)
class Folders:
    """The folders of a run.

    Parameters
    ----------
    work : Path
        Where marks, unfinished results and, as a rule, staged arrays lie.
    events : Path
    new : tuple of Path
        The folders that did not exist before, inner ones first.
    lease : WorkLease
        Of the work folder.
    earlier : str
        The run that the record that was there before is of; empty where there was none.
    staged : Path, optional
        Where staged arrays lie; by default in `work`.
    """

    work: Path
    events: Path
    new: tuple[Path, ...]
    lease: WorkLease
    earlier: str = ""
    staged: Path | None = None

    @property
    def staging(self) -> Path:
        """Where staged arrays lie."""
        return self.staged or self.work

    def remove_new(self) -> None:
        """Remove the new folders, for a run of which nothing is to stay."""
        for folder in self.new:
            if folder == self.events:
                shutil.rmtree(folder, ignore_errors=True)
            # Of two runs that begin at once both may have made it; then the marks of the other one stay.
            elif folder == self.work and self.lease.is_first:
                remove_work(folder)
        _remove_empty(self.new)
        self.lease.release(Kind.FAILED)


def make_folders(recipe: Recipe, options: Options, current: dict, claimed: bool) -> Folders:
    """Make the folders of a run and check what goes into them; its job may have `claimed` the whole scan."""
    records = records_folder(options)
    work = work_folder(recipe, options)
    events = events_folder(records, recipe.record)
    places = (events, work, *work.parents, options.out, *options.out.parents)
    new = tuple(folder for folder in dict.fromkeys(places) if not folder.exists())
    try:
        make_folder(options.out)
        make_folder(work)
        lease = WorkLease(work) if claimed else acquire_work(work, events, options.out, options.timeout)
    except OSError as error:
        _remove_empty((work / CLAIMS, *new))
        _refuse_place(options, error)
        raise
    folders = Folders(work, events, new, lease, recorded_run(recipe, options))
    try:
        return dataclasses.replace(folders, staged=_furnish(recipe, options, folders, current))
    except BadInput:
        folders.remove_new()
        raise
    except OSError as error:
        folders.remove_new()
        _refuse_place(options, error)
        raise


def known_facts(records: Path, record: str) -> dict[str, Any]:
    """Return what the last run found out whose record is called so; nothing where that cannot be read."""
    with contextlib.suppress(OSError, DamagedRecord):
        return read_record(events_folder(records, record) / FACTS) or {}
    return {}


def _refuse_place(options: Options, error: OSError) -> None:
    """Refuse a folder of results that cannot be one; a disk that is full now may not be so later."""
    if error.errno not in ADVICE.keys() - OF_PLACE:
        raise BadInput(f"{options.out}: cannot write there: {error.strerror}; choose another --out") from None


def _remove_empty(folders: Collection[Path]) -> None:
    """Remove folders that are empty; others may have put something into them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _furnish(recipe: Recipe, options: Options, folders: Folders, current: dict) -> Path:
    """Check that results can be written, and prepare the folders, once the lease is there.

    Returns
    -------
    Path
        Where staged arrays go.
    """
    work, events = folders.work, folders.events
    record = work / REQUEST
    earlier = read_fingerprint(record)
    names = output_names(recipe)
    _refuse_overwrite(recipe, options, names)
    may_replace = options.force or options.replace or earlier == current
    if not may_replace and not _takes_up(work, earlier, current):
        _refuse_present(recipe, options, names, current)
    staged = place_staged(work, options.work_dir)
    (work / "journal").mkdir(exist_ok=True)
    prepare_outputs(work, names, output_folders(recipe), open_folders(recipe))
    events.mkdir(exist_ok=True)
    if died_at := last_activity(events):
        log.warning("%sthe last run here died: %s", options.label, died_at)
    for of_rank in [*events.glob("*.jsonl"), *activity_files(events)]:
        of_rank.unlink()
    write_record(record, current)
    if recipe.facts:
        write_record(events / FACTS, recipe.facts)
    (work / LEFT_OUT).unlink(missing_ok=True)
    needed = 0 if options.in_memory or earlier == current else staged_bytes(recipe)
    free = free_bytes(staged)
    if needed > free:
        raise BadInput(
            f"{options.out}: {free >> 20} MB free, the work file may take {needed >> 20} MB; "
            "free some, choose another --out or --work-dir, or use --in-memory"
        )
    if earlier not in (None, current):
        what = changes(earlier, current)
        log.warning("%s: since the last run changed: %s; what depends on it is made again", work, what)
    return staged


def _refuse_present(recipe: Recipe, options: Options, names: Collection[str], current: dict) -> None:
    """Refuse to overwrite results that are there, and say what they are of."""
    record = records_folder(options) / recipe.record
    whole = output_folders(recipe)
    files = (name for name in names if name != recipe.record and not is_within(name, whole))
    places = [*(options.out / name for name in (*whole, *files)), record]
    places += [path for name in open_folders(recipe) for path in _first_in(options.out / name)]
    present = next((path for path in places if path.exists()), None)
    if present is not None:
        why = earlier_run(recipe, options, current, 0).why_not
        raise BadInput(
            f"{present} exists; use --force to overwrite, or another --out" + (f" ({why})" if why else "")
        )


def _first_in(folder: Path) -> list[Path]:
    """Return what is in the way of a folder of results: a file of its name, or the first one in it."""
    return [folder] if folder.exists() and not folder.is_dir() else sorted(folder.glob("*"))[:1]


def _refuse_overwrite(recipe: Recipe, options: Options, names: Collection[str]) -> None:
    """Refuse to replace an input by a result, with --force too."""
    inputs = {path.resolve() for path in recipe.files}
    for name in names:
        if (options.out / name).resolve() in inputs:
            raise BadInput(
                f"{options.out / name}: is an input, which the result would replace; choose another --out"
            )
    for name, marks in output_folders(recipe).items():
        folder = (options.out / name).resolve()
        within = next((path for path in inputs if folder in path.parents), None)
        if within is not None:
            raise BadInput(
                f"{options.out / name}: holds an input, {within}, which the result would replace; choose "
                "another --out"
            )
        if folder.is_dir() and any(folder.iterdir()) and not any((folder / mark).exists() for mark in marks):
            raise BadInput(
                f"{options.out / name}: is a folder of other things, which the result would replace; choose "
                "another --out, or remove it"
            )


def _takes_up(work: Path, earlier: dict | None, current: dict) -> bool:
    """Say whether a run takes up what the same command had to leave out: then its results are replaced."""
    same = earlier is not None and all(earlier.get(key) == current[key] for key in ("tool", "parameters"))
    return same and (work / LEFT_OUT).exists()


def clean(recipe: Recipe, options: Options, folders: Folders, left_out: int) -> None:
    """Remove the work folder; but keep what serves a run that takes up what this one left out."""
    rerun_stages = [stage for stage in recipe.expected if stage.retried]
    if left_out and rerun_stages and not options.in_memory:
        (folders.work / LEFT_OUT).touch()
        if not options.keep_work:
            kept = [
                stage for stage in rerun_stages if isinstance(stage, Compute | Records) and _is_kept(stage)
            ]
            size = _keep_only(kept, folders)
            log.log(
                logging.INFO if options.quiet else logging.WARNING,
                "%s keeps what was made of the others (%d MB), so that the same command takes up only the %d "
                "left out; remove it when you need it no longer",
                folders.work,
                size >> 20,
                left_out,
            )
    elif not options.keep_work:
        remove_work(folders.work)
    folders.lease.release(Kind.DONE)


def _is_kept(stage: Compute | Records) -> bool:
    """Say whether the arrays of a stage serve a run that takes up what was left out."""
    return (isinstance(stage, Compute) and stage.unusable is not None) or stage.units.kept


def _keep_only(stages: list[Compute | Records], folders: Folders) -> int:
    """Remove all but the arrays and records of `stages` and their marks; return the bytes that stay."""
    work, staged = folders.work, folders.staging
    arrays = [staged / f"{array.name}.h5" for stage in stages for array in stage.arrays]
    for path in staged.glob("*.h5"):
        if path not in arrays:
            remove_staged(path)
    for path in staged.glob("*.sums"):
        path.unlink()  # a rerun sums anew what it finds sound
    shutil.rmtree(work / OUTPUTS, ignore_errors=True)
    names = [stage.name for stage in stages]
    for folder in records_in(staged).glob("*"):
        if folder.name not in names:
            shutil.rmtree(folder)
    keep_marks(work / "journal", names)
    return sum(path.stat().st_size for path in [*arrays, *records_in(staged).glob("*/*")])


def recorded_run(recipe: Recipe, options: Options) -> str:
    """Return the run that the record in the folder of records is of; empty where there is none."""
    try:
        record = read_record(records_folder(options) / recipe.record)
    except (DamagedRecord, OSError):
        return "damaged"
    return str(record.get("run", "unknown")) if record else ""
