"""What a study was begun with: its question, and the option files of a --config-dir that its trials use.

Both are stored in the study. Its recipes name these option files, and hydra takes one --config-dir: so they are written
into the study's folder, beside the recipes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig
from optuna import Study

from kd.config.compose import CONF
from kd.study.hydra_options import config_dir
from kd.study.space import Space
from kd.system.untrusted import mapping_at, read_bytes

ATTRIBUTE = "origin"
STUDIES = "sweeps@hydra.sweeper.sweeps"  # the group of sweeps/ among hydra's choices
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+")  # of an option file


@dataclass(frozen=True)
class Origin:
    """What a study was begun with.

    Attributes:
        question: what the study asks, in a line; empty if its file does not say.
        options: the text of each option file that the project itself has not, by its name, such as experiment/mine.
    """

    question: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, cfg: DictConfig, loader: ConfigLoader, space: Space) -> "Origin":
        """The origin of the study that hydra, configured by `cfg`, is about to begin."""
        folder, choice = config_dir(cfg.hydra), cfg.hydra.runtime.choices.get(STUDIES)
        places = [path for path in (CONF, folder) if path and choice and (path / f"sweeps/{choice}.yaml").is_file()]
        question = _question((places[0] / f"sweeps/{choice}.yaml").read_text(encoding="utf-8")) if places else ""
        if folder is None:
            return cls(question)
        used = sorted({name for name in _used(cfg, loader, space) if not (CONF / f"{name}.yaml").is_file()})
        own = [name for name in used if (folder / f"{name}.yaml").is_file()]
        return cls(question, {name: read_bytes(folder, f"{name}.yaml").decode() for name in own})

    def write(self, study: Study) -> None:
        """Store the origin in a study that has none yet."""
        if ATTRIBUTE not in study.user_attrs:
            study.set_user_attr(ATTRIBUTE, {"question": self.question, "options": dict(self.options)})

    @classmethod
    def read(cls, study: Study) -> "Origin":
        """The origin that a study stores; an empty one if it stores none."""
        stored: Any = study.user_attrs.get(ATTRIBUTE)
        found = stored if isinstance(stored, dict) else {}
        groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", "sweeps"}
        options = {
            name: text
            for name, text in mapping_at(found, "options").items()
            if NAME.fullmatch(name) and name.split("/")[0] in groups and isinstance(text, str)
        }
        return cls(str(found.get("question") or ""), options)


def _question(text: str) -> str:
    """The first comment of a study's file but for its package."""
    asked = (line for line in text.splitlines() if line.startswith("# ") and "@package" not in line)
    return next(asked, "").removeprefix("# ")


def _used(cfg: DictConfig, loader: ConfigLoader, space: Space) -> Iterator[str]:
    """The names of the option files that the study's trials are composed of."""
    ranges = {name for name in space.searched if space.is_range(name)}
    choices = [{name: value for name, value in corner.items() if name not in ranges} for corner in space.corners()]
    for overrides in {tuple(space.overrides(each)) for each in choices}:
        typed = [*cfg.hydra.overrides.hydra, *overrides]
        for entry in loader.compute_defaults_list(cfg.hydra.job.config_name, typed, RunMode.RUN).defaults:
            yield str(entry.config_path).removesuffix(".yaml")
