"""Catalogues: what a row holds, tables in Parquet, FITS and ECSV, and regions for DS9.

The bytes of a file follow from its content alone: no date, no name of a machine, fixed options.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.engine.atomic import write_file
from mpiimg.engine.containment import ends_run
from mpiimg.engine.names import shown
from mpiimg.errors import BadInput

#: Of fluxes and of the background: counts at :data:`mpiimg.astro.constants.ZERO_POINT`.
FLUX_UNIT = "ct"

#: Where a DS9 circle would be too small to see, in pixels.
SMALLEST_CIRCLE = 3.0


@dataclass(frozen=True)
class Column:
    """A column of the catalogue.

    Parameters
    ----------
    name, dtype : str
        As in a structured array.
    unit : str
        As FITS writes it, or empty.
    description : str
        One line.
    """

    name: str
    dtype: str
    unit: str
    description: str


def _fluxes(name: str, what: str, correction: str) -> tuple[Column, ...]:
    return (
        Column(f"flux_{name}", "f4", FLUX_UNIT, f"flux {what}"),
        Column(f"flux_{name}_err", "f4", FLUX_UNIT, f"error of flux_{name}, scaled by NOISCORR"),
        Column(f"mag_{name}", "f4", "mag", f"AB magnitude of flux_{name}{correction}; NaN for no flux"),
        Column(f"mag_{name}_err", "f4", "mag", f"error of mag_{name}"),
        Column(
            f"replaced_{name}", "f4", "", f"share of the pixels of flux_{name} replaced by those opposite"
        ),
    )


COLUMNS = (
    Column("id", "i8", "", "unique: (number of the patch << 32) + number of the row, from 1"),
    Column("parent", "i8", "", "id of the first source of the blend this was split from; 0 where alone"),
    Column("is_primary", "?", "", "False for the second detection of a source at a seam of patches"),
    Column("patch", "S12", "", "x-y index of the patch in the tract, as in the name of its file"),
    Column("band", "S16", "", "filter"),
    Column("ra", "f8", "deg", "right ascension, ICRS"),
    Column("dec", "f8", "deg", "declination, ICRS"),
    Column("ra_err", "f4", "deg", "error of ra on the sky (times cos dec)"),
    Column("dec_err", "f4", "deg", "error of dec"),
    Column("x", "f8", "pixel", "column in the tract, 0 at the centre of the first pixel"),
    Column("y", "f8", "pixel", "row in the tract, 0 at the centre of the first pixel"),
    Column("x_err", "f4", "pixel", "error of x"),
    Column("y_err", "f4", "pixel", "error of y"),
    *_fluxes("small", "in the small aperture", ", aperture corrected"),
    *_fluxes("large", "in the large aperture", ""),
    *_fluxes("auto", "in the Kron ellipse", ""),
    Column("fwhm", "f4", "pixel", "full width at half maximum, of stars before pixels take means"),
    Column("star_galaxy", "f4", "", "standard deviations beyond the stars of the patch: above 2.5 a galaxy"),
    Column("a", "f4", "pixel", "rms along the major axis"),
    Column("b", "f4", "pixel", "rms along the minor axis"),
    Column("theta", "f4", "deg", "angle of the major axis from +x towards +y"),
    Column("peak", "f4", FLUX_UNIT, "brightest pixel above the background"),
    Column("npix", "i4", "", "pixels above the threshold"),
    Column("background", "f4", FLUX_UNIT, "background a pixel, at the centre; it has been subtracted"),
    Column("n_image", "i2", "", "exposures in the coadd at the centre"),
    Column(
        "flags",
        "i2",
        "",
        "sep: 1 merged 2 truncated 4 overflow 8 singular 16-128 aperture 256 over half replaced",
    ),
    Column(
        "mask_flags",
        "i4",
        "",
        "OR of MASK over the pixels of the source; REJECTED of those within a FWHM of its centre",
    ),
)

#: Of a table with a row for each object and columns for each band: how many bands have data there.
N_BANDS = Column("n_bands", "i2", "", "bands with data at the object")

#: What the name of a colour begins with, and by what it ends with what each of its columns holds.
COLOUR = "color_"
COLOUR_COLUMNS = {
    "": Column(
        "", "f4", "mag", "mag_small in one band less that in the other, corrected to all light of stars"
    ),
    "_err": Column("_err", "f4", "mag", "error of the colour"),
    "_flag": Column("_flag", "?", "", "True where seeing differs by over 10 % and is not matched"),
}

#: A row of the catalogue.
ROW_TYPE = np.dtype([(column.name, column.dtype) for column in COLUMNS])


def column(name: str) -> Column:
    """Return what a column of a catalogue holds, one of a band among several too, as ``r_flux_auto``."""
    known = {one.name: one for one in (*COLUMNS, N_BANDS)}
    if name in known:
        return known[name]
    if name.startswith(COLOUR):
        ending = max((end for end in COLOUR_COLUMNS if name.endswith(end)), key=len)
        return dataclasses.replace(COLOUR_COLUMNS[ending], name=name)
    about = known[_in_one_band(name)]
    band = name.removesuffix(f"_{about.name}")
    return dataclasses.replace(about, name=name, description=f"{band}: {about.description}")


def _in_one_band(name: str) -> str:
    """Return what a column is called where there is one band: ``flux_auto`` of ``r_flux_auto``."""
    endings = [one.name for one in COLUMNS if name == one.name or name.endswith(f"_{one.name}")]
    return max(endings, key=len, default="")


def new(rows: int) -> np.ndarray:
    """Return a table of `rows` rows of :data:`ROW_TYPE`: NaN where nothing is known yet, and primary."""
    table = np.zeros(rows, ROW_TYPE)
    for name in ROW_TYPE.names:
        if ROW_TYPE[name].kind == "f":
            table[name] = np.nan
    table["is_primary"] = True
    return table


def text(name: str) -> str:
    """Return a name as catalogues have it: letters of ASCII that print; others as Python escapes them."""
    return shown(name).encode("ascii", "backslashreplace").decode()


def with_names(table: np.ndarray, patches: Sequence[str], bands: Sequence[str]) -> np.ndarray:
    """Return rows of :data:`ROW_TYPE` with the whole names of patch and band, however long these are.

    Parameters
    ----------
    table : structured array
        Whose ids tell the number of the patch.
    patches, bands : sequence of str
        Of each patch.
    """
    names = {"patch": np.array(patches, "S"), "band": np.array([text(band) for band in bands], "S")}
    cut = {name: one for name, one in names.items() if one.dtype.itemsize > ROW_TYPE[name].itemsize}
    if not cut:
        return table
    types = [(name, cut[name].dtype if name in cut else ROW_TYPE[name]) for name in ROW_TYPE.names]
    wide = np.empty(len(table), types)
    for name in ROW_TYPE.names:
        wide[name] = cut[name][table["id"] >> 32] if name in cut else table[name]
    return wide


def check_ending(path: Path) -> str:
    """Return the format that the ending of `path` names: "parquet", "fits", "ecsv" or "reg".

    Raises
    ------
    BadInput
        For another ending, or for Parquet without pyarrow. To be called before a run starts.
    """
    ending = Path(path).suffix.lower().lstrip(".")
    if ending not in _ENCODERS:
        raise BadInput(f"{path}: a catalogue ends in .parquet, .fits, .ecsv or (regions for DS9) .reg")
    if ending == "parquet":
        load_pyarrow(path)
    return ending


def encode(path: Path, table: np.ndarray, meta: Mapping[str, object]) -> bytes:
    """Return the bytes of a catalogue in the format that the ending of `path` names.

    Parameters
    ----------
    table : structured array
        Some or all of :data:`COLUMNS`.
    meta : mapping
        Strings and numbers; names of up to eight characters (they become FITS cards).

    Raises
    ------
    BadInput
        As :func:`check_ending`.
    """
    return _ENCODERS[check_ending(path)](table, dict(sorted(meta.items())))


def save_catalogue(path: Path, table: np.ndarray, meta: Mapping[str, object]) -> None:
    """Write a catalogue beside its place and rename it; parameters as in :func:`encode`."""
    path = Path(path)
    data = encode(path, table, meta)
    try:
        write_file(path, data)
    except OSError as error:
        if ends_run(error):
            raise
        raise BadInput(f"{path}: cannot write the catalogue: {error.strerror}") from None


def as_table(table: np.ndarray, meta: Mapping[str, object]):
    """Return an astropy Table with units and descriptions; strings are text."""
    from astropy.table import Column as TableColumn
    from astropy.table import Table

    columns = []
    for name in table.dtype.names:
        values = table[name].astype("U") if table.dtype[name].kind == "S" else table[name]
        about = column(name)
        columns.append(TableColumn(values, name, unit=about.unit or None, description=about.description))
    return Table(columns, meta=dict(meta))


def _encode_fits(table: np.ndarray, meta: Mapping[str, object]) -> bytes:
    from astropy.io import fits

    hdu = fits.table_to_hdu(as_table(table, meta))
    hdu.name = "CATALOG"
    for number, name in enumerate(table.dtype.names, 1):
        hdu.header.set(f"TCOMM{number}", column(name).description, after=f"TFORM{number}")
    out = io.BytesIO()
    hdus = fits.HDUList([fits.PrimaryHDU(), hdu])
    for part in hdus:
        # astropy would write the time into the comment.
        part.add_checksum(when="of the bytes as written")
    hdus.writeto(out)
    return out.getvalue()


def _encode_ecsv(table: np.ndarray, meta: Mapping[str, object]) -> bytes:
    from astropy.io import ascii

    out = io.StringIO()
    ascii.write(as_table(table, meta), out, format="ecsv", delimiter=",")
    return out.getvalue().encode()


def _encode_parquet(table: np.ndarray, meta: Mapping[str, object]) -> bytes:
    from astropy.table.meta import get_yaml_from_table

    arrow, parquet = load_pyarrow("the catalogue")
    rows = as_table(table, meta)
    fields, columns = [], []
    # Two readers are served: what reads the fields of Arrow, and astropy, which reads its own YAML.
    about = {"mpiimg": json.dumps(meta), "table_meta_yaml": "\n".join(get_yaml_from_table(rows))}
    for name in rows.colnames:
        column = rows[name]
        values = arrow.array(column.data.tolist() if column.dtype.kind == "U" else column.data)
        if column.dtype.kind == "U":
            values = values.cast(arrow.string())
            about[f"table::len::{name}"] = str(column.dtype.itemsize // 4)
        described = {"unit": str(column.unit or ""), "description": column.description}
        fields.append(arrow.field(name, values.type, nullable=False, metadata=described))
        columns.append(values)
    out = io.BytesIO()
    parquet.write_table(
        arrow.Table.from_arrays(columns, schema=arrow.schema(fields, metadata=about)),
        out,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        row_group_size=1 << 20,
    )
    return out.getvalue()


def _encode_regions(table: np.ndarray, meta: Mapping[str, object]) -> bytes:
    return regions(table, float(meta.get("PIXSCALE", 1.0))).encode()


_ENCODERS = {
    "parquet": _encode_parquet,
    "fits": _encode_fits,
    "ecsv": _encode_ecsv,
    "reg": _encode_regions,
}


def regions(table: np.ndarray, pixel_scale: float) -> str:
    """Return circles for DS9: one per primary source, of its full width; red where a flag is set.

    Circles, since DS9's angle of an ellipse on the sky depends on the orientation of the image.

    Parameters
    ----------
    table : structured array
        Rows of :data:`ROW_TYPE`, with ra and dec.
    pixel_scale : float
        Arcseconds per pixel; card PIXSCALE in the meta data of a catalogue.
    """
    lines = ["# Region file format: DS9 version 4.1", "global color=green width=1", "icrs"]
    table = table[table["is_primary"]]
    widths = np.fmax.reduce([table[name] for name in _in_bands(table, "fwhm")])
    flagged = np.any([table[name] != 0 for name in _in_bands(table, "flags")], axis=0)
    for row, width, flag in zip(table, widths, flagged, strict=True):
        # A width is missing where the source is too small, and wrong where it is saturated.
        radius = pixel_scale * np.fmax(width, SMALLEST_CIRCLE)
        colour = " color=red" if flag else ""
        lines.append(f'circle({row["ra"]:.7f},{row["dec"]:.7f},{radius:.3f}") # text={{{row["id"]}}}{colour}')
    return "\n".join(lines) + "\n"


def _in_bands(table: np.ndarray, name: str) -> list[str]:
    """Return the names of the columns of a value: one, or one of each band."""
    return [one for one in table.dtype.names if _in_one_band(one) == name]


def load_pyarrow(path):
    """Return pyarrow and its reader of Parquet, or refuse `path` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadInput(
            f"{path}: Parquet needs pyarrow: pip install 'mpiimg[parquet]', or choose .fits or .ecsv"
        ) from None
    return pyarrow, pyarrow.parquet
