"""Calls of the primitives: what they mean, and what they refuse, each beside NumPy."""

import numpy as np
import pytest

import mpiimg as mi
from mpiimg.errors import BadInput


@pytest.fixture(scope="module", autouse=True)
def session(tmp_path_factory):
    with mi.session(tmp_path_factory.mktemp("session")) as opened:
        yield opened


A = np.random.default_rng(3).normal(size=(6, 5, 4, 3)).astype("f4")


@pytest.fixture
def x():
    return mi.from_array(A, "x y z t")


def test_blocks_come_in_the_arrays_own_order_of_axes_and_of_memory(x):
    seen = []

    def look(block):
        return np.full(block.shape, block.flags.c_contiguous)

    assert mi.map_blocks(look, x).compute().all()
    fortran = mi.from_array(np.asfortranarray(A), "x y z t")
    assert not mi.map_blocks(look, fortran).compute().any()
    assert seen == []


def test_a_function_may_write_to_its_blocks_and_no_other_reader_sees_it(x):
    def spoil(block):
        block[...] = -1
        return block

    spoilt = mi.map_blocks(spoil, x)
    both = mi.compute(spoilt, x, mi.map_blocks(np.negative, x))
    assert (both[0] == -1).all()
    np.testing.assert_array_equal(both[1], A)
    np.testing.assert_array_equal(both[2], -A)


def test_one_array_given_twice_is_two_blocks(x):
    def first(a, b):
        a[...] = 0
        return b

    np.testing.assert_array_equal(mi.map_blocks(first, x, x).compute(), A)


def test_inputs_are_aligned_by_name_and_one_item_fits_any(x):
    mask = mi.from_array(A[..., 0] > 0, "x y z")
    row = mi.from_array(A[:1, :1, :1, 0] * 0 + 2, "x y z")

    def join(block, inside, factor):
        assert block.ndim == inside.ndim == factor.ndim == 3
        return np.where(inside, block * factor, 0)

    made = mi.map_blocks(join, x, mask, row, each="t").compute()
    np.testing.assert_array_equal(made, np.where((A[..., 0] > 0)[..., None], A * 2, 0))


def test_several_outputs_of_other_axes_and_types(x):
    def split(block):
        return block.sum(-1), np.stack([block.min(-1), block.max(-1)], -1).astype("f8"), block.mean() > 0

    total, ends, _ = mi.map_blocks(
        split, x, whole="x y z t", out=("x y z", "x y z e", ""), output_sizes={"e": 2}
    )
    np.testing.assert_array_equal(total.compute(), A.sum(-1))
    assert ends.compute().dtype == np.float64
    np.testing.assert_array_equal(ends.compute()[..., 1], A.max(-1))
    assert ends.axes == ("x", "y", "z", "e") and total.axes == ("x", "y", "z")


def test_a_whole_axis_may_come_out_in_another_length(x):
    made = mi.map_blocks(lambda block: block[..., ::2], x, whole="t", output_sizes={"t": 2})
    np.testing.assert_array_equal(made.compute(), A[..., ::2])


def test_complex_results_are_kept(x):
    made = mi.map_blocks(lambda block: np.fft.fft(block, axis=-1).astype("c8"), x, whole="t").compute()
    assert made.dtype == np.complex64
    np.testing.assert_allclose(made, np.fft.fft(A, axis=-1), rtol=1e-4, atol=1e-4)


def test_an_array_as_a_keyword_arrives_whole(x):
    def above(block, level, profile):
        assert np.ndim(level) == 0 and profile.shape == (3,)
        return block > level

    made = mi.map_blocks(above, x, each="t", level=x.mean(), profile=x.sum("x y z"))
    np.testing.assert_array_equal(made.compute(), A.mean(dtype="f8").astype("f4") < A)


def test_block_info_says_where_a_block_lies_its_depth_included():
    x = mi.from_array(np.arange(40.0), "x")

    def place(block, block_info):
        return np.arange(*block_info["x"], dtype=float)

    made = mi.map_overlap(place, x, depth={"x": 2}, chunks={"x": 16})
    np.testing.assert_array_equal(made.compute(), np.arange(40.0))
    assert x.map_blocks(lambda block, block_info: block * 0 + block_info["shape"][0]).compute()[0] == 40


@pytest.mark.parametrize("boundary", ["none", "reflect", "mirror", "nearest", "wrap", "constant"])
def test_boundaries_are_those_of_scipy(boundary):
    from scipy.ndimage import uniform_filter1d

    values = np.random.default_rng(0).normal(size=(37, 11))
    mode = "reflect" if boundary == "none" else boundary

    def smooth(block):
        return uniform_filter1d(block, 5, axis=0, mode="reflect")

    made = mi.map_overlap(
        smooth, mi.from_array(values, "y x"), depth={"y": 2}, boundary=boundary, chunks={"y": 10}
    ).compute()
    np.testing.assert_allclose(made, uniform_filter1d(values, 5, axis=0, mode=mode), rtol=1e-12, atol=1e-14)


