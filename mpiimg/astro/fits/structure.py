"""How a FITS file is built: where its headers and data lie, by a walk that believes no header.

A header may promise more than its file holds, and a file hold more than its headers promise; behind 13 MB of
gzip there may be gigabytes. So the walk goes from header to header, holds one at a time, skips data without
keeping them, and stops where the last one promises its end. astropy then sees no byte behind that.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.errors import BadInput

#: Bytes of a block, of which all parts of a file are made.
BLOCK = 2880

#: What the comments of CHECKSUM and DATASUM say in files that mpiimg wrote.
SUMMED = "FITS standard 4.0, appendix J"

#: Most blocks of a header: 36,000 cards.
MAX_HEADER_BLOCKS = 1000

#: Most parts of a file.
MAX_PARTS = 10_000

#: Bytes that are skipped at a time.
PIECE = 1 << 20

#: Times that deflate makes data smaller, at most.
DEFLATE_RATIO = 1032

#: Likewise of all that a file as a whole may be compressed by; bzip2 has runs of runs.
RATIOS = {None: 1, "gzip": DEFLATE_RATIO, "bzip2": 2_000_000}

#: Pixels per byte that compressed images hold at most, by ZCMPTYPE; others may hold any.
COMPRESSED_PIXELS = {"RICE_1": 100, "RICE_ONE": 100, "GZIP_1": DEFLATE_RATIO, "GZIP_2": DEFLATE_RATIO}

_END = re.compile(rb"END {77}")
_NUMBER = re.compile(r" *([+-]?\d+) *(?:/.*)?$")
_TEXT = re.compile(r" *'((?:[^']|'')*)'")


@dataclass(frozen=True)
class Part:
    """A header with its data: where they begin and end, and what the header says of their size.

    Parameters
    ----------
    header, data, end : int
        Bytes, inflated ones.
    edited : bool
        Whether the header is another than when its CHECKSUM was written, going by the DATASUM that it states.
    ours : bool
        Whether mpiimg wrote the CHECKSUM.
    """

    header: int
    data: int
    end: int
    edited: bool = False
    ours: bool = False


def compression(path: Path) -> str | None:
    """Return by what a file as a whole is compressed: "gzip", "bzip2" or None."""
    with open(path, "rb") as file:
        start = file.read(3)
    return "gzip" if start[:2] == b"\x1f\x8b" else "bzip2" if start == b"BZh" else None


def open_plain(path: Path):
    """Open a file, or what gzip or bzip2 has made of one, to be read from its start."""
    kind = compression(path)
    if kind == "gzip":
        import gzip

        return gzip.open(path, "rb")
    if kind == "bzip2":
        import bz2

        return bz2.open(path, "rb")
    return open(path, "rb")


def add_words(total: int, data: bytes) -> int:
    """Add the big-endian words of 32 bits in `data` to a sum in ones' complement."""
    total += int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def parts_of(path: Path) -> tuple[Part, ...]:
    """Walk through a file, and return all its parts.

    Raises
    ------
    BadInput
        It is no FITS file, is shorter than its headers promise, or what follows a part is none.
    OSError
        It cannot be read.
    """
    try:
        with open_plain(path) as file:
            return tuple(_walk(path, file, path.stat().st_size, compression(path)))
    except (EOFError, zlib.error) as error:
        raise BadInput(f"{path}: truncated or corrupt ({error}); copy it again") from None
    except OSError as error:
        if error.errno is None:  # what gzip says of its content
            raise BadInput(f"{path}: truncated or corrupt ({error}); copy it again") from None
        raise


