"""Composing a configuration outside `hydra.main`, the resolvers of conf/, and the classes that conf/ may instantiate.

Light: no torch.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from inspect import isabstract, signature
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import kd.data
import kd.plan
from kd.config.quick import shortened
from kd.config.typed import readable
from kd.errors import ConfigError, nearest, nearest_in_group, without_credentials
from kd.system.installation import INSTALLED, PACKAGE, train_command
from kd.system.launch import folder_of_this_process

PROJECT = PACKAGE.parent  # the clone, unless the package is installed
CONF = (PACKAGE if INSTALLED else PROJECT) / "conf"


def _plans(base: type) -> dict[str, str]:
    """The concrete subclasses of `base` that `kd.plan` exports."""
    found = (value for value in vars(kd.plan).values() if isinstance(value, type) and issubclass(value, base))
    return {f"kd.plan.{each.__name__}": f"{each.__module__}.{each.__name__}" for each in found if not isabstract(each)}


#: What each config group may instantiate: the name in the configuration, and that in the module that defines the class.
#: Names, because importing the data sets takes longer than --help.
TARGETS = {
    "schedule": _plans(kd.plan.Schedule),
    "unfreeze": _plans(kd.plan.Policy),
    "data": {f"kd.data.{name}": f"kd.data.{module}.{name}" for name, module in kd.data.SETS.items()},
}
#: Everything that hydra may call. It looks up a callable instance (a schedule) by the module that defines its class.
WHITELIST = sorted({name for names in TARGETS.values() for pair in names.items() for name in pair})


def class_of(target: str) -> Any:
    """What a full name stands for, such as one of TARGETS; None if its module has nothing of that name."""
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name, None)


def project_root() -> Path:
    """Where runs/ and mlruns/ are: KD_ROOT, else the clone, else (the package is installed) the working directory."""
    return Path(os.environ.get("KD_ROOT") or (Path.cwd() if INSTALLED else PROJECT))


OmegaConf.register_resolver("of_this_process", folder_of_this_process, replace=True)
OmegaConf.register_resolver("train_command", train_command, replace=True)
OmegaConf.register_resolver("project_root", lambda: str(project_root()), replace=True)


def compose(overrides: list[str], config_dir: Path | None = None) -> DictConfig:
    """Compose conf/config.yaml with command-line overrides, apart from a `hydra.main` that may be running.

    `config_dir` is a folder with more options, which has been checked (`kd.study.hydra_options.check_recipes`).
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.types import Quote, QuotedString

    overrides = readable(overrides)
    check_deletions(overrides)
    if config_dir is not None:
        place = QuotedString(f"file://{config_dir.absolute()}", Quote.single).with_quotes()
        overrides = [f"hydra.searchpath=[{place}]", *overrides]
    with _hydra_aside(), initialize_config_dir(str(CONF)):
        return hydra_compose("config", overrides)


@contextmanager
def _hydra_aside() -> Iterator[None]:
    """Put the hydra that runs this process's job, if any, aside for the block: it tolerates no second one."""
    from hydra.core.global_hydra import GlobalHydra

    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def check_deletions(overrides: Iterable[str]) -> None:
    """Check that no override removes (`~key`) a key or a group of the default configuration; all of them are needed.

    Raises:
        ConfigError: one does.
    """
    for override in overrides:
        key = override.lstrip().removeprefix("~").partition("=")[0].strip()
        if not override.lstrip().startswith("~") or key == "experiment" or key not in known_keys():
            continue  # hydra's own keys, and those that do not exist, are hydra's to judge
        if (CONF / key).is_dir():
            raise ConfigError(f"{override}: a group cannot be removed, only replaced: {key}=...; {options(key)}")
        raise ConfigError(f"{override}: this key cannot be removed; set it: {key}=...")


def container(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A configuration as nested dicts, lists and scalars."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=resolve))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as dicts, lists and scalars with all interpolations resolved, without hydra's own keys.

    Raises:
        ConfigError: a key has no value, or an interpolation cannot be resolved.
    """
    keys = [key for key in map(str, cfg) if key not in ("hydra", "experiment", "resume")]
    try:
        missing = sorted(name for key in keys for name in _missing(cfg, key))
        if missing:
            raise ConfigError(f"{missing[0]} has no value; set it: {missing[0]}=...")
        return shortened({key: container(node) if OmegaConf.is_config(node := cfg[key]) else node for key in keys})
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{getattr(error, 'full_key', '') or 'configuration'}: {str(error.msg or error).splitlines()[0]}"
        ) from error


def _missing(cfg: DictConfig, key: str) -> set[str]:
    """The keys without a value at and below `key`."""
    if OmegaConf.is_missing(cfg, key):
        return {key}
    return OmegaConf.missing_keys(cfg[key]) if OmegaConf.is_config(cfg[key]) else set()


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a configuration that is safe to store: without the password of a tracking server."""
    uri = config["tracking"]["uri"]
    return config | {"tracking": config["tracking"] | {"uri": uri and without_credentials(uri)}}


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted key and every group of the default configuration."""

    def walk(node: dict[str, Any], prefix: str) -> Iterator[str]:
        for key, value in node.items():
            if key != "_target_":
                yield prefix + key
                if isinstance(value, dict):
                    yield from walk(value, f"{prefix}{key}.")

    return (*walk(container(compose([]), resolve=False), ""), *(path.name for path in CONF.iterdir() if path.is_dir()))


def nearest_key(key: str) -> str:
    """A hint for an unknown key: the closest key of its group, or of all if there is no such group."""
    known, group = [name for name in known_keys() if name != key], key.rpartition(".")[0]
    names = [name.removeprefix(f"{group}.") for name in known if name.rpartition(".")[0] == group]
    return nearest_in_group(key, names) if group and names else nearest(key, known)


def arguments_of(target: str) -> list[str]:
    """The arguments of the optuna sampler or pruner that `target` names; empty if it names none."""
    if target.rpartition(".")[0] not in ("optuna.samplers", "optuna.pruners"):
        return []
    found = class_of(target)
    return [*signature(found).parameters] if isinstance(found, type) else []


def options(group: str) -> str:
    """The options of a config group, for an error message."""
    return "choose from " + ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
