"""Volumes of a series: faults of every kind are found and nothing else is, and rules leave volumes out."""

from __future__ import annotations

import csv
import dataclasses
import json
import warnings

import nibabel
import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.segment.mask import median_otsu
from dipy.stats.qc import find_qspace_neighbors, neighboring_dwi_correlation
from support import launch, warm
from support.reference import compared, predicted_without
from support.subjects import PATIENCE, Subject, digests, path, record, write_subject

from mpiimg.errors import BadInput
from mpiimg.neuro.exclusion import parse_rules
from mpiimg.neuro.gradients import Gradients, unit_vectors
from mpiimg.neuro.kernels.prediction import compare, loo_gain, predict, sums
from mpiimg.neuro.kernels.tensor import design_matrix
from mpiimg.neuro.qspace import nearest_in_q, shells
from mpiimg.neuro.slice_figures import STRIPED, WIDTH, Predictors, figures_of_slice, stripes
from mpiimg.neuro.volume_figures import VolumeFigures, volume_figures
from mpiimg.simulate.neuro import SimulatedSubject

#: Real heads, outside this repository.
UIH = launch.REPOSITORY.parent / "shared" / "data" / "uih-dmri"
SCANS = ("uih_AP_9_134431", "uih_PA_rot_12_132222")


@dataclasses.dataclass(frozen=True)
class Head:
    """A series (V, z, y, x) with its mask and gradients."""

    dwi: np.ndarray
    mask: np.ndarray
    bvals: np.ndarray
    bvecs: np.ndarray

    @property
    def gradients(self) -> Gradients:
        return Gradients(tuple(self.bvals.tolist()), tuple(map(tuple, self.bvecs.tolist())), 50.0)

    def but(self, change) -> Head:
        """Return the head with a change made to its voxels."""
        dwi = self.dwi.astype(np.float64)
        change(dwi)
        return dataclasses.replace(self, dwi=dwi)


def simulated_head(volumes=20, b=(1000.0,), sigma=40.0, seed=1, shape=(36, 42, 30)) -> Head:
    subject = SimulatedSubject(shape, volumes, sigma=sigma, seed=seed, shells=b)
    dwi = np.stack([subject.volume(v, 0, shape[2]) for v in range(volumes)])
    return Head(dwi, subject.truth(0, shape[2])["mask"], *subject.gradients)


def real_head(name: str) -> Head:
    """A real head inside dipy's mask."""
    if not UIH.exists():
        pytest.skip(f"NO REAL DATA: {UIH} is not there, and nothing is tested on it")
    bvals, bvecs = np.loadtxt(UIH / f"{name}.bval"), np.loadtxt(UIH / f"{name}.bvec").T
    bvals = np.where(bvals > 50, bvals, 0)
    data = nibabel.load(UIH / f"{name}.nii.gz").get_fdata()
    _, mask = median_otsu(data[..., bvals == 0].mean(axis=-1), median_radius=2, numpass=1)
    return Head(data.transpose(3, 2, 1, 0), mask.T, bvals, bvecs * (bvals > 0)[:, None])


def look(head: Head) -> VolumeFigures:
    """What is found of the volumes of a head."""
    predictors = Predictors(head.gradients)
    rows = np.full((head.dwi.shape[1], len(head.dwi), WIDTH), np.nan)
    for z, plane in enumerate(head.mask != 0):
        if plane.any():
            rows[z] = figures_of_slice(head.dwi[:, z][:, plane].astype(np.float32), plane, predictors)
    return volume_figures(rows, (head.mask != 0).sum(axis=(1, 2)), predictors)


def flagged(figures: VolumeFigures) -> dict[int, tuple[str, ...]]:
    """Volumes at fault, and how."""
    flags = {v: figures.flags(v) for v in range(len(figures.zeros))}
    return {v: names for v, names in flags.items() if names}


# --------------------------------------------------------------------------- kernels


