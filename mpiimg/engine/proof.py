"""What a run writes in the end, looked at before the first stage: else all work may be for nothing."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from mpiimg.engine.recipe import Options, Recipe, is_within, output_folders, output_names
from mpiimg.engine.stage import PlacedSink, Sink
from mpiimg.errors import BadInput

#: Bytes that file systems allow a name, less what is added to one for a moment.
MAX_NAME = 255 - 15

#: Bytes of what the work folder is called, which gets the name of a host when it is removed.
MAX_STEM = 150


def prove(recipe: Recipe, options: Options) -> None:
    """Make the heads and small files of all results as far as they are known, and look where they go.

    On one rank.

    Raises
    ------
    BadInput
        A header cannot be made, a name is too long or stands twice, or a folder lies where a file is to go.
    """
    _look_above(options.out)
    prove_heads(recipe)
    names = output_names(recipe)  # which makes the small files
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise BadInput(f"{twice}: two results would have this file; give them other names")
    longest = max(names, key=_length)
    if _length(longest) > MAX_NAME or len(os.fsencode(recipe.stem)) > MAX_STEM:
        raise BadInput(
            f"{longest}: is too long for the name of a result; "
            f"give the input a name of at most {MAX_STEM} bytes"
        )
    records = options.records or options.out
    whole = output_folders(recipe)
    for name in (one for one in names if not is_within(one, whole)):
        _look_at((records if name == recipe.record else options.out) / name, options.out)


def prove_heads(recipe: Recipe) -> None:
    """Make the heads of all files that the ranks fill together, and forget them. On one rank.

    Raises
    ------
    BadInput
        One cannot be made, whatever it is that its format raises.
    """
    shared: dict[str, list[PlacedSink]] = {}
    for stage in recipe.expected:
        if isinstance(stage, Sink):
            _prove_head(stage.file, stage.head)
        elif isinstance(stage, PlacedSink):
            _prove_head(stage.file, stage.prove)
            if stage.shared:
                shared.setdefault(stage.file, []).append(stage)
    _prove_shared(shared)


def _prove_head(file: str, head: Callable[[], object]) -> None:
    try:
        head()
    except (BadInput, OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{file}: this result cannot be written: no header can be made for it: {reason}; "
            "nothing was computed yet"
        ) from error


def _prove_shared(shared: Mapping[str, Sequence[PlacedSink]]) -> None:
    """Make the files that several arrays go into, where nobody sees them; they take hardly any room."""
    for stages in shared.values():
        with TemporaryDirectory() as folder:
            for number, stage in enumerate(stages):
                stage.create(Path(folder) / "shared", number > 0)


def _length(name: str) -> int:
    return len(os.fsencode(PurePosixPath(name).name))


def _look_above(out: Path) -> None:
    """Refuse a folder of results that lies in a file, or is one."""
    try:
        nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        reason = "" if nearest.is_dir() else os.strerror(errno.ENOTDIR)
    except OSError as error:
        reason = error.strerror
    if reason:
        raise BadInput(f"{out}: cannot write there: {reason}; choose another --out")


def _look_at(path: Path, out: Path) -> None:
    """Refuse a place that no file can be moved to."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise BadInput(f"{out}: cannot write there: {error.strerror}; choose another --out") from None
    if stat.S_ISDIR(mode):
        raise BadInput(f"{path}: is a folder, and a result is called so; choose another --out")
