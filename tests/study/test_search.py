"""The search space of a study, without a study."""

import pytest
import yaml
from omegaconf import DictConfig

from kd.config.compose import CONF, compose, plain
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