def noisy_slice(volumes=17, voxels=200, seed=3):
    """Signals (V, n) of white matter in noise, their design, and the gradients."""
    rng = np.random.default_rng(seed)
    bvals = np.where(np.arange(volumes) % 6 == 0, 0.0, 1000.0)
    bvecs = unit_vectors(rng.normal(size=(volumes, 3))) * (bvals > 0)[:, None]
    design = design_matrix(bvals, bvecs)
    tensor = np.array([1.5e-3, 1e-4, 4e-4, -1e-4, 0, 3e-4, -np.log(900)])
    clean = np.exp(design @ tensor)[:, None]
    signal = clean * rng.uniform(0.5, 2, voxels) + rng.normal(0, 30, (volumes, voxels))
    return np.maximum(signal, 1).astype(np.float32), design / np.array([1000.0] * 6 + [1]), bvals, bvecs


@pytest.mark.parametrize("voxels", [1, 63, 64, 200])
def test_one_fit_predicts_every_volume_as_a_fit_without_it_does(voxels):
    signal, rows, *_ = noisy_slice(voxels=voxels)
    used = np.ones(len(signal), bool)
    used[[4, -1]] = False
    members = np.arange(len(signal) - 1)
    predicted, logs = predict(signal, np.full(voxels, 0.5, np.float32), rows, used, members)
    assert np.isnan(predicted[-1]).all()
    for v in members:
        others = used.copy()
        others[v] = True
        expected = predicted_without(signal[others].astype(np.float64), rows[others], np.sum(others[:v]))
        np.testing.assert_allclose(predicted[v], expected, rtol=2e-6)
    np.testing.assert_allclose(logs[members], np.log(signal[members].astype(float)).mean(axis=1), rtol=1e-12)


def test_a_volume_without_which_there_is_no_fit_is_not_predicted():
    signal, rows, bvals, _ = noisy_slice()
    used = (bvals > 0) | (np.arange(len(bvals)) == 0)
    floor = np.ones(signal.shape[1], np.float32)
    predicted, _ = predict(signal, floor, rows, used, np.arange(len(signal)))
    assert np.isnan(loo_gain(rows, used)).tolist() == (np.arange(len(bvals)) == 0).tolist()
    assert np.isnan(predicted[0]).all()
    assert np.isfinite(predicted[1:]).all()


def test_sums_and_comparison_are_those_of_the_loop():
    signal, rows, *_ = noisy_slice()
    signal[3, :5] = 0
    signal[7, 11] = 30_000
    partners = np.stack([np.roll(np.arange(len(signal)), -1), np.full(len(signal), -1)], axis=1)
    total = sums(signal, partners)
    wide = signal.astype(np.float64)
    np.testing.assert_array_equal(total.zeros, (signal <= 0).sum(axis=1))
    np.testing.assert_allclose(total.signal, wide.sum(axis=1), rtol=1e-13)
    np.testing.assert_allclose(total.squares, (wide**2).sum(axis=1), rtol=1e-13)
    np.testing.assert_allclose(total.products[:, 0], (wide * wide[partners[:, 0]]).sum(axis=1), rtol=1e-13)
    assert not total.products[:, 1].any()
    floor, every = np.ones(signal.shape[1], np.float32), np.arange(len(signal))
    predicted, _ = predict(signal, floor, rows, np.ones(len(signal), bool), every)
    measured = compare(signal, predicted)
    ratio, error, hot = compared(wide, predicted.astype(np.float64))
    np.testing.assert_allclose(measured.ratio, ratio, rtol=1e-12)
    np.testing.assert_allclose(measured.error, error, rtol=1e-12)
    np.testing.assert_array_equal(measured.hot, hot)
    np.testing.assert_allclose(measured.level, wide.sum(axis=1) / predicted.sum(axis=1, dtype=np.float64))
    assert hot.sum() == hot[7] == 1


