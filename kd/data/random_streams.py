"""Random streams by name: what is drawn depends on what it is drawn for, never on what was drawn before.

A stream is keyed with a hash of its name, so that every sample of every view of every seed has its own, whoever asks
for it, in whatever process and order. The hash also parts neighbours: the streams of index 3 and index 4 share nothing.
"""

import numpy as np

from kd.system.files import json_digest


def key(*name: str | int) -> int:
    """A 128-bit integer that identifies `name`."""
    return int(json_digest([part if isinstance(part, str) else int(part) for part in name]), 16)


def stream(*name: str | int) -> np.random.Generator:
    """A fresh generator for `name`: the same draws every time it is asked for."""
    return np.random.Generator(np.random.Philox(key=key(*name)))
