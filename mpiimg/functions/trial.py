"""A user's function is tried on a little of the data before a run; and its halo is checked by two tilings."""

from __future__ import annotations

import functools
import json
import time
import tracemalloc
import uuid
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

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
from mpiimg.formats.gz import inflated_first
from mpiimg.functions.function import Function, keep_loaded
from mpiimg.functions.image_stages import TrialResult, grid, presented, result_shape
from mpiimg.functions.partials import Fields
from mpiimg.functions.results import Refused, checked_result, rehearsal_error, user_error
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


def jsonable(value: Any) -> Any:
    """Return a result as JSON knows it: arrays as lists, NaN and infinities as null.

    Raises
    ------
    Refused
        JSON has nothing for it.
    """
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is not None and not isinstance(value, str | int | float):
        raise Refused(f"finish returns {type(value).__name__}; return numbers, text, lists, arrays or a dict")
    return value


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
    block = _sample(image, origin, small)
    values = (image.shape, image.dtype, image.slope, image.inter, context, masked)
    key = key_of(function, values, box, block)
    if key in known:
        return TrialResult.from_json(known[key]), key
    about = (image, function, context, masked)
    when = _tried_on(image, function, block)
    if small == box:
        return apart(function, when, _tried, *about, box, block), key
    return apart(function, when, _tried_small, *about, small, block, origin, box), key


def key_of(function: Function, *about: Any) -> str:
    """Return what tells a trial from all others; what no later one has, where that cannot be known."""
    key = identity(function.provenance(), about)
    return f"trial {key.digest if key.known else uuid.uuid4().hex}"


def _tried_small(image, function: Function, context, masked: bool, small: Box, block, origin, box: Box):
    """Call a function on a part of a volume; on a whole one, once, where that alone is what it can take."""
    try:
        return _tried(image, function, context, masked, small, block)
    except WORK_ERRORS as error:
        if isinstance(error, SystemExit):
            raise
    whole = _sample(image, origin, box)
    try:
        return _tried(image, function, context, masked, box, whole, once=True)
    except WORK_ERRORS as error:
        raise user_error(error, function, _tried_on(image, function, whole)) from None


def _tried(
    image, function: Function, context, masked: bool, box: Box, block: np.ndarray, once: bool = False
) -> TrialResult:
    """Call a function on a block, in whatever process this is."""
    declared = function.declared
    assert function.code is not None  # what loading it takes is measured where it is loaded
    call = functools.partial(_call, image, function, context, masked, box, block)
    before = anonymous_now()
    result, taken = taken_by(call, block.size) if once else (call(), {})
    # Libraries that were imported, and whatever a call leaves behind beside its result.
    libraries = max(0, anonymous_now() - before - getattr(result, "nbytes", 0))
    if not once:  # once more, now that all is imported and compiled
        _, taken = taken_by(call, block.size)
    taken["libraries"] = libraries
    if function.aggregate:
        other = result
        if not once:
            thin = _thinner(box)
            other = _call(image, function, context, masked, thin, block[..., : box_shape(thin)[-3], :, :])
        return TrialResult(fields=_mergeable(function, result, other), **taken)
    components = declared.components
    if declared.over == "voxels" and components is None:
        shape = np.shape(result)
        components = shape[3] if len(shape) == 4 else None
    expected = box_shape(box)[:-4:-1]
    if declared.over == "voxels" and components is not None:
        expected = (*expected, components)
    return TrialResult(checked_result(function, result, expected).dtype.name, components, **taken)


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


def _call(image, function: Function, context, masked: bool, box: Box, block: np.ndarray) -> Any:
    blocks = [block.copy()]
    if masked and "mask" in function.wants:
        blocks.append(np.ones(block.shape[-3:], np.uint8))
    values, block_context = presented(image, function, box, blocks, context)
    return function(values, **block_context)


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
    if origin.kind == "nii.gz":
        block = inflated_first(origin.path, origin.offset, origin.dtype, box_size(box))
        block = block.reshape(box_shape(box))
    else:
        file = origin.open()
        try:
            block = file.read(box)
        finally:
            file.close()
    return block if origin is image else origin.scaled(block).astype(image.native)


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
    return apart(
        function, "when its halo was checked", _halo_checked, image, function, context, masked, box, block
    )


def _halo_checked(image, function: Function, context, masked: bool, box: Box, block: np.ndarray) -> str:
    """Compare tilings of a block, in whatever process this is."""
    halo, where, slices = (
        function.declared.halo,
        f"{function.origin.where}: {function.name}",
        box_shape(box)[-3],
    )
    tile = max(1, min(grid(image, function).block[-1], slices // 2))
    tiled = functools.partial(_tiled, image, function, context, masked, box, block)
    whole = tiled(slices, 0)
    disagreement = _disagreement(whole, tiled(tile, halo))
    larger = range(halo + 1, min(slices, halo + MAX_LARGER_HALOS)) if disagreement else ()
    enough = next((h for h in larger if not _disagreement(whole, tiled(tile, h))), None)
    if disagreement:
        advice = f"--halo {enough} is" if enough else f"nor is any up to {halo + MAX_LARGER_HALOS - 1}"
        raise BadInput(f"{where}: halo {halo} is not enough: {disagreement}; {advice}")
    same = "bit by bit" if np.array_equal(whole, tiled(tile, halo), equal_nan=True) else "but for rounding"
    return f"{where}: halo {halo} is enough: blocks of {tile} and of {slices} slices agree {same}"


def _tiled(image, function: Function, context, masked: bool, box: Box, block, tile: int, halo: int):
    """Return the result of a function on a box, called on tiles of so many slices with a halo."""
    parts = []
    slices = box_shape(box)[-3]
    for start in range(0, slices, tile):
        stop = min(start + tile, slices)
        low, high = max(start - halo, 0), min(stop + halo, slices)
        part = (*box[:-3], (box[-3][0] + low, box[-3][0] + high), *box[-2:])
        result = _call(image, function, context, masked, part, block[..., low:high, :, :])
        components = np.shape(result)[3] if np.ndim(result) == 4 else None
        result = checked_result(function, result, result_shape(function, image, components, high - low))
        parts.append(result[:, :, start - low : stop - low])
    return np.concatenate(parts, axis=2)


def _disagreement(one: np.ndarray, other: np.ndarray) -> str:
    """Say how two results differ by more than rounding; nothing where they do not."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    digits = 0.0 if one.dtype.kind in "iu" else 100 * float(np.finfo(one.dtype).eps)
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    wrong = ~np.isclose(a, b, rtol=digits, atol=digits * scale, equal_nan=True)
    if not wrong.any():
        return ""
    with np.errstate(invalid="ignore"):
        largest = np.nanmax(np.abs(a - b)[wrong], initial=0.0)
    return f"two tilings differ by up to {largest:.3g} in {100 * wrong.mean():.2g} % of the voxels"
