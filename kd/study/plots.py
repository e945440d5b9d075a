"""A study as pictures, in the style of a run's: each function draws one PNG from the trials."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from kd.run.plots import GREY, STUDENT, TEACHER, WARM, save
from kd.study.results import Results

PRUNED = "#e0a030"
#: Colour and title of each way in which a trial ends.
STATES = {
    TrialState.COMPLETE: (STUDENT, "complete"), TrialState.PRUNED: (PRUNED, "pruned"),
    TrialState.FAIL: (WARM, "failed"), TrialState.RUNNING: (GREY, "running"),
}  # fmt: skip
ABREAST = 4  # panels in a row
MOST_NAMES = 12  # categories that are named on an axis

Drawing = Callable[[Results, Path], None]


def _canvas(panels: int = 1, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Axes for so many panels; a page shrinks what is wider than itself, so more than `ABREAST` take further rows."""
    columns, rows = min(panels, ABREAST), math.ceil(panels / ABREAST)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(8.0, 2.6 * columns), height if rows == 1 else 2.8 * rows), squeeze=False,
        sharey=panels > 1, layout="constrained",
    )  # fmt: skip
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[panels:]:
        ax.remove()
    return figure, list(axes.flat[:panels])


def _legend(ax: Axes) -> None:
    """Above the axes: no place inside is free for certain, and among thousands of lines the search takes minutes."""
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=4)


def history(results: Results, path: Path) -> None:
    """The objective of every trial in order, and the best so far."""
    objective, (figure, (ax,)) = _objective(results), _canvas()
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        found = [(trial.number, _last(trial)) for trial in results.trials if trial.state == state]
        found = [(number, value) for number, value in found if value is not None]
        if found:
            colour, title = STATES[state]
            ax.plot(*zip(*found, strict=True), "o" if state == TrialState.COMPLETE else "x", color=colour, label=title)
    numbers = [trial.number for trial in results.complete]
    ax.step(numbers, _best_so_far(results), where="post", color=TEACHER, linewidth=1.5, label="best so far")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="trial", ylabel=objective)
    _legend(ax)
    save(figure, path)


def _best_so_far(results: Results) -> list[float]:
    pick, best, found = (max if results.space.directions == ["maximize"] else min), math.nan, []
    for trial in results.complete:
        best = trial.values[0] if math.isnan(best) else pick(best, trial.values[0])
        found.append(best)
    return found


def _last(trial: FrozenTrial) -> float | None:
    """A trial's objective; of a pruned one what it had reported."""
    if trial.values:
        return trial.values[0]
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def curves(results: Results, path: Path) -> None:
    """What every trial reported after each epoch; the best trial is thick."""
    figure, (ax,) = _canvas()
    best = results.best[0].number if results.best else None
    for state in dict.fromkeys(trial.state for trial in results.trials):
        others = [trial for trial in results.trials if trial.state == state and trial.number != best]
        reported = [sorted(trial.intermediate_values.items()) for trial in others if trial.intermediate_values]
        colour, title = STATES.get(state, (GREY, "waiting"))
        if points := _apart(reported):
            faint = max(0.1, 0.7 - len(others) / 500)
            ax.plot(*zip(*points, strict=True), color=colour, label=title, marker=".", linewidth=0.9, alpha=faint)
    if best is not None and results.best[0].intermediate_values:
        points = sorted(results.best[0].intermediate_values.items())
        ax.plot(*zip(*points, strict=True), color=TEACHER, label=f"trial {best}, the best", marker=".", linewidth=2.4)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=f"{_objective(results)}, best so far")
    _legend(ax)
    save(figure, path)


