"""A user's function is tried on a little of the data before a run; and its halo is checked by two tilings."""

from __future__ import annotations

import functools
import json
import time
import tracemalloc
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mpiimg.arrays.differences import beyond_rounding
from mpiimg.arrays.identity import identity
from mpiimg.arrays.rehearse import (
    MAX_SECONDS,
    RehearsalFailed,
    in_fresh_interpreter,
    memory_for,
    seconds_for,
)
from mpiimg.engine.boxes import Box, box_shape, box_size
from mpiimg.engine.mpi.lifetime import lifetime
from mpiimg.engine.mpi.memory import anonymous_now
from mpiimg.errors import WORK_ERRORS, BadInput
from mpiimg.functions.function import Function, keep_loaded
from mpiimg.functions.image_stages import TrialResult, grid, one_by_one, presented
from mpiimg.functions.partials import Fields
from mpiimg.functions.results import checked_result, jsonable, rehearsal_error, user_error
from mpiimg.neuro.nifti import Image

#: Slices that a function is tried on, without its halo.
TRIAL_SLICES = 2

#: Voxels per side of the part of a volume that a function is tried on.
TRIAL_SIDE = 32

#: How long a trial may take: it is a little of a chunk, called a few times.
TRIAL_SHARE = f"a trial has a quarter of --timeout, and at most {MAX_SECONDS:.0f} s"

#: Bytes that the check of a halo reads, at most.
MAX_CHECKED_BYTES = 128 << 20

#: Larger halos that are tried where the declared one is not enough, at most.
MAX_LARGER_HALOS = 16


def document(result: Any) -> bytes:
    """Return the file that the result of an aggregate is written to."""
    return json.dumps(jsonable(result), indent=2, allow_nan=False).encode() + b"\n"


def try_function(
    image: Image,
    function: Function,
    context: Mapping[str, Any],
    masked: bool,
    origin: Image | None = None,
    known: Mapping[str, Any] = MappingProxyType({}),
    others: Sequence[tuple[Image, Image | None]] = (),
    results: int = 1,
) -> tuple[TrialResult, str]:
    """Call a function on a few slices, or a part of a volume, and say what its results are.

    Parameters
    ----------
    image : Image
        The image that it will be run on.
    function : Function
    context : mapping
        As for :func:`mpiimg.functions.image_stages.apply`.
    masked : bool
        Whether there will be a mask; all voxels count as inside in the trial.
    origin : Image, optional
        The image on disk, whose voxels stand for those of `image` where that is made in the run.
    known : mapping
        What earlier trials told, by their keys.
    others : sequence of (Image, Image)
        Further images that it reads, and for each what `origin` is for the first; None for a mask.
    results : int
        How many it has.

    Returns
    -------
    trial : TrialResult
    key : str
        What tells this trial from others.

    Raises
    ------
    BadInput
        It raises, or returns something that it must not.
    """
    declared = function.declared
    if declared.over == "voxels" and len(image.shape) == 3:
        raise BadInput(f"{function.origin.where}: {function.name} is over voxels, and the image is 3-D")
    depth, origin = image.shape[-3], origin or image
    slices = depth if declared.over == "volumes" else min(depth, TRIAL_SLICES + 2 * declared.halo)
    box = _window(image, function, slices)
    small = _shrunk(box) if declared.over == "volumes" else box
    blocks = _samples(function, [(image, origin), *others], small)
    images = [one for one, _ in others]
    values = [(one.shape, one.dtype, one.slope, one.inter) for one in (image, *images)]
    key = key_of(function, values, context, masked, box, results, *blocks)
    if key in known:
        return TrialResult.from_json(known[key]), key
    about = (_Call(image, function, context, masked, images), results)
    when = _tried_on(image, function, blocks[0])
    if small == box:
        return apart(function, when, _tried, *about, box, blocks), key
    sources = [(image, origin), *others]
    return apart(function, when, _tried_small, *about, small, blocks, sources, box), key


def key_of(function: Function, *about: Any) -> str:
    """Return what tells a trial from all others; what no later one has, where that cannot be known."""
    key = identity(function.provenance(), about)
    return f"trial {key.digest if key.known else uuid.uuid4().hex}"


@dataclass(frozen=True)
class _Call:
    """A function as it is called on blocks of an image, and of others that it reads with it."""

    image: Image
    function: Function
    context: Mapping[str, Any]
    masked: bool
    others: Sequence[Image] = ()

    def __call__(self, box: Box, blocks: Sequence[np.ndarray]) -> Any:
        """Call it on blocks that lie at `box`."""
        blocks = [block.copy() for block in blocks]
        if self.masked and "mask" in self.function.wants:
            blocks.append(np.ones(blocks[0].shape[-3:], np.uint8))
        values, context = presented(self.image, self.function, box, blocks, self.context, self.others)
        return self.function(*values, **context)


