"""The sweeper: claims a trial, launches its job and records how it ended, until the study is complete."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from omegaconf import DictConfig, OmegaConf
from optuna import Trial
from optuna.trial import FrozenTrial, TrialState

from kd.config.compose import check_deletions, container
from kd.errors import ConfigError, Superseded, UserError, nearest, without_credentials
from kd.run import console
from kd.settings import Settings, more_is_better
from kd.study import hydra_options, worker
from kd.study.address import holds_password
from kd.study.attributes import FAILURE, RUN_FOLDER, WORKER
from kd.study.folder import StudyFolder
from kd.study.ledger import Budget, Ledger, NoClaim
from kd.study.origin import Origin
from kd.study.search import Search
from kd.study.space import Direction, Space
from kd.system import signals
from kd.system.resources import SLOT, TRIALS_AT_ONCE
from kd.tracking import Store

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0  # how often to look for a trial to run, and for workers that stopped responding
IN_PROCESS = "BasicLauncher"
ON_OTHER_MACHINES = ("SlurmLauncher", "RayAWSLauncher")
ON_THIS_MACHINE = ("JoblibLauncher", "LocalLauncher")  # joblib, submitit_local: all trials share this machine
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no SIGKILL; there psutil's SIGTERM kills
#: The smallest value of each option.
LEAST = {"n_trials": 1, "max_epochs": 1, "n_jobs": 1, "max_retries": 0, "heartbeat_interval": 1}
STOCK = ("sampler", "direction", "storage", "study_name", "n_trials", "n_jobs", "max_failure_rate", "params")
OWN = ("folder", "pruner", "max_epochs", "max_retries", "heartbeat_interval", "grace_period")


class StudySweeperImpl(OptunaSweeperImpl):
    """hydra-optuna-sweeper's configuration and search-space grammar, on a study that prunes and resumes.

    `options` are the keys of conf/hydra/sweeper/study.yaml.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Any
    study_name: str

    def __init__(self, **options: Any) -> None:
        if unknown := sorted(options.keys() - {*STOCK, *OWN}):
            raise ConfigError(f"hydra.sweeper.{unknown[0]} is not an option; {nearest(unknown[0], [*STOCK, *OWN])}")
        super().__init__(**{name: options[name] for name in STOCK}, custom_search_space=None)
        self.options = {name: _plain(value) for name, value in options.items() if name != "params"}
        self.launched: set[int] = set()  # the ids of the trials whose jobs have not come back

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        pool = getattr(self.launcher, "joblib", None)
        if pool and pool["n_jobs"] == -1:  # a single worker would be the sweeper's own process, which we cannot kill
            self.launcher.joblib = {**pool, "n_jobs": max(2, self.n_jobs)}
        self.sweep_dir = config.hydra.sweep.dir

    def sweep(self, arguments: list[str]) -> None:
        """Run the study until it is complete or a signal stops it.

        Raises:
            ConfigError: an option, or a corner of the space, is invalid; nothing has been started.
            StudyError: another study has that name, the database cannot be used, or too many trials failed.
        """
        with signals.listen():
            self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> None:
        check_deletions(arguments)
        self._check_options(arguments)
        search = Search(self._composed, self.study_name, hydra_options.is_grid(self.options["sampler"]))
        space, settings = search.space([*self._parse_sweeper_params_config(), *arguments], typed=arguments)
        space = replace(space, objectives=self._directions(settings))
        budget = self._budget(space)
        sampler = hydra_options.sampler(
            {"_target_": "optuna.samplers.RandomSampler"} if budget.grid else self.options["sampler"], settings.seed
        )
        sampler(0)  # raises for an invalid option
        database = hydra_options.database(self.options, settings.root)
        pruner = hydra_options.pruner(self.options["pruner"])
        origin = Origin.of(self.config, self.hydra_context.config_loader, space)
        ledger = Ledger(database, self.study_name, space, sampler, pruner, budget)
        origin.write(ledger.study)
        with StudyFolder(ledger, settings, Path(self.sweep_dir)) as output:
            for warning in filter(None, (self._shared_disk(settings), self._competing(settings))):
                console.say(f"warning  {warning}")
            console.say(f"study    {self.study_name}: {ledger.tally().finished} of {budget.trials} trials are finished")
            self._work(ledger, output)

    def _composed(self, overrides: list[str]) -> DictConfig:
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    def _shared_disk(self, settings: Settings) -> str:
        """A warning if jobs on several machines would write to MLflow's sqlite file; else empty."""
        elsewhere = type(self.launcher).__name__ in ON_OTHER_MACHINES
        if not (elsewhere and settings.tracking.enabled and Store.of(settings.tracking, settings.root).is_local):
            return ""
        return (
            "the jobs of several machines share MLflow's sqlite file, which a network disk does not lock safely; start "
            f"`mlflow server --backend-store-uri sqlite:///{settings.root}/mlruns/mlflow.db --host 0.0.0.0` on one "
            "machine and set MLFLOW_TRACKING_URI=http://<machine>:5000, or add tracking=none"
        )

    def _competing(self, settings: Settings) -> str:
        """A warning if a latency is an objective, and trials run at the same time on this machine; else empty."""
        latency = next((name for name in settings.objective if name.rpartition("/")[2] == "latency_ms"), None)
        if latency is None or self.n_jobs == 1 or type(self.launcher).__name__ not in ON_THIS_MACHINE:
            return ""
        return (
            f"{latency} is measured while {self.n_jobs} trials compete for this machine, so it says little; leave out "
            "hydra.sweeper.n_jobs to run one trial at a time"
        )

    def _budget(self, space: Space) -> Budget:
        grid = hydra_options.is_grid(self.options["sampler"])
        trials = min(self.n_trials, len(space.cells())) if grid else self.n_trials
        return Budget(trials, grid, self.options["max_retries"], self.max_failure_rate, self.options["max_epochs"])

    def _check_options(self, typed: Sequence[str]) -> None:
        hydra_options.check_name(self.study_name)
        self._check_passwords(typed)
        for name, least in LEAST.items():
            if name == "max_epochs" and self.options[name] is None:
                continue
            if not isinstance(self.options[name], int) or self.options[name] < least:
                raise ConfigError(
                    f"hydra.sweeper.{name}={self.options[name]!r}: should be a whole number, {least} or more",
                    page="studies",
                )
        grace, beat = self.options["grace_period"], self.options["heartbeat_interval"]
        if grace is not None and (not isinstance(grace, int) or grace <= beat):
            raise ConfigError(
                f"hydra.sweeper.grace_period={grace!r}: should be more than heartbeat_interval={beat}, or null",
                page="studies",
            )
        if self.n_jobs > 1 and self._in_process:
            raise ConfigError(
                f"hydra.sweeper.n_jobs={self.n_jobs} needs processes: add hydra/launcher=joblib (or submitit_local, "
                "submitit_slurm, ray); or start the same command several times",
                page="studies",
            )

    def _check_passwords(self, typed: Sequence[str]) -> None:
        raw = container(self.config.hydra.sweeper, resolve=False)["storage"]
        if isinstance(raw, str) and holds_password(raw):
            raise ConfigError(
                "hydra.sweeper.storage holds a password, which would be written into every run folder; leave it out "
                "and set PGPASSWORD (or ~/.pgpass), or set the whole address in the variable KD_STORAGE",
                page="studies",
            )
        for key, _, value in (override.partition("=") for override in typed):
            if without_credentials(value) != value:
                raise ConfigError(
                    f"{key} holds a password, which would be written into the study's database; leave it out and set "
                    "the whole address in the variable MLFLOW_TRACKING_URI",
                    page="mlflow",
                )

    @property
    def _in_process(self) -> bool:
        return type(self.launcher).__name__ == IN_PROCESS

    def _directions(self, settings: Settings) -> dict[str, Direction]:
        """The direction of each objective; hydra.sweeper.direction must not contradict them."""
        natural: dict[str, Direction] = {
            name: "maximize" if more_is_better(name) else "minimize" for name in settings.objective
        }
        if self.direction is not None and self._get_directions() != list(natural.values()):
            raise ConfigError(
                f"hydra.sweeper.direction={self._get_directions()} does not match objective={list(natural)}, which "
                f"needs {list(natural.values())}; leave direction out",
                page="studies",
            )
        if len(natural) > 1 and not str(self.options["pruner"].get("_target_")).endswith("NopPruner"):
            raise ConfigError(
                f"optuna cannot prune for {len(natural)} objectives ({', '.join(natural)}); add "
                "hydra/sweeper/pruner=none",
                page="studies",
            )
        return natural

    def _work(self, ledger: Ledger, output: StudyFolder) -> None:
        """Run trials until the study is complete: in this process, or in `n_jobs` threads that each await a process."""
        if self._in_process:
            self._run_trials(ledger, output)
            return
        errors: list[BaseException] = []

        def run(slot: int) -> None:
            try:
                self._run_trials(ledger, output, slot, stop=lambda: bool(errors))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(i,), daemon=True, name=f"trials {i}") for i in range(self.n_jobs)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(timeout=POLL_SECONDS) if threads[0].is_alive() else time.sleep(POLL_SECONDS)
                _kill_silent_workers(ledger, [*self.launched])
        except signals.Interrupted as end:  # the workers may not have received the signal: they save, then end
            errors.append(end)
            for trial in ledger.trials():
                if trial.state == TrialState.RUNNING:
                    worker.signal_child(trial.user_attrs.get(WORKER), signal.SIGTERM)
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def _run_trials(
        self, ledger: Ledger, output: StudyFolder, slot: int | None = None, stop: Callable[[], bool] = lambda: False
    ) -> None:
        while not stop():
            claimed = ledger.database.with_retries(ledger.claim)
            if claimed is NoClaim.DONE:
                return
            if claimed is NoClaim.WAIT:
                time.sleep(POLL_SECONDS)
                continue
            self._run_trial(claimed, ledger, slot)
            ledger.database.with_retries(partial(output.after, claimed.number))

    def _run_trial(self, trial: Trial, ledger: Ledger, slot: int | None) -> None:
        """Launch one trial's job and wait for its end; any failure is recorded as the trial's own."""
        suggest = trial._suggest
        params = {
            name: ledger.database.with_retries(partial(suggest, name, distribution))
            for name, distribution in ledger.space.searched.items()
        }
        gpu = [] if slot is None else [f"++hydra.job.env_set.{SLOT}='{slot}'"]  # selects one of several GPUs
        if type(self.launcher).__name__ in ON_THIS_MACHINE:  # divides its cores and memory
            gpu.append(f"++hydra.job.env_set.{TRIALS_AT_ONCE}='{self.n_jobs}'")
        this = worker.this_process()

        def started_elsewhere() -> bool:
            return ledger.storage.get_trial(trial._trial_id).user_attrs.get(WORKER) != this

        reason = "its job ended without reporting a result"
        with worker.heartbeat(ledger.storage, trial._trial_id, over=started_elsewhere):
            self.launched.add(trial._trial_id)
            try:
                (job,) = self.launcher.launch([[*ledger.space.overrides(params), *gpu]], initial_job_idx=trial.number)
                if job.status is JobStatus.FAILED:
                    reason = _brief(job._return_value)
            except Exception as error:  # a killed process, a scheduler that refuses, ...
                reason = _brief(error)
            finally:
                self.launched.discard(trial._trial_id)
        ledger.database.with_retries(lambda: _settle(trial, ledger, reason))


def _kill_silent_workers(ledger: Ledger, launched: Sequence[int]) -> None:
    """Kill our own workers that lost their trial for missing heartbeats: they would block their thread forever.

    It may have been lost to any process's claim, also to one of another slot.
    """
    ledger.database.with_retries(ledger.fail_dead_trials)
    for trial in ledger.database.with_retries(partial(ledger.lost, launched)):
        if worker.signal_child(trial.user_attrs.get(WORKER), KILL):
            log.warning("trial %d: its worker stopped responding and was killed", trial.number)


def _settle(trial: Trial, ledger: Ledger, reason: str) -> None:
    """Fail a trial that its job left running: as lost if the job had started, else as an error of the launcher."""
    now: FrozenTrial = ledger.storage.get_trial(trial._trial_id)
    if now.state != TrialState.RUNNING:
        return
    started = RUN_FOLDER in now.user_attrs
    trial.set_user_attr(FAILURE, {"kind": "lost" if started else "error", "reason": reason})
    ledger.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _brief(error: Any) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else ""
    return first if isinstance(error, UserError | Superseded) else f"{type(error).__name__}: {first}"


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
