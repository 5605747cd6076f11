"""gzip out: parts that are compressed apart make one member, which every decoder takes for the whole."""

from __future__ import annotations

import gzip
import itertools
import subprocess
import zlib

import numpy as np
import pytest
from deflate import deflate_compress
from isal import igzip

from mpiimg.formats import gz


def noise(kind, count=100_000):
    return np.random.default_rng(0).normal(300, 40, count).astype(kind)


def ball(kind):
    x, y, z = np.ogrid[-1:1:60j, -1:1:50j, -1:1:40j]
    return ((x**2 + y**2 + z**2 < 0.6) * noise("float32", 120_000).reshape(60, 50, 40)).astype(kind).tobytes()


#: What images hold, and what is stored, and coded by fixed codes and by codes of its own.
DATA = {
    "nothing": b"",
    "a byte": b"x",
    "some bytes": bytes(range(54)),
    "text": b"SIMPLE  =                    T" * 30,
    "zeros": bytes(300_000),
    "zeros and a byte": bytes(1 << 15) + b"x",
    "a long run": b"\1" * 300_000,
    "counts": noise("int16").tobytes(),
    "counts as floats": noise("int16").astype("float32").tobytes(),
    "floats": noise("float32").tobytes(),
    "a map": ball("float32"),
    "a mask": (np.frombuffer(ball("int16"), "int16") > 0).tobytes(),
    "random": np.random.default_rng(1).bytes(200_000),
}


def file_of(*parts: bytes) -> bytes:
    """Return the file whose head holds the first of `parts`."""
    made = [gz.gzip_head(parts[0]), *map(gz.gzip_part, parts[1:])]
    return b"".join(one.data for one in made) + gz.gzip_tail([one.digest for one in made])


def only_member(data: bytes) -> bytes:
    """Return what a gzip file holds, which is one member and nothing else; zlib checks sum and length."""
    decoder = zlib.decompressobj(wbits=31)
    inflated = decoder.decompress(data)
    assert decoder.eof and decoder.unused_data == b""
    return inflated


@pytest.mark.parametrize("name", DATA)
def test_parts_make_one_member(name):
    data = DATA[name]
    cuts = [0, len(data) // 7, len(data) // 7, len(data) // 2, len(data)]
    made = file_of(b"a header", *(data[a:b] for a, b in itertools.pairwise(cuts)))
    assert only_member(made) == b"a header" + data
    assert igzip.decompress(made) == gzip.decompress(made) == b"a header" + data


def test_gzip_and_zcat_accept_it(tmp_path):
    path = tmp_path / "all.gz"
    path.write_bytes(file_of(*DATA.values()))
    subprocess.run(["gzip", "-t", path], check=True)
    assert subprocess.run(["zcat", path], check=True, capture_output=True).stdout == b"".join(DATA.values())


@pytest.mark.parametrize("name", DATA)
def test_a_part_is_inflated_without_those_before_it(name):
    made = gz.gzip_part(DATA[name])
    decoder = zlib.decompressobj(wbits=-15)
    assert decoder.decompress(made.data) == DATA[name]
    assert not decoder.eof, "other parts may follow"
    assert made.digest == (zlib.crc32(DATA[name]), len(DATA[name]))


@pytest.mark.parametrize("name", DATA)
def test_it_is_hardly_larger_than_in_one_go_and_never_than_promised(name):
    """Each 32 KiB begin with codes of their own."""
    data = DATA[name]
    made, one_go = gz.gzip_part(data).data, deflate_compress(data, 1)
    assert len(made) <= 1.03 * len(one_go) + 32 * (1 + len(data) // (1 << 15))
    assert len(made) <= gz.deflated_bytes(len(data))


@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_cut_anywhere(seed):
    """Of few values or many, with and without repetitions: codes of all lengths end at all bits of a byte."""
    rng = np.random.default_rng(seed)
    length = rng.integers(0, (300, 70_000)[seed % 2])
    values = rng.geometric(rng.choice([0.02, 0.1, 0.5, 0.9]), length) % rng.integers(1, 257)
    whole = values.astype("u1").tobytes() * rng.integers(1, 4)
    cut = rng.integers(0, len(whole), endpoint=True)
    assert only_member(file_of(whole[:cut], whole[cut:])) == whole


def test_what_becomes_several_blocks_is_halved(monkeypatch):
    """No block of libdeflate holds as much as this; what its next version makes may be smaller too."""
    monkeypatch.setattr(gz, "_BLOCK", 1 << 20)
    assert not deflate_compress(DATA["counts"], 1)[0] & 1, "the first block is not the last"
    assert only_member(file_of(b"", DATA["counts"])) == DATA["counts"]


def test_the_beginning_tells_neither_time_nor_name():
    made = file_of(DATA["text"])
    assert made[:4] == b"\x1f\x8b\x08\x00" and made[4:8] == bytes(4)
    assert made == file_of(DATA["text"])


def test_sum_and_length_of_more_than_a_length_can_tell():
    """The length is modulo 2^32; sums are combined as if all had been summed in one go."""
    zeros = (zlib.crc32(bytes(1 << 20)), 1 << 20)
    tail = gz.gzip_tail([zeros] * 4096 + [(zlib.crc32(b"end"), 3)])
    expected = 0
    for _ in range(4096):
        expected = zlib.crc32(bytes(1 << 20), expected)
    assert tail[-8:-4] == zlib.crc32(b"end", expected).to_bytes(4, "little")
    assert tail[-4:] == (3).to_bytes(4, "little")