# --------------------------------------------------------------------------- q-space, NDC, drift


def test_shells_are_told_apart_by_gaps():
    bvals = (5.0, 995.0, 1005.0, 1000.0, 2000.0, 2010.0, 0.0, 700.0)
    gradients = Gradients(bvals, ((0.0, 0.0, 1.0),) * len(bvals), 50.0)
    assert shells(gradients).tolist() == [0, 1000, 1000, 1000, 2005, 2005, 0, 700]


def test_neighbours_and_their_correlation_are_dipys():
    head = simulated_head(33, (1000.0, 2000.0))
    table = gradient_table(head.bvals, bvecs=head.bvecs)
    nearest = nearest_in_q(head.gradients)[:, 0]
    assert [(v, nearest[v]) for v in np.flatnonzero(head.bvals)] == find_qspace_neighbors(table)
    figures = look(head)
    expected = neighboring_dwi_correlation(head.dwi.transpose(1, 2, 3, 0), table, mask=head.mask)
    assert abs(figures.mean_ndc - expected) < 1e-6


def test_an_empty_volume_is_nobodys_neighbour():
    head = simulated_head()
    before = look(head)
    gone = int(before.partner[5])

    def erase(dwi):
        dwi[gone] = 0

    after = look(head.but(erase))
    assert after.partner[5] not in (gone, -1)
    assert np.isnan(after.ndc[gone])
    assert np.isfinite(after.ndc[[v for v in np.flatnonzero(head.bvals) if v != gone]]).all()


def test_drift_is_that_of_the_b0s():
    head = simulated_head(60, (1000.0, 2000.0), sigma=10.0)
    assert abs(look(head).drift) < 0.005

    def weaken(dwi):
        dwi *= np.linspace(1, 0.9, len(dwi))[:, None, None, None]

    assert look(head.but(weaken)).drift == pytest.approx(-0.1, abs=0.005)


# --------------------------------------------------------------------------- faults


def empty(dwi):
    dwi[[3, 7]] = 0


def one_value(dwi):
    dwi[7] = np.minimum(dwi[7], 0)


def dropped(dwi):
    dwi[5, 12:16] *= 0.1


def dropped_in_three(dwi):
    dwi[[3, 5], 14] *= 0.1
    dwi[6, 14] *= 0.3


def unfinished(dwi):
    dwi[-1, 10:] = 0


def hot(dwi):
    dwi[5, 15, 21, 18] = 65_535


def striped(dwi):
    spectrum = np.fft.fft2(dwi[5, 15])
    spectrum[9, 6] += np.abs(spectrum).max()
    dwi[5, 15] = np.abs(np.fft.ifft2(spectrum))


def brighter(dwi):
    dwi[5] *= 1.3


def darker(dwi):
    dwi[5] *= 0.75


FAULTS = [
    (empty, {3: ("empty",), 7: ("empty",)}),
    (one_value, {7: ("empty",)}),
    (dropped, {5: ("dropout",)}),
    (dropped_in_three, {3: ("dropout",), 5: ("dropout",), 6: ("dropout",)}),
    (hot, {5: ("spike",)}),
    (striped, {5: ("spike",)}),
    (brighter, {5: ("step",)}),
    (darker, {5: ("step",)}),
]


@pytest.fixture(scope="module", params=[((1000.0,), 20), ((1000.0, 2500.0), 40)], ids=["one shell", "two"])
def clean(request) -> Head:
    """A head in which volumes 3, 5, 6 and 7 are weighted."""
    return simulated_head(request.param[1], request.param[0])


def test_a_clean_head_has_no_fault(clean):
    figures = look(clean)
    assert flagged(figures) == {}
    assert figures.judged > 300
    assert figures.mean_ndc > 0.6


@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_fault_is_found_and_nothing_else_is(clean, fault, expected):
    assert flagged(look(clean.but(fault))) == expected


