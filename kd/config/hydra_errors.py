"""User errors as one line on stderr and an exit code, including what hydra and omegaconf raise for them."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kd.config.compose import CONF, arguments_of, known_keys, nearest_key, options
from kd.errors import ConfigError, DiskError, UserError, nearest, nearest_in_group
from kd.system.installation import torch_command
from kd.system.launch import current_rank
from kd.system.terminal import to_log

#: Error numbers of a path that cannot be written, or cannot be at all.
DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EIO,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
FULL = os.environ.get("HYDRA_FULL_ERROR") == "1"  # the user's own choice, read before we set the variable
NOISE = re.compile("full_key:|object_type=|reference_type=|See https:")  # lines of hydra's messages without use here
TWICE = re.compile(r"Multiple values for .+ 'override (.+?): (.+?)'.*from 'command line'")
ANY_KEY = ("tracking.tags",)  # mappings that accept any key


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a user error as one line on stderr and exit; HYDRA_FULL_ERROR=1 shows the traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra raises its errors instead of printing them over several lines
    try:
        yield
    except BrokenPipeError:  # the reader of our output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as error:
        _print("interrupted")
        sys.exit(getattr(error, "exit_code", 130))
    except Exception as error:
        found = _as_user_error(error)
        if FULL or found is None:
            raise
        _print(f"error: {found}{f' (docs/{found.page}.md)' if found.page else ''}")
        sys.exit(found.exit_code)
    finally:
        if not FULL:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def for_children() -> dict[str, str]:
    """The environment for other programs of this project: as the user's, so that their errors are one line, too."""
    return {name: value for name, value in os.environ.items() if FULL or name != "HYDRA_FULL_ERROR"}


def _print(line: str) -> None:
    """Print a line on rank 0 only, which knows the errors of the other processes."""
    if current_rank().rank == 0:
        print(line, file=sys.stderr)
        to_log(line)


def _as_user_error(error: Exception) -> UserError | None:
    """The user error behind an exception; None for a bug."""
    if found := _unwrapped(error):
        return found
    if isinstance(error, OSError) and error.errno in DISK and error.filename:
        return DiskError(f"{error.filename}: {error.strerror}; fix that and repeat the command")
    if _from_composing(error):
        return ConfigError(_composition_mistake(error))
    if isinstance(error, OSError) and _from_hydra(error):  # before our job ran
        return UserError(
            f"{error.filename}: {error.strerror}; the run folder cannot be created there, set root=... to another place"
        )
    if isinstance(error, ValueError) and str(error).startswith("Only one of --run"):
        return ConfigError("give only one of -m, --cfg and --info: --cfg job alone prints the configuration of one run")
    if "torchvision::" in str(error):
        return UserError(
            f"torch and torchvision are not a matching pair ({str(error).splitlines()[0]}); install one: "
            f"{torch_command()}"
        )
    return None


def _unwrapped(error: BaseException | None) -> UserError | None:
    """The error itself if it is a user error, or the user error that a resolver raised and omegaconf wrapped."""
    while isinstance(error, OmegaConfBaseException):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, UserError) else None


def _from_composing(error: BaseException) -> bool:
    """Whether an error comes from an override or an option file; hydra lets some Python errors through."""
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        return True
    *_, last = _modules(error)
    return last.startswith(("hydra._internal.defaults", "hydra._internal.logging", "hydra.core.plugins"))


def _from_hydra(error: BaseException) -> bool:
    """Whether hydra, or what it called, raised an error: none of our modules stands below it in the traceback."""
    modules = _modules(error)
    below = [name for name in modules if name.startswith(("hydra.", "kd."))]
    return bool(below) and below[-1].startswith("hydra.")


def _modules(error: BaseException) -> list[str]:
    """The modules in an error's traceback, from the outermost to the one that raised it."""
    return [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]


def _composition_mistake(error: BaseException) -> str:
    """What hydra could not compose, with the closest valid name."""
    message = "\n".join(line.strip() for line in str(error).splitlines() if not NOISE.match(line.strip()))
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None) or ""
    if isinstance(error, OverrideParseException):
        reason = message.split("\n")[-1]
        return f"{error.override} cannot be read as key=value ({reason}); put quotes inside: key='a value'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = _group_and_name(error.missing_cfg_file or "")
        return f"{group}={name} is not an option of conf/{group}; {nearest(name, error.options)}"
    quoted = (message.split("'")[1] if message.count("'") >= 2 else "").split("@")[0]
    if twice := TWICE.match(message.replace("\n", " ")):
        group, name = twice.groups()
        return f"+{group}={name} adds a second {group}; leave out the +: {group}={name}"
    if ("Could not override" in message or "not in struct" in message) and "@" not in message:
        return _unknown_key(key or quoted, getattr(error.__cause__ or error, "parent_node", None))
    if isinstance(error, OmegaConfBaseException):
        return f"{key or 'configuration'}: {message}; correct what it says, or what it refers to"
    place, cause = _place(error), getattr(error.__cause__, "msg", None) or ""
    reason = " ".join([message, *cause.split("\n")[:1]]).strip()
    group = place.partition("=")[0]
    advice = f"; {options(group)}" if (CONF / group).is_dir() and group else ""
    return f"{'' if not place or place in message else place + ': '}{reason}{advice}"


def _group_and_name(file: str) -> tuple[str, str, str]:
    """A missing option's group and name, from schedule/cosin, hydra/sweeper/pruner/x or experiment//absolute/path."""
    return file.partition("//") if "//" in file else file.rpartition("/")


def _unknown_key(key: str, parent: Any = None) -> str:
    """What to say of a key that does not exist; `parent` is the node in which it was looked for."""
    group, known = key.partition(".")[0], known_keys()
    if key.rpartition(".")[0] in ANY_KEY:
        return f"{key} does not exist yet; add it with a plus: +{key}=..."
    if key in known and group != key:
        return f"{key} is not an option of the chosen {group}; leave it out, or choose another {group}"
    if key.startswith("hydra.") and OmegaConf.is_dict(parent):
        arguments = arguments_of(str(parent.get("_target_")))
        if key.rpartition(".")[2] in arguments:
            return f"{key} does not exist yet; add it with a plus: +{key}=..."
        names = arguments or [str(name) for name in parent if not str(name).startswith("_")]
        return f"{key} is not an option; {nearest_in_group(key, names)}"
    return f"{key} is not an option; {nearest_key(key)}"


def _place(error: BaseException) -> str:
    """The override or the group that hydra was processing, from its stack frames: some of its errors do not name it."""
    place = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("hydra."):
            names = frame.f_locals
            override, default = names.get("override"), names.get("d")
            place = getattr(override, "input_line", None) or getattr(default, "group", None) or place
    return place
