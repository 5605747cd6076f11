"""Otsu's threshold from summed histograms, and the whole brain mask, against numpy and dipy bit for bit."""

from __future__ import annotations

import dipy.segment.mask
import numpy as np
import pytest
from dipy.data import get_fnames
from dipy.io.image import load_nifti_data
from dipy.segment.threshold import otsu as dipy_otsu
from support import reference

from mpiimg.neuro.kernels import otsu
from mpiimg.neuro.kernels.median import median_filter


def images():
    """Images of many ranges and offsets, continuous and integer."""
    rng = np.random.default_rng(2)
    for i in range(200):
        size, scale = rng.integers(20, 5000), 10 ** rng.uniform(-3, 5)
        offset = rng.choice([0, 1, 100, -50]) * min(scale, 1) * rng.uniform()
        image = (rng.gamma(1.5, scale, size) + offset).astype(np.float32)
        yield np.rint(image) if i % 3 == 0 and scale > 1 else image


def chunked_threshold(image, chunks=7):
    """The counts and threshold, from the histograms of chunks (some may be empty)."""
    low, high = image.min(), image.max()
    counts = sum(otsu.histogram(chunk, low, high) for chunk in np.array_split(image.ravel(), chunks))
    return counts, otsu.threshold(counts, low, high)


def test_counts_edges_and_threshold_are_those_of_numpy_and_dipy():
    for image in images():
        counts, threshold = chunked_threshold(image)
        expected, edges = np.histogram(image, 256)
        np.testing.assert_array_equal(counts, expected)
        np.testing.assert_array_equal(otsu.edges(image.min(), image.max()), edges)
        assert counts.dtype == np.int64
        assert otsu.edges(image.min(), image.max()).dtype == edges.dtype == np.float32
        assert threshold == dipy_otsu(image)
        assert threshold.dtype == dipy_otsu(image).dtype


def test_reduced_bounds_may_be_python_floats():
    image = np.random.default_rng(0).gamma(2, 300, 999).astype(np.float32)
    low, high = float(image.min()), float(image.max())
    counts = otsu.histogram(image, low, high)
    np.testing.assert_array_equal(counts, np.histogram(image, 256)[0])
    assert otsu.threshold(counts, low, high) == dipy_otsu(image)
    assert isinstance(otsu.threshold(counts, low, high), np.float32)


def test_threshold_is_the_best_of_all_splits():
    rng = np.random.default_rng(8)
    image = np.concatenate([rng.normal(50, 20, 900), rng.normal(700, 90, 600)]).astype(np.float32)
    assert chunked_threshold(image)[1] == reference.otsu(image)


def test_values_on_edges_and_at_the_ends():
    edges = otsu.edges(0.1, 97.3)
    image = np.concatenate([edges, np.nextafter(edges[1:], -np.inf), np.nextafter(edges[:-1], np.inf)])
    np.testing.assert_array_equal(chunked_threshold(image)[0], np.histogram(image, 256)[0])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("constant", [0.0, 5.0, -3.25, 60000.0])
def test_constant_image_lies_above_its_threshold_as_in_dipy(constant):
    image = np.full((4, 5, 6), constant, np.float32)
    counts, threshold = chunked_threshold(image, 3)
    np.testing.assert_array_equal(counts, np.histogram(image, 256)[0])
    assert threshold == dipy_otsu(image) == constant - 0.5
    assert (image > threshold).all()


@pytest.mark.parametrize("constant", [7e4, -1e9, 3e38])
def test_constant_image_that_numpy_refuses(constant):
    image = np.full(30, constant, np.float32)
    with pytest.raises(ValueError, match="Too many bins"):
        np.histogram(image, 256)
    counts, threshold = chunked_threshold(image, 3)
    assert counts.sum() == 30
    assert (image > threshold).all()


def test_range_too_narrow_or_too_wide_for_float32():
    narrow = np.repeat(np.nextafter(np.float32(1000), np.float32([-np.inf, np.inf])), [20, 10])
    counts, threshold = chunked_threshold(narrow, 4)
    assert counts.sum() == 30
    np.testing.assert_array_equal(narrow > threshold, narrow > 1000)
    wide = np.float32([-3e38, -3e38, 3e38])
    counts, threshold = chunked_threshold(wide, 2)
    assert counts.sum() == 3
    np.testing.assert_array_equal(wide > threshold, wide > 0)


