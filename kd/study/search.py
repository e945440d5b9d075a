"""A study's search space, from the overrides that ask for it: its corners are checked before anything starts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from kd.config.compose import plain
from kd.config.read import read
from kd.errors import ConfigError
from kd.run import console
from kd.settings import Settings, flat, is_under
from kd.study import hydra_options
from kd.study.space import ABSENT, PICTURES, Space, key_of

#: The keys of a teacher that is trained first, which follow the student's unless they are set.
FOLLOWED = {
    "teacher.epochs": "trainer.epochs", "teacher.lr": "optimizer.lr", "teacher.weight_decay": "optimizer.weight_decay",
}  # fmt: skip


@dataclass(frozen=True)
class Search:
    """What reads and checks the search space of a study.

    Attributes:
        compose: composes the configuration of a job from its overrides.
        study: the study's name.
        grid: whether the study runs every point of its space.
    """

    compose: Callable[[list[str]], DictConfig]
    study: str
    grid: bool

    def space(self, overrides: Sequence[str], typed: Sequence[str]) -> tuple[Space, Settings]:
        """The search space and the settings of its first corner; every corner is composed and checked like a run."""
        searched, kept = hydra_options.search_space(overrides)
        recipe = cache(partial(self.compose, list(kept)))
        kept = (*kept, *self._one_teacher(searched, kept, recipe))
        space = Space(searched, kept, {}, {})
        own = [name for name in searched if name not in {key_of(line) for line in typed}]
        if missing := self._missing(own, space):
            own = [name for name in own if name not in missing]
            searched = {name: values for name, values in searched.items() if name not in missing}
            space = replace(space, searched=searched)
        settings: Settings | None = None
        shared: dict[str, Any] = {}
        for cfg in self._corners(space):
            try:
                found = read(cfg, look_at_data=settings is None)
            except ConfigError as error:
                raise self._explained(error, own) from error
            if settings is None:
                settings, config = found, self._facts(cfg, found)
                shared = {name: value for name, value in config.items() if not is_under(name, searched)}
        if settings is None:
            raise ValueError("a space has at least one corner")
        start = {} if self.grid else self._start(space, recipe)
        return Space(searched, kept, {}, shared, start), settings

    def _facts(self, cfg: DictConfig, settings: Settings) -> dict[str, Any]:
        """A configuration as dotted keys, with what else may not change within a study."""
        plan, data = "grid" if self.grid else "suggested", settings.data
        facts = dict(flat(plain(cfg)))
        facts |= {"data.fingerprint": data.fingerprint(), "hydra.sweeper.sampler": plan}
        if pictures := data.unlabelled_size():
            facts |= {PICTURES: pictures, f"{PICTURES}.fingerprint": data.unlabelled_fingerprint()}
        return facts

    def _start(self, space: Space, recipe: Callable[[], DictConfig]) -> dict[str, Any]:
        """The point of the space that is nearest to the recipe as it stands; choices that it has not are left out."""
        try:
            cfg = recipe()
        except HydraException:  # what is fixed exists in some of the searched options alone
            return {}
        start = {}
        for name in space.searched:
            value = OmegaConf.select(cfg, f"hydra.runtime.choices.{name}") if "." not in name else None
            start[name] = space.nearest(name, OmegaConf.select(cfg, key_of(name)) if value is None else value)
        return {name: value for name, value in start.items() if value != ABSENT}

    def _corners(self, space: Space) -> Iterator[DictConfig]:
        """The configuration of each corner, until the next is asked for.

        Hydra composes those that differ in a choice; of ranges the end is set.
        """
        composed: dict[tuple[Any, ...], DictConfig] = {}
        for corner in space.corners():
            ends = {name: value for name, value in corner.items() if space.is_range(name)}
            choices = tuple(value for name, value in corner.items() if name not in ends)
            if choices not in composed:
                composed[choices] = self.compose(space.overrides(corner))
            cfg = composed[choices]
            for name, value in ends.items():  # all ranges, each time
                OmegaConf.update(cfg, key_of(name), value)
            yield cfg

    def _missing(self, own: Sequence[str], space: Space) -> list[str]:
        """The keys that the study searches of its own accord and that the typed options lack, which are not searched.

        Raises:
            ConfigError: there are such keys, and who typed a sweep as well may have meant a plain grid of that alone.
        """
        groups = {name: value for name, value in next(space.corners()).items() if "." not in name}
        cfg = self.compose(space.overrides(groups))
        keys = (name for name in own if "." in name)
        missing = [name for name in keys if OmegaConf.select(cfg, name, default=ABSENT) == ABSENT]
        if missing and ({*space.searched} - {*own} or {name.partition(".")[0] for name in missing} & {*own}):
            key, group = missing[0], missing[0].partition(".")[0]
            raise ConfigError(
                f"{key} is searched by the study {self.study}, and the chosen {group} has no such key; for a "
                "plain grid of what you typed add hydra/sweeper=basic, or choose another study, "
                "sweeps=<name>",
                page="studies",
            )
        if missing:
            console.say(f"study    not searched, as the chosen options have no such keys: {', '.join(missing)}")
        return missing

    def _explained(self, error: ConfigError, own: Iterable[str]) -> ConfigError:
        """An error in a corner of the space, with the reason why a key that nobody typed has a value."""
        if not any(str(error).startswith(f"{name}=") for name in own):
            return error
        return ConfigError(
            f"{error}; the study {self.study} searches this key: give it a value or a range of your own, or add "
            "hydra/sweeper=basic for a plain grid of what you typed",
            page="studies",
        )

    def _one_teacher(self, searched: Mapping[str, Any], kept: Sequence[str], recipe: Callable[[], DictConfig]
                     ) -> list[str]:  # fmt: skip
        """Overrides that fix the keys of a teacher that would follow a searched key of the student's.

        Each trial would train a teacher of its own, and no two would be taught by the same one.
        """
        typed = {key_of(line) for line in kept}
        follows = [key for key, own in FOLLOWED.items() if own in searched and key not in {*searched, *typed}]
        if not follows:
            return []
        values = {key: OmegaConf.select(recipe(), key) for key in follows}  # None: the teacher is a file
        return [f"{key}={value}" for key, value in values.items() if value is not None]
