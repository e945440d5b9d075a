"""What a study searches and what it keeps fixed, stored in the study itself.

Trials of different settings cannot be compared, so a study continues only with the search space, the objectives and
the fixed configuration that it began with, except for keys that change no result.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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

from kd.errors import StudyError, shown
from kd.settings import changes_no_result, is_under, same_result

ATTRIBUTE = "space"
PRIVATE = ("root", "tracking")  # never stored: an address may hold a password
PICTURES = "data.pictures_without_masks"  # in the configuration: their number, if there are any
ABSENT = "nothing"  # what messages show for a key without a value

Direction = Literal["minimize", "maximize"]


def key_of(override: str) -> str:
    """The key or group that an override sets, adds (+) or deletes (~)."""
    return override.lstrip("+~").partition("=")[0]


@dataclass(frozen=True)
class Space:
    """What a study searches, keeps fixed and optimises.

    Attributes:
        searched: the distribution of each key that is searched.
        fixed: the overrides that all trials share, as typed.
        objectives: each objective's name and its direction.
        config: the configuration that all trials share, as dotted keys.
        start: the point that is nearest to the recipe as it stands; a choice that it has not is left out.
    """

    searched: Mapping[str, BaseDistribution]
    fixed: tuple[str, ...]
    objectives: Mapping[str, Direction]
    config: Mapping[str, Any]
    start: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> list[Direction]:
        return list(self.objectives.values())

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides of train.py for a trial with these parameters."""
        return [*self.fixed, *(f"{name}={value}" for name, value in params.items())]

    def is_range(self, name: str) -> bool:
        """Whether a searched key is a number within a range, not one of several choices."""
        return not isinstance(self.searched[name], CategoricalDistribution)

    def nearest(self, name: str, value: Any) -> Any:
        """The value of a searched key that is nearest to `value`; ABSENT if there is no such choice or number."""
        distribution = self.searched[name]
        if isinstance(distribution, CategoricalDistribution):
            return value if value in distribution.choices else ABSENT
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ABSENT
        numbers = _numbers(distribution)
        value = min(max(value, numbers.low), numbers.high)
        steps = round((value - numbers.low) / numbers.step) if numbers.step else None
        return value if steps is None else numbers.low + steps * numbers.step

    def corners(self) -> Iterator[dict[str, Any]]:
        """A few points that together cover every choice and both ends of every range."""
        extremes = {name: _extremes(distribution) for name, distribution in self.searched.items()}
        first = {name: values[0] for name, values in extremes.items()}
        yield first
        for name, values in extremes.items():
            yield from ({**first, name: value} for value in values[1:])

    def cells(self) -> list[dict[str, Any]]:
        """Every point of a finite space, with the last key changing fastest.

        Raises:
            StudyError: a key has a continuous range.
        """
        values = [_values(name, distribution) for name, distribution in self.searched.items()]
        return [dict(zip(self.searched, cell, strict=True)) for cell in product(*values)]

    def write(self, study: Study) -> None:
        """Store the space in a new study."""
        searched = {name: distribution_to_json(distribution) for name, distribution in self.searched.items()}
        study.set_user_attr(
            ATTRIBUTE,
            {
                "searched": searched,
                "fixed": [line for line in self.fixed if not is_under(key_of(line), PRIVATE)],
                "objectives": dict(self.objectives),
                "config": {name: value for name, value in self.config.items() if not is_under(name, PRIVATE)},
            },
        )

    @classmethod
    def read(cls, study: Study) -> "Space":
        """Load the space that a study began with.

        Raises:
            StudyError: the study was created by another program.
        """
        stored: Any = study.user_attrs.get(ATTRIBUTE)
        try:
            searched = {name: json_to_distribution(text) for name, text in stored["searched"].items()}
            return cls(searched, tuple(stored["fixed"]), dict(stored["objectives"]), dict(stored["config"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StudyError(
                f"study {shown(study.study_name)} was not created by this sweeper; choose another "
                "hydra.sweeper.study_name"
            ) from error

    def check_same(self, study: Study) -> None:
        """Check that a study began with an equivalent space.

        Raises:
            StudyError: it did not; the message names the keys that differ, with both values.
        """
        begun = Space.read(study)
        differences = [
            *_differences(begun.objectives, self.objectives),
            *_differences(begun._question(), self._question()),
        ]
        if differences:
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise StudyError(
                f"study {study.study_name} began with {'; '.join(differences[:3])}{more}: their trials cannot be "
                "compared; use the same overrides, or a new hydra.sweeper.study_name"
            )

    def _question(self) -> dict[str, Any]:
        """The keys that can change a result: the range of a searched key, the value of a fixed one."""
        fixed = {name: value for name, value in self.config.items() if not changes_no_result(name)}
        return {**fixed, **{name: describe(distribution) for name, distribution in self.searched.items()}}


def _numbers(distribution: BaseDistribution) -> FloatDistribution | IntDistribution:
    """The distribution itself, if it is numeric."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"unknown kind of optuna distribution: {distribution!r}")
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
            f"{name} takes any value from {distribution.low} to {distribution.high}, so a grid over it is infinite; "
            f"use {name}=choice(...) or range(...), or another hydra/sweeper/sampler"
        )
    low, high, step = distribution.low, distribution.high, distribution.step
    places = 12  # 0.1 + 0.2 is above 0.3, outside the distribution
    return [min(high, round(low + index * step, places)) for index in range(round((high - low) / step) + 1)]


def describe(distribution: BaseDistribution) -> str:
    """A distribution as text: choice(1,2), 0..4, 0..4 by 2, 1.0..2.0 (log)."""
    if isinstance(distribution, CategoricalDistribution):
        return f"choice({','.join(map(str, distribution.choices))})"
    distribution = _numbers(distribution)
    usual = 1 if isinstance(distribution, IntDistribution) else None
    step = "" if distribution.step == usual else f" by {distribution.step}"
    return f"{distribution.low}..{distribution.high}{step}{' (log)' if distribution.log else ''}"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per key that differs; a searched key differs with its range, even if its values change no result."""
    values = {name: (before.get(name, ABSENT), now.get(name, ABSENT)) for name in dict.fromkeys([*before, *now])}
    return [
        f"{name}={old}, now {new}"
        for name, (old, new) in values.items()
        if old != new and (changes_no_result(name) or not same_result(name, old, new))
    ]
