"""What one call of train.py is to do: settings, run folder, overrides, and the trial that it is, if any."""

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kd.config import resume
from kd.config.compose import check_deletions, plain
from kd.config.read import checked
from kd.errors import UserError, without_credentials
from kd.experiment.naming import run_name
from kd.run.folder import LOCK
from kd.settings import Settings
from kd.study.hydra_options import SWEEPER, TrialJob, config_dir, trial_job
from kd.system.launch import refuse_to_resume_many

DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Job:
    """What one call of train.py is to do.

    Attributes:
        config: the composed configuration as plain containers, for config.yaml.
        folder: the run folder.
        name: the name that MLflow lists it under.
        choices: the option chosen in each config group.
        overrides: the command line's overrides, without passwords.
        config_dir: the folder of recipes that --config-dir names; None without one.
        fresh: whether the folder is new.
        trial: the study's trial that this call runs; None for a single run.
        resumed: whether `resume` named or found the folder.
    """

    settings: Settings
    config: dict[str, Any]
    folder: Path
    name: str
    choices: dict[str, str]
    overrides: list[str]
    config_dir: Path | None
    fresh: bool
    trial: TrialJob | None = None
    resumed: bool = False


def job(cfg: DictConfig) -> Job:
    """Read the job from a composed configuration; an invalid one leaves no run folder behind.

    Raises:
        UserError: the configuration is invalid, or does not fit the run that it resumes.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    fresh = not (folder / "config.yaml").exists()  # otherwise a run to resume
    try:
        typed = list(hydra.overrides.task)
        check_deletions(typed)
        config = _with_absolute_root(plain(cfg))
        if cfg.resume is not None:
            if hydra.mode is not RunMode.RUN:
                refuse_to_resume_many(cfg.resume, grid=hydra.sweeper.get("_target_") != SWEEPER)
            if not fresh:  # resume=auto may have found nothing to resume
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
    overrides = [without_credentials(override) for override in typed]
    name = f"trial {trial.number}" if trial else run_name(settings, choices, overrides)
    resumed = cfg.resume is not None and not fresh
    return Job(settings, config, folder, name, choices, overrides, config_dir(hydra), fresh, trial, resumed)


def _with_absolute_root(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the absolute path of its data: the run is used from other working directories, too."""
    root = config["data"].get("root")
    if not isinstance(root, str) or not root:
        return config
    return {**config, "data": {**config["data"], "root": os.path.abspath(os.path.expanduser(root))}}


def discard(folder: Path) -> None:
    """Delete a run folder if it holds only files written before training; also that of its day, if it was the first."""
    disposable = {".hydra", LOCK, "run.json", "train.log", "config.yaml", "timeline.png"}
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= disposable:
        shutil.rmtree(folder)
        if DATE.fullmatch(folder.parent.name):
            with suppress(OSError):  # other runs of that day are in it
                folder.parent.rmdir()
