"""A verb of `kd`: its parser, and the function that runs it."""

import argparse
from collections.abc import Callable
from typing import Any


def add_verb(
    verbs: Any, name: str, verb: Callable[[argparse.Namespace], None], **texts: Any
) -> argparse.ArgumentParser:
    """Add a verb's parser, whose arguments `verb` is called with; `texts` are its help, description and epilog."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, **texts)
    parser.set_defaults(verb=verb)
    return parser
