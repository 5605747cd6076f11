"""What a newcomer gets wrong is answered in a line that says what to do, and never by a wrong result."""

import numpy as np
import pytest

import mpiimg as mi
from mpiimg.arrays.rehearsal import same_result
from mpiimg.errors import BadInput

A = np.random.default_rng(5).normal(100, 15, (8, 6, 5)).astype("f4")


@pytest.fixture(scope="module", autouse=True)
def session(tmp_path_factory):
    with mi.session(tmp_path_factory.mktemp("session")) as opened:
        yield opened


@pytest.fixture
def x():
    return mi.from_array(A, "y x t")


def test_a_reduction_of_whole_series_is_not_given_pieces_of_them(x):
    centres = np.stack([A[0, 0], A[1, 1]]).astype("f8")

    def sums(block, *, centres):
        series = block.reshape(-1, block.shape[-1]).astype("f8")
        nearest = ((series[:, None] - centres) ** 2).sum(-1).argmin(1)
        return np.stack([series[nearest == k].sum(0) for k in range(2)])

    made = mi.reduction(
        x, sums, sum, whole="t", chunks={"y": 2}, out="k t", output_sizes={"k": 2, "t": 5}, centres=centres
    )
    np.testing.assert_allclose(made.compute(), sums(A, centres=centres), rtol=1e-12)


def test_chunks_of_a_reduction_say_what_one_result_is_made_of(x):
    shapes = mi.reduction(
        x, lambda block: np.array([block.shape]), lambda parts: sum(parts), axes="y x", whole="y x",
        chunks={"t": 1}, out="n", output_sizes={"n": 3},
    )  # fmt: skip
    np.testing.assert_array_equal(shapes.compute(), [[8, 6, 1]] * 5)


def test_numpys_reduce_takes_the_first_axis_as_numpy_does(x):
    np.testing.assert_array_equal(np.maximum.reduce(x).compute(), np.maximum.reduce(A))
    np.testing.assert_array_equal(np.maximum.reduce(x, axis=None).compute(), A.max())
    np.testing.assert_array_equal(np.logical_or.reduce(x > 100, axis=1).compute(), (A > 100).any(1))
    with pytest.raises(BadInput, match="initial"):
        np.add.reduce(x, initial=3)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda x: mi.where(x > 1, x, None), "None: give lazy arrays and numbers"),
        (lambda x: x + None, "None: give lazy arrays and numbers"),
        (lambda x: x.mean(3), "axis = 3: the axes are y x t"),
        (lambda x: np.linalg.norm(x), r"numpy.linalg.norm: is not offered .* map_blocks\(np.linalg.norm"),
        (lambda x: x.to_numpy(), "call compute"),
        (lambda x: x.ravel(), "axes have names"),
        (lambda x: mi.map_blocks(A, x), "name it without calling it"),
        (lambda x: mi.map_blocks(np.sqrt, x, output_sizes={"q": 3}), "axis q is in no result"),
        (lambda x: mi.reduction(x, np.sum, sum, output_sizes={"q": 3}), "axis q is in no result"),
        (lambda x: mi.map_blocks(lambda b: b * 1.5, x, dtype="u1").compute(), "give dtype='float32'"),
        (lambda x: mi.plan(x, ranks=0), "ranks = 0"),
        (lambda x: mi.plan(3), "^plan: takes lazy arrays"),
        (lambda x: mi.read(["a.nii", "b.nii"]), "mi.items"),
        (lambda x: mi.from_array(A, "y, x, t"), "'y,' is no name of an axis"),
        (lambda x: mi.from_array(np.array(["2020-01-01"], "M8[D]"), "t"), "holds no numbers"),
        (
            lambda x: mi.iterate(lambda s: s / 2, x, until=lambda s: s < 1, at_most=3),
            "one truth value is due",
        ),
        (lambda x: mi.iterate(lambda s: s / 2, A, at_most=3), "^iterate: takes lazy arrays"),
        (lambda x: mi.map_blocks(np.add, x, where=[x > 0]), "keyword of its own"),
    ],
)
def test_a_mistake_is_a_line(x, wrong, told):
    with pytest.raises(BadInput, match=told) as error:
        wrong(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [lambda x: f"{x.max():.2f}", lambda x: float(x.max())])
