"""What hydra finds: `hydra/sweeper=study`. Light, since hydra imports it at every start; the work is in `_impl`."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """An Optuna study that prunes, goes on where it was stopped, and keeps every worker busy.

    The options of hydra-optuna-sweeper keep their names. Beside them:

    Args:
        pruner: an optuna pruner, told the objective after every epoch.
        n_trials: how many finished trials (complete or pruned) the study should have, whoever ran them.
        max_failure_rate: the share of n_trials that may be given up before the study stops.
        max_retries: how often a trial that failed is run again.
        heartbeat_interval: seconds between a running trial's signs of life.
        grace_period: seconds of silence after which a trial is given to another worker; null: four heartbeats.
    """

    def __init__(self, **options: Any) -> None:
        from kd.study.sweep import StudySweeperImpl

        self.sweeper = StudySweeperImpl(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        return self.sweeper.sweep(arguments)
