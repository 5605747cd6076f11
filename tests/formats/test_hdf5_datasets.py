"""HDF5 datasets beside h5py: which one is meant, how it lies there, and what is refused."""

from __future__ import annotations

import json
import sys

import h5py
import numpy as np
import pytest
from support.peers import do, numbers, read_in_boxes, write_alone

from mpiimg.engine.array import Array
from mpiimg.errors import BadInput
from mpiimg.formats import registry
from mpiimg.formats.plain import PlainInput
from mpiimg.formats.space import Affine

VALUES = numbers("float32", (4, 3, 5))


@pytest.fixture
def several(tmp_path):
    """A file of several datasets, of all kinds, and a group."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["plain"] = VALUES
        file["group/big"] = VALUES.astype(">f4")
        file["group/flags"] = VALUES > 0
        file["group/complex"] = VALUES + 1j * VALUES
        file.create_dataset("packed", data=VALUES, chunks=(2, 3, 2), compression="gzip", shuffle=True)
        file.create_dataset("packed big", data=VALUES.astype(">f4"), chunks=(2, 3, 2))
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space, kind = h5py.h5s.create_simple((3,)), h5py.h5t.NATIVE_INT16
        h5py.h5d.create(file.id, b"compact", kind, space, compact).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.arange(3, dtype=np.int16)
        )
        layout = h5py.VirtualLayout((4, 3), "float32")
        layout[:] = h5py.VirtualSource(file["plain"])[..., 2]
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("never written", (4, 3), "int32", fillvalue=7)
        file["words"] = ["a", "b"]
        file["records"] = np.zeros(3, [("a", "f4"), ("b", "i2")])
        file["nothing"] = h5py.Empty("f4")
        file["long"] = np.zeros((0, 3))
    return path


@pytest.mark.parametrize(
    ("name", "expected", "in_place"),
    [
        ("/plain", VALUES, True),
        ("/group/big", VALUES, True),
        ("/group/flags", VALUES > 0, True),
        ("/group/complex", VALUES + 1j * VALUES, True),
        ("/packed", VALUES, False),
        ("/packed big", VALUES, False),
        ("/compact", np.arange(3, dtype=np.int16), False),
        ("/virtual", VALUES[..., 2], False),
        ("/never written", np.full((4, 3), 7, np.int32), False),
    ],
)
def test_every_kind_of_dataset_is_read_in_boxes(name, expected, in_place, several):
    """One in a piece without HDF5, in a file with a user block too."""
    back, source = read_in_boxes(f"{several}:{name}")
    np.testing.assert_array_equal(back, expected)
    assert back.dtype == expected.dtype.newbyteorder("=")
    assert isinstance(source, PlainInput) == in_place and source.parallel
    assert source.files == (several,)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "a.h5: name one of its datasets, as a.h5:/path; there are /compact, /group/big"),
        (":/planes", "has no dataset /planes; there are /compact"),
        (":/group", "/group is a group, and no dataset; there are /compact"),
        (":/words", "holds text or objects, and no numbers"),
        (":/records", "holds values of type"),
        (":/nothing", "is an empty dataset: there is nothing in it"),
        (":/long", "its shape is 0x3: there is nothing in it"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_with_what_there_is(name, said, several):
    with pytest.raises(BadInput) as refused:
        registry.read(f"{several}{name}", "values")
    assert said in str(refused.value) and str(refused.value).startswith(str(several))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"a\.h5:/x: cannot be read: No such file"):
        registry.read(tmp_path / "a.h5:/x", "values")


def test_axes_are_the_labels_or_the_names_of_scales(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = VALUES
        for dimension, label in zip(file["data"].dims, ("time of day", "y", "x"), strict=True):
            dimension.label = label
    source = registry.read(tmp_path / "a.h5", "values")
    assert source.axes == ("time_of_day", "y", "x")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        data = file.create_dataset("data", data=VALUES)
        for number, name in enumerate(("t", "lat", "lon")):
            file[name] = np.arange(VALUES.shape[number])
            file[name].make_scale(name)
            data.dims[number].attach_scale(file[name])
    source = registry.read(tmp_path / "b.h5", "values")  # scales are no datasets of their own
    assert source.axes == ("t", "lat", "lon")


def test_attributes_and_space_are_kept(tmp_path):
    space = Affine(("x", "y", "z"), np.diag([2, 3, 4, 1.0]), ("mm", "sec"), (1, 2))
    attrs = {"units": "adu", "gain": 1.5, "HISTORY": ["a", "b"], "n": 3, "odd": object()}
    path = write_alone(tmp_path, "a.h5:/maps/fa", VALUES, ("x", "y", "z"), space=space, attrs=attrs)
    source = registry.read(f"{path}:/maps/fa", "values")
    assert (source.space, source.axes) == (space, ("x", "y", "z"))
    del attrs["odd"]
    assert source.attrs == {**attrs, "HISTORY": json.dumps(["a", "b"])}
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["maps/fa"][()], VALUES)
        assert file["maps/fa"].attrs["gain"] == 1.5


def test_several_results_in_one_file(tmp_path):
    """Each is added to what the others wrote; a file of an earlier run is not."""
    (tmp_path / "a.h5").write_bytes(b"of an earlier run" * 999)
    made = {"one": VALUES, "below/two": numbers("int16", (7,)), "below/three": numbers("float64", (1, 2))}
    for name, values in made.items():
        array = Array(name, ("a", "b", "c")[: values.ndim], values.shape, values.dtype.name)
        do(tmp_path, registry.write(f"a.h5:/{name}", array), values, further=name != "one")
    with h5py.File(tmp_path / "a.h5") as file:
        for name, values in made.items():
            np.testing.assert_array_equal(file[name][()], values)
    array = Array("one", ("a",), (3,), "int16")
    with pytest.raises(BadInput, match="beside the other datasets of this file"):
        do(tmp_path, registry.write("a.h5:/one/more", array), numbers("int16", (3,)), further=True)


def test_a_chunk_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=VALUES, chunks=(2, 3, 5), compression="gzip", fletcher32=True)
        place = data.id.get_chunk_info(1).byte_offset
    raw = bytearray(path.read_bytes())
    raw[place + 20] ^= 1
    path.write_bytes(raw)
    reader = registry.read(path, "values").open()
    np.testing.assert_array_equal(reader.read(((0, 2), (0, 3), (0, 5))), VALUES[:2])
    with pytest.raises(BadInput, match=r"a\.h5:/data: damaged: .*; copy it again$"):
        reader.read(((2, 4), (0, 3), (0, 5)))
    reader.close()


def test_a_filter_that_is_missing_is_named(several, monkeypatch):
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: number != 2)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(BadInput, match=r"compressed by filter 2 \(shuffle\), which .*pip install hdf5plugin"):
        registry.read(f"{several}:/packed", "values")
