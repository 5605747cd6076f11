"""What the survey pipeline makes of skies whose truth is known: prints Markdown tables.

    make sky-tables
    python benchmarks/sky_truth.py [TABLE...]

GalSim draws the exposures (sky_scenes.py), the tools are run as a user runs them, and the peer is
source-extractor on the same coadd: default.conv, WEIGHT_TYPE MAP_RMS of the same variance, DETECT_THRESH 1.5,
the mesh of --detection-mesh. docs/sky-truth.md holds a run of it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import galsim
import numpy as np
import sky_scenes
from astropy import units
from astropy.coordinates import FK4, FK5, ICRS, BarycentricMeanEcliptic, Galactic, SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from sky_scenes import Scene, Visit
from sky_tools import astro, near, peer, say, spread, table, tool, zero_point

#: Seeing of eight visits, arcseconds, and what they are displaced by, pixels.
SEEING = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.05)
SHIFTS = tuple((7.3 * np.cos(2.4 * n), 7.3 * np.sin(2.4 * n)) for n in range(24))

# --- The tables ------------------------------------------------------------------------------------------


def depth(folder: Path) -> None:
    """Completeness, purity, bias and pulls by magnitude, of three fields of eight visits."""
    parts = {"default": [], "study": [], "source-extractor": []}
    for seed in (1, 2, 3):
        scene = Scene(seed=seed)
        visits = [Visit(SEEING[n], SHIFTS[n], seed=n) for n in range(8)]
        exposures, truth = sky_scenes.observed(folder / f"depth-{seed}", scene, visits)
        found, patch = astro(exposures, folder / f"depth-{seed}-out")
        parts["default"].append((found, truth))
        old, _ = astro(exposures, folder / f"depth-{seed}-study", "--recipe", "study")
        parts["study"].append((old, truth))
        theirs = peer(folder / f"depth-{seed}-peer", patch)
        if theirs is not None:
            parts["source-extractor"].append((theirs, truth))
    heads, rows = ("magnitude", "kind"), []
    names = [name for name, some in parts.items() if some]
    heads += tuple(
        f"{name}: {what}" for name in names for what in ("found", "bias, mag", "pull: median, spread")
    )
    for star in (True, False):
        for low in range(18, 26):
            row = [f"{low}-{low + 1}", "star" if star else "galaxy"]
            for name in names:
                row += in_bin(parts[name], low, low + 1, star)
            rows.append(row)
    table(heads, rows)
    rows = []
    for name in names:
        false = sum(np.count_nonzero(~near(found, truth)[2]) for found, truth in parts[name])
        every = sum(len(found) for found, _ in parts[name])
        rows.append([name, every, false, *(f"{half(parts[name], star):.2f}" for star in (True, False))])
    table(("", "sources", "false", "stars: half of them found at", "galaxies: half of them found at"), rows)


def in_bin(parts, low: float, high: float, star: bool) -> tuple[str, str, str]:
    """Return what is found of the objects of a bin, the bias of mag_auto, and its pulls."""
    seen, wrong, pulls = [], [], []
    for found, truth in parts:
        which, matched, _ = near(found, truth)
        here = (truth["mag_r"] >= low) & (truth["mag_r"] < high) & (np.asarray(truth["star"]) == star)
        seen += list(matched[here])
        rows = found[which[here & matched]]
        error = np.asarray(rows["mag_auto"] - truth["mag_r"][here & matched], float)
        wrong += list(error)
        pulls += list(error / np.asarray(rows["mag_auto_err"], float))
    wrong, pulls = np.array(wrong), np.array(pulls)
    good = np.isfinite(wrong) & np.isfinite(pulls)
    if good.sum() < 5:
        return f"{100 * np.mean(seen):.0f} %", "", ""
    pull = f"{np.median(pulls[good]):+.1f}, {spread(pulls[good]):.2f}"
    return f"{100 * np.mean(seen):.0f} %", f"{np.median(wrong[good]):+.3f}", pull


def half(parts, star: bool) -> float:
    """Return the magnitude at which half of the objects are found, of a logistic curve fitted to all."""
    from scipy.optimize import minimize

    mags, seen = [], []
    for found, truth in parts:
        here = np.asarray(truth["star"]) == star
        mags += list(truth["mag_r"][here])
        seen += list(near(found, truth)[1][here])
    mags, seen = np.array(mags), np.array(seen, float)

    def loss(p):
        share = 0.98 / (1 + np.exp(np.clip((mags - p[0]) / max(p[1], 0.05), -50, 50))) + 0.001
        return -np.sum(seen * np.log(share) + (1 - seen) * np.log(1 - share))

    return float(minimize(loss, (24.0, 0.3), method="Nelder-Mead").x[0])


def negative(folder: Path) -> None:
    """Sources of the negated coadd of an empty sky: what is found where nothing is."""
    scene = Scene(side=2048, seed=5, stars=1.0, galaxies=0.0, magnitudes=(18.0, 20.0))
    visits = [Visit(SEEING[n], SHIFTS[n], seed=n) for n in range(4)]
    exposures, _ = sky_scenes.observed(folder / "negative", scene, visits)
    _, patch = astro(exposures, folder / "negative-out")
    turned = folder / "negative-patch"
    turned.mkdir()
    hdus = fits.HDUList([hdu.copy() for hdu in patch])
    hdus["IMAGE"].data = -hdus["IMAGE"].data
    path = turned / Path(patch.filename()).name
    shutil.copy(Path(patch.filename()).with_name("tract.toml"), turned)
    hdus.writeto(path, checksum=True)
    rows = []
    for name, options in (("default", ()), ("study", ("--recipe", "study"))):
        out = folder / f"negative-{name}" / "catalogue.fits"
        tool("mpiimg-detect", path.parent, "--out", out, *options)
        rows.append([name, len(Table.read(out, hdu=1))])
    theirs = peer(folder / "negative-peer", hdus)
    rows.append(["source-extractor", "" if theirs is None else len(theirs)])
    area = np.count_nonzero(np.isfinite(patch["IMAGE"].data)) / 1e6
    say(f"{area:.1f} million pixels, turned upside down; the few stars of the field are holes in it.")
    table(("", "sources"), rows)


def trails(folder: Path) -> None:
    """A trail of 5 sigma in one visit: what is left of it in the coadd."""
    rows = []
    for count in (3, 5):
        scene = Scene(side=700, seed=8, stars=6.0, galaxies=6.0)
        visits = [Visit(SEEING[n % 8], SHIFTS[n], seed=n) for n in range(count)]
        folder_ = folder / f"trail-{count}"
        sky_scenes.observed(folder_ / "clean", scene, visits)
        for name in STATISTICS:
            left = {}
            for crossed in (False, True):
                images = []
                for n in range(count):
                    image = fits.getdata(folder_ / "clean" / f"visit-{n:02d}-r.fits").copy()
                    images.append(image + trail(scene.side) * (crossed and n == 1))
                exposures = sky_scenes.write(folder_ / f"in-{crossed}", scene, visits, images)
                out = folder_ / f"{name}-{crossed}"
                _, left[crossed] = astro(exposures, out, "--statistic", name, "--no-cosmic-rays")
            ridge = along(left[True]) - along(left[False])
            variance = left[False]["VARIANCE"].data
            noise = np.sqrt(np.median(variance[np.isfinite(variance)]))
            rows.append([count, name, f"{np.nanmean(ridge) / noise:+.2f}", f"{spread(ridge / noise):.2f}"])
    table(("visits", "statistic", "left on the ridge, sigma of a pixel of the coadd", "scatter"), rows)


#: The trail goes through the middle, at this slope; its profile is that of a star of 1 arcsecond.
SLOPE = 0.4


def trail(side: int) -> np.ndarray:
    """Return a trail of 5 sigma of the sky's noise on its ridge, (side, side) counts."""
    y, x = np.mgrid[:side, :side]
    away = (y - side / 2 - SLOPE * (x - side / 2)) / np.hypot(1, SLOPE)
    noise = np.sqrt(sky_scenes.SKY / sky_scenes.GAIN + (sky_scenes.READ_NOISE / sky_scenes.GAIN) ** 2)
    width = 1.0 / sky_scenes.PIXEL / 2.355
    return (5 * noise * np.exp(-0.5 * (away / width) ** 2)).astype("f4")


