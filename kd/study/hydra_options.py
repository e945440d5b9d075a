"""The options in `hydra.sweeper` as a study's database, sampler, pruner and search space.

Used by both sides: the sweeper, which hands out trials, and the job that runs one.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, Transformer
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import instantiate

from kd.config.compose import CONF, arguments_of, container
from kd.errors import ConfigError, nearest_in_group

SWEEPER = "hydra_plugins.study_sweeper.sweeper.StudySweeper"
SAMPLERS = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
PRUNERS = ("optuna.pruners.*",)


@dataclass(frozen=True)
class TrialJob:
    """A job's trial: its number, and hydra.sweeper as plain containers."""

    number: int
    root: Path
    sweeper: Mapping[str, Any] = field(repr=False)  # its storage may contain a password


def trial_job(root: Path) -> TrialJob | None:
    """The trial that hydra runs in this job; None if the job belongs to no study."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN or hydra.sweeper.get("_target_") != SWEEPER:
        return None
    return TrialJob(int(hydra.job.num), root, container(hydra.sweeper))


def config_dir(hydra: Any) -> Path | None:
    """The folder that --config-dir names, from hydra's own configuration; None without one."""
    named = (Path(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line")
    return next(named, None)


def ticket(job: TrialJob | None) -> Any:
    """The `kd.study.trial.Ticket` that a job attaches to its study with; None for a run outside any study."""
    if job is None:
        return None
    from kd.study.trial import Ticket  # heavy: optuna

    conf = job.sweeper
    return Ticket(database(conf, job.root), conf["study_name"], job.number, pruner(conf["pruner"]))


def database(conf: Mapping[str, Any], root: Path) -> Any:
    """The `kd.study.storage.Database` of a sweeper's configuration; sqlite under `root` if it names none."""
    from kd.study.address import default_url
    from kd.study.storage import Database

    heartbeat = conf["heartbeat_interval"]
    return Database(conf["storage"] or default_url(root), heartbeat, conf["grace_period"] or 4 * heartbeat)


def pruner(node: Mapping[str, Any]) -> Any:
    """The optuna pruner of a configuration node.

    Raises:
        ConfigError: optuna has no such pruner, or rejects an argument.
    """
    return _build("pruner", node, PRUNERS)


def sampler(node: Mapping[str, Any], seed: int) -> Callable[[int], Any]:
    """A function that makes the sampler for a position in the study.

    Suggestions depend on the study's seed, the position and the earlier trials, not on the process that asks, so an
    interrupted study suggests the same points. Quasi-random sequences keep a single seed, since the database stores
    the position in the sequence; the parameters that they sample independently get a seed from the position.

    Raises:
        ConfigError: optuna has no such sampler, or rejects an argument.
    """
    seed = seed if node.get("seed") is None else node["seed"]
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(
            f"hydra.sweeper.sampler.seed={seed!r}: should be a whole number from 0 to 4294967295, or null",
            page="studies",
        )

    def make(position: int) -> Any:
        digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=4).digest()
        own = int.from_bytes(digest, "little")
        if str(node["_target_"]).endswith("QMCSampler"):
            from optuna.samplers import RandomSampler

            quiet = {"warn_independent_sampling": False, "warn_asynchronous_seeding": False}
            return _build("sampler", {**node, **quiet, "seed": seed}, SAMPLERS, independent=RandomSampler(own))
        return _build("sampler", {**node, "seed": own}, SAMPLERS)

    return make


def is_grid(node: Mapping[str, Any]) -> bool:
    """Whether a sampler runs every cell of the space once."""
    return str(node["_target_"]).rpartition(".")[2] in ("GridSampler", "BruteForceSampler")


def _build(kind: str, node: Mapping[str, Any], allowed: tuple[str, ...], independent: Any = None) -> Any:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(
            f"hydra.sweeper.{kind}={node!r} is not a {kind}; choose hydra/sweeper/{kind}=<name>", page="studies"
        )
    known = arguments_of(str(node["_target_"]))
    if known and (unknown := [str(name) for name in node if not str(name).startswith("_") and name not in known]):
        raise ConfigError(
            f"hydra.sweeper.{kind}.{unknown[0]} is not an argument of {node['_target_']}; "
            f"{nearest_in_group(f'hydra.sweeper.{kind}.{unknown[0]}', known)}",
            page="studies",
        )
    more = {} if independent is None else {"independent_sampler": independent}
    try:
        return instantiate(dict(node), **more, _execution_whitelist_=allowed, _convert_="all")
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"hydra.sweeper.{kind} ({node['_target_']}): {reason}", page="studies") from error


