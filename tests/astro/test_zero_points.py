"""Stars that exposures share, and zero points, against astropy, numpy's least squares and known offsets."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from support import reference

from mpiimg.astro.kernels.robust import robust_means
from mpiimg.astro.photometry import overlaps, zero_points
from mpiimg.astro.photometry.overlaps import Catalogue, JoinedStars

# --- Matches ------------------------------------------------------------------------------------------------


def catalogue(ra, dec, magnitude=None, error=0.01):
    """A catalogue from arrays; magnitudes of 20 unless told."""
    ra = np.asarray(ra, float)
    magnitude = np.full(ra.shape, 20.0) if magnitude is None else np.asarray(magnitude, float)
    return Catalogue(ra, np.asarray(dec, float), magnitude, np.full(ra.shape, error))


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (180.0, 60.0), (359.999, -30.0), (40.0, 89.99)])
def test_matches_are_those_of_astropy_both_ways(ra, dec):
    """Across RA 0 and near the pole too."""
    rng = np.random.default_rng(8)
    x, y = rng.uniform(-0.02, 0.02, (2, 300))
    centre = SkyCoord(ra, dec, unit="deg").skyoffset_frame()
    places = SkyCoord(x * units.deg, y * units.deg, frame=centre).icrs
    moved = rng.normal(0, 0.5 / 3600, (2, 300))
    others = SkyCoord((x + moved[0]) * units.deg, (y + moved[1]) * units.deg, frame=centre).icrs[40:][::-1]
    first, second = (catalogue(c.ra.deg, c.dec.deg) for c in (places, others))

    i, j = overlaps.match_stars(JoinedStars.of([first]), JoinedStars.of([second]), 1.0)
    nearest, apart, _ = places.match_to_catalog_sky(others)
    back, *_ = others.match_to_catalog_sky(places)
    expected = np.flatnonzero((back[nearest] == np.arange(300)) & (apart.arcsec <= 1.0))
    np.testing.assert_array_equal(i, expected)
    np.testing.assert_array_equal(j, nearest[expected])
    assert 100 < len(i) < 260


def test_many_catalogues_are_matched_as_two_by_two():
    rng = np.random.default_rng(4)
    # Crowded: many stars have several neighbours within the radius.
    skies = [catalogue(*rng.uniform(0, 0.005, (2, n))) for n in (60, 0, 40, 50)]
    stars = JoinedStars.of(skies)
    i, j = overlaps.match_stars(stars, stars, 1.0, later=True)
    starts = np.searchsorted(stars.owner, range(5))
    expected = []
    for one in range(4):
        for other in range(one + 1, 4):
            pair = overlaps.match_stars(JoinedStars.of([skies[one]]), JoinedStars.of([skies[other]]), 1.0)
            expected.append(np.add(np.transpose(pair), (starts[one], starts[other])))
    np.testing.assert_array_equal(np.transpose([i, j]), np.concatenate(expected))
    assert len(i) > 40


def test_stars_without_a_magnitude_are_not_matched():
    one = JoinedStars.of([catalogue([10.0, 10.01, 10.02], [0, 0, 0], [20, np.nan, 21])])
    other = JoinedStars.of([catalogue([10.02, 10.01, 10.0], [0, 0, 0])])
    assert len(one.points) == 2
    i, j = overlaps.match_stars(one, other, 1.0)
    np.testing.assert_array_equal(i, [0, 1])
    np.testing.assert_array_equal(j, [2, 0])
    nothing = JoinedStars.of([catalogue([], [])])
    for pair in ((one, nothing), (nothing, one), (nothing, nothing)):
        assert all(len(index) == 0 for index in overlaps.match_stars(*pair, 1.0))


def test_stars_without_an_error_are_not_matched_and_none_is_trusted_beyond_the_floor():
    places = np.arange(5) / 10
    nights = [catalogue(places, places, error=error) for error in (1e-9, 1e-9)]
    pairs = overlaps.compare_exposures(nights)
    assert pairs.count.tolist() == [5] and pairs.weight[0] == pytest.approx(5 / overlaps.FLOOR**2)
    nights[1].error[:] = np.nan
    assert len(overlaps.compare_exposures(nights).count) == 0


def test_exposures_are_compared_alike_however_many_at_once(monkeypatch):
    rng = np.random.default_rng(4)
    ra, dec = rng.uniform(0, 0.05, (2, 40))
    nights = [catalogue(ra[k:], dec[k:], rng.normal(20, 0.01, 40 - k)) for k in range(7)]
    whole = overlaps.compare_exposures(nights)
    monkeypatch.setattr(overlaps, "EXPOSURES_AT_ONCE", 2)
    for column, cut in zip(whole, overlaps.compare_exposures(nights), strict=True):
        np.testing.assert_array_equal(cut, column)
    assert len(whole.first) == 21


def test_robust_means_are_those_of_each_group():
    rng = np.random.default_rng(9)
    sizes = [200, 0, 1, 2, 3, 50, 7]
    errors = rng.uniform(0.01, 0.05, sum(sizes))
    values = rng.normal(1.5, errors * rng.choice([1, 30], len(errors), p=[0.9, 0.1]))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = np.transpose(robust_means(values, errors, starts, 5.9, 4.0))
    for group, row in enumerate(found):
        part = slice(*starts[group : group + 2])
        np.testing.assert_allclose(
            row, reference.robust_mean(values[part], errors[part], 5.9, 4.0), rtol=1e-12
        )
    assert found[0, 2] < 190
    assert len(robust_means(values[:0], errors[:0], np.array([0]), 5.9, 4.0)[0]) == 0


def test_errors_of_robust_means_grow_with_the_scatter():
    """Twice the scatter that the errors speak of."""
    values = np.random.default_rng(9).normal(0, 0.02, 400)
    _, error, _ = robust_means(values, np.full(400, 0.01), np.array([0, 400]), 5.9, 4.0)
    assert error[0] == pytest.approx(0.001, rel=0.2)


# --- Zero points --------------------------------------------------------------------------------------------


def survey(offsets, groups, seed=0, stars=300, error=0.02):
    """Exposures of a sky of known magnitudes, half of the stars each; groups lie a degree apart."""
    rng = np.random.default_rng(seed)
    sky = {}
    for group in sorted(set(groups)):
        places = group + rng.uniform(0, 0.1, stars), rng.uniform(0, 0.1, stars)
        sky[group] = (*places, rng.uniform(17, 20, stars))
    exposures = []
    for offset, group in zip(offsets, groups, strict=True):
        chosen = rng.permutation(stars)[: stars // 2]
        ra, dec, magnitude = (field[chosen] for field in sky[group])
        noise = rng.normal(0, error, len(ra))
        wander = rng.normal(0, 0.05 / 3600, (2, len(ra)))
        exposures.append(catalogue(ra + wander[0], dec + wander[1], magnitude - offset + noise, error))
    return exposures, sky


def solved(exposures, **options):
    pairs = overlaps.compare_exposures(exposures, **options)
    return pairs, zero_points.solve_offsets(*pairs[:4], len(exposures))


def test_zero_points_are_recovered_to_their_errors():
    pulls = []
    for seed in range(4):
        truth = np.random.default_rng(seed).normal(0, 0.3, 12)
        exposures, _ = survey(truth, [0] * 12, seed)
        pairs, solution = solved(exposures)
        assert len(pairs.first) == 66 and (pairs.first < pairs.second).all() and (pairs.count > 50).all()
        np.testing.assert_array_equal(solution.groups, 0)
        assert solution.offsets.mean() == pytest.approx(0, abs=1e-12)
        assert solution.used.all()
        error = solution.offsets - (truth - truth.mean())
        # Each has 150 stars of 0.02 mag, 0.0016 in the mean; half of them at a time make a pair.
        assert error.std() < 0.0030 and (solution.errors < 0.0030).all()
        pulls.append(error / solution.errors)
    assert 0.6 < np.std(pulls) < 1.15


def compared(shape, seed, mean=0.0):
    """Differences of nine exposures, each compared with all others ("dense") or the next one ("chain").

    Returns their number, then of each pair first, second, difference and weight, and the true offsets.
    """
    rng = np.random.default_rng(seed)
    n = 9
    reach = n if shape == "dense" else 2
    first, second = np.array([(i, j) for i in range(n) for j in range(i + 1, min(i + reach, n))]).T
    weight = rng.uniform(1e2, 1e4, len(first))
    truth = mean + rng.normal(0, 0.2, n)
    difference = truth[second] - truth[first] + rng.normal(0, weight**-0.5)
    return n, first, second, difference, weight, truth


@pytest.mark.parametrize("shape", ["dense", "chain"])
def test_offsets_are_the_least_squares_solution(shape):
    """Against numpy's own, with errors from the covariance of the constrained problem."""
    n, first, second, difference, weight, truth = compared(shape, seed=11)
    solution = zero_points.solve_offsets(first, second, difference, weight, n)
    assert solution.used.all()
    design = np.zeros((len(first) + 1, n))
    rows = np.arange(len(first))
    design[rows, first], design[rows, second] = -np.sqrt(weight), np.sqrt(weight)
    design[-1] = 100
    expected = np.linalg.lstsq(design, np.r_[np.sqrt(weight) * difference, 0], rcond=None)[0]
    np.testing.assert_allclose(solution.offsets, expected, atol=1e-12)
    covariance = np.linalg.pinv(design[:-1].T @ design[:-1])
    best = np.array([weight[(first == k) | (second == k)].max() for k in range(n)])
    # Many pairs of few stars say less than they seem to.
    expected = np.diag(covariance) if shape == "chain" else 1 / (2 * best)
    np.testing.assert_allclose(solution.errors, np.sqrt(expected), rtol=1e-9)
    pull = (solution.offsets - truth + truth.mean()) / solution.errors
    assert np.abs(pull).max() < 4


