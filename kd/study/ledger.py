"""Which trial runs next: the only place that hands out trials, under the study's lock.

Everything is computed anew from the database at every claim, so that it does not matter who was killed in between:
trials whose worker is gone are failed, failed ones are put in line again (a bounded number of times), and no more run
at once than are still missing. A study ends at exactly `target` finished trials.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from kd.errors import StudyError
from kd.study import worker
from kd.study.space import Space
from kd.study.storage import Database

LOST_RETRIES = 10  # a trial whose process died: mostly not its own fault
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class Now(Enum):
    """What to do where no trial can be had."""

    WAIT = "others run what is missing"
    ENOUGH = "the study has what it should have"


def failure(trial: FrozenTrial) -> dict[str, str]:
    """Why a trial failed: kind (error, nan, interrupted, lost) and reason; lost is what nobody could say."""
    return trial.user_attrs.get("failure") or {"kind": "lost", "reason": "its worker died or fell silent"}


@dataclass(frozen=True)
class Tally:
    """A study counted.

    Attributes:
        to_retry: failed trials that are to run once more.
        given_up: failed trials that were tried often enough.
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
        retried = {number for trial in trials for number in history(trial)}
        last = [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in retried]
        allowed = {"error": max_retries, "nan": 0, "lost": LOST_RETRIES}

        def again(trial: FrozenTrial) -> bool:
            kind = failure(trial)["kind"]
            tries = [failure(by_number[number])["kind"] for number in (*history(trial), trial.number)]
            return tries.count(kind) <= allowed.get(kind, len(tries))

        return cls(
            finished=sum(state in FINISHED for state in states),
            running=states.count(TrialState.RUNNING),
            waiting=states.count(TrialState.WAITING),
            to_retry=tuple(trial for trial in last if again(trial)),
            given_up=tuple(trial for trial in last if not again(trial)),
        )


def history(trial: FrozenTrial) -> list[int]:
    """The numbers of the failed attempts before this one, under the name that Optuna's own callback gives them."""
    return list(trial.system_attrs.get("retry_history", []))


class Ledger:
    """Hands out the trials of one study.

    Args:
        sampler: makes the sampler of a point from its place in the study, so that suggestions are a function of the
            study's seed and its history, not of who asks or how often it was interrupted.
        planned: whether every cell of the space is to run once; otherwise the sampler suggests.
        target: the number of finished trials that the study should have.
        max_failure_rate: the share of `target` that may be given up before the study stops.
    """

    def __init__(self, database: Database, name: str, space: Space, sampler: Callable[[int], BaseSampler],
                 pruner: BasePruner, target: int, planned: bool = False, max_retries: int = 2,
                 max_failure_rate: float = 0.5) -> None:  # fmt: skip
        self.database, self.name, self.space = database, name, space
        self.storage = database.open()
        self.sampler, self.pruner = sampler, pruner
        self.target, self.planned = target, planned
        self.max_retries, self.max_failure_rate = max_retries, max_failure_rate
        with self.lock():
            self._begin()
        self._given_up_before = {trial.number for trial in self.tally().given_up}

    def lock(self) -> Any:
        return self.database.lock(f"study {self.name}")

    def _begin(self) -> None:
        """Make the study, or check that it asks what this one asks."""
        study = optuna.create_study(
            study_name=self.name, storage=self.storage, directions=self.space.directions, load_if_exists=True
        )
        if not study.user_attrs and not study.get_trials(deepcopy=False):
            self.space.write(study)
            study.set_metric_names(list(self.space.objectives))  # what optuna-dashboard writes on its axes
        self.space.check_same(study)
        if self.planned:
            known = [trial.system_attrs.get("fixed_params") for trial in study.get_trials(deepcopy=False)]
            for cell in self.space.cells():
                if cell not in known:
                    study.enqueue_trial(cell)

    @property
    def study(self) -> Study:
        """The study, read anew; asking through it is left to `claim`."""
        return optuna.load_study(
            study_name=self.name, storage=self.storage, sampler=RandomSampler(0), pruner=self.pruner
        )

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def tally(self) -> Tally:
        return Tally.of(self.trials(), self.max_retries)

    def claim(self) -> Trial | Now:
        """The next trial, running and alive in the name of this process, or what to do instead.

        Raises:
            StudyError: too many trials were given up.
        """
        with self.lock():
            study = self.study
            self._bury(study)
            tally = Tally.of(study.get_trials(deepcopy=False), self.max_retries)
            if tally.finished >= self.target:
                return Now.ENOUGH
            for failed in tally.to_retry:
                study.add_trial(_again(failed))
            waiting = tally.waiting + len(tally.to_retry)
            self._check_hope(tally)
            if self.planned and not waiting and not tally.running:
                return Now.ENOUGH
            if tally.finished + tally.running >= self.target or (self.planned and not waiting):
                return Now.WAIT
            trials = study.get_trials(deepcopy=False)
            study.sampler = self.sampler(_place(trials))
            trial = study.ask()
            self.storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr("worker", worker.me())
            return trial

    def bury(self) -> list[FrozenTrial]:
        """Fail the running trials whose worker is gone (same host) or was silent for too long; returns those."""
        with self.lock():
            return self._bury(self.study)

    def _bury(self, study: Study) -> list[FrozenTrial]:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        gone = set()
        for trial in running:
            runs = trial.user_attrs.get("worker")  # missing where a claim was killed half way, under this very lock
            if runs is None or worker.is_gone(runs):
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                gone.add(trial.number)
        optuna.storages.fail_stale_trials(study)
        now = study.get_trials(deepcopy=False)
        silent = (now[trial.number] for trial in running if trial.number not in gone)
        lost = gone | {t.number for t in silent if t.state == TrialState.FAIL and "failure" not in t.user_attrs}
        return [trial for trial in running if trial.number in lost]

    def _check_hope(self, tally: Tally) -> None:
        new = [trial for trial in tally.given_up if trial.number not in self._given_up_before]
        nothing_works = tally.finished == 0 and len(new) >= 3
        if nothing_works or len(new) > max(1, self.max_failure_rate * self.target):
            last = max(new, key=lambda trial: trial.number)
            raise StudyError(
                f"study {self.name} stops: {len(new)} trials were given up, the last, number {last.number}, for: "
                f"{failure(last)['reason']}; mend that, and the same command goes on"
            )


def _place(trials: Sequence[FrozenTrial]) -> int:
    """Which point of the study is asked for next: its trials counted without repetitions.

    So that a study suggests the same points whether trials of it were killed and run again or not.
    """
    waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
    first = (*history(waiting[0]), waiting[0].number)[0] if waiting else len(trials)
    return sum(1 for trial in trials if trial.number < first and not history(trial))


def _again(failed: FrozenTrial) -> FrozenTrial:
    """A failed trial put in line once more, with the same parameters."""
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
