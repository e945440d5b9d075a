"""Two studies compared: what makes it unfair, their winners over seeds, and whether distilling helped.

The two arms are a study with a teacher and one without, which search the same keys otherwise. Each arm's winner is
trained again with other seeds (`sweeps=winner`); its own trial counts as the first seed. Seeds are paired, since both
arms draw the same batches and views from the same seed, and the interval is Student's for the mean of the paired
differences (Student 1908), of 95 %.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kd.settings import TEACHING_KEYS, TEACHING_TERMS, changes_no_result, is_under, more_is_better, same_result
from kd.study.attributes import RECIPE
from kd.study.recipe import winner_name
from kd.study.results import Results, ours_in
from kd.study.space import PICTURES, describe
from kd.study.storage import Storage

CONFIDENCE = 0.95
#: The least gain that is worth a teacher, in the unit of the metric: what credible papers report at least, 0.4 points.
LEAST_GAIN = 0.004
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Spread:
    """The values of one metric over seeds."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for a single seed."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean; None for a single seed."""
        if self.deviation is None:
            return None
        half = _half_width(self.deviation, len(self.by_seed))
        return self.mean - half, self.mean + half

    def minus(self, other: "Spread") -> "Spread":
        """The paired differences over the seeds that both have."""
        return Spread({s: v - other.by_seed[s] for s, v in self.by_seed.items() if s in other.by_seed})


def _half_width(deviation: float, count: int) -> float:
    """Half the width of the confidence interval of a mean of `count` values."""
    from scipy.stats import t  # heavy

    return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)


def metrics_of(results: Results) -> list[str]:
    """The metrics that arms are compared by, the decisive one last: the study's objective, and the same on test."""
    objective = next(iter(results.space.objectives))
    return list(dict.fromkeys([objective, objective.replace("val/", "test/", 1)]))


@dataclass(frozen=True)
class Arm:
    """A study, and its winner trained again with other seeds, if it was."""

    study: Results
    winners: Results | None = None

    @classmethod
    def of(cls, storage: Storage, study: Results) -> "Arm":
        """The arm of a study in a database."""
        name = winner_name(study.name)
        return cls(study, ours_in(storage, name))

    def over_seeds(self) -> dict[str, Spread]:
        """The winner's metrics by seed; the trial that won is the first of them."""
        trials = [(trial.params["seed"], trial) for trial in self.winners.complete] if self.winners else []
        if self.study.best and "seed" in self.study.space.config and not self.outdated:
            trials.append((self.study.space.config["seed"], self.study.best[0]))
        found: dict[str, dict[int, float]] = {}
        for seed, trial in trials:
            for name in metrics_of(self.study):
                value = trial.values[0] if name in self.study.space.objectives else trial.user_attrs.get(name)
                if value is not None:
                    found.setdefault(name, {})[int(seed)] = value
        return {name: Spread(dict(sorted(values.items()))) for name, values in found.items()}

    @property
    def outdated(self) -> bool:
        """Whether another trial has won since the winner was trained with other seeds."""
        if self.winners is None or not self.study.best:
            return False
        best, trained = self.study.best[0], self.winners.space.config
        if RECIPE in best.user_attrs:
            recipes = {trial.user_attrs.get(RECIPE) for trial in self.winners.complete}
            return bool(recipes - {best.user_attrs[RECIPE]})
        return any(not same_result(name, trained.get(name, value), value) for name, value in best.params.items())

    @property
    def epochs(self) -> int:
        """All epochs that were trained, those of failed trials too."""
        return sum(each.epochs[0] + each.lost_epochs for each in (self.study, self.winners) if each)


def has_teacher(results: Results) -> bool:
    """Whether the trials of a study learn from a teacher."""
    space = results.space
    weights = (f"loss.{weight}" for weight in TEACHING_TERMS.values())
    return any(name in space.searched or space.config.get(name) for name in ("loss", *weights))


def unequal(one: Results, other: Results) -> list[str]:
    """What two arms differ in besides the teacher, so that comparing them is unfair; empty if it is fair."""
    reasons = [*_settings(one, other)]
    if one.space.objectives != other.space.objectives:
        reasons.append(f"objective: {', '.join(one.space.objectives)} against {', '.join(other.space.objectives)}")
    if not _same_budget(one, other):
        finished = [study.finished for study in (one, other)]
        reasons.append(f"finished trials: {finished[0]} against {finished[1]}")
    with_teacher = [has_teacher(study) for study in (one, other)]
    pictures = max(study.space.config.get(PICTURES, 0) for study in (one, other))
    if pictures and with_teacher[0] != with_teacher[1]:
        reasons.append(
            f"pictures: the student with a teacher also learns from {pictures} pictures without masks, which the one "
            "without a teacher has no use for; data.unlabelled_share=0 compares them on the same pictures"
        )
    if with_teacher[0] == with_teacher[1]:
        reasons.append(
            "teacher: both studies have one, so neither is the baseline"
            if with_teacher[0]
            else "teacher: neither study has one (no term of its loss needs it), so nothing is distilled"
        )
    return reasons