def test_groups_are_solved_apart_and_lone_exposures_fail_alone():
    truth = np.array([0.1, -0.4, 0.3, 0.2, 0.0, 0.7, -0.2])
    groups = [1, 0, 1, 0, 5, 1, 0]
    exposures, _ = survey(truth, groups, seed=12)
    _, solution = solved(exposures)
    np.testing.assert_array_equal(solution.groups, [0, 1, 0, 1, -1, 0, 1])
    assert np.isnan(solution.offsets[4]) and np.isnan(solution.errors[4])
    for members in ([0, 2, 5], [1, 3, 6]):
        expected = truth[members] - truth[members].mean()
        np.testing.assert_allclose(solution.offsets[members], expected, atol=0.01)
    # Without the lone one the others have the same bits.
    _, without = solved(exposures[:4] + exposures[5:])
    np.testing.assert_array_equal(np.delete(solution.offsets, 4), without.offsets)


def test_too_few_matches_leave_an_exposure_unsolved():
    exposures, _ = survey([0.0, 0.2, -0.2, 0.5], [0] * 4, seed=13)
    exposures[2] = Catalogue(*(field[:1] for field in exposures[2]))
    exposures[3] = catalogue([], [])
    pairs, solution = solved(exposures, min_stars=3)
    np.testing.assert_array_equal(solution.groups, [0, 0, -1, -1])
    assert pairs.first.tolist() == [0] and pairs.second.tolist() == [1]
    assert np.isfinite(solution.offsets[:2]).all() and np.isnan(solution.offsets[2:]).all()
    pairs, solution = solved(exposures[2:])
    assert len(pairs.first) == 0 and len(solution.used) == 0 and (solution.groups == -1).all()


