"""One call of train.py: the settings, and what hydra knows about it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kd.config import resume
from kd.config.compose import plain
from kd.config.read import checked
from kd.errors import ConfigError, UserError, without_credentials
from kd.settings import Settings
from kd.study.hydra_options import TrialJob, trial_job


@dataclass(frozen=True)
class Job:
    """One call of train.py: the settings, and what hydra knows about it.

    Attributes:
        config: the composed configuration as plain containers, for the record.
        folder: the run folder.
        name: the overrides that made the run, for people.
        choices: the option chosen in each config group.
        overrides: what was typed, without passwords.
        fresh: whether the folder is new.
        trial: the trial of a study that this call is; None for a run of its own.
    """

    settings: Settings
    config: dict[str, Any]
    folder: Path
    name: str
    choices: dict[str, str]
    overrides: list[str]
    fresh: bool
    trial: TrialJob | None = None


def job(cfg: DictConfig) -> Job:
    """What `train.py` is asked to do; a configuration that is refused leaves no run folder behind."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    fresh = not (folder / "config.yaml").exists()  # else it is somebody's run, to go on with
    try:
        config, typed = plain(cfg), list(hydra.overrides.task)
        if cfg.resume is not None:
            if hydra.mode is not RunMode.RUN:
                raise ConfigError(
                    f"resume={cfg.resume} is for a single run; a study goes on by its own command", page="studies"
                )
            if not fresh:  # resume=auto may have found nothing to go on with
                config = resume.merged(folder, config, [each for each in typed if not each.startswith("resume=")])
        settings = checked(config)
    except UserError:
        if fresh:
            discard(folder)
        raise
    choices = {
        group: str(choice)
        for group, choice in hydra.runtime.choices.items()
        if not group.startswith(("hydra/", "sweeps@"))
    }
    trial = trial_job(settings.root)
    name = f"{trial.sweeper['study_name']} {trial.number}" if trial else hydra.job.override_dirname or "defaults"
    overrides = [without_credentials(override) for override in typed]
    return Job(settings, config, folder, name, choices, overrides, fresh, trial)


def discard(folder: Path) -> None:
    """Remove a run folder that holds nothing but what was written before training; any other stays as it is."""
    ours = {".hydra", ".lock", "run.json", "train.log", "config.yaml", "timeline.png"}
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= ours:
        shutil.rmtree(folder)
