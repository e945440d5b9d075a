"""Going on with a run that was cut off: which folder, and with which configuration.

`resume=<run folder>` takes the folder's own configuration; what is typed beside it must be the same, except for what
cannot change the result. `resume=auto` takes the newest run of the same configuration that has not come to its end, and
begins a new one where there is none: a command that a scheduler may repeat as it is.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.config.compose import plain, public
from kd.errors import ConfigError, RunError
from kd.settings import CACHE_KEYS, flat, is_under
from kd.system.installation import train_command
from kd.system.launch import current_rank, folder_of_this_process
from kd.system.untrusted import read_yaml

#: Keys, and groups of keys, that may be another after a resume.
FREE = ("trainer.workers", "trainer.checkpoint_minutes", "tracking", "root", "pictures", *CACHE_KEYS)
AUTO = "auto"


def run_folder(resume: str | None, fresh: str, cfg: DictConfig) -> str:
    """The folder of the run that is asked for: a fresh one, or the one to go on with.

    Of several processes only the first works in it; each of the others gets one to be thrown away.

    Raises:
        RunError: there is no such run, or it has come to its end.
    """
    if current_rank().rank > 0 or resume is None:
        return folder_of_this_process(fresh)
    if resume != AUTO:
        return str(_unfinished(Path(resume)))
    return _newest(json.dumps(fixed(public(plain(cfg)))), Path(fresh).parent.parent) or fresh


OmegaConf.register_resolver(
    "run_folder", lambda resume, fresh, *, _root_: run_folder(resume, fresh, _root_), replace=True
)


OmegaConf.register_resolver("of_this_process", folder_of_this_process, replace=True)


def _unfinished(folder: Path) -> Path:
    folder = folder.absolute()
    if not (folder / "config.yaml").is_file():
        raise RunError(f"resume={folder}: there is no config.yaml, so this is not the folder of a run; see runs/")
    if (folder / "summary.json").exists():
        raise RunError(f"resume={folder}: this run has come to its end; leave resume out to begin another one")
    if (folder.parent / "trials.csv").exists():
        raise RunError(f"resume={folder}: this is a trial; its study's command ({train_command()} -m) goes on with it")
    return folder


@lru_cache
def _newest(asked: str, runs: Path) -> str | None:
    """The newest unfinished run of a configuration; cached, since hydra asks for the folder several times."""
    for config in sorted(runs.glob("*/*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True):
        if (config.parent / "summary.json").exists() or (config.parent.parent / "trials.csv").exists():
            continue
        try:
            if json.dumps(fixed(saved_config(config.parent))) == asked:
                return str(config.parent)
        except RunError:  # somebody's broken file, which is not what was asked for
            continue
    return None


def saved_config(folder: Path) -> dict[str, Any]:
    return read_yaml(folder, "config.yaml", dict)


def fixed(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what is free."""
    return dict(sorted((key, value) for key, value in flat(config) if not is_under(key, FREE)))


def merged(folder: Path, config: dict[str, Any], typed: Iterable[str]) -> dict[str, Any]:
    """The configuration to go on with: the folder's, and of `config` what was typed and is free.

    Raises:
        ConfigError: something was typed that would change the result.
    """
    saved, asked = dict(flat(saved_config(folder))), dict(flat(config))
    names = [override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".") for override in typed]
    everything = "experiment" in names  # a recipe touches what it likes
    touched = [key for key in {**saved, **asked} if everything or is_under(key, names)]
    other = [key for key in touched if not is_under(key, FREE) and not _alike(key, saved.get(key), asked.get(key))]
    if other:
        shown = ", ".join(f"{key} is {saved.get(key)!r} and not {asked.get(key)!r}" for key in sorted(other)[:4])
        raise ConfigError(
            f"resume={folder} cannot go on with another configuration: {shown}; leave "
            f"{'these' if len(other) > 1 else 'it'} out, or begin a new run",
            page="resume",
        )
    result = saved_config(folder) | {"root": config["root"]}
    if any(is_under("tracking", [name.partition(".")[0]]) for name in names) or "***" in str(saved.get("tracking.uri")):
        result["tracking"] = config["tracking"]
    for group, _, key in (name.partition(".") for name in touched):
        if group in ("trainer", "data", "teacher"):  # free, or alike
            result[group] = {**result[group], key: config[group][key]}
    return result


def _alike(key: str, saved: Any, asked: Any) -> bool:
    """Whether two values of a key give the same result; one GPU is as good as another."""
    if key == "trainer.device":
        return str(saved).partition(":")[0] == str(asked).partition(":")[0]
    return saved == asked
