"""Overrides as a shell user types them.

Hydra's grammar gives `~` and `#` meanings of their own and refuses `=` within a value, so that paths such as
`data.root=~/images` or `data.root=/data/set#2` would need quotes inside the shell's. What Hydra can read stays as it
is. Light: no torch.
"""

import os
import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

HOME = re.compile(r"~[\w.-]*(/|$)")
#: A key, and a value without the signs of lists, mappings, choices, interpolations and quotes.
PLAIN = re.compile(r"([+~]{0,2}[\w./@:-]+)=([^\[\]{}'\"\\,$]+)")


def readable(arguments: Iterable[str]) -> list[str]:
    """Arguments with every plain value that Hydra cannot read in quotes, and with ~ as the home directory.

    >>> readable(["data.root=/data/set#2", "seed=1,2", "--config-dir=mine"])
    ["data.root='/data/set#2'", 'seed=1,2', '--config-dir=mine']
    """
    return [_readable(argument) for argument in arguments]


def _readable(argument: str) -> str:
    found = PLAIN.fullmatch(argument)
    if not found or argument.startswith("-"):
        return argument
    key, value = found.groups()
    if HOME.match(value):
        return f"{key}='{os.path.expanduser(value)}'"
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return f"{key}='{value}'"
    return argument
