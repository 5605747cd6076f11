"""FITS headers, structure and pixels, changed: one of three exposures, and what astropy reads of it."""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from campaigns.fuzzing import Case, Kind, mutation
from hypothesis import strategies as st
from support.astro_data import observe

from mpiimg.simulate.astro import SimulatedSurvey

SURVEY = SimulatedSurvey(3, 1, (120, 140), seed=5, density=50.0)

#: Gives back what it is given.
SAME = """
import mpiimg

@mpiimg.udf(over="exposures")
def same(image, variance, mask):
    return image, variance, mask
"""

BLOCK, CARD = 2880, 80

#: Bits of a mask, which has our planes.
NO_DATA, SUSPECT, ALL_PLANES = 1 << 8, 1 << 7, (1 << 10) - 1

#: Cards that must stand where they stand.
STRUCTURE = (b"XTENSION", b"SIMPLE", b"BITPIX", b"NAXIS", b"PCOUNT", b"GCOUNT", b"END", b"EXTEND")


class Exposure(Case):
    """Three exposures, of which the first is changed: IMAGE, VARIANCE and MASK of one file."""

    tool, layout, unit = "mpiimg-astro", "planes", "sim-0000-000"
    image = 1

    def __init__(self, folder: Path, sound: Path):
        super().__init__(folder, sound)
        self.exposures = sorted(self.inputs.glob("*.fits"))
        self.first = self.exposures[0]

    @classmethod
    def prepare(cls, folder: Path) -> None:
        observe(folder / "in", SURVEY, cls.layout)
        (folder / "in" / "same.py").write_text(SAME)

    def command(self) -> list:
        exposures = [self.first, *self.exposures[1:]]
        return [*exposures, "--out", self.out, "--patch", 160, "--border", 30, "--center", "149.993,2.1948"]

    def edit(self, change, hdu: int | None = None) -> None:
        """Rewrite a header after `change(cards)`, which returns them, 80 bytes each, without END."""
        data = self.bytes()
        with fits.open(io.BytesIO(data)) as hdus:
            place = hdus[self.image if hdu is None else hdu].fileinfo()
        head = data[place["hdrLoc"] : place["datLoc"]]
        cards = [head[start : start + CARD] for start in range(0, len(head), CARD)]
        end = next(number for number, card in enumerate(cards) if card.rstrip() == b"END")
        cards = [card for card in change(cards[:end]) if not card.startswith((b"CHECKSUM", b"DATASUM"))]
        made = b"".join(card.ljust(CARD)[:CARD] for card in [*cards, b"END"])
        made += b" " * (-len(made) % BLOCK)
        self.put(data[: place["hdrLoc"]] + made + data[place["datLoc"] :])

    def bytes(self) -> bytes:
        """The first file, not compressed."""
        data = self.first.read_bytes()
        return gzip.decompress(data) if self.first.suffix == ".gz" else data

    def put(self, data: bytes) -> None:
        """Write the first file, compressed where its name says so."""
        self.first.write_bytes(gzip.compress(data, 1) if self.first.suffix == ".gz" else data)

    def card(self, keyword: str, value: str, hdu: int | None = None) -> None:
        """Set a card to what stands behind its "=", as it is; it is added where it is not there."""
        made = f"{keyword:8}= {value:>20}".encode("latin-1")

        def change(cards):
            there = [
                number for number, card in enumerate(cards) if card[:8].decode("latin-1").strip() == keyword
            ]
            return [made if n in there else card for n, card in enumerate(cards)] + [made] * (not there)

        self.edit(change, hdu)

    def rewrite(self, change, **options) -> None:
        """Write the file anew with astropy, after `change(hdus)`."""
        with fits.open(self.first) as hdus:
            hdus = fits.HDUList([hdu.copy() for hdu in hdus])
        change(hdus)
        hdus.writeto(self.first, overwrite=True, **options)

    def check_reading(self) -> None:
        """What a function is given, and what is said of the exposure, are what astropy reads."""
        made = self.folder / "out" / "read"
        done, told = self.run(
            "mpiimg-run", "--udf", f"{self.inputs / 'same.py'}:same", self.first, "--out", made
        )
        assert done.returncode == 0, told
        (path,) = made.glob("*.fits")
        with warnings.catch_warnings(), fits.open(path) as ours, fits.open(self.first) as hdus:
            warnings.simplefilter("ignore")
            image, variance, mask = self.planes(hdus)
            usable = ours["MASK"].data & NO_DATA == 0
            # Larger numbers count as none, as docs/astro.md says.
            seen = (np.abs(image) <= 1e15) & (variance > 0) & (variance <= 1e30)
            if mask is not None:
                seen &= mask & NO_DATA == 0
            np.testing.assert_array_equal(usable, seen, told)
            np.testing.assert_allclose(ours["IMAGE"].data[seen], image[seen], 2e-7, err_msg=told)
            np.testing.assert_allclose(ours["VARIANCE"].data[seen], variance[seen], 1e-5, err_msg=told)
            if mask is not None:
                # A bit without a name may mean anything.
                expected = mask & ALL_PLANES | np.where(mask & ~ALL_PLANES, SUSPECT, 0)
                np.testing.assert_array_equal(ours["MASK"].data[seen], expected[seen], told)
            header = hdus[self.image].header
            self.check_facts(ours[0].header, header, hdus[0].header, told)
            x, y = np.meshgrid([0.0, 70.0, 139.0], [0.0, 60.0, 119.0])
            expected = WCS(header).all_pix2world(x, y, 0)
            np.testing.assert_allclose(WCS(ours["IMAGE"].header).all_pix2world(x, y, 0), expected, atol=1e-9)

    def planes(self, hdus):
        image, variance, mask = (np.asarray(hdu.data) for hdu in hdus[1:4])
        return image, variance, mask

    def check_facts(self, ours, header, primary, told) -> None:
        for card in ("EXPTIME", "MJD-OBS", "MAGZERO"):
            value = header.get(card, primary.get(card))
            if isinstance(value, float | int) and np.isfinite(value):
                np.testing.assert_allclose(ours[card], value, 1e-12, err_msg=f"{card}\n{told}")