def _tried_small(call: _Call, results: int, small: Box, blocks, sources, box: Box) -> TrialResult:
    """Call a function on a part of a volume; on a whole one, once, where that alone is what it can take."""
    try:
        return _tried(call, results, small, blocks)
    except WORK_ERRORS as error:
        if isinstance(error, SystemExit):
            raise
    whole = _samples(call.function, sources, box)
    try:
        return _tried(call, results, box, whole, once=True)
    except WORK_ERRORS as error:
        raise user_error(error, call.function, _tried_on(call.image, call.function, whole[0])) from None


def _tried(call: _Call, results: int, box: Box, blocks, once: bool = False) -> TrialResult:
    """Call a function on blocks, in whatever process this is."""
    function, declared, items = call.function, call.function.declared, blocks[0].size
    assert function.code is not None  # what loading it takes is measured where it is loaded
    now = functools.partial(call, box, blocks)
    before = anonymous_now()
    result, taken = taken_by(now, items) if once else (now(), {})
    # Libraries that were imported, and whatever a call leaves behind beside its result.
    left = result if isinstance(result, tuple | list) else (result,)
    libraries = max(0, anonymous_now() - before - sum(getattr(one, "nbytes", 0) for one in left))
    if not once:  # once more, now that all is imported and compiled
        _, taken = taken_by(now, items)
    taken["libraries"] = libraries
    if function.aggregate:
        other = result
        if not once:
            thin = _thinner(box)
            other = call(thin, [block[..., : box_shape(thin)[-3], :, :] for block in blocks])
        return TrialResult(fields=_mergeable(function, result, other), **taken)
    told = []
    for one in one_by_one(function, result, results):
        components = declared.components
        if declared.over == "voxels" and components is None:
            shape = np.shape(one)
            components = shape[3] if len(shape) == 4 else None
        expected = box_shape(box)[:-4:-1]
        if declared.over == "voxels" and components is not None:
            expected = (*expected, components)
        told.append((checked_result(function, one, expected).dtype.name, components))
    (dtype, components), *more = told
    return TrialResult(dtype, components, tuple(more), **taken)


def _shrunk(box: Box) -> Box:
    """Return the middle of a box of one volume."""
    shrunk = []
    for start, stop in box[-3:]:
        length = min(stop - start, TRIAL_SIDE)
        first = start + (stop - start - length) // 2
        shrunk.append((first, first + length))
    return (*box[:-3], *shrunk)


def _thinner(box: Box) -> Box:
    """Return a box with a slice less, where it has more than one."""
    first, last = box[-3]
    return (*box[:-3], (first, max(last - 1, first + 1)), *box[-2:])


def _mergeable(function: Function, one: Any, other: Any) -> Fields:
    """Return how partial results lie in a row, having merged two and finished."""
    fields = Fields.of(one)
    merged = function.merge(*(fields.unpack(fields.pack(value)) for value in (one, other)))
    jsonable(function.finish(merged))
    return fields


def taken_by(call: Callable[[], Any], items: int) -> tuple[Any, dict[str, float]]:
    """Call, and return what comes of it, with CPU-seconds and bytes per item."""
    tracemalloc.start()
    try:
        started = time.process_time()
        result = call()
        seconds = time.process_time() - started
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, {"seconds": seconds / items, "scratch": peak / items}


def _tried_on(image: Image, function: Function, block: np.ndarray) -> str:
    shown = block if function.declared.over == "voxels" or block.ndim == 3 else block[0]
    dtype = image.scaled(block[..., :1, :1, :1]).dtype.name
    return f"tried on a block of {' x '.join(map(str, shown.shape[::-1]))} {dtype}"


def _window(image: Image, function: Function, slices: int) -> Box:
    """Return a box of so many slices about the middle of the image: of one volume, or of all for voxels."""
    *volumes, depth, height, width = image.shape
    first = (depth - slices) // 2
    box = ((first, first + slices), (0, height), (0, width))
    if volumes:
        box = ((0, volumes[0] if function.declared.over == "voxels" else 1), *box)
    return box


def _sample(image: Image, origin: Image, box: Box) -> np.ndarray:
    """Return voxels to try a function on: those of `box`; of a stream as many from its start."""
    if not origin.parallel:
        block = origin.first(box_size(box)).reshape(box_shape(box))
    else:
        file = origin.open()
        try:
            block = file.read(box)
        finally:
            file.close()
    return block if origin is image else origin.scaled(block).astype(image.native)


def _samples(function: Function, sources: Sequence[tuple[Image, Image | None]], box: Box) -> list[np.ndarray]:
    """Return voxels of every image at the box of the first; `sources` are images and their origins."""
    (image, origin), *others = sources
    blocks = [_stand_in(image, origin, box)]
    for other, its_origin in others:
        volumes = other.shape[:-3]
        if volumes and function.declared.over != "voxels":
            volumes = (1,)
        blocks.append(_stand_in(other, its_origin, (*((0, n) for n in volumes), *box[-3:])))
    return blocks


