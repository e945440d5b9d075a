"""Resuming a run: which folder, and with which configuration.

`resume=<run folder>` loads the folder's own configuration; an override beside it must repeat what the run has, unless
it cannot change the result. `resume=auto` picks the newest unfinished run with the same configuration and starts a new
run otherwise, so that a scheduler can repeat the command unchanged.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kd.config.compose import plain, public
from kd.config.read import source
from kd.errors import ConfigError, RunError, UserError, without_credentials
from kd.settings import changes_no_result, flat, is_under, result_differences
from kd.system.installation import train_command
from kd.system.launch import current_rank, folder_of_this_process
from kd.system.untrusted import UnreadableError, check_plain, mapping_at, read_json, read_yaml

AUTO = "auto"
TRACKING_URI = "tracking.uri"
DATA_ROOT = "data.root"  # result-neutral only as long as the content is the same
FINGERPRINT = "data_fingerprint"  # of the data that a run began with, in its run.json
INPUTS = "inputs"  # digests of the other files that it began with, beside it


def run_folder(resume: str | None, fresh: str, cfg: DictConfig) -> str:
    """The run folder for this command: `fresh`, or that of the run to resume.

    Among several processes only rank 0 works in it; the others get a temporary folder each.

    Raises:
        RunError: there is no such run, or it is finished.
    """
    if current_rank().rank > 0 or resume is None:
        return folder_of_this_process(fresh)
    if resume != AUTO:
        return str(_unfinished(Path(resume)))
    return _newest(json.dumps(public(plain(cfg))), Path(fresh).parent.parent) or fresh


def _unfinished(folder: Path) -> Path:
    folder = folder.absolute()
    if not (folder / "config.yaml").is_file():
        raise RunError(f"resume={folder}: there is no config.yaml, so this is not a run folder; see runs/")
    check_plain(folder)  # its log is opened next
    if _is_over(folder):
        raise RunError(f"resume={folder}: this run is finished; leave resume out to start a new one")
    if (folder.parent / "trials.csv").exists():
        raise RunError(f"resume={folder}: this is a trial; the command of its study ({train_command()} -m) resumes it")
    return folder


def _is_over(folder: Path) -> bool:
    """Whether a run is finished and nothing of its end is missing: it was not interrupted after its summary."""
    if not (folder / "summary.json").exists() or any(folder.glob("checkpoint*.safetensors")):
        return False
    try:
        return read_json(folder, "run.json", dict).get("status") in (None, "FINISHED")
    except UnreadableError:
        return True


@lru_cache  # hydra resolves the folder several times
def _newest(config: str, runs: Path) -> str | None:
    """The newest unfinished run of a configuration (as JSON); None if every run is finished or another's.

    A folder that cannot be read is skipped, and named on stderr.
    """
    wanted = json.loads(config)
    for _, path in sorted(((_modified(path), path.parent) for path in runs.glob("*/*/config.yaml")), reverse=True):
        if _is_over(path) or (path.parent / "trials.csv").exists():
            continue
        try:
            check_plain(path)
            if same_run(path, wanted) and _same_data(path, wanted):
                return str(path)
        except RunError as error:
            print(f"resume=auto skips a folder: {error}", file=sys.stderr)
    return None


def _modified(file: Path) -> float:
    """When a file, or the link in its place, was last changed, in seconds since 1970; 0 if it has gone."""
    try:
        return file.lstat().st_mtime
    except OSError:
        return 0.0


def same_run(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the run in `folder` and a configuration give the same result on the same data.

    Raises:
        RunError: the folder's config.yaml cannot be read.
    """
    return not result_differences(dict(flat(saved_config(folder))), dict(flat(config)))


