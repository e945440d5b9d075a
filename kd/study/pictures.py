"""A study's plots: pictures of our own (`plots`), and Optuna's interactive pages of the same names."""

import logging
import warnings
from pathlib import Path
from typing import Any

import optuna.visualization as pages
from optuna import Study
from optuna.importance import BaseImportanceEvaluator

from kd.study.plots import DRAWINGS
from kd.study.results import Results
from kd.system.files import write_atomically

log = logging.getLogger(__name__)


def draw(results: Results, folder: Path) -> list[str]:
    """Draw the plots that a study has enough trials for, as <name>.html and most as <name>.png; returns their names.

    The pages share one plotly.min.js, so that they open offline.
    """
    drawn = [name for name, arguments in _plots(results).items() if _draw(name, arguments, results, folder)]
    if drawn:
        _share_plotly(folder)
    return drawn


def _draw(name: str, arguments: dict[str, Any], results: Results, folder: Path) -> bool:
    """Draw one plot in both formats. A plot that cannot be drawn only logs a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name in DRAWINGS:
                DRAWINGS[name](results, folder / f"{name}.png")
            figure = getattr(pages, f"plot_{name}")(results.study, **arguments)
        write_atomically(folder / f"{name}.html", lambda path: _page(figure, path))
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        log.warning("the plot %s could not be drawn (%s)", name, error)
        return False
    return True


def _plots(results: Results) -> dict[str, dict[str, Any]]:
    """The plots that a study has enough trials for, {name: arguments}."""
    if not results.complete:
        return {"timeline": {}} if results.trials else {}
    objectives = list(results.space.objectives)
    if len(objectives) > 1:
        front = {"target_names": objectives} if len(objectives) <= 3 else None
        return {"timeline": {}, **({"pareto_front": front} if front else {})}
    named = {"target_name": objectives[0]}
    plots: dict[str, dict[str, Any]] = {"optimization_history": named, "timeline": {}}
    if any(trial.intermediate_values for trial in results.trials):
        plots["intermediate_values"] = {}
    if results.space.searched:
        plots |= {"slice": named, "parallel_coordinate": named}
    if results.importances:
        plots["param_importances"] = named | {"evaluator": _Known(results.importances)}
    return plots


class _Known(BaseImportanceEvaluator):
    """Importances that are computed already: fANOVA takes 10 s for a thousand trials."""

    def __init__(self, shares: dict[str, float]) -> None:
        self.shares = shares

    def evaluate(self, study: Study, params: list[str] | None = None, **_: Any) -> dict[str, float]:
        return self.shares


def _page(figure: Any, path: Path) -> None:
    figure.write_html(path, include_plotlyjs="plotly.min.js", full_html=True)


def _share_plotly(folder: Path) -> None:
    from plotly.offline import get_plotlyjs

    script = folder / "plotly.min.js"
    if not script.exists():
        write_atomically(script, lambda path: path.write_text(get_plotlyjs(), encoding="utf-8"))
