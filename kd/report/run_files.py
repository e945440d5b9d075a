"""A run folder as plain values, whatever state it is in: what cannot be read is listed, and the rest is there."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kd.errors import RunError
from kd.run.folder import SIGNS, SavedRun
from kd.settings import LossSettings
from kd.system import tensor_file
from kd.system.installation import config_dir_arguments
from kd.system.untrusted import UnreadableError, mapping_at

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

FILES = (
    "config.yaml", ".hydra/overrides.yaml", "run.json", "metrics.jsonl", "summary.json", "evidence.json",
    "evidence.safetensors",
)  # fmt: skip
#: Exceptions that values of unexpected type or size raise in a section.
DAMAGES = (*tensor_file.DAMAGES, UnreadableError, AttributeError, IndexError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Run:
    """Content of a run folder.

    Attributes:
        records: one per epoch, in the order of the file, without damaged ones.
        seen: tensors of evidence.safetensors, by name.
        missing: the files that are missing or damaged, one line each.
    """

    files: SavedRun
    config: dict[str, Any]
    overrides: list[str]
    identity: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    evidence: dict[str, Any]
    seen: Mapping[str, "Tensor"]
    missing: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.files.path

    @property
    def name(self) -> str:
        """Its folder in short: date and time, or the study's name and the trial's number."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def state(self) -> str:
        """complete, pruned, failed, killed, or running (the status also of a process that was killed by SIGKILL)."""
        return str(self.summary.get("state") or self.identity.get("status") or "unknown").lower()

    @property
    def student(self) -> Mapping[str, Any]:
        return mapping_at(self.summary, "student")

    @property
    def teacher(self) -> Mapping[str, Any]:
        return mapping_at(self.summary, "teacher")

    @property
    def baseline(self) -> Mapping[str, Any]:
        return mapping_at(self.summary, "baseline")

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record with the highest val/miou, first on ties; None if no epoch was validated."""
        validated = [record for record in self.records if record.get("val/miou") is not None]
        return max(validated, key=lambda record: record["val/miou"], default=None)

    @property
    def tags(self) -> Mapping[str, Any]:
        return mapping_at(self.identity, "tags")

    @property
    def commit(self) -> str | None:
        """The commit that it ran from, if known."""
        found = self.tags.get("mlflow.source.git.commit")
        return found if isinstance(found, str) and found else None

    @property
    def arguments(self) -> list[str]:
        """What follows `python train.py` in the command that trains it again."""
        typed = [line for line in self.overrides if not line.startswith("resume=")]
        return [*config_dir_arguments(self.identity.get("config_dir")), *typed]

    @property
    def learns_alone(self) -> bool:
        """Whether no term of its loss needs a teacher."""
        try:
            return not LossSettings(**self.config["loss"]).needs_teacher
        except DAMAGES:
            return False

    @property
    def class_names(self) -> list[str]:
        """Names of the labels, from the evidence or else from the figures."""
        names = self.evidence.get("class_names")
        if isinstance(names, list) and names:
            return [str(name) for name in names]
        figures = [*self.student, *self.teacher, *(self.records[-1] if self.records else ())]
        return [*dict.fromkeys(name.removeprefix("val/iou/") for name in figures if name.startswith("val/iou/"))]

    def picture(self, name: str) -> bytes | None:
        """A PNG of the folder; None if missing."""
        return self.files.picture(name)

    def text(self, name: str) -> str | None:
        """A text file of the folder; None if missing."""
        return self.files.text(name)


def is_run(path: Path) -> bool:
    return SavedRun(path).exists()


def read(path: Path) -> Run:
    """Read the folder of a run, a trial or a teacher.

    Raises:
        RunError: it is not a run folder.
    """
    files = SavedRun(path.absolute())
    if not files.exists():
        raise RunError(f"{path}: not a run folder (it has none of {', '.join(SIGNS)}); give one of runs/, or a study")
    missing = [f"{name} is missing" for name in FILES if not os.path.lexists(files / name)]

    def part(method: Callable[[], T], empty: T) -> T:
        try:
            return method()
        except UnreadableError as error:
            missing.append(f"{error.name} {error.reason}")
            return empty

    return Run(
        files=files,
        config=part(files.config, {}),
        overrides=list(map(str, part(files.overrides, []))),
        identity=part(files.identity, {}),
        records=part(lambda: _records(files, missing), []),
        summary=part(files.summary, {}),
        evidence=part(files.evidence, {}),
        seen=part(files.tensors, {}),
        missing=missing,
    )


def _records(files: SavedRun, missing: list[str]) -> list[dict[str, Any]]:
    """The records that name their number of unfrozen blocks; others are counted in `missing`."""
    damaged: list[UnreadableError] = []
    found = files.metrics(damaged)
    records = [record for record in found if isinstance(record.get("unfrozen_blocks"), int)]
    lines = len(found) + len(damaged)
    if not lines and os.path.lexists(files / "metrics.jsonl"):
        missing.append("metrics.jsonl has no complete line")
    if len(records) < lines:
        missing.append(f"{lines - len(records)} of {lines} lines of metrics.jsonl are damaged")
    return records
