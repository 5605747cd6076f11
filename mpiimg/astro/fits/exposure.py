"""An exposure: one image of one sensor with its variance and mask, wherever these lie.

They may be extensions of a file, the three files of a DECam Community Pipeline triplet, or a single image
whose variance is modelled from gain and read noise. :mod:`mpiimg.astro.fits.search` finds exposures by
their headers; :func:`read_exposure` reads the pixels of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.astro.fits import maskplanes
from mpiimg.astro.fits.reading import Plane, read_pixels
from mpiimg.errors import BadInput

#: Pixels, at most, that the filling of those without data is estimated from.
_SAMPLE = 1 << 16

#: Counts and their variance beyond which a pixel holds no data: sums of squares leave the range of float32.
MAX_COUNT, MAX_VARIANCE = 1e15, 1e30

#: Share of pixels that a mask whose bits have no known meaning may take away.
MAX_UNKNOWN = 0.05

#: Pixels with any of these hold no signal.
_USELESS = maskplanes.bits("BAD", "SAT", "NO_DATA")


@dataclass(frozen=True)
class ExposureRef:
    """An exposure on disk: what its headers say, and where its pixels lie.

    Parameters
    ----------
    name : str
        Unique in a list: the file's stem, with the sensor where a file has several.
    kind : str
        "planes" (extensions of a file), "triplet" (DECam ooi, oow, ood) or "single".
    image, variance, mask : Plane
        Their places; None for the last two of a single image.
    variance_is : str
        "variance", "error" (its root), "weight" (its inverse), or "model".
    mask_is : str
        "planes" (by name, see `planes`), "codes" or "bits" (by value, see `meanings`), "any" (what is not
        zero is bad), or "none".
    planes : tuple of (str, int)
        (name, bit number) of the planes of the mask.
    meanings : tuple of (int, str)
        The plane of ours that each bit or code of the mask stands for, "" for none.
    unlisted : str
        That of all other bits and codes.
    scale : float
        What pixels are multiplied by when they are read: they are in nanojansky then, where the file has
        them per solid angle. All facts here are those of pixels that have been.
    shape : (int, int)
        Rows and columns.
    band, visit, sensor : str
        What tells an exposure from others; the band is its filter.
    gain : float, optional
        Electrons per unit of the image, which is 1 where BUNIT says electrons; None if unknown.
    readnoise : float, optional
        Electrons; None if unknown.
    saturate : float, optional
        In the unit of the image; None if unknown.
    magzero : float, optional
        Magnitude of one unit of the image; None if unknown.
    exptime : float, optional
        Seconds; None if unknown.
    mjd : float, optional
        Start of the exposure; None if unknown.
    fwhm : float, optional
        Of its stars, in pixels, where our own calibration has measured it.
    cards : tuple of (str, object)
        (keyword, value) of `CARDS`, as far as there.
    wcs : str
        Header text of the celestial coordinates, for :func:`mpiimg.astro.sky.wcs.parse_wcs`.
    history : tuple of str
        What tools of ours have done to it already, lines of HISTORY.
    identity : tuple of (int, int, int)
        (size, mtime_ns, CRC32 of the headers used) of each file, which enters the provenance.
    verify : bool
        Whether the DATASUM of its planes is looked at when they are read.
    distinguish : tuple of (str, str)
        Cards, and what they say, by which two exposures that share a visit are told apart.
    notes : tuple of str
        What is said of it though it can be used.
    """

    name: str
    kind: str
    image: Plane
    variance: Plane | None
    mask: Plane | None
    variance_is: str
    mask_is: str
    planes: tuple[tuple[str, int], ...]
    shape: tuple[int, int]
    band: str
    visit: str
    sensor: str
    gain: float | None
    readnoise: float | None
    saturate: float | None
    magzero: float | None
    exptime: float | None
    mjd: float | None
    cards: tuple[tuple[str, object], ...]
    wcs: str
    history: tuple[str, ...]
    identity: tuple[tuple[int, int, int], ...]
    meanings: tuple[tuple[int, str], ...] = ()
    unlisted: str = "SUSPECT"
    scale: float = 1.0
    verify: bool = True
    distinguish: tuple[tuple[str, str], ...] = ()
    fwhm: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(plane.path for plane in (self.image, self.variance, self.mask) if plane))

    @property
    def nbytes(self) -> int:
        """Bytes that :func:`read_exposure` returns."""
        return 12 * self.shape[0] * self.shape[1]


@dataclass(frozen=True, eq=False)
class Exposure:
    """The pixels of an exposure, C-contiguous, in the machine's byte order.

    Parameters
    ----------
    ref : ExposureRef
        What its headers say.
    image : (ny, nx) float32
    variance : (ny, nx) float32
        In the squared unit of the image; positive.
    mask : (ny, nx) int32
        Bits of :data:`maskplanes.MASK_PLANES`.
    """

    ref: ExposureRef
    image: np.ndarray
    variance: np.ndarray
    mask: np.ndarray


def survey_order(ref) -> tuple:
    """Return what sorts exposures, or anything that has their facts: by band, visit, sensor and name."""
    return ref.band, _natural(ref.visit), _natural(ref.sensor), ref.name


def _natural(text: str) -> tuple:
    """Return what sorts 9 before 10, and numbers before words."""
    return (0, int(text), text) if text.isdecimal() else (1, 0, text)


def read_exposure(ref: ExposureRef) -> Exposure:
    """Read the pixels of an exposure.

    NaN, infinity and numbers beyond MAX_COUNT or MAX_VARIANCE, a variance or
    an error that is not positive, and an inverse variance that is not
    positive are NO_DATA. Such pixels take the
    median of the image and of the variance (of a fixed sample), so that
    filters meet no NaN and no cliff there: only the mask tells.

    A single image has the variance max(image, 0) / gain + (readnoise / gain)^2,
    and its pixels from SATURATE on are SAT.

    Raises
    ------
    BadInput
        A file has gone, is truncated or corrupt, fails its checksum, or holds no pixel that can be used.
    """
    with np.errstate(all="ignore"):
        image = read_pixels(ref.image, ref.shape, ref.verify).astype(np.float32, copy=False)
    mask = _our_mask(ref, image)
    if ref.scale != 1:
        image *= np.float32(ref.scale)
    if ref.variance is None:
        with np.errstate(all="ignore"):
            variance = np.maximum(image, np.float32(0))
            variance /= np.float32(ref.gain)
            variance += np.float32((ref.readnoise / ref.gain) ** 2)
    else:
        variance = _our_variance(read_pixels(ref.variance, ref.shape, ref.verify), ref.variance_is)
        if ref.scale != 1:
            variance *= np.float32(ref.scale * ref.scale)
    # No number compares as true.
    empty = ~((np.abs(image) <= MAX_COUNT) & (variance > 0) & (variance <= MAX_VARIANCE))
    if empty.any():
        mask[empty] |= maskplanes.bits("NO_DATA")
    useful = (mask & _USELESS) == 0
    if not useful.any():
        raise BadInput(
            f"{ref.image.path}: {ref.name} has no pixel that can be used: all are masked, saturated or NaN"
        )
    if empty.any():
        image[empty] = _typical(image, useful)
        variance[empty] = _typical(variance, useful)
    return Exposure(ref, image, variance, mask)


def _our_variance(values: np.ndarray, convention: str) -> np.ndarray:
    """Turn what a variance plane holds into a variance, float32; not positive or not finite: no data."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    if convention == "variance":
        return values
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if convention == "weight":
            return np.divide(np.float32(1), values, out=values)
        # The square of a negative error would look like a variance.
        return np.multiply(values, np.abs(values), out=values)


