"""Spaces follow what is done to an array: a voxel that is kept stays where it was."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiimg.formats.space import Affine, Wcs, lost_distortions, space_from, wcs_cards

LENGTH = 40

MATRIX = np.array([[-2.0, 0.1, 0.3, 30], [0.1, 2.1, 0, -40], [0.2, 0, 2.2, 5], [0, 0, 0, 1]])
AFFINE = Affine(("x", "y", "z"), MATRIX, ("mm", "sec"), (1, 2), MATRIX * 1.01, (("t", 2.5, 10.0),))


def header(**cards):
    """A header of an image of the sky, with other cards among them."""
    common = {"NAXIS": 2, "NAXIS1": LENGTH, "NAXIS2": LENGTH, "OBJECT": "M 31", "RADESYS": "ICRS"}
    sky = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 18.5, "CRPIX2": 25.0}
    sky |= {"CRVAL1": 150.0, "CRVAL2": 2.0, "CUNIT1": "deg", "CUNIT2": "deg"}
    made = fits.Header()
    for key, value in {**common, **sky, **cards}.items():
        made[key] = value
    return made


CD = {"CD1_1": -1e-3, "CD1_2": 1e-5, "CD2_1": 2e-5, "CD2_2": 1.2e-3}
SIP = {"A_ORDER": 3, "A_2_0": 1e-4, "A_1_1": 2e-5, "A_0_3": 1e-6}
SIP |= {"B_ORDER": 2, "B_0_2": 3e-4, "B_1_1": 1e-5, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}
INVERSE = {"AP_ORDER": 2, "AP_1_1": 1e-5, "BP_ORDER": 2, "BP_2_0": 1e-5}
ARCSEC = {"CDELT1": -1e-3, "CDELT2": 1e-3}
HEADERS = {
    "CD": header(**CD),
    "SIP": header(**CD, **SIP),
    "inverse SIP": header(**CD, **SIP, **INVERSE),
    "TPV": header(**CD, CTYPE1="RA---TPV", CTYPE2="DEC--TPV", PV1_1=1.0, PV1_4=1e-2, PV2_1=1.0, PV2_5=2e-2),
    "CROTA": header(**ARCSEC, CROTA2=30.0),
    "PC": header(**ARCSEC, PC1_2=0.3, PC2_1=-0.3),
    "CDELT": header(**ARCSEC),
    "two descriptions": header(
        **CD, CTYPE1A="LINEAR", CTYPE2A="LINEAR", CRPIX1A=3.0, CRPIX2A=4.0, CDELT1A=2.0, CDELT2A=5.0
    ),
}


def wcs(name):
    return Wcs(("x", "y"), wcs_cards(HEADERS[name]))


def world(space, **index):
    """Where the voxel at an index lies, in all descriptions."""
    if isinstance(space, Affine):
        point = [index[axis] for axis in space.axes]
        return [(np.array(one) @ [*point, 1])[:3] for one in (space.matrix, space.qform)]
    pixel = [index[axis] for axis in space.axes]
    letters = [" ", *(["A"] if "CRPIX1A" in space.cards() else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [WCS(space.cards(), key=letter) for letter in letters]
    return [np.array(one.all_pix2world([pixel], 0)[0]) for one in made]


#: What can be done to an axis: the method, its arguments, and where an index then lies in the array before.
OPERATIONS = st.one_of(
    st.tuples(st.just("taken"), st.integers(0, 20), st.sampled_from([1, 2, 3, -1, -2])),
    st.tuples(st.just("coarsened"), st.integers(1, 4)),
    st.tuples(st.just("padded"), st.integers(0, 5)),
    st.tuples(st.just("without"), st.integers(0, 5)),
)


def before(operation, index):
    """Return the index, or its centre, that an index of what was made stands for."""
    name, *words = operation
    if name == "taken":
        return words[0] + words[1] * index
    if name == "coarsened":
        return np.mean([words[0] * index + one for one in range(words[0])])
    return index - words[0] if name == "padded" else index + words[0]


@pytest.mark.parametrize("name", ["affine", *HEADERS])
@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from("xy"), OPERATIONS), min_size=1, max_size=5),
    x=st.integers(0, 9),
    y=st.integers(0, 9),
)
def test_what_is_kept_stays_where_it_was(name, steps, x, y):
    space = AFFINE if name == "affine" else wcs(name)
    made, index = space, {"x": x, "y": y, "z": 3}
    for axis, (method, *words) in steps:
        made = getattr(made, method)(axis, *words)
    for axis, operation in reversed(steps):
        index[axis] = before(operation, index[axis])
    for now, was in zip(world(made, x=x, y=y, z=3), world(space, **index), strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "y", "x"),
    [
        ("CDELT", slice(None, None, 2), slice(3, 30)),
        # astropy scales the world's axis and not the pixel's: the same only where both have one step.
        ("PC", slice(4, None, 2), slice(None, None, 2)),
        ("CROTA", slice(None, None, 3), slice(2, None, 3)),
        # It forgets the step where there is a CD matrix.
        ("CD", slice(2, 20), slice(3, 30)),
        ("SIP", slice(2, 20), slice(3, 30)),
        ("TPV", slice(2, 20), slice(3, 30)),
    ],
)
def test_the_plain_cases_are_those_of_astropy(name, y, x):
    """Its slices with a step join pixels, which is coarsening here."""
    ours = wcs(name)
    for axis, cut in {"y": y, "x": x}.items():
        ours = ours.taken(axis, cut.start or 0).coarsened(axis, cut.step or 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, ours = WCS(HEADERS[name])[y, x], WCS(ours.cards())
    pixels = np.random.default_rng(0).uniform(0, 20, (9, 2))
    np.testing.assert_allclose(ours.all_pix2world(pixels, 0), theirs.all_pix2world(pixels, 0), rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 20), step=st.sampled_from([1, 2, -3]), factor=st.integers(1, 3))
def test_the_inverse_polynomials_of_sip_follow_too(start, step, factor):
    space = wcs("inverse SIP")
    made = space.taken("x", start, step).coarsened("y", factor)
    pixels = np.random.default_rng(0).uniform(0, 9, (5, 2))
    was = np.stack([start + step * pixels[:, 0], (factor - 1) / 2 + factor * pixels[:, 1]], axis=1)
    inverse = WCS(space.cards()).sip_foc2pix(WCS(space.cards()).sip_pix2foc(was, 0), 0)
    again = WCS(made.cards()).sip_foc2pix(WCS(made.cards()).sip_pix2foc(pixels, 0), 0)
    scaled = np.stack([start + step * again[:, 0], (factor - 1) / 2 + factor * again[:, 1]], axis=1)
    np.testing.assert_allclose(scaled, inverse, atol=1e-9)


def test_names_and_records():
    for space in (AFFINE, wcs("SIP")):
        turned = space.renamed({"x": "y", "y": "x"})
        assert turned.axes[:2] == ("y", "x")
        assert turned.taken("y", 4, -2).renamed({"x": "y", "y": "x"}) == space.taken("x", 4, -2)
        assert space.reordered(("z", "y", "x")) == space
        assert space.taken("c", 3, 2) == space == space.taken("x", 0, 1)
        assert space_from(json.loads(json.dumps(space.to_record()))) == space
        assert pickle.loads(pickle.dumps(space)) == space and hash(space) == hash(space.renamed({}))
    assert space_from(None) is None


def test_time_steps_follow_too():
    assert AFFINE.taken("t", 4, 2).steps == (("t", 5.0, 20.0),)
    assert AFFINE.coarsened("t", 3).steps == (("t", 7.5, 12.5),)
    assert AFFINE.taken("t", 4, -1).steps == (("t", 2.5, 20.0),)
    assert AFFINE.without("t", 5).steps == ()
    assert AFFINE.renamed({"t": "v"}).steps == (("v", 2.5, 10.0),)


def test_an_axis_that_no_other_depends_on_is_dropped():
    cube = {"CTYPE3": "FREQ", "CRPIX3": 5.0, "CRVAL3": 1.4e9, "CDELT3": 1e6, "CUNIT3": "Hz", "PC3_3": 1.0}
    space = Wcs(("x", "y", "z"), wcs_cards(header(**ARCSEC, **cube, WCSAXES=3, CTYPE3A="VRAD")))
    image = space.without("z", 7)
    assert image == Wcs(("x", "y"), wcs_cards(header(**ARCSEC, WCSAXES=2)))
    spectrum = space.without("x", 3)  # the sky needs both of its pixels
    assert spectrum.axes == ("x", "y", "z")
    np.testing.assert_allclose(WCS(spectrum.cards()).all_pix2world([[0, 4, 5]], 0)[0][2], 1.401e9)
    first = Wcs(("f", "x"), wcs_cards(header(CTYPE1="FREQ", CTYPE2="LINEAR", PV2_1=3.0, CDELT2=4.0)))
    rest = first.without("f")
    assert (rest.axes, rest.cards()["CTYPE1"], rest.cards()["PV1_1"]) == (("x",), "LINEAR", 3.0)
    assert rest.cards()["CDELT1"] == 4.0 and not any("2" in key for key in rest.cards())
    coupled = Wcs(("f", "x"), wcs_cards(header(CTYPE1="FREQ", CTYPE2="LINEAR", CD1_2=1.0)))
    assert coupled.without("f").axes == ("f", "x")


def test_only_a_wcs_is_kept_of_a_header_and_what_cannot_be_is_named():
    table = header(**CD, CPDIS1="LOOKUP", **{"DP1.EXTVER": 1.0})
    assert lost_distortions(table) == ["CPDIS1"]
    assert wcs_cards(table) == wcs_cards(HEADERS["CD"])
    spectrum = header(CTYPE1="WAVE-TAB", CTYPE2="LINEAR", PS1_0="table")
    assert lost_distortions(spectrum) == ["CTYPE1"]
    assert "CTYPE1" not in wcs_cards(spectrum) and "PS1_0" not in wcs_cards(spectrum)
    assert wcs_cards(fits.Header({"OBJECT": "M 31", "EQUINOX": 2000.0})) == ""
