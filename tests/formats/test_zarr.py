"""Zarr and OME-Zarr: any chunks, shards and versions read in boxes; stores that their own libraries read."""

from __future__ import annotations

import json
import shutil

import numcodecs.blosc
import numpy as np
import pytest
import xarray
import zarr
from support.peers import numbers, read_in_boxes, write_alone

from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.interface import ResultArray
from mpiimg.formats.space import Affine
from mpiimg.formats.zarr import writing

VALUES = numbers("int16", (3, 2, 5, 11, 13))

AXES = ("t", "c", "z", "y", "x")

SPACE = Affine(
    ("x", "y", "z"),
    [[-2, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]],
    ("mm", "sec"),
    steps=[("t", 1.5, 0)],
)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of some hundred bytes, so that small arrays have many."""
    monkeypatch.setattr(writing, "CHUNK_BYTES", 200)
    monkeypatch.setattr(writing, "MIN_SHARD", 1000)


def check(path, values, axes):
    """A store is read as these values, whole and in random boxes; return the input."""
    read, source = read_in_boxes(path)
    np.testing.assert_array_equal(read, values)
    assert source.axes == axes
    reader, rng = source.open(), np.random.default_rng(0)
    for _ in range(5):
        box = tuple(tuple(sorted(rng.integers(0, n + 1, 2).tolist())) for n in values.shape)
        np.testing.assert_array_equal(reader.read(box), values[tuple(slice(*bounds) for bounds in box)])
    return source


def refusal(path):
    with pytest.raises(BadInput) as refused:
        read_in_boxes(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- Read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        {"chunks": (1, 2, 3, 4, 5), "dimension_names": AXES},
        {"chunks": (1, 1, 5, 4, 5), "shards": (2, 2, 5, 8, 10), "dimension_names": AXES},
        {"chunks": (2, 2, 3, 4, 5), "compressors": [zarr.codecs.GzipCodec()], "dimension_names": AXES},
        {
            "chunks": (3, 2, 5, 11, 13),
            "compressors": None,
            "chunk_key_encoding": {"name": "v2"},
            "dimension_names": AXES,
        },
        {
            "chunks": (1, 2, 3, 4, 5),
            "zarr_format": 2,
            "order": "F",
            "attributes": {"_ARRAY_DIMENSIONS": list(AXES)},
        },
    ],
    ids=["chunks", "shards", "gzip", "as it is", "version 2"],
)
def test_any_layout_is_read_in_boxes(layout, tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=VALUES, **layout)
    source = check(tmp_path / "x.zarr", VALUES, AXES)
    assert "_ARRAY_DIMENSIONS" not in source.attrs
    assert source.chunks == layout["chunks"]


def test_chunks_that_are_not_there_are_the_fill_value(tmp_path):
    array = zarr.create_array(tmp_path / "x.zarr", shape=(6, 4), chunks=(2, 2), dtype=">f4", fill_value=7.5)
    array[2:4, :2] = 1
    check(tmp_path / "x.zarr", array[:], ("d0", "d1"))


def test_another_chunk_makes_another_input(tmp_path):
    array = zarr.create_array(tmp_path / "x.zarr", shape=(6, 4), chunks=(2, 2), dtype="u1")
    seen = [registry.read(tmp_path / "x.zarr", "x").sample]
    for value in (1, 2):
        array[0, 0] = value
        seen.append(registry.read(tmp_path / "x.zarr", "x").sample)
    array.attrs["a"] = 1
    seen.append(registry.read(tmp_path / "x.zarr", "x").sample)
    assert len(set(seen)) == 4


def test_arrays_in_groups_are_named_by_their_paths(tmp_path):
    store = tmp_path / "x.zarr"
    group = zarr.create_group(store)
    group.create_array("a", data=VALUES[0, 0, 0])
    group.create_group("below").create_array("b", data=VALUES[0, 0])
    for name in (f"{store}/a", f"{store}:/a"):
        check(name, VALUES[0, 0, 0], ("d0", "d1"))
    for name in (store / "below", store / "below" / "b", f"{store}:/below"):
        check(name, VALUES[0, 0], ("d0", "d1", "d2"))
    check(store, VALUES[0, 0, 0], ("d0", "d1"))
    group.create_array("c", data=VALUES[0])
    assert "holds several arrays; name one, as x.zarr/NAME: there are a (array), below (group)" in refusal(
        store
    )
    assert "holds no 'd'; there are a (array), below (group), c (array)" in refusal(f"{store}:/d")
    assert "holds no '2'" in refusal(f"{store}:2")


def test_of_what_xarray_writes_coordinates_are_not_meant(tmp_path):
    data = xarray.DataArray(
        VALUES[0, 0], dims=("depth", "y", "x"), coords={"y": np.arange(11)}, name="signal"
    )
    data.to_zarr(tmp_path / "x.zarr", zarr_format=2)
    check(tmp_path / "x.zarr", VALUES[0, 0], ("depth", "y", "x"))


def test_scaled_values_are_those_of_xarray(tmp_path):
    data = xarray.DataArray(np.array([[1.5, np.nan, 3]], np.float32), dims=("y", "x"), name="signal")
    packing = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 1.0, "_FillValue": -9}
    data.to_zarr(tmp_path / "x.zarr", encoding={"signal": packing}, zarr_format=3)
    assert "scale_factor" not in check(tmp_path / "x.zarr", data.values, ("y", "x")).attrs


@pytest.mark.parametrize("version", ["0.1", "0.3", "0.4", "0.5"])
def test_levels_of_ome_zarr(version, tmp_path):
    store = tmp_path / "x.ome.zarr"
    new = version == "0.5"
    group = zarr.create_group(store, zarr_format=3 if new else 2)
    levels = {"s0": VALUES, "s1": VALUES[..., ::2, ::2]}
    for name, values in levels.items():
        group.create_array(name, data=values, chunks=(1, 1, 5, 8, 8))
    said = {"datasets": [{"path": name} for name in levels], "name": "cells"}
    if version >= "0.3":
        said["axes"] = list(AXES)
    if version >= "0.4":
        units = {"t": "millisecond", "c": None, "z": "micrometer", "y": "nanometer", "x": "nanometer"}
        said["axes"] = [{"name": axis, "unit": unit} for axis, unit in units.items()]
        for number, one in enumerate(said["datasets"]):
            one["coordinateTransformations"] = [
                {"type": "scale", "scale": [200, 1, 1, 500 * 2**number, 500 * 2**number]},
                {"type": "translation", "translation": [0, 0, 10, 250 * number, 0]},
            ]
        said["coordinateTransformations"] = [{"type": "scale", "scale": [1, 1, 2, 1, 1]}]
    group.attrs.update(
        {"ome": {"version": version, "multiscales": [said]}} if new else {"multiscales": [said]}
    )
    source = check(store, VALUES, AXES)
    assert source.attrs == {"name": "cells"}
    for name in (f"{store}:1", f"{store}/s1", f"{store}:/s1"):
        half = check(name, levels["s1"], AXES)
    assert "has no level 2; there are s0, s1" in refusal(f"{store}:2")
    if version < "0.4":
        assert source.space is None
        return
    assert (source.space.units, source.space.steps) == (("micron", "sec"), (("t", 0.2, 0.0),))
    np.testing.assert_allclose(np.array(source.space.matrix)[:3, 3], [0, 0, 20])
    np.testing.assert_allclose(np.diag(source.space.matrix), [0.5, 0.5, 2, 1])
    np.testing.assert_allclose(np.diag(half.space.matrix), [1, 1, 2, 1])
    np.testing.assert_allclose(np.array(half.space.matrix)[:3, 3], [0, 0.25, 20])


def test_of_several_images_one_is_named(tmp_path):
    """As bioformats2raw writes them: each in a group of its own."""
    store = tmp_path / "x.zarr"
    group = zarr.create_group(store, attributes={"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
    for name in "01":
        image = group.create_group(name)
        image.create_array("full", data=VALUES[0, int(name)])
        image.attrs["ome"] = {"multiscales": [{"axes": list("zyx"), "datasets": [{"path": "full"}]}]}
    assert "name one, as x.zarr/NAME: there are 0 (image), 1 (image)" in refusal(store)
    check(store / "1", VALUES[0, 1], ("z", "y", "x"))
    shutil.rmtree(store / "1")
    check(store, VALUES[0, 0], ("z", "y", "x"))


def test_what_is_no_store_is_refused_in_one_line(tmp_path):
    assert "no such" in refusal(tmp_path / "x.zarr").lower() or "not there" in refusal(tmp_path / "x.zarr")
    (tmp_path / "file.zarr").write_bytes(b"PK")
    assert "is a file, and not a folder" in refusal(tmp_path / "file.zarr")
    (tmp_path / "empty.zarr").mkdir()
    assert "is no Zarr store: it holds no zarr.json" in refusal(tmp_path / "empty.zarr")
    (tmp_path / "empty.zarr" / "zarr.json").write_text('{"zarr_format": 3,')
    assert "its metadata are damaged" in refusal(tmp_path / "empty.zarr")
    zarr.create_array(tmp_path / "text.zarr", shape=(3,), dtype="U4")
    assert "holds texts, times or objects" in refusal(tmp_path / "text.zarr")
    zarr.create_group(tmp_path / "group.zarr")
    assert "holds no array; there are no arrays in it" in refusal(tmp_path / "group.zarr")


def test_an_unknown_codec_is_refused_when_metadata_are_read(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", data=VALUES)
    document = tmp_path / "x.zarr" / "zarr.json"
    document.write_text(document.read_text().replace('"zstd"', '"from-another-world"'))
    assert "from-another-world" in refusal(tmp_path / "x.zarr")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-40] + bytes(40)])
def test_a_damaged_shard_is_said_when_it_is_read(damage, small_shards, tmp_path):
    path = write_alone(tmp_path, "x.zarr", VALUES, AXES)
    shard = sorted(path.glob("c/**/*"))[-1]
    shard.write_bytes(damage(shard.read_bytes()))
    assert "damaged: chunks of t " in refusal(path)


def test_a_flipped_bit_in_a_chunk_is_noticed(small_shards, tmp_path):
    path = write_alone(tmp_path, "x.zarr", VALUES, AXES)
    shard = sorted(path.glob("c/**/*"))[-1]
    data = bytearray(shard.read_bytes())
    data[30] ^= 1
    shard.write_bytes(data)
    assert "damaged" in refusal(path)


# --- Written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".zarr", ".ome.zarr"])
def test_axes_space_and_attributes_come_back(ending, small_shards, tmp_path):
    axes = ("x", "y", "z", "t")
    values = numbers("float32", (13, 11, 5, 3))
    about = {"space": SPACE, "attrs": {"note": ["µ", 1.5, None, float("inf")]}}
    path = write_alone(tmp_path, f"x{ending}", values, axes, **about)
    kept = ("t", "z", "y", "x") if ending == ".ome.zarr" else axes
    ordered = values.transpose([axes.index(axis) for axis in kept])
    source = check(path, ordered, kept)
    assert source.space == SPACE
    assert source.attrs["note"] == ["µ", 1.5, None, "inf"]
    opened = zarr.open(path, mode="r")
    array = opened["0"] if ending == ".ome.zarr" else opened
    np.testing.assert_array_equal(array[...], ordered)
    assert array.metadata.dimension_names == kept
    assert len(list(path.glob("**/c/**/*"))) > 4


def test_an_image_of_ome_zarr_is_one(small_shards, tmp_path):
    """Its metadata say what version 0.5 asks for, and xarray opens the group."""
    path = write_alone(tmp_path, "cells.ome.zarr", VALUES.transpose(4, 3, 2, 1, 0), AXES[::-1], space=SPACE)
    document = json.loads((path / "zarr.json").read_text())
    assert (document["zarr_format"], document["node_type"]) == (3, "group")
    ome = document["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    assert image["name"] == "cells"
    assert image["axes"] == [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        *({"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"),
    ]
    (level,) = image["datasets"]
    assert level["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.5, 1, 3, 2, -2]},
        {"type": "translation", "translation": [0, 0, 7, 6, 5]},
    ]
    opened = xarray.open_zarr(path, consolidated=False)[level["path"]]
    assert opened.dims == AXES
    np.testing.assert_array_equal(opened.values, VALUES)


def test_an_affine_that_is_turned_keeps_the_sizes_of_voxels(tmp_path):
    turned = Affine(
        ("x", "y", "z"), [[0, 2, 0, 5], [-2, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]], ("mm", "unknown")
    )
    path = write_alone(tmp_path, "x.ome.zarr", VALUES[0, 0], ("z", "y", "x"), space=turned)
    (image,) = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"]
    assert image["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [3, 2, 2]}]
    assert check(path, VALUES[0, 0], ("z", "y", "x")).space == turned


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (145, 174, 145, 288), (20000, 20000), (5, 3, 2048, 2048, 2048)]
)
@pytest.mark.parametrize("itemsize", [1, 4, 16])
def test_shards_are_slabs_of_whole_chunks_of_bounded_sizes(shape, itemsize):
    chunks, shards = writing.shards(shape, itemsize)
    assert np.prod(chunks) * itemsize <= writing.CHUNK_BYTES
    assert all(shard % chunk == 0 for shard, chunk in zip(shards, chunks, strict=True))
    total, size = np.prod(shape) * itemsize, np.prod(shards) * itemsize
    assert size <= max(writing.MAX_SHARD, total / writing.MAX_SHARDS) * 1.01
    counts = [-(-n // shard) for n, shard in zip(shape, shards, strict=True)]
    assert np.prod(counts) <= 2 * max(256, total / writing.MAX_SHARD)


@pytest.fixture
def threads():
    """Let the compressor have several threads, as a user's program may."""
    before = numcodecs.blosc.use_threads, numcodecs.blosc.set_nthreads(4)

    def use():
        numcodecs.blosc.use_threads = True

    yield use
    numcodecs.blosc.use_threads = before[0]
    numcodecs.blosc.set_nthreads(before[1])


