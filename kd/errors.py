"""What a person did that the program cannot go on from, said in one line.

Everything that a user can cause (a wrong key, a broken file, a missing network) is raised as one of these; anything
else that escapes is a defect of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """One line that names the key or file, the value, what is allowed, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ConfigError(UserError):
    """The composed configuration asks for something impossible."""

    exit_code = 2


class DataError(UserError):
    """An image, a mask or a data folder is not what the configuration says it is."""


class ModelError(UserError):
    """A network or a weights file cannot be built or read."""


class StudyError(UserError):
    """A study cannot be begun, continued or read."""


class Superseded(UserError):
    """This worker was silent for so long that its trial was given to another."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `word`: the closest of the `known` words, or all of them if they are few."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(known)}" if 0 < len(known) <= 12 else "see --help for what there is"
