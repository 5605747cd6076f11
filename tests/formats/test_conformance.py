"""All formats alike: their own libraries read what is written, and what these write is read in boxes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.peers import PEERS, numbers, read_in_boxes, write_alone

from mpiimg.errors import BadInput
from mpiimg.formats import interface
from mpiimg.formats.sources import axes_of
from mpiimg.formats.zarr import writing as zarr_writing

SHAPES = [(7,), (5, 4), (1, 6), (4, 3, 5), (1, 1, 3), (3, 4, 2, 5), (2, 1, 3, 1)]


def cases(writes):
    """Return every type in one shape, and every shape in one type."""
    found = []
    for name, peer in PEERS.items():
        if not (peer.writes if writes else peer.save is not None):
            continue
        for dtype in peer.dtypes:
            found.append(pytest.param(name, dtype, (4, 3, 5), id=f"{name}-{dtype}"))
        for shape in (shape for shape in SHAPES if writes or len(shape) >= peer.fewest):
            identity = f"{name}-{'x'.join(map(str, shape))}"
            found.append(pytest.param(name, peer.dtypes[0], shape, id=identity))
    return found


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of some bytes, so that small arrays have many."""
    monkeypatch.setattr(interface, "CHUNK_BYTES", 16)
    monkeypatch.setattr(zarr_writing, "CHUNK_BYTES", 64)
    monkeypatch.setattr(zarr_writing, "MIN_SHARD", 256)


@pytest.mark.parametrize(("name", "dtype", "shape"), cases(writes=True))
def test_what_is_written_is_read_by_its_own_library_and_by_us(name, dtype, shape, small_chunks, tmp_path):
    peer, values = PEERS[name], numbers(dtype, shape)
    axes = peer.axes(len(shape))
    path = write_alone(tmp_path, f"values{peer.ending}", values, axes, order=peer.order)
    loaded = peer.load(path)
    np.testing.assert_array_equal(loaded, values)
    assert loaded.dtype.newbyteorder("=") == values.dtype
    back, source = read_in_boxes(path)
    np.testing.assert_array_equal(back, values)
    assert back.dtype == values.dtype
    assert axes_of(source) == axes


@pytest.mark.parametrize(("name", "dtype", "shape"), cases(writes=False))
def test_what_its_own_library_writes_is_read_in_boxes(name, dtype, shape, tmp_path):
    peer, values = PEERS[name], numbers(dtype, shape, seed=1)
    path = tmp_path / f"values{peer.ending}"
    peer.save(path, values)
    back, source = read_in_boxes(path)
    np.testing.assert_array_equal(back, values)
    assert back.dtype == values.dtype
    assert axes_of(source) == peer.axes(len(shape))


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.writes])
def test_axes_in_any_order_become_the_same_values(name, small_chunks, tmp_path):
    """A transposed array lies in the file by the names of its axes, or as its user has it."""
    peer, values = PEERS[name], numbers("float32", (4, 3, 5))
    axes = peer.axes(3)
    turned = write_alone(tmp_path, f"turned{peer.ending}", values.transpose(2, 0, 1), (axes[2], *axes[:2]))
    back, _ = read_in_boxes(turned)
    by_name = {"x", "y"} <= set(axes)
    np.testing.assert_array_equal(back, values if by_name else values.transpose(2, 0, 1))


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.writes])
def test_a_single_value_is_an_array_too(name, tmp_path):
    peer = PEERS[name]
    path = write_alone(tmp_path, f"value{peer.ending}", np.float32(3.5).reshape(()), ())
    assert np.asarray(peer.load(path)).reshape(-1).tolist() == [3.5]


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.is_folder])
def test_a_file_that_is_cut_or_is_none_is_refused_in_one_line(name, tmp_path):
    peer = PEERS[name]
    path = tmp_path / f"values{peer.ending}"
    (peer.save or write_alone)(path, numbers(peer.dtypes[0], (12, 13, 11)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert re.search("truncated|corrupt", refusal(path))
    if path.suffix == ".img":
        path = path.with_suffix(".hdr")
        data = path.read_bytes()
    for content in (data[:100], b"", b"this is no image" * 40, bytes(5000)):
        path.write_bytes(content)
        said = "is empty" if not content else "that can be read|truncated or corrupt gzip"
        assert re.search(said, refusal(path))


def refusal(path):
    """Return in what words a file is refused."""
    with pytest.raises(BadInput) as refused:
        read_in_boxes(path)
    said = str(refused.value)
    assert said.startswith(str(path)) and "\n" not in said and len(said) < 400, said
    return said