def test_slices_at_fault_are_named(clean):
    assert look(clean.but(dropped)).dropped[5] == (12, 13, 14, 15)
    assert look(clean.but(striped)).spiked[5] == (15,)
    figures = look(clean.but(unfinished))
    assert flagged(figures) == {len(clean.dwi) - 1: ("dropout",)}
    assert {*range(10, 25)} <= set(figures.dropped[-1])


def test_the_only_b0_is_not_judged_but_where_it_is_empty():
    head = simulated_head(13)
    b0s = np.flatnonzero(head.bvals == 0)
    kept = [v for v in range(13) if v not in b0s[1:]]
    head = Head(head.dwi[kept], head.mask, head.bvals[kept], head.bvecs[kept])

    def lose(dwi):
        dwi[0, 14:16] = 0

    figures = look(head.but(lose))
    assert np.isnan(figures.ratio[0])
    assert figures.dropped[0] == (14, 15)
    assert flagged(figures) == {0: ("dropout",)}


def test_slices_of_few_voxels_are_not_judged():
    head = simulated_head()
    small = np.zeros_like(head.mask)
    small[:, 18:25, 14:22] = head.mask[:, 18:25, 14:22]
    figures = look(dataclasses.replace(head, mask=small).but(dropped))
    assert figures.judged == 0
    assert flagged(figures) == {}


@pytest.mark.parametrize("name", SCANS)
def test_real_heads_have_no_fault_and_faults_in_them_are_found(name):
    head = real_head(name)
    assert flagged(look(head)) == {}

    def drop(dwi):
        dwi[5, 9:13] *= 0.1

    figures = look(head.but(drop))
    assert flagged(figures) == {5: ("dropout",)}
    assert figures.dropped[5] == (9, 10, 11, 12)


@pytest.mark.long
def test_hardly_a_slice_of_clean_heads_is_taken_for_dropped():
    """One in a thousand may be: of every kind of series, with much noise too."""
    series = [
        ((1000.0,), 20, 40),
        ((1000.0,), 20, 120),
        ((1000.0,), 7, 40),
        ((1000.0, 2000.0), 33, 40),
        ((700.0, 3000.0), 33, 80),
        ((1000.0, 2000.0, 3000.0), 60, 60),
    ]
    for b, volumes, sigma in series:
        judged = lost = others = 0
        for seed in range(6):
            figures = look(simulated_head(volumes, b, sigma, seed, (48, 56, 40)))
            judged += figures.judged
            lost += sum(map(len, figures.dropped))
            others += sum("dropout" not in names for names in flagged(figures).values())
        assert judged >= 1000
        assert lost <= judged / 1000
        assert others == 0


# --------------------------------------------------------------------------- rules


def test_rules_are_read():
    rules = parse_rules("empty, dropout:3,ndc<0.4,SPIKE,step")
    assert [str(rule) for rule in rules] == ["empty", "dropout:3", "ndc<0.4", "spike", "step"]
    assert parse_rules(None) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dark", "dark is no rule; give empty, dropout"),
        ("empty,,step", "nothing is no rule"),
        ("empty:2", "empty has no number"),
        ("dropout:0", "needs a number of at least 1"),
        ("dropout:x", "dropout:x is no rule"),
        ("ndc", "write ndc<0.4"),
        ("ndc<2", "a correlation between -1 and 1"),
        ("step,step", "step stands there twice"),
    ],
)
def test_what_is_no_rule_is_refused(text, words):
    with pytest.raises(BadInput, match=words):
        parse_rules(text)


def test_rules_count_slices(clean):
    figures = look(clean.but(dropped))
    assert figures.broken(parse_rules("dropout:4,empty"), 5) == ("dropout:4",)
    assert figures.broken(parse_rules("dropout:5,spike,step"), 5) == ()
    low = np.nextafter(figures.ndc[5], 1)
    assert figures.broken(parse_rules(f"ndc<{float(low)!r}"), 5) == (f"ndc<{low:g}",)


