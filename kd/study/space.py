"""What a study searches and what it keeps fixed, written into the study itself.

Trials of different settings cannot be compared, so a study goes on only with the space, the objectives and the fixed
configuration that it was begun with.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from kd.errors import StudyError
from kd.settings import CACHE_KEYS, is_under

ATTRIBUTE = "space"
#: Where a study is shown: no part of its question, and not written down, as an address may hold a password.
SHOWN = ("root", "tracking")
#: What cannot change a trial's result beside that: where it runs, and where its data lies (their content is compared).
FREE = (*SHOWN, "trainer.device", "trainer.workers", "data.root", "pictures", *CACHE_KEYS)


Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Space:
    """The question of a study.

    Attributes:
        searched: the distribution of each key that trials differ in.
        fixed: the overrides that all trials share, as typed.
        objectives: what is optimised, by name: "maximize" or "minimize".
        config: the configuration that all trials share, flat and dotted.
    """

    searched: Mapping[str, BaseDistribution]
    fixed: tuple[str, ...]
    objectives: Mapping[str, Direction]
    config: Mapping[str, Any]

    @property
    def directions(self) -> list[Direction]:
        return list(self.objectives.values())

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """What train.py is told for a trial of these parameters."""
        return [*self.fixed, *(f"{name}={value}" for name, value in params.items())]

    def corners(self) -> Iterator[dict[str, Any]]:
        """Few points that together take every choice and both ends of every range."""
        extremes = {name: _extremes(distribution) for name, distribution in self.searched.items()}
        first = {name: values[0] for name, values in extremes.items()}
        yield first
        for name, values in extremes.items():
            yield from ({**first, name: value} for value in values[1:])

    def cells(self) -> list[dict[str, Any]]:
        """Every point of a space of finite choices, the last key changing fastest.

        Raises:
            StudyError: a key that can take any value of a range.
        """
        values = [_values(name, distribution) for name, distribution in self.searched.items()]
        return [dict(zip(self.searched, cell, strict=True)) for cell in product(*values)]

    def write(self, study: Study) -> None:
        """Write the question into a study that has none."""
        searched = {name: distribution_to_json(distribution) for name, distribution in self.searched.items()}
        study.set_user_attr(
            ATTRIBUTE,
            {
                "searched": searched,
                "fixed": [line for line in self.fixed if not is_under(line.lstrip("+~").partition("=")[0], SHOWN)],
                "objectives": dict(self.objectives),
                "config": {name: value for name, value in self.config.items() if not is_under(name, SHOWN)},
            },
        )

    @classmethod
    def read(cls, study: Study) -> "Space":
        """The question that a study was begun with.

        Raises:
            StudyError: the study was made by something else.
        """
        kept = study.user_attrs.get(ATTRIBUTE)
        if kept is None:
            raise StudyError(
                f"study {study.study_name} was not made by this sweeper; choose another hydra.sweeper.study_name"
            )
        searched = {name: json_to_distribution(text) for name, text in kept["searched"].items()}
        return cls(searched, tuple(kept["fixed"]), kept["objectives"], kept["config"])

    def check_same(self, study: Study) -> None:
        """Refuse to continue a study with another question.

        Raises:
            StudyError: naming what differs, as it was and as it is.
        """
        begun = Space.read(study)
        differences = [
            *_differences(begun.objectives, self.objectives),
            *_differences(begun._shown(), self._shown()),
        ]
        if differences:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise StudyError(
                f"study {study.study_name} was begun with {'; '.join(differences[:3])}{more}: trials of both cannot be "
                "compared; give the same overrides, or a new hydra.sweeper.study_name"
            )

    def _shown(self) -> dict[str, Any]:
        """Every key that can change a result: its range where it is searched, its value where it is fixed."""
        fixed = {name: value for name, value in self.config.items() if not is_under(name, FREE)}
        return {**fixed, **{name: describe(distribution) for name, distribution in self.searched.items()}}


def _numbers(distribution: BaseDistribution) -> FloatDistribution | IntDistribution:
    """A distribution that is no choice."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"optuna has a new kind of distribution: {distribution!r}")
    return distribution


def _extremes(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return list(dict.fromkeys((_numbers(distribution).low, _numbers(distribution).high)))


def _values(name: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    distribution = _numbers(distribution)
    if distribution.step is None or distribution.log:
        raise StudyError(
            f"{name} takes any value from {distribution.low} to {distribution.high}, so the sampler grid has no end; "
            f"give {name}=choice(...) or range(...), or another hydra/sweeper/sampler"
        )
    low, high, step = distribution.low, distribution.high, distribution.step
    places = 12  # 0.1 + 0.2 is beyond 0.3, and out of the distribution
    return [min(high, round(low + index * step, places)) for index in range(round((high - low) / step) + 1)]


def describe(distribution: BaseDistribution) -> str:
    """A distribution in the words of an override: choice(1,2), range 0..4, interval 1..2 (log)."""
    if isinstance(distribution, CategoricalDistribution):
        return f"choice({','.join(map(str, distribution.choices))})"
    distribution = _numbers(distribution)
    usual = 1 if isinstance(distribution, IntDistribution) else None
    step = "" if distribution.step == usual else f" by {distribution.step}"
    return f"{distribution.low}..{distribution.high}{step}{' (log)' if distribution.log else ''}"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    nothing = "nothing"
    return [
        f"{name}={before.get(name, nothing)}, now {now.get(name, nothing)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name, nothing) != now.get(name, nothing)
    ]
