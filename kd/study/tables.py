"""A study as tables for a terminal: best trials, importances, what pruning saved, and comparisons."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from kd.errors import shown
from kd.plan.timeline import from_one
from kd.run.console import by_kind
from kd.study.comparison import LEAST_GAIN, Arm, Spread, Verdict, metrics_of, unequal
from kd.study.results import LEAST_EXPLAINED, Results


def overview(results: Results) -> str:
    """A study's objectives and its number of trials by state, in one line."""
    states = ", ".join(f"{count} {state.name.lower()}" for state in TrialState if (count := results.count(state)))
    goals = ", ".join(f"{name} ({direction})" for name, direction in results.space.objectives.items())
    return f"study    {results.name}: {goals}; {states or 'no trials yet'}"


def best_trials(results: Results) -> Table:
    """The best trials side by side: their results and their searched parameters."""
    several = len(results.space.objectives) > 1
    shown = results.best[: 8 if several else 5]
    table = Table(title="Pareto front" if several else "best trials", title_justify="left")
    table.add_column("trial")
    for trial in shown:
        table.add_column(str(trial.number), justify="right")
    for index, name in enumerate(results.space.objectives):
        table.add_row(name, *(by_kind(name, trial.values[index]) for trial in shown))
    for name in _also(results):
        found = (trial.user_attrs.get(name) for trial in shown)
        table.add_row(name, *(by_kind(name, value) for value in found))
    table.add_row("epochs", *(_plain(trial.user_attrs.get("epochs")) for trial in shown))
    table.add_row("best epoch", *(_plain(from_one(trial.user_attrs.get("best_epoch"))) for trial in shown))
    table.add_section()
    for name in results.space.searched:
        table.add_row(name, *(_plain(trial.params.get(name)) for trial in shown))
    return table


def _also(results: Results) -> list[str]:
    """The student's figures besides the objectives: on test, and the mean IoU where the objective is another."""
    objectives = [name for name in results.space.objectives if name.startswith("val/")]
    names = [name.replace("val/", "test/", 1) for name in dict.fromkeys([*objectives, "val/miou"])]
    return [*(["val/miou"] if "val/miou" not in objectives else []), *names]


def useless(results: Results) -> str:
    """A warning if the best trial does not beat a trivial prediction; else empty."""
    if (trivial := results.trivial) is None:
        return ""
    best, objective = results.best[0], next(iter(results.space.objectives))
    rarer = [name for name in best.user_attrs if name.startswith("val/iou/")] if "iou/" not in objective else []
    remedy = f", or choose objective={rarer[0]} in a new study" if rarer else ""
    return (
        f"there is no winner: the best trial, {best.number}, does not beat a trivial prediction ({objective} "
        f"{best.values[0]:.4f} against {trivial:.4f}); train longer{remedy}"
    )


def importances(results: Results) -> Table | None:
    """The importance of each searched parameter; None if the study is too small to estimate it."""
    found = results.importances
    if not found:
        return None
    explained, complete = len(results.explained), len(results.complete)
    over = f" over {explained} of {complete} trials" if explained < complete else ""
    table = Table(title=f"importance (share of variance, fANOVA{over})", title_justify="left")
    table.add_column("parameter")
    table.add_column("importance", justify="right")
    for name, share in found.items():
        table.add_row(name, f"{share:.3f}")
    return table


def no_importances(results: Results) -> str | None:
    """Why a study has no importances, if it is too small for them; else None."""
    if len(results.space.objectives) > 1 or len(results.complete) >= LEAST_EXPLAINED:
        return None
    return f"the importance of each parameter needs {LEAST_EXPLAINED} complete trials; so far {len(results.complete)}"


def cost(results: Results) -> Iterator[str]:
    """Epochs and time that the study took, and what pruning saved."""
    trained, planned = results.epochs
    wall, work = results.seconds
    if planned:
        yield (
            f"epochs   {trained} trained of {planned} without pruning: {1 - trained / planned:.0%} saved"
            + (f"; {results.lost_epochs} more in trials that failed or were killed" if results.lost_epochs else "")
        )
    yield f"time     {_clock(wall)} from first to last trial, {_clock(work)} summed over trials"


def against(one: Arm, other: Arm, least: float = LEAST_GAIN) -> Iterator[Table | str]:
    """Two arms side by side, what makes the comparison unfair, a line each, and the verdict over seeds."""
    pair = (one.study, other.study)
    yield _best_of_both(*pair)
    spreads, others = one.over_seeds(), other.over_seeds()
    if one.winners or other.winners:
        yield _over_seeds((one.study.name, other.study.name), spreads, others)
    for reason in unequal(*pair):
        yield f"differs  {reason}"
    for arm in (one, other):
        if arm.outdated:
            yield f"differs  {arm.study.name}: another trial has won since its winner was trained with other seeds"
    if all(study.best for study in pair):
        yield f"verdict  {Verdict.of(one, other, least).line()}"


def _best_of_both(results: Results, baseline: Results) -> Table:
    table = Table(title=f"{results.name} against {baseline.name}", title_justify="left")
    for name in ("", results.name, baseline.name, "difference"):
        table.add_column(name, justify="right" if name else "left")
    pair = (results, baseline)
    if all(study.best for study in pair):
        best = [study.best[0] for study in pair]
        objective, *test = metrics_of(results)
        table.add_row(f"best {objective}", *_difference(*(trial.values[0] for trial in best)))
        for name in test:
            if all(name in trial.user_attrs for trial in best):
                table.add_row(f"its {name}", *_difference(*(trial.user_attrs[name] for trial in best)))
    table.add_row("finished trials", *(str(study.finished) for study in pair), "")
    table.add_row("trained epochs", *(str(study.epochs[0]) for study in pair), "")
    table.add_row("time of all trials", *(_clock(study.seconds[1]) for study in pair), "")
    return table


def _over_seeds(names: Sequence[str], spreads: Mapping[str, Spread], others: Mapping[str, Spread]) -> Table:
    """The winners of two studies over seeds: each metric's spread, and that of the paired differences."""
    table = Table(title="winners over seeds: mean ± standard deviation (number of seeds)", title_justify="left")
    for name in ("", *names, "paired difference"):
        table.add_column(name, justify="right" if name else "left")
    for name in spreads:
        if name in others:
            table.add_row(
                name, spread(spreads[name]), spread(others[name]), spread(spreads[name].minus(others[name]), "+")
            )
    return table


def spread(values: Spread, sign: str = "") -> str:
    """A spread as text: mean ± standard deviation (number of seeds)."""
    if not values.by_seed:
        return "no common seed"
    deviation = "" if values.deviation is None else f" ± {values.deviation:.4f}"
    return f"{values.mean:{sign}.4f}{deviation} ({len(values.by_seed)})"


def list_studies(studies: Sequence[Results]) -> Table:
    """All studies of a database in one table."""
    table = Table(title="studies", title_justify="left")
    for name in ("study", "finished", "running", "failed", "best"):
        table.add_column(name, justify="left" if name == "study" else "right")
    for results in studies:
        best = _values(results, results.best[0]) if results.best else "-"
        states = (str(results.count(state)) for state in (TrialState.RUNNING, TrialState.FAIL))
        table.add_row(shown(results.name), str(results.finished), *states, best)
    return table


def _values(results: Results, trial: FrozenTrial) -> str:
    named = zip(results.space.objectives, trial.values, strict=True)
    return ", ".join(by_kind(name, value) for name, value in named)


def _difference(one: float, other: float) -> tuple[str, str, str]:
    return f"{one:.4f}", f"{other:.4f}", f"{one - other:+.4f}"


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
