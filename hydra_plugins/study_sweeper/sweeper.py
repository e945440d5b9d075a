"""The plugin that hydra discovers, `hydra/sweeper=study`; light, as hydra imports it at every start."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """An Optuna study that prunes, resumes after any interruption, and keeps every worker busy.

    The options of hydra-optuna-sweeper keep their names. In addition:

    Args:
        pruner: an optuna pruner; the objective is reported to it after every epoch.
        n_trials: the number of finished trials (complete or pruned) of the study, whichever process ran them.
        max_failure_rate: the share of n_trials that may fail for good before the study stops.
        max_retries: how often a failed trial is retried.
        heartbeat_interval: seconds between the heartbeats of a running trial.
        grace_period: seconds without a heartbeat after which a trial is given to another worker; null: four heartbeats.
    """

    def __init__(self, **options: Any) -> None:
        from kd.study.sweep import StudySweeperImpl

        self.sweeper = StudySweeperImpl(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.sweeper.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        return self.sweeper.sweep(arguments)
