"""Warp of image, variance and mask against SWarp's two planes: CPU seconds of one core, I/O included in both.

The peer is Debian's package swarp.
"""

from __future__ import annotations

import pathlib
import resource
import shutil
import statistics
import subprocess
import tempfile
import time

import numpy as np
from astropy.io import fits

#: (ny, nx) of the exposure.
SIZES = {"small": (1000, 1020), "sensor": (4072, 4000)}

#: Arcseconds a pixel, of the exposure and of the patch.
NATIVE, SCALE = 0.263, 0.333

NOISE = 15.0

#: Bits of a bad pixel, and of a pixel without data.
BAD, NO_DATA = 1, 256

#: TPV coefficients: the distortion of a wide-field camera, a few pixels in the corners of the sensor.
DISTORTION = {
    "PV1_1": 1.0003,
    "PV1_2": 2e-5,
    "PV1_4": 1.3e-3,
    "PV1_7": -0.012,
    "PV1_9": -0.012,
    "PV2_1": 0.9998,
    "PV2_2": -1e-5,
    "PV2_4": -7e-4,
    "PV2_7": -0.011,
    "PV2_9": -0.011,
}


def tan_header(shape: tuple[int, int], scale: float, angle: float = 0.0) -> fits.Header:
    """Return a TAN header of (ny, nx) pixels of `scale` arcseconds, turned by `angle` degrees."""
    header = fits.Header()
    degrees, cosine, sine = scale / 3600, np.cos(np.radians(angle)), np.sin(np.radians(angle))
    cards = {"NAXIS": 2, "NAXIS1": shape[1], "NAXIS2": shape[0], "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    cards |= {"CRVAL1": 150.0, "CRVAL2": 2.2, "CRPIX1": (shape[1] + 1) / 2, "CRPIX2": (shape[0] + 1) / 2}
    cards |= {"CD1_1": -degrees * cosine, "CD1_2": degrees * sine}
    cards |= {"CD2_1": degrees * sine, "CD2_2": degrees * cosine, "CUNIT1": "deg", "CUNIT2": "deg"}
    header.update(cards)
    return header


def write_exposure(folder: pathlib.Path, shape: tuple[int, int], seed: int = 7) -> None:
    """Write noise with stars: three planes for us, image and weight for SWarp, and the output's header."""
    header = tan_header(shape, NATIVE, angle=0.7)
    header.update(DISTORTION, CTYPE1="RA---TPV", CTYPE2="DEC--TPV")
    rng = np.random.default_rng(seed)
    image = rng.normal(0, NOISE, shape).astype(np.float32)
    y, x = np.mgrid[-12:13, -12:13]
    star = np.exp(-(x**2 + y**2) / (2 * 1.9**2)) / (2 * np.pi * 1.9**2)
    for _ in range(shape[0] * shape[1] // 8000):
        cy, cx = (rng.integers(12, size - 12) for size in shape)
        image[cy - 12 : cy + 13, cx - 12 : cx + 13] += 10 ** rng.uniform(2.3, 5.0) * star
    variance = np.full(shape, NOISE**2, np.float32)
    mask = np.zeros(shape, np.int32)
    mask[:, shape[1] // 3] = BAD
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(plane, header) for plane in (image, variance, mask))]
    fits.HDUList(hdus).writeto(folder / "ours.fits")
    fits.writeto(folder / "peer.fits", image, header)
    fits.writeto(folder / "peer.weight.fits", np.where(mask, 0, 1 / variance).astype(np.float32))
    (folder / "warped.head").write_text(target_header(shape).tostring(sep="\n") + "\nEND\n")


def target_header(shape: tuple[int, int]) -> fits.Header:
    """Return the header of the patch: the exposure's extent in pixels of the patch."""
    return tan_header(tuple(round(size * NATIVE / SCALE) for size in shape), SCALE)


def warp_with_ours(folder: pathlib.Path, shape: tuple[int, int]) -> dict[str, float]:
    """Read three planes, interpolate bad pixels, warp, write three planes; return CPU seconds a step."""
    from mpiimg.astro.kernels.bad_pixels import interpolate_bad
    from mpiimg.astro.kernels.places import NODE_SPACING
    from mpiimg.astro.kernels.warp import resample
    from mpiimg.astro.sky.wcs import read_wcs, source_grid

    marks = [time.process_time()]
    with fits.open(folder / "ours.fits", memmap=False) as hdus:
        header = hdus[1].header
        planes = [hdu.data.byteswap(inplace=True) for hdu in hdus[1:]]
    image, variance, mask = (plane.view(plane.dtype.newbyteorder("=")) for plane in planes)
    marks.append(time.process_time())
    target = target_header(shape)
    box = (0, target["NAXIS2"]), (0, target["NAXIS1"])
    grid = source_grid(read_wcs(header, "exposure"), read_wcs(target, "patch"), box, NODE_SPACING)
    marks.append(time.process_time())
    image, variance, _ = interpolate_bad(image, variance, mask != 0, copy=False)
    marks.append(time.process_time())
    planes = resample(image, variance, mask, grid, box, no_data=NO_DATA)
    marks.append(time.process_time())
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(plane, target) for plane in planes[:3])]
    fits.HDUList(hdus).writeto(folder / "ours.warp.fits", overwrite=True)
    marks.append(time.process_time())
    steps = ("read_s", "grid_s", "interpolate_s", "warp_s", "write_s")
    return dict(zip(steps, np.diff(marks).tolist(), strict=True))


