"""How the gradients of an image are taken from headers and tables, and settled when its voxels are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpiimg.engine.small_files import read_small
from mpiimg.engine.stage import Stages
from mpiimg.errors import BadInput
from mpiimg.neuro.gradients import Gradients
from mpiimg.neuro.nifti import Image
from mpiimg.neuro.tables.files import PAIR, TableFiles, find_tables, read_raw, said_of_tables
from mpiimg.neuro.tables.options import GradientParameters
from mpiimg.neuro.tables.questions import ask_image
from mpiimg.neuro.tables.text import MAX_TABLE_BYTES
from mpiimg.neuro.tables.understand import Question, kept_volumes, understand
from mpiimg.neuro.volumes import keep_volumes, table_files

if TYPE_CHECKING:
    from mpiimg.neuro.subject import Subject


@dataclass(frozen=True)
class Unsettled:
    """What of a series waits for its voxels.

    Parameters
    ----------
    kept : tuple of int, optional
        The volumes that are used, as far as headers and tables say; None for all.
    question : Question, optional
        What the image is to tell of its gradients.
    """

    kept: tuple[int, ...] | None = None
    question: Question | None = None


#: Nothing waits.
SETTLED = Unsettled()


@dataclass(frozen=True)
class Taken:
    """The gradients of an image, as far as its headers and tables tell.

    Parameters
    ----------
    gradients : Gradients, optional
        None where a chain takes none, and none were named.
    gradient_files : mapping of str to bytes
        Gradient files by ending, to be written beside a series.
    unsettled : Unsettled
    said : mapping
        What run.json says of tables.
    warnings, notes : tuple of str
    """

    gradients: Gradients | None = None
    gradient_files: Mapping[str, bytes] = field(default_factory=dict)
    unsettled: Unsettled = SETTLED
    said: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def take_gradients(
    image: Image, paths: Mapping[str, Any], p: GradientParameters, taken: frozenset[str]
) -> Taken:
    """Read the gradients that were named, or where a chain takes them, those of the image.

    Without any the steps that cannot do without say so, by :func:`mpiimg.neuro.subject.gradients_of`.

    Raises
    ------
    BadInput
        Tables cannot be used, or volumes that are to be left out are not there.
    """
    if len(image.shape) != 4:
        if p.dropped:
            raise BadInput(f"{image.path}: --drop-volumes {p.drop_volumes}: this image has no volumes")
        return Taken()
    named = any(paths.get(name) for name in (*PAIR, "grad"))
    tables = find_tables(image, paths)
    if tables is None or not (named or "gradients" in taken):
        return _only_volumes(image, tables, p)
    understood = understand(read_raw(tables, image.shape[0], image.affine), p)
    used = understood.gradients.of_volumes(understood.kept)
    all_kept = len(understood.kept) == image.shape[0]
    as_given = understood.is_as_given and all_kept
    return Taken(
        understood.gradients,
        _copied(tables) if as_given else table_files(used),
        Unsettled(None if all_kept else understood.kept, understood.question or None),
        {**said_of_tables(tables), **understood.as_record()},
        understood.warnings,
        (understood.note,),
    )


def _only_volumes(image: Image, tables: TableFiles | None, p: GradientParameters) -> Taken:
    """Take a series whose gradients nobody asks for: tables beside it are copied, or go with its volumes."""
    kept = tuple(kept_volumes(image.shape[0], p).tolist())
    all_kept = len(kept) == image.shape[0]
    unsettled = Unsettled(None if all_kept else kept)
    if tables is None:
        return Taken(unsettled=unsettled)
    if all_kept and tables.bvals is not None:
        return Taken(gradient_files=_copied(tables))
    raw = read_raw(tables, image.shape[0], image.affine)
    rows = Gradients(tuple(raw.bvals[list(kept)]), tuple(map(tuple, raw.bvecs[list(kept)])), 0.0)
    return Taken(gradient_files=table_files(rows), unsettled=unsettled, warnings=raw.warnings)


def _copied(tables: TableFiles) -> dict[str, bytes]:
    """Return FSL's tables as they are, by ending."""
    pair = {".bval": tables.bvals, ".bvec": tables.bvecs}
    return {
        ending: read_small(path, "this table", MAX_TABLE_BYTES)
        for ending, path in pair.items()
        if path is not None
    }


def settle(subject: Subject) -> Stages[Subject]:
    """Yield what the image is asked of its gradients, and the copy of the volumes that are used."""
    kept, question = subject.unsettled.kept, subject.unsettled.question
    subject = dataclasses.replace(subject, unsettled=SETTLED)
    answer, is_open = None, False
    if question is not None:
        used = kept or tuple(range(subject.image.shape[0]))
        answer = yield ask_image(subject.image, subject.dwi, subject.gradients, used, question)
        # Whether volumes without directions are left out, no plan knows.
        is_open = bool(question.undirected)
        if is_open and answer is not None:
            kept = tuple(volume for volume in used if volume not in answer.left_out)
    if kept is None and not is_open:
        return subject
    files = subject.gradient_files
    subject = yield from keep_volumes(subject, kept, "used-volumes", always=is_open)
    # Tables of volumes that were known to be used are as they should be; only then may they be copies.
    return subject if is_open else dataclasses.replace(subject, gradient_files=files)