def test_bad_stars_and_a_bad_pair_are_clipped():
    truth = np.random.default_rng(14).normal(0, 0.2, 8)
    exposures, _ = survey(truth, [0] * 8, seed=14)
    # A tenth of the stars of each exposure vary or are wrong.
    rng = np.random.default_rng(15)
    for exposure in exposures:
        exposure.magnitude[rng.permutation(150)[:15]] += rng.uniform(0.3, 2, 15)
    pairs, solution = solved(exposures)
    np.testing.assert_allclose(solution.offsets, truth - truth.mean(), atol=0.012)
    # One pair is wrong altogether.
    pairs.difference[5] += 0.5
    solution = zero_points.solve_offsets(*pairs[:4], 8)
    assert np.flatnonzero(~solution.used).tolist() == [5]
    np.testing.assert_allclose(solution.offsets, truth - truth.mean(), atol=0.012)


def test_pairs_that_make_no_sense_are_refused():
    one = np.array([0])
    for first, second, difference, weight, says in (
        (one, one + 1, [0.0, 1.0], [1.0], "one length"),
        (one, one + 3, [0.0], [1.0], "outside 0 to 2"),
        (one - 1, one, [0.0], [1.0], "outside 0 to 2"),
        (one, one, [0.0], [1.0], "exposure 0 is paired with itself"),
        (one, one + 1, [np.nan], [1.0], "finite"),
        (one, one + 1, [0.0], [0.0], "positive"),
    ):
        with pytest.raises(ValueError, match=says):
            zero_points.solve_offsets(first, second, difference, weight, 3)


