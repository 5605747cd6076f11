"""What the fuzzer is made of: sound inputs, the ways to change them, and what must hold of a run on them.

A mutation is a function that changes an input on disk, and draws what it needs from hypothesis:

    @mutation(Images, Kind.VALID)
    def another_pixdim(it, draw):
        it.field("<f4", 80, draw(st.floats(0.1, 10, width=32)))

It may return words that the message must hold. A family of inputs is a subclass of :class:`Case`.
"""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from campaigns.pipelines import results
from support import warm
from support.spoilt import snapshot

#: Seconds that one run may take on a loaded machine; on a quiet one it takes less than one.
LIMIT = 30


class Kind(Enum):
    """What a mutation does, and so what must come of it."""

    NEUTRAL = "results equal those of the sound input"
    DAMAGING = "one line and exit 2, or exit 3 with the unit named"
    VALID = "what was read is what nibabel, astropy or dipy reads of the same file"
    ANY = "refused as if damaged, or read as if valid"


@dataclass(frozen=True)
class Mutation:
    """A way to change an input.

    Parameters
    ----------
    family : subclass of Case
    kind : Kind
    change : called as change(case, draw)
    """

    family: type[Case]
    kind: Kind
    change: Callable

    @property
    def name(self) -> str:
        return f"{self.family.__name__.lower()}-{self.change.__name__}"


MUTATIONS: dict[str, Mutation] = {}


def mutation(family: type[Case], kind: Kind) -> Callable:
    """Register the function that follows."""

    def register(change):
        made = Mutation(family, kind, change)
        MUTATIONS[made.name] = made
        return change

    return register


class Case:
    """A sound input in a folder of its own, to change, and the command line to run on it.

    Parameters
    ----------
    folder : of this case, made
    sound : folder that :meth:`prepare` has filled
    """

    #: The tool that is run.
    tool: ClassVar[str]
    #: Of a unit among several that was changed: what exit 3 must name. "" where there is one.
    unit = ""

    def __init__(self, folder: Path, sound: Path):
        self.folder, self.sound = folder, sound
        self.out, self.canary, self.here = folder / "out", folder / "canary", folder / "here"
        shutil.copytree(sound / "in", folder / "in", symlinks=True)
        self.canary.mkdir()
        self.here.mkdir()
        (self.canary / "bird").write_text("sings")

    @classmethod
    def prepare(cls, folder: Path) -> None:
        """Write sound inputs to folder/in."""
        raise NotImplementedError

    def command(self) -> list:
        """Return the words after the tool."""
        raise NotImplementedError

    def check_reading(self) -> None:
        """Assert that what was read is what another reader reads, after a run that was whole."""

    def helped(self, words: str) -> bool:
        """Do what a refusal says, where one is right to come first; say whether that was so."""
        return False

    @property
    def inputs(self) -> Path:
        return self.folder / "in"

    def run(self, tool: str, *words, ranks: int | None = None):
        """Run a tool in a folder of its own, and check what must hold of every run."""
        before = _around(self)
        done = warm.run_tool(tool, *words, ranks=ranks, cwd=self.here, check=False, timeout=LIMIT)
        said = done.stdout + done.stderr
        told = f"$ {tool} {' '.join(map(str, words))}\nexit {done.returncode}\n{said}"
        assert "Traceback" not in said, told
        assert not _controls(said), f"{_controls(said)!r} on the terminal\n{told}"
        assert not re.search(r"\.py:\d+: \w*Warning", said), told
        assert done.returncode in (0, 2, 3), told
        after = _around(self)
        assert after == before, f"files outside OUT: {sorted(before.items() ^ after.items())}\n{told}"
        return done, told

    def compared(self) -> dict:
        """Return what of the results is compared with those of the sound input."""
        return results(self.out)


def check(it: Case, kind: Kind, words=(), ranks: int | None = None) -> None:
    """Run a tool on a case that was changed, and assert what must hold."""
    done, told = it.run(it.tool, *it.command(), ranks=ranks)
    if kind is Kind.NEUTRAL:
        if done.returncode == 2 and it.helped(done.stderr):
            done, told = it.run(it.tool, *it.command())
        assert done.returncode == 0, told
        assert it.compared() == clean(it), told
    elif kind is Kind.VALID:
        assert done.returncode == 0, told
        it.check_reading()
    elif kind is Kind.DAMAGING or done.returncode:
        assert done.returncode in (2, 3), told
        _check_refusal(it, done, told, words or ())
    else:
        it.check_reading()


def clean(it: Case) -> dict:
    """Return the results of the sound input, made once."""
    key = (type(it), it.sound)
    if key not in _CLEAN:
        sound = type(it)(it.sound / "clean", it.sound)
        done, told = sound.run(sound.tool, *sound.command())
        assert done.returncode == 0, told
        _CLEAN[key] = sound.compared()
        shutil.rmtree(sound.folder)
    return _CLEAN[key]


_CLEAN: dict = {}


def _check_refusal(it: Case, done, told: str, words) -> None:
    # What Open MPI's launcher says of a status that is not 0, between two lines of dashes.
    lines = re.sub(r"^-{60,}\n.*?^-{60,}\n", "", done.stderr, flags=re.M | re.S).splitlines()
    lines = [line for line in lines if line]
    if done.returncode == 2:
        errors = [line for line in lines if not line.startswith(("mpiimg: warning: ", "usage: "))]
        # What is said of the gradient table, where the fault shows only once voxels are read.
        errors = [line for line in errors if not re.match(r"mpiimg: \S+\.bval: \d+ volumes? of ", line)]
        assert len(errors) == 1, told
        assert "error: " in errors[0], told
        assert not it.out.exists() or not any(it.out.iterdir()), told
        named = errors[0]
    else:
        assert it.unit, told
        # What is found when exposures have been put together is found of a patch.
        units = (it.unit, "left out: patch-")
        named = "\n".join(line for line in lines if any(unit in line for unit in units))
        assert named, told
    for word in words:
        assert word in named, f"{word} is not named\n{told}"


def _around(it: Case) -> dict:
    """Return what lies about a run and is none of its business."""
    own = str(it.out.relative_to(it.folder))
    return {name: what for name, what in snapshot(it.folder).items() if name.split("/")[0] != own}


def _controls(text: str) -> set[str]:
    """Return the characters that a terminal would obey."""
    return {one for one in text if unicodedata.category(one) in ("Cc", "Cf") and one != "\n"}
