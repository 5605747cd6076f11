"""The steps: flat-field correction, registration, projection, cells."""

from dataclasses import dataclass, replace

import numpy as np

from mpiimg.engine import At, Compute, Found, Output, Part, Reduce, declare_step, parameter, trimmed
from mpiimg.formats.registry import result


@dataclass(frozen=True)
class Light:
    sigma: float = parameter(20.0, "The light is smoothed so far.", unit="pixels", limits=(0.5, 500))


@declare_step(
    parameters=Light, takes=("frames",), gives=("frames",), outputs=(result("frames", "flat.btf", "end"),)
)
def flatfield(state, p, _):
    """Divide each frame by the light: the median over all frames, smoothed."""
    frames, halo = state.frames, round(4 * p.sigma)
    light, even = frames.like("light", "yx", "float32"), frames.like("even", dtype="float32")

    def smooth(chunk, block):
        from scipy.ndimage import gaussian_filter

        smoothed = gaussian_filter(np.median(block, axis=0), p.sigma, radius=halo)
        return (trimmed(smoothed, chunk.bounds["y"], halo),)

    def divide(chunk, block, light):
        return (block / np.maximum(light, 1e-6),)

    yield Compute("light", frames.cut(y=64), reads=(Part(frames, {"y": halo}),), writes=(light,), work=smooth)
    yield Compute("divide", frames.cut(t=1), reads=(Part(frames), Part(light)), writes=(even,), work=divide)
    return replace(state, frames=even)


def offset(chunk, first, frame):
    """Return (y, x) of what is in `frame` less that in `first`: the peak of their cross-correlation."""
    one, other = (np.fft.rfft2(image[0] - image.mean(dtype=float)) for image in (first, frame))
    correlation = np.fft.irfft2(other * one.conj(), s=frame.shape[1:])
    peak = np.unravel_index(correlation.argmax(), correlation.shape)
    return [place - n if 2 * place > n else place for place, n in zip(peak, correlation.shape, strict=True)]


@declare_step(takes=("frames",), gives=("frames",), outputs=(result("frames", "still.btf", "end"),))
def register(state, p, _):
    """Shift each frame by whole pixels to where it resembles the first one most."""
    frames, still, each = state.frames, state.frames.like("still"), state.frames.cut(t=1)
    count, height, width = frames.shape
    reads = (At(frames, lambda chunk: ((0, 1), (0, height), (0, width))), Part(frames))
    row, zero, scratch = ((2,), "int64"), np.zeros((count, 2), int), 48 * height * width
    offsets = yield Reduce("offsets", each, reads=reads, work=offset, row=row, expected=zero, scratch=scratch)

    def seen(chunk):
        y, x = offsets[chunk.number]
        return (chunk.box[0], (max(y, 0), min(height + y, height)), (max(x, 0), min(width + x, width)))

    def move(chunk, block):
        y, x = offsets[chunk.number]
        return (np.pad(block, ((0, 0), (max(-y, 0), max(y, 0)), (max(-x, 0), max(x, 0)))),)

    yield Compute("move", each, reads=(At(frames, seen),), writes=(still,), work=move)
    return replace(state, frames=still)


@declare_step(takes=("frames",), gives=("projection",), outputs=(result("projection", "max.btf"),))
def project(state, p, _):
    """Keep the largest value of each pixel over all frames."""
    frames, largest = state.frames, state.frames.like("largest", "yx")

    def keep(chunk, block):
        return (block.max(axis=0),)

    yield Compute("project", frames.cut(y=64), reads=(Part(frames),), writes=(largest,), work=keep)
    return replace(state, projection=largest)


@dataclass(frozen=True)
class Cells:
    ratio: float = parameter(1.5, "Cells are brighter than the median by this factor.", limits=(1, 1e6))
    min_area: int = parameter(9, "Smaller cells are left out.", unit="pixels", limits=(1, 1_000_000))


def table(state, p):
    """Return the table of cells, with what was done above it."""
    lines = [*(f"# {line}" for line in state.history), "y,x,area"]
    lines += [f"{y:.2f},{x:.2f},{area}" for y, x, area in state.cells]
    return {f"{state.stem}_cells.csv": "\n".join([*lines, ""]).encode()}


@declare_step(
    parameters=Cells, takes=("projection",), gives=("cells",), outputs=(Output("cells", documents=table),)
)
def count(state, p, _):
    """Find the cells in the projection, and list their places and areas."""
    image, (height, width) = state.projection, state.projection.shape

    def find(rows):
        from scipy.ndimage import center_of_mass, label

        labels, _ = label(rows[0] > p.ratio * np.median(rows))
        areas = np.bincount(labels.ravel())
        cells = [n for n in range(1, len(areas)) if areas[n] >= p.min_area]
        places = center_of_mass(labels > 0, labels, cells)
        return Found(tuple((y, x, int(areas[n])) for (y, x), n in zip(places, cells, strict=True)))

    def bring(chunk, block):
        return block

    whole, row, size = image.cut(y=height), (image.shape, image.dtype), 28 * height * width
    cells = yield Reduce(
        "cells", whole, reads=(Part(image),), work=bring, row=row, finish=find, finish_bytes=size, expected=()
    )
    return replace(state, cells=cells)