def _apart(lines: Iterable[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The points of many lines as those of one with gaps: a picture of thousands of lines takes minutes."""
    return [point for line in lines for point in (*line, (math.nan, math.nan))][:-1]


def slices(results: Results, path: Path) -> None:
    """The objective over each searched parameter; the best trial is larger, and of another colour."""
    searched = list(results.space.searched)
    figure, axes = _canvas(len(searched))
    best = results.best[0].number
    for ax, name in zip(axes, searched, strict=True):
        found = [trial for trial in results.complete if name in trial.params]
        places = _places(ax, name, found)
        for colour, size, shown in ((STUDENT, 5, False), (TEACHER, 8, True)):
            chosen = [(place, trial.values[0]) for trial, place in zip(found, places, strict=True)
                      if (trial.number == best) == shown]  # fmt: skip
            if chosen:
                ax.plot(*zip(*chosen, strict=True), "o", color=colour, markersize=size, alpha=0.8)
        ax.set_xlabel(name, fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
    for ax in axes[::ABREAST]:
        ax.set_ylabel(_objective(results))
    save(figure, path)


def _places(ax: Axes, name: str, trials: list[FrozenTrial]) -> list[float]:
    """Where trials stand along a parameter's axis, which is set up for it."""
    if not trials:
        return []
    distribution = trials[0].distributions[name]
    values = [trial.params[name] for trial in trials]
    if isinstance(distribution, CategoricalDistribution):
        names = [str(choice) for choice in distribution.choices]
        ax.set_xticks(range(len(names)), names if len(names) <= MOST_NAMES else [""] * len(names), fontsize=8)
        ax.tick_params(axis="x", rotation=0 if max(map(len, names)) <= 8 else 30)
        ax.set_xlim(-0.5, len(names) - 0.5)
        return [float(names.index(str(value))) for value in values]
    if getattr(distribution, "log", False):
        ax.set_xscale("log")
        few = max(values) < 20 * min(values)  # over more decades the names of 2 and 5 overlap
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    elif isinstance(distribution, IntDistribution):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return [float(value) for value in values]


def importances(results: Results, path: Path) -> None:
    """The share of the objective's variance that each parameter explains."""
    shares = dict(reversed(results.importances.items()))
    figure, (ax,) = _canvas(height=1.2 + 0.4 * len(shares))
    ax.barh(list(shares), list(shares.values()), color=STUDENT, height=0.6)
    for row, share in enumerate(shares.values()):
        ax.text(share, row, f" {share:.2f}", va="center", fontsize=8)
    ax.set(xlabel=f"share of the variance of {_objective(results)} (fANOVA)", xlim=(0, 1.08))
    save(figure, path)


def timeline(results: Results, path: Path) -> None:
    """When each trial ran, in hours from the first start, and how it ended."""
    ran = [trial for trial in results.trials if trial.datetime_start]
    starts = [trial.datetime_start.timestamp() for trial in ran if trial.datetime_start]
    ends = [(trial.datetime_complete or trial.datetime_start).timestamp() for trial in ran]  # type: ignore[union-attr]
    unit, title = (3600, "hours") if ends and max(ends) - min(starts) > 7200 else (60, "minutes")
    figure, (ax,) = _canvas(height=min(9.0, 1.4 + 0.16 * len(ran)))
    for state in dict.fromkeys(trial.state for trial in ran):
        spans = [(trial.number, (start - min(starts)) / unit, (end - start) / unit)
                 for trial, start, end in zip(ran, starts, ends, strict=True) if trial.state == state]  # fmt: skip
        rows, lefts, widths = zip(*spans, strict=True)
        colour, name = STATES.get(state, (GREY, "waiting"))
        ax.barh(rows, widths, left=lefts, color=colour, height=0.8, label=name)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.invert_yaxis()
    ax.set(xlabel=f"{title} from the first start", ylabel="trial")
    if ran:
        _legend(ax)
    save(figure, path)


def front(results: Results, path: Path) -> None:
    """All complete trials by their first two objectives; those that no other beats in all stand out."""
    figure, (ax,) = _canvas()
    best = {trial.number for trial in results.best}
    groups = (("other trials", GREY, results.complete), ("Pareto front", TEACHER, results.best))
    for title, colour, trials in groups:
        found = [trial.values[:2] for trial in trials if title == "Pareto front" or trial.number not in best]
        if found:
            ax.plot(*zip(*found, strict=True), "o", color=colour, label=title)
    for trial in results.best:
        ax.annotate(f" {trial.number}", trial.values[:2], fontsize=8)
    one, other, *_ = results.space.objectives
    ax.set(xlabel=one, ylabel=other)
    _legend(ax)
    save(figure, path)


def _objective(results: Results) -> str:
    return next(iter(results.space.objectives))


#: What draws the picture of a plot, by Optuna's name of the plot, under which its page lies beside the picture.
DRAWINGS: Mapping[str, Drawing] = {
    "optimization_history": history, "timeline": timeline, "intermediate_values": curves, "slice": slices,
    "param_importances": importances, "pareto_front": front,
}  # fmt: skip
