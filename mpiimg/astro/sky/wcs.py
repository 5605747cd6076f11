"""Where pixels lie on the sky, by astropy.wcs: checked headers, footprints, coarse grids for the warp.

Pixel coordinates are 0-based with centres at integers; a frame reaches from -0.5 to n - 0.5. Sky coordinates
are right ascension and declination, degrees, ICRS: what a WCS has in another frame, such as FK4, FK5 of any
equinox, galactic or ecliptic longitude, is converted. TAN, TAN-SIP and TPV, and whatever else astropy knows,
work alike, with the axes in either order.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpiimg.engine.boxes import Box
from mpiimg.engine.containment import ends_run
from mpiimg.errors import BadInput

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

#: Side of the blocks, in nodes, in which coarse grids are computed.
BLOCK_NODES = 16

#: Pixels by which a node may miss itself on the way to the source and back.
ROUND_TRIP = 1e-6

#: Likewise where the source is in another frame than ICRS: to FK4 and back is not exact.
ROUND_TRIP_CONVERTED = 1e-3

#: Pixels between two points of a frame's edge.
EDGE_SPACING = 256.0

ARCSEC = 3600.0

#: Cards that make up a celestial coordinate system.
_WCS_CARD = re.compile(
    r"C(TYPE|RVAL|RPIX|UNIT|DELT|ROTA)[12]|(CD|PC)([12]_[12]|00[12]00[12])|P[VS][12]_\d+|LONPOLE|LATPOLE"
    r"|RADESYS|RADECSYS|EQUINOX|EPOCH|[AB]P?_(ORDER|DMAX|\d_\d)"
)

#: Those of them that hold a number whose lack would go unnoticed.
_NUMBER_CARD = re.compile(
    r"C(DELT|ROTA)[12]|(CD|PC)([12]_[12]|00[12]00[12])|PV[12]_\d+|LONPOLE|LATPOLE|[AB]P?_(ORDER|DMAX|\d_\d)"
)

_KIND = re.compile(r"^CTYPE[12] *= '(?:RA---|DEC--)(TAN|TPV) *'", re.M)


class CoarseGrid(NamedTuple):
    """Source coordinates at every `step`-th target pixel, for the warp kernel.

    x, y : (rows, columns) float64; NaN where the sky has no place in the source
    row, column : element (0, 0) belongs to target pixel (row * step, column * step)
    """

    x: np.ndarray
    y: np.ndarray
    row: int
    column: int


def wcs_text(header: Header) -> str:
    """Return the cards of a header that make up celestial coordinates as text, one per line."""
    # As they are written: to read each value and write it again takes ten times as long.
    cards = {card.keyword: str(card) for card in header.cards if _WCS_CARD.fullmatch(card.keyword)}
    return "\n".join(cards.values())


def parse_wcs(text: str) -> WCS:
    """Return the WCS that the text of :func:`wcs_text` describes."""
    from astropy.io.fits import Header
    from astropy.wcs import WCS, Wcsprm

    with warnings.catch_warnings():
        # That an old keyword has been read as its successor is no news for whoever runs a pipeline.
        warnings.simplefilter("ignore")
        if not _is_plain(text):
            return WCS(Header.fromstring(text, sep="\n"))
        # What follows is all that astropy does there, which first looks for SIP and tables in four copies of
        # the header: ten times as fast, and a survey has thousands.
        wcs = WCS(naxis=2)
        wcs.wcs = Wcsprm(
            header="".join(line.ljust(80) for line in text.splitlines()).encode("ascii"), key=" ", relax=True
        )
        wcs.fix()
        wcs.wcs.set()
        return wcs


def _is_plain(text: str) -> bool:
    """Say whether wcslib does it alone; astropy adds SIP, and takes the PV of old TAN headers for TPV."""
    tpv, tan = ["TPV", "TPV"], ["TAN", "TAN"]
    kinds = _KIND.findall(text)
    distorted = re.search(r"^[AB]P?_", text, re.M)
    return not distorted and (kinds == tpv or (kinds == tan and not re.search("^PV", text, re.M)))


def read_wcs(header: Header, where: str) -> WCS:
    """Return the celestial WCS of an image's header, having checked that it works."""
    return parse_wcs(checked_text(header, where))


