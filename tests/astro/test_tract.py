"""Tracts and patches: tiling, what an exposure touches, derivation from footprints, TOML."""

import pickle

import numpy as np
import pytest
from support import headers

from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.sky.wcs import footprint, read_wcs, to_pixels, to_sky
from mpiimg.errors import BadInput

TRACT = Tract(150.0, 2.2, (4, 3), pixel_scale=0.333, patch=200, border=20)


def test_inner_boxes_tile_the_tract_once():
    count = np.zeros(TRACT.pixels, int)
    for patch in TRACT.patches:
        (y0, y1), (x0, x1) = TRACT.inner(patch)
        count[y0:y1, x0:x1] += 1
    assert TRACT.pixels == (600, 800) and (count == 1).all()
    assert TRACT.patches[:5] == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)]


def test_outer_boxes_are_grown_and_clipped():
    assert TRACT.outer((1, 1)) == ((180, 420), (180, 420))
    assert TRACT.outer((0, 0)) == ((0, 220), (0, 220))
    assert TRACT.outer((3, 2)) == ((380, 600), (580, 800))


def test_projection():
    """The centre of the pixels is the tangential point; north is up, east left, pixels square."""
    wcs = TRACT.wcs
    np.testing.assert_allclose(to_pixels(wcs, 150.0, 2.2), (399.5, 299.5), atol=1e-8)
    ra, dec = to_sky(wcs, np.array([398.5, 399.5]), np.array([299.5, 300.5]))
    assert (ra[0] - 150.0) * np.cos(np.radians(2.2)) * 3600 == pytest.approx(0.333, rel=1e-6)
    assert (dec[1] - 2.2) * 3600 == pytest.approx(0.333, rel=1e-6)


@pytest.mark.parametrize("patch", [(0, 0), (2, 1), (3, 2)])
def test_a_patch_has_the_pixels_of_the_tract(patch):
    box = TRACT.outer(patch)
    wcs = TRACT.wcs_of(box)
    x, y = np.array([0.0, 17.0, 100.5]), np.array([3.0, 0.0, 99.0])
    expected = to_sky(TRACT.wcs, x + box[1][0], y + box[0][0])
    np.testing.assert_allclose(to_sky(wcs, x, y), expected, atol=1e-11)
    again = read_wcs(wcs.to_header(), "patch")
    np.testing.assert_allclose(to_sky(again, x, y), expected, atol=1e-10)
    assert wcs.array_shape == tuple(stop - start for start, stop in box)


@pytest.mark.parametrize("angle", [0.0, 12.0, 90.0, 135.0])
@pytest.mark.parametrize("place", [(0, 0), (150, -200), (-330, 250), (399, 299), (-600, 0), (30, 900)])
def test_touched_patches_hold_exactly_those_with_a_pixel_in_the_frame(angle, place):
    """Every pixel of every outer box asks whether it lies in the frame."""
    ra, dec = to_sky(TRACT.wcs, 399.5 + place[0], 299.5 + place[1])
    frame = read_wcs(headers.tan((180, 310), (float(ra), float(dec)), scale=0.3, angle=angle), "frame")
    y, x = np.mgrid[: TRACT.pixels[0], : TRACT.pixels[1]]
    fx, fy = to_pixels(frame, *to_sky(TRACT.wcs, x, y))
    inside = (np.abs(fx - 154.5) < 155) & (np.abs(fy - 89.5) < 90)
    expected = [
        patch for patch in TRACT.patches if inside[tuple(slice(*span) for span in TRACT.outer(patch))].any()
    ]
    touched = TRACT.touched(frame, (180, 310))
    assert set(expected) <= set(touched)
    # More only where the frame grazes a box, with less than a pixel of it.
    assert len(touched) <= len(expected) + 1
    assert touched == [patch for patch in TRACT.patches if patch in touched]


def test_a_frame_larger_than_a_patch_touches_what_lies_within():
    frame = read_wcs(headers.tan((5000, 5000), (150.0, 2.2), angle=45.0), "frame")
    assert TRACT.touched(frame, (5000, 5000)) == TRACT.patches


def test_a_frame_elsewhere_touches_nothing():
    for center in ((151.0, 2.2), (330.0, -2.2)):
        frame = read_wcs(headers.tan((50, 50), center), "frame")
        assert TRACT.touched(frame, (50, 50)) == []


@pytest.mark.parametrize("center", [(150.0, 2.2), (0.0, -30.0), (359.99, 60.0), (77.0, 89.95), (10.0, -90.0)])
def test_a_tract_around_footprints_holds_them_tightly(center):
    """Also across RA 0 and at the poles."""
    rng = np.random.default_rng(3)
    footprints = []
    for _ in range(6):
        dec = float(np.clip(center[1] + rng.uniform(-0.1, 0.1), -90, 90))
        ra = (center[0] + rng.uniform(-0.1, 0.1) / max(np.cos(np.radians(dec)), 0.01)) % 360
        frame = headers.decam((400, 500), corner=(1000, 100), center=(ra, dec), angle=rng.uniform(0, 360))
        footprints.append(footprint(read_wcs(frame, "frame"), (400, 500)))
    tract = Tract.around(footprints, pixel_scale=0.4, patch=100, border=10)
    x, y = to_pixels(tract.wcs, *np.concatenate(footprints, axis=1))
    for values, size in ((x, tract.pixels[1]), (y, tract.pixels[0])):
        assert values.min() >= -0.5 and values.max() <= size - 0.5
        # Half a patch is left at most on either side; at the poles north turns with the centre.
        assert abs(center[1]) > 89 or (values.min() < 51 and size - values.max() < 52)
        assert size < np.ptp(values) + 300
    assert tract.pixel_scale == 0.4 and tract.patch == 100 and tract.border == 10
    assert Tract.around(footprints, pixel_scale=0.4, patch=100, border=10) == tract


