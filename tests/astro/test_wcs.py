"""WCS vocabulary: coarse grids against exact astropy, footprints, areas on the sky, and unusable headers."""

import pathlib
import warnings

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from support import headers

from mpiimg.astro.kernels.places import NODE_SPACING, cubic_tables
from mpiimg.astro.sky.tract import Tract
from mpiimg.astro.sky.wcs import edge, footprint, footprint_box, read_wcs, source_grid, to_pixels, to_sky
from mpiimg.errors import BadInput

DECAM = pathlib.Path(__file__).parents[3] / "shared" / "data" / "decam-testcase3"
CUTOUTS = sorted(DECAM.glob("*_ooi_*.fits"))

SENSORS = {"tan": headers.tan((4072, 4000), angle=33.0), "tpv": headers.decam(), "sip": headers.sip()}


def interpolated(grid, x, y):
    """Coordinates at target pixels x and y from a coarse grid: Lagrange's cubics, written anew."""
    out = []
    for nodes in (grid.x, grid.y):
        total = 0.0
        j, fx = np.divmod(x / NODE_SPACING, 1.0)
        i, fy = np.divmod(y / NODE_SPACING, 1.0)
        for n, wy in enumerate(lagrange(fy)):
            for m, wx in enumerate(lagrange(fx)):
                total += (
                    wy * wx * nodes[i.astype(int) + n - 1 - grid.row, j.astype(int) + m - 1 - grid.column]
                )
        out.append(total)
    return out


def lagrange(f):
    nodes = (-1, 0, 1, 2)
    return [np.prod([(f - m) / (n - m) for m in nodes if m != n], axis=0) for n in nodes]


def tract_of(wcs, shape):
    return Tract.around([footprint(wcs, shape)], pixel_scale=0.333, patch=500, border=50)


def grid_error(wcs, shape, box, seed=1):
    """Largest error of the coarse grid at random target pixels that lie in the source."""
    target = tract_of(wcs, shape).wcs
    box = box or footprint_box(wcs, shape, target)
    grid = source_grid(wcs, target, box, NODE_SPACING)
    rng = np.random.default_rng(seed)
    y, x = (rng.integers(*span, 4000).astype(float) for span in box)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = wcs.all_world2pix(*target.all_pix2world(x, y, 0), 0, tolerance=1e-11, maxiter=50, quiet=True)
    inside = (exact[0] > -1) & (exact[0] < shape[1]) & (exact[1] > -1) & (exact[1] < shape[0])
    assert inside.sum() > 500
    ours = interpolated(grid, x, y)
    return max(np.abs(a - b)[inside].max() for a, b in zip(ours, exact, strict=True))


@pytest.mark.parametrize("kind", SENSORS)
def test_coarse_grid_of_a_whole_sensor_is_good_to_a_millionth_of_a_pixel(kind):
    wcs = read_wcs(SENSORS[kind], kind)
    assert grid_error(wcs, (4072, 4000), None) < 1e-6


@pytest.mark.skipif(not CUTOUTS, reason=f"the real DECam cut-outs are not at {DECAM}")
@pytest.mark.parametrize("path", CUTOUTS, ids=lambda path: path.name)
def test_coarse_grid_of_real_headers(path):
    """The WCS of a real exposure, on its sensor's whole area around the cut-out."""
    header = fits.getheader(path, 1)
    assert header["CTYPE1"] == "RA---TPV" and "PV1_7" in header
    wcs = read_wcs(header, path.name)
    wcs.wcs.crpix += 1000
    assert grid_error(wcs, (2000, 2000), None) < 1e-6


UNNAMED_SIP = {"A_ORDER": 2, "A_2_0": 1e-6, "B_ORDER": 2, "B_0_2": 2e-6}

#: What makes a header one that wcslib cannot read alone, or one that it can; astropy knows all of them.
TWISTS = {
    "old TAN with PV": {"PV1_5": 1e-3, "PV2_5": 2e-3},
    "with WCSAXES": {"WCSAXES": 2},
    "as it is": {},
    "SIP that CTYPE does not name": UNNAMED_SIP,
}


