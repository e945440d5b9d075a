"""From whatever went wrong to one line on stderr and an exit code."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from kd.composition import known_keys
from kd.errors import ConfigError, UserError, nearest

FULL = os.environ.get("HYDRA_FULL_ERROR") == "1"  # what the user asked for, before anyone below sets it


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a person did wrong into one line on stderr and an exit code; HYDRA_FULL_ERROR=1 shows the traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra hands its errors on instead of printing them over several lines
    try:
        yield
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line, code = _one_line(error)
        if FULL or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(code)
    finally:
        if not FULL:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _one_line(error: BaseException) -> tuple[str | None, int]:
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, CompactHydraException | OmegaConfBaseException) or "Config group override" in str(error):
        return _composition_mistake(error), ConfigError.exit_code
    if "torchvision::" in str(error):
        return (
            f"torch and torchvision are not a matching pair ({str(error).splitlines()[0]}); install the versions that "
            "requirements.lock names: pip install --require-hashes -r requirements.lock"
        ), 1
    return None, 1


def _composition_mistake(error: Exception) -> str:
    """One line on an override or a group that hydra could not compose, with the nearest that it could."""
    message = str(error).strip()
    first = message.splitlines()[0]
    if isinstance(error, MissingConfigException) and error.options:
        missing = error.missing_cfg_file or ""
        group, _, name = missing.rpartition("/")
        return f"{group}={name} is not an option of conf/{group}; {nearest(name, error.options)}"
    quoted = first.split("'")[1] if first.count("'") >= 2 else ""
    if "Could not override" in first or "not in struct" in message:
        key = quoted.split("@")[0]
        group = key.partition(".")[0]
        if key in known_keys() and group != key:
            return f"{key} is not an option of the {group} that is chosen; leave it out, or choose another {group}"
        return f"{key} is not an option; {nearest(key, known_keys())}"
    return " ".join(line.strip() for line in message.splitlines() if line.strip())
