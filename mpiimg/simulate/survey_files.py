"""The files of a simulated survey: exposures in every layout that is read, and the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpiimg.astro.fits.maskplanes import bits, plane_cards

if TYPE_CHECKING:
    from mpiimg.simulate.astro import SimulatedExposure, SimulatedSurvey

#: How an exposure may be written.
LAYOUTS = ("planes", "triplet", "single")


def exposure_name(visit: int, sensor: int) -> str:
    """Return the name of an exposure, which its files begin with."""
    return f"sim-{visit:04d}-{sensor:03d}"


def files(survey: SimulatedSurvey, visit: int, sensor: int, layout: str = "planes") -> dict:
    """Return the files of an exposure: name, below the survey's folder, and HDUList.

    Parameters
    ----------
    survey : SimulatedSurvey
    visit, sensor : int
    layout : {"planes", "triplet", "single"}
        "planes": IMAGE, VARIANCE and MASK of one file; "triplet": `ooi`, `oow` and `ood` as the DECam
        Community Pipeline writes them, EDGE being bad there; "single": the image alone.

    Raises
    ------
    ValueError
        For another layout, or an exposure that is not of the survey.

    Notes
    -----
    With them comes ``truth/<name>_cosmic-rays.fits.fz``, 1 where a cosmic ray is. No file tells the time.
    """
    from astropy.io import fits

    if layout not in LAYOUTS:
        raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, not {layout}")
    frame = survey.exposure(visit, sensor)
    name = exposure_name(visit, sensor)
    truth = fits.CompImageHDU(frame.cosmic_rays.astype(np.uint8), name="CR")
    out = {f"truth/{name}_cosmic-rays.fits.fz": fits.HDUList([fits.PrimaryHDU(), truth])}
    if layout == "single":
        out[f"{name}.fits"] = fits.HDUList([fits.PrimaryHDU(frame.image, frame.header)])
    elif layout == "triplet":
        out |= _triplet(frame, name, survey.band(visit))
    else:
        mask = fits.ImageHDU(frame.mask, _coordinates(frame.header), name="MASK")
        mask.header.extend(fits.Card(*card) for card in plane_cards())
        planes = [
            fits.ImageHDU(frame.image, frame.header, name="IMAGE"),
            fits.ImageHDU(frame.variance, _coordinates(frame.header), name="VARIANCE"),
            mask,
        ]
        out[f"{name}.fits"] = fits.HDUList([fits.PrimaryHDU(), *planes])
    return out


def _coordinates(header):
    """Return the cards of a header before OBJECT: the coordinates."""
    return header[: header.index("OBJECT")]


def _triplet(frame: SimulatedExposure, name: str, band: str) -> dict:
    """Return the three files that the DECam Community Pipeline would make of a frame."""
    from astropy.io import fits

    weight = 1 / frame.variance
    weight[frame.mask & bits("BAD") != 0] = 0
    codes = np.zeros(frame.mask.shape, np.int32)
    codes[frame.mask & bits("SAT") != 0] = 3
    codes[frame.mask & bits("BAD", "EDGE") != 0] = 1
    header = frame.header.copy()
    for card in ("GAIN", "RDNOISE"):
        header[f"{card}A"] = header[f"{card}B"] = header.pop(card)
    del header["BUNIT"]
    out = {}
    for letter, plane in (("i", frame.image), ("w", weight), ("d", codes)):
        primary = fits.PrimaryHDU()
        primary.header["PLVER"] = "V4.8.2a"
        image = fits.ImageHDU(plane, header, name=f"S{header['CCDNUM']}")
        out[f"{name}_oo{letter}_{band}.fits"] = fits.HDUList([primary, image])
    return out


def truth_files(survey: SimulatedSurvey) -> dict:
    """Return ``truth/survey.fits``: table STARS, the catalogue, and table EXPOSURES, how each was taken.

    Columns of STARS: RA, DEC (deg), and for each band MAG_<band> and FLUX_<band> (counts at zero point 27).
    Of EXPOSURES: VISIT, SENSOR, BAND, ZEROPOINT (mag), SEEING (arcsec), SKY (counts).
    """
    from astropy.io import fits

    catalogues = {band: survey.catalogue(band) for band in survey.bands}
    first = catalogues[survey.bands[0]]
    stars = [
        fits.Column("RA", "D", "deg", array=first["ra"]),
        fits.Column("DEC", "D", "deg", array=first["dec"]),
    ]
    for band, stars_in_band in catalogues.items():
        stars.append(fits.Column(f"MAG_{band}", "D", "mag", array=stars_in_band["mag"]))
        stars.append(fits.Column(f"FLUX_{band}", "D", "adu", array=stars_in_band["flux"]))
    visit, sensor = np.divmod(np.arange(survey.visits * survey.sensors), survey.sensors)
    facts = [survey.visit(number) for number in range(survey.visits)]
    exposures = [
        fits.Column("VISIT", "J", array=visit),
        fits.Column("SENSOR", "J", array=sensor),
        fits.Column("BAND", "16A", array=np.array([survey.band(number) for number in visit.tolist()])),
        fits.Column("ZEROPOINT", "D", "mag", array=survey.zeropoints().ravel()),
        fits.Column("SEEING", "D", "arcsec", array=np.array([facts[number].seeing for number in visit])),
        fits.Column("SKY", "D", "adu", array=np.array([facts[number].sky for number in visit])),
    ]
    tables = [
        fits.BinTableHDU.from_columns(stars, name="STARS"),
        fits.BinTableHDU.from_columns(exposures, name="EXPOSURES"),
    ]
    return {"truth/survey.fits": fits.HDUList([fits.PrimaryHDU(), *tables])}
