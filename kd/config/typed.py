"""Overrides as a shell user types them.

Hydra's grammar gives `~` and `#` meanings of their own and refuses `=` within a value, so that paths such as
`data.root=~/images` or `data.root=/data/set#2` would need quotes inside the shell's; it reads the braces of a template
such as `data.masks={split}/labels` as a mapping. All else stays as it is. Light: no torch.
"""

import os
import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

HOME = re.compile(r"~[\w.-]*(/|$)")
#: A key, and a value without the signs of lists, mappings, choices, interpolations and quotes.
PLAIN = re.compile(r"([+~]{0,2}[\w./@:-]+)=([^\[\]{}'\"\\,$]+)")

#: An override with a placeholder of `kd.data.layout.naming`.
TEMPLATE = re.compile(r"(\+{0,2}data\.\w+)=([^'\"]*\{(?:split|stem)\}[^'\"]*)")


def readable(arguments: Iterable[str]) -> list[str]:
    """Arguments with plain values that Hydra cannot read, and templates, in quotes, and with ~ as the home directory.

    >>> readable(["data.root=/data/set#2", "seed=1,2", "--config-dir=mine"])
    ["data.root='/data/set#2'", 'seed=1,2', '--config-dir=mine']
    """
    return [_readable(argument) for argument in arguments]


def _readable(argument: str) -> str:
    if found := TEMPLATE.fullmatch(argument):
        return f"{found[1]}='{found[2]}'"
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