def test_numbers_are_computed_before_they_are_printed(x, wrong):
    with pytest.raises(TypeError, match=r"call compute\(\)"):
        wrong(x)
    assert f"{x}" == repr(x)
    assert not hasattr(x, "values")


def test_python_rounds_as_numpy_does(x):
    np.testing.assert_array_equal(round(x, 1).compute(), A.round(1))


def test_random_numbers_without_a_seed_are_warned_of(x, capfd):
    def noisy(block):
        return block + np.random.default_rng().normal(size=block.shape)

    def seeded(block, *, block_info):
        start = [block_info[axis][0] for axis in "yxt"]
        return block + np.random.default_rng(start).normal(size=block.shape)

    mi.compute(mi.map_blocks(noisy, x), mi.map_blocks(seeded, x))
    told = [line for line in capfd.readouterr().err.splitlines() if "another result" in line]
    assert len(told) == 1 and told[0].startswith("mpiimg: warning: map_blocks(noisy): gives another result")


def test_what_threads_round_otherwise_is_the_same():
    value = np.array([1.0, np.nan, np.inf, 1e-9])
    assert same_result((value, {"n": 3}), (value + np.array([1e-9, 0, 0, 1e-9]), {"n": 3}))
    assert not same_result(value, value * 1.01)
    assert not same_result([1, 2], [1, 3]) and not same_result({"n": 1}, {"m": 1})
    assert same_result("text", "other")


def test_the_passes_of_a_loop_are_rehearsed_once(x, monkeypatch):
    from mpiimg.arrays import rehearsing

    rehearsals, apart = [], rehearsing.called_apart

    def counted(*arguments):
        rehearsals.append(arguments)
        return apart(*arguments)

    monkeypatch.setattr(rehearsing, "called_apart", counted)

    def total(block, *, state):
        return (block * state).sum(dtype="f8")

    state = mi.from_array(1.0, "")
    for _ in range(3):
        state = mi.reduction(x, total, sum, lambda whole: whole / 1e5, state=state).persist()
        state.compute()
    assert len(rehearsals) == 1
    expected = 1.0
    for _ in range(3):
        expected *= A.sum(dtype="f8") / 1e5
    np.testing.assert_allclose(state.compute(), expected, rtol=1e-6)


def test_one_name_with_two_endings_is_two_files_of_one_folder(x, tmp_path):
    x.write(tmp_path / "fa.npy")
    x.write(tmp_path / "fa.fits")
    for subject in ("a", "b"):
        mi.write({f"{subject}/fa.npy": x}, tmp_path / "all")
    assert sorted(path.name for path in tmp_path.glob("run-*")) == ["run-fa.fits.json", "run-fa.npy.json"]
    assert len(list((tmp_path / "all").rglob("fa.npy"))) == 2


def test_a_cell_of_a_notebook_that_is_run_again_finds_all_done(x, tmp_path, capfd):
    for _ in range(2):
        made = mi.write({"a.npy": x, "b.npy": x + 1}, tmp_path)
        mi.write({"c.npy": x, "d.npy": x + 1}, tmp_path)
    assert capfd.readouterr().err.count("force=True makes them anew") == 2
    assert repr(made) == f"<mpiimg results: {tmp_path}/a.npy, {tmp_path}/b.npy>"
    with pytest.raises(BadInput, match=r"write with force=True.* \(it was made otherwise\)$"):
        mi.write({"a.npy": x + 2, "b.npy": x}, tmp_path)


def test_what_is_loaded_keeps_its_unit_and_the_time_of_its_volumes(tmp_path):
    import nibabel
    from astropy import units
    from astropy.io import fits

    image = nibabel.Nifti1Image(np.ones((2, 3, 4, 5), "f4"), np.diag([2.0, 2, 3, 1]))
    image.header.set_zooms((2, 2, 3, 1.5))
    image.header.set_xyzt_units("mm", "sec")
    mi.from_array(image).write(tmp_path / "image.nii")
    made = nibabel.load(tmp_path / "image.nii").header
    assert made.get_zooms() == (2, 2, 3, 1.5) and made.get_xyzt_units() == ("mm", "sec")
    mi.from_array(A[..., 0] * units.Jy, "y x").write(tmp_path / "flux.fits")
    assert fits.getval(tmp_path / "flux.fits", "BUNIT") == "Jy"
