"""TIFF, BigTIFF, OME-TIFF and ImageJ's hyperstacks: read by strips or tiles, on every rank.

tifffile says what is in a file: series of pages that make one image, their axes, and where each strip or tile
lies; one rank asks it, and all get the table. What a rank reads are the strips and tiles that its box meets.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpiimg.engine.array import Array
from mpiimg.engine.boxes import Box, box_shape
from mpiimg.engine.inputs import Reader
from mpiimg.engine.raw import FileEnds, RawFile, sample_file
from mpiimg.errors import BadInput
from mpiimg.formats.interface import library, split
from mpiimg.formats.space import Space
from mpiimg.formats.tiff.metadata import described

log = logging.getLogger("mpiimg")

#: What tifffile says in its log of files of which it can read but a part.
_DAMAGE = re.compile(
    r"invalid (page )?offset|corrupt|truncat|fail|missing|incomplete|not found", re.IGNORECASE
)

#: Compressions that keep tables of their own beside the pages.
_JPEG = {6, 7, 34892, 33007}


@dataclass(frozen=True)
class Segments:
    """Where the strips or tiles of an image lie.

    Parameters
    ----------
    pages : tuple of int
        Pages along each of the leading axes of the image.
    shaped : (int, int, int, int, int)
        Of a page: separate samples, depth, rows, columns, samples of a pixel, as tifffile counts them.
    segment : (int, int, int, int, int)
        Of a strip or tile, likewise.
    keyframe : (int, int)
        Number and place of the page whose header says how all are packed, in the first file.
    places : (pages, segments, 2) int64
        Place in the file, and bytes; 0 bytes for one that is not there.
    file : (pages,) int64
        The file that a page lies in.
    tables : tuple of bytes
        Of a page, for what is packed by JPEG with tables; else none.
    nodata : float
        What a segment holds that is not there.
    """

    pages: tuple[int, ...]
    shaped: tuple[int, ...]
    segment: tuple[int, ...]
    keyframe: tuple[int, int]
    places: np.ndarray
    file: np.ndarray
    tables: tuple[bytes | None, ...]
    nodata: float


@dataclass(frozen=True)
class TiffImage:
    """One image of a TIFF file; an :class:`mpiimg.engine.inputs.Input`.

    Parameters
    ----------
    files : tuple of Path
        The file, and those that it names.
    array : Array
    axes : tuple of str
    space : Space or None
    attrs : dict
    stored : str
        The dtype in the file, with byte order.
    contiguous : int or None
        Where all values lie in one piece in the first file; None where they do not.
    segments : Segments or None
        None where they do.
    """

    files: tuple[Path, ...]
    array: Array
    axes: tuple[str, ...]
    space: Space | None
    attrs: dict[str, Any]
    stored: str
    contiguous: int | None
    segments: Segments | None

    parallel = True

    @property
    def chunks(self) -> tuple[int, ...]:
        """Items along each axis of what is unpacked as a whole; 1 along all where nothing is packed."""
        shape = self.array.shape
        if self.segments is None:
            return (1,) * len(shape)
        leading = len(self.segments.pages)
        long = iter([m for n, m in zip(self.segments.shaped, self.segments.segment, strict=True) if n != 1])
        return (1,) * leading + tuple(1 if n == 1 else min(next(long), n) for n in shape[leading:])

    @cached_property
    def sample(self) -> tuple[tuple[int, int, int], ...]:
        """Size, time and a checksum of samples of each file; once known, it is sent with the input."""
        return tuple(map(sample_file, self.files))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which of the images it is, by where it lies; enters the provenance."""
        first = self.contiguous if self.segments is None else int(self.segments.places[0, 0, 0])
        return {"dtype": self.array.dtype, "shape": self.array.shape, "first": first}

    def open(self) -> Reader:
        """Open it for reading in any order."""
        if self.segments is None:
            return RawFile(self.files[0], self.contiguous, self.array.shape, self.stored)
        return SegmentReader(self.files, self.array.shape, self.array.dtype, self.segments)


