"""Distil one student, or, with -m, run a study: see README.md, and `python train.py --help` for every option."""

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from kd.config.compose import WHITELIST
from kd.config.hydra_errors import one_line_errors
from kd.experiment.job import job
from kd.study.hydra_options import check_recipes
from kd.system.launch import current_rank, hush, refuse_a_study, throw_folder_away
from kd.system.terminal import steady_output

# Read when torch is loaded: idle threads sleep instead of spinning, so that two runs on one machine do not crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from omegaconf import DictConfig


@hydra.main(config_path="conf", config_name="config", execution_whitelist=WHITELIST)
def main(cfg: "DictConfig") -> float | tuple[float, ...] | None:
    alone = HydraConfig.get().mode is RunMode.RUN  # in a multirun it is the sweeper that deals with a failed job
    with one_line_errors() if alone else nullcontext():
        throw_folder_away()
        asked = job(cfg) if current_rank().rank == 0 else None
        from kd.experiment.distil import run  # heavy: torch, albumentations, mlflow

        return run(asked)


if __name__ == "__main__":
    steady_output()
    hush()
    with one_line_errors():
        refuse_a_study(sys.argv)
        check_recipes()
        main()
