"""Values survive the way into bytes and back with their types, and what cannot is refused by its place."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import math
import struct
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpiimg.engine.codec import CannotKeep, NotEncoded, decode, encode, parts


class Piece(NamedTuple):
    box: tuple
    planes: np.ndarray

    def rows(self):
        return len(self.planes)


@dataclasses.dataclass(frozen=True)
class Gain:
    value: float
    unit: str = "e/adu"


SIMPLE = np.dtype([("x", "<f4"), ("y", ">i2", (2,)), ("name", "U3")])
PADDED = np.dtype([("x", "i1"), ("y", "f8")], align=True)
PLAIN = "? i1 <u2 >i4 u8 f2 >f4 f8 c8 c16 S4 U2 M8[ns] m8[s]"
DTYPES = st.sampled_from([*map(np.dtype, PLAIN.split()), SIMPLE, PADDED])


@st.composite
def some_arrays(draw):
    dtype, shape = draw(DTYPES), draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    count = math.prod(shape) * dtype.itemsize
    if dtype.kind == "U" or dtype.names:
        made = np.zeros(shape, dtype)
    else:
        data = bytes(draw(st.binary(min_size=count, max_size=count)))
        if dtype.kind == "b":
            data = bytes(one & 1 for one in data)
        made = np.frombuffer(data, dtype).reshape(shape) if count else np.zeros(shape, dtype)
    return draw(st.sampled_from([made, np.asfortranarray(made), made[..., ::-1] if made.ndim else made]))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**5000, max_value=2**5001),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters()),
    st.binary(),
    st.builds(Path, st.sampled_from(["a/b.fits", "/", "..", "ä"])),
    st.builds(slice, st.none() | st.integers(), st.integers()),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9)),
    some_arrays(),
    st.builds(lambda array: array.reshape(-1)[0] if array.size else np.float32(1), some_arrays()),
)
keys = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.builds(tuple, st.lists(inner, max_size=3)),
        st.dictionaries(keys, inner, max_size=3),
        st.builds(Piece, inner, inner),
        st.builds(Gain, inner, inner),
    ),
    max_leaves=8,
)


def _bytes(array):
    """The bytes of an array, without what lies between its fields, which no copy keeps."""
    if array.dtype.names:
        return [_bytes(array[name]) for name in array.dtype.names]
    return array.tobytes()


def same(one, other) -> bool:
    """Whether two values are of the same types, and of the same bytes."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        orders = [(x.flags.c_contiguous, x.flags.f_contiguous) for x in (one, other)]
        contiguous = any(orders[1])
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and _bytes(one) == _bytes(other)
            and (not contiguous or orders[0] == orders[1])
        )
    if isinstance(one, np.generic):
        return one.dtype == other.dtype and _bytes(one) == _bytes(other)
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    return one == other


@settings(deadline=None, max_examples=300)
@given(values)
def test_what_comes_back_is_what_went_in(value):
    assert same(decode(encode(value)), value)
    assert same(decode(bytearray(encode(value))), value)


@settings(deadline=None)
@given(values)
def test_parts_are_the_bytes_of_a_value(value):
    assert b"".join(parts(value)) == encode(value)


def test_arrays_are_views_of_what_may_be_written_and_writable_anyhow():
    data = bytearray(encode({"a": np.arange(5.0), "b": np.ones(3, "f4", order="F")}))
    value = decode(data)
    value["a"][0] = 7
    assert decode(data)["a"][0] == 7
    fixed = bytes(data)
    other = decode(fixed)
    other["a"][0] = 9
    assert decode(fixed)["a"][0] == 7
    moved = memoryview(bytearray(b"x" + fixed))[1:]
    assert all(array.flags.aligned and array.flags.writeable for array in decode(moved).values())


def test_masked_arrays_and_recarrays_stay_what_they_are():
    masked = np.ma.MaskedArray([1.0, 2.0], [True, False], fill_value=-1.0)
    back = decode(encode(masked))
    assert type(back) is np.ma.MaskedArray and back.fill_value == -1.0
    assert back.mask.tolist() == [True, False] and back.data.tolist() == [1, 2]
    assert decode(encode(np.ma.MaskedArray([1]))).mask is np.ma.nomask
    record = np.rec.array([(1, 2.0)], dtype=[("n", "i4"), ("x", "f8")])
    back = decode(encode(record))
    assert type(back) is np.recarray and back.n.tolist() == [1] and back.dtype == record.dtype


def test_a_type_that_cannot_be_imported_comes_back_with_the_same_fields():
    class Local(NamedTuple):
        x: int
        y: str

    @dataclasses.dataclass
    class Kept:
        z: int

    back = decode(encode(Local(1, "a")))
    assert back == (1, "a") and back._fields == ("x", "y") and type(back).__name__ == "Local"
    assert decode(encode(Kept(3))).z == 3


def test_a_named_tuple_of_which_the_fields_have_changed_is_not_taken_for_it(monkeypatch):
    data = encode(Piece((), np.zeros(2)))
    monkeypatch.setitem(globals(), "Piece", NamedTuple("Piece", [("box", tuple)]))
    assert decode(data)._fields == ("box", "planes")


class Colour(enum.IntEnum):
    RED = 1


class WCS:
    """Called like the class of astropy, which tests of the engine need not load."""


@pytest.mark.parametrize(
    "value, where, what",
    [
        ({"wcs": WCS()}, "record['wcs']", "header"),
        ([1, (2, {3})], "record[1][1]", "sorted"),
        (Piece((), np.array([None])), "record.planes", "Python objects"),
        ({"c": Colour.RED}, "record['c']", "int(...)"),
        ({"d": datetime.datetime(2020, 1, 1)}, "record['d']", "isoformat"),
        (collections.OrderedDict(a=1), "record", "dict(...)"),
        ({(1, 2): len}, "record[(1, 2)]", "numbers"),
        (np.zeros((1, 1)).view(np.matrix), "record", "np.array"),
        ((x for x in ()), "record", "list(...)"),
        ({WCS: 1}, "a key of record", "cannot be kept"),
        (np.zeros(2, np.dtype([("a", "O")])), "record", "Python objects"),
        (np.zeros(1, np.dtypes.StringDType()), "record", "cannot be kept"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_place(value, where, what):
    with pytest.raises(CannotKeep) as error:
        encode(value)
    assert str(error.value).startswith(f"{where}: ") and what in str(error.value)
    assert "\n" not in str(error.value)


def test_what_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(CannotKeep, match="contains itself"):
        encode(value)


@settings(deadline=None)
@given(st.binary(max_size=80), st.data())
def test_other_bytes_are_refused(data, drawn):
    with pytest.raises(NotEncoded):
        decode(data)
    whole = encode({"a": np.arange(40), "b": b"123"})
    cut = drawn.draw(st.integers(0, len(whole) - 65))
    with pytest.raises(NotEncoded):
        decode(whole[:cut])


def test_a_path_of_another_kind_stays_one():
    assert type(decode(encode(PurePosixPath("a/b")))) is PurePosixPath
