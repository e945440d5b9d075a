"""What a run finds of an earlier attempt: its own, when it is resumed, or that of another worker at the same trial."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd.config import resume
from kd.run import checkpoint, console
from kd.run.folder import RunFolder, SavedRun
from kd.system.untrusted import UnreadableError, mapping_at

#: Facts of `environment`, beside the packages, that may change the last bits of a result.
MACHINE = ("cpu", "threads", "device", "cuda", "processes")


def is_complete(folder: RunFolder) -> bool:
    """Whether a run has its summary; one that cannot be read is written again from the checkpoint, if there is one.

    Raises:
        UnreadableError: it cannot be read, and there is no checkpoint.
    """
    try:
        return bool(folder.summary())
    except UnreadableError as error:
        if not checkpoint.exists(folder.path):
            raise
        console.say(f"warning  summary.json {error.reason}; the student is measured again")
        return False


def say_other_environment(folder: RunFolder, facts: Mapping[str, Any]) -> None:
    """Say what an interrupted run began with and has no longer: package versions, processor, threads, device."""
    if not checkpoint.exists(folder.path):
        return
    begun = mapping_at(folder.identity(), "environment")
    pairs = [
        *_other(mapping_at(begun, "packages"), facts["packages"]),
        *_other({name: begun[name] for name in MACHINE if name in begun}, facts),
    ]
    if pairs:
        console.say(f"warning  the run began with {'; '.join(pairs)}: its student may differ from an uninterrupted one")


def _other(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{name} {value}, now {now.get(name)}" for name, value in begun.items() if now.get(name) != value]


def inherit(before: Path, folder: Path, config: dict[str, Any]) -> bool:
    """Copy checkpoints and metrics from an interrupted run with the same configuration; whether there were any."""
    try:
        if checkpoint.exists(folder) or not checkpoint.exists(before) or not resume.same_run(before, config):
            return False
        lines = SavedRun(before).metrics()
    except UnreadableError as error:
        console.say(f"warning  {error}: the trial starts anew")
        return False
    RunFolder(folder).write_metrics(lines)
    checkpoint.copy(before, folder)
    return True