def along(patch: fits.HDUList) -> np.ndarray:
    """Return the values of a coadd along the trail of the second visit."""
    side = 700
    x = np.arange(40, side - 40, 3.0)
    y = side / 2 + SLOPE * (x - side / 2)
    ra, dec = sky_scenes.wcs_of(side, SHIFTS[1]).all_pix2world(x, y, 0)
    px, py = WCS(patch["IMAGE"].header).all_world2pix(ra, dec, 0)
    ny, nx = patch["IMAGE"].data.shape
    px, py = np.rint(px).astype(int).clip(0, nx - 1), np.rint(py).astype(int).clip(0, ny - 1)
    return patch["IMAGE"].data[py, px].astype(float)


STATISTICS = ("compare", "median", "clip", "mean")


def sharp(folder: Path) -> None:
    """One sharp visit of many: what each statistic takes away of stars."""
    rows = []
    for count in (5, 24):
        scene = Scene(side=700, seed=9, stars=15.0, galaxies=0.0, magnitudes=(16.5, 22.5))
        widths = [0.66 if n == 2 else 0.95 + 0.35 * (n * 7 % count) / count for n in range(count)]
        visits = [Visit(widths[n], SHIFTS[n], seed=n) for n in range(count)]
        exposures, truth = sky_scenes.observed(folder / f"sharp-{count}", scene, visits)
        patches = {
            name: astro(exposures, folder / f"sharp-{count}-{name}", "--statistic", name, "--no-cosmic-rays")[
                1
            ]
            for name in STATISTICS
        }
        base = patches["mean"]
        px, py = WCS(base["IMAGE"].header).all_world2pix(truth["ra"], truth["dec"], 0)
        apart = alone(truth)
        for name in STATISTICS:
            row = [count, name]
            for low in (17, 19, 21):
                here = apart & (truth["mag_r"] >= low) & (truth["mag_r"] < low + 1.5)
                core = [
                    100 * (box(patches[name], x, y, 0) / box(base, x, y, 0) - 1)
                    for x, y in zip(px[here], py[here], strict=True)
                ]
                light = [
                    100 * (box(patches[name], x, y, 3) / box(base, x, y, 3) - 1)
                    for x, y in zip(px[here], py[here], strict=True)
                ]
                row += [f"{np.nanmedian(core):+.2f} %", f"{np.nanmedian(light):+.2f} %"]
            rows.append(row)
    heads = [f"{low}-{low + 1.5} mag: {what}" for low in (17, 19, 21) for what in ("peak", "7 x 7 pixels")]
    table(("visits, one of 0.66 arcsec", "statistic", *heads), rows)