def _walk(path: Path, file, size: int, compressed: str | None):
    # Of what is compressed nobody knows the length before all is inflated, but how long it can be at most.
    longest = size * RATIOS[compressed]
    at = 0
    for number in range(MAX_PARTS):
        first = file.read(BLOCK)
        begins = first.startswith(b"SIMPLE  =" if number == 0 else b"XTENSION=")
        if not begins:
            if number == 0:
                raise BadInput(f"{path}: is not a FITS file")
            if first.strip(b"\0 "):
                raise BadInput(
                    f"{path}: truncated or corrupt: what follows extension {number - 1} is no extension; "
                    "copy it again"
                )
            return
        blocks = [first]
        while len(first) == BLOCK and not _ends(first):
            if len(blocks) == MAX_HEADER_BLOCKS:
                raise BadInput(f"{path}: corrupt: the header of extension {number} has no end; copy it again")
            first = file.read(BLOCK)
            blocks.append(first)
        if len(first) < BLOCK:
            raise BadInput(
                f"{path}: truncated or corrupt: it ends in the header of extension {number}; copy it again"
            )
        header = b"".join(blocks)
        cards = _cards(header)
        length = _data_length(path, number, cards)
        data = at + len(header)
        end = data + -(-length // BLOCK) * BLOCK
        if end > longest:
            holds = (
                f"{size} bytes of {compressed} can hold {longest}" if compressed else f"the file has {size}"
            )
            raise BadInput(
                f"{path}: truncated: extension {number} is said to end at byte {end}, and {holds}; "
                "copy it again"
            )
        _refuse_impossible(path, number, cards, length)
        skipped = _skip(file, end - data)
        # Some programs do not fill the last block of the last part.
        if skipped < length:
            raise BadInput(
                f"{path}: truncated: {data + skipped} bytes where extension {number} ends at {end}; "
                "copy it again"
            )
        yield Part(at, data, end, *_sums(header, cards))
        at = end


def _sums(header: bytes, cards: dict[str, str]) -> tuple[bool, bool]:
    """Say whether a header was edited after its sums were written, and whether we wrote them."""
    stated = _TEXT.match(cards.get("DATASUM", ""))
    if "CHECKSUM" not in cards or stated is None or not stated[1].strip().isdigit():
        return False, False
    total = add_words(int(stated[1]), header)
    return total not in (0, 2**32 - 1), SUMMED in cards["CHECKSUM"]


def _ends(block: bytes) -> bool:
    return any(_END.match(block, at) for at in range(0, BLOCK, 80))


def _cards(header: bytes) -> dict[str, str]:
    """Return the values of cards as they are written; of cards that are there twice, the first one."""
    text = header.decode("latin-1")
    cards: dict[str, str] = {}
    for at in range(0, len(text), 80):
        card = text[at : at + 80]
        if card[8:9] == "=":
            cards.setdefault(card[:8].rstrip(), card[9:])
        elif card.startswith("END     "):
            break
    return cards


def _number(path: Path, number: int, cards: dict[str, str], name: str, otherwise: int | None = None) -> int:
    """Return a whole number that is not negative, but for BITPIX."""
    if name not in cards and otherwise is not None:
        return otherwise
    found = _NUMBER.match(cards.get(name, ""))
    value = int(found[1]) if found and len(found[1]) < 20 else -1
    if value < 0 and not (name == "BITPIX" and found):
        told = f"is {cards[name].split('/')[0].strip() or 'empty'}" if name in cards else "is missing"
        raise BadInput(f"{path}: corrupt: {name} of extension {number} {told}; copy it again")
    return value


def _data_length(path: Path, number: int, cards: dict[str, str]) -> int:
    """Return the bytes of data that a header promises, without the filling of the last block."""
    bits = _number(path, number, cards, "BITPIX")
    if bits not in (8, 16, 32, 64, -32, -64):
        raise BadInput(f"{path}: corrupt: BITPIX of extension {number} is {bits}; copy it again")
    axes = [
        _number(path, number, cards, f"NAXIS{axis + 1}")
        for axis in range(min(_number(path, number, cards, "NAXIS"), 999))
    ]
    groups = number == 0 and cards.get("GROUPS", "").split("/")[0].strip() == "T"
    if groups and axes and axes[0] == 0:
        axes = axes[1:]
    pixels = 1 if axes else 0
    for axis in axes:
        pixels *= axis
    more = _number(path, number, cards, "PCOUNT", 0)
    times = _number(path, number, cards, "GCOUNT", 1)
    return abs(bits) // 8 * times * (more + pixels) if number or groups else abs(bits) // 8 * pixels


def _refuse_impossible(path: Path, number: int, cards: dict[str, str], length: int) -> None:
    """Refuse a compressed image whose pixels so few bytes cannot hold, or whose tiles are not its rows."""
    if cards.get("ZIMAGE", "").split("/")[0].strip() != "T":
        return
    axes = range(1, 1 + min(_number(path, number, cards, "ZNAXIS"), 999))
    shape = [_number(path, number, cards, f"ZNAXIS{axis}") for axis in axes]
    tile = [_number(path, number, cards, f"ZTILE{axis}", shape[0] if axis == 1 else 1) for axis in axes]
    pixels, tiles = 1, 1
    for side, part in zip(shape, tile, strict=True):
        pixels, tiles = pixels * side, tiles * -(-side // max(part, 1))
    kind = _TEXT.match(cards.get("ZCMPTYPE", ""))
    most = COMPRESSED_PIXELS.get(kind[1].strip() if kind else "")
    rows = _number(path, number, cards, "NAXIS2")
    if tiles != rows or 0 in tile or (most is not None and pixels > most * length):
        sides = " x ".join(map(str, shape))
        raise BadInput(
            f"{path}: corrupt: extension {number} is said to hold {sides} pixels in {tiles} tiles, and has "
            f"{rows} rows and {length} bytes; copy it again"
        )


def _skip(file, length: int) -> int:
    """Skip bytes without keeping them; return how many there were."""
    if isinstance(file, io.BufferedReader) and file.seekable() and type(file.raw) is io.FileIO:
        at = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(min(at + length, end))
        return min(length, end - at)
    skipped = 0
    while skipped < length:
        piece = file.read(min(PIECE, length - skipped))
        if not piece:
            break
        skipped += len(piece)
    return skipped


class Promised(io.RawIOBase):
    """What a file holds up to where its last part ends, to be read in any order.

    Parameters
    ----------
    path : Path
    end : int
        Bytes, inflated ones.
    """

    def __init__(self, path: Path, end: int):
        self._file, self._end = open_plain(path), end
        self.name = str(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._end}[whence]
        return self._file.seek(max(0, min(start + offset, self._end)))

    def readinto(self, buffer) -> int:
        room = memoryview(buffer).cast("B")
        size = max(0, min(len(room), self._end - self.tell()))
        data = self._file.read(size)
        room[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._end - self.tell())
        return self._file.read(left if size is None or size < 0 else min(size, left))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
