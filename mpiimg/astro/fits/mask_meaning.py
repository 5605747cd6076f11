"""What the bits or codes of an exposure's mask mean: by the user, its own cards, or its instrument.

Functions return fields of a :class:`mpiimg.astro.fits.exposure.ExposureRef`.
"""

from __future__ import annotations

from mpiimg.astro.fits import maskplanes
from mpiimg.astro.fits.headers import HeaderReader, chosen_bits
from mpiimg.astro.fits.instruments import Instrument, known_instruments
from mpiimg.astro.fits.reading import Extension, FitsFile
from mpiimg.errors import BadInput


def mask_meaning(mask: Extension | None, facts: HeaderReader) -> dict:
    """Say what the bits of a mask mean: by the user, its MP_ cards, its name MASK, or its instrument.

    Returns fields of an ExposureRef.
    """
    if mask is None:
        return {"mask_is": "none"}
    try:
        planes = maskplanes.planes_of(mask.header)
    except ValueError as error:
        raise BadInput(f"{facts.where}: the mask's header makes no sense: {error}") from None
    instrument, chosen = facts.instrument, facts.options.bad_bits
    if chosen is not None:
        return _chosen(chosen, instrument)
    if planes or mask.name == "MASK":
        return {"mask_is": "planes", "planes": tuple((planes or maskplanes.MASK_PLANES).items())}
    kind = _kind_of_mask(instrument, facts)
    return _meaning(kind, instrument) if kind else {"mask_is": "any"}


def _kind_of_mask(instrument: Instrument, facts: HeaderReader) -> str | None:
    """Say whether masks of an instrument hold "codes" or "bits"; None where nobody knows."""
    if instrument.codes_since is None:
        return "codes" if instrument.codes else "bits" if instrument.bits else None
    try:
        version = maskplanes.version_of(str(facts.card("PLVER") or ""))
    except ValueError:
        return None
    return "codes" if version >= instrument.codes_since else "bits"


def _meaning(kind: str, instrument: Instrument) -> dict:
    """Return what the bits or codes of an instrument's masks mean, as fields of an ExposureRef."""
    meanings = instrument.codes if kind == "codes" else instrument.bits
    return {"mask_is": kind, "meanings": tuple(meanings.items()), "unlisted": instrument.unlisted}


def _chosen(text: str, instrument: Instrument) -> dict:
    """Return what bits mean where the user says which are bad; SAT is what it is for the instrument."""
    total, others = chosen_bits(text)
    listed = [1 << bit for bit in range(32) if total >> bit & 1]
    meanings = dict.fromkeys(listed, "" if others else "BAD")
    saturated = {} if others else {bit: "SAT" for bit, plane in instrument.bits.items() if plane == "SAT"}
    return {
        "mask_is": "bits",
        "meanings": tuple((saturated | meanings).items()),
        "unlisted": "BAD" if others else "",
    }


def triplet_meaning(file: FitsFile, facts: HeaderReader) -> dict:
    """Say what the mask of a triplet holds, codes or bits of its instrument, as fields of an ExposureRef."""
    options = facts.options
    # Triplets are of the Community Pipeline, whatever instrument their cards name: most are of DECam.
    instrument = facts.instrument if facts.instrument.codes else known_instruments(("decam",))[0]
    if options.bad_bits is not None:
        return _chosen(options.bad_bits, instrument)
    if options.decam_mask != "auto":
        return _meaning(options.decam_mask, instrument)
    kind = _kind_of_mask(instrument, HeaderReader(facts.where, file.primary, file.primary, options))
    if kind is None:
        raise BadInput(
            f"{file.path}: PLVER = {str(file.primary.get('PLVER', ''))!r} holds no version number, so that "
            "its mask has no meaning; give --decam-mask"
        )
    return _meaning(kind, instrument)
