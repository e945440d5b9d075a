"""Where this package is, a clone or an installation, and how its commands are typed there. Light: the standard library.

A wheel carries conf/ inside the package; a clone, also one that is installed as editable, has it beside kd/.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

NAME = "kd-sweeper"
PACKAGE = Path(__file__).resolve().parent.parent
INSTALLED = (PACKAGE / "conf").is_dir()


def version() -> str:
    """The version of this package; in a clone as its pyproject.toml has it now, installed or not."""
    if INSTALLED:
        return metadata.version(NAME)
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def train_command(processes: int = 1) -> str:
    """How to start a training: `python train.py` in a clone, unless this is `kd train`, which works everywhere.

    With several processes, the same command under torchrun.
    """
    as_kd = INSTALLED or sys.argv[:1] == ["kd train"]  # set by `kd train`
    if processes == 1:
        return "kd train" if as_kd else "python train.py"
    return f"torchrun --nproc-per-node={processes} {'--no-python kd train' if as_kd else 'train.py'}"


def config_dir_arguments(folder: Path | str | None) -> list[str]:
    """What names a folder of recipes and options of one's own to a command that trains; empty without one."""
    return ["--config-dir", str(folder)] if folder else []


def install_command(extra: str) -> str:
    """How to add an optional dependency of this package to the environment."""
    return f"pip install '{NAME}[{extra}]'" if INSTALLED else f"pip install -e '.[{extra}]'"


def torch_command() -> str:
    """How to install versions of torch and torchvision that match."""
    if not INSTALLED:
        return "pip install --require-hashes -r requirements.lock"
    pair = (line for line in metadata.requires(NAME) or () if re.match(r"torch(vision)?\W", line))
    return f"pip install {' '.join(map(repr, pair))}"
