"""A study's folder while a sweeper works on it, and the parent of its trials' MLflow runs.

0/ 1/ 2/ ...                the run folder of each trial, by its number
trials.csv experiment/ ...  what kd.study.files generates
"""

import shlex
import sys
import uuid
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

import optuna
from optuna.trial import FrozenTrial, TrialState

from kd import tracking
from kd.errors import StudyError, without_credentials
from kd.plan.timeline import in_epochs
from kd.run import console
from kd.settings import Settings
from kd.study import files, tables
from kd.study.address import default_url
from kd.study.attributes import MLFLOW_RUN
from kd.study.ledger import FINISHED, Ledger, failure
from kd.study.results import Results, points
from kd.study.space import Space, describe
from kd.system.files import clear_leftovers
from kd.system.installation import train_command

IDENTITY = "mlflow_identity"  # study attribute: our own id of the parent run


class StudyFolder:
    """The folder and the parent run of a study while a sweeper works on it; a context manager.

    Several sweepers may work on one study: a lock serialises their writes.
    """

    def __init__(self, ledger: Ledger, settings: Settings, path: Path) -> None:
        self.ledger, self.settings, self.root, self.path = ledger, settings.tracking, settings.root, path
        self.pictures = settings.pictures
        self.mirror, self.shown = tracking.NullRun(), tracking.Shown(ledger.name)

    def _lock(self) -> AbstractContextManager[None]:
        return self.ledger.database.lock(f"folder of {self.ledger.name}")

    def __enter__(self) -> "StudyFolder":
        study, space = self.ledger.study, self.ledger.space
        with self._lock():
            self._check_known_trials()
            for place in (self.path, *(self.path / name for name in files.MADE)):
                clear_leftovers(place)
            tags = {"role": "study", "study": self.ledger.name, "run_folder": str(self.path), **self.settings.tags}
            searched = {f"space.{name}": describe(item) for name, item in space.searched.items()}
            parameters = {**searched, "fixed": " ".join(space.fixed) or "none"}
            self.shown = tracking.Shown(self.ledger.name, tags, parameters, note=_note(self.ledger.name, space))
            if self.settings.enabled:
                self.mirror = self._parent(study)
            self._update()
        return self

    def _parent(self, study: optuna.Study) -> tracking.Mirror:
        """The mirror of the study's own run, which all sweepers of the study share."""
        identity = study.user_attrs.get(IDENTITY) or uuid.uuid4().hex
        study.set_user_attr(IDENTITY, identity)
        store = tracking.Store.of(self.settings, self.root)
        store.check()
        lock = partial(self.ledger.database.lock, f"mirror of {self.ledger.name}")
        target = tracking.Target(identity, study.user_attrs.get(MLFLOW_RUN), lock=lock, shared=True)
        return tracking.Mirror(lambda: self.shown, store, target, "repeating the study's command")

    def _check_known_trials(self) -> None:
        """Refuse a folder with trials that the database lacks: it would use their numbers again."""
        there = {int(path.name) for path in self.path.glob("[0-9]*") if path.name.isdecimal()}
        unknown = there - {trial.number for trial in self.ledger.trials()}
        if unknown:
            raise StudyError(
                f"{self.path} holds trial {min(unknown)}, which the study in {self.ledger.database} does not have (is "
                "its database elsewhere, or lost?); move the folder away, or choose a new hydra.sweeper.study_name"
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        database = self.ledger.database
        with self._lock():
            results = self._update()
            if results.complete:
                if warning := tables.useless(results):
                    console.say(f"warning  {warning}")
                files.write(results, self.path, self.pictures)
                made = [*tracking.files(self.path), *tracking.files(self.path / "experiment")]
                plots = [(path, "plots") for path in tracking.files(self.path / "plots", ".png")]
                self.shown = replace(self.shown, artifacts=(*((path, None) for path in made), *plots))
        interrupted = error is not None and not isinstance(error, Exception)
        if interrupted:
            self._say_interrupted()
        elif results.complete:
            storage = [] if database.url == default_url(self.root) else ["--storage", str(database)]
            pages = ["kd ui"] if self.settings.enabled else []
            console.say_next(shlex.join(["kd", "report", self.ledger.name, *storage]), *pages)
        self.mirror.finish("FINISHED" if error is None else "KILLED" if interrupted else "FAILED")

    def _say_interrupted(self) -> None:
        """Print what became of the trials that ran, and the command that resumes the study."""
        tally, target = self.ledger.tally(), self.ledger.budget.trials
        numbers = ", ".join(str(trial.number) for trial in tally.to_retry)
        kept = f"; what trial {numbers} had trained is kept" if numbers else ""
        console.say(f"study    {self.ledger.name}: interrupted, {tally.finished} of {target} trials are finished{kept}")
        console.say(f"resume   {train_command()} {without_credentials(shlex.join(sys.argv[1:]))}")

    def after(self, number: int) -> None:
        """Print how a trial ended, and update the table and the parent run."""
        with self._lock():
            results = self._update(number)
        trial = results.trials[number]
        finished = sum(results.count(state) for state in FINISHED)
        target = self.ledger.budget.trials
        console.say(f"trial    {number}: {_ending(trial, results)}  ({finished} of {target} finished)")

    def _update(self, ended: int | None = None) -> Results:
        """Write the table, or append the trial that `ended` to it, and update the parent run."""
        results = Results.of(self.ledger.storage, self.ledger.name)
        files.write_table(results, self.path, ended)
        self.shown = replace(self.shown, points=_timed(results) | _so_far(results), lost=_lost(results))
        self.mirror.refresh()
        if (run_id := self.mirror.run_id) and results.study.user_attrs.get(MLFLOW_RUN) != run_id:
            results.study.set_user_attr(MLFLOW_RUN, run_id)
        return results


def _note(name: str, space: Space) -> str:
    """What the page of a study's own run says first, in Markdown."""
    goals = ", ".join(f"{direction} `{objective}`" for objective, direction in space.objectives.items())
    searched = ", ".join(f"`{key}`" for key in space.searched)
    return (
        f"A study: {goals} over {searched or 'nothing but the seed'}.\n\n"
        f"Its trials are listed below it (+); its charts have a point per trial; `kd report {name}` shows more.\n"
    )


def _timed(results: Results) -> dict[tuple[str, int], tuple[float, int]]:
    """The points of a chart over trials, each with the time in ms at which its trial ended."""
    ended = {trial.number: trial.datetime_complete for trial in results.trials if trial.datetime_complete}
    return {
        (name, number): (value, round(ended[number].timestamp() * 1000))
        for number, values in points(results.trials, results.space.objectives).items()
        for name, value in values.items()
    }


def _so_far(results: Results) -> dict[tuple[str, int], tuple[float, int]]:
    """The best value, its trial, and how many trials have ended in which state: a point per ended trial."""
    ended = [trial.datetime_complete for trial in results.trials if trial.state.is_finished()]
    values: dict[str, float] = {}
    if results.best and len(results.space.objectives) == 1:
        best = results.best[0]
        values = {f"best/{next(iter(results.space.objectives))}": best.values[0], "best_trial": best.number}
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    values |= {f"trials/{name}": results.count(state) for name, state in states.items()}
    when = max((round(time.timestamp() * 1000) for time in ended if time), default=0)
    return {(name, len(ended)): (float(value), when) for name, value in values.items()} if ended else {}


def _lost(results: Results) -> frozenset[str]:
    """The runs of failed trials: a process that died has left its run looking alive."""
    failed = (trial.user_attrs.get(MLFLOW_RUN) for trial in results.trials if trial.state == TrialState.FAIL)
    return frozenset(run_id for run_id in failed if run_id)


def _ending(trial: FrozenTrial, results: Results) -> str:
    if trial.state == TrialState.FAIL:
        return f"failed: {failure(trial)['reason']}"
    if trial.state not in FINISHED:
        return trial.state.name.lower()
    values = zip(results.space.objectives, trial.values, strict=True)
    shown = "  ".join(f"{name} {console.by_kind(name, value)}" for name, value in values)
    if trial.state == TrialState.PRUNED:
        return f"pruned after {in_epochs(trial.user_attrs.get('epochs', 0))}  {shown}"
    if results.unbeaten(trial) is not None:
        return f"{shown}  no better than trivial"
    best = len(results.space.objectives) == 1 and results.best and results.best[0].number == trial.number
    return f"{shown}  * best so far" if best else shown
