"""The paragraph of a paper that says how a survey was made, with what to cite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpiimg.astro.constants import ZERO_POINT
from mpiimg.astro.report.results import SurveyResults
from mpiimg.report.page import Listing, Section, Text
from mpiimg.version import __version__

#: What is cited, by the words of the text.
PAPERS = {
    "van Dokkum 2001": "van Dokkum 2001, PASP 113, 1420, doi:10.1086/323894",
    "Bertin & Arnouts 1996": "Bertin and Arnouts 1996, A&AS 117, 393, doi:10.1051/aas:1996164",
    "Barbary 2016": "Barbary 2016, JOSS 1(6), 58, doi:10.21105/joss.00058",
    "Padmanabhan et al. 2008": "Padmanabhan et al. 2008, ApJ 674, 1217, doi:10.1086/524677",
    "Greisen & Calabretta 2002": "Greisen and Calabretta 2002, A&A 395, 1061, doi:10.1051/0004-6361:20021326",
    "Calabretta & Greisen 2002": "Calabretta and Greisen 2002, A&A 395, 1077, doi:10.1051/0004-6361:20021327",
    "Nir et al. 2018": "Nir, Zackay and Ofek 2018, AJ 156, 229, doi:10.3847/1538-3881/aaddff",
    "Szalay et al. 1999": "Szalay, Connolly and Szokoly 1999, AJ 117, 68, doi:10.1086/300689",
    "Kron 1980": "Kron 1980, ApJS 43, 305, doi:10.1086/190669",
    "Astropy Collaboration 2022": "Astropy Collaboration 2022, ApJ 935, 167, doi:10.3847/1538-4357/ac7c74",
    "Harris et al. 2020": "Harris et al. 2020, Nature 585, 357, doi:10.1038/s41586-020-2649-2",
}


def methods_section(results: SurveyResults) -> Section | None:
    """Return the section to be pasted into a paper; None where no step of a survey was done."""
    told = {"calibrate": _calibrate, "warp": _warp, "coadd": _coadd, "detect": _detect}
    sentences = [told[step](results.parameters, results) for step in results.steps]
    if not sentences:
        return None
    version = results.runs[-1].record.get("version", __version__)
    sentences = [
        f"Images were processed with mpiimg {version}.",
        *sentences,
        "All of this was built on NumPy (Harris et al. 2020) and Astropy (Astropy Collaboration 2022).",
    ]
    text = " ".join(sentences)
    cited = sorted(paper for words, paper in PAPERS.items() if words in text)
    return Section(
        "Methods",
        [
            Text("This may be pasted into a paper; it says what the options of these runs were."),
            Listing(text, "What was done"),
            Listing("\n".join(cited), "References"),
        ],
    )


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _length(value: Any) -> str:
    """Return a length that is given in pixels or on the sky, in words."""
    text = str(value)
    return f"{text.removesuffix('arcsec')} arcsec" if text.endswith("arcsec") else f"{text} pixels"


def _calibrate(p: Mapping[str, Any], results: SurveyResults) -> str:
    count = len(results.exposures.get("name", ()))
    bands = " and ".join(filter(None, [", ".join(results.bands[:-1]), *results.bands[-1:]]))
    text = f"{count} exposures in {bands} were calibrated one by one. " if count else ""
    if p.get("no_cosmic_rays") or p.get("cosmic_rays") == "never":
        text += "Cosmic rays were not looked for. "
    else:
        text += (
            "Cosmic rays were found by Laplacian edge detection (L.A.Cosmic; van Dokkum 2001) with a "
            f"threshold of {_number(p.get('sigclip'))} standard deviations, {_number(p.get('sigfrac'))} of "
            f"it for their neighbours, a contrast of {_number(p.get('objlim'))}, in at most "
            f"{_number(p.get('cr_iterations'))} iterations, and repaired. "
        )
    if p.get("noise") == "measured":
        text += "Variances were scaled to the noise measured between sources where they differed from it. "
    masked = "between objects, which had been masked, " if p.get("sky") == "objects-masked" else ""
    text += (
        f"The sky was measured {masked}in meshes of {_length(p.get('mesh'))} with sep (Barbary 2016; Bertin "
        "& Arnouts 1996), and subtracted. "
    )
    return text + _zero_points(p, results)


def _zero_points(p: Mapping[str, Any], results: SurveyResults) -> str:
    kinds = set(results.exposures.get("zero_point_type", ()))
    radius = f"within {_number(p.get('match_radius'))} arcsec"
    told = []
    if "REFERENCE" in kinds:
        told.append(f"the magnitudes of stars {radius} of those of a reference catalogue")
    if "CARD" in kinds:
        told.append("the headers of exposures")
    if kinds & {"MATCHED", "RELATIVE"}:
        told.append(
            f"robust least squares on stars that exposures share ({radius}; Padmanabhan et al. 2008)"
            + (", relative to each other" if "RELATIVE" in kinds else "")
        )
    return f"Zero points are from {' and '.join(told)}." if told else ""


def _warp(p: Mapping[str, Any], results: SurveyResults) -> str:
    scale = f" with pixels of {results.pixel_scale:g} arcsec" if results.pixel_scale > 0 else ""
    kernel = "a Lanczos-3 kernel" + (
        ", made wider where pixels become larger" if p.get("resampling") == "auto" else ""
    )
    return (
        f"Exposures were resampled by {kernel}, flux conserved, onto a tangential projection{scale} (Greisen "
        f"& Calabretta 2002; Calabretta & Greisen 2002), and scaled to a zero point of {ZERO_POINT:g} mag."
    )


def _coadd(p: Mapping[str, Any], results: SurveyResults) -> str:
    how = {
        "compare": "averaged but for artifacts, which were found as differences to the median of all "
        "exposures at one seeing, and faint trails as sums along lines (Nir et al. 2018)",
        "clip": f"averaged, clipped at {_number(p.get('sigma'))} standard deviations in "
        f"{_number(p.get('passes'))} passes",
        "mean": "averaged",
        "median": "combined by their median",
    }
    weights = "" if p.get("statistic") == "median" else ", weighted by the inverse variance of their skies"
    return f"They were {how.get(str(p.get('statistic')), 'combined')}{weights}."


def _detect(p: Mapping[str, Any], results: SurveyResults) -> str:
    noise = "the filtered image" if p.get("threshold_noise") == "filtered" else "single pixels"
    together = p.get("bands") == "together" and len(results.bands) > 1
    image = "the coadds"
    if together:
        chi = " (a chi-square image; Szalay et al. 1999)" if p.get("combine") == "chi" else ", summed"
        image += f" of all bands together{chi}"
    split = "" if p.get("no_deblend") else ", and deblended"
    radii = str(p.get("apertures", "")).replace("arcsec", "").replace(",", " and ")
    unit = "arcsec" if "arcsec" in str(p.get("apertures")) else "pixels"
    return (
        f"Sources of at least {_number(p.get('min_area'))} pixels above {_number(p.get('threshold'))} "
        f"standard deviations of {noise} were found on {image}{split}, with sep (Barbary 2016; Bertin & "
        f"Arnouts 1996), above a background in meshes of {_length(p.get('detection_mesh'))}. Fluxes were "
        f"measured in circles with radii of {radii} {unit} and in elliptical apertures (Kron 1980); "
        "magnitudes are AB, with errors scaled to the noise in empty apertures."
    )