def _settings(one: Results, other: Results) -> list[str]:
    """The keys, besides those of the teacher, that the studies search or fix differently.

    `loss` is the choice of a whole preset, whose weights are compared one by one.
    """

    def said(results: Results, key: str) -> Any:
        found = results.space.searched.get(key)
        return results.space.config.get(key) if found is None else f"searched in {describe(found)}"

    keys = dict.fromkeys(key for results in (one, other) for key in (*results.space.searched, *results.space.config))
    return [
        f"{key}: {said(one, key)} against {said(other, key)}"
        for key in keys
        if not is_under(key, TEACHING_KEYS)
        and key not in ("loss", "objective")
        and not changes_no_result(key)
        and not same_result(key, said(one, key), said(other, key))
    ]


def _same_budget(one: Results, other: Results) -> bool:
    """Whether the studies had as many trials, or trained as many epochs give or take a training."""
    longest = max((trial.user_attrs.get("planned_epochs", 0) for trial in (*one.trials, *other.trials)), default=0)
    return one.finished == other.finished or abs(one.epochs[0] - other.epochs[0]) <= longest > 0


def partner(name: str) -> str:
    """The study without a teacher that a study is compared with, if nobody names another."""
    return f"{name.removesuffix('-distilled')}-alone" if name.endswith("-distilled") else "no_teacher"


@dataclass(frozen=True)
class Verdict:
    """Whether distilling helped: a metric of both arms over the same seeds.

    Attributes:
        metric: its name; a loss or a latency counts as better where it is lower.
        least: the least gain that is worth a teacher.
    """

    metric: str
    distilled: Spread
    alone: Spread
    least: float = LEAST_GAIN

    @classmethod
    def of(cls, distilled: Arm, alone: Arm, least: float = LEAST_GAIN) -> "Verdict":
        """The verdict on two arms, by the objective on test if there is a test split."""
        one, other = distilled.over_seeds(), alone.over_seeds()
        shared = [name for name in metrics_of(distilled.study) if name in one and name in other]
        metric = shared[-1] if shared else metrics_of(distilled.study)[0]
        return cls(metric, one.get(metric, Spread({})), other.get(metric, Spread({})), least)

    @property
    def gain(self) -> Spread:
        """By how much the taught student is better, seed by seed."""
        sign = 1 if more_is_better(self.metric.replace("test/", "val/", 1)) else -1
        return Spread({seed: sign * value for seed, value in self.distilled.minus(self.alone).by_seed.items()})

    @property
    def outcome(self) -> str:
        """helped: the gain's interval is above 0. did not help: it is below `least`. Else cannot tell.

        If both, it helped by less than is worth a teacher.
        """
        interval = self.gain.interval if self.gain.by_seed else None
        if interval is None:
            return "cannot tell"
        low, high = interval
        if low > 0:
            return "helped" if high >= self.least else "helped by less than is worth a teacher"
        return "did not help" if high < self.least else "cannot tell"

    @property
    def more_seeds(self) -> int | None:
        """How many more seeds decide, if their gains spread as those so far; None if that is not known, or too many."""
        gain = self.gain
        if gain.deviation is None:
            return None
        needed = max(gain.mean, self.least - gain.mean)
        enough = (n for n in range(2, MOST_SEEDS + 1) if _half_width(gain.deviation, n) < needed)
        found = next(enough, None)
        return None if found is None else max(0, found - len(gain.by_seed))

    def line(self) -> str:
        """The verdict in one line."""
        gain, outcome = self.gain, self.outcome
        seeds = f"{len(gain.by_seed)} paired seed{'' if len(gain.by_seed) == 1 else 's'}"
        if not gain.by_seed:
            return f"{outcome}: the arms have no seed in common"
        if gain.interval is None:
            return f"{outcome}: {self.metric} {gain.mean:+.4f} by {seeds}, which have no spread; train at least two"
        low, high = gain.interval
        more = ""
        if outcome == "cannot tell":
            count = self.more_seeds
            needed = f"about {count} more seed{'' if count == 1 else 's'}" if count else f"more than {MOST_SEEDS} seeds"
            more = f"; {needed} would decide"
        return f"{outcome}: {self.metric} {gain.mean:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, {seeds}){more}"
