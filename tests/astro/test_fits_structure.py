"""What a file can hold, and what its headers promise: no byte is read, and no memory taken, beyond both."""

from __future__ import annotations

import gzip
import io
import os
import time
import tracemalloc

import numpy as np
import pytest
from astropy.io import fits
from support.exposure_data import pixels, rice, save, single, three_planes

from mpiimg.astro.fits.exposure import read_exposure
from mpiimg.astro.fits.reading import read_headers
from mpiimg.astro.fits.search import find_exposures
from mpiimg.astro.fits.structure import BLOCK, Promised, parts_of
from mpiimg.errors import BadInput


def places(path):
    """Return where astropy has the parts of a file begin and end."""
    with fits.open(path, disable_image_compression=True) as hdus:
        about = [hdu.fileinfo() for hdu in hdus]
    return [(one["hdrLoc"], one["datLoc"], one["datLoc"] + one["datSpan"]) for one in about]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["planes", "rice", "single", "table", "nothing"])
def test_the_walk_finds_what_astropy_finds(tmp_path, kind, zipped):
    path = tmp_path / "a.fits"
    if kind == "single":
        single(path)
    else:
        table = fits.BinTableHDU.from_columns([fits.Column("X", "PE()", array=[np.zeros(3), np.zeros(5)])])
        hdus = {"planes": three_planes(), "rice": rice(three_planes()), "table": [table], "nothing": []}[kind]
        save(path, *hdus)
    expected = places(path)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert [(part.header, part.data, part.end) for part in parts_of(path)] == expected


def bomb(path, data, megabytes=64, fill=b"\0"):
    """Write gzip that goes on with so many bytes of one kind behind `data`."""
    with gzip.open(path, "wb", 1) as file:
        file.write(data)
        for _ in range(megabytes):
            file.write(fill * (1 << 20))


def exposure_bytes():
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *three_planes()]).writeto(out)
    return out.getvalue()


def peak(call):
    tracemalloc.start()
    try:
        call()
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return most


def test_what_lies_behind_the_promised_end_of_gzip_is_not_inflated(tmp_path):
    """Zeros, as of a tape, are left alone; what is no extension is refused at its first block."""
    path = tmp_path / "a.fits.gz"
    bomb(path, exposure_bytes())
    assert path.stat().st_size < 1 << 20

    def read():
        (ref,) = find_exposures([path])
        assert (read_exposure(ref).image == three_planes()[0].data).all()

    read()
    assert peak(read) < 4 << 20
    bomb(path, exposure_bytes(), fill=b"x")
    with pytest.raises(BadInput, match="what follows extension 3 is no extension"):
        read_headers(path)


def test_a_header_that_goes_on_is_given_up(tmp_path):
    """Astropy would collect all of it."""
    path = tmp_path / "a.fits.gz"
    bomb(path, exposure_bytes()[: 80 * 3], fill=b" ")

    def read():
        with pytest.raises(BadInput, match="has no end"):
            read_headers(path)

    assert peak(read) < 16 << 20


@pytest.mark.parametrize("name", ["a.fits", "a.fits.gz"])
def test_an_image_larger_than_its_file_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    data = exposure_bytes()
    for axis in (1, 2):
        at = data.index(b"NAXIS%d  =" % axis)
        data = data[:at] + (b"NAXIS%d  =               300000" % axis).ljust(80) + data[at + 80 :]
    data += os.urandom(3 << 20)
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    began = time.monotonic()
    with pytest.raises(BadInput, match="is said to end at byte 36"):
        read_headers(path)
    assert time.monotonic() - began < 1


def test_a_file_that_grew_since_is_read_no_further(tmp_path):
    path = tmp_path / "a.fits"
    save(path, *three_planes())
    end = path.stat().st_size
    with open(path, "ab") as file:
        file.write(b"x" * 10 * BLOCK)
    with Promised(path, end) as promised:
        assert promised.seek(0, io.SEEK_END) == end
        promised.seek(-5, io.SEEK_END)
        assert len(promised.read()) == 5 and promised.read(10) == b""
        promised.seek(0)
        assert len(promised.read()) == end
        assert promised.seek(10 * end) == end


def test_an_image_of_another_size_than_planned_is_not_read(tmp_path):
    path = single(tmp_path / "a.fits")
    (ref,) = find_exposures([path])
    single(path, image=np.zeros((2000, 2000), np.float32))

    def read():
        with pytest.raises(BadInput, match="has changed since its headers were read"):
            read_exposure(ref)

    assert peak(read) < 8 << 20
    assert pixels()[0].nbytes < 8 << 20


def test_no_exposure_is_a_pipe_or_a_device(tmp_path):
    """A pipe would keep whoever opens it waiting."""
    os.mkfifo(tmp_path / "pipe.fits")
    for path in (tmp_path / "pipe.fits", "/dev/zero"):
        with pytest.raises(BadInput):
            find_exposures([path])
