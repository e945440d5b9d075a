"""A study's winner as a recipe that hydra composes: `python train.py --config-dir <study folder> experiment=best`."""

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


def recipe(title: str, overrides: Sequence[tuple[str, Any]], groups: Collection[str]) -> str:
    """A YAML recipe that says what the overrides say.

    Args:
        title: what it is, for its first line.
        overrides: (key, value) in the order given; a key that is in `groups` chooses an option of that group.
        groups: the names of the config groups.
    """
    chosen = {key: str(value) for key, value in overrides if key in groups}
    base = chosen.pop("experiment", None)
    tree: dict[str, Any] = {}
    for key, value in overrides:
        if key not in groups:
            *parents, leaf = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
    defaults: list[Any] = [base] if base not in (None, "null") else []
    defaults += [{f"override /{group}": option} for group, option in chosen.items()] + ["_self_"]
    body = yaml.safe_dump({"defaults": defaults, **tree}, sort_keys=False, allow_unicode=True)
    return f"# @package _global_\n# {title}\n{body}"
