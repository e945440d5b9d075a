"""Configurations that many tests ask for: hydra takes a tenth of a second to compose one, and does it once here."""

from copy import deepcopy
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from kd.config.compose import CONF, compose
from kd.config.typed import readable


def composed(*overrides: str) -> DictConfig:
    """What `compose` gives, as the caller's own.

    Hydra composes the chosen options of groups, once for all tests of a process; single keys are set afterwards, as it
    does itself. `tests/config/test_compose.py` compares the two.
    """
    single = [each for each in overrides if _is_single_key(each)]
    cfg = deepcopy(_chosen(tuple(each for each in overrides if not _is_single_key(each))))
    for override in OverridesParser.create().parse_overrides(readable(single)):
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


@cache
def _chosen(overrides: tuple[str, ...]) -> DictConfig:
    return compose(list(overrides))


def _is_single_key(override: str) -> bool:
    key = override.partition("=")[0]
    return key[0] not in "+~" and not key.startswith("hydra") and not (CONF / key).is_dir()
