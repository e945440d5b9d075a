"""What is generated into a study's folder from its database, and generated again if it is missing.

trials.csv                  one row per trial; while the study runs, those of trials that end are appended
experiment/best.yaml        the best trial as a recipe: python train.py --config-dir <this folder> experiment=best
sweeps/winner.yaml          the best trial over seeds: python train.py -m --config-dir <this folder> sweeps=winner
<group>/<option>.yaml       the option files of the study's own --config-dir that these recipes name
plots/                      optuna's plots, each as PNG and HTML
"""

from pathlib import Path

from optuna.trial import FrozenTrial

from kd.config.compose import CONF
from kd.study.hydra_options import overrides_as_values
from kd.study.origin import Origin
from kd.study.recipe import recipe, winner_study
from kd.study.results import Results, line, table
from kd.system.files import write_atomically
from kd.system.untrusted import check_below

TABLE = "trials.csv"
MADE = ("experiment", "sweeps", "plots")  # folders beside the trials'


def write(results: Results, path: Path, draw: bool = True) -> list[str]:
    """Write the table, recipes and plots of a study into its folder; returns the names of the plots."""
    winners = _winners(results)
    options = Origin.read(results.study).options if winners else {}
    for place in (*(path / name / "any" for name in MADE), *(path / name for name in options)):
        check_below(path, place)
    write_table(results, path)
    for name, text in options.items():
        _write(path / f"{name}.yaml", text)
    for name, trial in winners.items():
        _write(path / "experiment" / f"{name}.yaml", recipe_of(results, trial))
    if "best" in winners and results.trivial is None:
        seed = int(results.space.config.get("seed", 0))
        _write(path / "sweeps" / "winner.yaml", winner_study(results.name, as_typed(path), seed))
    if not draw:
        return []
    from kd.study import pictures  # heavy: optuna's importances bring scikit-learn

    return pictures.draw(results, path / "plots")


def write_table(results: Results, path: Path, ended: int | None = None) -> None:
    """Write the table, or append the trial that `ended` to it."""
    file = path / TABLE
    if ended is None or file.is_symlink() or not file.is_file():
        _write(file, table(results))
    else:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(line(results, ended))


def _winners(results: Results) -> dict[str, FrozenTrial]:
    """The trials to write as recipes, by name: the best one; with several objectives, the Pareto front."""
    has_recipe = ("experiment", "best") in overrides_as_values(results.space.fixed)  # a winner's study over seeds
    if not results.best or has_recipe:
        return {}
    single = len(results.space.objectives) == 1
    names = {"best": results.best[0]} if single else {f"best_{trial.number}": trial for trial in results.best}
    used = Origin.read(results.study).options  # no recipe takes the name of one that it is made of
    return {name: trial for name, trial in names.items() if f"experiment/{name}" not in used}


def recipe_of(results: Results, trial: FrozenTrial) -> str:
    """A trial as a recipe: its study's fixed overrides and its own parameters."""
    values = zip(results.space.objectives, trial.values or (), strict=True)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values)
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra", "sweeps"}
    overrides = [
        (key, value)
        for key, value in overrides_as_values(results.space.overrides(trial.params))
        if not key.startswith(("sweeps", "hydra"))
    ]
    no_better = "" if results.trivial is None else f" A trivial prediction has {results.trivial:.4f}."
    return recipe(f"Trial {trial.number} of study {results.name}: {shown}.{no_better}", overrides, groups)


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def as_typed(path: Path) -> str:
    """A path as a user would type it: relative if it is below the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
