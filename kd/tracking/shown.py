"""What MLflow should show of a run: a pure function of the files in its folder."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.run.folder import SavedRun
from kd.settings import flat
from kd.system.installation import config_dir_arguments, train_command
from kd.system.untrusted import UnreadableError, is_regular, mapping_at

LARGEST = 4 * 2**30  # bytes of a file that is sent: a student of a billion parameters

DIGEST = 12  # characters of a data set's digest: MLflow's list shows it in a narrow column
#: Parts of a summary that are no metrics: the trivial baseline, which is the same for every run on the same data, would
#: come first among MLflow's charts, and counts of pictures are parameters.
LEFT_OUT = ("baseline", "pictures")
LONGEST = 2000  # characters of a command in a note

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


@dataclass(frozen=True)
class Shown:
    """One run as it should look in MLflow.

    Attributes:
        points: {(metric, step): (value, time)}, the time in milliseconds since 1970.
        artifacts: files, each with its folder among the run's artifacts (None: the top level).
        begun, ended: milliseconds since 1970.
        data: what the run learned from; None if unknown.
        note: Markdown for the top of the run's page, sent once: after that it is the reader's to change.
        lost: ids of other runs whose process has died, and which must no longer look as if they were running.
    """

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    points: Mapping[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    artifacts: tuple[tuple[Path, str | None], ...] = ()
    status: str = RUNNING
    begun: int | None = None
    ended: int | None = None
    data: "Data | None" = None
    note: str = ""
    lost: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Data:
    """A data set as MLflow lists it: its name, digest, folder and the number of pictures in each split."""

    name: str
    digest: str
    folder: str
    sizes: Mapping[str, int]


def of_folder(folder: SavedRun, ended: bool = False) -> Shown:
    """What a run folder shows. Summary and files are included only after the end, when they no longer change.

    `ended` is set if the run's process is known to have ended, even if run.json still says RUNNING.
    """
    facts, records = folder.identity(), folder.metrics()
    status = KILLED if ended and facts["status"] == RUNNING else facts["status"]
    summary = folder.summary() if status != RUNNING else {}
    if status == FINISHED and summary.get("state") == "pruned":
        status = KILLED  # the nearest that MLflow has
    end = facts["ended"] or (records[-1].get("time") if records else None) or facts["begun"]
    return Shown(
        name=facts["name"],
        tags={**facts["tags"], **({"state": summary["state"]} if "state" in summary else {})},
        parameters={**facts["choices"], **_configured(folder.config()), **_pictures(facts), **facts["parameters"]},
        points=_points(records, facts["begun"]) | _figures(summary, records, facts["begun"]),
        artifacts=tuple((path, None) for path in files(folder.path)) if status != RUNNING else (),
        status=status,
        begun=_milliseconds(facts["begun"]),
        ended=None if status == RUNNING else _milliseconds(end),
        data=_data(facts, folder.config()),
        note=_note(folder, summary, facts.get("config_dir")),
    )


def _note(folder: SavedRun, summary: Mapping[str, Any], config_dir: str | None) -> str:
    """The command of a finished run, its figures, and where to read more; empty before the end."""
    student, teacher = mapping_at(summary, "student"), mapping_at(summary, "teacher")
    trivial = mapping_at(summary, "baseline")
    if teacher and not student and "state" not in summary:
        lines = [f"A teacher, kept in `{folder.path}` for every run that asks for the same one."]
        return "\n".join([*lines, *_figure_lines(summary, teacher, {})]) + "\n"
    if not student and summary.get("state") != "pruned":
        return ""
    lines = [] if student else ["Pruned: it did worse than other trials after as many epochs."]
    with suppress(UnreadableError):
        typed = " ".join(map(str, [*config_dir_arguments(config_dir), *folder.overrides()])).replace("`", "'")
        lines.append(f"`{train_command()} {typed[:LONGEST]}`")
    lines += _figure_lines(summary, student, {"teacher": teacher, "trivial prediction": trivial})
    return "\n".join([*lines, "", f"Report: `kd report {folder.path}`"]) + "\n"


def _figure_lines(
    summary: Mapping[str, Any], own: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """A line for the objective and for the mean IoU, with the figures of others in parentheses."""
    wanted = dict.fromkeys([*mapping_at(summary, "objective"), "val/miou", "test/miou"])
    for name in (each for each in wanted if isinstance(own.get(each), int | float)):
        others = [f"{who} {figures[name]:.4f}" for who, figures in beside.items()
                  if isinstance(figures.get(name), int | float)]  # fmt: skip
        yield f"- {name} **{own[name]:.4f}**" + (f" ({', '.join(others)})" if others else "")


def _data(facts: Mapping[str, Any], config: Mapping[str, Any]) -> Data | None:
    """The data set of a run; older runs, and teachers, do not say all of it."""
    name, digest, sizes = facts["choices"].get("data"), facts.get("data_fingerprint"), mapping_at(facts, "pictures")
    if not name or not digest or not sizes:
        return None
    root = mapping_at(config, "data").get("root")
    name = Path(str(root)).name if name == "folder" and root else str(name)
    counted = {"train": "labelled", "unlabelled": "unlabelled", "val": "val", "test": "test"}
    return Data(name, digest[:DIGEST], str(root or ""), {split: sizes.get(key, 0) for split, key in counted.items()})


def files(folder: Path, ending: str = "") -> list[Path]:
    """The result files in a folder, of at most LARGEST bytes: without hidden ones and checkpoints."""
    found = (path for path in folder.glob(f"*{ending}") if is_regular(folder, path.name) and _size(path) <= LARGEST)
    return sorted(path for path in found if not path.name.startswith((".", "checkpoint.")))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # deleted in the meantime
        return 0


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
    """The summary as metrics of the last epoch: best/..., student/..., teacher/..., best_epoch, ...

    Every run has best/val/miou, that of the best epoch, whatever its objective: runs are compared by it.
    """
    wanted = {name: value for name, value in summary.items() if name not in LEFT_OUT}
    best = (record for record in records if record["epoch"] == summary.get("best_epoch"))
    named = {"best/val/miou": next(best, {}).get("val/miou")}
    named |= {name.replace(".", "/", 1).replace("objective/", "best/", 1): value for name, value in flat(wanted)}
    last = records[-1] if records else {"epoch": 0}
    when = _milliseconds(last.get("time", begun))
    return {
        (name, last["epoch"]): (float(value), when) for name, value in named.items() if isinstance(value, int | float)
    }


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as flat parameters, by which MLflow compares runs."""
    found = {name: value for name, value in flat(config) if not name.endswith("._target_") and value != {}}
    transforms = config.get("augment", {}).get("transforms")
    return found if transforms is None else found | {"augment.transforms": ", ".join(map(_call, transforms)) or "none"}


def _pictures(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How many training pictures there are, with and without masks; older runs do not say."""
    return {f"pictures.{name}": count for name, count in mapping_at(facts, "pictures").items()}


def _call(node: Mapping[str, Any]) -> str:
    """A transform as Python code."""
    arguments = ", ".join(f"{name}={value}" for name, value in node.items() if name != "_target_")
    return f"{str(node['_target_']).rpartition('.')[2]}({arguments})"
