"""The results of a study from its database alone: the table, the best trials, what pruning saved.

Nothing here trains or reads a run folder, so it works on any machine that can reach the database.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna import Study
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as TrialState  # exported for kd.report, which does not import optuna

from kd.errors import StudyError, nearest
from kd.study.attributes import INHERITED_EPOCHS, MLFLOW_RUN, RUN_FOLDER
from kd.study.ledger import FINISHED, epochs_of, failure, history
from kd.study.space import Space
from kd.study.storage import Storage

LEAST_EXPLAINED = 4  # complete trials, below which there are no importances
MOST_EXPLAINED = 300  # trials that importances are computed from
FIGURES = {"student/test/miou": "test/miou", "student/latency_ms": "latency_ms"}  # column: user attribute of a trial


@dataclass(frozen=True)
class Results:
    """A snapshot of one study.

    Attributes:
        best: the complete trials, best first; with several objectives, the Pareto front.
    """

    name: str
    space: Space
    study: Study
    trials: Sequence[FrozenTrial]

    @classmethod
    def of(cls, storage: Storage, name: str) -> "Results":
        """Load a study.

        Raises:
            StudyError: there is no study of that name, or it was not created by this sweeper.
        """
        names = optuna.study.get_all_study_names(storage)
        if name not in names:
            raise StudyError(f"there is no study {name!r}; {nearest(name, names) if names else 'there are no studies'}")
        study = optuna.load_study(study_name=name, storage=storage)
        return cls(name, Space.read(study), study, study.get_trials(deepcopy=False))

    @property
    def complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    @property
    def best(self) -> list[FrozenTrial]:
        if len(self.space.objectives) > 1:
            return self.study.best_trials if self.complete else []
        sign = -1 if self.space.directions == ["maximize"] else 1
        return sorted(self.complete, key=lambda trial: (sign * trial.values[0], trial.number))

    @property
    def trivial(self) -> float | None:
        """The objective of a trivial prediction, if the best trial does not beat it; else None."""
        return self.unbeaten(self.best[0]) if self.best else None

    def unbeaten(self, trial: FrozenTrial) -> float | None:
        """The objective of a trivial prediction, if a finished trial does not beat it; else None."""
        if self.space.directions != ["maximize"]:
            return None
        found = trial.user_attrs.get(f"baseline/{next(iter(self.space.objectives))}")
        return found if found is not None and trial.values[0] <= found else None

    def count(self, state: TrialState) -> int:
        return sum(trial.state == state for trial in self.trials)

    @property
    def finished(self) -> int:
        """The number of trials that are complete or pruned."""
        return sum(map(self.count, FINISHED))

    @property
    def epochs(self) -> tuple[int, int]:
        """Epochs trained by the finished trials, and how many they would have trained without pruning."""
        finished = [trial for trial in self.trials if trial.state in FINISHED and "epochs" in trial.user_attrs]
        trained = sum(trial.user_attrs["epochs"] for trial in finished)
        return trained, sum(trial.user_attrs["planned_epochs"] for trial in finished)

    @property
    def lost_epochs(self) -> int:
        """Epochs trained by trials that then failed or were killed, without those that their retries inherited."""
        failed = [trial for trial in self.trials if trial.state == TrialState.FAIL]
        inherited = sum(trial.user_attrs.get(INHERITED_EPOCHS, 0) for trial in self.trials)
        return max(0, sum(max(trial.intermediate_values, default=0) for trial in failed) - inherited)

    @property
    def seconds(self) -> tuple[float, float]:
        """Wall time in seconds: from the first start to the last end, and summed over all trials."""
        spans = [
            (trial.datetime_start, trial.datetime_complete)
            for trial in self.trials
            if trial.datetime_start and trial.datetime_complete
        ]
        if not spans:
            return 0.0, 0.0
        first, last = min(begun for begun, _ in spans), max(over for _, over in spans)
        return (last - first).total_seconds(), sum((over - begun).total_seconds() for begun, over in spans)

    @property
    def explained(self) -> list[FrozenTrial]:
        """The complete trials, or at most MOST_EXPLAINED at even intervals: fANOVA takes minutes for 1,300."""
        return self.complete[:: math.ceil(len(self.complete) / MOST_EXPLAINED) or 1]

    @cached_property
    def importances(self) -> dict[str, float]:
        """The share of the objective's variance that each key explains (fANOVA, Hutter et al. 2014), largest first.

        Over the trials of `explained`; empty for fewer than four, for several objectives, or without any variance.
        """
        values = {trial.value for trial in self.explained} if len(self.space.objectives) == 1 else set()
        if len(self.complete) < LEAST_EXPLAINED or len(values) < 2 or not self.space.searched:
            return {}
        study = optuna.create_study(directions=self.space.directions)
        study.add_trials(self.explained)
        return optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )


def ours_in(storage: Storage, name: str) -> Results | None:
    """A study of this sweeper by name; None if unknown, or another program's."""
    try:
        return Results.of(storage, name) if name in names_in(storage) else None
    except StudyError:
        return None


def all_in(storage: Storage) -> tuple[list[Results], list[str]]:
    """All studies of this sweeper in a database, and the names of those that are other programs'."""
    found = {name: ours_in(storage, name) for name in names_in(storage)}
    return [each for each in found.values() if each], [name for name, each in found.items() if each is None]


def names_in(storage: Storage) -> list[str]:
    """The names of all studies in a database."""
    return list(optuna.study.get_all_study_names(storage))


def rows(results: Results) -> list[dict[str, Any]]:
    """One flat row per trial, by number."""
    return [_row(trial, results.space) for trial in results.trials]


def _row(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    facts = trial.user_attrs
    values = trial.values or [None] * len(space.objectives)
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        **dict(zip(space.objectives, values, strict=True)),
        **{name: trial.params.get(name) for name in space.searched},
        "epochs": epochs_of(trial),
        "planned_epochs": facts.get("planned_epochs"),
        "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else None,
        **{name: facts.get(fact) for name, fact in FIGURES.items() if name not in space.objectives},
        "retry_of": history(trial)[-1] if history(trial) else None,
        "failure": failure(trial)["reason"] if trial.state == TrialState.FAIL else None,
        "run_folder": facts.get(RUN_FOLDER),
        "mlflow_run": facts.get(MLFLOW_RUN),
    }


def table(results: Results) -> str:
    """The rows as CSV."""
    lines = rows(results)
    return _csv([list(lines[0]) if lines else ["trial"], *([*line.values()] for line in lines)])


def line(results: Results, number: int) -> str:
    """The row of a trial as CSV, without the names of the columns."""
    return _csv([[*_row(results.trials[number], results.space).values()]])


def _csv(lines: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def points(trials: Iterable[FrozenTrial], objectives: Iterable[str]) -> dict[int, dict[str, float]]:
    """The points of a chart over trials, {trial number: {objective: value}}; pruned trials are a separate series."""
    names = list(objectives)
    found = {}
    for trial in trials:
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.values:
            suffix = "" if trial.state == TrialState.COMPLETE else "_pruned"
            found[trial.number] = {f"{n}{suffix}": v for n, v in zip(names, trial.values, strict=True)}
    return found