def test_a_tract_around_a_given_centre():
    frame = read_wcs(headers.tan((300, 300), (150.02, 2.2), scale=0.3), "frame")
    tract = Tract.around([footprint(frame, (300, 300))], center=(150.0, 2.2), pixel_scale=0.3, patch=100)
    assert (tract.ra, tract.dec) == (150.0, 2.2) and tract.shape == (8, 4)


def test_a_tract_around_exposures_counts_from_the_edges_of_its_pixels():
    """What reaches half a pixel beyond the centres of the outermost pixels still fits."""
    frame = read_wcs(headers.tan((200, 300), (150.0, 2.2), scale=0.3 * 0.999), "frame")
    tract = Tract.around([footprint(frame, (200, 300))], (150.0, 2.2), 0.3, patch=100, border=0)
    assert tract.shape == (3, 2)
    frame = read_wcs(headers.tan((200, 300), (150.0, 2.2), scale=0.3 * 1.001), "frame")
    tract = Tract.around([footprint(frame, (200, 300))], (150.0, 2.2), 0.3, patch=100, border=0)
    assert tract.shape == (4, 3)


def test_footprints_too_far_apart_are_refused():
    frames = [headers.tan((50, 50), (ra, 0.0)) for ra in (10.0, 80.0, 190.0)]
    footprints = [footprint(read_wcs(frame, "frame"), (50, 50)) for frame in frames]
    for some in (footprints, footprints[::2]):
        with pytest.raises(BadInput, match="degrees from"):
            Tract.around(some)
    with pytest.raises(BadInput, match="footprint"):
        Tract.around([])


def test_a_patch_is_touched_from_the_edge_of_its_outermost_pixels():
    """Its outer box begins at column 180, whose pixels begin half a pixel before."""
    for end, patches in ((179.3, [(0, 0)]), (179.7, [(0, 0), (1, 0)])):
        x, y = np.array([100.0, end, end, 100.0]), np.array([50.0, 50.0, 100.0, 100.0])
        assert TRACT.touched_by(x, y) == patches
        # The same where no corner lies in the box, but an edge leads through it.
        tall = TRACT.touched_by(x, np.array([-900.0, -900.0, 900.0, 900.0]))
        assert sorted({patch[0] for patch in tall}) == [patch[0] for patch in patches]


def test_a_given_centre_too_far_away_is_refused():
    frame = read_wcs(headers.tan((50, 50), (150.0, 2.2)), "frame")
    with pytest.raises(BadInput, match="degrees from RA 210"):
        Tract.around([footprint(frame, (50, 50))], center=(210.0, 2.2))


def test_a_footprint_at_the_centre_is_not_too_far_for_rounding():
    """The cosine of its distance may come out above 1."""
    rng = np.random.default_rng(4)
    for ra, dec in zip(rng.uniform(0, 360, 200), rng.uniform(-90, 90, 200), strict=True):
        Tract(ra, dec, (1, 1))._check_reach(np.array([ra]), np.array([dec]))


def test_true_is_no_number_of_pixels():
    with pytest.raises(BadInput, match="patch = True"):
        Tract.from_toml(TRACT.to_toml().replace("patch = 200", "patch = true"))


@pytest.mark.parametrize("used", [False, True])
def test_a_tract_has_the_same_pixels_in_every_process(used):
    """Whether or not places were asked of it before: a pickled WCS is written as a header, and loses bits."""
    tract = Tract(149.999306, 2.199967, (4, 3), 0.264, 160, 20)
    if used:
        assert tract.wcs is tract.wcs
    there = pickle.loads(pickle.dumps(tract))
    assert there == tract
    assert there.wcs.wcs.cdelt.tolist() == tract.wcs.wcs.cdelt.tolist()
    assert there.wcs.wcs.crval.tolist() == tract.wcs.wcs.crval.tolist()


@pytest.mark.parametrize(
    "tract", [TRACT, Tract(1 / 3, -89.123456, (1, 7)), Tract(0.0, 0.0, (1, 1), 1e-3, 1, 0)]
)
def test_toml_gives_the_same_tract_back(tract):
    assert Tract.from_toml(tract.to_toml()) == tract


TEXT = TRACT.to_toml()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tract = ", "not TOML"),
        ("", "no table"),
        ("tract = 3", "no table"),
        (TEXT.replace("patch = 200", "patches = 200"), "check patch, patches"),
        (TEXT.replace('"TAN"', '"SIN"'), "only TAN"),
        (TEXT.replace("[150.0, 2.2]", "150.0"), "center = 150.0: expected 2 numbers"),
        (TEXT.replace("patch = 200", "patch = 200.5"), "patch = 200.5: expected 1 whole number"),
        (TEXT.replace("border = 20", "border = -1"), "not negative"),
        (TEXT.replace("2.2", "92.2"), "no such centre"),
        (TEXT.replace("0.333", "0"), "must be positive"),
        (TEXT.replace("[4, 3]", "[4, 0]"), "must be positive"),
    ],
)
def test_bad_toml_is_one_clear_line(text, message):
    with pytest.raises(BadInput, match=message) as caught:
        Tract.from_toml(text, "t.toml")
    assert "\n" not in str(caught.value)
