"""Diffusion images of a BIDS dataset with their gradients.

A reader of the dwi part of BIDS alone. pybids reads all of BIDS, but brings a database (SQLAlchemy), indexes
every file of the dataset first and takes seconds to import, on each rank.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpiimg.engine.names import file_name
from mpiimg.engine.small_files import read_text
from mpiimg.errors import BadInput
from mpiimg.formats.foreign import dicom_folder
from mpiimg.neuro.nifti import bare_name

#: Parts of a name that a raw diffusion image may have, in the order in which they stand in it.
ENTITIES = ("sub", "ses", "acq", "rec", "dir", "run", "part", "chunk")

IMAGE_ENDINGS = (".nii.gz", ".nii")

#: Endings of a pair of gradient tables.
TABLE_ENDINGS = (".bval", ".bvec")

#: Folders from an image up to its dataset at most: dwi, session, subject, dataset.
LEVELS = 4

#: Called with a folder and an ending; returns the names in the folder that have it.
Tables = Callable[[Path, str], list[str]]

#: Why images that lie in dwi/ are not processed, by the last part of their name.
OTHER_IMAGES = {"sbref": "a reference image of one volume (sbref)"}


@dataclass(frozen=True)
class Scan:
    """One diffusion image of a dataset: a subject, session and run.

    Parameters
    ----------
    name : str
        The beginning of the names of its results, e.g. sub-01_ses-1_run-2.
    folder : str
        Of image and results, relative to the dataset, e.g. sub-01/ses-1/dwi.
    dwi : Path
        The image.
    bval, bvec : Path or None
        Its gradients, None where there are none.
    problem : str
        Why it cannot be used, "" where nothing speaks against it.
    passed_over : str
        Why it is not meant to be processed, "" where it is.
    """

    name: str
    folder: str
    dwi: Path
    bval: Path | None
    bvec: Path | None
    problem: str = ""
    passed_over: str = ""


@dataclass(frozen=True)
class Study:
    """What a dataset holds of diffusion images.

    Parameters
    ----------
    scans : tuple of Scan
        By subject, session and name.
    without : tuple of str
        Subjects and sessions that have none, e.g. sub-03 and sub-04_ses-2.
    """

    scans: tuple[Scan, ...]
    without: tuple[str, ...]


def find_scans(
    dataset: Path,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    selects: Callable[[Mapping[str, str]], bool] = lambda entities: True,
) -> Study:
    """Find the diffusion images of a raw BIDS dataset, by subject, session and name.

    Parameters
    ----------
    dataset : Path
        Its folder.
    participants, sessions : sequence of str
        Labels, with or without sub- and ses-; all where none are given.
    selects : callable
        Called as selects(entities) with the parts of the name of an image, as :func:`entities_of` returns
        them; says whether it is among those that are asked for.

    Raises
    ------
    BadInput
        It is no BIDS dataset, a label is not there, or there is nothing to do.
    """
    read_description(dataset)
    scans: list[Scan] = []
    excluded: list[Scan] = []
    without: list[str] = []
    seen: set[str] = set()
    wanted = set(_bare(sessions, "ses"))
    # The top of a dataset has a folder for each subject, and is asked once for all scans.
    tables = functools.cache(lambda folder, ending: [one for one in _names(folder) if one.endswith(ending)])
    for subject in _labelled(dataset, "sub", participants):
        try:
            folders = _folders(dataset / subject)
        except BadInput as error:  # of this subject alone, and the others have theirs
            scans.append(_unreadable(dataset / subject, subject, subject, error))
            continue
        seen.update(folders)
        chosen = [one for one in ("", *folders) if not wanted or one.removeprefix("ses-") in wanted]
        by_session = {one: list(_of_session(tables, dataset, subject, one)) for one in chosen}
        for scan in itertools.chain.from_iterable(by_session.values()):
            (scans if selects(_parts(scan)) else excluded).append(scan)
        without += _without(subject, by_session)
    unknown = [label for label in _bare(sessions, "ses") if f"ses-{label}" not in seen]
    if unknown:
        raise BadInput(f"{dataset}: no session {unknown[0]}{_among(seen, 'ses')}")
    if scans:
        return Study(tuple(scans), tuple(without))
    if excluded:
        raise BadInput(f"{dataset}: the filter selects none of its {len(excluded)} diffusion images")
    among = f" of {', '.join(without[:5])}" if participants and without else ""
    raise BadInput(
        f"{dataset}: no diffusion images{among} (sub-<label>/[ses-<label>/]dwi/*_dwi.nii.gz or .nii)"
    )


def _without(subject: str, by_session: Mapping[str, Sequence[Scan]]) -> list[str]:
    """Return a subject that has no scan at all, or those of its sessions that have none.

    Sessions count where no scan lies outside them, under the name "".
    """
    if not any(by_session.values()):
        return [subject]
    if by_session.get(""):
        return []
    return [f"{subject}_{session}" for session, found in by_session.items() if session and not found]


def _of_session(tables: Tables, dataset: Path, subject: str, session: str) -> Iterator[Scan]:
    """Yield the scans of a session, or of a subject outside its sessions; a broken one if unreadable."""
    folder = dataset / subject / session / "dwi"
    try:
        yield from _scans_in(tables, dataset, folder, subject, session)
    except BadInput as error:
        name = "_".join(filter(None, [subject, session]))
        yield _unreadable(folder, name, folder.relative_to(dataset).as_posix(), error)


def _parts(scan: Scan) -> dict[str, str]:
    """Return the parts of a scan's name; of one that is misnamed, those of its folder."""
    stem = scan.dwi.name.removesuffix(".gz").removesuffix(".nii").rpartition("_")[0]
    of_folder = (part.split("-", 1) for part in scan.folder.split("/") if "-" in part)
    return entities_of(stem) or dict(of_folder)