def _our_mask(ref: ExposureRef, image: np.ndarray) -> np.ndarray:
    """Return the mask of an exposure with our bits, int32."""
    if ref.mask is None:
        mask = np.zeros(ref.shape, np.int32)
        if ref.saturate is not None:
            mask[image >= np.float32(ref.saturate)] = maskplanes.bits("SAT")
        return mask
    values = read_pixels(ref.mask, ref.shape, ref.verify)
    if values.dtype.kind not in "iu":
        # IRAF writes masks as floats at times; a NaN is no good pixel.
        values = np.where(np.isfinite(values), values, 1).astype(np.int64)
    if ref.mask_is == "planes":
        return maskplanes.remap(values, dict(ref.planes))
    if ref.mask_is == "any":
        _refuse_unknown(ref, values, np.isfinite(image))
        return maskplanes.any_bad(values)
    turn = maskplanes.from_codes if ref.mask_is == "codes" else maskplanes.from_bits
    return turn(values, dict(ref.meanings), ref.unlisted)


def _refuse_unknown(ref: ExposureRef, values: np.ndarray, has_data: np.ndarray) -> None:
    """Refuse a mask of unknown meaning that would take much of the image away: most of it may well be good.

    Raises
    ------
    BadInput
        It would take more than MAX_UNKNOWN of the pixels with data.
    """
    share = np.count_nonzero((values != 0) & has_data) / max(np.count_nonzero(has_data), 1)
    if share <= MAX_UNKNOWN:
        return
    counts = ", ".join(
        f"{bit}: {100 * n / values.size:.2g} %" for bit, n in maskplanes.count_bits(values).items()
    )
    raise BadInput(
        f"{ref.mask.path}: {100 * share:.0f} % of the pixels have a bit in the mask, and no instrument says "
        f"what the bits mean ({counts}): name those that make a pixel bad with --bad-bits, or give "
        "--instrument"
    )


def _typical(values: np.ndarray, useful: np.ndarray) -> np.float32:
    """Return the median of the useful pixels in a regular sample, or of all of them where it has none."""
    step = max(1, values.size // _SAMPLE)
    sample = values.reshape(-1)[::step][useful.reshape(-1)[::step]]
    return np.float32(np.median(sample if sample.size else values[useful]))
