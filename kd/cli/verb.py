"""A verb of `kd`: its parser, the function that runs it, and the overrides that it takes."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_verb(
    verbs: Any, name: str, verb: Callable[[argparse.Namespace], None], **texts: Any
) -> argparse.ArgumentParser:
    """Add a verb's parser, whose arguments `verb` is called with; `texts` are its help, description and epilog."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, **texts)
    parser.set_defaults(verb=verb, parser=parser)
    return parser


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Add overrides, which `text` explains, and --config-dir, as Hydra takes them."""
    parser.add_argument("overrides", nargs="*", metavar="override", help=text)
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with recipes and options of your own")


def composed(arguments: argparse.Namespace) -> Any:
    """The configuration that the arguments of `add_overrides` ask for.

    Raises:
        ConfigError: there is no such folder, or a recipe in it does more than choose options and set their values.
    """
    from kd.config.compose import compose  # heavy: hydra
    from kd.study.hydra_options import check_recipes
    from kd.system.installation import config_dir_arguments

    check_recipes(config_dir_arguments(arguments.config_dir))
    return compose(arguments.overrides, arguments.config_dir)
