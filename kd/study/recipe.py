"""A study's winner as a recipe that hydra composes: `python train.py --config-dir <study folder> experiment=best`.

Recipes are shared, so one is untrusted input: it may set what is trained and how, but nothing of hydra itself, whose
log files could overwrite any file of the user's and whose environment variables choose which programs run.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kd.errors import ConfigError
from kd.settings import flat, is_under
from kd.system.installation import train_command
from kd.system.untrusted import UnreadableError, mapping_at, parse_yaml, read_bytes


def winner_name(study: str) -> str:
    """The name of the study that trains a study's winner with other seeds."""
    return f"{study}-winner"


def winner_study(study: str, folder: str, seed: int) -> str:
    """A study in YAML that trains the winner of `study`, whose seed is `seed`, again with other seeds.

    A single run cannot show the spread over seeds. More seeds may be asked for at any time: hydra.sweeper.n_trials=9.
    """
    return f"""# @package hydra.sweeper
# The best trial of study {study} over several seeds: {train_command()} -m --config-dir {folder} sweeps=winner
defaults:
  - /hydra/sweeper/sampler@sampler: grid
  - /hydra/sweeper/pruner@pruner: none
study_name: {winner_name(study)}
n_trials: 4
params:
  experiment: best
  seed: range({seed + 1}, {seed + 101})
"""


class _Dumper(yaml.SafeDumper):
    """Safe YAML that also quotes strings which hydra would read as numbers, such as 1e5."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def recipe(title: str, overrides: Sequence[tuple[str, Any]], groups: Collection[str]) -> str:
    """A recipe in YAML that is equivalent to the overrides.

    Args:
        title: its first line.
        overrides: (key, value) pairs in order; a key in `groups` chooses an option of that group.
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
    """Set the value at a path of keys, merging a mapping into an existing one."""
    *parents, leaf = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    if isinstance(value, dict) and isinstance(tree.get(leaf), dict):
        for key, item in value.items():
            _put(tree[leaf], [key], item)
    else:
        tree[leaf] = value


#: The only parts of hydra's own configuration that the file of a study may set.
STUDY_PACKAGE = "hydra.sweeper"
STUDY_PARTS = ("/hydra/sweeper/sampler@sampler", "/hydra/sweeper/pruner@pruner")
STUDY_KEYS = {
    "study_name", "n_trials", "n_jobs", "params", "direction", "max_retries", "max_failure_rate", "heartbeat_interval",
    "grace_period", "max_epochs", "defaults",
}  # fmt: skip
#: Where runs are written and sent to: decided by the person who types the command.
CALLERS = ("root", "resume", "tracking.uri")
#: An interpolation that calls a resolver, by name or by a computed name: oc.env would write secrets into config.yaml.
RESOLVER_CALL = re.compile(r"\$\{[^}]*(:|\$\{)")


def check_folder(folder: Path, groups: Collection[str]) -> None:
    """Check every file of a --config-dir that a recipe can reach, before hydra loads any of them.

    Args:
        folder: the folder that `--config-dir` names.
        groups: the names of the config groups; a recipe cannot reach other folders.

    Raises:
        ConfigError: a file does more than choose options and set their values.
    """
    for path in sorted(_reachable(folder, groups)):
        if path.is_symlink() and path.is_dir():
            raise ConfigError(f"{path} is a link to another folder, which a --config-dir may not contain; copy it")
        if path.suffix != ".yaml" or not os.path.lexists(path):
            continue
        try:
            source = read_bytes(folder, str(path.relative_to(folder)))
            text, content = source.decode(), parse_yaml(source)
        except UnreadableError as error:
            raise ConfigError(f"{path} {error.reason}, which a --config-dir may not contain; copy it") from error
        except ValueError as error:
            raise ConfigError(f"{path} cannot be read as YAML ({error}); fix it, or move it away") from error
        group = path.relative_to(folder).with_suffix("").parts[0]
        for violation in _violations(text, content, group, groups):
            raise ConfigError(
                f"{path}: {violation}, which a recipe of --config-dir may not; if you want it, set it on the command "
                "line"
            )


def _reachable(folder: Path, groups: Collection[str]) -> Iterator[Path]:
    """Every file and every link to a folder in the groups' folders."""
    for group in groups:
        yield from (folder / group).rglob("*")
        yield folder / f"{group}.yaml"


def _violations(text: str, content: Any, group: str, groups: Collection[str]) -> Iterator[str]:
    """What a file of a group sets that is not a recipe's, or reads from the environment; empty for a plain recipe."""
    is_study = group == "sweeps"
    packages = set(re.findall(r"@package\b[\s:]*(\S*)", text)) - {"_global_", "_group_"}
    if packages - ({STUDY_PACKAGE} if is_study else set()):
        yield f"is placed at {sorted(packages)[0]}"
    if not isinstance(content, dict):
        return
    package = next(iter(re.findall(r"@package\b[\s:]*(\S*)", text)), "")
    yield from (f"sets {key}" for key in sorted(_set_by(content, group, package)) if is_under(key, CALLERS))
    yield from (f"sets {key}" for key in content if str(key).startswith("hydra"))
    if is_study:
        yield from (f"sets {key} of a study" for key in content if key not in STUDY_KEYS)
        params = content.get("params")
        names = params if isinstance(params, dict) else {}
        yield from (f"searches {key}" for key in names if "hydra" in str(key) or "=" in str(key))
    defaults = content.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        if not _is_plain_choice(entry, is_study, groups):
            yield f"has {entry!r} among its defaults"
    yield from (f"computes {value!r}" for value in _strings(content) if RESOLVER_CALL.search(value))


def _is_plain_choice(entry: Any, is_study: bool, groups: Collection[str]) -> bool:
    """Whether an entry of a defaults list chooses an option of `groups` at its default place in the configuration."""
    for key, value in (entry if isinstance(entry, dict) else {"": entry}).items():
        name = re.sub(r"^((override|optional)\s+)+", "", str(key))
        if is_study and name in STUDY_PARTS:
            name = ""
        for part in (name, *(value if isinstance(value, list) else [value])):
            is_odd = any(sign in str(part) for sign in ("@", "$", "..", ":")) or str(part).startswith("hydra")
            if is_odd or (str(part).startswith("/") and str(part).split("/")[1] not in groups):
                return False
    return True


def _strings(tree: Any) -> Iterator[str]:
    """Every string in nested containers."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(item)


def _set_by(content: Mapping[str, Any], group: str, package: str) -> set[str]:
    """The keys of the whole configuration that a file of a group sets or searches, dotted."""
    prefix = "" if package == "_global_" else f"{group}."
    searched = mapping_at(content, "params") if package == STUDY_PACKAGE else {}
    return {f"{prefix}{key}" for key, _ in flat(content)} | {key.lstrip("+~") for key in searched}
