"""Gradient tables, changed: what was read is compared with dipy."""

from __future__ import annotations

import re
import warnings

import numpy as np
from campaigns.fuzz_images import BVALS, Image, directions
from campaigns.fuzzing import Kind, mutation
from dipy.io.gradients import read_bvals_bvecs
from hypothesis import strategies as st


class Gradients(Image):
    """The same head, with the tables that are read written out beside the denoised image."""

    def compared(self) -> dict:
        """Results but for the tables themselves, which are copied as they are."""
        return {name: value for name, value in super().compared().items() if ".bv" not in name}

    def check_reading(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                bvals, bvecs = read_bvals_bvecs(*(as_dipy_reads(path) for path in (self.bvals, self.bvecs)))
            except (OSError, ValueError) as error:
                raise AssertionError("dipy refuses what was taken") from error
        (made,) = self.out.glob("*_desc-denoised_dwi.bval")
        ours = np.loadtxt(made)
        weighted = np.asarray(bvals) > 50
        np.testing.assert_allclose(ours[weighted], bvals[weighted], rtol=1e-5)
        directions = np.loadtxt(made.with_suffix(".bvec")).T
        np.testing.assert_allclose(directions[weighted], bvecs[weighted], atol=1e-6)


def as_dipy_reads(path) -> str:
    """Write a table without what dipy does not take: comments and separators of others, decimal commas."""
    lines = [
        re.split("#|%|//", line)[0] for line in path.read_bytes().decode("utf-8", "replace").splitlines()
    ]
    text = re.sub(r"[\[\]{}();\ufeff]", " ", "\n".join(lines))
    text = re.sub(r"(?<=[\d.])[dD](?=[+-]?\d)", "e", text, flags=re.ASCII)
    volumes = len(text.split()) in (len(BVALS), 3 * len(BVALS))
    cleaned = path.with_name(f"cleaned-{path.name}")
    cleaned.write_text(text.replace(",", "." if volumes else " "))
    return str(cleaned)


def rewrite(path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def table(draw, it):
    return draw(st.sampled_from([it.bvals, it.bvecs]))


@mutation(Gradients, Kind.NEUTRAL)
def transposed(it, draw):
    for path in draw(st.sampled_from([[it.bvals], [it.bvecs], [it.bvals, it.bvecs]])):
        rows = [line.replace(",", " ").split() for line in path.read_text().splitlines() if line.strip()]
        path.write_text("\n".join(map(" ".join, zip(*rows, strict=True))))


@mutation(Gradients, Kind.NEUTRAL)
def other_spaces(it, draw):
    between = draw(st.sampled_from(["\t", "  ", " \t ", ",", ", "]))
    path = table(draw, it)
    path.write_text("\n".join(between.join(line.split()) for line in path.read_text().splitlines()) + "\n")


@mutation(Gradients, Kind.NEUTRAL)
def other_line_ends(it, draw):
    ends = draw(st.sampled_from([b"\r\n", b"\n\n", b" \n", b"\n\t\n"]))
    rewrite(table(draw, it), lambda data: data.replace(b"\n", ends))


@mutation(Gradients, Kind.NEUTRAL)
def no_end_of_the_last_line(it, draw):
    rewrite(table(draw, it), bytes.rstrip)


@mutation(Gradients, Kind.NEUTRAL)
def numbers_written_otherwise(it, draw):
    form = draw(st.sampled_from(["{:.1f}", "+{:g}", "{:e}", "{:.12f}", "0{:g}"]))
    it.bvals.write_text(" ".join(form.format(value) for value in BVALS))


@mutation(Gradients, Kind.VALID)
def other_gradients(it, draw):
    bvals = [0, *(draw(st.floats(200, 3000)) for _ in BVALS[1:])]
    it.bvals.write_text(" ".join(map(str, bvals)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    bvecs = rng.normal(size=(len(BVALS), 3))
    np.savetxt(it.bvecs, (bvecs / np.linalg.norm(bvecs, axis=1)[:, None]).T, fmt="%.9g")


@mutation(Gradients, Kind.DAMAGING)
def one_number_less_or_more(it, draw):
    path = table(draw, it)
    rows = [line.split() for line in path.read_text().splitlines()]
    row = draw(st.sampled_from(rows))
    if draw(st.booleans()):
        row.pop(draw(st.integers(0, len(row) - 1)))
    else:
        row.append("0")
    path.write_text("\n".join(map(" ".join, rows)))
    return (path.name,)


@mutation(Gradients, Kind.DAMAGING)
def one_word_that_is_no_number(it, draw):
    path = table(draw, it)
    rows = [line.split() for line in path.read_text().splitlines()]
    row = draw(st.sampled_from(rows))
    row[draw(st.integers(0, len(row) - 1))] = draw(
        st.sampled_from(["one", "1,2,3", "0x10", "\x1b[2J", "1e", "--", "(1+2j)", "1;2"])
    )
    path.write_text("\n".join(map(" ".join, rows)))
    return (path.name,)


@mutation(Gradients, Kind.DAMAGING)
def a_b_value_that_makes_no_sense(it, draw):
    bvals = list(map(str, BVALS))
    bvals[draw(st.integers(0, 8))] = draw(st.sampled_from(["-5", "nan", "inf", "-inf", "1e400"]))
    it.bvals.write_text(" ".join(bvals))
    return ("dwi.bval",)


@mutation(Gradients, Kind.DAMAGING)
def a_direction_that_makes_no_sense(it, draw):
    bvecs = directions()
    volume = draw(st.integers(1, 8))
    bvecs[volume] = draw(st.sampled_from([np.nan, np.inf, 1e300, 0.1]))
    np.savetxt(it.bvecs, bvecs.T, fmt="%.9g")
    return ("dwi.bvec", f"volume {volume}")


@mutation(Gradients, Kind.DAMAGING)
def no_text(it, draw):
    path = table(draw, it)
    path.write_bytes(draw(st.sampled_from([b"", b"\n\n", b"\0" * 40, b"\xff\xfe0\0", bytes(range(256))])))
    return (path.name,)


@mutation(Gradients, Kind.ANY)
def bytes_of_a_table(it, draw):
    data = bytearray((path := table(draw, it)).read_bytes())
    for _ in range(draw(st.integers(1, 2))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    path.write_bytes(data)


@mutation(Gradients, Kind.ANY)
def numbers_that_only_some_readers_take(it, draw):
    odd = ["1_000", "１０００", "1000f", "\ufeff1000", "1000 # b"]
    it.bvals.write_text("0 " + " ".join([draw(st.sampled_from(odd)), *["1000"] * 7]))