def warp_with_swarp(folder: pathlib.Path, program: str) -> float:
    """Resample image and weight with SWarp, one thread, no coaddition; return its CPU seconds."""
    options = {
        "IMAGEOUT_NAME": "warped.fits",
        "WEIGHT_TYPE": "MAP_WEIGHT",
        "COMBINE": "N",
        "RESAMPLE_SUFFIX": ".warp.fits",
        "RESAMPLING_TYPE": "LANCZOS3",
        "OVERSAMPLING": "1",
        "FSCALASTRO_TYPE": "VARIABLE",
        "SUBTRACT_BACK": "N",
        "DELETE_TMPFILES": "N",
        "WRITE_XML": "N",
        "NTHREADS": "1",
        "VERBOSE_TYPE": "QUIET",
    }
    flags = [word for key, value in options.items() for word in (f"-{key}", value)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([program, "peer.fits", *flags], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(folder: pathlib.Path, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the ratio of light on bright pixels (1e-3 promised), and the rms difference over the noise."""
    ours, flags = (fits.getdata(folder / "ours.warp.fits", n).astype(np.float64) for n in (1, 3))
    header, place = target_header(shape), fits.getheader(folder / "peer.warp.fits")
    part = fits.getdata(folder / "peer.warp.fits")
    # SWarp writes only what the exposure covers; CRPIX says where that starts.
    top, left = (round(header[f"CRPIX{axis}"] - place[f"CRPIX{axis}"]) for axis in (2, 1))
    ours, flags = (plane[top : top + part.shape[0], left : left + part.shape[1]] for plane in (ours, flags))
    part = part[: ours.shape[0], : ours.shape[1]]
    known = np.isfinite(ours) & (part != 0) & (flags == 0)
    bright = known & (ours > 20 * NOISE)
    noise = NOISE * SCALE / NATIVE
    return part[bright].sum() / ours[bright].sum(), float(np.std((part - ours)[known]) / noise)


def run(size: str = "small", rounds: int = 3) -> list[dict]:
    """Measure both, alternating, and return one row of medians.

    Parameters
    ----------
    size : {"small", "sensor"}
        An exposure of 1000 x 1020, or of 4072 x 4000 pixels.
    rounds : int
        How often each is measured.

    Returns
    -------
    list of dict
        name, size, peer, peer_cpu_s, our_cpu_s, ratio, CPU seconds of each of our steps, flux_ratio,
        residual_over_noise, rounds.

    Raises
    ------
    FileNotFoundError
        If SWarp is not installed.
    """
    program = shutil.which("SWarp") or shutil.which("swarp")
    if program is None:
        raise FileNotFoundError("SWarp is not installed (Debian: apt-get install swarp)")
    shape = SIZES[size]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_exposure(folder, shape)
        warp_with_ours(folder, shape)  # compile
        ours, peers = [], []
        for _ in range(rounds):
            ours.append(warp_with_ours(folder, shape))
            peers.append(warp_with_swarp(folder, program))
        flux_ratio, residual = compare(folder, shape)
    our_median = statistics.median(sum(steps.values()) for steps in ours)
    peer_median = statistics.median(peers)
    row = {
        "name": "warp",
        "size": size,
        "peer": "SWarp, two planes",
        "peer_cpu_s": peer_median,
        "our_cpu_s": our_median,
        "ratio": peer_median / our_median,
        **{step: statistics.median(steps[step] for steps in ours) for step in ours[0]},
        "flux_ratio": flux_ratio,
        "residual_over_noise": residual,
        "rounds": rounds,
    }
    return [row]