def test_an_edge_between_two_floats_is_rounded_down_so_that_voxels_compare_with_both_alike():
    """Values 0, 1 and 3 steps of float32 above 1000; the best edge is a 256th of a step below the second."""
    steps = np.repeat(np.float32([0, 1, 3]), 10)
    image = np.float32(1000) + steps * np.spacing(np.float32(1000))
    _, threshold = chunked_threshold(image)
    assert otsu.edges(image.min(), image.max()).dtype == np.float64
    np.testing.assert_array_equal(image > threshold, image > dipy_otsu(image.astype(np.float64)))
    np.testing.assert_array_equal(image > threshold, steps > 0)


def test_edges_are_placed_in_float32_as_numpy_places_them_in_a_float32_image():
    """In float64 a value in some hundred thousand would fall into the next bin."""
    rng = np.random.default_rng(2)
    for _ in range(100):
        scale = 10 ** rng.uniform(-3, 5)
        image = (rng.gamma(1.5, scale, 20_000) + scale * rng.choice([0, 1, 100, -50])).astype(np.float32)
        np.testing.assert_array_equal(chunked_threshold(image)[0], np.histogram(image, 256)[0])


def test_empty_chunk_counts_nothing():
    np.testing.assert_array_equal(otsu.histogram(np.empty((0, 3, 3), np.float32), 0, 9), np.zeros(256))


def test_refusals():
    with pytest.raises(TypeError, match="float64"):
        otsu.histogram(np.zeros(3), 0, 1)
    for low, high in [(0, np.inf), (np.nan, 1), (2, 1)]:
        with pytest.raises(ValueError, match="range"):
            otsu.edges(low, high)


# --------------------------------------------------------------------------- the whole mask


def brain_mask(volume, thickness, radius=4, passes=4):
    """The mask of a volume (z, y, x), every step cut into z-blocks."""
    nz = volume.shape[0]
    cuts = [(z, min(z + thickness, nz)) for z in range(0, nz, thickness)]
    for _ in range(passes):
        extended = np.pad(volume, [(radius, radius), (0, 0), (0, 0)], mode="symmetric")
        volume = np.concatenate([median_filter(extended[a : b + 2 * radius], radius) for a, b in cuts])
    low, high = volume.min(), volume.max()
    counts = sum(otsu.histogram(volume[a:b], low, high) for a, b in cuts)
    return volume > otsu.threshold(counts, low, high)


def head(shape, seed):
    """The mean of three noisy integer b0 volumes of an ellipsoid."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1.3, 1.3, n) for n in shape), indexing="ij")
    truth = 800 * (sum(axis**2 for axis in axes) < 1) * (1 + 0.3 * np.sin(3 * axes[2]))
    noisy = [np.rint(np.hypot(truth + rng.normal(0, 60, shape), rng.normal(0, 60, shape))) for _ in range(3)]
    return np.mean(noisy, axis=0).astype(np.float32)


@pytest.mark.parametrize("thickness", [1, 5, 16, 30])
@pytest.mark.parametrize(("shape", "passes"), [((18, 25, 30), 4), ((20, 9, 17), 2), ((3, 24, 20), 1)])
def test_mask_is_dipys(monkeypatch, shape, passes, thickness):
    # dipy takes scikit-image's Otsu where it finds one; the pinned one is its own.
    monkeypatch.setattr(dipy.segment.mask, "otsu", dipy_otsu)
    volume = head(shape, seed=passes)
    _, expected = dipy.segment.mask.median_otsu(volume, median_radius=4, numpass=passes)
    mask = brain_mask(volume, thickness, passes=passes)
    np.testing.assert_array_equal(mask, expected)
    assert 0 < mask.sum() < mask.size


@pytest.mark.parametrize("name", ["small_64D", "small_101D"])
@pytest.mark.parametrize("radius", [2, 4])
def test_mask_of_real_data_is_dipys(monkeypatch, name, radius):
    monkeypatch.setattr(dipy.segment.mask, "otsu", dipy_otsu)
    volume = load_nifti_data(get_fnames(name=name)[0])
    volume = np.ascontiguousarray(volume[..., 0].T, np.float32)
    _, expected = dipy.segment.mask.median_otsu(volume, median_radius=radius, numpass=4)
    np.testing.assert_array_equal(brain_mask(volume, 4, radius=radius), expected)