def checked_text(header: Header, where: str) -> str:
    """Return the text of the celestial WCS of an image's header, having checked that it works.

    Parameters
    ----------
    header : astropy.io.fits.Header
    where : str
        File and extension, for messages.

    Raises
    ------
    BadInput
        If there is no celestial WCS, or none to compute with: a missing card, a singular matrix, an unknown
        projection, a distortion that lies in tables or text.
    """
    ctypes = " ".join(str(header.get(f"CTYPE{axis}", "")) for axis in (1, 2)).strip()
    tables = [key for key in header if key.startswith(("CPDIS", "D2IMDIS"))]
    if tables or re.search("TNX|ZPX", ctypes):
        what = tables[0] if tables else ctypes
        raise BadInput(f"{where}: distortions as {what} has them are not supported; use TAN, SIP or TPV")
    if not ctypes:
        raise BadInput(f"{where}: has no WCS (no CTYPE1 and CTYPE2); solve its astrometry first")
    try:
        text = wcs_text(header)
        wcs = parse_wcs(text)
        if not wcs.has_celestial:
            raise BadInput(
                f"{where}: its WCS is not celestial ({ctypes}); give an image with RA and Dec axes"
            )
        _check_cards(header, where)
        _check_numbers(header, where)
        corner = np.array(to_sky(wcs, np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])))
        matrix = wcs.pixel_scale_matrix
    except BadInput:
        raise
    # What a header may make of the work on it is any error: astropy takes its cards as they come.
    except Exception as error:
        if ends_run(error) and not isinstance(error, MemoryError):
            raise
        reason = " ".join(str(error).split("\n")[1:2] or [str(error)])
        raise BadInput(f"{where}: unusable WCS: {reason.strip().rstrip('.')}") from None
    independent = np.abs(np.linalg.det(matrix)) > 1e-6 * np.square(matrix).sum()
    if not independent or not np.isfinite(corner).all():
        raise BadInput(f"{where}: unusable WCS: singular or without numbers (check CD, CDELT, CRVAL, CRPIX)")
    return text


def _check_cards(header, where):
    """Refuse what astropy takes for its default: a missing or mistyped card of a celestial axis."""
    for axis in (1, 2):
        for key in (f"CRVAL{axis}", f"CRPIX{axis}"):
            value = header.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                told = "is missing" if value is None else f"is {value!r}, no number"
                raise BadInput(f"{where}: unusable WCS: {key} {told}")
        unit = header.get(f"CUNIT{axis}", "")
        if not isinstance(unit, str):
            raise BadInput(f"{where}: unusable WCS: CUNIT{axis} is {unit!r}, no unit")
        scales = (f"CD{axis}_1", f"CD{axis}_2", f"CDELT{axis}", f"CD00{axis}001", f"CD00{axis}002")
        if not any(key in header for key in scales):
            raise BadInput(f"{where}: unusable WCS: neither {scales[0]}, {scales[1]} nor {scales[2]}")
        # wcslib takes a row of zeros for none, and a pixel for a degree.
        if not any(header.get(key) for key in scales):
            raise BadInput(
                f"{where}: unusable WCS: singular: {scales[0]} and {scales[1]}, or {scales[2]}, are 0"
            )


def _check_numbers(header, where):
    """Refuse cards that hold no number, which wcslib takes for missing."""
    for card in header.cards:
        if _NUMBER_CARD.fullmatch(card.keyword):
            value = card.value
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise BadInput(f"{where}: unusable WCS: {card.keyword} is {value!r}, no number")


