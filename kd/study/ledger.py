"""Which trial runs next: the only place that hands out trials, under the study's lock.

Every claim recomputes everything from the database, so it does not matter which process died in between: trials of
dead workers are failed, failed trials are queued again (a limited number of times), and no more trials run at once
than are still missing. A study ends with exactly `Budget.trials` finished trials.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum

import optuna
from optuna import Study, Trial
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from kd.errors import StudyError
from kd.study import worker
from kd.study.attributes import FAILURE, WORKER
from kd.study.space import Space
from kd.study.storage import Database

LOST_RETRIES = 10  # of a trial whose process died, which is rarely the trial's own fault
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class NoClaim(Enum):
    """Why a claim returned no trial."""

    WAIT = "all missing trials are running"
    DONE = "the study is complete"


@dataclass(frozen=True)
class Budget:
    """How many trials a study runs, and how many failures it tolerates.

    Attributes:
        trials: the number of finished trials (complete or pruned) that complete the study.
        grid: whether every cell of the space runs once; otherwise the sampler suggests the trials.
        max_retries: how often a trial is retried after an error.
        max_failure_rate: the share of `trials` that may be given up before the study stops.
        epochs: the number of trained epochs after which no more trials start; None: no limit.
    """

    trials: int
    grid: bool = False
    max_retries: int = 2
    max_failure_rate: float = 0.5
    epochs: int | None = None

    def is_spent(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether the trials have trained all epochs; those of an attempt count in its retry, which inherits them."""
        if self.epochs is None:
            return False
        return sum(epochs_of(trial) for trial in without_retried(trials)) >= self.epochs


def epochs_of(trial: FrozenTrial) -> int:
    """How many epochs a trial has trained."""
    return int(trial.user_attrs.get("epochs", max(trial.intermediate_values, default=0)))


def failure(trial: FrozenTrial) -> dict[str, str]:
    """Why a trial failed: its kind (error, nan, interrupted, or lost if no process reported one) and its reason."""
    return trial.user_attrs.get(FAILURE) or {"kind": "lost", "reason": "its worker died or stopped responding"}


def history(trial: FrozenTrial) -> list[int]:
    """The numbers of the failed attempts before this one, from the attribute that Optuna's retry callback uses."""
    return list(trial.system_attrs.get("retry_history", []))


