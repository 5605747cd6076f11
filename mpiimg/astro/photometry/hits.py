"""Whether what was taken for cosmic rays are cosmic rays: how many there are, and whether they sit on stars.

L.A.Cosmic relies on the noise and on stars that are wider than a pixel or two. Where one of these fails it
repairs the cores of stars, or half of a frame.
"""

from __future__ import annotations

import numpy as np

from mpiimg.astro.photometry.stars import FrameStars

#: Whether cosmic rays were looked for, and why what was found was dropped: codes, and what tables say.
SEARCHES = ("searched", "off", "dropped: too many", "dropped: on stars", "dropped: stars too sharp")
SEARCHED, OFF, TOO_MANY, ON_STARS, TOO_SHARP = range(5)

#: Share of pixels that cosmic rays may strike: at least, per second of exposure, and at most.
SHARE, SHARE_PER_SECOND, MAX_SHARE = 0.01, 5e-5, 0.1

#: Share of the stars that may be struck, their signal over noise, and how many are enough to say so.
STAR_SHARE, STAR_SNR, MIN_STARS = 0.2, 50.0, 3

#: Where more than this share of the struck pixels are those of stars, however few, none are cosmic rays.
PIXEL_SHARE = 0.5

#: FWHM, in pixels, below which stars are as sharp as cosmic rays.
MIN_FWHM = 1.8

#: Where such stars are known from the unrepaired frame alone: how many, and what share of the hits, at least.
MIN_SHARP, SHARP_SHARE = 5, 1 / 3

#: Light between half a FWHM and one from a peak, over the peak: stars have 0.15 and more, hits none.
RING = 0.08

#: Peaks whose surroundings are looked at in one go.
PEAKS_AT_ONCE = 4096


def most_hits(exptime: float | None) -> float:
    """Return the share of pixels that cosmic rays may strike in an exposure of so many seconds."""
    return max(SHARE, min(SHARE_PER_SECOND * (exptime or 0.0), MAX_SHARE))


def star_hits(
    image: np.ndarray, variance: np.ndarray, struck: np.ndarray, useless: np.ndarray, fwhm: float
) -> tuple[int, float]:
    """Count bright stars whose cores have been struck, and tell the share of struck pixels that are theirs.

    Parameters
    ----------
    image : (h, w) float32
        Without its sky, and unrepaired.
    variance : (h, w) float32
    struck, useless : (h, w) bool
    fwhm : float
        Of stars, in pixels.

    Returns
    -------
    on_stars : int
        Peaks among the struck pixels about which there is the light of a star as bright, between 0.5 and 1
        FWHM (RING), and within a FWHM STAR_SNR times the noise. A cosmic ray has no light about it, and that
        of a track has been struck itself.
    share : float
        Of the struck pixels, those within 2 FWHM of such a peak.
    """
    reach = int(np.ceil(max(fwhm, 1.5)))
    y, x = np.nonzero(struck)
    count = len(y)
    inside = (np.minimum(y, x) >= reach) & (y < image.shape[0] - reach) & (x < image.shape[1] - reach)
    y, x = y[inside], x[inside]
    steps = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    distance = np.hypot(*steps)
    for dy, dx in steps[:, (distance > 0) & (distance < 1.5)].T:
        # Of equal neighbours the first is the peak.
        neighbour, own = image[y + dy, x + dx], image[y, x]
        higher = (own > neighbour) | ((own == neighbour) & ((dy, dx) > (0, 0)))
        y, x = y[higher], x[higher]
    light, noise = np.zeros(len(y)), np.zeros(len(y))
    for dy, dx in steps[:, distance <= reach].T:
        light += image[y + dy, x + dx]
        noise += variance[y + dy, x + dx]
    bright = light > STAR_SNR * np.sqrt(noise)
    y, x = y[bright], x[bright]
    ring = steps[:, (distance > fwhm / 2) & (distance <= reach)]
    on_star, unknown = np.zeros(len(y), bool), struck | useless
    for start in range(0, len(y), PEAKS_AT_ONCE):
        part = slice(start, start + PEAKS_AT_ONCE)
        on_star[part] = _have_rings(image, variance, unknown, y[part], x[part], ring)
    near, wide = np.zeros(image.shape, bool), 2 * reach
    for row, column in zip(y[on_star].tolist(), x[on_star].tolist(), strict=True):
        near[max(row - wide, 0) : row + wide + 1, max(column - wide, 0) : column + wide + 1] = True
    share = np.count_nonzero(near & struck) / count if on_star.any() else 0.0
    return int(np.count_nonzero(on_star)), share


def _have_rings(image, variance, unknown, y, x, ring):
    """Tell which peaks have the light of a star about them, on the pixels of a ring that are known."""
    about = (y + ring[0][:, None], x + ring[1][:, None])
    good = ~unknown[about]
    count = good.sum(axis=0)
    enough = count >= max(3, ring.shape[1] // 4)
    light = np.where(good, image[about], np.nan)
    light[:, ~enough] = 0
    height = np.nanmedian(light, axis=0)
    doubt = 4 * 1.25 * np.sqrt(variance[y, x] / np.maximum(count, 1))
    return enough & (height > RING * image[y, x]) & (height > doubt)


def strikes_stars(on_stars: int, share: float, measured: FrameStars) -> bool:
    """Say whether hits are stars: too many bright stars are struck, or too many of the hits are theirs.

    Parameters
    ----------
    on_stars : int
    share : float
        As :func:`star_hits` returns them.
    measured : FrameStars
        Of the repaired frame: those that were not struck.
    """
    stars = measured.stars
    spared = np.count_nonzero(stars.flux > STAR_SNR * stars.flux_error)
    many = on_stars >= MIN_STARS and on_stars > STAR_SHARE * (on_stars + spared)
    return many or share > PIXEL_SHARE


def are_sharp(measured: FrameStars, struck: np.ndarray | None = None) -> bool:
    """Say whether the stars of a frame are as sharp as cosmic rays.

    Parameters
    ----------
    measured : FrameStars
    struck : (h, w) bool, optional
        The hits, where `measured` is of the unrepaired frame, on which cosmic rays may pass for stars: these
        are of many sizes, so few of them agree on one.
    """
    sharp = measured.fwhm < MIN_FWHM
    if not sharp or struck is None:
        return sharp
    from scipy.ndimage import label

    count, (_, hits) = len(measured.stars.x), label(struck, np.ones((3, 3)))
    return count >= MIN_SHARP and count > SHARP_SHARE * hits
