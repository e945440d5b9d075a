"""What a run leaves behind: one folder, written first and whole; everything else is a mirror of it.

config.yaml           the composed configuration, every interpolation resolved
metrics.jsonl         one line per epoch
student.safetensors   the best student, with student.json beside it (teacher.* in a teacher's folder)
summary.json          the best epoch, the final table, test figures, cost
timeline.png  curves.png  predictions.png
"""

import json
from pathlib import Path
from typing import Any

import yaml

from kd.files import finite, write_atomically, write_json


class RunFolder:
    """The files of one run under `path`, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write_config(self, config: dict[str, Any]) -> None:
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        write_atomically(self / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one epoch's line."""
        with (self / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), allow_nan=False) + "\n")

    def forget_metrics(self) -> None:
        """Drop the lines of an earlier attempt that did not finish."""
        (self / "metrics.jsonl").unlink(missing_ok=True)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines written so far, one per epoch."""
        path = self / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_json(self / "summary.json", summary)
