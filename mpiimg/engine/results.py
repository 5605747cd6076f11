"""The results of a run: moved to their places once all are there, durable, with a record that comes last.

The record (run.json) holds the size and the CRC32 of every result. A record of an earlier run is removed
before any of its results is replaced, so that where there is a record, the results beside it are those that
it speaks of.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mpiimg.engine.atomic import make_folder, sync, write_durably
from mpiimg.engine.blocks import Placement
from mpiimg.engine.boxes import Partition
from mpiimg.engine.log.events import record_of, runs_in
from mpiimg.engine.mpi.agreement import on_root
from mpiimg.engine.mpi.waiting import soft_barrier
from mpiimg.engine.recipe import (
    Options,
    Recipe,
    is_within,
    open_folders,
    output_folders,
    output_names,
    records_folder,
)
from mpiimg.engine.records import DamagedRecord, read_record, write_record
from mpiimg.engine.staged_file import describe_staged
from mpiimg.errors import BadInput

#: Folder of the files that are to become results, in the work folder.
OUTPUTS = "outputs"

#: Folder of the results that were replaced as whole folders, until they are gone.
REPLACED = "replaced"

#: Bytes that are read at a time.
_PIECE = 1 << 20


# --- Checksums --------------------------------------------------------------------------------------------


def crc_of(data, crc: int = 0) -> int:
    """Return the CRC32 of bytes that follow those whose CRC32 is `crc`."""
    from isal.isal_zlib import crc32

    return crc32(data, crc)


def joined(parts: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """Return what the record says of a file, from (bytes, CRC32) of its parts in their order."""
    from isal.isal_zlib import crc32_combine

    size = crc = 0
    for length, part in parts:
        size, crc = size + length, crc32_combine(crc, part, length)
    return {"bytes": size, "crc32": f"{crc:08x}"}


def sum_of_range(path: Path, start: int, stop: int) -> tuple[int, int]:
    """Return bytes and CRC32 of what lies from `start` to `stop` in a file, or to its end.

    Raises
    ------
    OSError
        It cannot be read.
    """
    crc = size = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size < stop - start and (piece := file.read(min(_PIECE, stop - start - size))):
            crc, size = crc_of(piece, crc), size + len(piece)
    return size, crc


def sum_of_file(path: Path) -> dict[str, Any]:
    """Return what the record says of a file."""
    return joined([sum_of_range(path, 0, os.stat(path).st_size)])


# --- Files that ranks write -------------------------------------------------------------------------------


class OwnFiles:
    """The whole files that one rank writes in a stage: in a folder of its own, until all have written theirs.

    So it is known who wrote which, and who wrote a file can make it durable.

    Parameters
    ----------
    work : Path
        The work folder.
    rank : int
    names : iterable of str
        Of all files of the stage, below the folder of results.
    """

    def __init__(self, work: Path, rank: int, names: Iterable[str]):
        self._outputs, self._names = work / OUTPUTS, frozenset(names)
        self._folder = work / "written" / str(rank)

    def folder(self, names: Iterable[str] | None = None) -> Path:
        """Return the folder to write into; it is made, with those within it that files will lie in.

        Parameters
        ----------
        names : iterable of str, optional
            Of the files that are written now; by default any.
        """
        if names is not None or not self._folder.exists():
            for place in {(self._folder / name).parent for name in (self._names if names is None else names)}:
                place.mkdir(parents=True, exist_ok=True)
        return self._folder

    def hand_over(self) -> dict[str, dict[str, Any]]:
        """Make durable what was written, and put it beside that of other ranks; return its checksums."""
        sums = {}
        for path in sorted(self._folder.rglob("*")):
            name = str(path.relative_to(self._folder))
            if name in self._names:
                sync(path)
                sums[name] = sum_of_file(path)
                path.replace(self._outputs / name)
        shutil.rmtree(self._folder, ignore_errors=True)
        return sums


# --- Publishing -------------------------------------------------------------------------------------------


class OwnFolder:
    """The files of any names that one rank writes in a stage: of each chunk in a folder of its own.

    Parameters
    ----------
    work : Path
        The work folder.
    rank : int
    within : str
        Where they belong, below the folder of results.
    """

    def __init__(self, work: Path, rank: int, within: str):
        self._outputs, self._within = work / OUTPUTS, within
        self._folder = work / "written" / str(rank)
        shutil.rmtree(self._folder, ignore_errors=True)

    def folder(self, number: int) -> Path:
        """Return the folder that a chunk writes into, empty."""
        folder = self._folder / str(number)
        folder.mkdir(parents=True)
        return folder

    def forget(self, number: int) -> None:
        """Remove what a chunk has written."""
        shutil.rmtree(self._folder / str(number), ignore_errors=True)

    def names(self) -> list[tuple[str, int]]:
        """Return the names of all files, below the folder of results, and the chunk of each.

        Raises
        ------
        OSError
            A chunk has written what is no file.
        """
        found = []
        for folder in self._folder.glob("*"):
            for path in sorted(folder.rglob("*")):
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise ValueError(
                        f"{path.relative_to(folder)}: is no file, and cannot be a result; write a copy"
                    )
                if path.is_file():
                    found.append((os.path.join(self._within, path.relative_to(folder)), int(folder.name)))
        return found

    def hand_over(self) -> dict[str, dict[str, Any]]:
        """Make durable what was written, and put it beside that of other ranks; return its checksums."""
        sums = {}
        for name, number in self.names():
            path = self._folder / str(number) / os.path.relpath(name, self._within)
            sync(path)
            sums[name] = sum_of_file(path)
            make_folder((self._outputs / name).parent)
            path.replace(self._outputs / name)
        shutil.rmtree(self._folder, ignore_errors=True)
        return sums


def prepare_outputs(
    work: Path, names: Iterable[str], whole: Iterable[str] = (), folders: Iterable[str] = ()
) -> None:
    """Make the folders that results are written to, and remove what a run that died has left half written.

    Of folders that are `whole` results, and of those whose files only the run decides on, all is removed: the
    next run may write other files into them.
    """
    for folder in (work / "written", work / REPLACED, *(work / OUTPUTS / one for one in (*whole, *folders))):
        shutil.rmtree(folder, ignore_errors=True)
    for name in folders:
        (work / OUTPUTS / name).mkdir(parents=True, exist_ok=True)
    for folder in {(work / OUTPUTS / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)


def publish(
    recipe: Recipe,
    comm,
    options: Options,
    work: Path,
    state: Any,
    written: Mapping[str, Mapping[str, Any]],
    placements: Mapping[str, Placement],
    report: Mapping[str, Any],
) -> dict[str, Any]:
    """Move the finished files to their places, and write the record. Collective.

    What was planned but not written, as of an exposure that was left out, is not left from an earlier run.

    Parameters
    ----------
    recipe : Recipe
    comm : communicator
    options : Options
    work : Path
        The work folder.
    state : object
        What the stages came to.
    written : mapping
        Size and checksum of what stages wrote, by name; on rank 0.
    placements : mapping of str to Placement
        How staged arrays were written, by name.
    report : mapping
        What the record says of the run.

    Returns
    -------
    dict
        The record.
    """
    documents = on_root(comm, _write_documents, recipe, work, state)
    staged = _sums_of_staged(recipe, comm, work, placements)

    def move() -> dict[str, Any]:
        made = {**written, **documents, **staged}
        names = [name for name in output_names(recipe) if name != recipe.record]
        names += sorted(written.keys() - set(names))
        _refuse_inputs(recipe, options, names)
        sums = {name: made[name] for name in names if name in made}
        names += _of_earlier(recipe, options, names)
        folder = os.path.relpath(options.out.resolve(), records_folder(options).resolve())
        record = json.loads(json.dumps({**report, "folder": folder, "outputs": sums}, default=str))
        _move(recipe, options, work, names, sums)
        write_record(records_folder(options) / recipe.record, record)
        return record

    return on_root(comm, move, where="publishing")


def _refuse_inputs(recipe: Recipe, options: Options, names: Iterable[str]) -> None:
    """Refuse to replace an input by a file of which nobody knew the name before."""
    inputs = {path.resolve() for path in recipe.files}
    for name in names:
        if (options.out / name).resolve() in inputs:
            raise BadInput(
                f"{options.out / name}: is an input, which the result would replace; choose another folder"
            )


def _of_earlier(recipe: Recipe, options: Options, names: Iterable[str]) -> list[str]:
    """Return what an earlier run has put into the folders of this one, and this one has not."""
    folders = open_folders(recipe)
    try:
        record = read_record(records_folder(options) / recipe.record) if folders else None
        earlier = [str(name) for name in (record or {}).get("outputs", ())]
    except (DamagedRecord, OSError, TypeError):
        return []
    return [
        one for one in earlier if one not in names and one.startswith(tuple(f"{name}/" for name in folders))
    ]


def _write_documents(recipe: Recipe, work: Path, state: Any) -> dict[str, dict[str, Any]]:
    sums = {}
    for name, data in recipe.documents(state).items():
        write_durably(work / OUTPUTS / name, data)
        sums[name] = joined([(len(data), crc_of(data))])
    return sums


def _sums_of_staged(
    recipe: Recipe, comm, work: Path, placements: Mapping[str, Placement]
) -> dict[str, dict[str, Any]]:
    """Complete the staged files that are results; return their checksums, of which each rank makes a part."""
    sizes = on_root(comm, _complete_staged, recipe, work, placements)
    return {name: sum_of_shared(comm, work / OUTPUTS / name, size) for name, size in sizes.items()}


def sum_of_shared(comm, path: Path, size: int) -> dict[str, Any]:
    """Return what the record says of a file of `size` bytes, of which each rank reads a part. Collective."""
    ends = Partition.even(-(-size // _PIECE), comm.size).owned(comm.rank)
    part = error = None
    try:
        part = sum_of_range(path, ends.start * _PIECE, min(ends.stop * _PIECE, size))
    except OSError as problem:
        error = problem
    soft_barrier(comm)
    parts = comm.gather((part, error))
    return on_root(comm, _joined_parts, parts)


def _joined_parts(parts: Iterable[tuple]) -> dict[str, Any]:
    for _, error in parts:
        if error is not None:
            raise error
    return joined(part for part, _ in parts)


def _complete_staged(recipe: Recipe, work: Path, placements: Mapping[str, Placement]) -> dict[str, int]:
    """Describe the staged files that are results, and put them beside the others; return their sizes."""
    sizes = {}
    for array, (name, attributes) in recipe.staged_outputs.items():
        path = work / f"{array}.h5"
        describe_staged(path, attributes, placements[array].array, placements[array].boxes)
        path.replace(work / OUTPUTS / name)
        sizes[name] = (work / OUTPUTS / name).stat().st_size
    return sizes


def _move(recipe: Recipe, options: Options, work: Path, names: Iterable[str], sums: Mapping) -> None:
    """Take away the old record, and replace the results that it speaks of; all that is durable."""
    outputs, whole = work / OUTPUTS, output_folders(recipe)
    record = records_folder(options) / recipe.record
    if record.exists():
        record.unlink()
        sync(record.parent)
    touched = {options.out}
    for number, name in enumerate(whole):
        target = options.out / name
        touched.update(folder for folder in target.parents if options.out in folder.parents)
        _replace_folder(outputs / name, target, work / REPLACED / str(number))
    for name in names:
        if is_within(name, whole):
            continue
        target = options.out / name
        touched.update(folder for folder in target.parents if options.out in folder.parents)
        if name not in sums:
            target.unlink(missing_ok=True)
            continue
        make_folder(target.parent)
        (outputs / name).replace(target)
    for folder in sorted(touched):
        if folder.exists():
            sync(folder)


def _replace_folder(made: Path, target: Path, aside: Path) -> None:
    """Put a folder in the place of another, of which nothing stays."""
    for folder, _, _ in os.walk(made):
        sync(Path(folder))
    make_folder(target.parent)
    if os.path.lexists(target):
        aside.parent.mkdir(parents=True, exist_ok=True)
        target.replace(aside)
    made.replace(target)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)


# --- Looking at them later --------------------------------------------------------------------------------


def out_of_place(record: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield in a line each what is not as a record says, by the sizes of the results."""
    return _differences(record, content, lambda path, said: None)


