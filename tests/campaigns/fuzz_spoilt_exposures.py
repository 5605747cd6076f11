"""Exposures that are damaged, or odd in a way of which anything may come: one of three of mpiimg-astro."""

from __future__ import annotations

import gzip
import os
import shutil

from campaigns.fuzz_exposures import BLOCK, CARD, Exposure, Single, Triplet, compressed, text
from campaigns.fuzzing import Kind, mutation
from hypothesis import strategies as st

# --- damaging -----------------------------------------------------------------------------------------------


@mutation(Exposure, Kind.DAMAGING)
def cut_short(it, draw):
    os.truncate(it.first, draw(st.integers(0, it.first.stat().st_size - 2 * BLOCK)))


@mutation(Exposure, Kind.DAMAGING)
def no_fits(it, draw):
    it.first.write_bytes(draw(st.binary(max_size=6000)))


@mutation(Exposure, Kind.DAMAGING)
def gzip_cut_short(it, draw):
    compressed(it, draw)
    os.truncate(it.first, draw(st.integers(0, it.first.stat().st_size - 9)))


@mutation(Exposure, Kind.DAMAGING)
def a_gzip_that_never_ends(it, draw):
    """It inflates to a gigabyte of zeros behind the promised end, or in place of a header."""
    data = it.first.read_bytes()[: draw(st.sampled_from([0, BLOCK - 80]))]
    it.first = it.first.with_suffix(".fits.gz")
    bomb = gzip.compress(bytes(1 << 24), 9, mtime=0)
    it.first.write_bytes((gzip.compress(data) if data else b"") + bomb * 64)


@mutation(Exposure, Kind.DAMAGING)
def structure_that_makes_no_sense(it, draw):
    keyword, value = draw(
        st.sampled_from(
            [
                ("BITPIX", "7"),
                ("BITPIX", "0"),
                ("NAXIS1", "-5"),
                ("NAXIS1", "99999999999"),
                ("NAXIS2", "4000000"),
                ("NAXIS", "9999"),
                ("NAXIS", "-1"),
                ("NAXIS1", "T"),
                ("NAXIS1", "1.5"),
                ("PCOUNT", "99999999999"),
                ("NAXIS2", ""),
            ]
        )
    )
    it.card(keyword, value)


@mutation(Exposure, Kind.DAMAGING)
def coordinates_that_make_no_sense(it, draw):
    keyword = draw(st.sampled_from(["CRVAL1", "CRVAL2", "CRPIX1", "CD1_1", "CD2_2", "PV1_1"]))
    value = draw(st.sampled_from(["NaN", "INF", "'here'", "T", "1E999", "''"]))
    for hdu in (1, 2, 3):
        it.card(keyword, value, hdu)


@mutation(Exposure, Kind.DAMAGING)
def a_scale_that_makes_no_sense(it, draw):
    scale = draw(st.sampled_from(["1.0", "0.0", "1E-30", "1E30", "-1E10"]))
    for hdu in (1, 2, 3):
        for keyword in ("CD1_1", "CD2_2"):
            it.card(keyword, scale, hdu)


@mutation(Exposure, Kind.DAMAGING)
def another_projection(it, draw):
    kind = draw(st.sampled_from(["XYZ", "AIT", "", "\x01TP"]))
    for hdu in (1, 2, 3):
        it.card("CTYPE1", text(f"RA---{kind}"), hdu)


@mutation(Exposure, Kind.DAMAGING)
def a_mask_plane_that_makes_no_sense(it, draw):
    it.card("MP_SAT", draw(st.sampled_from(["'one'", "-1", "64", "1.5", "T", "99999999999999999999", ""])), 3)


@mutation(Single, Kind.DAMAGING)
def a_fact_that_makes_no_sense(it, draw):
    it.card(
        draw(st.sampled_from(["GAIN", "RDNOISE", "SATURATE", "MAGZERO"])),
        draw(st.sampled_from(["-1E300", "'much'", "NaN", "T", "INF", "(1, 2)"])),
    )


@mutation(Exposure, Kind.DAMAGING)
def the_same_twice(it, draw):
    shutil.copy(it.first, it.inputs / "twin.fits")
    it.exposures.insert(1, it.inputs / "twin.fits")
    it.unit = "twin.fits"


@mutation(Triplet, Kind.DAMAGING)
def one_of_three_is_missing(it, draw):
    draw(st.sampled_from(it.of_first[1:])).unlink()


# --- any ----------------------------------------------------------------------------------------------------

#: What a card may hold to make trouble; {} stands for a folder that is none of the run's business.
ODD = (
    "''",
    "'../../x'",
    "'{}/x'",
    "'open/r'",
    "'.'",
    "'a b'",
    "'\x1b[31mred'",
    "'two\nlines'",
    "'\xff\xfe'",
    "'it''s'",
    "'unclosed",
    "1E400",
    "-0.0",
    "T",
    "99999999999999999999999999",
    "'%s{0}$HOME'",
    "'" + "x" * 60 + "'",
    "",
)


@mutation(Exposure, Kind.ANY)
def an_odd_text_in_a_card(it, draw):
    keyword = draw(st.sampled_from(["FILTER", "OBJECT", "EXPNUM", "CCDNUM", "DATE-OBS", "BUNIT", "INSTRUME"]))
    it.card(keyword, draw(st.sampled_from(ODD)).replace("{}", str(it.canary)))


@mutation(Exposure, Kind.ANY)
def an_odd_text_in_any_card(it, draw):
    hdu = draw(st.integers(0, 3))
    value = draw(st.sampled_from(ODD)).encode("latin-1")

    def change(cards):
        place = draw(st.integers(0, len(cards) - 1))
        cards[place] = cards[place][:8] + b"= " + value
        return cards

    it.edit(change, hdu)


@mutation(Exposure, Kind.ANY)
def bytes_of_a_header(it, draw):
    def change(cards):
        data = bytearray(b"".join(cards))
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return [bytes(data[start : start + CARD]) for start in range(0, len(data), CARD)]

    it.edit(change, draw(st.integers(0, 3)))


@mutation(Exposure, Kind.ANY)
def odd_pixels(it, draw):
    odd = [3.4e38, -3.4e38, 1e-40, 0.0, 1e30]

    def change(hdus):
        plane = hdus[draw(st.sampled_from([1, 2]))].data
        y, x = draw(st.integers(0, 117)), draw(st.integers(0, 137))
        plane[y : y + 3, x : x + 3] = draw(st.sampled_from(odd))

    it.rewrite(change)


@mutation(Exposure, Kind.ANY)
def a_plane_all_odd(it, draw):
    odd = [3.4e38, -3.4e38, 1e-40, 0.0, 1e30, 7.0]
    plane, value = draw(st.sampled_from([1, 2])), draw(st.sampled_from(odd))

    def change(hdus):
        hdus[plane].data[:] = value

    it.rewrite(change)


@mutation(Exposure, Kind.ANY)
def bits_of_the_mask(it, draw):
    value = draw(st.integers(-(2**31), 2**31 - 1))

    def change(hdus):
        hdus[3].data[draw(st.integers(0, 100)) :] = value

    it.rewrite(change)


@mutation(Exposure, Kind.ANY)
def an_odd_name(it, draw):
    odd = ["a b", "\x1b[31mred", "two\nlines", "über", "-dash", "a;b", "%s", "x" * 200, "{}", "[1]"]
    it.unit = ""
    it.first = it.first.rename(it.inputs / f"{draw(st.sampled_from(odd))}.fits")
