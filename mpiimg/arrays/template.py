"""The command line of a program, with placeholders for files: "dwidenoise {in:.nii} {out:.mif}"."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpiimg.errors import BadInput

#: A name, with an ending that chooses a format: {in}, {in0:.nii}, {scratch}. Other braces stay as they are.
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)(?::(\.[\w.]+))?\}")

_NUMBERED = re.compile(r"(in|out)(\d*)")


@dataclass(frozen=True)
class Placeholder:
    """A place in a command line.

    Parameters
    ----------
    name : str
        "in", "out" or "scratch", or a name in a record of items.
    number : int, optional
        Of the input or output; None where the name is another.
    ending : str
        Of the file, such as ".nii"; empty where it is not said.
    """

    name: str
    number: int | None = None
    ending: str = ""


@dataclass(frozen=True)
class Template:
    """A command line with placeholders.

    Parameters
    ----------
    words : tuple of str
        Program and arguments.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, command: str | Sequence[str]) -> Template:
        """Return the template that a user's command is.

        Raises
        ------
        BadInput
            It names no program, or its quotes do not match.
        """
        if isinstance(command, str):
            try:
                words = shlex.split(command)
            except ValueError as error:
                raise BadInput(f"command({command!r}): {error}; give a list of words instead") from None
        elif isinstance(command, Sequence) and not isinstance(command, bytes):
            words = [str(word) for word in command]
        else:
            raise BadInput(
                f"command: needs a command line such as 'prog {{in}} {{out}}', got {type(command).__name__}"
            )
        if not words or not words[0]:
            raise BadInput("command: the command line is empty; it begins with a program")
        if _PLACEHOLDER.search(words[0]):
            raise BadInput(f"command({words[0]!r}): the program itself cannot be a placeholder")
        signs = {word for word in words if word in ("|", "||", "&&", ";", ">", ">>", "<", "&", "2>", "2>&1")}
        if isinstance(command, str) and signs:
            raise BadInput(
                f"command({command!r}): no shell reads this, so {' '.join(sorted(signs))} would be an "
                "argument; call two commands, or name a script that does it"
            )
        return cls(tuple(words))

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """All of them, in order, each once."""
        matches = (match for word in self.words for match in _PLACEHOLDER.finditer(word))
        return tuple(dict.fromkeys(_placeholder(match) for match in matches))

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return the numbers of its inputs ("in") or outputs ("out"), in order."""
        return tuple(sorted({one.number for one in self.placeholders if one.name == name}))

    def ending(self, name: str, number: int | None = None) -> str:
        """Return the ending that the template gives to a file; empty where it does not.

        Raises
        ------
        BadInput
            It gives two.
        """
        endings = {one.ending for one in self.placeholders if (one.name, one.number) == (name, number)}
        endings -= {""}
        if len(endings) > 1:
            raise BadInput(f"command({self}): {{{name}}} has two endings, {' and '.join(sorted(endings))}")
        return endings.pop() if endings else ""

    def filled(self, texts: Mapping[tuple[str, int | None], str]) -> list[str]:
        """Return the words with what stands for each (name, number)."""

        def text(match: re.Match) -> str:
            one = _placeholder(match)
            return texts.get((one.name, one.number), match[0])

        return [_PLACEHOLDER.sub(text, word) for word in self.words]

    def __str__(self) -> str:
        return shlex.join(self.words).replace("'{", "{").replace("}'", "}")


def _placeholder(match: re.Match) -> Placeholder:
    numbered = _NUMBERED.fullmatch(match[1])
    if numbered is None:
        return Placeholder(match[1], None, match[2] or "")
    return Placeholder(numbered[1], int(numbered[2] or 0), match[2] or "")
