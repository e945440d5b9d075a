"""The search space of a study, without a study."""

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

from kd.config.compose import CONF, compose, plain
from kd.errors import ConfigError
from kd.study import hydra_options
from kd.study.search import Search
from kd.study.space import Space

SHIPPED = sorted((CONF.parent / "sweeps").glob("*.yaml"))


def asked(file) -> Space:
    """What a shipped study searches."""
    params = yaml.safe_load(file.read_text())["params"]
    searched, kept = hydra_options.search_space([f"{key}={value}" for key, value in params.items()])
    return Space(searched, kept, {}, {})


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_corners_are_what_hydra_composes_of_their_overrides_and_each_choice_is_composed_once(file):
    space, seen = asked(file), []

    def counted(overrides: list[str]) -> DictConfig:
        seen.append(overrides)
        return compose(overrides)

    corners = [plain(cfg) for cfg in Search(counted, "mine", grid=False)._corners(space)]
    assert corners == [plain(compose(space.overrides(corner))) for corner in space.corners()]
    choices = {tuple(v for k, v in corner.items() if not space.is_range(k)) for corner in space.corners()}
    assert len(seen) == len(choices)


def searching(*overrides: str) -> Space:
    space, _ = Search(with_choices, "mine", grid=False).space(overrides, typed=overrides)
    return space


def with_choices(overrides: list[str]) -> DictConfig:
    """As hydra gives it to a sweeper: with the options chosen in each group."""
    with initialize_config_dir(str(CONF)):
        return hydra_compose("config", overrides, return_hydra_config=True)


def test_a_study_starts_at_the_recipe_as_it_stands():
    space = searching("schedule=choice(linear,cosine)", "schedule.initial=interval(2,10)", "optimizer.lr=0.003")
    recipe = compose(["optimizer.lr=0.003"])
    assert space.start == {"schedule": "cosine", "schedule.initial": recipe.schedule.initial}


STUDY = ["schedule=choice(linear,cosine)", "schedule.final=interval(1,2)", "unfreeze.rate=range(1,5)"]


@pytest.mark.parametrize(("typed", "left"), [("unfreeze=all", STUDY[:2]), ("schedule=constant", STUDY[2:])])
def test_a_study_does_not_search_what_the_chosen_options_lack_and_says_so(typed, left, capsys):
    kept = [line for line in STUDY if line.partition("=")[0] != typed.partition("=")[0]]
    space, _ = Search(with_choices, "mine", grid=False).space([*kept, typed], typed=[typed])
    assert [*space.searched] == [line.partition("=")[0] for line in left]
    assert space.fixed == (typed,)
    dropped = {"unfreeze=all": "unfreeze.rate", "schedule=constant": "schedule.final"}[typed]
    assert f"not searched, as the chosen options have no such keys: {dropped}\n" in capsys.readouterr().out


def test_who_types_a_sweep_beside_them_may_have_meant_that_alone():
    typed = ["unfreeze=all", "seed=1,2"]
    with pytest.raises(ConfigError, match=r"unfreeze.rate is searched by the study mine.* add hydra/sweeper=basic"):
        Search(with_choices, "mine", grid=False).space([*STUDY, *typed], typed=typed)


def test_a_number_outside_its_range_starts_at_the_nearest_and_another_choice_is_the_samplers():
    assert searching("schedule=choice(linear,exponential)", "schedule.initial=interval(20,30)").start == {
        "schedule.initial": 20.0
    }
    assert searching("unfreeze.start_epoch=range(0,5)", "unfreeze.rate=range(2,10,3)").start == {
        "unfreeze.start_epoch": 4, "unfreeze.rate": 2,
    }  # fmt: skip


def test_what_is_fixed_may_exist_in_a_searched_option_alone():
    assert searching("schedule=choice(piecewise)", "schedule.at=[0,1]", "schedule.temperatures=[4,1]").start == {}