def test_the_same_array_gives_the_same_bytes(threads, tmp_path):
    """Whatever the number of threads that compress."""
    made, values = [], numbers("int16", (700, 900)) % 100
    for name in "abc":
        (tmp_path / name).mkdir()
        path = write_alone(tmp_path / name, "x.ome.zarr", values, ("y", "x"), space=SPACE)
        threads()
        made.append(
            {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}
        )
    assert made[0] == made[1] == made[2]


def test_a_shard_of_zeros_is_there(small_shards, tmp_path):
    path = write_alone(tmp_path, "x.zarr", np.zeros((20, 30)), ("y", "x"))
    check(path, np.zeros((20, 30)), ("y", "x"))


@pytest.mark.parametrize("axes", [("z", "y"), ("g", "c", "y", "x"), ("n",)])
def test_what_is_no_image_of_ome_zarr_is_refused(axes):
    with pytest.raises(BadInput, match=f"and the array has {' '.join(axes)}; rename them, or write .zarr"):
        registry.writer("x.ome.zarr")(ResultArray("x.ome.zarr", axes, (4,) * len(axes), "uint8"))


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "x.zarr", data=VALUES)
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    assert "x.zarr: needs the package zarr: pip install 'mpiimg[zarr]'" in refusal(tmp_path / "x.zarr")
    with pytest.raises(BadInput, match=r"y\.zarr: needs the package zarr: pip install 'mpiimg\[zarr\]'"):
        registry.writer("y.zarr")(ResultArray("y.zarr", ("n",), (4,), "uint8"))
