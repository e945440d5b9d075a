"""Random streams by name: draws depend on their purpose, never on earlier draws.

A stream is keyed with a hash of its name, so every sample of every view of every seed has its own, in any process and
any order. Hashing also decorrelates neighbours, such as the streams of indices 3 and 4.
"""

import numpy as np

from kd.system.files import json_digest


def key(*name: str | int) -> int:
    """A 128-bit integer that identifies `name`."""
    return int(json_digest([part if isinstance(part, str) else int(part) for part in name]), 16)


def stream(*name: str | int) -> np.random.Generator:
    """A new generator for `name`, with the same draws every time."""
    return np.random.Generator(np.random.Philox(key=key(*name)))
