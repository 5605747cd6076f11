"""Volumes of a series that are left out: voxels, gradients, their files and the index alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.needs import At, Chunk
from mpiimg.engine.stage import Compute, Stages
from mpiimg.neuro.gradients import Gradients, gradients_text
from mpiimg.neuro.images import slice_grid
from mpiimg.neuro.metadata import fields_of_volumes
from mpiimg.neuro.nifti import Image

if TYPE_CHECKING:
    from mpiimg.neuro.subject import Subject


def keep_volumes(
    subject: Subject, kept: Sequence[int] | None, name: str = "kept-volumes", always: bool = False
) -> Stages[Subject]:
    """Copy the volumes that are kept, and make gradients, their files and the index follow.

    Parameters
    ----------
    subject : Subject
        With `dwi` (V, z, y, x), or `packed` (V, n).
    kept : sequence of int, optional
        Numbers among the current volumes, ascending and at least one; None where nobody knows yet, as in a
        plan, which then has a copy of all of them.
    name : str
        Of the array that is written; two calls in a step need two names.
    always : bool
        Make a copy even where all are kept. Needed where a Reduce says what is kept: the plan, which did not
        know, has let go of the voxels before the copy.

    Returns
    -------
    Subject
        The same where all are kept, and then no stage is yielded unless `always` is said.
    """
    count = subject.image.shape[0]
    chosen = tuple(range(count)) if kept is None else tuple(int(v) for v in kept)
    if kept is not None and len(chosen) == count and not always:
        return subject
    source = subject.dwi if subject.packed is None else subject.packed
    written = dataclasses.replace(source, name=name, shape=(len(chosen), *source.shape[1:]))
    yield copy_volumes(subject.image, source, written, chosen)
    voxels = {"dwi": written} if subject.packed is None else {"packed": written}
    return dataclasses.replace(without_volumes(subject, chosen), **voxels)


def copy_volumes(image: Image, source: Array, written: Array, kept: tuple[int, ...]) -> Compute:
    """Declare the copy of some volumes.

    Parameters
    ----------
    image : Image
        Whose voxels `source` holds.
    source : Array
        (V, z, y, x), or (V, n) with its packing.
    written : Array
        The same of as many volumes as are kept.
    kept : tuple of int
        Their numbers in `source`, ascending.
    """

    def box(chunk: Chunk):
        volume = kept[chunk.bounds["v"][0]]
        return ((volume, volume + 1), *source.part({"z": chunk.bounds["z"]})[1:])

    return Compute(
        f"copy-{written.name}",
        slice_grid((len(kept), *image.shape[-3:]), np.dtype(source.dtype).itemsize),
        reads=(At(source, box),),
        writes=(written,),
        work=lambda chunk, block: (block,),
        parameters={"kept": kept},
    )


def without_volumes(subject: Subject, kept: tuple[int, ...]) -> Subject:
    """Return what is known of a subject of which only these volumes are kept; its voxels are as they were."""
    image = dataclasses.replace(subject.image, shape=(len(kept), *subject.image.shape[1:]))
    image.__dict__["affine"] = subject.image.affine
    gradients = subject.gradients and subject.gradients.of_volumes(kept)
    return dataclasses.replace(
        subject,
        image=image,
        gradients=gradients,
        gradient_files=table_files(gradients) if gradients and subject.gradient_files else {},
        inherited=fields_of_volumes(subject.inherited, len(subject.volumes), kept),
        volumes=tuple(subject.volumes[v] for v in kept),
    )


def table_files(gradients: Gradients) -> dict[str, bytes]:
    """Return gradient files in FSL's format by ending, written anew."""
    return dict(zip((".bval", ".bvec"), gradients_text(gradients.bvals, gradients.bvecs), strict=True))
