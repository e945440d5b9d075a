"""What a person did that the program cannot go on from, said in one line.

Everything that a user can cause (a wrong key, a broken file, a missing network) is raised as one of these; anything
else that escapes is a defect of ours and keeps its traceback.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

LONGEST = 2000  # characters of a message


class UserError(Exception):
    """One line that names the key or file, the value, what is allowed, and what to do.

    `page` is the page of docs/ that helps further, as in docs/<page>.md: each kind has one, which an error may replace.
    It is no part of the message; `kd.mistakes` shows it at the end of the line.
    """

    exit_code = 1
    page: str | None = None

    def __init__(self, *message: object, page: str | None = None) -> None:
        super().__init__(*message)
        if page is not None:
            self.page = page

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(UserError):
    """The composed configuration asks for something impossible."""

    exit_code = 2
    page = "configuration"


class DiskError(UserError):
    """A file cannot be written: no space, no permission, no disk."""

    page = "resume"


class DataError(UserError):
    """An image, a mask or a data folder is not what the configuration says it is."""

    page = "your-data"


class ModelError(UserError):
    """A network or a weights file cannot be built or read."""

    page = "networks"


class RunError(UserError):
    """A run cannot go on from what its folder holds, or another process is at work there."""

    page = "resume"


class StudyError(UserError):
    """A study cannot be begun, continued or read."""

    page = "studies"


class Superseded(UserError):
    """This worker was silent for so long that its trial was given to another."""


def shown(name: object, longest: int | None = 100) -> str:
    """A file's name (or any text) as it may stand in one line of a terminal: whatever does not print is escaped.

    A part of a path that is over `longest` characters long loses its middle.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
    if longest is None:
        return text
    half = longest // 2
    parts = (part if len(part) <= longest else f"{part[:half]}...{part[-half:]}" for part in text.split("/"))
    return "/".join(parts)


def one_line(text: str) -> str:
    """`text` as one line that a terminal shows as it is, whatever a file or a server put into it.

    Words (parts of paths, where they are paths) and lines that are far too long lose their middle.
    """
    line = " ".join(shown(word, longest=256) for word in text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]}...{line[-LONGEST // 2 :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `word`: the closest of the `known` words, or all of them if they are few."""
    known = sorted(known)
    close = get_close_matches(word[:100], known, n=1, cutoff=0.5)  # it takes quadratic time
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(known)}" if 0 < len(known) <= 12 else "see --help for what there is"


def without_credentials(text: str) -> str:
    """`text` with the user and password of every address in it replaced by ***."""
    plain = re.sub(r"//[^/\s]*@", "//***@", text)
    return re.sub(r"([?&][^=&\s]*(?:pass|token|secret)[^=&\s]*=)[^&\s]*", r"\1***", plain)


class DivergedError(UserError):
    """A loss or a gradient is no longer a number.

    Attributes:
        epoch, step: where, both counted from 0.
        indices: the training samples of that step.
        values: the loss terms of each of its batches, and the gradient's norm.
    """

    def __init__(self, message: str, epoch: int, step: int = 0, indices: Sequence[int] = (),
                 values: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.epoch, self.step, self.indices, self.values = epoch, step, tuple(indices), dict(values or {})

    def add_samples(self, names: Sequence[str]) -> None:
        """Say in the message which samples those were."""
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            self.args = (f"{self.args[0]} (samples: {', '.join(names[:3])}{more}; see nonfinite.json)",)
