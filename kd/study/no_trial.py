"""The null object for a run that is not a trial. Every run imports it, so it must not import optuna."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class NoTrial:
    """A run outside any study: nothing is reported or pruned."""

    pruned = False
    predecessor: Path | None = None  # the run folder of the interrupted attempt that this one continues
    tags: Mapping[str, str] = {}

    def report(self, value: float | None, trained: int, planned: int) -> bool:
        """Report the objective after `trained` of `planned` epochs; returns whether the trial is pruned."""
        return False

    def note(self, facts: Mapping[str, Any]) -> None:
        """Store facts with the trial."""

    def finish(self, objectives: Mapping[str, float]) -> None:
        """Report the final objectives."""