@pytest.mark.parametrize("shape", ["dense", "chain"])
def test_anchored_offsets_are_the_least_squares_solution(shape):
    """Against numpy's own; anchors that disagree with each other stay as they are."""
    n, first, second, difference, weight, truth = compared(shape, seed=21, mean=30.0)
    anchors = np.full(n, np.nan)
    anchors[[1, 2, 6]] = truth[[1, 2, 6]] + [0.0, 0.5, 0.0]
    # Nothing is fitted to the pair of two anchors, which says 0.5 mag else.
    weight[(first == 2) | (second == 2)] = 1.0
    weight[(first == 1) & (second == 2)] = 1e4
    solution = zero_points.solve_offsets(first, second, difference, weight, n, anchors)
    telling = np.isnan(anchors[first]) | np.isnan(anchors[second])
    np.testing.assert_array_equal(solution.used, telling)
    design, right = np.zeros((len(first), n)), difference.copy()
    design[np.arange(len(first)), first], design[np.arange(len(first)), second] = -1, 1
    free = np.isnan(anchors)
    right = (right - design[:, ~free] @ anchors[~free])[telling]
    root = np.sqrt(weight[telling])
    expected = np.linalg.lstsq(root[:, None] * design[telling][:, free], root * right, rcond=None)[0]
    np.testing.assert_allclose(solution.offsets[free], expected, atol=1e-11)
    np.testing.assert_array_equal(solution.offsets[~free], anchors[~free])
    np.testing.assert_array_equal(solution.errors[~free], 0)
    assert (solution.errors[free] > 0).all()


# --- Which zero point an exposure gets ----------------------------------------------------------------------

#: Two groups that share no stars, and a lone exposure.
TRUTH = np.array([30.1, 29.6, 30.3, 30.2, 30.0, 30.7])
GROUPS = [0, 0, 0, 1, 1, 5]


@pytest.fixture(scope="module")
def sky():
    return survey(TRUTH, GROUPS, seed=12)


def found(sky, cards, reference=None):
    points, kinds = zero_points.find_zero_points(sky[0], cards, reference)
    np.testing.assert_array_equal(np.isfinite(points), [kind != "NONE" for kind in kinds])
    return points, kinds


def test_cards_are_taken_as_they_are(sky):
    points, kinds = found(sky, TRUTH + 1)
    np.testing.assert_array_equal(points, TRUTH + 1)
    assert kinds == ["CARD"] * 6


def test_exposures_without_a_card_are_matched_to_those_with_one(sky):
    """In each group; a lone one without a card gets nothing, and one with a card keeps it."""
    points, kinds = found(sky, [TRUTH[0], None, None, None, TRUTH[4], None])
    assert kinds == ["CARD", "MATCHED", "MATCHED", "MATCHED", "CARD", "NONE"]
    np.testing.assert_allclose(points[:5], TRUTH[:5], atol=0.01)
    _, kinds = found(sky, [None] * 5 + [30.7])
    assert kinds == ["NONE"] * 5 + ["CARD"], "beside an absolute zero point a relative one misleads"


def test_a_chain_of_matches_reaches_a_card():
    """The last shares no stars with the one that has a card."""
    exposures, _ = survey(TRUTH[:3], [0] * 3, seed=14, error=0.005)
    parts = exposures[0].ra < 0.05, exposures[1].ra < 1, exposures[2].ra > 0.05
    cut = [Catalogue(*(field[part] for field in one)) for one, part in zip(exposures, parts, strict=True)]
    assert overlaps.compare_exposures(cut).second.tolist() == [1, 2]
    points, kinds = zero_points.find_zero_points(cut, [TRUTH[0], None, None])
    assert kinds == ["CARD", "MATCHED", "MATCHED"]
    np.testing.assert_allclose(points, TRUTH[:3], atol=0.005)