# --------------------------------------------------------------------------- tools


@pytest.fixture(scope="module")
def faulty(simulated, tmp_path_factory) -> Subject:
    """The simulated subject with two empty volumes and four dropped slices."""
    data = np.asarray(simulated.image.dataobj).copy()
    data[..., [3, 7]] = 0
    data[:, :, 8:12, 5] //= 10
    return write_subject(
        tmp_path_factory.mktemp("faulty"), data, simulated.affine, simulated.bvals, simulated.bvecs
    )


def neuro(subject, out, mask, *options, check=True, **how):
    """Run mpiimg-neuro inside a given mask; the noise level is known."""
    words = (*subject.arguments, "--mask", mask, "--sigma", 40, "--block-radius", 2, "--out", out, *options)
    return warm.run_tool("mpiimg-neuro", *words, timeout=PATIENCE, check=check, **how)


def volumes_table(out):
    """The rows of the table of volumes."""
    (file,) = out.glob("*_desc-volumes_dwimap.tsv")
    with file.open() as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


@pytest.fixture(scope="module")
def excluded(faulty, alone, tmp_path_factory):
    """What one process makes of it without the volumes at fault, and what it says."""
    out = tmp_path_factory.mktemp("excluded") / "out"
    done = neuro(faulty, out, path(alone, "mask"), "--exclude", "empty,dropout:2")
    return out, done.stderr


@pytest.mark.tool
def test_faults_are_said_and_volumes_left_out(faulty, excluded, alone):
    out, said = excluded
    lines = [line for line in said.splitlines() if line.startswith("mpiimg: warning")]
    assert lines == [
        f"mpiimg: warning: {faulty.dwi}: volumes 3 and 7 are empty",
        f"mpiimg: warning: {faulty.dwi}: slices 8, 9, 10 and 11 of volume 5 are dropped",
        f"mpiimg: warning: {faulty.dwi}: --exclude empty,dropout:2 leaves out volumes 3, 5 and 7",
    ]
    kept = [v for v in range(12) if v not in (3, 5, 7)]
    rows = volumes_table(out)
    assert [int(row["volume"]) for row in rows] == list(range(12))
    assert [v for v, row in enumerate(rows) if row["status"] == "kept"] == kept
    assert [rows[v]["reason"] for v in (3, 5, 6)] == ["empty", "dropout:2", "n/a"]
    assert (rows[5]["num_bad_slices"], rows[5]["bad_slices"]) == ("4", "8,9,10,11")
    explained = json.loads(next(out.glob("*_desc-volumes_dwimap.json")).read_text())
    assert list(rows[0]) == [name for name in explained if name in rows[0]]
    assert explained["Series"]["NumBadSlices"] == 4
    image = nibabel.load(path(out, "denoised"))
    assert image.shape[3] == len(kept)
    bvals, bvecs = (np.loadtxt(path(out, "denoised", ending)) for ending in (".bval", ".bvec"))
    gradients = faulty.gradients()
    np.testing.assert_allclose(bvals, gradients.bvals[kept], rtol=1e-6)
    np.testing.assert_allclose(bvecs.T, gradients.bvecs[kept], atol=1e-6)
    assert any("NDC" in note for note in record(out)["notes"])


