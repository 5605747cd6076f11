"""Tracts and patches: the pixels that exposures are brought onto, laid out as in LSST's skymap.

A tract is a field of pixels in one tangential projection (TAN), north up and east left. Patches tile it with
their inner boxes and overlap by a border; what they share has the same pixels. Pixel numbers are those of the
tract, 0-based, and boxes ((y0, y1), (x0, x1)) half open; a patch is named by its column and row, (x, y).
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiimg.astro.sky.wcs import ARCSEC, directions, footprint, to_pixels
from mpiimg.engine.boxes import Box
from mpiimg.errors import BadInput

if TYPE_CHECKING:
    from astropy.wcs import WCS

#: Degrees from a tract's centre to its furthest exposure, at most: a TAN pixel there covers 0.8 of its area.
MAX_DEGREES = 20.0

#: Pixels along a side of a tract, at most: numbers of pixels are 32-bit integers in files.
MAX_PIXELS = 2**31 - 1

#: Patches that one exposure reaches, at most.
MAX_TOUCHED = 100_000

#: Decimals of a derived centre in degrees: the last one is 4 milliarcseconds.
CENTER_DECIMALS = 6


@dataclass(frozen=True)
class Tract:
    """A field of patches.

    Parameters
    ----------
    ra, dec : float
        Degrees (ICRS), the centre of the field and of its projection.
    shape : (int, int)
        Patches along x and along y.
    pixel_scale : float
        Arcseconds.
    patch : int
        Side of a patch's inner box, in pixels.
    border : int
        Pixels that its outer box has more on each side.
    """

    ra: float
    dec: float
    shape: tuple[int, int]
    pixel_scale: float = 0.333
    patch: int = 2000
    border: int = 100

    def __post_init__(self):
        if not (math.isfinite(self.ra) and -90 <= self.dec <= 90):
            raise BadInput(f"tract: no such centre: RA {self.ra}, Dec {self.dec} (degrees)")
        if not 0 < self.pixel_scale < math.inf:
            raise BadInput(f"tract: pixel scale {self.pixel_scale} arcsec: must be positive")
        if min(self.shape) < 1 or self.patch < 1 or self.border < 0:
            raise BadInput(
                f"tract: {self.shape[0]} x {self.shape[1]} patches of {self.patch} pixels with a border of "
                f"{self.border}: patches must be positive, the border not negative"
            )
        if max(self.pixels) + 2 * self.border > MAX_PIXELS:
            raise BadInput(
                f"tract: {self.pixels[1]} x {self.pixels[0]} pixels of {self.pixel_scale:g} arcsec: at most "
                f"{MAX_PIXELS} a side; check the pixel scale and the size of patches"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process makes the same tract of: a pickled WCS has lost the last bits."""
        return {name: value for name, value in vars(self).items() if name != "wcs"}

    @property
    def pixels(self) -> tuple[int, int]:
        """Pixels along y and along x."""
        return self.shape[1] * self.patch, self.shape[0] * self.patch

    def __contains__(self, patch: tuple[int, int]) -> bool:
        return all(0 <= one < count for one, count in zip(patch, self.shape, strict=True))

    def order(self, patch: tuple[int, int]) -> int:
        """Return the place of a patch among all patches."""
        return patch[1] * self.shape[0] + patch[0]

    @property
    def patches(self) -> list[tuple[int, int]]:
        """All patches (x, y) in their order: row by row from the lowest."""
        return [(x, y) for y in range(self.shape[1]) for x in range(self.shape[0])]

    def inner(self, patch: tuple[int, int]) -> Box:
        """Return the box that belongs to a patch alone."""
        x, y = patch
        return (y * self.patch, (y + 1) * self.patch), (x * self.patch, (x + 1) * self.patch)

    def outer(self, patch: tuple[int, int]) -> Box:
        """Return the inner box of a patch with its border, clipped to the tract."""
        return tuple(
            (max(start - self.border, 0), min(stop + self.border, size))
            for (start, stop), size in zip(self.inner(patch), self.pixels, strict=True)
        )

    @functools.cached_property
    def wcs(self) -> WCS:
        """The tract's WCS, in tract pixels."""
        return self.wcs_of(((0, self.pixels[0]), (0, self.pixels[1])))

    def wcs_of(self, box: Box) -> WCS:
        """Return the WCS of an image that holds the pixels of `box`."""
        from astropy.wcs import WCS

        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.radesys = "ICRS"
        wcs.wcs.crval = [self.ra, self.dec]
        # The centre of the tract's outermost edges; FITS counts pixels from 1.
        height, width = self.pixels
        wcs.wcs.crpix = [(width + 1) / 2 - box[1][0], (height + 1) / 2 - box[0][0]]
        wcs.wcs.cdelt = [-self.pixel_scale / ARCSEC, self.pixel_scale / ARCSEC]
        wcs.array_shape = tuple(stop - start for start, stop in box)
        wcs.wcs.set()
        return wcs

    def touched(self, wcs: WCS, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the patches whose outer boxes a frame of (ny, nx) pixels reaches into, in patch order.

        The frame is the polygon of its four corners and of points along its edges.
        """
        return self.touched_by(*to_pixels(self.wcs, *footprint(wcs, shape)))

    def touched_by(self, x: np.ndarray, y: np.ndarray) -> list[tuple[int, int]]:
        """Return the patches whose outer boxes a polygon in tract pixels reaches into, in patch order."""
        finite = np.isfinite(x) & np.isfinite(y)
        polygon = np.stack([x[finite], y[finite]], axis=1)
        if not len(polygon):
            return []
        spans = []
        for low, high, count in zip(polygon.min(axis=0), polygon.max(axis=0), self.shape, strict=True):
            first = math.floor((low + 0.5 - self.border) / self.patch)
            last = math.floor((high + 0.5 + self.border) / self.patch)
            spans.append(range(max(first, 0), min(last + 1, count)))
        if len(spans[0]) * len(spans[1]) > MAX_TOUCHED:
            raise BadInput(
                f"reaches {len(spans[0]) * len(spans[1])} patches of {self.patch} pixels; check its WCS, or "
                "give a larger --patch"
            )
        near = [(i, j) for j in spans[1] for i in spans[0]]
        return [patch for patch in near if _meets(polygon, self.outer(patch))]

    def to_toml(self) -> str:
        """Return the tract as text that :meth:`from_toml` reads back unchanged."""
        return (
            "# The pixels of a coadd: give this file as --tract to use the same ones again.\n"
            "[tract]\n"
            'projection = "TAN"\n'
            f"center = [{float(self.ra)!r}, {float(self.dec)!r}]  # RA, Dec in degrees (ICRS)\n"
            f"pixel_scale = {float(self.pixel_scale)!r}  # arcsec\n"
            f"shape = [{self.shape[0]}, {self.shape[1]}]  # patches along x and y\n"
            f"patch = {self.patch}  # pixels a side, border apart\n"
            f"border = {self.border}  # pixels on each side\n"
        )

    @classmethod
    def from_toml(cls, text: str, where: str = "tract") -> Tract:
        """Return the tract that `text` describes; `where` names it in messages.

        Raises
        ------
        BadInput
            If it is no TOML, or a key is missing, unknown or of the wrong kind.
        """
        try:
            keys = dict(tomllib.loads(text)["tract"])
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"{where}: not TOML: {error}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise BadInput(f"{where}: no table [tract]") from error
        names = {"projection", "center", "pixel_scale", "shape", "patch", "border"}
        if wrong := names ^ keys.keys():
            raise BadInput(
                f"{where}: [tract] has {', '.join(sorted(keys))}; check {', '.join(sorted(wrong))}"
            )
        if keys["projection"] != "TAN":
            raise BadInput(f"{where}: projection {keys['projection']!r}: only TAN is known")
        ra, dec = _numbers(keys, "center", 2, (int, float), where)
        (pixel_scale,) = _numbers(keys, "pixel_scale", 1, (int, float), where)
        shape = _numbers(keys, "shape", 2, (int,), where)
        (patch,) = _numbers(keys, "patch", 1, (int,), where)
        (border,) = _numbers(keys, "border", 1, (int,), where)
        return cls(float(ra), float(dec), shape, float(pixel_scale), patch, border)

    @classmethod
    def around(
        cls,
        footprints: Iterable[tuple[np.ndarray, np.ndarray]],
        center: tuple[float, float] | None = None,
        pixel_scale: float = 0.333,
        patch: int = 2000,
        border: int = 100,
    ) -> Tract:
        """Return the smallest tract that holds all footprints.

        Parameters
        ----------
        footprints : iterable of (ra, dec)
            Arrays in degrees: points around each exposure, as :func:`mpiimg.astro.sky.wcs.footprint` gives
            them.
        center : (ra, dec), optional
            Degrees; without it, the middle of what the footprints span.
        pixel_scale, patch, border
            As for the class.

        Raises
        ------
        BadInput
            If there is no footprint, or they are too far apart for one tangential projection.
        """
        points = [np.stack([np.ravel(ra), np.ravel(dec)]) for ra, dec in footprints]
        if not points or not np.isfinite(np.concatenate(points, axis=1)).all():
            raise BadInput(
                "a tract is derived from exposures that all have a footprint on the sky; give --tract"
            )
        ra, dec = np.concatenate(points, axis=1)
        if center is None:
            center = _mean_place(ra, dec)
            # Again, since north, and with it what the middle is, turns with the centre.
            for _ in range(3):
                tract = cls(*center, (1, 1), pixel_scale, patch, border)
                tract._check_reach(ra, dec)
                x, y = to_pixels(tract.wcs, ra, dec)
                middle = tract.wcs.all_pix2world((x.min() + x.max()) / 2, (y.min() + y.max()) / 2, 0)
                center = tuple(round(float(value), CENTER_DECIMALS) for value in middle)
        tract = cls(*center, (1, 1), pixel_scale, patch, border)
        tract._check_reach(ra, dec)
        x, y = to_pixels(tract.wcs, ra, dec)
        reach = [float(np.abs(values - (patch - 1) / 2).max()) for values in (x, y)]
        if not max(reach) < MAX_PIXELS / 2:
            raise BadInput(
                f"exposures reach {max(reach):.3g} pixels of {pixel_scale:g} arcsec from the centre of the "
                "tract; give a larger --pixel-scale"
            )
        shape = tuple(max(math.ceil(2 * pixels / patch), 1) for pixels in reach)
        return cls(*center, shape, pixel_scale, patch, border)

    def _check_reach(self, ra, dec):
        """Refuse footprints that a tangential projection at this centre would stretch."""
        toward = directions(self.ra, self.dec)
        cosine = float(np.min(toward @ directions(ra, dec)))
        furthest = math.degrees(math.acos(max(min(cosine, 1.0), -1.0)))
        if not furthest <= MAX_DEGREES:
            raise BadInput(
                f"exposures reach {furthest:.1f} degrees from RA {self.ra:.4f}, Dec {self.dec:.4f}: a tract "
                f"has {MAX_DEGREES:g} at most; give --center or --tract, or process them in groups"
            )


def _mean_place(ra, dec):
    """Return the direction (degrees) of the mean of unit vectors: no seam at RA 0, none at the poles."""
    x, y, z = directions(ra, dec).mean(axis=1)
    return math.degrees(math.atan2(y, x)) % 360.0, math.degrees(math.atan2(z, math.hypot(x, y)))


def _numbers(keys, name, count, kinds, where):
    """Return one or several numbers of a TOML table as a tuple."""
    values = keys[name] if count > 1 else [keys[name]]
    good = isinstance(values, list) and len(values) == count
    if not good or not all(isinstance(v, kinds) and not isinstance(v, bool) for v in values):
        kind = "whole number" if kinds == (int,) else "number"
        raise BadInput(f"{where}: {name} = {keys[name]!r}: expected {count} {kind}{'s' if count > 1 else ''}")
    return tuple(values)


def _meets(polygon, box):
    """Say whether a polygon (n, 2) of x and y and the pixels of `box` share any area or edge.

    They do where a corner of the polygon lies in the box. Else the polygon is clipped by one side of the box
    after the other (Sutherland and Hodgman).
    """
    low, high = (np.array([box[1][k], box[0][k]]) - 0.5 for k in (0, 1))
    if ((polygon >= low) & (polygon <= high)).all(axis=1).any():
        return True
    for axis, (start, stop) in ((1, box[0]), (0, box[1])):
        for sign, limit in ((1.0, start - 0.5), (-1.0, stop - 0.5)):
            beyond = sign * (polygon[:, axis] - limit)
            following, next_beyond = np.roll(polygon, -1, axis=0), np.roll(beyond, -1)
            crossing = (beyond >= 0) != (next_beyond >= 0)
            with np.errstate(all="ignore"):
                t = (beyond / (beyond - next_beyond))[:, None]
                cut = polygon + t * (following - polygon)
            # Each point that is inside, and after it where its edge crosses the side.
            both = np.stack([polygon, cut], axis=1).reshape(-1, 2)
            polygon = both[np.stack([beyond >= 0, crossing], axis=1).ravel()]
            if not len(polygon):
                return False
    return True
