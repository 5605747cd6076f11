"""Cosmic rays against astroscrappy, pixel for pixel, against a step by step reference, and cut otherwise."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from support import reference

from mpiimg.astro.kernels import cosmic_search, cosmics
from mpiimg.astro.kernels.cosmics import detect_cosmics

READNOISE = 6.3
SATURATION = 6e4

#: Odd, thin, tiny, and larger than a tile both ways.
SHAPES = [(51, 41), (30, 200), (200, 30), (17, 16), (5, 9), (4, 4), (150, 517)]

REAL = pathlib.Path(__file__).parents[3] / "shared/data/decam-testcase3"


def sensor(shape, sky, seed=0, stars=True, rays=True):
    """Return an exposure (float32, with its sky): stars, one in forty saturated and bleeding, and tracks."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    truth = np.full(shape, float(sky))
    y, x = np.ogrid[:ny, :nx]
    for k in range(3 + ny * nx // 2500 if stars else 0):
        row, column = rng.uniform((-2, -2), (ny + 2, nx + 2))
        flux = 10 ** (rng.uniform(6, 6.7) if k % 40 == 0 else rng.uniform(2.5, 5))
        truth += flux / 18.2 * np.exp(-((y - row) ** 2) / 5.8) * np.exp(-((x - column) ** 2) / 5.8)
        if k % 40 == 0:
            truth[max(0, int(row) - 20) : int(row) + 21, max(0, int(column) - 1) : int(column) + 2] += 7e4
    image = rng.poisson(truth) + rng.normal(0, READNOISE, shape)
    for _ in range(4 + ny * nx // 2000 if rays else 0):
        row, column = rng.uniform((0, 0), shape)
        angle, charge = rng.uniform(0, 2 * np.pi), 10 ** rng.uniform(2.3, 4.3)
        for step in np.arange(0, rng.uniform(0.5, 15), 0.5):
            j, i = int(row + step * np.sin(angle)), int(column + step * np.cos(angle))
            if 0 <= j < ny and 0 <= i < nx:
                image[j, i] += charge
    return np.minimum(image, 6.5e4).astype(np.float32)


def bad_pixels(shape, seed=0):
    """Return a mask with bad columns, part of an edge, and some pixels."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.002
    mask[:, rng.integers(0, shape[1], 1 + shape[1] // 100)] = True
    mask[0, : shape[1] // 3] = True
    return mask


def peer(image, mask=None, variance=None, gain=1.0, readnoise=READNOISE, satlevel=SATURATION, **others):
    """Return what astroscrappy finds, and its repair."""
    astroscrappy = pytest.importorskip("astroscrappy")
    return astroscrappy.detect_cosmics(
        image.copy(),
        inmask=mask,
        invar=variance,
        gain=gain,
        readnoise=readnoise,
        satlevel=satlevel,
        sepmed=True,
        cleantype="medmask",
        fsmode="median",
        niter=others.pop("iterations", 4),
        **others,
    )


def ours(image, **options):
    return detect_cosmics(image, **{"readnoise": READNOISE, "satlevel": SATURATION} | options)


def assert_same(image, **options):
    """Same pixels and, to the last bit, same values as astroscrappy; return what was found."""
    struck, cleaned = ours(image, **options)
    expected, repaired = peer(image, **options)
    np.testing.assert_array_equal(struck, expected)
    np.testing.assert_array_equal(cleaned, repaired)
    assert struck.dtype == bool and cleaned.dtype == np.float32
    return struck


@pytest.mark.parametrize("gain", [1.0, 1.73])
@pytest.mark.parametrize("sky", [100, 3000])
@pytest.mark.parametrize("shape", SHAPES)
def test_same_as_astroscrappy(shape, sky, gain):
    found = 0
    for seed in range(3):
        image = sensor(shape, sky, seed)
        variance = np.abs(image) / np.float32(gain) + np.float32(40)
        for mask in (None, bad_pixels(shape, seed)):
            found += assert_same(image, mask=mask, gain=gain).sum()
            found += assert_same(image, mask=mask, gain=gain, variance=variance).sum()
    assert found > 0 or min(shape) <= 5


def test_same_with_rays_along_the_edges():
    """Nothing is found within 3 pixels of the edge, but rays there enter the medians further in."""
    rng = np.random.default_rng(4)
    image = rng.normal(300, 18, (60, 77)).astype(np.float32)
    border = np.pad(np.zeros((46, 63), bool), 7, constant_values=True)
    image[border & (rng.random(image.shape) < 0.1)] += np.float32(700.3)
    image[0, 0] = image[0, -1] = image[-1, 0] = image[-1, -1] = 2500.7
    struck = assert_same(image)
    assert all(side.any() for side in (struck[3], struck[-4], struck[:, 3], struck[:, -4]))
    assert not (struck & np.pad(np.zeros((54, 71), bool), 3, constant_values=True)).any()


@pytest.mark.parametrize("size", range(4, 20))
def test_same_on_edges_in_noise(size):
    """Thresholds so low that many a pixel is close to them: no rounding may differ."""
    image = np.random.default_rng(size).normal(500, 22, (size, 41 - size)).astype(np.float32)
    for flipped in (image, image[::-1], image[:, ::-1]):
        assert_same(np.ascontiguousarray(flipped), sigclip=1.0, objlim=0.7)


def test_same_whatever_the_parameters():
    image = sensor((90, 130), 500, 3)
    for others in (
        {"sigclip": 3.0, "sigfrac": 0.5, "objlim": 2.0},
        {"sigclip": 8.0, "sigfrac": 1.0},
        {"objlim": 0.0},
        {"iterations": 1},
        {"iterations": 9, "sigclip": 2.5},
        {"readnoise": 0.0},
        {"satlevel": np.inf},
        {"satlevel": 2000.0},
    ):
        assert assert_same(image, **others).any()
    assert_same(image, satlevel=600.0)


def test_saturated_stars_are_left_alone():
    image = np.random.default_rng(1).normal(100, 11, (80, 80)).astype(np.float32)
    image[30:50, 22:42] = 6.5e4
    image[5:75, 30:35] = 6.5e4
    image[60, 60] = 6.5e4
    struck = assert_same(image)
    assert struck[60, 60] and not struck[:, 18:46].any()


def test_a_ray_without_good_neighbours_takes_the_level():
    """The pixel alone is good: all others of 5 x 5 are masked."""
    image = np.random.default_rng(2).normal(1000, 30, (64, 64)).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[18:25, 18:25] = True
    mask[20:23, 20:23] = False
    image[21, 21] = 20000
    for variance in (None, np.full(image.shape, 1234.5, np.float32)):
        assert assert_same(image, mask=mask, variance=variance, gain=1.3)[21, 21]
    cleaned = ours(image, mask=mask)[1]
    assert abs(cleaned[21, 21] - 1000) < 5


def test_same_on_real_exposures():
    fits = pytest.importorskip("astropy.io.fits")
    files = sorted(REAL.glob("*_ooi_*.fits"))
    if not files:
        pytest.skip(f"NO REAL DATA: the DECam cut-outs are not in {REAL}")
    for file in files:
        image, codes, weight = (
            fits.getdata(file.with_name(file.name.replace("_ooi_", kind)))
            for kind in ("_ooi_", "_ood_", "_oow_")
        )
        image = image.astype(np.float32)
        with np.errstate(divide="ignore"):
            variance = np.where(weight > 0, 1 / weight, 1e9).astype(np.float32)
        for mask in (None, codes != 0):
            for sigclip in (4.5, 2.5):
                assert_same(image, mask=mask, sigclip=sigclip, gain=4.0)
                assert_same(image, mask=mask, sigclip=sigclip, gain=4.0, variance=variance)


@pytest.mark.parametrize("sky", [100, 3000])
@pytest.mark.parametrize("shape", [(51, 41), (30, 64)])
def test_same_as_the_steps(shape, sky):
    image, mask = sensor(shape, sky, 7), bad_pixels(shape, 7)
    struck, cleaned = ours(image, mask=mask)
    expected, repaired = reference.cosmic_rays(image, mask, READNOISE, SATURATION)
    assert expected.any()
    np.testing.assert_array_equal(struck, expected)
    np.testing.assert_allclose(cleaned, repaired, rtol=1e-6)


@pytest.mark.parametrize("sky", [100, 3000])
def test_nothing_to_find(sky):
    for stars in (False, True):
        struck, cleaned = ours(image := sensor((900, 900), sky, 5, stars=stars, rays=False))
        assert struck.mean() < 1e-4
        np.testing.assert_array_equal(cleaned[~struck], image[~struck])


def test_rays_are_found_and_repaired():
    image = sensor((300, 300), 400, 6, stars=False)
    clean = sensor((300, 300), 400, 6, stars=False, rays=False)
    hit = image > clean + 150
    struck, cleaned = ours(image)
    inner = np.s_[3:-3, 3:-3]
    assert (struck & hit)[inner].sum() > 0.98 * hit[inner].sum()
    assert np.abs(cleaned - 400)[struck].max() < 60


def beside_a_cell(seed):
    """Return hits that end two pixels before a cell, and a faint one inside it that they hide at first."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 3, (48, 112))
    hit = rng.random((16, 7)) < 0.45
    image[16:32, 55:62][hit] += 10 ** rng.uniform(2, 3.5, hit.sum())
    image[24, 64 + rng.integers(0, 3)] += rng.uniform(44, 60)
    return image.astype(np.float32)


@pytest.mark.parametrize("seed", [137, 526, 998, 1841, 2205])
def test_cells_are_searched_again_where_what_was_repaired_matters_to_them(seed):
    """Repaired pixels have a part in decisions as far as a halo reaches, in the next cell too."""
    assert cosmics.CELL * 4 == 64
    image = beside_a_cell(seed)
    struck = assert_same(image, iterations=8)
    assert struck[24, 64:67].any() != ours(image, iterations=1)[0][24, 64:67].any()


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (3, 40)])
def test_same_bits_however_cut(tile, monkeypatch):
    image, mask = sensor((170, 300), 200, 8), bad_pixels((170, 300), 8)
    for variance in (None, image + np.float32(40)):
        expected = ours(image, mask=mask, variance=variance)
        with monkeypatch.context() as patch:
            patch.setattr(cosmics, "TILE_CELLS", tile)
            result = ours(image, mask=mask, variance=variance)
        np.testing.assert_array_equal(result[0], expected[0])
        np.testing.assert_array_equal(result[1].view(np.int32), expected[1].view(np.int32))


