"""What a killed run has left, changed: the same command must come to what a run that nobody touched makes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from campaigns.fuzz_images import Image
from campaigns.fuzzing import Kind, mutation
from hypothesis import strategies as st
from support import launch, warm
from support.killing import Diary

from mpiimg.engine.checkpoint import read_marks


class Work(Image):
    """The folder of mpiimg-neuro that was killed halfway."""

    def __init__(self, folder: Path, sound: Path):
        super().__init__(folder, sound)
        # The input is known by its time and place, too.
        shutil.rmtree(self.inputs)
        self.dwi, self.bvals, self.bvecs = (sound / "in" / f"dwi.{end}" for end in ("nii.gz", "bval", "bvec"))
        if (sound / "killed").exists() and folder.name != "clean":
            shutil.copytree(sound / "killed", self.out, symlinks=True)

    @classmethod
    def prepare(cls, folder: Path) -> None:
        super().prepare(folder)
        it = cls(folder / "first", folder)
        steps = sum(_live(it, 0).steps)
        shutil.rmtree(it.out)
        _live(it, steps * 2 // 5)
        (journal,) = it.out.rglob("journal")
        assert list(read_marks(journal))
        it.out.rename(folder / "killed")

    def helped(self, words: str) -> bool:
        """Free the folder by hand, where nothing says any more whose it is."""
        claims = self.out / "work" / "dwi.neuro" / "claims"
        owners = [path.relative_to(self.out) for path in claims.glob("1/owner*.json")]
        sound = [
            path
            for path in owners
            if (self.sound / "killed" / path).read_bytes() == (self.out / path).read_bytes()
        ]
        if sound or f"if you know that it is dead, remove {claims}" not in words:
            return False
        shutil.rmtree(claims)
        return True

    def files(self, pattern: str = "*") -> list[Path]:
        """Return the files of the work folder, and what the run says of itself."""
        return sorted(path for path in self.out.rglob(pattern) if path.is_file() and path.stat().st_size)


def _live(it: Work, step: int) -> Diary:
    path = it.folder / "diary"
    words = [path, step, 0.0, 0, "--", it.tool, *it.command()]
    launch.run(warm.zygote(launch.sys.executable).rank("support.lives", *words), check=step == 0)
    return Diary(path)


def one_of(it, draw) -> Path:
    return draw(st.sampled_from(it.files()))


@mutation(Work, Kind.NEUTRAL)
def nothing(it, draw):
    """The run that was killed goes on."""


@mutation(Work, Kind.NEUTRAL)
def a_flipped_bit(it, draw):
    path = one_of(it, draw)
    data = bytearray(path.read_bytes())
    data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    path.write_bytes(data)


@mutation(Work, Kind.NEUTRAL)
def bytes_of_a_file(it, draw):
    path = one_of(it, draw)
    data = bytearray(path.read_bytes())
    place = draw(st.integers(0, len(data) - 1))
    piece = draw(st.binary(min_size=1, max_size=64))
    data[place : place + len(piece)] = piece
    path.write_bytes(data)


@mutation(Work, Kind.NEUTRAL)
def a_file_cut_short(it, draw):
    path = one_of(it, draw)
    os.truncate(path, draw(st.integers(0, path.stat().st_size - 1)))


@mutation(Work, Kind.NEUTRAL)
def a_file_of_zeros(it, draw):
    path = one_of(it, draw)
    path.write_bytes(bytes(path.stat().st_size))


@mutation(Work, Kind.NEUTRAL)
def a_file_that_is_gone(it, draw):
    one_of(it, draw).unlink()


@mutation(Work, Kind.NEUTRAL)
def more_at_the_end_of_a_file(it, draw):
    path = one_of(it, draw)
    more = draw(st.binary(min_size=1, max_size=99))
    path.write_bytes(path.read_bytes() + more)


@mutation(Work, Kind.NEUTRAL)
def lines_in_another_order(it, draw):
    path = draw(st.sampled_from(it.files("*.jsonl")))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(draw(st.permutations(lines))))


@mutation(Work, Kind.NEUTRAL)
def lines_twice_or_not_at_all(it, draw):
    path = draw(st.sampled_from(it.files("*.jsonl")))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line * draw(st.integers(0, 2)) for line in lines))


@mutation(Work, Kind.NEUTRAL)
def a_line_in_another_place(it, draw):
    """A line of one file at the end of another."""
    source, target = (draw(st.sampled_from(it.files("*.jsonl"))) for _ in range(2))
    line = draw(st.sampled_from(source.read_bytes().splitlines(keepends=True)))
    target.write_bytes(target.read_bytes() + line)


@mutation(Work, Kind.NEUTRAL)
def a_file_in_the_place_of_another(it, draw):
    source, target = (one_of(it, draw) for _ in range(2))
    target.write_bytes(source.read_bytes())


@mutation(Work, Kind.NEUTRAL)
def files_of_nobody(it, draw):
    folder = draw(st.sampled_from([one.parent for one in it.files()]))
    name = draw(
        st.sampled_from(["x.jsonl", "0.jsonl", "z-z-z.jsonl", ".nfs0001", "core", "x.h5", "x.crc", "99"])
    )
    (folder / name).write_bytes(draw(st.binary(max_size=99)))