def check_name(name: Any) -> str:
    """Return a study's name if it is a valid folder name, on Windows too.

    Raises:
        ConfigError: empty, too long, other characters than letters, digits and . _ -, or a Windows device name.
    """
    device = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))"
    if not isinstance(name, str) or not re.fullmatch(device + r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}(?<!\.)", name):
        raise ConfigError(
            f"hydra.sweeper.study_name={name!r}: it also names a folder; use up to 80 letters, digits and . _ -, start "
            "with a letter, a digit or _, do not end with a dot, and avoid Windows' device names (con, nul, ...)",
            page="studies",
        )
    return name


def check_recipes(arguments: Sequence[str] | None = None) -> None:
    """Check the recipes of --config-dir before hydra loads them; `arguments` default to the command line's.

    Raises:
        ConfigError: there is no such folder, or a recipe does more than choose options and set their values.
    """
    folder = get_args_parser().parse_known_args(arguments)[0].config_dir
    if folder is not None:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir {folder}: there is no such folder; name the one that holds your recipes")
        from kd.study.recipe import check_folder  # brings pydantic, which --help does not need

        check_folder(Path(folder), {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"})


def search_space(overrides: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The searched keys, {key: optuna distribution}, and the overrides that all trials share.

    The grammar is hydra-optuna-sweeper's: choice(...), range(...), interval(...), tag(log, ...), a,b,c.

    Raises:
        ConfigError: an empty range, or a kind of sweep that optuna does not have.
    """
    from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides  # heavy: optuna

    lines = _last_wins(overrides)
    try:
        searched, fixed, deleted = create_params_from_overrides(lines)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise ConfigError(f"the search space cannot be read: {error}", page="studies") from error
    searched |= _choices_as_typed(lines)
    return searched, (*(f"{name}={value}" for name, value in fixed.items()), *deleted)


def _last_wins(overrides: Sequence[str]) -> list[str]:
    """The last override of each key: the command line fixes, narrows or widens what the study's file searches."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return list({item.get_key_element(): line for item, line in zip(parsed, overrides, strict=True)}.values())


def _choices_as_typed(lines: Sequence[str]) -> dict[str, Any]:
    """The choice sweeps with their significant quotes, which the stock parser drops: '7' is not 7."""
    from optuna.distributions import CategoricalDistribution

    found = {}
    for item in OverridesParser.create().parse_overrides(list(lines)):
        if item.is_choice_sweep():
            choices = [_as_typed(choice) for choice in item.sweep_iterator()]
            found[item.get_key_element()] = CategoricalDistribution(choices)
    return found


def _as_typed(choice: Any) -> Any:
    """A choice as an override's value; a string is quoted if hydra would otherwise read it as something else."""
    if not isinstance(choice, str):
        return Transformer.encode(choice)
    try:
        if OverridesParser.create().parse_override(f"key={choice}").value() == choice:
            return choice
    except HydraException:
        pass
    return QuotedString(choice, Quote.single).with_quotes()


def overrides_as_values(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """The overrides as (key, Python value) pairs, without deletions."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [(item.key_or_group, _value(item.value())) for item in parsed if not item.is_delete()]


def _value(value: Any) -> Any:
    """A parsed value as plain containers and scalars, without quotes."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_value(item) for item in value]
    return {str(key): _value(item) for key, item in value.items()} if isinstance(value, dict) else value
