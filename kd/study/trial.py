"""The job's side of a trial: heartbeats, a report after every epoch, pruning, and the result.

The job reports to the study itself, so that a result counts even if the process that launched the job has died.
"""

import math
import traceback
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from kd.errors import DiskError, DivergedError, StudyError, Superseded, UserError
from kd.study import worker
from kd.study.attributes import FAILURE, MLFLOW_RUN, RUN_FOLDER, WORKER
from kd.study.ledger import history, without_retried
from kd.study.no_trial import NoTrial
from kd.study.storage import Database
from kd.system.files import write_atomically


@dataclass(frozen=True)
class Ticket:
    """What a job needs in order to run as trial `number` of a study."""

    database: Database
    study: str
    number: int
    pruner: BasePruner


class _Compared(optuna.Study):
    """A study as its pruner sees it: an attempt that was retried would count beside its retry."""

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        kept = without_retried(super().get_trials(deepcopy=deepcopy))
        return [trial for trial in kept if states is None or trial.state in states]


class StudyTrial(NoTrial):
    """A running trial, as its job sees it."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.storage = ticket.database.open()
        self.study = _Compared(ticket.study, self.storage, RandomSampler(0), ticket.pruner)
        self.id = self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, ticket.number)
        now = self.storage.get_trial(self.id)
        self._check_ours(now.state == TrialState.RUNNING)
        if failed := history(now):
            before = self.storage.get_trial(
                self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, failed[-1])
            )
            self.predecessor = Path(before.user_attrs[RUN_FOLDER]) if RUN_FOLDER in before.user_attrs else None
        self.trial = optuna.Trial(self.study, self.id)
        self.tags = {"study": ticket.study, "trial": str(ticket.number)} | (
            {"mlflow.parentRunId": parent} if (parent := self.study.user_attrs.get(MLFLOW_RUN)) else {}
        )

    def _check_ours(self, ours: bool) -> None:
        if not ours:
            raise Superseded(
                f"trial {self.ticket.number} of study {self.ticket.study} has ended: this worker sent no heartbeat for "
                f"{self.ticket.database.grace} s, so the trial was given to another"
            )

    @contextmanager
    def _still_ours(self) -> Iterator[None]:
        """Raise Superseded if the trial turns out to have ended."""
        try:
            yield
        except UpdateFinishedTrialError:
            self._check_ours(False)

    def report(self, value: float | None, trained: int, planned: int) -> bool:
        return self.ticket.database.with_retries(lambda: self._report(value, trained, planned))

    def _report(self, value: float | None, trained: int, planned: int) -> bool:
        now = self.storage.get_trial(self.id)
        self._check_ours(now.state == TrialState.RUNNING)
        if value is None or math.isnan(value) or len(self.study.directions) > 1:
            return False
        with self._still_ours():
            if trained not in now.intermediate_values:  # a resumed job reports its epochs again
                self.trial.report(value, step=trained)
            self.pruned = trained < planned and self.trial.should_prune()
        return self.pruned

    def note(self, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            self.ticket.database.with_retries(partial(self._note, name, value))

    def _note(self, name: str, value: Any) -> None:
        with self._still_ours():
            self.trial.set_user_attr(name, value)

    def finish(self, objectives: Mapping[str, float]) -> None:
        """Report the final objectives to the study.

        Raises:
            StudyError: an objective is not finite, so the trial fails.
            Superseded: the trial was given to another worker.
        """
        bad = [f"{name}={value}" for name, value in objectives.items() if not math.isfinite(value)]
        if bad:
            self.fail("nan", f"{', '.join(bad)} is not a number")
            raise StudyError(f"trial {self.ticket.number} failed: {', '.join(bad)} is not a number")
        try:
            if self.pruned:
                self.study.tell(self.ticket.number, state=TrialState.PRUNED)
            else:
                self.study.tell(self.ticket.number, list(objectives.values()))
        except (UpdateFinishedTrialError, ValueError):  # what optuna raises for a trial that has ended
            self._check_ours(False)

    def fail(self, kind: str, reason: str) -> None:
        """Report that the trial failed and why; no effect if it has ended already."""
        with suppress(UpdateFinishedTrialError, ValueError, StorageInternalError):  # else the job's launcher reports it
            self.trial.set_user_attr(FAILURE, {"kind": kind, "reason": reason[:500]})
            self.study.tell(self.ticket.number, state=TrialState.FAIL)


@contextmanager
def attach(ticket: Ticket, folder: Path) -> Iterator[StudyTrial]:
    """Run the block as a trial, with heartbeats.

    An exception in the block fails the trial; the traceback of an unexpected one goes to error.txt in the run folder.
    """
    trial = StudyTrial(ticket)
    trial.note({WORKER: worker.this_process(), RUN_FOLDER: str(folder)})
    with worker.heartbeat(trial.storage, trial.id):
        try:
            yield trial
        except Superseded:
            raise
        except SystemExit:  # a scheduler requeues the job: the trial stays open for it
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            if not isinstance(error, UserError):
                text = traceback.format_exc()
                with suppress(DiskError):  # a full disk must not hide the bug
                    write_atomically(folder / "error.txt", lambda path: path.write_text(text, encoding="utf-8"))
                reason = f"{type(error).__name__}: {reason}"
            trial.fail("nan" if isinstance(error, DivergedError) else "error", reason)
            raise
        except BaseException:
            trial.fail("interrupted", "interrupted")
            raise
