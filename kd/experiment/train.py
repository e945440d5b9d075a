"""What `kd train` and `python train.py` do: compose the configuration with Hydra, and run the job or the study.

Light until a job runs, so that --help and errors in the configuration come at once. Hydra names the job after this
module: its log is train.log.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from kd.config.compose import CONF, WHITELIST
from kd.config.hydra_errors import one_line_errors
from kd.study.hydra_options import check_recipes
from kd.system.launch import (
    current_rank,
    hush,
    refuse_a_study,
    refuse_separate_tasks,
    refuse_to_resume_many,
    throw_folder_away,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _run_folder(resume: str | None, fresh: str, *, _root_: "DictConfig") -> str:
    from kd.config.resume import run_folder  # what reads and checks a configuration: not needed for --help

    return run_folder(resume, fresh, _root_)


OmegaConf.register_resolver("run_folder", _run_folder, replace=True)


def main() -> None:
    """Do what `sys.argv` says, as Hydra reads it: one job, a study with -m, or help, completion and the like."""
    hush()
    refuse_a_study(sys.argv)
    refuse_separate_tasks(sys.argv)
    _refuse_resume(sys.argv)
    check_recipes()
    hydra.main(config_path=str(CONF), config_name="config", execution_whitelist=WHITELIST)(task)()


def _refuse_resume(arguments: Sequence[str]) -> None:
    """Refuse `resume` with -m before the first job is launched."""
    if {"-m", "--multirun"} & {*arguments}:
        for key, _, value in (argument.partition("=") for argument in arguments):
            if key.lstrip("+") == "resume" and value not in ("", "null"):
                refuse_to_resume_many(value, grid="hydra/sweeper=basic" in arguments)


def task(cfg: "DictConfig") -> float | tuple[float, ...] | None:
    """Run one job; returns the objective, or objectives, of its best epoch.

    Launchers pickle this function by its name: it must not be decorated.
    """
    # Read when torch is loaded: idle threads sleep instead of spinning, so that two runs on one machine do not crawl.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    alone = HydraConfig.get().mode is RunMode.RUN  # in a multirun it is the sweeper that deals with a failed job
    with one_line_errors() if alone else nullcontext():
        throw_folder_away()
        from kd.experiment.job import job

        asked = job(cfg) if current_rank().rank == 0 else None
        from kd.experiment.distil import run  # heavy: torch, albumentations, mlflow

        return run(asked)