def test_a_part_of_the_frame_decides_as_the_whole():
    """One iteration, far enough from the cut: what a pixel depends on is within the halo."""
    image = sensor((140, 140), 200, 9)
    whole = ours(image, iterations=1, satlevel=np.inf)[0]
    part = ours(image[20:100, 33:120], iterations=1, satlevel=np.inf)[0]
    inner = np.s_[cosmics.HALO : -cosmics.HALO, cosmics.HALO : -cosmics.HALO]
    assert whole.any()
    np.testing.assert_array_equal(part[inner], whole[20:100, 33:120][inner])


def test_what_is_not_finite_is_masked_and_kept():
    image = sensor((80, 90), 300, 10)
    mask = np.zeros(image.shape, bool)
    mask[30:33, 40:60] = mask[:, 7] = True
    holed = np.where(mask, np.float32(np.nan), image)
    holed[31, 45], holed[31, 46] = np.inf, -np.inf
    struck, cleaned = ours(holed)
    np.testing.assert_array_equal(cleaned[mask], holed[mask])
    # As astroscrappy, given average pixels there and the mask.
    level = np.sort(image[~mask])[((~mask).sum() - 1) // 2]
    expected, repaired = peer(np.where(mask, level, image), mask)
    np.testing.assert_array_equal(struck, expected)
    np.testing.assert_array_equal(cleaned[~mask], repaired[~mask])

    variance = np.where(mask, np.float32(np.inf), image + np.float32(40))
    struck, cleaned = ours(image, variance=variance)
    assert struck.any() and not struck[mask].any()
    np.testing.assert_array_equal(cleaned[mask], image[mask])


def test_nothing_is_good():
    image = sensor((40, 50), 300, 11)
    for dark, mask in ((image, np.ones(image.shape, bool)), (np.full_like(image, np.nan), None)):
        struck, cleaned = ours(dark, mask=mask)
        assert not struck.any()
        np.testing.assert_array_equal(cleaned, dark)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 2), (3, 3)])