def _same_data(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a run's data is that of a configuration. The content is read only if `data.root` differs."""
    if dict(flat(saved_config(folder))).get(DATA_ROOT) == dict(flat(config)).get(DATA_ROOT):
        return True
    try:
        return saved_fingerprint(folder) == source(config).fingerprint()
    except UserError:  # data that cannot be read is reported when the new run starts
        return False


def saved_config(folder: Path) -> dict[str, Any]:
    """The configuration in a run folder.

    Raises:
        RunError: config.yaml is missing, damaged or not a mapping.
    """
    return read_yaml(folder, "config.yaml", dict)


def saved_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the data that the run in a folder began with; None if it has not begun."""
    try:
        return read_json(folder, "run.json", dict).get(FINGERPRINT)
    except UnreadableError:
        return None


def check_data(folder: Path, fingerprint: str) -> None:
    """Check that a run resumes on the data that it began with.

    Raises:
        ConfigError: the content of the data has changed since.
    """
    if saved_fingerprint(folder) not in (None, fingerprint):
        raise _changed(
            folder, "the data has changed since this run began (its files, or how they are read); restore it"
        )


def changed_inputs(folder: Path, inputs: Mapping[str, str | None]) -> list[str]:
    """What the run in a folder began with otherwise: the names in `inputs` (what it is: a digest) that differ."""
    try:
        begun = mapping_at(read_json(folder, "run.json", dict), INPUTS)
    except UnreadableError:
        return []
    return [name for name, digest in inputs.items() if begun.get(name, digest) != digest]


def check_inputs(folder: Path, inputs: Mapping[str, str | None]) -> None:
    """Check that a run resumes with the weights and pictures that it began with; `inputs` as for `changed_inputs`.

    Raises:
        ConfigError: a file has changed since.
    """
    if changed := changed_inputs(folder, inputs):
        raise _changed(folder, f"{' and '.join(changed)} changed since this run began; restore the files")


def _changed(folder: Path, what: str) -> ConfigError:
    return ConfigError(f"resume={folder}: {what}, or leave resume out to start a new run", page="resume")


def merged(folder: Path, config: dict[str, Any], typed: Iterable[str]) -> dict[str, Any]:
    """The configuration to resume with: the folder's, with those typed values of `config` that change no result.

    Raises:
        ConfigError: a typed override would change the result.
        RunError: the folder's config.yaml cannot be read.
    """
    saved, asked = dict(flat(saved_config(folder))), dict(flat(config))
    names = [override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".") for override in typed]
    everything = "experiment" in names  # a recipe may set any key
    touched = [key for key in {**saved, **asked} if everything or is_under(key, names)]
    _check_typed(folder, {key: saved.get(key) for key in touched}, {key: asked.get(key) for key in touched})
    result = saved_config(folder) | {"root": config["root"]}
    if any(name.partition(".")[0] == "tracking" for name in names) or "***" in str(saved.get(TRACKING_URI)):
        result["tracking"] = config["tracking"]
    elif saved.get(TRACKING_URI) not in (None, asked.get(TRACKING_URI)):
        raise _tracked_elsewhere(folder, str(saved[TRACKING_URI]))
    for name in touched:
        if name not in asked or saved.get(name) == asked[name]:
            continue
        group, _, key = name.partition(".")  # all that may differ is this deep
        if not key and changes_no_result(group):
            result[group] = config[group]
        elif group in ("trainer", "data", "teacher"):
            result[group] = {**result[group], key: config[group][key]}
    return result


def _tracked_elsewhere(folder: Path, address: str) -> ConfigError:
    """The refusal to send to an address that only a run folder, perhaps a stranger's, says."""
    return ConfigError(
        f"resume={folder} was tracked at {without_credentials(address)}, which is not this project's store: repeat "
        "tracking.uri=<that address> to resume there, or set tracking.uri=null for this project's",
        page="resume",
    )


def _check_typed(folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    other = sorted(result_differences(saved, asked))
    if other:
        shown = ", ".join(f"{key} is {saved.get(key)!r} and not {asked.get(key)!r}" for key in other[:4])
        raise ConfigError(
            f"resume={folder} cannot resume with another configuration: {shown}; leave "
            f"{'these' if len(other) > 1 else 'it'} out, or start a new run",
            page="resume",
        )
