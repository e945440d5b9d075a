"""What MLflow should show of a run: a pure function of the files in its folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.run.folder import SavedRun
from kd.system.untrusted import is_regular

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


@dataclass(frozen=True)
class Shown:
    """One run as it should look in MLflow.

    Attributes:
        points: (metric, step) -> (value, milliseconds since 1970 at which it came to be).
        artifacts: files, each with the folder among the run's artifacts that it goes to (None: the top).
        begun, ended: milliseconds since 1970.
        lost: ids of other runs whose process is gone; they must not look as if they went on.
    """

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    points: Mapping[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    artifacts: tuple[tuple[Path, str | None], ...] = ()
    status: str = RUNNING
    begun: int | None = None
    ended: int | None = None
    lost: frozenset[str] = frozenset()


def of_folder(folder: SavedRun, is_gone: bool = False) -> Shown:
    """What a run folder shows; its figures and files at the end, when they no longer change.

    `is_gone`: the run's process is known to be over, whatever the folder says.
    """
    facts, records = folder.identity(), folder.metrics()
    status = KILLED if is_gone and facts["status"] == RUNNING else facts["status"]
    summary = folder.summary() if status != RUNNING else {}
    ended = facts["ended"] or (records[-1].get("time") if records else None) or facts["begun"]
    return Shown(
        name=facts["name"],
        tags={**facts["tags"], **({"state": summary["state"]} if "state" in summary else {})},
        parameters={**facts["choices"], **_configured(folder.config()), **facts["parameters"]},
        points=_points(records, facts["begun"]) | _figures(summary, records, facts["begun"]),
        artifacts=tuple((path, None) for path in files(folder.path)) if status != RUNNING else (),
        status=status,
        begun=_milliseconds(facts["begun"]),
        ended=None if status == RUNNING else _milliseconds(ended),
    )


def files(folder: Path, ending: str = "") -> list[Path]:
    """The files of a folder that are its result: nothing hidden, and no checkpoint."""
    found = (path for path in folder.glob(f"*{ending}") if is_regular(folder, path.name))
    return sorted(path for path in found if not path.name.startswith((".", "checkpoint.")))


def _points(records: list[dict[str, Any]], begun: float) -> dict[tuple[str, int], tuple[float, int]]:
    return {
        (name, record["epoch"]): (float(value), _milliseconds(record.get("time", begun)))
        for record in records
        for name, value in record.items()
        if name not in ("epoch", "time") and value is not None
    }


def _figures(
    summary: Mapping[str, Any], records: list[dict[str, Any]], begun: float
) -> dict[tuple[str, int], tuple[float, int]]:
    """The closing figures as metrics of the last epoch: best/..., student/..., teacher/..., best_epoch, ..."""
    flat = {name.replace(".", "/", 1): value for name, value in _flatten(summary)}
    flat = {name.replace("objective/", "best/", 1): value for name, value in flat.items()}
    last = records[-1] if records else {"epoch": 0}
    when = _milliseconds(last.get("time", begun))
    return {
        (name, last["epoch"]): (float(value), when) for name, value in flat.items() if isinstance(value, int | float)
    }


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as flat parameters that two runs can be compared by, side by side."""
    flat = {name: value for name, value in _flatten(config) if not name.endswith("._target_")}
    transforms = config.get("augment", {}).get("transforms")
    return flat if transforms is None else flat | {"augment.transforms": ", ".join(map(_call, transforms)) or "none"}


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _call(node: Mapping[str, Any]) -> str:
    """A transform as it would be written in Python."""
    arguments = ", ".join(f"{name}={value}" for name, value in node.items() if name != "_target_")
    return f"{str(node['_target_']).rpartition('.')[2]}({arguments})"