def to_sky(wcs: WCS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return right ascension and declination (degrees, ICRS) of pixels; NaN beyond the projection."""
    world = wcs.all_pix2world(np.ravel(x), np.ravel(y), 0)
    frame = sky_frame(wcs)
    ra, dec = world[wcs.wcs.lng], world[wcs.wcs.lat]
    if frame is not None:
        ra, dec = _converted(ra, dec, frame, to_icrs=True)
    return ra.reshape(np.shape(x)), dec.reshape(np.shape(x))


def to_pixels(wcs: WCS, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates of places on the sky (ICRS); NaN where there are none, or none are found."""
    frame, shape = sky_frame(wcs), np.shape(ra)
    longitude, latitude = np.ravel(ra), np.ravel(dec)
    if frame is not None:
        longitude, latitude = _converted(longitude, latitude, frame, to_icrs=False)
    world = (longitude, latitude) if wcs.wcs.lng < wcs.wcs.lat else (latitude, longitude)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        # SIP is inverted by iteration: to 1e-10 pixel, near what degrees in float64 hold, or not at all.
        x, y = wcs.all_world2pix(*world, 0, tolerance=1e-10, maxiter=40, adaptive=True, quiet=True)
    return x.reshape(shape), y.reshape(shape)


def pixel_size(wcs: WCS, x: float, y: float) -> float:
    """Return the root of the area on the sky of the pixel at (x, y), arcseconds; NaN where it has none."""
    ends = directions(*to_sky(wcs, x + np.array([0.5, -0.5, 0.0, 0.0]), y + np.array([0.0, 0.0, 0.5, -0.5])))
    normal = np.cross(ends[:, 0] - ends[:, 1], ends[:, 2] - ends[:, 3])
    return math.sqrt(float(np.linalg.norm(normal))) * math.degrees(1.0) * ARCSEC


def middle_pixel(wcs: WCS, shape: tuple[int, int]) -> float:
    """Return the :func:`pixel_size` in the middle of a frame of (ny, nx) pixels."""
    return pixel_size(wcs, (shape[1] - 1) / 2, (shape[0] - 1) / 2)


def shrinkage(source: WCS, shape: tuple[int, int], target: WCS) -> float:
    """Return how many times wider the target's pixels are than a frame's in its middle, to a hundredth.

    It is the same whatever part of a frame of (ny, nx) pixels is looked at; 1 where its middle has no place
    in the target.
    """
    place = to_pixels(target, *to_sky(source, (shape[1] - 1) / 2, (shape[0] - 1) / 2))
    ratio = pixel_size(target, *map(float, place)) / middle_pixel(source, shape)
    return round(ratio, 2) if math.isfinite(ratio) else 1.0


# --- Frames of the sky --------------------------------------------------------------------------------------


def sky_frame(wcs: WCS):
    """Return the frame of a WCS as astropy has it; None for ICRS, whose places need no conversion.

    Raises
    ------
    ValueError
        It is one that is not known here.
    """
    parameters = wcs.wcs
    kind, system, equinox = parameters.lngtyp.strip(), parameters.radesys.strip(), parameters.equinox
    return _frame(kind, system, None if np.isnan(equinox) else float(equinox))


@functools.cache
def _frame(kind: str, system: str, equinox: float | None):
    """Return the frame that a kind of longitude, RADESYS and EQUINOX name, by the standard's defaults."""
    from astropy import coordinates

    if kind == "GLON":
        return coordinates.Galactic()
    if kind == "SLON":
        return coordinates.Supergalactic()
    if kind == "ELON":
        return coordinates.BarycentricMeanEcliptic(equinox=f"J{2000.0 if equinox is None else equinox}")
    if kind != "RA":
        raise ValueError(
            f"CTYPE says longitudes of the kind {kind}, which cannot be converted to right ascension"
        )
    if not system:
        system = "ICRS" if equinox is None else "FK4" if equinox < 1984 else "FK5"
    if system == "ICRS":
        return None
    if system in ("FK4", "FK4-NO-E"):
        old = coordinates.FK4 if system == "FK4" else coordinates.FK4NoETerms
        return old(equinox=f"B{1950.0 if equinox is None else equinox}")
    if system == "FK5":
        return coordinates.FK5(equinox=f"J{2000.0 if equinox is None else equinox}")
    raise ValueError(f"RADESYS is {system}, whose places cannot be converted to ICRS")


def _converted(longitude: np.ndarray, latitude: np.ndarray, frame, to_icrs: bool):
    """Convert places (degrees) from a frame to ICRS, or back; NaN stay NaN."""
    from astropy import units
    from astropy.coordinates import ICRS, SkyCoord

    source, target = (frame, ICRS()) if to_icrs else (ICRS(), frame)
    there = np.isfinite(longitude) & np.isfinite(latitude)
    places = SkyCoord(longitude[there] * units.deg, latitude[there] * units.deg, frame=source)
    found = places.transform_to(target).spherical
    out = np.full((2, longitude.size), np.nan)
    out[:, there] = found.lon.wrap_at(360 * units.deg).deg, found.lat.deg
    return out[0], out[1]


# --- Frames -------------------------------------------------------------------------------------------------


def edge(shape: tuple[int, int], spacing: float = EDGE_SPACING) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of a walk around a frame of (ny, nx) pixels: its corners, and points between them."""
    ny, nx = shape
    across = np.linspace(-0.5, nx - 0.5, max(int(np.ceil(nx / spacing)), 1) + 1)[:-1]
    up = np.linspace(-0.5, ny - 0.5, max(int(np.ceil(ny / spacing)), 1) + 1)[:-1]
    x = [across, np.full(len(up), nx - 0.5), nx - 1.0 - across, np.full(len(up), -0.5)]
    y = [np.full(len(across), -0.5), up, np.full(len(across), ny - 0.5), ny - 1.0 - up]
    return np.concatenate(x), np.concatenate(y)


def footprint(
    wcs: WCS, shape: tuple[int, int], spacing: float = EDGE_SPACING
) -> tuple[np.ndarray, np.ndarray]:
    """Return right ascension and declination (degrees) around a frame: corners and edge points, in order."""
    return to_sky(wcs, *edge(shape, spacing))


def footprint_box(source: WCS, shape: tuple[int, int], target: WCS, margin: int = 1) -> Box:
    """Return the box ((y0, y1), (x0, x1)) of target pixels that a source frame of (ny, nx) pixels can reach.

    Raises
    ------
    BadInput
        If no point of the frame's edge has a place in the target.
    """
    x, y = to_pixels(target, *footprint(source, shape))
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        raise BadInput(
            "the frame lies on the other side of the sky from the tract; check its WCS and the tract"
        )
    return tuple(
        (int(np.floor(values[finite].min())) - margin, int(np.ceil(values[finite].max())) + margin + 1)
        for values in (y, x)
    )


def directions(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Return unit vectors, (3, ...), of places on the sky (degrees)."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


# --- Coarse grids -------------------------------------------------------------------------------------------


def source_grid(source: WCS, target: WCS, box: Box, step: int) -> CoarseGrid:
    """Return where target pixels lie in the source, at the nodes that the warp of `box` needs.

    Nodes are the target pixels whose numbers are multiples of `step`: from one before to two after those of
    the box. They are computed in fixed blocks, whatever the box, so that a node has the same bits in all
    boxes: an inversion by iteration ends when all points that it was given are good.

    Parameters
    ----------
    source, target : astropy.wcs.WCS
    box : ((y0, y1), (x0, x1))
        Target pixels, half open.
    step : int
        Target pixels between nodes.
    """
    spans = [(start // step - 1, (stop - 1) // step + 3) for start, stop in box]
    tiles = [range(first // BLOCK_NODES, (end - 1) // BLOCK_NODES + 1) for first, end in spans]
    rows = [[_block(source, target, i, j, step) for j in tiles[1]] for i in tiles[0]]
    inner = tuple(
        slice(first - BLOCK_NODES * tile[0], end - BLOCK_NODES * tile[0])
        for (first, end), tile in zip(spans, tiles, strict=True)
    )
    x, y = (np.block([[block[n] for block in row] for row in rows])[inner] for n in (0, 1))
    return CoarseGrid(np.ascontiguousarray(x), np.ascontiguousarray(y), spans[0][0], spans[1][0])


def _block(source, target, i, j, step):
    """Return x and y in the source at the nodes of a block; NaN where the way back leads elsewhere."""
    target_y, target_x = (step * (BLOCK_NODES * n + np.arange(BLOCK_NODES, dtype=float)) for n in (i, j))
    target_x, target_y = np.meshgrid(target_x, target_y)
    ra, dec = to_sky(target, target_x, target_y)
    x, y = to_pixels(source, ra, dec)
    with np.errstate(all="ignore"):
        back_x, back_y = to_pixels(target, *to_sky(source, x, y))
        # No number compares as true.
        limit = ROUND_TRIP if sky_frame(source) is None else ROUND_TRIP_CONVERTED
        same = (np.abs(back_x - target_x) < limit) & (np.abs(back_y - target_y) < limit)
    return np.where(same, x, np.nan), np.where(same, y, np.nan)