class SegmentReader:
    """Reads the strips or tiles that a box meets.

    Parameters
    ----------
    files : tuple of Path
    shape : tuple of int
        Of the image.
    dtype : str
    segments : Segments

    Raises
    ------
    BadInput
        They cannot be decoded; on reading.
    """

    def __init__(self, files: tuple[Path, ...], shape: tuple[int, ...], dtype: str, segments: Segments):
        self._files, self._shape, self._dtype, self._segments = files, shape, np.dtype(dtype), segments
        counts = [-(-n // b) for n, b in zip(segments.shaped, segments.segment, strict=True)]
        self._counts = tuple(counts)
        self._descriptors: dict[int, int] = {}
        tifffile = library("tifffile", files[0], "tiff")
        number, place = segments.keyframe
        with tifffile.TiffFile(files[0]) as file:
            file.filehandle.seek(place)
            page = tifffile.TiffPage(file, number)
            self._decode = page.decode
            self._jpeg = {"jpegheader": page.jpegheader} if page.compression in _JPEG else {}

    def read(self, box: Box) -> np.ndarray:
        """Return the values of `box`."""
        leading = len(self._segments.pages)
        within = _within_page(self._shape[leading:], box[leading:], self._segments.shaped)
        block = np.full(
            (math.prod(box_shape(box[:leading])), *box_shape(within)), self._segments.nodata, self._dtype
        )
        if block.size:
            for place, page in enumerate(self._pages(box[:leading])):
                for segment in self._met(within):
                    self._fill(block[place], within, page, segment)
        return block.reshape(box_shape(box))

    def close(self) -> None:
        """Release the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _pages(self, box: Box) -> Iterator[int]:
        for index in itertools.product(*(range(a, b) for a, b in box)):
            yield int(np.ravel_multi_index(index, self._segments.pages)) if index else 0

    def _met(self, within: Box) -> Iterator[int]:
        """Yield the numbers of the segments of a page that a box meets, in the order of the file."""
        sizes = self._segments.segment
        ranges = [range(a // n, -(-b // n)) for (a, b), n in zip(within, sizes, strict=True)]
        for index in itertools.product(*ranges):
            yield int(np.ravel_multi_index(index, self._counts))

    def _fill(self, block: np.ndarray, within: Box, page: int, number: int) -> None:
        place, count = self._segments.places[page, number].tolist()
        if not count:
            return
        path = self._files[self._segments.file[page]]
        data = self._bytes(int(self._segments.file[page]), place, count)
        others = {**self._jpeg, "jpegtables": self._segments.tables[page]} if self._jpeg else {}
        try:
            values, (sample, *first, _), shape = self._decode(data, number, **others)
        except Exception as error:
            raise BadInput(
                f"{path}: strip or tile {number} of page {page} cannot be decoded: "
                f"{' '.join(str(error).split())}; the file is damaged, or its compression needs imagecodecs: "
                "pip install 'mpiimg[tiff]'"
            ) from None
        if values is None:
            return
        ends = ((sample, sample + 1), *((a, a + n) for a, n in zip((*first, 0), shape, strict=True)))
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(within, ends, strict=True)]
        into = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(common, within, strict=True))
        of = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(common, ends, strict=True))
        block[into] = values[np.newaxis][of]

    def _bytes(self, file: int, place: int, count: int) -> bytes:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(self._files[file], os.O_RDONLY)
        data = os.pread(self._descriptors[file], count, place)
        if len(data) < count:
            raise FileEnds(
                f"{self._files[file]} ends at byte {place + len(data)}, before the image in it does"
            )
        return data


def _within_page(shape: tuple[int, ...], box: Box, shaped: tuple[int, ...]) -> Box:
    """Return a box of an image's axes within a page as one of the five that tifffile counts of a page."""
    long = iter([bounds for bounds, n in zip(box, shape, strict=True) if n != 1])
    if any(n == 1 and b <= a for (a, b), n in zip(box, shape, strict=True)):
        return ((0, 0),) * len(shaped)
    return tuple((0, 1) if n == 1 else next(long) for n in shaped)


def read(path: Path, name: str) -> TiffImage:
    """Look at the headers of a TIFF file.

    Parameters
    ----------
    path : Path
        With ":1" behind it for the second image of several, and ":1/2" for the third level of its pyramid.
    name : str
        Of the array.

    Raises
    ------
    BadInput
        It is no TIFF, truncated, or packed in a way that nothing here reads; or it holds several images, and
        none is chosen, or there is none of this number.
    """
    file, choice = split(path)
    tifffile = library("tifffile", file, "tiff")
    with _heard(file, tifffile), tifffile.TiffFile(file) as tiff:
        number, series = _series(path, tiff, choice)
        said = described(tiff, number, series)
        if series.dtype is None or series.dtype.kind not in "buifc":
            raise BadInput(f"{path}: holds values of a kind that no array has ({series.dtype})")
        dtype = np.dtype(series.dtype).newbyteorder("=").name
        array = Array(name, said.axes, said.shape, dtype)
        about = array, said.axes, said.space, said.attrs
        if not math.prod(series.shape):
            raise BadInput(f"{path}: holds an image of no pixels, {_said(series)}")
        keyframe = series.keyframe
        stored = np.dtype(series.dtype).newbyteorder(tiff.byteorder).str
        one_piece = series.dataoffset if series.transform is None else None
        if one_piece is not None and keyframe.is_contiguous:
            _check_length(file, one_piece + array.nbytes)
            return TiffImage((file,), *about, stored, one_piece, None)
        files, segments = _segments(path, series, said.shape)
        return TiffImage(files, *about, stored, None, segments)


@contextlib.contextmanager
def _heard(path: Path, tifffile) -> Iterator[None]:
    """Refuse a file that tifffile reads in part, and says so in its log alone: its image would be smaller."""
    said: list[str] = []
    listener, logger = logging.Handler(logging.WARNING), tifffile.logger()
    listener.emit = lambda record: said.append(" ".join(record.getMessage().split()))
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(listener)

    def check() -> None:
        damage = next((line for line in said if _DAMAGE.search(line)), None)
        if damage is not None:
            raise BadInput(f"{path}: truncated or damaged: {damage}; copy it again") from None

    try:
        yield
    except BadInput:
        raise
    except Exception:
        check()
        raise
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagates
    check()
    for line in dict.fromkeys(said):
        log.warning("%s: %s", path, line)


def _series(path: Path, tiff, choice: str):
    """Return number and series of the image that is chosen, at the level that is."""
    there = tiff.series
    if not there:
        raise BadInput(f"{path}: holds no image")
    names = "; ".join(f":{number} {_said(one)}" for number, one in enumerate(there[:9]))
    if len(there) > 9:
        names += f"; and {len(there) - 9} more"
    if not choice and len(there) > 1:
        raise BadInput(f"{path}: holds {len(there)} images; name one of them: {names}")
    number, _, level = choice.partition("/")
    if not all(one.isdigit() for one in (number or "0", level or "0")) or int(number or 0) >= len(there):
        raise BadInput(f"{path}: holds no image {number}; there are {names}")
    series = there[int(number or 0)]
    if int(level or 0) >= len(series.levels):
        raise BadInput(
            f"{path}: the image has no level {level}; there are {len(series.levels)}, from 0: "
            + "; ".join(map(_said, series.levels))
        )
    return int(number or 0), series.levels[int(level or 0)]


def _said(series) -> str:
    return f"({' '.join(series.axes.lower())}: {' x '.join(map(str, series.shape))}, {series.dtype})"


def _segments(path: Path, series, shape: tuple[int, ...]) -> tuple[tuple[Path, ...], Segments]:
    """Return the files of an image, and where all its strips or tiles lie in them."""
    keyframe = series.keyframe
    if series.transform is not None:
        raise BadInput(f"{path}: an image of the kind {series.kind}, of which no part can be read alone")
    _check_codec(path, keyframe)
    shaped = tuple(keyframe.shaped)
    leading = _leading(shape, shaped, len(series))
    if leading is None:
        raise BadInput(f"{path}: {len(series)} pages of {shaped} do not make an image {_said(series)}")
    samples = keyframe.samplesperpixel if keyframe.planarconfig == 1 else 1
    if keyframe.is_tiled:
        segment = (1, keyframe.tiledepth, keyframe.tilelength, keyframe.tilewidth, samples)
    else:
        segment = (1, 1, keyframe.rowsperstrip, keyframe.imagewidth, samples)
    count = math.prod(-(-n // b) for n, b in zip(shaped, segment, strict=True))
    places = np.zeros((len(series), count, 2), np.int64)
    files = {Path(keyframe.parent.filehandle.path): 0}
    of_page, tables = np.zeros(len(series), np.int64), []
    for number, page in enumerate(series):
        if page is None:  # one that OME-TIFF names, and that is not there
            tables.append(None)
            continue
        of_page[number] = files.setdefault(Path(page.parent.filehandle.path), len(files))
        if not len(page.dataoffsets) == len(page.databytecounts) == count:
            raise BadInput(
                f"{path}: page {number} has {len(page.dataoffsets)} strips or tiles in place of {count}; "
                "the file is damaged: write it again"
            )
        places[number, :, 0], places[number, :, 1] = page.dataoffsets, page.databytecounts
        tables.append(page.jpegtables if keyframe.compression in _JPEG else None)
    lacking = sum(page is None for page in series)
    if lacking:
        log.warning("%s: %d of %d planes are not there, and are taken as 0", path, lacking, len(series))
    for file, index in files.items():
        _check_length(file, int(places[of_page == index].sum(axis=2).max(initial=0)))
    nodata = keyframe.nodata
    segments = Segments(
        leading, shaped, segment, (keyframe.index, keyframe.offset), places, of_page, tuple(tables), nodata
    )
    return tuple(files), segments


def _check_length(path: Path, end: int) -> None:
    """Refuse a file that ends before the pixels in it do."""
    size = os.stat(path).st_size
    if size < end:
        raise BadInput(f"{path}: truncated: {size} bytes where its header promises {end}; copy it again")


def _leading(shape: tuple[int, ...], shaped: tuple[int, ...], pages: int) -> tuple[int, ...] | None:
    """Return the axes of an image that count its pages; None where its pages do not make it."""
    of_page = [n for n in shaped if n != 1]
    for cut in range(len(shape) + 1):
        if math.prod(shape[:cut]) == pages and [n for n in shape[cut:] if n != 1] == of_page:
            return tuple(shape[:cut])
    return None


def _check_codec(path: Path, keyframe) -> None:
    """Refuse what cannot be decoded here, before any rank tries."""
    try:
        keyframe.decode(None, 0)
    except Exception as error:
        packed = getattr(keyframe.compression, "name", keyframe.compression)
        raise BadInput(
            f"{path}: its compression, {packed}, cannot be read here ({' '.join(str(error).split())}): "
            "pip install 'mpiimg[tiff]' brings imagecodecs, which knows most"
        ) from None