def test_without_anything_absolute_groups_are_relative(sky):
    points, kinds = found(sky, [None] * 6)
    assert kinds == ["RELATIVE"] * 5 + ["NONE"]
    for members in (np.arange(3), np.arange(3, 5)):
        assert points[members].mean() == pytest.approx(27, abs=1e-12)
        expected = TRUTH[members] - TRUTH[members].mean() + 27
        np.testing.assert_allclose(points[members], expected, atol=0.01)


def test_a_reference_wins_over_cards(sky):
    _, skies = sky
    reference_stars = catalogue(*skies[0], error=0.02)
    reference_stars.magnitude[:20] += 1.0
    points, kinds = found(sky, [25.0] * 6, reference_stars)
    assert kinds == ["REFERENCE"] * 3 + ["NONE"] * 3, "another scale, far from the reference, is no help"
    np.testing.assert_allclose(points[:3], TRUTH[:3], atol=0.01)


def test_exposures_with_too_few_reference_stars_are_matched_to_others(sky):
    exposures, skies = sky
    # The reference knows the stars of a corner, of which the third exposure has none.
    corner = skies[0][0] < 0.05
    reference_stars = catalogue(*(field[corner] for field in skies[0]), error=0.02)
    rest = Catalogue(*(field[exposures[2].ra > 0.051] for field in exposures[2]))
    points, kinds = zero_points.find_zero_points(
        [*exposures[:2], rest, *exposures[3:]], [None] * 6, reference_stars
    )
    assert kinds == ["REFERENCE", "REFERENCE", "MATCHED", "NONE", "NONE", "NONE"]
    np.testing.assert_allclose(points[:3], TRUTH[:3], atol=0.015)


def test_a_reference_elsewhere_gives_no_zero_points(sky):
    lost = catalogue(sky[1][0][0] + 20, sky[1][0][1])
    _, kinds = found(sky, [30.0] * 6, lost)
    assert kinds == ["NONE"] * 6


def pairs_of_survey(rng, exposures=150, neighbours=12):
    """Pairs of exposures near each other, as solve_offsets takes them, some of them wrong; and the truth."""
    places = rng.uniform(0, 1, (exposures, 2))
    apart = np.sqrt(((places[:, None] - places) ** 2).sum(axis=2))
    first, second = np.nonzero(np.triu(apart < np.sqrt(neighbours / np.pi / exposures), 1))
    truth, error = rng.normal(0, 0.2, exposures), rng.uniform(0.002, 0.02, len(first))
    difference = truth[second] - truth[first] + rng.normal(0, error)
    difference[rng.random(len(first)) < 0.02] += 0.5
    return (first, second, difference, 1 / error**2, exposures), truth


@pytest.mark.parametrize("anchored", [0, 3])
def test_large_groups_are_solved_without_a_matrix_of_all_pairs(monkeypatch, anchored):
    pairs, truth = pairs_of_survey(np.random.default_rng(5))
    anchors = np.full(len(truth), np.nan)
    anchors[:anchored] = truth[:anchored]
    directly = zero_points.solve_offsets(*pairs, anchors)
    monkeypatch.setattr(zero_points, "LARGE", 10)
    large = zero_points.solve_offsets(*pairs, anchors)
    np.testing.assert_allclose(large.offsets, directly.offsets, atol=1e-9)
    np.testing.assert_array_equal(large.groups, directly.groups)
    np.testing.assert_array_equal(large.used, directly.used)
    in_large = np.bincount(large.groups[large.groups >= 0])[large.groups] >= 10
    free = np.isnan(anchors)
    assert in_large.sum() > 100 and np.isnan(large.errors[in_large & free]).all()


def test_what_a_solution_takes_grows_with_the_pairs():
    """20,000 exposures took 19 GB when all pairs had a place in a matrix."""
    assert zero_points.solve_bytes(20_000) < 1 << 30
    assert zero_points.solve_bytes(100_000) < 8 << 30
