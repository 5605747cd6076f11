"""Reference catalogues: which column has the magnitude in which band, and colour terms."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mpiimg.astro.catalogue import load_pyarrow
from mpiimg.astro.photometry.overlaps import Catalogue
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput

#: Columns of right ascension and declination (ICRS), as surveys call them; the first pair there counts.
POSITIONS = (
    ("ra", "dec"),
    ("raMean", "decMean"),  # Pan-STARRS 1
    ("RA_ICRS", "DE_ICRS"),  # VizieR
    ("RAJ2000", "DEJ2000"),
    ("ALPHA_J2000", "DELTA_J2000"),
)

#: Columns of the magnitude in a band; letters of either case differ, since G of Gaia is not g.
MAGNITUDES = ("mag_{}", "{}", "{}mag", "{}_mag", "{}Mag", "{}MeanPSFMag", "{}PSFMag")

#: What Gaia calls its own bands.
GAIA = {"G": "phot_g_mean_mag", "BP": "phot_bp_mean_mag", "RP": "phot_rp_mean_mag"}

#: A column that says of no band which it is.
ANY = "mag"

_TERM = re.compile(r"\s*([+-]?\d*\.?\d+(?:[eE][+-]?\d+)?)\s*\*\s*\(\s*([^()]+?)\s*-\s*([^()]+?)\s*\)\s*")


def magnitude_choice(text: str) -> str:
    """Check what --reference-mag says; as a parameter's form has it.

    Raises
    ------
    ValueError
        It is neither a column nor BAND=COLUMN with commas between them.
    """
    chosen_columns(text)
    return text


def colour_choice(text: str) -> str:
    """Check what --reference-color says; as a parameter's form has it.

    Raises
    ------
    ValueError
        It is no BAND=NUMBER*(BAND-BAND) with commas between them.
    """
    colour_terms(text)
    return text


def chosen_columns(text: str | None) -> dict[str, str]:
    """Return the column for each band that a user has named; that of all others by an empty name."""
    chosen: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        band, equals, column = (one.strip() for one in part.rpartition("="))
        if not column or (equals and not band) or band in chosen:
            raise ValueError("must be BAND=COLUMN, with commas between several, or one COLUMN for all bands")
        chosen[band] = column
    return chosen


def colour_terms(text: str | None) -> dict[str, tuple[float, str, str]]:
    """Return the colour term of each band that a user has given: factor, and the bands of the colour."""
    terms: dict[str, tuple[float, str, str]] = {}
    for part in text.split(",") if text else ():
        band, _, term = part.partition("=")
        matched = _TERM.fullmatch(term)
        if not band.strip() or matched is None or band.strip() in terms or abs(float(matched[1])) > 10:
            raise ValueError(
                "must be BAND=NUMBER*(BAND-BAND) with a number from -10 to 10, as g=0.05*(g-r), and commas "
                "between several"
            )
        terms[band.strip()] = (float(matched[1]), matched[2], matched[3])
    return terms


def read_references(
    path: Path, bands: Iterable[str], columns: str | None = None, colours: str | None = None
) -> dict[str, Catalogue]:
    """Read the reference stars of each band.

    Parameters
    ----------
    path : Path
        FITS (first table), ECSV, CSV or Parquet, by its ending.
    bands : iterable of str
        Of the exposures.
    columns : str, optional
        The column of each band, as --reference-mag has it.
    colours : str, optional
        What is added to the magnitudes of a band: a number times a colour of the star, as --reference-color
        has it. Stars without that colour are left out.

    Raises
    ------
    BadInput
        The file cannot be read, it does not say which of its columns a band is, or one column would serve
        several bands without having been asked to.
    """
    bands = sorted(set(bands))
    table, chosen, terms = _read_columns(path), chosen_columns(columns), colour_terms(colours)
    for band in sorted(set(terms) - set(bands)):
        raise BadInput(
            f"--reference-color {band}=...: no exposure is in this band, but in {', '.join(bands)}"
        )
    ra, dec = _positions(path, table)

    def magnitudes(band):
        column = _magnitude_column(path, table, band, chosen)
        return column, _numbers(path, column, table[column], False)

    catalogues: dict[str, Catalogue] = {}
    taken: dict[str, str] = {}
    for band in bands:
        column, magnitude = magnitudes(band)
        if taken.setdefault(column, band) != band and column not in chosen.values():
            raise BadInput(
                f"{path}: its column {column} would be the magnitude in {shown(taken[column])} and in "
                f"{shown(band)} alike; name a column for each with --reference-mag BAND=COLUMN,..., or say "
                f"that it is right for all with --reference-mag {column}"
            )
        if band in terms:
            factor, blue, red = terms[band]
            magnitude = magnitude + factor * (magnitudes(blue)[1] - magnitudes(red)[1])
        whole = np.isfinite(ra) & np.isfinite(dec) & np.isfinite(magnitude)
        if not whole.any():
            raise BadInput(f"{path}: no row has a position and a magnitude in {shown(band)} ({column})")
        catalogues[band] = Catalogue(ra[whole], dec[whole], magnitude[whole], np.zeros(whole.sum()))
    return catalogues


def digest(references: Mapping[str, Catalogue] | None) -> int | None:
    """Return a number that tells reference stars from others."""
    if references is None:
        return None
    total = 0
    for band, stars in sorted(references.items()):
        for values in (np.frombuffer(band.encode(), np.uint8), *stars):
            total = zlib.crc32(np.ascontiguousarray(values).tobytes(), total)
    return total


def _positions(path: Path, table: Mapping[str, object]) -> tuple[np.ndarray, np.ndarray]:
    lower = {name.lower(): name for name in table}
    names = next(
        (pair for pair in POSITIONS if all(name.lower() in lower for name in pair)),
        None,
    )
    if names is None:
        raise BadInput(f"{path}: a reference catalogue needs columns ra and dec; there are {_listed(table)}")
    ra, dec = (_numbers(path, name, table[lower[name.lower()]], True) for name in names)
    known = np.isfinite(ra) & np.isfinite(dec)
    if known.any() and (np.abs(dec[known]).max() > 90 or np.abs(ra[known]).max() > 360):
        raise BadInput(f"{path}: {names[0]} and {names[1]} must be degrees (or carry their unit)")
    return ra % 360, dec


def _magnitude_column(path: Path, table: Mapping[str, object], band: str, chosen: Mapping[str, str]) -> str:
    """Return the name of the column with the magnitude in a band."""
    named = chosen.get(band, chosen.get(""))
    if named is not None:
        if named in table:
            return named
        alike = [name for name in table if name.lower() == named.lower()]
        if len(alike) == 1:
            return alike[0]
        raise BadInput(
            f"{path}: has no column {named}, which --reference-mag names; there are {_listed(table)}"
        )
    usual = [pattern.format(band) for pattern in MAGNITUDES] + [
        name for own, name in GAIA.items() if own == band
    ]
    # mag alone in either case, as long as nothing else is called so.
    usual += [name for name in table if name.lower() == ANY]
    for name in usual:
        if name in table:
            return name
    raise BadInput(
        f"{path}: which column is the magnitude in {shown(band)}? There is none of {', '.join(usual)}; there "
        f"are {_listed(table)}; give --reference-mag {shown(band)}=COLUMN"
    )


def _listed(table: Mapping[str, object]) -> str:
    names = sorted(table)
    return ", ".join(map(shown, names[:12])) + (" and more" if len(names) > 12 else "") if names else "none"


def _read_columns(path: Path) -> dict:
    """Return the columns of a table by their names."""
    from astropy.table import Table

    ending = path.suffix.lower().lstrip(".")
    formats = {"fits": "fits", "fit": "fits", "ecsv": "ascii.ecsv", "csv": "ascii.csv"}
    if ending not in (*formats, "parquet"):
        raise BadInput(f"{path}: a reference catalogue ends in .fits, .ecsv, .csv or .parquet")
    options = {"hdu": 1} if formats.get(ending) == "fits" else {}
    try:
        if ending == "parquet":
            _, parquet = load_pyarrow(path)
            columns = parquet.read_table(path)
            return {name: columns[name].to_numpy() for name in columns.column_names}
        table = Table.read(path, format=formats[ending], **options)
    except BadInput:
        raise
    except Exception as error:
        # Readers raise whatever a broken file makes them stumble over.
        said = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
        raise BadInput(f"{path}: cannot read the reference catalogue: {said.splitlines()[0]}") from None
    return {name: table[name] for name in table.colnames}


def _numbers(path: Path, name: str, column, angle: bool) -> np.ndarray:
    """Return a column as float64: degrees where it is an angle, NaN where a number is masked."""
    from astropy import units

    unit = getattr(column, "unit", None)
    try:
        values = np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan).astype(np.float64)
        if angle and unit is not None:
            values = (values * units.Unit(unit)).to_value(units.deg)
    except (TypeError, ValueError, units.UnitConversionError):
        what = f"angles (unit {unit})" if angle and unit is not None else "numbers"
        raise BadInput(f"{path}: column {name} of the reference catalogue holds no {what}") from None
    return values