def _unreadable(folder: Path, name: str, where: str, error: BadInput) -> Scan:
    """Return what stands for the scans of a folder that cannot be read."""
    return Scan(file_name(name), where, folder, None, None, str(error))


def read_description(dataset: Path) -> dict:
    """Return what a dataset says of itself.

    Raises
    ------
    BadInput
        It says nothing, or nothing that can be read.
    """
    path = dataset / "dataset_description.json"
    try:
        text = read_text(path, "it")
    except BadInput as error:
        if said := dicom_folder(dataset):
            raise BadInput(f"{dataset}: {said}") from None
        raise BadInput(f"{error}; every BIDS dataset has one, with Name and BIDSVersion") from None
    try:
        description = json.loads(text)
        if isinstance(description["Name"], str):
            return description
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise BadInput(f"{path}: not a JSON object with a Name; mend it (see the BIDS standard)")


def _bare(labels: Sequence[str], prefix: str) -> list[str]:
    return [label.removeprefix(f"{prefix}-") for label in labels]


def _labelled(dataset: Path, prefix: str, labels: Sequence[str]) -> list[str]:
    """Return the names of the folders of these labels, each once, in the order of the alphabet."""
    there = _folders(dataset, prefix)
    if not there:
        raise BadInput(f"{dataset}: no subjects ({prefix}-<label> folders): not the top of a BIDS dataset")
    chosen = {f"{prefix}-{label}" for label in _bare(labels, prefix)}
    missing = sorted(chosen - set(there))
    if missing:
        label = missing[0].removeprefix(f"{prefix}-")
        raise BadInput(f"{dataset}: no participant {label}{_among(there, prefix)}")
    return [name for name in there if not chosen or name in chosen]


def _among(names, prefix: str) -> str:
    """Return a hint at the first few labels that there are."""
    labels = [name.removeprefix(f"{prefix}-") for name in sorted(names)]
    if not labels:
        return "; there are none"
    return f"; there are {', '.join(labels[:5])}" + (f" and {len(labels) - 5} more" if labels[5:] else "")


def _folders(parent: Path, prefix: str = "ses") -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return sorted(e.name for e in entries if e.name.startswith(f"{prefix}-") and e.is_dir())
    except OSError as error:
        raise BadInput(f"{parent}: cannot read this folder: {error.strerror}") from None


def _scans_in(tables: Tables, dataset: Path, folder: Path, subject: str, session: str) -> Iterator[Scan]:
    """Yield the images of one dwi folder, also those that are not meant to be processed."""
    expected = "_".join(filter(None, [subject, session]))
    where = folder.relative_to(dataset).as_posix()
    names = _names(folder)
    for name in names:
        ending = next((ending for ending in IMAGE_ENDINGS if name.endswith(ending)), None)
        # What is there as .nii and .nii.gz is said of the latter.
        if ending is None or f"{name}.gz" in names:
            continue
        stem, _, suffix = name.removesuffix(ending).rpartition("_")
        entities = entities_of(stem)
        unique = _record_name(stem if suffix == "dwi" else f"{stem}_{suffix}".strip("_"), expected)
        reason = _other_kind(stem, suffix)
        problem = _misnamed(name, entities if suffix == "dwi" else None, expected)
        if reason or problem:
            yield Scan(unique, where, folder / name, None, None, "" if reason else problem, reason)
        elif name.endswith(".gz") and name.removesuffix(".gz") in names:
            problem = f"{folder / name}: is there as .nii too; remove one of them"
            yield Scan(stem, where, folder / name, None, None, problem)
        else:
            yield Scan(stem, where, folder / name, *_gradients(tables, dataset, folder, entities, name))


def _record_name(stem: str, expected: str) -> str:
    """Return a name that no image of another folder has, whatever the file is called."""
    return file_name(stem if f"{stem}_".startswith(f"{expected}_") else f"{expected}_{stem}")


