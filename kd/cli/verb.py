"""A verb of `kd`: its parser, and the function that does it."""

import argparse
from collections.abc import Callable
from typing import Any


def add_verb(verbs: Any, name: str, verb: Callable[[argparse.Namespace], None], **said: str) -> argparse.ArgumentParser:
    """A parser whose arguments `verb` is called with; `said` are its help, description and epilog."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, **said)
    parser.set_defaults(verb=verb)
    return parser
