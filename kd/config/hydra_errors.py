"""From whatever went wrong to one line on stderr and an exit code."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kd.config.compose import CONF, known_keys, options
from kd.errors import ConfigError, DiskError, UserError, nearest
from kd.system.launch import current_rank

#: What a system says of a path that it will not let anyone write.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EIO}
FULL = os.environ.get("HYDRA_FULL_ERROR") == "1"  # what the user asked for, before anyone below sets it
NOISE = re.compile("full_key:|object_type=|reference_type=|See https:")  # lines of hydra's that help nobody
OPEN = ("tracking.tags",)  # mappings that take any key


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a person did wrong into one line on stderr and an exit code; HYDRA_FULL_ERROR=1 shows the traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra hands its errors on instead of printing them over several lines
    try:
        yield
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as error:
        _say("interrupted")
        sys.exit(getattr(error, "exit_code", 130))
    except Exception as error:
        told = _told(error)
        if FULL or told is None:
            raise
        _say(f"error: {told}{f' (docs/{told.page}.md)' if told.page else ''}")
        sys.exit(told.exit_code)
    finally:
        if not FULL:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _say(line: str) -> None:
    """Of several processes the first speaks for all; the others have told it what went wrong with them."""
    if current_rank().rank == 0:
        print(line, file=sys.stderr)


def _told(error: Exception) -> UserError | None:
    """What a person did wrong, and where help is; None for a defect of ours."""
    if told := _user_error(error):
        return told
    if isinstance(error, OSError) and error.errno in DISK and error.filename:
        return DiskError(f"{error.filename}: {error.strerror}; mend that and give the same command again")
    if _from_composing(error):
        return ConfigError(_composition_mistake(error))
    ours = {name for name in _modules(error) if name.startswith("kd.")} - {__name__}
    if isinstance(error, OSError) and not ours:  # hydra, before anything of ours has begun
        return UserError(
            f"{error.filename}: {error.strerror}; no run folder can be made there, set root=... to a place of yours"
        )
    if "torchvision::" in str(error):
        return UserError(
            f"torch and torchvision are not a matching pair ({str(error).splitlines()[0]}); install the versions that "
            "requirements.lock names: pip install --require-hashes -r requirements.lock"
        )
    return None


def _user_error(error: BaseException | None) -> UserError | None:
    """An error of ours, or the one that omegaconf made another of because a resolver raised it."""
    while isinstance(error, OmegaConfBaseException):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, UserError) else None


def _from_composing(error: BaseException) -> bool:
    """Whether what went wrong is in an override or an option file; hydra lets some Python errors through."""
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        return True
    *_, last = _modules(error)
    return last.startswith(("hydra._internal.defaults", "hydra._internal.logging", "hydra.core.plugins"))


def _modules(error: BaseException) -> list[str]:
    """The modules that an error came through, from the outermost to the one that raised it."""
    return [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]


def _composition_mistake(error: BaseException) -> str:
    """What hydra could not compose, with the nearest that it could."""
    message = "\n".join(line.strip() for line in str(error).splitlines() if not NOISE.match(line.strip()))
    key = getattr(error, "full_key", None) or getattr(error.__cause__, "full_key", None) or ""
    if isinstance(error, OverrideParseException):
        reason = message.split("\n")[-1]
        return f"{error.override} is not read as key=value ({reason}); put quotes inside: key='a value'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = _group_and_name(error.missing_cfg_file or "")
        return f"{group}={name} is not an option of conf/{group}; {nearest(name, error.options)}"
    quoted = (message.split("'")[1] if message.count("'") >= 2 else "").split("@")[0]
    if ("Could not override" in message or "not in struct" in message) and "@" not in message:
        return _unknown_key(key or quoted)
    if isinstance(error, OmegaConfBaseException):
        return f"{key or 'configuration'}: {message}; correct what it says, or what it refers to"
    place, cause = _place(error), getattr(error.__cause__, "msg", None) or ""
    reason = " ".join([message, *cause.split("\n")[:1]]).strip()
    group = place.partition("=")[0]
    advice = f"; {options(group)}" if (CONF / group).is_dir() and group else ""
    return f"{'' if not place or place in message else place + ': '}{reason}{advice}"


def _group_and_name(file: str) -> tuple[str, str, str]:
    """The parts of an option that is not there: schedule/cosin, hydra/sweeper/pruner/x, experiment//absolute/path."""
    return file.partition("//") if "//" in file else file.rpartition("/")


def _unknown_key(key: str) -> str:
    group, known = key.partition(".")[0], known_keys()
    if key.rpartition(".")[0] in OPEN:
        return f"{key} is not there yet; add it with a plus: +{key}=..."
    if key in known and group != key:
        return f"{key} is not an option of the {group} that is chosen; leave it out, or choose another {group}"
    return f"{key} is not an option; {nearest(key, known)}"


def _place(error: BaseException) -> str:
    """The override or the group that hydra was at: some of its errors do not say, but its frames do."""
    place = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").startswith("hydra."):
            at = frame.f_locals
            place = getattr(at.get("override"), "input_line", None) or getattr(at.get("d"), "group", None) or place
    return place
