"""Configuration files and interpolations, parsed once in a process instead of once in every composition.

A third of a composition is parsing, and these tests compose several thousand times what is in the same few files.
"""

import copy
from functools import cache
from typing import Any

import omegaconf._utils
import omegaconf.base
import omegaconf.grammar_parser
from omegaconf import OmegaConf


def use() -> None:
    """From now on OmegaConf remembers by its text what it parses: a file is copied, a grammar's tree never changes."""
    read, loaded = OmegaConf.load, {}

    def load(file: Any) -> Any:
        if not hasattr(file, "read"):
            return read(file)
        if (text := file.read()) not in loaded:
            file.seek(0)
            loaded[text] = read(file)
        return copy.deepcopy(loaded[text])

    OmegaConf.load = staticmethod(load)
    parse = cache(omegaconf.grammar_parser.parse)
    for module in (omegaconf.grammar_parser, omegaconf.base, omegaconf._utils):
        module.parse = parse
