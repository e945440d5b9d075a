"""Configurations, composed once in a process for each choice of options instead of once in every composition.

Hydra takes a tenth of a second to put some thirty files together, and these tests ask for several thousand
compositions of the same few choices. Single keys (`seed=3`) are set afterwards, by Hydra itself.
`tests/config/test_compose.py` compares what is remembered with what is not.
"""

import copy
import pickle
from functools import cache
from typing import Any

import hydra._internal.config_loader_impl as loading
import omegaconf._utils
import omegaconf.base
import omegaconf.grammar_parser
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from kd.config.compose import PROJECT

#: Files below these never change while tests run.
CONSTANT = (f"file://{PROJECT}/", "pkg://hydra", "structured://")

_loaded: dict[str, bytes] = {}
_parsed: dict[tuple[str, str], bytes] = {}
_listed: dict[Any, DefaultsList] = {}
_composed: dict[Any, bytes] = {}


def use() -> None:
    """From now on this process remembers files, interpolations, overrides, and the options of each composition."""
    _remember_files()
    _remember_grammar()
    _remember_overrides()
    _remember_lists()
    _remember_compositions()


def constant_places(repo: Any) -> tuple[str, ...] | None:
    """Where options are looked for; None if a test may have written them."""
    places = tuple(source.full_path() for source in repo.get_sources())
    return places if all(place.startswith(CONSTANT) for place in places) else None


def _remember_files() -> None:
    read = OmegaConf.load

    def load(file: Any) -> Any:
        if not hasattr(file, "read"):
            return read(file)
        if (text := file.read()) not in _loaded:
            file.seek(0)
            _loaded[text] = pickle.dumps(read(file))
        return pickle.loads(_loaded[text])

    OmegaConf.load = staticmethod(load)


def _remember_grammar() -> None:
    parse = cache(omegaconf.grammar_parser.parse)  # a tree never changes
    for module in (omegaconf.grammar_parser, omegaconf.base, omegaconf._utils):
        module.parse = parse


def _remember_overrides() -> None:
    parse = OverridesParser.parse_rule

    def parse_rule(self: OverridesParser, text: str, rule: str) -> Any:
        if (text, rule) not in _parsed:
            _parsed[text, rule] = pickle.dumps(parse(self, text, rule))
        return pickle.loads(_parsed[text, rule])

    OverridesParser.parse_rule = parse_rule


def _remember_lists() -> None:
    create = loading.create_defaults_list

    def create_defaults_list(repo: Any, config_name: Any, overrides_list: list, **more: Any) -> DefaultsList:
        if (places := constant_places(repo)) is None:
            return create(repo, config_name, overrides_list, **more)
        overrides = Overrides(repo, overrides_list)
        choices = [each for each in overrides_list if not each.is_sweep_override()]
        choices = [each for each in choices if each not in overrides.config_overrides]
        key = (places, config_name, tuple(each.input_line for each in choices), *sorted(more.items()))
        if key not in _listed:
            _listed[key] = create(repo, config_name, choices, **more)
        found = copy.copy(_listed[key])
        found.overrides = copy.copy(found.overrides)
        found.config_overrides = found.overrides.config_overrides = overrides.config_overrides
        return found

    loading.create_defaults_list = create_defaults_list


def _remember_compositions() -> None:
    compose = loading.ConfigLoaderImpl._compose_config_from_defaults_list

    def compose_config(self: Any, defaults: list, repo: Any) -> Any:
        if (places := constant_places(repo)) is None:
            return compose(self, defaults, repo)
        key = (places, tuple((each.config_path, each.package, each.is_self, each.primary) for each in defaults))
        if key not in _composed:
            _composed[key] = pickle.dumps(compose(self, defaults, repo))
        return pickle.loads(_composed[key])

    loading.ConfigLoaderImpl._compose_config_from_defaults_list = compose_config