def test_frames_smaller_than_any_window(shape):
    struck, cleaned = ours(np.full(shape, 100, np.float32))
    assert not struck.any()
    np.testing.assert_array_equal(cleaned, 100)


@pytest.mark.parametrize("kind", ["smooth", "rounded", "constant", "striped"])
def test_lower_median(kind):
    rng = np.random.default_rng(12)
    plane = rng.normal(100, 10, (311, 290)).astype(np.float32)
    if kind == "rounded":
        plane = np.rint(plane / 20)
    elif kind == "constant":
        plane[:] = 3
    elif kind == "striped":
        plane[::29] += 1000  # The sample sees nothing else.
    bad = rng.random(plane.shape) < 0.3
    expected = np.sort(plane[~bad])[((~bad).sum() - 1) // 2]
    assert cosmics._lower_median(plane, bad) == expected


def test_inputs_are_left_as_they_are_and_may_be_of_other_types():
    image = sensor((60, 70), 300, 13)
    before = image.copy()
    struck, cleaned = ours(image, variance=image)
    np.testing.assert_array_equal(image, before)
    for other in (image.astype(">f4"), image.astype(np.float64), np.asfortranarray(image)):
        result = ours(other, variance=image, mask=np.zeros(image.shape, np.uint8))
        np.testing.assert_array_equal(result[0], struck)
        np.testing.assert_array_equal(result[1], cleaned)


def test_nothing_is_compiled_after_a_small_call():
    """What to call to have all compiled: a ray without good neighbours, and a pixel that is not finite."""
    mask = np.zeros((20, 20), bool)
    mask[5:12, 5:12] = True
    mask[7:10, 7:10] = False
    image = np.full(mask.shape, 100, np.float32)
    image[8, 8], image[0, 0] = 1e4, np.nan
    assert ours(image, mask=mask)[0].sum() == 1

    def compiled():
        every = {**vars(cosmic_search), **vars(cosmics)}
        kernels = {name: kernel for name, kernel in every.items() if isinstance(kernel, Dispatcher)}
        return {name: len(kernel.signatures) for name, kernel in kernels.items()}

    before = compiled()
    ours(sensor((100, 300), 200), variance=np.full((100, 300), 240, np.float32), gain=2)
    ours(sensor((100, 300), 200), mask=bad_pixels((100, 300)))
    assert compiled() == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image": np.zeros((2, 3, 4))}, "image must be"),
        ({"image": np.zeros((0, 4))}, "image must be"),
        ({"mask": np.zeros((3, 4), bool)}, "mask must have"),
        ({"variance": np.ones(8)}, "variance must have"),
        ({"gain": 0}, "gain must be"),
        ({"gain": np.nan}, "gain must be"),
        ({"gain": np.inf}, "finite"),
        ({"readnoise": -1}, "readnoise must not"),
        ({"satlevel": np.nan}, "satlevel must be"),
        ({"sigclip": 0}, "sigclip must be"),
        ({"sigfrac": -0.1}, "sigfrac must not"),
        ({"objlim": np.inf}, "finite"),
        ({"iterations": 0}, "iterations must be"),
    ],
)
def test_bad_arguments(change, complaint):
    arguments = {"image": np.ones((8, 8)), "readnoise": 1, "satlevel": 1e5} | change
    with pytest.raises(ValueError, match=complaint):
        detect_cosmics(arguments.pop("image"), **arguments)