def without_retried(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials but for failed attempts that another trial has taken up."""
    retried = {number for trial in trials for number in history(trial)}
    return [trial for trial in trials if trial.number not in retried]


@dataclass(frozen=True)
class Tally:
    """The trials of a study by state.

    Attributes:
        to_retry: failed trials with a retry left.
        given_up: failed trials without one.
    """

    finished: int
    running: int
    waiting: int
    to_retry: tuple[FrozenTrial, ...]
    given_up: tuple[FrozenTrial, ...]

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], max_retries: int) -> "Tally":
        states = [trial.state for trial in trials]
        by_number = {trial.number: trial for trial in trials}
        last = [trial for trial in without_retried(trials) if trial.state == TrialState.FAIL]
        allowed = {"error": max_retries, "nan": 0, "lost": LOST_RETRIES}

        def retries(trial: FrozenTrial) -> bool:
            kind = failure(trial)["kind"]
            kinds = [failure(by_number[number])["kind"] for number in (*history(trial), trial.number)]
            return kinds.count(kind) <= allowed.get(kind, len(kinds))

        return cls(
            finished=sum(state in FINISHED for state in states),
            running=states.count(TrialState.RUNNING),
            waiting=states.count(TrialState.WAITING),
            to_retry=tuple(trial for trial in last if retries(trial)),
            given_up=tuple(trial for trial in last if not retries(trial)),
        )


class Ledger:
    """Hands out the trials of one study.

    `sampler` makes the sampler for a position in the study, so that suggestions depend on the study's seed and its
    history, not on the process that asks or on interruptions.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        space: Space,
        sampler: Callable[[int], BaseSampler],
        pruner: BasePruner,
        budget: Budget,
    ) -> None:
        self.database, self.name, self.space, self.budget = database, name, space, budget
        self.storage = database.open()
        self.sampler, self.pruner = sampler, pruner
        with self.lock():
            self._create()
        self._given_up_before = {trial.number for trial in self.tally().given_up}

    def lock(self) -> AbstractContextManager[None]:
        return self.database.lock(f"study {self.name}")

    def _create(self) -> None:
        """Create the study, or check that the existing one has the same space.

        Its first trial is the recipe as it stands: no winner is worse than that, and two studies that are compared
        begin at the same point.
        """
        study = optuna.create_study(
            study_name=self.name, storage=self.storage, directions=self.space.directions, load_if_exists=True
        )
        if not study.user_attrs and not study.get_trials(deepcopy=False):
            self.space.write(study)
            study.set_metric_names(list(self.space.objectives))  # axis labels in optuna-dashboard
        self.space.check_same(study)
        if self.budget.grid:
            known = [trial.system_attrs.get("fixed_params") for trial in study.get_trials(deepcopy=False)]
            for cell in self.space.cells()[: self.budget.trials]:
                if cell not in known:
                    study.enqueue_trial(cell)
        elif self.space.start and not study.get_trials(deepcopy=False):
            study.enqueue_trial(dict(self.space.start))

    @property
    def study(self) -> Study:
        """The study, freshly loaded. Only `claim` may ask it for trials."""
        return optuna.load_study(
            study_name=self.name, storage=self.storage, sampler=RandomSampler(0), pruner=self.pruner
        )

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def tally(self) -> Tally:
        return Tally.of(self.trials(), self.budget.max_retries)

    def claim(self) -> Trial | NoClaim:
        """The next trial, now running with this process as its worker, or why no trial can run.

        Raises:
            StudyError: too many trials were given up.
        """
        with self.lock():
            study = self.study
            self._fail_dead_trials(study)
            before = study.get_trials(deepcopy=False)
            tally = Tally.of(before, self.budget.max_retries)
            queued = _next_queued(before)
            retries = tally.to_retry or (queued and history(queued))
            if tally.finished >= self.budget.trials or (self.budget.is_spent(before) and not retries):
                return NoClaim.DONE
            for failed in tally.to_retry:
                study.add_trial(_retry(failed))
            waiting = tally.waiting + len(tally.to_retry)
            self._check_failures(tally)
            if self.budget.grid and not waiting and not tally.running:
                return NoClaim.DONE
            if tally.finished + tally.running >= self.budget.trials or (self.budget.grid and not waiting):
                return NoClaim.WAIT
            trials = study.get_trials(deepcopy=False) if tally.to_retry else before
            study.sampler = self.sampler(_position(trials))
            trial = study.ask()
            self.storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr(WORKER, worker.this_process())
            return trial

    def fail_dead_trials(self) -> None:
        """Fail the running trials whose worker has ended (on this host) or missed its heartbeats."""
        with self.lock():
            self._fail_dead_trials(self.study)

    def _fail_dead_trials(self, study: Study) -> None:
        for trial in self.storage.running(study._study_id):
            claimed_by = trial.user_attrs.get(WORKER)  # missing if a claim was killed midway, under this very lock
            if claimed_by is None or worker.has_ended(claimed_by):
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        optuna.storages.fail_stale_trials(study)

    def lost(self, trial_ids: Iterable[int]) -> list[FrozenTrial]:
        """Those of some trials that were failed as dead, by whichever process noticed first."""
        running = {trial._trial_id for trial in self.storage.running(self.study._study_id)}
        return [trial for trial in map(self.storage.get_trial, {*trial_ids} - running) if _is_lost(trial)]

    def _check_failures(self, tally: Tally) -> None:
        new = [trial for trial in tally.given_up if trial.number not in self._given_up_before]
        nothing_works = tally.finished == 0 and len(new) >= 3
        if nothing_works or len(new) > max(1, self.budget.max_failure_rate * self.budget.trials):
            last = max(new, key=lambda trial: trial.number)
            raise StudyError(
                f"study {self.name} stops: {len(new)} trials failed for good, the last of them trial {last.number}: "
                f"{failure(last)['reason']}; fix that, then repeat the command to continue"
            )


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial has failed without anyone reporting why."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs


def _next_queued(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The queued trial that is asked for next; None if the sampler suggests it."""
    return next((trial for trial in trials if trial.state == TrialState.WAITING), None)


def _position(trials: Sequence[FrozenTrial]) -> int:
    """The position in the study of the trial that is asked for next, which retries do not change.

    Thanks to this a study suggests the same points whether or not trials of it were killed and retried.
    """
    queued = _next_queued(trials)
    first = (*history(queued), queued.number)[0] if queued else len(trials)
    return sum(1 for trial in trials if trial.number < first and not history(trial))


def _retry(failed: FrozenTrial) -> FrozenTrial:
    """A new attempt at a failed trial, waiting, with the same parameters."""
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=failed.params,
        distributions=failed.distributions,
        system_attrs={
            "failed_trial": (*history(failed), failed.number)[0],
            "retry_history": [*history(failed), failed.number],
            "fixed_params": failed.system_attrs.get("fixed_params") or failed.params,
        },
    )