def verify(record: Path) -> Iterator[str]:
    """Yield in a line each what is not as a record says: results that are gone, or have other bytes.

    Nothing where the record and all results are as they were written.
    """
    try:
        content = read_record(record)
    except (DamagedRecord, OSError) as error:
        yield f"{record}: {getattr(error, 'strerror', None) or error}"
        return
    if content is None:
        yield f"{record}: there is none: the run has not come to its end"
    else:
        yield from _differences(record, content, _other_bytes)


def _other_bytes(path: Path, said: Mapping[str, Any]) -> str | None:
    crc = sum_of_file(path)["crc32"]
    return None if crc == said["crc32"] else f"has the CRC32 {crc}, and was written with {said['crc32']}"


def _differences(
    record: Path, content: Mapping[str, Any], look: Callable[[Path, Mapping], str | None]
) -> Iterator[str]:
    try:
        folder, outputs = record.parent / content["folder"], dict(content["outputs"])
        sizes = {name: (int(said["bytes"]), str(said["crc32"])) for name, said in outputs.items()}
    except (KeyError, TypeError, ValueError):
        yield f"{record}: does not say what was written"
        return
    for name, (size, _) in sizes.items():
        path = Path(os.path.normpath(folder / name))
        try:
            found = path.stat().st_size
            if found != size:
                yield f"{path}: has {found} bytes, and was written with {size}"
            elif problem := look(path, outputs[name]):
                yield f"{path}: {problem}"
        except FileNotFoundError:
            yield f"{path}: is gone"
        except OSError as error:
            yield f"{path}: {error.strerror}"


def records_in(folder: Path) -> list[Path]:
    """Return the records of the runs whose results, or whose records, lie in a folder.

    Those of runs that have left events, and those that are there without any.
    """
    folder = Path(folder)
    by_events = [record_of(events) for events in runs_in(folder)]
    by_name = [path for pattern in ("run.json", "run-*.json") for path in sorted(folder.glob(pattern))]
    candidates = dict.fromkeys([*by_events, *by_name])
    results = set()
    for path in candidates:
        try:
            results |= set((read_record(path) or {}).get("outputs", ()))
        except (DamagedRecord, OSError, TypeError):
            continue
    # A function's result may be called like a record.
    return [path for path in candidates if path in by_events or path.name not in results]