def _other_kind(stem: str, suffix: str) -> str:
    """Say why an image in a dwi folder is no magnitude of a diffusion series, "" where it may be one."""
    part = re.search(r"_part-(?!mag(_|$))([0-9A-Za-z]+)", stem)
    if part:
        return f"no magnitude image (part-{part[2]}), and so no signal to fit"
    if suffix.lower() == "dwi":
        return ""
    return OTHER_IMAGES.get(suffix, f"no diffusion series: its name ends in {suffix}, not in _dwi")


def _names(folder: Path) -> list[str]:
    """Return the names in a folder that may not be there; a link that leads nowhere is a name too."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BadInput(f"{folder}: cannot read this folder: {error.strerror}") from None


def entities_of(stem: str) -> dict[str, str] | None:
    """Return the parts of a name, e.g. {"sub": "01", "run": "2"}; None if it is not made of such parts."""
    parts = [part.split("-", 1) for part in stem.split("_")]
    if any(len(part) != 2 or not re.fullmatch(r"[0-9A-Za-z+]+", part[1]) for part in parts):
        return None
    entities = dict(parts)
    return entities if len(entities) == len(parts) else None


def _misnamed(name: str, entities: dict[str, str] | None, expected: str) -> str:
    """Say what is wrong with the name of an image, "" if nothing."""
    if entities is None or [key for key in ENTITIES if key in entities] != list(entities):
        order = "".join(f"[_{key}-<label>]" for key in ENTITIES[2:])
        return f"{name}: not the name of a raw diffusion image ({expected}{order}_dwi.nii.gz); rename it"
    named = "_".join(f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities)
    return "" if named == expected else f"{name}: lies in the folder of {expected}; move or rename it"


def _gradients(
    tables: Tables, dataset: Path, folder: Path, entities: dict[str, str], image: str
) -> tuple[Path | None, Path | None, str]:
    """Find the gradients of an image by the inheritance principle: .bval, .bvec, and what is wrong.

    A file applies if it lies in the folder of the image or above it, and every part of its name is one of the
    image's. The nearest folder counts, and there the name with most parts.
    """
    applied: list[Path | None] = []
    problem = ""
    levels = [level for level in (folder, *folder.parents) if level.is_relative_to(dataset)]
    for ending in TABLE_ENDINGS:
        best = _nearest(tables, levels, entities, ending)
        if not best:
            problem = f"{folder / image}: no {ending} applies to it, in its folder or above; add one"
        elif best[1:]:
            problem = _ambiguous(best, image)
        applied.append(best[0] if len(best) == 1 else None)
    return applied[0], applied[1], problem


def _nearest(tables: Tables, levels: Sequence[Path], entities: Mapping[str, str], ending: str) -> list[Path]:
    """Return the files of an ending that apply to an image: of the nearest folder, those with most parts."""
    for level in levels:
        applying = [
            name for name in tables(level, f"dwi{ending}") if _applies(name, f"_dwi{ending}", entities)
        ]
        if applying:
            most = max(name.count("_") for name in applying)
            return [level / name for name in applying if name.count("_") == most]
    return []


def _ambiguous(paths: Sequence[Path], image: str) -> str:
    return f"{paths[0]}: {paths[1].name} applies to {image} as well; remove one of them"


def inherited_tables(image: Path) -> tuple[Path | None, Path | None]:
    """Return the .bval and the .bvec that apply to one image, where it lies in a BIDS dataset.

    Raises
    ------
    BadInput
        Two files apply alike.
    """
    stem, _, suffix = bare_name(image).rpartition("_")
    entities = entities_of(stem)
    levels = levels_of(image.parent)
    if suffix != "dwi" or not entities or "sub" not in entities or not is_top(levels[-1]):
        return None, None

    def tables(folder: Path, ending: str) -> list[str]:
        return [name for name in _names(folder) if name.endswith(ending)]

    found: list[Path | None] = []
    for ending in TABLE_ENDINGS:
        best = _nearest(tables, levels, entities, ending)
        if best[1:]:
            raise BadInput(_ambiguous(best, image.name))
        found.append(best[0] if best else None)
    return found[0], found[1]


def levels_of(folder: Path) -> list[Path]:
    """Return a folder and those above it up to the top of its dataset; it alone where it is in none."""
    levels = [folder, *folder.absolute().parents[: LEVELS - 1]]
    for count, level in enumerate(levels, 1):
        if is_top(level):
            return levels[:count]
    return levels[:1]


def is_top(folder: Path) -> bool:
    """Say whether a folder is the top of a BIDS dataset."""
    return (folder / "dataset_description.json").is_file()


def _applies(name: str, ending: str, entities: Mapping[str, str]) -> bool:
    if name == ending.removeprefix("_"):
        return True
    if not name.endswith(ending):
        return False
    own = entities_of(name.removesuffix(ending))
    return own is not None and own.items() <= entities.items()
