"""A study's winner as a recipe that hydra composes: `python train.py --config-dir <study folder> experiment=best`."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import yaml

#: A winner once more, with several seeds: the spread that one run cannot show.
WINNER = """# @package hydra.sweeper
# The best trial of study {study} over several seeds: python train.py -m --config-dir {folder} sweeps=winner
defaults:
  - /hydra/sweeper/sampler@sampler: grid
  - /hydra/sweeper/pruner@pruner: none
study_name: {study}-winner
n_trials: 3
params:
  experiment: best
  seed: range(1, 4)
"""


class _Dumper(yaml.SafeDumper):
    """Plain YAML that quotes the texts which hydra would read as numbers, such as 1e5."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def recipe(title: str, overrides: Sequence[tuple[str, Any]], groups: Collection[str]) -> str:
    """A YAML recipe that says what the overrides say.

    Args:
        title: what it is, for its first line.
        overrides: (key, value) in the order given; a key that is in `groups` chooses an option of that group.
        groups: the names of the config groups.
    """
    chosen: dict[str, str] = {}
    bases: list[str] = []
    tree: dict[str, Any] = {}
    for key, value in overrides:
        if key == "experiment":
            bases = [str(name) for name in (value if isinstance(value, list) else [value]) if name is not None]
        elif key in groups and not isinstance(value, dict):
            chosen[key] = str(value)
        else:
            _put(tree, key.split("."), value)
    defaults = [*bases, *({f"override /{group}": option} for group, option in chosen.items()), "_self_"]
    body = yaml.dump({"defaults": defaults, **tree}, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return f"# @package _global_\n# {title}\n{body}"


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value at a dotted place; a mapping is laid over the one that is there."""
    *parents, leaf = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    if isinstance(value, dict) and isinstance(tree.get(leaf), dict):
        for key, item in value.items():
            _put(tree[leaf], [key], item)
    else:
        tree[leaf] = value
