"""Errors that a user can cause, each reported in one line.

Everything a user can cause (a wrong key, a broken file, a missing network) is raised as one of these; any other
exception is a bug and keeps its traceback.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

MAX_LENGTH = 2000  # characters of a message


class UserError(Exception):
    """One line that names the key or file, its value, what is allowed and what to do.

    `page` is the page of the documentation that helps, docs/<page>.md: each class has a default, which an instance may
    override. It is not part of the message; `kd.config.hydra_errors` appends it.
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
    """An image, a mask or a data folder does not match the configuration."""

    page = "your-data"


class ModelError(UserError):
    """A network cannot be built, or a weights file cannot be read."""

    page = "networks"


class RunError(UserError):
    """A run cannot be resumed from its folder, or another process is using it."""

    page = "resume"


class StudyError(UserError):
    """A study cannot be started, continued or read."""

    page = "studies"


class Superseded(UserError):
    """This worker sent no heartbeat for so long that its trial was given to another."""


def shown(name: object, longest: int | None = 100) -> str:
    """A file name (or any text) for one line of a terminal, with non-printable characters escaped.

    Parts of a path longer than `longest` characters are shortened in the middle.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
    if longest is None:
        return text
    half = longest // 2
    parts = (part if len(part) <= longest else f"{part[:half]}...{part[-half:]}" for part in text.split("/"))
    return "/".join(parts)


def one_line(text: str) -> str:
    """`text` as one printable line, whatever a file or a server put into it.

    Very long words (or parts of paths) and lines are shortened in the middle.
    """
    line = " ".join(shown(word, longest=256) for word in text.split())
    return line if len(line) <= MAX_LENGTH else f"{line[: MAX_LENGTH // 2]}...{line[-MAX_LENGTH // 2 :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `word`: the closest of the `known` words, or all of them if there are few."""
    known = sorted(known)
    close = get_close_matches(word[:100], known, n=1, cutoff=0.5)  # quadratic time
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(known)}" if 0 < len(known) <= 12 else "see --help for the choices"


def nearest_in_group(key: str, names: Iterable[str]) -> str:
    """A hint for an unknown dotted `key`: the closest of the `names` that its group has, or all of them.

    >>> nearest_in_group("a.sead", ["seed", "size"]), nearest_in_group("a.foo", ["seed", "size"])
    ("did you mean 'a.seed'?", 'a has seed, size')
    """
    names, (group, _, name) = sorted(names), key.rpartition(".")
    close = get_close_matches(name[:100], names, n=1, cutoff=0.5)
    return f"did you mean '{group}.{close[0]}'?" if close else f"{group} has {', '.join(names)}"


#: User and password of a URL: up to the last @, as a password may contain any sign; a path without a port is not one.
CREDENTIALS = re.compile(r"//(?:[^/:@\s]*:\S*|[^/\s]*)@")
#: A parameter of a URL whose name says that its value is secret.
SECRET = re.compile(r"([?&#;][^=&\s]*(?:pass|pwd|secret|token|key|auth|cred|sig)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """`text` with the user and password of every URL in it, and secret parameters, replaced by ***.

    >>> without_credentials("at postgresql://me:hun/ter2@host/db?sslmode=require&api_key=x")
    'at postgresql://***@host/db?sslmode=require&api_key=***'
    """
    return SECRET.sub(r"\1***", CREDENTIALS.sub("//***@", text))


def check_address(key: str, address: str) -> None:
    """Check that a server's address has no white space, at which `without_credentials` would end.

    Raises:
        ConfigError: it has; the message names the key alone.
    """
    if re.match(r"(?!sqlite|file)[^/]*://.*\s", address, re.DOTALL):
        raise ConfigError(f"{key} holds white space, which an address cannot; write %20 for a space in it")


class DivergedError(UserError):
    """A loss or a gradient is not finite.

    Attributes:
        epoch, step: where it happened, both zero-based.
        samples: the training samples in that step, each as (split, index).
        values: the loss terms of each batch, and the gradient norm.
    """

    def __init__(self, message: str, epoch: int, step: int = 0, samples: Sequence[tuple[str, int]] = (),
                 values: Mapping[str, Any] | None = None) -> None:  # fmt: skip
        super().__init__(message)
        self.epoch, self.step, self.samples, self.values = epoch, step, tuple(samples), dict(values or {})

    def add_samples(self, names: Sequence[str]) -> None:
        """Add the names of the samples to the message."""
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            self.args = (f"{self.args[0]} (samples: {', '.join(names[:3])}{more}; see nonfinite.json)",)