def alone(truth: Table) -> np.ndarray:
    """Return the objects without a neighbour within 4 arcseconds."""
    places = SkyCoord(truth["ra"], truth["dec"], unit="deg")
    return places.match_to_catalog_sky(places, 2)[1].arcsec > 4


def box(patch: fits.HDUList, x: float, y: float, half: int) -> float:
    """Return the sum of a square about a place; NaN off the image."""
    data, i, j = patch["IMAGE"].data, round(float(y)), round(float(x))
    if not (half <= i < data.shape[0] - half and half <= j < data.shape[1] - half):
        return np.nan
    return float(data[i - half : i + half + 1, j - half : j + half + 1].sum())


def frames(folder: Path) -> None:
    """The same pixels with coordinates said in five sky frames."""
    scene = Scene(side=500, seed=4, stars=8.0, galaxies=0.0, magnitudes=(17.0, 21.0))
    (path,), truth = sky_scenes.observed(folder / "frames", scene, [Visit(1.0)])
    image, cards, rows = fits.getdata(path), fits.getheader(path), []
    center = SkyCoord(*sky_scenes.CENTER, unit="deg")
    north = center.directional_offset_by(0 * units.deg, 1e-3 * units.deg)
    for name, (frame, first, second, more) in FRAMES.items():
        turned = center.transform_to(frame)
        angle = turned.position_angle(north.transform_to(frame)).rad
        wcs = sky_scenes.wcs_of(scene.side)
        wcs.wcs.ctype, wcs.wcs.crval = [first, second], [turned.spherical.lon.deg, turned.spherical.lat.deg]
        # x grows to the west and y to the north, which lies at this angle in the frame.
        west, up = (-np.cos(angle), np.sin(angle)), (np.sin(angle), np.cos(angle))
        wcs.wcs.cd = np.array([west, up]).T * sky_scenes.PIXEL / 3600
        own = cards.copy()
        for key in ("CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "RADESYS", "EQUINOX", "LONPOLE", "LATPOLE"):
            own.remove(key, ignore_missing=True)
        for key in list(own):
            if key.startswith(("PC", "CD", "CDELT")):
                own.remove(key)
        own.update(wcs.to_header())
        own.update(more)
        exposure = folder / f"frames-{name}.fits"
        fits.PrimaryHDU(image, own).writeto(exposure)
        found, _ = astro([exposure], folder / f"frames-{name}-out")
        which, matched, _ = near(found, truth)
        seen, true = found[which[matched]], truth[matched]
        east = (seen["ra"] - true["ra"]) * np.cos(np.radians(sky_scenes.CENTER[1])) * 3.6e6
        high = (seen["dec"] - true["dec"]) * 3.6e6
        offset = f"{np.median(east):+.1f}, {np.median(high):+.1f}"
        rows.append([name, f"{len(seen)} of {len(truth)}", offset])
    table(("frame of the header", "stars found at their ICRS places", "median offset east, north, mas"), rows)


#: A sky frame, CTYPE1, CTYPE2 and further cards.
FRAMES = {
    "ICRS": (ICRS(), "RA---TAN", "DEC--TAN", {"RADESYS": "ICRS"}),
    "galactic": (Galactic(), "GLON-TAN", "GLAT-TAN", {}),
    "ecliptic": (BarycentricMeanEcliptic(equinox="J2000"), "ELON-TAN", "ELAT-TAN", {"EQUINOX": 2000.0}),
    "FK4": (FK4(equinox="B1950"), "RA---TAN", "DEC--TAN", {"RADESYS": "FK4", "EQUINOX": 1950.0}),
    "FK5": (FK5(equinox="J1975"), "RA---TAN", "DEC--TAN", {"RADESYS": "FK5", "EQUINOX": 1975.0}),
}


def flags(folder: Path) -> None:
    """Informational bits of a JWST image on more and more of its pixels."""
    scene = Scene(side=500, seed=6, stars=8.0, galaxies=0.0, magnitudes=(17.0, 22.0))
    (path,), truth = sky_scenes.observed(folder / "flags", scene, [Visit(1.0)])
    image, cards, rows = fits.getdata(path), fits.getheader(path), []
    random = np.random.default_rng(3)
    for share in (0, 1, 3, 8, 15):
        quality = np.where(random.random(image.shape) < share / 100, 4, 0).astype("i4")  # JUMP_DET
        main = fits.PrimaryHDU()
        main.header["TELESCOP"], main.header["INSTRUME"] = "JWST", "NIRCAM"
        exposure = folder / f"flags-{share}.fits"
        hdus = [main, fits.ImageHDU(image, cards, name="SCI"), fits.ImageHDU(quality, name="DQ")]
        fits.HDUList(hdus).writeto(exposure)
        found, _ = astro([exposure], folder / f"flags-{share}-out")
        which, matched, _ = near(found, truth)
        wrong = np.asarray(found["mag_auto"][which[matched]] - truth["mag_r"][matched])
        rows.append([f"{share} %", f"{matched.sum()} of {len(truth)}", f"{np.nanmedian(wrong):+.3f}"])
    table(("pixels with JUMP_DET", "stars found", "median error of mag_auto"), rows)


def sky_left(folder: Path) -> None:
    """Exposures whose sky was subtracted, with no word of it in the header."""
    rows = []
    for name, left in (("250 counts", sky_scenes.SKY), ("subtracted", 0.0)):
        scene = Scene(side=700, seed=7, stars=10.0, galaxies=0.0, magnitudes=(17.0, 24.0))
        visits = [Visit(1.0, SHIFTS[n], seed=n, sky_left=left) for n in range(3)]
        exposures, truth = sky_scenes.observed(folder / f"sky-{left:.0f}", scene, visits)
        out = folder / f"sky-{left:.0f}-out"
        found, _ = astro(exposures, out)
        facts = Table.read(out / "exposures.ecsv")
        which, matched, true = near(found, truth)
        wrong = np.asarray(found["mag_auto"][which[matched]] - truth["mag_r"][matched])
        share = 100 * np.mean(facts["cosmic_ray_pixels"]) / scene.side**2
        row = [name, f"{share:.3f} %", f"{np.mean(facts['noise']):.1f}", f"{matched.sum()} of {len(truth)}"]
        row += [np.count_nonzero(~true), f"{np.nanmedian(wrong):+.3f}"]
        rows.append(row)
    heads = (
        "sky",
        "taken for cosmic rays (there are none)",
        "noise, counts",
        "stars found",
        "false",
        "median error, mag",
    )
    table(heads, rows)


def big(folder: Path) -> None:
    """A galaxy of n = 4 and a half-light radius of 12 arcseconds, under a sky gradient and a ghost."""
    scene = Scene(side=2048, seed=11, stars=2.0, galaxies=0.0, magnitudes=(18.0, 23.0))
    profile = galsim.Convolve(
        galsim.DeVaucouleurs(half_light_radius=12.0, flux=10 ** (0.4 * (sky_scenes.ZERO_POINT - 13.0))),
        galsim.Moffat(beta=3, fwhm=1.0),
    )
    galaxy = profile.drawImage(nx=2048, ny=2048, scale=sky_scenes.PIXEL, dtype=float).array
    truth, images, visits = scene.truth(), [], []
    y, x = np.mgrid[:2048, :2048]
    ghost = 5.0 * (np.hypot(x - 500, y - 1500) < 150)
    for n in range(3):
        visits.append(Visit(1.0, SHIFTS[n], seed=n))
        light = sky_scenes.clean(scene, truth, visits[-1]) + np.roll(
            galaxy, (round(SHIFTS[n][1]), round(SHIFTS[n][0])), (0, 1)
        )
        light += sky_scenes.SKY * 0.05 * (x / 2048 - 0.5) + ghost
        images.append(sky_scenes.expose(scene, visits[-1], light))
    exposures = sky_scenes.write(folder / "big", scene, visits, images)
    rows = []
    for name, options in (("default", ()), ("study", ("--recipe", "study"))):
        found, patch = astro(exposures, folder / f"big-{name}", *options)
        data = patch["IMAGE"].data
        scale = np.sqrt(abs(np.linalg.det(WCS(patch["IMAGE"].header).pixel_scale_matrix))) * 3600
        cx, cy = WCS(patch["IMAGE"].header).all_world2pix(*sky_scenes.CENTER, 0)
        yy, xx = np.mgrid[: data.shape[0], : data.shape[1]]
        inside = np.hypot(xx - cx, yy - cy) < 40 / scale
        y0, x0 = np.mgrid[:2048, :2048]
        true = galaxy[np.hypot(x0 - 1023.5, y0 - 1023.5) < 40 / sky_scenes.PIXEL].sum()
        counts = 10 ** (0.4 * (zero_point(patch) - sky_scenes.ZERO_POINT))
        which, matched, _ = near(found, truth)
        faint = matched & (truth["mag_r"] > 21)
        wrong = np.asarray(found["mag_auto"][which[faint]] - truth["mag_r"][faint])
        row = found[near(found, Table({"ra": [sky_scenes.CENTER[0]], "dec": [sky_scenes.CENTER[1]]}))[0][0]]
        share = np.nansum(data[inside]) / (true * counts)
        rows.append([name, f"{share:.3f}", f"{row['mag_auto']:.2f}", f"{np.nanmedian(wrong):+.3f}"])
    heads = (
        "",
        "light within 40 arcsec on the coadd, of the truth",
        "mag_auto (truth 13.0)",
        "faint stars, mag",
    )
    table(heads, rows)


def colours(folder: Path) -> None:
    """Two bands of different seeing: the colour of each object."""
    scene = Scene(side=700, seed=12, magnitudes=(18.0, 23.0))
    visits = [Visit(0.8 if n % 2 else 1.3, SHIFTS[n], band="r" if n % 2 else "g", seed=n) for n in range(6)]
    exposures, truth = sky_scenes.observed(folder / "colours", scene, visits)
    rows = []
    for name, options in (("default", ()), ("--match-psf", ("--match-psf",))):
        found, _ = astro(exposures, folder / f"colours-{len(options)}", *options)
        which, matched, _ = near(found, truth)
        for star in (True, False):
            here = matched & (np.asarray(truth["star"]) == star) & alone(truth)
            wrong = np.ma.filled(found["color_g_r"][which[here]], np.nan)
            wrong = np.asarray(wrong - (truth["mag_g"][here] - truth["mag_r"][here]), float)
            row = [name, "stars" if star else "galaxies", here.sum()]
            rows.append([*row, f"{np.nanmedian(wrong):+.3f}", f"{spread(wrong):.3f}"])
    table(("", "", "objects", "median error of g - r", "scatter"), rows)


#: In the order of the page, with the heading of each.
TABLES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "depth": ("Depth, purity, bias and errors", depth),
    "negative": ("Sources where nothing is", negative),
    "trails": ("A satellite in one visit", trails),
    "sharp": ("One sharp visit", sharp),
    "big": ("A large galaxy", big),
    "frames": ("Sky frames", frames),
    "flags": ("Bits that say nothing bad", flags),
    "sky": ("Exposures without their sky", sky_left),
    "colours": ("Colours of two bands", colours),
}


def wanted(names: Sequence[str]) -> Iterator[tuple[str, Callable[[Path], None]]]:
    for name in names or TABLES:
        yield TABLES[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"some of {', '.join(TABLES)}; all by default"
    )
    parser.add_argument("--keep", type=Path, help="the folder for all files, which stay")
    arguments = parser.parse_args()
    for name in arguments.tables:
        if name not in TABLES:
            parser.error(f"no table {name}: there are {', '.join(TABLES)}")
    with tempfile.TemporaryDirectory() as folder:
        folder = arguments.keep or Path(folder)
        folder.mkdir(exist_ok=True, parents=True)
        for title, measure in wanted(arguments.tables):
            say(f"## {title}", "", (measure.__doc__ or "").strip())
            measure(folder)


if __name__ == "__main__":
    main()