@pytest.mark.parametrize("twist", TWISTS)
@pytest.mark.parametrize("kind", SENSORS)
def test_headers_are_read_as_astropy_reads_them(kind, twist):
    header = SENSORS[kind].copy()
    header.update(TWISTS[twist])
    x, y = np.random.default_rng(5).uniform(-100, 4100, (2, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = WCS(header)
    wcs = read_wcs(header, kind)
    assert np.array_equal(to_sky(wcs, x, y), theirs.all_pix2world(x, y, 0))
    assert np.array_equal(wcs.pixel_scale_matrix, theirs.pixel_scale_matrix)


def test_cubic_tables_are_lagranges():
    value, slope, corner = cubic_tables()
    f = np.arange(NODE_SPACING + 1) / NODE_SPACING
    np.testing.assert_allclose(value, lagrange(f), atol=1e-15)
    np.testing.assert_allclose(corner, lagrange(f - 0.5 / NODE_SPACING), atol=1e-15)
    # Slopes by a centred difference, which is off by h^2 / 6 times a third derivative of at most 3.
    h = 1e-4
    difference = (np.array(lagrange(f + h)) - np.array(lagrange(f - h))) / (2 * h)
    np.testing.assert_allclose(slope * NODE_SPACING, difference, atol=1e-7)


@pytest.mark.parametrize("kind", SENSORS)
def test_a_node_has_the_same_bits_in_all_boxes(kind):
    """Also where blocks reach beyond what the source's inversion finds."""
    wcs = read_wcs(SENSORS[kind], kind)
    target = tract_of(wcs, (4072, 4000)).wcs
    whole = source_grid(wcs, target, ((-700, 1500), (0, 1700)), NODE_SPACING)
    for box in (((0, 1), (0, 1)), ((-33, 700), (31, 1040)), ((511, 513), (5, 900)), ((1100, 1500), (65, 66))):
        part = source_grid(wcs, target, box, NODE_SPACING)
        assert (part.row, part.column) == tuple(start // NODE_SPACING - 1 for start, _ in box)
        i, j = part.row - whole.row, part.column - whole.column
        for some, all_ in ((part.x, whole.x), (part.y, whole.y)):
            same = all_[i : i + some.shape[0], j : j + some.shape[1]]
            assert some.tobytes() == np.ascontiguousarray(same).tobytes()


def test_a_place_without_pixels_is_nan():
    """The other side of the sky, and what a polynomial only folds back into the frame."""
    target = Tract(64.0, -12.0, (1, 1)).wcs
    for header in SENSORS.values():
        grid = source_grid(read_wcs(header, "here"), target, ((0, 100), (0, 100)), NODE_SPACING)
        if not np.isnan(grid.x).all():
            x, y = to_pixels(target, *to_sky(read_wcs(header, "here"), grid.x[1, 1], grid.y[1, 1]))
            assert abs(x) < 1e-5 and abs(y) < 1e-5
    opposite = source_grid(
        read_wcs(SENSORS["tan"], "here"), Tract(330.0, -2.2, (1, 1)).wcs, ((0, 9), (0, 9)), NODE_SPACING
    )
    assert np.isnan(opposite.x).all() and np.isnan(opposite.y).all()


def test_footprint_walks_around_the_frame():
    x, y = edge((300, 500), spacing=100)
    on_the_edge = np.isin(x, (-0.5, 499.5)) | np.isin(y, (-0.5, 299.5))
    assert on_the_edge.all() and len(x) == 2 * (3 + 5)
    assert {(-0.5, -0.5), (499.5, -0.5), (499.5, 299.5), (-0.5, 299.5)} <= set(zip(x, y, strict=True))
    # Counter-clockwise, closed by its first point: the area comes out positive.
    area = np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2
    assert area == pytest.approx(300 * 500)


@pytest.mark.parametrize("kind", SENSORS)
def test_sky_and_back(kind):
    wcs = read_wcs(SENSORS[kind], kind)
    x, y = np.meshgrid(np.linspace(0, 3999, 20), np.linspace(0, 4071, 21))
    back = to_pixels(wcs, *to_sky(wcs, x, y))
    np.testing.assert_allclose(back, (x, y), atol=2e-8)


@pytest.mark.parametrize("kind", SENSORS)
def test_footprint_box_holds_every_pixel_and_little_more(kind):
    wcs = read_wcs(SENSORS[kind], kind)
    target = tract_of(wcs, (4072, 4000)).wcs
    (y0, y1), (x0, x1) = footprint_box(wcs, (4072, 4000), target)
    fine = edge((4072, 4000), spacing=1.0)
    x, y = to_pixels(target, *to_sky(wcs, *fine))
    assert x0 <= x.min() < x0 + 3 and y0 <= y.min() < y0 + 3
    assert x1 - 4 < x.max() <= x1 - 1 and y1 - 4 < y.max() <= y1 - 1


def test_a_frame_on_the_other_side_of_the_sky_is_named():
    with pytest.raises(BadInput, match="other side of the sky"):
        footprint_box(read_wcs(SENSORS["tan"], "a"), (4072, 4000), Tract(330.0, -2.2, (1, 1)).wcs)


def changed(header, **cards):
    header = header.copy()
    for key, value in cards.items():
        if value is None:
            header.remove(key)
        else:
            header[key] = value
    return header


PLAIN = headers.tan((50, 40))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (changed(PLAIN, CTYPE1=None, CTYPE2=None), "has no WCS"),
        (changed(PLAIN, CTYPE1="LINEAR", CTYPE2="LINEAR"), "not celestial .LINEAR LINEAR."),
        (changed(PLAIN, CTYPE2=None), "WCS"),
        (changed(PLAIN, CD1_1=0.0, CD1_2=0.0), "singular"),
        (changed(headers.decam(), CD1_1=0.0, CD1_2=0.0), "singular"),
        (changed(PLAIN, CD1_1=1e-4, CD1_2=2e-4, CD2_1=1e-4, CD2_2=2e-4), "singular"),
        (changed(PLAIN, CD1_1=0.0, CD1_2=0.0, CD2_1=0.0, CD2_2=0.0), "singular"),
        (changed(PLAIN, CTYPE1="RA---XYZ", CTYPE2="DEC--XYZ"), "XYZ"),
        (changed(PLAIN, CTYPE2="DEC--SIN"), "unusable WCS"),
        (changed(PLAIN, CTYPE1="RA---SIN", CTYPE2="DEC--SIN", CRPIX1=1e9), "unusable WCS"),
        (changed(PLAIN, CRVAL1="nowhere"), "CRVAL1 is 'nowhere', no number"),
        (changed(PLAIN, CRPIX2=None), "CRPIX2 is missing"),
        (changed(PLAIN, CD1_1=None, CD1_2=None), "neither CD1_1, CD1_2 nor CDELT1"),
    ],
)
def test_unusable_headers_are_one_clear_line(header, message):
    with pytest.raises(BadInput, match=message) as caught:
        read_wcs(header, "night.fits[3]")
    line = str(caught.value)
    assert line.startswith("night.fits[3]: ") and "\n" not in line and len(line) < 160


def _header(ctypes, crvals, **cards):
    header = fits.Header()
    for axis, (kind, value) in enumerate(zip(ctypes, crvals, strict=True), 1):
        header[f"CTYPE{axis}"], header[f"CRVAL{axis}"] = kind, value
        header[f"CRPIX{axis}"], header[f"CUNIT{axis}"] = 50.0, "deg"
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -7e-5, 1e-6, 1e-6, 7e-5
    header.update(cards)
    return header


RADEC = ("RA---TAN", "DEC--TAN")


@pytest.mark.parametrize(
    "header",
    [
        _header(RADEC, (150.0, 2.0), RADESYS="FK4", EQUINOX=1950.0),
        _header(RADEC, (150.0, 2.0), EPOCH=1950.0),
        _header(RADEC, (150.0, 2.0), EQUINOX=1975.0),
        _header(RADEC, (150.0, 2.0), RADESYS="FK5", EQUINOX=1990.0),
        _header(RADEC, (150.0, 2.0), RADESYS="FK5", EQUINOX=2000.0),
        _header(("GLON-TAN", "GLAT-TAN"), (236.0, 42.0)),
        _header(("DEC--TAN", "RA---TAN"), (2.0, 150.0)),
        _header(("GLAT-TAN", "GLON-TAN"), (42.0, 236.0)),
    ],
)
def test_other_frames_are_converted_as_astropy_does(header):
    x, y = np.random.default_rng(0).uniform(0, 100, (2, 50))
    wcs = read_wcs(header, "a.fits")
    ra, dec = to_sky(wcs, x, y)
    truth = WCS(header).pixel_to_world(x, y).icrs
    assert SkyCoord(ra, dec, unit="deg").separation(truth).mas.max() < 1e-3
    back = to_pixels(wcs, ra, dec)
    assert np.abs(np.array(back) - (x, y)).max() < 1e-4
    # All of a frame in any other's coordinates has a place in a tract's, or it would be left out in silence.
    tract = read_wcs(_header(RADEC, (ra[0], dec[0]), RADESYS="ICRS"), "tract")
    assert np.isfinite(source_grid(wcs, tract, ((0, 30), (0, 30)), 8).x).all()


def test_ecliptic_longitudes():
    """At longitude 90 the ecliptic is as far north as its obliquity, 23.439 degrees."""
    wcs = read_wcs(_header(("ELON-TAN", "ELAT-TAN"), (90.0, 0.0)), "a.fits")
    ra, dec = to_sky(wcs, np.array([49.0]), np.array([49.0]))
    assert ra[0] == pytest.approx(90.0, abs=1e-4) and dec[0] == pytest.approx(23.4393, abs=1e-4)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (_header(("TLON-TAN", "TLAT-TAN"), (150.0, 2.0)), "CTYPE says longitudes of the kind TLON"),
        (_header(RADEC, (150.0, 2.0), RADESYS="GAPPT"), "RADESYS is GAPPT"),
    ],
)
def test_a_frame_that_cannot_be_converted_is_refused(header, said):
    with pytest.raises(BadInput, match=said):
        read_wcs(header, "a.fits")


def test_old_matrices_turn_the_frame():
    """PC001001 and the like, as AIPS wrote them."""
    header = _header(RADEC, (150.0, 2.0))
    for card in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        del header[card]
    header["CDELT1"], header["CDELT2"] = -7e-5, 7e-5
    turned = {"PC001001": 0.8, "PC001002": -0.6, "PC002001": 0.6, "PC002002": 0.8}
    header.update(turned)
    expected = np.diag([-7e-5, 7e-5]) @ [[0.8, -0.6], [0.6, 0.8]]
    np.testing.assert_allclose(read_wcs(header, "a.fits").pixel_scale_matrix, expected, atol=1e-12)