class Single(Exposure):
    """The same, each an image alone, whose variance is modelled from GAIN and RDNOISE."""

    layout, image = "single", 0

    def planes(self, hdus):
        header, image = hdus[0].header, np.asarray(hdus[0].data, np.float32)
        gain, noise = header["GAIN"], header["RDNOISE"]
        variance = np.maximum(image, 0) / gain + (noise / gain) ** 2
        mask = None
        if "SATURATE" in header:
            mask = np.where(image >= np.float32(header["SATURATE"]), 2, 0)
        return image, variance, mask


class Triplet(Exposure):
    """The same as the DECam Community Pipeline writes them: image, weight and mask in files of their own."""

    layout = "triplet"

    def __init__(self, folder: Path, sound: Path):
        super().__init__(folder, sound)
        self.exposures = sorted(self.inputs.glob("*_ooi_*.fits"))
        self.first = self.exposures[0]
        self.of_first = [Path(str(self.first).replace("_ooi_", f"_oo{letter}_")) for letter in "iwd"]

    def planes(self, hdus):
        with fits.open(self.of_first[1]) as weights:
            weight = np.asarray(weights[1].data)
        with np.errstate(all="ignore"):
            return np.asarray(hdus[1].data), np.where(weight > 0, 1 / weight, np.inf), None


def number(low: float, high: float) -> st.SearchStrategy[str]:
    """Return numbers as FITS writes them."""
    forms = st.sampled_from(["{:.8g}", "{:.8E}", "{:.10f}"])
    return st.builds(lambda value, form: form.format(value), st.floats(low, high), forms)


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# --- neutral ------------------------------------------------------------------------------------------------


@mutation(Exposure, Kind.NEUTRAL)
def cards_in_another_order(it, draw):
    def change(cards):
        fixed = [card for card in cards if card.startswith(STRUCTURE)]
        return fixed + draw(st.permutations([card for card in cards if card not in fixed]))

    it.edit(change, draw(st.integers(0, 3)))


@mutation(Exposure, Kind.NEUTRAL)
def other_comments(it, draw):
    words = draw(st.text("abc /'\"=", max_size=30)).encode()

    def change(cards):
        return [
            card[:30] + b" / " + words
            if b"=" in card[8:10] and b"'" not in card and len(card[:30].strip()) > 9
            else card
            for card in cards
        ]

    it.edit(change, draw(st.integers(0, 3)))


@mutation(Exposure, Kind.NEUTRAL)
def more_cards_that_say_nothing(it, draw):
    more = [
        b"COMMENT " + b"x" * 72,
        b"HISTORY = 'odd'",
        b"",
        b"        = 3",
        b"HIERARCH ESO A B = 1.0 / odd",
        b"NOVALUE =",
    ]
    chosen = draw(st.lists(st.sampled_from(more), min_size=1, max_size=40))
    it.edit(lambda cards: [*cards, *chosen], draw(st.integers(0, 3)))


@mutation(Exposure, Kind.NEUTRAL)
def checksums(it, draw):
    it.rewrite(lambda hdus: None, checksum=True)


@mutation(Exposure, Kind.NEUTRAL)
def names_of_extensions_otherwise(it, draw):
    names = draw(
        st.sampled_from([("image", "variance", "mask"), ("SCI", "VAR", "MASK"), ("Sci", "Var", "Mask")])
    )
    for hdu, name in enumerate(names, 1):
        it.card("EXTNAME", text(name), hdu)


