"""Mask planes: their numbers, cards, and what foreign masks become."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.io import fits

from mpiimg.astro.fits import maskplanes
from mpiimg.astro.fits.instruments import known_instruments
from mpiimg.astro.fits.maskplanes import MASK_PLANES, bits


def test_plane_numbers_are_those_of_lsst():
    fixed = ["BAD", "SAT", "INTRP", "CR", "EDGE", "DETECTED", "DETECTED_NEGATIVE", "SUSPECT", "NO_DATA"]
    assert [MASK_PLANES[name] for name in fixed] == list(range(9))
    assert len(set(MASK_PLANES.values())) == len(MASK_PLANES)
    assert bits("BAD", "CR", "BAD") == 1 + 8
    assert bits() == 0


def test_plane_cards_go_through_a_header():
    header = fits.Header()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header.extend(fits.Card(*card) for card in maskplanes.plane_cards())
    again = fits.Header.fromstring(header.tostring())
    assert maskplanes.planes_of(again) == MASK_PLANES
    assert maskplanes.planes_of(fits.Header()) == {}
    again["MP_CR"] = "three"
    with pytest.raises(ValueError, match="MP_CR"):
        maskplanes.planes_of(again)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">i4", "int64"])
def test_a_mask_with_other_numbers_is_remapped(dtype):
    """Every combination of planes, against a loop over names."""
    planes = {
        "CR": 0,
        "BAD": 1,
        "NO_DATA": 2,
        "UNMASKEDNAN": 3,
        "VIGNETTED": 4,
        "BRIGHT_OBJECT": 5,
        "WEIRD": 6,
    }
    meaning = ["CR", "BAD", "NO_DATA", "NO_DATA", "SUSPECT", None, "SUSPECT"]
    values = np.arange(128).reshape(8, 16).astype(dtype)
    expected = np.zeros(values.shape, np.int32)
    for bit, name in enumerate(meaning):
        if name:
            expected[values.astype(int) >> bit & 1 == 1] |= 1 << MASK_PLANES[name]
    found = maskplanes.remap(values, planes)
    assert found.dtype == np.int32
    assert (found == expected).all()
    far = {name: bit + 20 for name, bit in planes.items()}
    if np.dtype(dtype).itemsize >= 4:
        assert (maskplanes.remap(values << 20, far) == expected).all()


def test_remapping_our_own_planes_changes_nothing():
    values = np.random.default_rng(1).integers(0, 1 << len(MASK_PLANES), (50, 60), dtype=np.int32)
    found = maskplanes.remap(values, MASK_PLANES)
    assert (found == values).all()
    assert not np.shares_memory(found, values)
    assert (maskplanes.remap(np.array([1 << 14], np.int32), MASK_PLANES) == bits("SUSPECT")).all()


def test_sign_bit_of_a_mask():
    assert maskplanes.remap(np.array([-(2**31), 1], np.int32), MASK_PLANES).tolist() == [bits("SUSPECT"), 1]
    assert maskplanes.any_bad(np.array([0, 7, -1], np.int16)).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("version", "codes"),
    [
        ("V3.5.0", True),
        ("V3.4.9", False),
        ("V2.9", False),
        ("DES V3.5", True),
        ("V4.8.2a", True),
        ("V3.10", True),
    ],
)
def test_which_decam_versions_have_codes(version, codes):
    (decam, *_) = known_instruments(("decam",))
    assert (maskplanes.version_of(version) >= decam.codes_since) == codes


def test_decam_codes_and_bits():
    (decam, *_) = known_instruments(("decam",))
    codes = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [-1, 500, -5, 0, 0]], np.int16)
    plane = {code: bits(name) for code, name in decam.codes.items()} | {0: 0}
    expected = [[plane.get(code, bits("SUSPECT")) for code in row] for row in codes.tolist()]
    assert maskplanes.from_codes(codes, decam.codes, decam.unlisted).tolist() == expected
    both = np.array([0, 1, 2, 4, 16, 64, 128, 256, 512, 1 + 16, 2 + 64, 8], np.int32)
    names = [
        (),
        "BAD",
        "SAT",
        "INTRP",
        "CR",
        "SAT",
        "SUSPECT",
        "EDGE",
        "EDGE",
        ("BAD", "CR"),
        "SAT",
        "SUSPECT",
    ]
    expected = [bits(*([name] if isinstance(name, str) else name)) for name in names]
    assert maskplanes.from_bits(both, decam.bits, decam.unlisted).tolist() == expected


def test_true_is_no_bit_number():
    with pytest.raises(ValueError, match="MP_BAD = True"):
        maskplanes.planes_of({"MP_BAD": True})
