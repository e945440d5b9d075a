"""The study sweeper at work: claim a trial, launch its job, see what became of it, until the study has enough."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
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

from kd.config.compose import container, plain
from kd.config.read import read
from kd.errors import ConfigError, Superseded, UserError, without_credentials
from kd.run import console
from kd.settings import Settings, flat, is_under, more_is_better
from kd.study import hydra_options, worker
from kd.study.folder import StudyFolder
from kd.study.ledger import Ledger, Now
from kd.study.space import Direction, Space
from kd.study.storage import holds_password
from kd.system import signals

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0  # how often a worker without a trial, and the watch over silent ones, looks again
IN_PROCESS = "BasicLauncher"
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none, and psutil's SIGTERM there leaves no choice


class StudySweeperImpl(OptunaSweeperImpl):
    """The stock sweeper's configuration and search-space grammar, with a study that prunes and resumes."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Any
    study_name: str

    def __init__(self, *, folder: str, pruner: Any, max_retries: int, heartbeat_interval: int, grace_period: int | None,
                 sampler: Any, direction: Any, storage: str | None, study_name: str, n_trials: int, n_jobs: int,
                 max_failure_rate: float, params: DictConfig | None) -> None:  # fmt: skip
        super().__init__(sampler, direction, storage, study_name, n_trials, n_jobs, max_failure_rate, None, params)
        self.options = {
            "pruner": _plain(pruner), "sampler": _plain(sampler), "storage": storage,
            "heartbeat_interval": heartbeat_interval, "grace_period": grace_period,
        }  # fmt: skip
        self.folder, self.max_retries = folder, max_retries

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        pool = getattr(self.launcher, "joblib", None)
        if pool and pool["n_jobs"] == -1:  # a single worker would be the sweeper's own process, which cannot be killed
            self.launcher.joblib = {**pool, "n_jobs": max(2, self.n_jobs)}
        self.sweep_dir = config.hydra.sweep.dir

    def sweep(self, arguments: list[str]) -> None:
        """Run the study to its end, or to where somebody ends it; see `_sweep`."""
        with signals.listen():
            self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> None:
        """Run the study to its end.

        Raises:
            ConfigError: an option, or a corner of the space, is impossible; nothing has been started.
            StudyError: another study has that name, the database cannot be used, or too many trials failed.
        """
        self._check_options(arguments)
        space, settings = self._space([*self._parse_sweeper_params_config(), *arguments])
        grid = hydra_options.is_grid(self.options["sampler"])
        target = min(self.n_trials, len(space.cells())) if grid else self.n_trials
        sampler = (
            hydra_options.sampler({"_target_": "optuna.samplers.RandomSampler"}, settings.seed)
            if grid
            else hydra_options.sampler(self.options["sampler"], settings.seed)
        )
        sampler(0)  # a wrong option is told now
        database = hydra_options.database(self.options, settings.root)
        ledger = Ledger(
            database, self.study_name, space, sampler, hydra_options.pruner(self.options["pruner"]), target, grid,
            self.max_retries, self.max_failure_rate,
        )  # fmt: skip
        with StudyFolder(ledger, settings, Path(self.sweep_dir)) as output:
            console.say(f"study    {self.study_name}: {ledger.tally().finished} of {target} trials are there")
            self._work(ledger, space, output)

    def _check_options(self, typed: Sequence[str]) -> None:
        hydra_options.check_name(self.study_name)
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
        for name, least in (("n_trials", 1), ("n_jobs", 1), ("max_retries", 0), ("heartbeat_interval", 1)):
            known = {**self.options, "n_trials": self.n_trials, "n_jobs": self.n_jobs, "max_retries": self.max_retries}
            if not isinstance(known[name], int) or known[name] < least:
                raise ConfigError(
                    f"hydra.sweeper.{name}={known[name]!r}: should be a whole number, {least} or more", page="studies"
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

    @property
    def _in_process(self) -> bool:
        return type(self.launcher).__name__ == IN_PROCESS

    def _space(self, overrides: Sequence[str]) -> tuple[Space, Settings]:
        """The study's question, every corner of it composed and checked as a run of its own would be."""
        searched, kept = hydra_options.search_space(overrides)
        space = Space(searched, kept, {}, {})
        settings: Settings | None = None
        config: dict[str, Any] = {}
        for corner in space.corners():
            cfg = self.hydra_context.config_loader.load_sweep_config(self.config, space.overrides(corner))
            found = read(cfg, look_at_data=settings is None)
            if settings is None:
                settings = found
                plan = "grid" if hydra_options.is_grid(self.options["sampler"]) else "suggested"
                config = dict(flat(plain(cfg)))
                config |= {"data.fingerprint": found.data.fingerprint(), "hydra.sweeper.sampler": plan}
        if settings is None:
            raise ValueError("a space has at least one corner")
        directions = self._directions(settings)
        if len(directions) > 1 and not str(self.options["pruner"].get("_target_")).endswith("NopPruner"):
            raise ConfigError(
                f"optuna cannot prune for {len(directions)} objectives ({', '.join(directions)}); add "
                "hydra/sweeper/pruner=none",
                page="studies",
            )
        shared = {name: value for name, value in config.items() if not is_under(name, searched)}
        return Space(searched, kept, directions, shared), settings

    def _directions(self, settings: Settings) -> dict[str, Direction]:
        """The direction of each objective: what it calls for, which hydra.sweeper.direction must not contradict."""
        natural: dict[str, Direction] = {
            name: "maximize" if more_is_better(name) else "minimize" for name in settings.objective
        }
        if self.direction is not None and self._get_directions() != list(natural.values()):
            raise ConfigError(
                f"hydra.sweeper.direction={self._get_directions()} does not fit objective={list(natural)}, which calls "
                f"for {list(natural.values())}; leave direction out",
                page="studies",
            )
        return natural

    def _work(self, ledger: Ledger, space: Space, output: StudyFolder) -> None:
        """Run trials until there are enough: here, one by one, or in `n_jobs` threads that each wait for a process."""
        if self._in_process:
            self._run_trials(ledger, space, output)
            return
        errors: list[BaseException] = []

        def run(slot: int) -> None:
            try:
                self._run_trials(ledger, space, output, slot, stop=lambda: bool(errors))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(i,), daemon=True, name=f"trials {i}") for i in range(self.n_jobs)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(timeout=POLL_SECONDS) if threads[0].is_alive() else time.sleep(POLL_SECONDS)
                self._end_silent_workers(ledger)
        except signals.Interrupted as end:  # the workers have perhaps not heard it: they save, and end too
            errors.append(end)
            for trial in ledger.trials():
                if trial.state == TrialState.RUNNING:
                    worker.end_own(trial.user_attrs.get("worker"), signal.SIGTERM)
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def _end_silent_workers(self, ledger: Ledger) -> None:
        """Kill those of our own workers whose trial was taken from them: they would block their thread for ever."""
        for trial in ledger.database.patiently(ledger.bury):
            if worker.end_own(trial.user_attrs.get("worker"), KILL):
                log.warning("trial %d: its worker fell silent and was ended", trial.number)

    def _run_trials(self, ledger: Ledger, space: Space, output: StudyFolder, slot: int | None = None,
                    stop: Callable[[], bool] = lambda: False) -> None:  # fmt: skip
        while not stop():
            claimed = ledger.database.patiently(ledger.claim)
            if claimed is Now.ENOUGH:
                return
            if claimed is Now.WAIT:
                time.sleep(POLL_SECONDS)
                continue
            self._run_trial(claimed, ledger, space, slot)
            ledger.database.patiently(partial(output.after, claimed.number))

    def _run_trial(self, trial: Trial, ledger: Ledger, space: Space, slot: int | None) -> None:
        """Launch one trial's job and wait for its end; whatever happens to it stays with it."""
        suggest = trial._suggest
        params = {
            name: ledger.database.patiently(partial(suggest, name, distribution))
            for name, distribution in space.searched.items()
        }
        place = [] if slot is None else [f"++hydra.job.env_set.KD_SLOT='{slot}'"]  # which GPU, where there are several
        mine = worker.me()

        def begun_elsewhere() -> bool:
            return ledger.storage.get_trial(trial._trial_id).user_attrs.get("worker") != mine

        reason = "its job ended without telling the study"
        with worker.heartbeat(ledger.storage, trial._trial_id, over=begun_elsewhere):
            try:
                (job,) = self.launcher.launch([[*space.overrides(params), *place]], initial_job_idx=trial.number)
                if job.status is JobStatus.FAILED:
                    reason = _brief(job._return_value)
            except Exception as error:  # a killed process, a scheduler that refuses, ...
                reason = _brief(error)
        ledger.database.patiently(lambda: _settle(trial, ledger, reason))


def _settle(trial: Trial, ledger: Ledger, reason: str) -> None:
    """Fail a trial that its job left open: killed where it had begun, refused by the launcher where it had not."""
    now: FrozenTrial = ledger.storage.get_trial(trial._trial_id)
    if now.state != TrialState.RUNNING:
        return
    begun = "run_folder" in now.user_attrs
    trial.set_user_attr("failure", {"kind": "lost" if begun else "error", "reason": reason})
    ledger.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _brief(error: Any) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else ""
    return first if isinstance(error, UserError | Superseded) else f"{type(error).__name__}: {first}"


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
