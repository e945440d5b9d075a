"""A run that is no trial; light, since every run imports it (no optuna)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class NoTrial:
    """A run that belongs to no study: nobody is told, nothing is pruned."""

    pruned = False
    predecessor: Path | None = None  # the folder of an earlier attempt that was cut off
    tags: Mapping[str, str] = {}

    def report(self, value: float | None, trained: int, planned: int) -> bool:
        """Tell what `trained` of `planned` epochs brought; True where the run should stop."""
        return False

    def note(self, facts: Mapping[str, Any]) -> None:
        """Keep facts beside the trial."""

    def finish(self, objectives: Mapping[str, float]) -> None:
        """Tell the result."""
