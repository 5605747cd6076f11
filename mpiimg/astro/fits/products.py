"""Our own files between the tools: warps and patches, found again by their cards and read bit for bit.

Both lie on the pixels of a tract, and say of which: cards TRACT (what :func:`tract_id` makes of it), PATCHX
and PATCHY (index of the patch), and TRACTX and TRACTY (column and row of their first pixel).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiimg.astro.fits.reading import Plane, read_headers, read_pixels
from mpiimg.astro.fits.writing import COMPRESSED, own_history
from mpiimg.astro.sky.tract import Tract
from mpiimg.engine.boxes import Box, box_shape
from mpiimg.engine.containment import ends_run
from mpiimg.engine.small_files import read_text
from mpiimg.errors import BadInput

#: How the names of warps end; those of patches hold "patch-" and do not end so.
WARP_ENDING = "_warp.fits"

WARP_PLANES = {"IMAGE": "float32", "VARIANCE": "float32", "MASK": "int32"}
PATCH_PLANES = {**WARP_PLANES, "NIMAGE": "int16"}

#: What either may have beside these, behind them.
FURTHER_PLANES = {"VARIANCE_LS": "float32"}


@dataclass(frozen=True)
class Product:
    """A warp or a patch on disk.

    Parameters
    ----------
    name, visit, sensor : str
        Of the exposure that was warped; empty for a patch.
    band : str
        Name of the filter.
    patch : (int, int)
        Column and row in the tract.
    box : Box
        Rows and columns in tract pixels.
    exptime, mjd : float, optional
        Seconds, and start of the exposure; None if unknown.
    fwhm : float, optional
        Of the stars of a warp, in pixels; None if unknown.
    history : tuple of str
        What was done to it, lines of HISTORY.
    planes : tuple of Plane
        Where its pixels lie.
    dtypes : tuple of str
        Of the planes.
    identity : (int, int, int)
        (size, mtime_ns, CRC32 of the headers).
    has_variance_ls : bool
        The last of its planes is VARIANCE_LS.
    """

    name: str
    band: str
    visit: str
    sensor: str
    patch: tuple[int, int]
    box: Box
    exptime: float | None
    mjd: float | None
    fwhm: float | None
    history: tuple[str, ...]
    planes: tuple[Plane, ...]
    dtypes: tuple[str, ...]
    identity: tuple[int, int, int]

    has_variance_ls: bool = False

    @property
    def path(self) -> Path:
        return self.planes[0].path


def tract_id(tract: Tract) -> str:
    """Return what tells the pixels of a tract from those of another."""
    return f"{zlib.crc32(tract.to_toml().encode()):08x}"


def place_cards(tract: Tract, patch: tuple[int, int], box: Box) -> dict[str, tuple]:
    """Return the cards that say where in a tract the pixels of a file lie."""
    return {
        "TRACT": (tract_id(tract), "which tract.toml the pixels are those of"),
        "PATCHX": (patch[0], "column of the patch in the tract"),
        "PATCHY": (patch[1], "row of the patch in the tract"),
        "TRACTX": (box[1][0], "[pix] first column in the tract"),
        "TRACTY": (box[0][0], "[pix] first row in the tract"),
    }


def read_tract(path: Path) -> Tract:
    """Read a tract.

    Raises
    ------
    BadInput
        It is missing, or no tract.
    """
    return Tract.from_toml(read_text(path, "this tract"), str(path))


def find_warps(folder: Path) -> tuple[Tract, list[Product]]:
    """Read the tract of a folder and the headers of its warps, in no order.

    Raises
    ------
    BadInput
        There are none, no tract, or they do not belong together.
    """
    return _find(folder, "warps", f"*{WARP_ENDING}", "mpiimg-warp", WARP_PLANES)


def find_patches(folder: Path) -> tuple[Tract, list[Product]]:
    """Read the tract of a folder and the headers of its patches, in no order.

    Raises
    ------
    BadInput
        There are none, no tract, or they do not belong together.
    """
    tract, products = _find(folder, "patches", "*patch-*.fits", "mpiimg-coadd", PATCH_PLANES)
    for product in products:
        if product.box != tract.outer(product.patch):
            raise BadInput(f"{product.path}: is not a whole patch; coadd it again")
    return tract, products


def _find(folder: Path, what: str, pattern: str, tool: str, planes: dict[str, str]):
    if not folder.is_dir():
        raise BadInput(f"{folder}: is no folder; name the one that {tool} wrote {what} to")
    paths = sorted((*folder.glob(pattern), *folder.glob(pattern + COMPRESSED)))
    if not pattern.endswith(WARP_ENDING):
        paths = [path for path in paths if not path.name.endswith(WARP_ENDING)]
    if not paths:
        raise BadInput(f"{folder}: holds no {what} ({pattern}); make them with {tool}")
    if not (folder / "tract.toml").exists():
        raise BadInput(f"{folder}: holds {what} but no tract.toml, which {tool} writes beside them")
    tract = read_tract(folder / "tract.toml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what astropy mends in headers
        products = [_one_product(path, planes, tract, tool) for path in paths]
    _refuse_duplicates(products)
    _refuse_mixed(products, tool)
    return tract, products


def _one_product(path: Path, planes: dict[str, str], tract: Tract, tool: str) -> Product:
    """Read the headers of a warp or patch; whatever is wrong with them is one line."""
    try:
        return _read_product(path, planes, tract, tool)
    except BadInput:
        raise
    except Exception as error:
        if ends_run(error):
            raise
        text = " ".join(str(error).split())
        raise BadInput(f"{path}: corrupt header: {text}; make it again with {tool}") from None


def _read_product(path: Path, planes: dict[str, str], tract: Tract, tool: str) -> Product:
    """Read the headers of a warp or patch, and check that its pixels are those of `tract`."""
    file = read_headers(path)
    images = {extension.name: extension for extension in file.images}
    missing = [name for name in planes if name not in images]
    if missing:
        raise BadInput(f"{path}: missing planes: {' and '.join(missing)}; make it again with {tool}")
    cards = file.primary
    try:
        patch = int(cards["PATCHX"]), int(cards["PATCHY"])
        first = int(cards["TRACTY"]), int(cards["TRACTX"])
        made_for = str(cards["TRACT"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(
            f"{path}: does not say where its pixels lie (TRACT, PATCHX, PATCHY, TRACTX, TRACTY); "
            f"make it with {tool}"
        ) from None
    if made_for != tract_id(tract):
        raise BadInput(
            f"{path}: mixed pixels: it was made for tract {made_for}, and {path.parent / 'tract.toml'} is "
            f"{tract_id(tract)}; make all with one tract"
        )
    planes = planes | {name: kind for name, kind in FURTHER_PLANES.items() if name in images}
    used = [images[name] for name in planes]
    box = tuple((start, start + length) for start, length in zip(first, used[0].shape, strict=True))
    fits = patch in tract and all(
        outer[0] <= bounds[0] and bounds[1] <= outer[1]
        for outer, bounds in zip(tract.outer(patch), box, strict=True)
    )
    if not fits or any(extension.shape != used[0].shape for extension in used):
        raise BadInput(f"{path}: mixed shapes: its planes do not fit into patch {patch[0]}-{patch[1]}")
    return Product(
        name=str(cards.get("EXPNAME", "")),
        band=str(cards.get("FILTER", "unknown")),
        visit=str(cards.get("EXPID", "")),
        sensor=str(cards.get("CCDNUM", "")),
        patch=patch,
        box=box,
        exptime=_number(cards, "EXPTIME"),
        mjd=_number(cards, "MJD-OBS"),
        fwhm=_number(cards, "FWHM"),
        history=own_history(cards),
        planes=tuple(extension.plane for extension in used),
        dtypes=tuple(planes.values()),
        identity=file.identity(*used),
        has_variance_ls="VARIANCE_LS" in planes,
    )


def _number(cards: Mapping, keyword: str) -> float | None:
    """Return a number that is of use but not needed, or None."""
    value = cards.get(keyword)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _refuse_duplicates(products: Sequence[Product]) -> None:
    firsts: dict[tuple, Product] = {}
    for product in products:
        twin = firsts.setdefault((product.band, product.visit, product.sensor, product.patch), product)
        if twin is not product:
            raise BadInput(f"{product.path}: duplicate: holds the same as {twin.path}; leave one out")


def _refuse_mixed(products: Sequence[Product], tool: str) -> None:
    """Refuse a folder in which some have a large-scale variance and others have none."""
    lacking = [product for product in products if not product.has_variance_ls]
    having = [product for product in products if product.has_variance_ls]
    if lacking and having:
        raise BadInput(
            f"{lacking[0].path}: mixed planes: it has no VARIANCE_LS, which {having[0].path.name} has; make "
            f"all by the same options of {tool}"
        )


def read_product(product: Product) -> list[np.ndarray]:
    """Read the planes of a warp or patch, in the machine's byte order, having checked their sums.

    Raises
    ------
    BadInput
        It has gone, is truncated or corrupt, fails its checksum, or a plane has another type.
    """
    planes = []
    for plane, dtype in zip(product.planes, product.dtypes, strict=True):
        pixels = read_pixels(plane, box_shape(product.box), verify=True)
        if pixels.dtype != np.dtype(dtype):
            raise BadInput(f"{plane.path}: extension {plane.hdu} holds {pixels.dtype}, not {dtype}")
        planes.append(pixels)
    return planes