@mutation(Exposure, Kind.NEUTRAL)
def one_more_extension(it, draw):
    data = np.zeros((3, 4), np.int16)
    it.rewrite(lambda hdus: hdus.append(fits.ImageHDU(data, name=draw(st.sampled_from(["PSF", "WEIGHT"])))))


@mutation(Exposure, Kind.NEUTRAL)
def facts_in_the_primary_header(it, draw):
    moved = draw(st.sampled_from([b"EXPTIME ", b"MAGZERO ", b"FILTER  ", b"MJD-OBS "]))
    taken = []

    def take(cards):
        taken.extend(card for card in cards if card.startswith(moved))
        return [card for card in cards if not card.startswith(moved)]

    it.edit(take)
    it.edit(lambda cards: cards + taken, 0)


@mutation(Exposure, Kind.NEUTRAL)
def compressed(it, draw):
    data = gzip.compress(it.bytes(), draw(st.integers(1, 9)))
    it.first.unlink()
    it.first = it.inputs / "sim-0000-000.fits.gz"
    it.first.write_bytes(data)


@mutation(Exposure, Kind.NEUTRAL)
def zeros_at_the_end(it, draw):
    it.put(it.bytes() + bytes(BLOCK * draw(st.integers(1, 3))))


# --- valid --------------------------------------------------------------------------------------------------


@mutation(Single, Kind.VALID)
def another_gain_and_noise(it, draw):
    it.card("GAIN", draw(number(0.5, 20)))
    it.card("RDNOISE", draw(number(0, 20)))


@mutation(Single, Kind.VALID)
def another_saturation(it, draw):
    it.card("SATURATE", draw(number(500, 60000)))


@mutation(Single, Kind.VALID)
def numbers_with_a_d(it, draw):
    it.card("GAIN", f"{draw(st.floats(0.5, 20)):.8E}".replace("E", "D"))


@mutation(Single, Kind.VALID)
def pixels_of_another_type(it, draw):
    kind = draw(st.sampled_from(["i2", "i4", "f8", "u2"]))

    def change(hdus):
        hdus[0] = fits.PrimaryHDU(
            np.rint(hdus[0].data.clip(-30000, 60000 if kind == "u2" else 30000)).astype(kind), hdus[0].header
        )

    it.rewrite(change)


@mutation(Single, Kind.VALID)
def pixels_that_are_scaled(it, draw):
    scale, zero = draw(st.floats(0.5, 4)), draw(st.floats(-100, 100))
    it.rewrite(lambda hdus: hdus[0].scale("int16", bscale=scale, bzero=zero))


@mutation(Exposure, Kind.VALID)
def another_time_and_zero_point(it, draw):
    it.card("EXPTIME", draw(number(1, 1000)))
    it.card("MAGZERO", draw(number(25, 33)))
    it.card("MJD-OBS", draw(number(50000, 60000)))


@mutation(Exposure, Kind.VALID)
def another_place(it, draw):
    for hdu in (1, 2, 3):
        it.card("CRVAL1", f"{149.993 + draw(st.floats(-1e-3, 1e-3)):.12f}", hdu)


@mutation(Exposure, Kind.VALID)
def another_scale_and_angle(it, draw):
    scale, angle = draw(st.floats(6e-5, 9e-5)), draw(st.floats(0, 6.3))
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    values = {"CD1_1": -cosine, "CD1_2": sine, "CD2_1": sine, "CD2_2": cosine}
    for hdu in (1, 2, 3):
        for keyword, value in values.items():
            it.card(keyword, f"{value:.10E}", hdu)


@mutation(Exposure, Kind.VALID)
def another_distortion(it, draw):
    value = draw(st.floats(-1e-3, 1e-3))
    for hdu in (1, 2, 3):
        it.card(draw(st.sampled_from(["PV1_4", "PV2_4", "PV1_7", "PV2_0"])), f"{value:.10E}", hdu)


@mutation(Exposure, Kind.VALID)
def pixels_without_data(it, draw):
    def change(hdus):
        for _ in range(draw(st.integers(1, 9))):
            place = draw(st.integers(0, 119)), draw(st.integers(0, 139))
            hdus[draw(st.sampled_from([1, 2]))].data[place] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))

    it.rewrite(change)


@mutation(Triplet, Kind.VALID)
def weights_that_make_no_sense(it, draw):
    with fits.open(it.of_first[1], mode="update") as hdus:
        for _ in range(draw(st.integers(1, 9))):
            place = draw(st.integers(0, 119)), draw(st.integers(0, 139))
            hdus[1].data[place] = draw(st.sampled_from([0.0, -1.0, np.nan, np.inf]))
