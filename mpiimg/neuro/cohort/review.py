"""A look at a study before anything runs: which scans are to do, passed over or broken."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpiimg.engine.boxes import Partition
from mpiimg.engine.lease import Kind, LeaseState, acquire, release, sign
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput
from mpiimg.neuro.bids import Scan
from mpiimg.neuro.cohort.records import Cohort
from mpiimg.neuro.gradients import count_directions, lengths, unit_vectors
from mpiimg.neuro.nifti import Image, open_image
from mpiimg.neuro.tables.files import TableFiles, read_raw

#: Scans that are named in one message.
MAX_NAMED = 10

#: A tensor has six elements, and needs a b0 and as many directions.
MIN_DIRECTIONS = 6
MIN_VOLUMES = MIN_DIRECTIONS + 1

#: s/mm^2; nobody measures with less, so in a table without larger values it is the unit that is another one.
MIN_B = 0.1

#: Shorter vectors say nothing of a direction.
MIN_LENGTH = 0.01


@dataclass(frozen=True)
class Review:
    """What a look at a scan says.

    Parameters
    ----------
    kind : Kind
        TO_DO, PASSED_OVER or BROKEN.
    reason : str
        Why it is passed over or broken.
    voxels : int
        Those of the image, 0 where its header cannot be read: what the scan costs.
    """

    kind: Kind
    reason: str = ""
    voxels: int = 0


def look_through(cohort: Cohort, scans: Sequence[Scan], comm) -> dict[str, Review]:
    """Look at scans, each on one rank; no voxel is read. Collective.

    Returns
    -------
    dict of str to Review
        By name, on all ranks.
    """
    mine = Partition.even(len(scans), comm.size).owned(comm.rank)
    looked = {scans[number].name: look_at(cohort, scans[number]) for number in mine}
    return {name: review for part in comm.allgather(looked) for name, review in part.items()}


def look_at(cohort: Cohort, scan: Scan) -> Review:
    """Look at the name, the header and the gradients of a scan; what that raises is of this scan alone."""
    if scan.passed_over:
        return Review(Kind.PASSED_OVER, scan.passed_over)
    voxels = 0
    try:
        image = open_image(scan.dwi, (3, 4))
        voxels = math.prod(image.shape)
        b0_threshold = cohort.parameters.get("b0_threshold", 0.0)
        reason = _too_small(image) or _without_directions(scan, image, b0_threshold)
        if reason:
            return Review(Kind.PASSED_OVER, reason, voxels)
        if not scan.problem:
            cohort.inspect(scan)
    except BadInput as error:
        return Review(Kind.BROKEN, scan.problem or str(error), voxels)
    except Exception:  # what nobody has foreseen is said, with its traceback, when the turn of the scan comes
        pass
    return Review(Kind.BROKEN if scan.problem else Kind.TO_DO, scan.problem, voxels)


def _too_small(image: Image) -> str:
    """Say why an image has too few volumes to be meant for a tensor, "" where it has enough."""
    if len(image.shape) == 4 and image.shape[0] >= MIN_VOLUMES:
        return ""
    count = 1 if len(image.shape) == 3 else image.shape[0]
    volumes = "one volume" if count == 1 else f"{count} volumes"
    return f"{volumes}, as scans of the opposite phase encoding have, and a tensor takes {MIN_VOLUMES}"


def _without_directions(scan: Scan, image: Image, b0_threshold: float) -> str:
    """Say why the gradients of a scan are not meant for a tensor, "" where they may be or cannot be read.

    Where no b-value is above the threshold, directions count all the same: the values may be in ms/um^2.
    """
    if scan.bval is None or scan.bvec is None:
        return ""
    try:
        table = read_raw(TableFiles(scan.bval, scan.bvec), image.shape[0], image.affine)
    except BadInput:  # the inspection says so
        return ""
    bvals, bvecs = (np.where(np.isfinite(values), values, 0.0) for values in (table.bvals, table.bvecs))
    weighted = bvals > b0_threshold
    directed = (lengths(bvecs) > MIN_LENGTH) & (weighted if weighted.any() else bvals >= MIN_B)
    count = count_directions(unit_vectors(bvecs[directed]))
    if count >= MIN_DIRECTIONS:
        return ""
    if not weighted.any():
        return (
            f"only b0 volumes (b <= {b0_threshold:g} s/mm^2), as scans of the opposite phase encoding have; "
            "give them to topup"
        )
    directions = {0: "no direction", 1: "one direction"}.get(count, f"{count} directions")
    return f"{directions} in its gradients, and a tensor takes {MIN_DIRECTIONS}"


# --- What is said of it, and kept -------------------------------------------------------------------------


def kinds_of(states: Mapping[str, LeaseState], reviews: Mapping[str, Review]) -> dict[str, Kind]:
    """Return the kind of each scan: what the records say, but for scans that are not worked on."""
    unworked = {name: one.kind for name, one in reviews.items() if one.kind is not Kind.TO_DO}
    return {**{name: state.kind for name, state in states.items()}, **unworked}


def is_recorded(state: LeaseState, review: Review) -> bool:
    """Say whether an earlier job came to the same and said so."""
    return state.kind is review.kind and state.end.get("reason") == shown(review.reason)


def lines_of(
    reviews: Mapping[str, Review], without: Sequence[str], states: Mapping[str, LeaseState] | None = None
) -> list[str]:
    """Say which scans are broken or passed over, and why, and where there are none.

    Parameters
    ----------
    reviews : mapping of str to Review
    without : sequence of str
        Subjects and sessions that have no scan.
    states : mapping of str to LeaseState, optional
        What the records said before; scans that they say are passed over are not named again.
    """
    by_reason: dict[str, list[str]] = {}
    broken = []
    for name, review in reviews.items():
        if review.kind is Kind.BROKEN:
            broken.append(f"{name}: broken: {review.reason}")
        elif review.kind is Kind.PASSED_OVER and not (states and is_recorded(states[name], review)):
            by_reason.setdefault(review.reason, []).append(name)
    if len(broken) > MAX_NAMED and states is not None:
        broken[MAX_NAMED:] = [f"and {len(broken) - MAX_NAMED} more, which mpiimg-status lists"]
    passed = [f"passed over: {reason}: {named(names)}" for reason, names in by_reason.items()]
    absent = [f"no diffusion image: {named(without)}"] if without else []
    return [f"mpiimg: {line}" for line in (*broken, *passed, *absent)]


def as_json(kinds: Mapping[str, Kind], reviews: Mapping[str, Review], without: Sequence[str]) -> dict:
    """Return the same for programs."""
    nothing = Review(Kind.TO_DO)
    scans = {
        name: {"state": kind, "reason": reviews.get(name, nothing).reason} for name, kind in kinds.items()
    }
    return {"scans": scans, "without": list(without)}


def record_reviews(
    cohort: Cohort, states: Mapping[str, LeaseState], reviews: Mapping[str, Review], timeout: float
) -> None:
    """Keep of each scan that is broken or passed over that it is, as a lease that has ended.

    `timeout` is that of the watchdog, in seconds.
    """
    owner = sign(uuid.uuid4().hex, timeout)
    for scan in cohort.scans:
        state, review = states[scan.name], reviews.get(scan.name)
        if review is None or review.kind is Kind.TO_DO or is_recorded(state, review):
            continue
        # Another job that has it in work says how that ends.
        number = None if state.kind is Kind.IN_WORK else acquire(cohort.records(scan), state, owner)
        if number is not None:
            release(cohort.records(scan), number, review.kind, reason=shown(review.reason))


def named(names: Sequence[str]) -> str:
    """Return names in a list, as many as go into one message."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