def test_a_plane_is_cut_in_both_axes_and_a_single_slice_too():
    from mpiimg.arrays import call_stages
    from mpiimg.arrays.types_of import Types

    class Huge:
        shape, dtype, axes, identity = (20_000, 20_000), "f4", "y x", "huge"

        def read(self, box):
            raise AssertionError("nobody reads")

    made = mi.map_overlap(
        np.copy, mi.from_reader(Huge()), depth={"y": 8, "x": 8}, boundary="reflect", dtype="f4"
    )
    grid = call_stages.call_grid(made._node.call, Types())
    assert grid.counts[0] > 10 and grid.counts[1] > 10


def test_sums_are_sequential_in_the_order_of_storage():
    values = np.random.default_rng(0).normal(size=(700, 9)).astype("f4")
    total = np.zeros(9)
    for row in values:
        total += row
    np.testing.assert_array_equal(mi.from_array(values, "n v").sum("n").compute(), total.astype("f4"))
    column, alone = values[:, 0].astype("f8"), np.float64(0)
    for value in column:
        alone += value
    assert mi.from_array(column, "n").sum().compute() == alone


def test_missing_values_are_those_of_numpy_unless_they_are_skipped():
    values = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, 6.0]])
    x = mi.from_array(values, "y x")
    for name in ("sum", "mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(x, name)("y").compute(), getattr(np, name)(values, axis=0))
        np.testing.assert_allclose(
            getattr(x, name)("y", skipna=True).compute(), getattr(np, f"nan{name}")(values, axis=0)
        )
    assert x.argmax("x").compute().tolist() == values.argmax(1).tolist()
    assert x.count("y").compute().tolist() == [2, 1, 2]


def test_types_of_reductions():
    small = mi.from_array(np.array([200, 100], "u1"), "x")
    assert small.sum().compute() == 300 and small.sum().dtype == np.uint64
    assert small.mean().dtype == np.float64 and (small > 150).sum().dtype == np.int64
    half = mi.from_array(np.ones(3, "f4"), "x")
    assert half.mean().dtype == np.float32 and half.sum(dtype="f8").dtype == np.float64


def test_variance_of_numbers_far_from_zero_keeps_its_digits():
    values = 1e8 + np.random.default_rng(0).normal(size=200_000)
    x = mi.from_array(values, "n")
    assert x.std().compute() == pytest.approx(values.std(), rel=1e-6)


def test_a_closure_with_another_value_is_another_function(x):
    def times(k):
        return lambda block: block * k

    five, seven = (mi.map_blocks(times(k), x) for k in (5, 7))
    np.testing.assert_array_equal(five.compute(), A * 5)
    np.testing.assert_array_equal(seven.compute(), A * 7)


def test_two_functions_of_one_line_are_two(x):
    one, two = mi.map_blocks(lambda b: b + 1, x), mi.map_blocks(lambda b: b + 2, x)
    assert one._node.key != two._node.key


def test_what_was_persisted_is_not_made_again(x, tmp_path):
    log = tmp_path / "log"

    def logged(block, path=str(log)):
        with open(path, "a") as file:
            print("called", file=file)
        return block

    kept = mi.map_blocks(logged, x).persist()
    kept.sum().compute()
    calls = log.read_text()
    kept.mean().compute()
    (kept + 1).compute()
    assert log.read_text() == calls


def test_compute_gives_python_what_it_can_branch_on(x):
    assert float(x.max().compute()) == A.max()
    low, high = mi.compute(x.min(), x.max())
    assert low < high


def test_a_function_that_fails_is_named_before_the_run(x):
    def broken(block):
        return block / block.no_such_thing

    with pytest.raises(BadInput, match=r"test_calls\.py:\d+: map_blocks\(broken\): AttributeError"):
        mi.map_blocks(broken, x).compute()
    with pytest.raises(BadInput, match=r"returns a block of shape \(5, 5, 4, 3\).* must be \(6, 5, 4, 3\)"):
        mi.map_blocks(lambda block: block[1:], x).compute()


def test_a_failure_on_a_small_block_counts_only_if_it_repeats_on_a_real_one():
    x = mi.from_array(np.ones((40, 30)), "y x")

    def large_only(block):
        if block.shape != (40, 30):
            raise ValueError("too small")
        return block

    np.testing.assert_array_equal(mi.map_blocks(large_only, x, whole="y x").compute(), np.ones((40, 30)))


REFUSED = {
    "axes in one word": (lambda x: mi.map_blocks(np.sin, x, whole="xy"), "did you mean 'x y'"),
    "no such axis": (lambda x: x.mean("q"), "no axis 'q'; the axes are x y z t"),
    "an axis that is cut and goes": (lambda x: mi.map_blocks(np.sin, x, out="x y z"), "axis t is cut"),
    "a new axis without length": (
        lambda x: mi.map_blocks(np.sin, x, out="x y z t c"),
        "output_sizes={'c': ...}",
    ),
    "the function last": (lambda x: mi.map_blocks(x, np.sin), "the function comes first"),
    "an ndarray": (lambda x: mi.map_blocks(np.sin, A), "mi.from_array"),
    "a mask as an index": (lambda x: x[x > 0], "mi.where"),
    "other lengths": (lambda x: x + x.isel(x=slice(2)), "axis x has 6 items in one array and 2"),
    "rechunk": (lambda x: x.rechunk(3), "chunks belong to the data"),
    "median": (lambda x: x.median("x"), "map_blocks with whole="),
    "sel": (lambda x: x.sel(x=3), "isel"),
    "boundary of NumPy": (
        lambda x: mi.map_overlap(np.sin, x, depth=1, boundary="symmetric"),
        "symmetric is reflect there",
    ),
    "two depths": (lambda x: mi.map_overlap(np.sin, x, depth={"x": (1, 2)}), "the same on both sides"),
    "each and whole": (lambda x: mi.map_blocks(np.sin, x, each="t", whole="t"), "in each and in whole"),
    "a keyword that is not taken": (lambda x: mi.map_blocks(lambda b: b, x, level=3), "unexpected keyword"),
    "a path": (lambda x: mi.read(A), "mi.from_array"),
    "axes of another number": (lambda x: mi.from_array(A, "x y"), "names 2 axes, and the array has 4"),
    "text": (lambda x: mi.from_array(np.array(["a"]), "x"), "no numbers"),
    "results in a list": (lambda x: mi.write([x]), "by the names of their files"),
    "an array as a folder": (lambda x: mi.write({"a/": x}), "an array becomes a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said_where_the_graph_is_built(x, name):
    call, words = REFUSED[name]
    with pytest.raises(BadInput) as raised:
        call(x)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("call", [bool, float, int, np.asarray, list], ids=lambda call: call.__name__)
def test_a_lazy_array_is_no_number_yet(x, call):
    with pytest.raises(TypeError, match=r"call compute\(\)"):
        call(x)


def test_what_lies_outside_the_depth_must_not_move_what_lies_within(x):
    wide = mi.from_array(np.random.default_rng(0).normal(size=(30, 20, 8)), "y x t")

    def three(block):
        return np.roll(block, 1, 0) + block + np.roll(block, -1, 0)

    def skips_the_first(block):
        made = block.copy()
        made[..., 1:] *= 2
        return made

    def reaching(block):
        return np.stack([block[: 1 + int(abs(row[0, 0]) * 9)].sum(0) for row in block])

    assert "is enough" in mi.check_halo(mi.map_overlap(three, wide, depth={"y": 1}))
    for function, depth in (
        (three, {}),
        (skips_the_first, {}),
        (lambda b: b / b.max(), {}),
        (reaching, {"y": 2}),
    ):
        assert "not enough" in mi.check_halo(mi.map_overlap(function, wide, depth=depth))


def test_shown_as_users_of_dask_expect(x):
    assert repr(x) == (
        "<mpiimg.Array 'array' (x: 6, y: 5, z: 4, t: 3) float32, 1.41 KiB, chunks (6, 5, 4, 3)>"
    )
    assert "<table" in x._repr_html_() and "float32" in x._repr_html_()
    assert x.nbytes == A.nbytes and x.sizes["z"] == 4 and len(x) == 6 and x.dims == x.axes


def test_importing_loads_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, mpiimg; print(sorted({'numpy', 'mpi4py', 'numba', 'astropy', 'h5py'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_long_chain_of_expressions_is_worked_on_in_parts():
    """Longer than Python's stack is deep: in the graph, when compiled, and on the way to the rehearsal."""
    x = mi.from_array(np.zeros(3), "x")
    for _ in range(1200):
        x = x + 1
    assert mi.map_blocks(np.negative, x).compute().tolist() == [-1200] * 3


def test_what_needs_no_work_is_given_back_by_compute(x):
    counts, edges = x.histogram(4, (-2, 2))
    made, same = mi.compute(counts, edges)
    np.testing.assert_array_equal(made, np.histogram(A, 4, (-2, 2))[0])
    assert same is edges


@pytest.mark.parametrize("boundary, numpys", [("reflect", "symmetric"), ("constant", "constant")])
def test_an_axis_of_one_item_has_its_boundary_and_one_that_fits_any_has_none(boundary, numpys):
    def three(block):
        return np.roll(block, 1, 0) + block + np.roll(block, -1, 0)

    one = mi.from_array(np.full((1, 3), 5.0), "y x")
    made = mi.map_overlap(three, one, depth={"y": 1}, boundary=boundary).compute()
    np.testing.assert_array_equal(
        made, three(np.pad(np.full((1, 3), 5.0), ((1, 1), (0, 0)), mode=numpys))[1:-1]
    )
    many = mi.from_array(np.ones((4, 3)), "y x")
    times = mi.map_overlap(np.multiply, many, one, depth={"y": 1}, boundary=boundary)
    np.testing.assert_array_equal(times.compute(), np.full((4, 3), 5.0))
