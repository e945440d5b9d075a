"""The job's side of a trial: it says that it lives, reports every epoch, hears whether to stop, and tells the result.

The job tells the study itself, so that a result counts whatever becomes of the process that launched it.
"""

import math
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from kd.errors import DivergedError, StudyError, Superseded, UserError
from kd.study import worker
from kd.study.ledger import history
from kd.study.no_trial import NoTrial
from kd.study.storage import Database
from kd.system.files import write_atomically


@dataclass(frozen=True)
class Ticket:
    """What a job needs to know to be trial `number` of a study."""

    database: Database
    study: str
    number: int
    pruner: BasePruner


class StudyTrial(NoTrial):
    """A running trial, seen from its job."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.storage = ticket.database.open()
        self.study = optuna.load_study(
            study_name=ticket.study, storage=self.storage, sampler=RandomSampler(0), pruner=ticket.pruner
        )
        self.id = self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, ticket.number)
        now = self.storage.get_trial(self.id)
        self._check_ours(now.state == TrialState.RUNNING)
        if failed := history(now):
            before = self.storage.get_trial(
                self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, failed[-1])
            )
            self.predecessor = Path(before.user_attrs["run_folder"]) if "run_folder" in before.user_attrs else None
        self.trial = optuna.Trial(self.study, self.id)
        self.tags = {"study": ticket.study, "trial": str(ticket.number)} | (
            {"mlflow.parentRunId": parent} if (parent := self.study.user_attrs.get("mlflow_run")) else {}
        )

    def _check_ours(self, ours: bool) -> None:
        if not ours:
            raise Superseded(
                f"trial {self.ticket.number} of study {self.ticket.study} is over: this worker was silent for more "
                f"than {self.ticket.database.grace} s and the trial was given to another"
            )

    @contextmanager
    def _still_ours(self) -> Iterator[None]:
        try:
            yield
        except UpdateFinishedTrialError:
            self._check_ours(False)

    def report(self, value: float | None, trained: int, planned: int) -> bool:
        return self.ticket.database.patiently(lambda: self._report(value, trained, planned))

    def _report(self, value: float | None, trained: int, planned: int) -> bool:
        now = self.storage.get_trial(self.id)
        self._check_ours(now.state == TrialState.RUNNING)
        if value is None or math.isnan(value) or len(self.study.directions) > 1:
            return False
        with self._still_ours():
            if trained not in now.intermediate_values:  # a job that goes on tells its epochs again
                self.trial.report(value, step=trained)
            self.pruned = trained < planned and self.trial.should_prune()
        return self.pruned

    def note(self, facts: Mapping[str, Any]) -> None:
        for name, value in facts.items():
            self.ticket.database.patiently(partial(self._note, name, value))

    def _note(self, name: str, value: Any) -> None:
        with self._still_ours():
            self.trial.set_user_attr(name, value)

    def finish(self, objectives: Mapping[str, float]) -> None:
        """Tell the study.

        Raises:
            StudyError: an objective is not a number, so that the trial failed.
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
        except (UpdateFinishedTrialError, ValueError):  # how optuna says that a trial is over
            self._check_ours(False)

    def fail(self, kind: str, reason: str) -> None:
        """Tell that the trial failed, and why; nothing where it is over already."""
        with suppress(UpdateFinishedTrialError, ValueError, StorageInternalError):  # whoever launched the job tells it
            self.trial.set_user_attr("failure", {"kind": kind, "reason": reason[:500]})
            self.study.tell(self.ticket.number, state=TrialState.FAIL)


@contextmanager
def attach(ticket: Ticket, folder: Path) -> Iterator[StudyTrial]:
    """The trial that this job is, alive for as long as the block lasts.

    What goes wrong in the block is told to the study; the traceback of a defect is kept in the run folder's error.txt.
    """
    trial = StudyTrial(ticket)
    trial.note({"worker": worker.me(), "run_folder": str(folder)})
    with worker.heartbeat(trial.storage, trial.id):
        try:
            yield trial
        except Superseded:
            raise
        except SystemExit:  # a scheduler's way to put the job in line again: the trial stays open for it
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            if not isinstance(error, UserError):
                text = traceback.format_exc()
                write_atomically(folder / "error.txt", lambda path: path.write_text(text, encoding="utf-8"))
                reason = f"{type(error).__name__}: {reason}"
            trial.fail("nan" if isinstance(error, DivergedError) else "error", reason)
            raise
        except BaseException:
            trial.fail("interrupted", "interrupted")
            raise
