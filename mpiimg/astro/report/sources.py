"""Sources on the page: where they are, how many there are by magnitude, and how well they are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mpiimg.astro.report.results import SurveyResults
from mpiimg.astro.report.tables import columns_of, where
from mpiimg.astro.wide import blue_to_red
from mpiimg.report.drawing import SERIES, as_svg, new_figure, style
from mpiimg.report.page import Item, Picture, Section, Table

#: Bytes of a catalogue in ECSV that is read for the page: larger ones take minutes.
MAX_ECSV = 200 << 20


@dataclass(frozen=True)
class Sources:
    """Primary sources of a catalogue; arrays of one length.

    Parameters
    ----------
    band : of str; empty where a row is an object in all bands
    ra, dec : degrees
    x, y : tract pixels
    fwhm : pixels of the tract
    flux : of the Kron ellipse, the largest of all bands
    flags : bool, whether any is set
    """

    band: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    x: np.ndarray
    y: np.ndarray
    fwhm: np.ndarray
    flux: np.ndarray
    flags: np.ndarray

    def chosen(self, rows: np.ndarray) -> Sources:
        """Return some of them."""
        return Sources(*(getattr(self, field.name)[rows] for field in fields(self)))

    def of_band(self, band: str) -> Sources:
        """Return those of a band, or all where rows are objects."""
        return self.chosen((self.band == band) | (self.band == ""))

    def brightest(self, most: int) -> Sources:
        """Return so many of the largest flux."""
        flux = np.nan_to_num(self.flux, nan=-np.inf)
        return self.chosen(np.sort(np.argsort(-flux, kind="stable")[:most]))


def catalogue_path(results: SurveyResults) -> Path | None:
    """Return the catalogue of the last run that has one: its regions lie beside it."""
    for run in reversed(results.runs):
        for name in run.outputs:
            known = Path(name).suffix in (".fits", ".ecsv", ".parquet")
            if known and str(Path(name).with_suffix(".reg")) in run.outputs:
                return run.out / name
    return None


def read_sources(results: SurveyResults) -> Sources | None:
    """Return the primary sources; None where there is no catalogue, or one that takes too long to read."""
    from astropy.table import Table

    path = catalogue_path(results)
    if path is None or (path.suffix == ".ecsv" and path.stat().st_size > MAX_ECSV):
        return None
    if path.suffix == ".parquet":
        from mpiimg.astro.catalogue import load_pyarrow

        table = load_pyarrow(path)[1].read_table(path)
        columns = {name: table[name].to_numpy() for name in table.column_names}
    else:
        fits = path.suffix == ".fits"
        read = Table.read(path, format="fits", hdu=1) if fits else Table.read(path, format="ascii.ecsv")
        columns = {name: np.asarray(read[name]) for name in read.colnames}
    return sources_of(columns)


def sources_of(columns: dict[str, np.ndarray]) -> Sources:
    """Return the primary sources of the columns of a catalogue, in whichever of its two forms."""
    of_bands = {
        name: [one for one in columns if one == name or one.endswith(f"_{name}")]
        for name in ("fwhm", "flux_auto", "flags")
    }
    together = "band" not in columns
    count = len(columns["id"])
    own = {name: names if together else [name] for name, names in of_bands.items()}
    own["flags"] = [name for name in own["flags"] if not name.endswith("mask_flags")]
    primary = np.asarray(columns["is_primary"], bool)

    def most(name):
        if not count:
            return np.zeros(0)
        return np.fmax.reduce([np.asarray(columns[one], np.float64) for one in own[name]])

    found = Sources(
        np.full(count, "") if together else np.asarray(columns["band"], str),
        *(np.asarray(columns[name], np.float64) for name in ("ra", "dec", "x", "y")),
        most("fwhm"),
        most("flux_auto"),
        most("flags") > 0,
    )
    return found.chosen(primary)


# --- Number counts ----------------------------------------------------------------------------------------


def source_section(results: SurveyResults) -> Section | None:
    """Return the section about sources; None where nobody looked for any."""
    path = results.path("counts.tsv")
    if path is None:
        return None
    counts = columns_of(path, "\t")
    whole = where(counts, np.isnan(counts["mag"]))
    columns = ("sources", "density", "flagged", "galaxies", "fwhm", "noise_correction")
    heads = ["band", "sources above 5 sigma", "per arcmin\u00b2", "share with a flag", "share of galaxies"]
    heads += ["FWHM of stars [arcsec]", "noise over VARIANCE's"]
    bands = blue_to_red(whole["band"].tolist())
    rows = []
    for band in bands:
        (own,) = np.flatnonzero(whole["band"] == band)
        rows.append([band, int(whole["sources"][own]), *(float(whole[one][own]) for one in columns[1:])])
    table = Table(heads, rows, f"Sources of each band ({path.name})")
    items: list[Item] = [table]
    bins = where(counts, np.isfinite(counts["mag"]))
    if len(bins["mag"]):
        items.append(draw_counts(bins, bands))
    return Section("Sources", items)


def draw_counts(bins: Mapping[str, np.ndarray], bands: Sequence[str]) -> Picture:
    """Draw number counts, errors and the share of flags by magnitude."""
    with style():
        figure = new_figure(3.6)
        panels = figure.subplots(1, 3)
        for k, band in enumerate(bands):
            own = where(bins, bins["band"] == band)
            colour = SERIES[k % len(SERIES)]
            seen = own["sources"] > 0
            middle, number = own["mag"][seen], own["sources"][seen]
            # On a logarithmic axis no bar may reach down to nothing.
            error = own["density"][seen] * np.array([np.minimum(number**-0.5, 0.9), number**-0.5])
            panels[0].errorbar(
                middle, own["density"][seen], error, fmt="o-", ms=3, lw=1, color=colour, label=band
            )
            panels[1].plot(middle, own["mag_err"][seen], "o-", ms=3, lw=1, color=colour)
            panels[2].plot(middle, 100 * own["flagged"][seen], "o-", ms=3, lw=1, color=colour)
        panels[0].set(yscale="log", ylabel="sources per arcmin\u00b2 and mag")
        panels[1].set(yscale="log", ylabel="median error of mag_auto [mag]")
        panels[1].axhline(0.2, color="#999999", lw=0.8, ls=":")
        panels[2].set(ylabel="share with a flag [%]", ylim=(0, None))
        for axes in panels:
            axes.set(xlabel="mag_auto [mag, AB]")
            axes.grid(color="#e4e4e4", lw=0.6)
        if len(bands) > 1:
            panels[0].legend(frameon=False, ncols=2)
        return as_svg(
            figure,
            f"Number counts, errors and flags of sources by magnitude in {', '.join(bands)}",
            "Good: counts rise steadily and turn over at the limit of the coadd, errors rise to 0.2 mag "
            "(dotted, a signal over noise of 5) there. Bad: an excess at the faint end (noise or artifacts "
            "taken for sources), a lack at the bright end (saturation), errors that level off at a high "
            "value (a wrong sky or a wrong variance), flags on most of a range.",
        )