@pytest.mark.tool
def test_maps_are_those_of_the_volumes_that_are_left(faulty, excluded, alone, tmp_path):
    """The same maps as of a series that never had the others; with them FA is off."""
    out, _ = excluded
    data, gradients = np.asarray(faulty.image.dataobj), faulty.gradients()
    kept = [v for v in range(12) if v not in (3, 5, 7)]
    rest = write_subject(
        tmp_path / "in", data[..., kept], faulty.affine, gradients.bvals[kept], gradients.bvecs[kept]
    )
    neuro(rest, tmp_path / "rest", path(alone, "mask"))
    inside = np.asarray(nibabel.load(path(alone, "mask")).dataobj) != 0
    left, expected = (
        np.asarray(nibabel.load(path(o, "fa")).dataobj)[inside] for o in (out, tmp_path / "rest")
    )
    np.testing.assert_allclose(left, expected, atol=2e-6)
    done = neuro(faulty, tmp_path / "all", path(alone, "mask"))
    assert "volumes 3 and 7 are empty; --exclude empty leaves them out" in done.stderr
    spoilt = np.asarray(nibabel.load(path(tmp_path / "all", "fa")).dataobj)[inside]
    assert spoilt.mean() > left.mean() + 0.02
    assert {row["status"] for row in volumes_table(tmp_path / "all")} == {"kept"}


@pytest.mark.tool
@pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_any_number_of_ranks_leaves_the_same_out(faulty, excluded, alone, tmp_path, ranks):
    out, said = excluded
    staged = ("--in-memory",) if ranks == 3 else ()
    done = neuro(
        faulty, tmp_path / "out", path(alone, "mask"), "--exclude", "empty,dropout:2", *staged, ranks=ranks
    )
    assert digests(tmp_path / "out") == digests(out)
    assert record(tmp_path / "out")["warnings"] == record(out)["warnings"]
    assert [line for line in done.stderr.splitlines() if "warning" in line] == [
        line for line in said.splitlines() if "warning" in line
    ]


@pytest.mark.tool
def test_rules_that_nothing_breaks_change_nothing(simulated, alone, tmp_path):
    mask = path(alone, "mask")
    neuro(simulated, tmp_path / "plain", mask)
    neuro(simulated, tmp_path / "ruled", mask, "--exclude", "empty,dropout,spike,step", ranks=2)
    plain, ruled = digests(tmp_path / "plain"), digests(tmp_path / "ruled")
    assert {name for name in plain if plain[name] != ruled[name]} == {"dwi_desc-volumes_dwimap.json"}


@pytest.mark.tool
def test_rules_that_leave_too_little_end_the_run(faulty, alone, tmp_path):
    done = neuro(faulty, tmp_path / "out", path(alone, "mask"), "--exclude", "ndc<0.99", check=False)
    assert done.returncode == 2
    assert "--exclude ndc<0.99 leaves too few directions for a tensor" in done.stderr
    done = neuro(faulty, tmp_path / "none", path(alone, "mask"), "--exclude", "dark", check=False)
    assert done.returncode == 2
    assert "dark is no rule" in done.stderr


@pytest.mark.tool
def test_a_plan_has_the_copy_that_rules_need(faulty, alone, tmp_path):
    done = neuro(faulty, tmp_path / "out", path(alone, "mask"), "--exclude", "empty", "--plan=full")
    assert "volumes.copy-kept-volumes" in done.stdout
    assert "copy" not in neuro(faulty, tmp_path / "out", path(alone, "mask"), "--plan=full").stdout


def test_nothing_is_said_by_numpy():
    """No warning of NumPy about what cannot be said, in slices without voxels or volumes without signal."""
    head = simulated_head()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(head.but(empty))
        look(dataclasses.replace(head, dwi=np.zeros_like(head.dwi)))


def test_a_few_pixels_have_no_stripes():
    """The spectrum of 15 x 15 pixels is a few numbers, which smooth noise fills."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    for side, found in ((15, 0.0), (48, None)):
        inside = np.ones((side, side), bool)
        smooth = [
            stripes(gaussian_filter(rng.normal(size=inside.shape), 0.8).ravel(), inside) for _ in range(50)
        ]
        assert max(smooth) < STRIPED and (found is None or max(smooth) == found)
    waves = np.cos(2 * np.pi * np.arange(48) / 4)[None, :] * np.ones((48, 1))
    assert stripes((waves + rng.normal(size=waves.shape)).ravel(), np.ones((48, 48), bool)) > STRIPED
