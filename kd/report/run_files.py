"""A run folder as plain values, whatever state it is in: what cannot be read is named, and the rest is there.

Nothing that a folder holds is executed, unpickled or imported: JSON, YAML (safe_load), a sealed safetensors file, and
pictures that are passed on as they are where they begin as a PNG does.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from kd.errors import RunError, one_line
from kd.settings import LossWeights
from kd.system import tensor_file

LARGEST = 32 * 2**20  # bytes of a file that is read whole
PNG = b"\x89PNG\r\n\x1a\n"
SIGNS = ("config.yaml", "run.json", "metrics.jsonl", "summary.json")  # of the folder of a run
#: What reading a file of any content raises.
DAMAGES = (*tensor_file.DAMAGES, yaml.YAMLError, AttributeError, IndexError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Run:
    """What a folder says.

    Attributes:
        records: an epoch each, in the order of the file; those that are damaged are left out.
        seen: the tensors of evidence.safetensors, by name.
        missing: what is not there or cannot be read, a line each.
    """

    path: Path
    config: Mapping[str, Any]
    overrides: list[str]
    identity: Mapping[str, Any]
    records: list[dict[str, Any]]
    summary: Mapping[str, Any]
    evidence: Mapping[str, Any]
    seen: Mapping[str, Tensor]
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Where it lies, in short: its date and time, or a study's name and a trial's number."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def state(self) -> str:
        """complete, pruned, failed, killed, or running (which may also mean that its process was killed outright)."""
        return str(self.summary.get("state") or self.identity.get("status") or "unknown").lower()

    @property
    def student(self) -> Mapping[str, Any]:
        return _mapping(self.summary.get("student"))

    @property
    def teacher(self) -> Mapping[str, Any]:
        return _mapping(self.summary.get("teacher"))

    @property
    def baseline(self) -> Mapping[str, Any]:
        return _mapping(self.evidence.get("baseline"))

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record of the epoch with the highest val/miou, as far as it was looked at; the first of equals."""
        looked = [record for record in self.records if record.get("val/miou") is not None]
        return max(looked, key=lambda record: record["val/miou"], default=None)

    @property
    def tags(self) -> Mapping[str, Any]:
        return _mapping(self.identity.get("tags"))

    @property
    def commit(self) -> str | None:
        """The commit that it ran from."""
        found = self.tags.get("mlflow.source.git.commit")
        return found if isinstance(found, str) and found else None

    @property
    def learns_alone(self) -> bool:
        """Whether no term of its loss looks at a teacher."""
        try:
            return not LossWeights(**self.config["loss"]).needs_teacher
        except DAMAGES:
            return False

    @property
    def class_names(self) -> list[str]:
        """The names of the labels, from whichever file has them."""
        names = self.evidence.get("class_names")
        if isinstance(names, list) and names:
            return [str(name) for name in names]
        figures = [*self.student, *self.teacher, *(self.records[-1] if self.records else ())]
        return [*dict.fromkeys(name.removeprefix("val/iou/") for name in figures if name.startswith("val/iou/"))]

    def picture(self, name: str) -> bytes | None:
        """A PNG of the folder; None where there is none."""
        return picture_in(self.path, name)

    def text(self, name: str) -> str | None:
        """A text of the folder; None where there is none."""
        try:
            return _content(self.path / name).decode("utf-8", errors="replace")
        except OSError:
            return None


def picture_in(folder: Path, name: str) -> bytes | None:
    """A PNG of a folder, as it is; None where there is none."""
    try:
        content = _content(folder / name)
    except OSError:
        return None
    return content if content.startswith(PNG) else None


def is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in SIGNS)


def read(path: Path) -> Run:
    """Read the folder of a run, a trial or a teacher.

    Raises:
        RunError: it is none.
    """
    if not is_run(path):
        raise RunError(
            f"{path}: not the folder of a run (it has none of {', '.join(SIGNS)}); name one below runs/, or a study"
        )
    missing: list[str] = []

    def part(name: str, parse: Callable[[Path], Any], kind: type) -> Any:
        try:
            found = parse(path / name)
            if not isinstance(found, kind):
                raise ValueError(f"it should be a {kind.__name__}")
            return found
        except FileNotFoundError:
            missing.append(f"{name} is not there")
        except DAMAGES as error:
            missing.append(f"{name} is damaged ({one_line(str(error).strip() or type(error).__name__)[:200]})")
        return kind()

    return Run(
        path=path.absolute(),
        config=part("config.yaml", _yaml, dict),
        overrides=[str(line) for line in part(".hydra/overrides.yaml", _yaml, list)],
        identity=part("run.json", _json, dict),
        records=_records(part("metrics.jsonl", _content, bytes), missing),
        summary=part("summary.json", _json, dict),
        evidence=part("evidence.json", _json, dict),
        seen=part("evidence.safetensors", lambda file: tensor_file.read(file)[0], dict),
        missing=missing,
    )


def _records(text: bytes, missing: list[str]) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; a last one without its end was cut off, and is none."""
    records: list[dict[str, Any]] = []
    lines = text.split(b"\n")[:-1]
    for line in lines:
        try:
            record = json.loads(line)
            if isinstance(record["epoch"], int) and isinstance(record["unfrozen_blocks"], int):
                records.append({name: value for name, value in record.items() if _is_figure(value)})
        except DAMAGES:
            continue
    if text and not lines:
        missing.append("metrics.jsonl holds no whole line")
    if len(records) < len(lines):
        missing.append(f"{len(lines) - len(records)} of {len(lines)} lines of metrics.jsonl are damaged")
    return records


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _content(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise OSError(f"it is larger than {LARGEST} bytes")
    return path.read_bytes()


def _json(path: Path) -> Any:
    return json.loads(_content(path))


def _yaml(path: Path) -> Any:
    return yaml.safe_load(_content(path))