def _stand_in(image: Image, origin: Image | None, box: Box) -> np.ndarray:
    """Return voxels of an image; where it is made in the run, those of its origin, of any shape, for them."""
    if origin is None:
        return np.ones(box_shape(box), image.native)
    if len(origin.shape) == len(image.shape) and origin.shape[:-3] == image.shape[:-3]:
        return _sample(image, origin, box)
    place = (*((0, 1) for _ in origin.shape[:-3]), *box[-3:])
    return np.broadcast_to(_sample(image, origin, place).reshape(box_shape(place)[-3:]), box_shape(box))


def apart(function: Function, when: str, task: Callable, *arguments: Any) -> Any:
    """Call `task(*arguments)`, which calls a user's function, in a fresh interpreter; return what it returns.

    Parameters
    ----------
    function : Function
    when : str
        What it is called for, as part of a message.
    task : callable
        Of this package.
    *arguments : object

    Raises
    ------
    BadInput
        The function raises, ends or crashes that process, or does not return in its share of --timeout.
    """
    lifetime().watchdog(f"the trial of {function.name}")
    seconds = seconds_for(lifetime().watchdog.seconds)
    try:
        return in_fresh_interpreter(
            _called_apart,
            *(function, function.here, when, task, arguments),
            timeout=seconds,
            memory=memory_for(lifetime().memory),
            name=function.name,
        )
    except RehearsalFailed as failed:
        hint = f"; {TRIAL_SHARE}" if failed.hung else ""
        raise rehearsal_error(failed, function, when, hint) from None


def _called_apart(function: Function, code: Any, when: str, task: Callable, arguments: tuple) -> Any:
    """Call a task in the fresh interpreter, which has to be given what only the other process has."""
    if code is not None:
        keep_loaded(function.origin, code)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are kept for the run itself
            return task(*arguments)
    except SystemExit:
        raise  # no end of the function, and not of its caller
    except WORK_ERRORS as error:
        raise user_error(error, function, when) from None


def check_halo(image: Image, function: Function, context: Mapping[str, Any], masked: bool) -> str:
    """Run a function on part of an image in blocks with its halo, and in one block; say that they agree.

    Raises
    ------
    BadInput
        They do not, so that the halo is too small; or the function raises.
    """
    halo = function.declared.halo
    if function.aggregate or function.declared.over not in ("slabs", "voxels"):
        return f"{function.origin.where}: {function.name}: no halo to check"
    plane = box_size(_window(image, function, 1)) * np.dtype(image.dtype).itemsize
    slices = min(image.shape[-3], max(MAX_CHECKED_BYTES // plane, 4 * halo + 4))
    box = _window(image, function, slices)
    block = _sample(image, image, box)
    call = _Call(image, function, context, masked)
    return apart(function, "when its halo was checked", _halo_checked, call, box, block)


def _halo_checked(call: _Call, box: Box, block: np.ndarray) -> str:
    """Compare tilings of a block, in whatever process this is."""
    image, function = call.image, call.function
    halo, where, slices = (
        function.declared.halo,
        f"{function.origin.where}: {function.name}",
        box_shape(box)[-3],
    )
    tile = max(1, min(grid(image, function).block[-1], slices // 2))
    tiled = functools.partial(_tiled, call, box, block)
    whole = tiled(slices, 0)
    disagreement = _disagreement(whole, tiled(tile, halo))
    larger = range(halo + 1, min(slices, halo + MAX_LARGER_HALOS)) if disagreement else ()
    enough = next((h for h in larger if not _disagreement(whole, tiled(tile, h))), None)
    if disagreement:
        advice = f"--halo {enough} is" if enough else f"nor is any up to {halo + MAX_LARGER_HALOS - 1}"
        raise BadInput(f"{where}: halo {halo} is not enough: {disagreement}; {advice}")
    same = "bit by bit" if np.array_equal(whole, tiled(tile, halo), equal_nan=True) else "but for rounding"
    return f"{where}: halo {halo} is enough: blocks of {tile} and of {slices} slices agree {same}"


def _tiled(call: _Call, box: Box, block: np.ndarray, tile: int, halo: int) -> np.ndarray:
    """Return the result of a function on a box, called on tiles of so many slices with a halo."""
    parts = []
    slices = box_shape(box)[-3]
    for start in range(0, slices, tile):
        stop = min(start + tile, slices)
        low, high = max(start - halo, 0), min(stop + halo, slices)
        part = (*box[:-3], (box[-3][0] + low, box[-3][0] + high), *box[-2:])
        result = call(part, [block[..., low:high, :, :]])
        components = np.shape(result)[3] if np.ndim(result) == 4 else None
        expected = (*call.image.shape[:-3:-1], high - low, *([] if components is None else [components]))
        result = checked_result(call.function, result, expected)
        parts.append(result[:, :, start - low : stop - low])
    return np.concatenate(parts, axis=2)


def _disagreement(one: np.ndarray, other: np.ndarray) -> str:
    """Say how two results differ by more than rounding; nothing where they do not."""
    beyond = beyond_rounding(one, other)
    if beyond is None:
        return ""
    largest, share = beyond
    return f"two tilings differ by up to {largest:.3g} in {100 * share:.2g} % of the voxels"
