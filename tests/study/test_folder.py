"""A study's folder: table, recipes and plots; `kd study`; and its parent run with children in MLflow."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import optuna
import program
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from safetensors.torch import load_file

from kd.cli import main as kd

NAME, WINNER = "temperature_unfreeze", "temperature_unfreeze-winner"
SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=16", "data.val=8", "data.test=8", "trainer.batch_size=8",
    "trainer.epochs=3", "trainer.device=cpu", "loss=hard_only", "schedule.initial=4.0", "schedule.final=1.0",
    "unfreeze.start_epoch=1", "unfreeze.rate=1", "optimizer.encoder_lr_scale=0.3", "loss.gamma=0.5",
    "optimizer.weight_decay=0.01",
]  # fmt: skip
#: A grid whose second and fourth cell hardly learn, so that they are pruned.
CELLS = [
    "hydra/sweeper/sampler=grid", "schedule=choice(linear,cosine)", "optimizer.lr=choice(2.0e-2,1.0e-6)",
    "hydra.sweeper.pruner.min_resource=1",
]  # fmt: skip
SEARCHED = ("schedule", "optimizer.lr")


def train(root: Path, *arguments: str) -> SimpleNamespace:
    done = program.train(root, *arguments)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(out=done.stdout, err=done.stderr)


def folder_of(root: Path) -> Path:
    return root / "runs" / "studies" / NAME


def the_study(root: Path, name: str = NAME) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{root}/runs/studies/studies.db")


def best(root: Path) -> FrozenTrial:
    complete = [trial for trial in the_study(root).get_trials() if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value, -trial.number))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def store(root: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")


def runs(root: Path) -> dict[str, mlflow.entities.Run]:
    experiment = store(root).get_experiment_by_name("kd-sweeper")
    return {run.info.run_id: run for run in store(root).search_runs([experiment.experiment_id])}


def points(root: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in store(root).get_metric_history(run_id, name))


def expected_points(root: Path, state: TrialState) -> list[tuple[int, float]]:
    return [(trial.number, trial.value) for trial in the_study(root).get_trials() if trial.state == state]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def half(home):
    """The first two of four trials."""
    train(home, "-m", *SMALL, *CELLS, "hydra.sweeper.n_trials=2")
    parent = the_study(home).user_attrs["mlflow_run"]
    return SimpleNamespace(
        parent=parent,
        complete=points(home, parent, "val/miou"),
        pruned=points(home, parent, "val/miou_pruned"),
        expected=[expected_points(home, state) for state in (TrialState.COMPLETE, TrialState.PRUNED)],
    )


@pytest.fixture(scope="module")
def whole(home, half):
    """All four trials of that study."""
    train(home, "-m", *SMALL, *CELLS, "hydra.sweeper.n_trials=4")
    return folder_of(home)


@pytest.fixture(scope="module")
def again(home, whole):
    """The best recipe trained once more, and the winner's study with one of its seeds."""
    found = train(home, "--config-dir", str(whole), "experiment=best", "tracking=none")
    train(home, "-m", "--config-dir", str(whole), "sweeps=winner", "hydra.sweeper.n_trials=1", "tracking=none")
    return Path(re.search(r"^run +(\S+)$", found.out, re.MULTILINE).group(1))


@pytest.fixture
def here(home, whole, monkeypatch):
    """`kd` looks at this study's project."""
    monkeypatch.setenv("KD_ROOT", str(home))
    monkeypatch.delenv("KD_STORAGE", raising=False)
    return home


# the folder


def test_a_study_of_good_and_bad_cells_completes_and_prunes_them(home, whole):
    states = [trial.state for trial in the_study(home).get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED] * 2


def test_the_table_says_what_the_database_says(home, whole):
    trials = the_study(home).get_trials()
    assert len(rows(whole)) == len(trials)
    for row, trial in zip(rows(whole), trials, strict=True):
        assert (int(row["trial"]), row["state"]) == (trial.number, trial.state.name.lower())
        assert float(row["val/miou"]) == trial.value
        assert {name: row[name] for name in SEARCHED} == {name: str(trial.params[name]) for name in SEARCHED}
        assert int(row["epochs"]) == len(trial.intermediate_values) == trial.user_attrs["epochs"]
        assert int(row["planned_epochs"]) == 3
        assert row["run_folder"] == str(whole / row["trial"])
        assert row["mlflow_run"] == trial.user_attrs["mlflow_run"]
        assert (row["failure"], row["retry_of"]) == ("", "")


def test_the_table_says_what_the_run_folders_say(whole):
    for row in rows(whole):
        summary = json.loads((whole / row["trial"] / "summary.json").read_text())
        assert summary["state"] == row["state"]
        assert summary["objective"] == {"val/miou": float(row["val/miou"])}
        if row["state"] == "complete":
            assert summary["student"]["test/miou"] == float(row["student/test/miou"])


def test_the_best_recipe_names_the_choices_of_the_best_trial(home, whole):
    recipe = yaml.safe_load((whole / "experiment" / "best.yaml").read_text())
    assert {"override /schedule": best(home).params["schedule"]} in recipe["defaults"]
    assert {"override /loss": "hard_only"} in recipe["defaults"]
    assert recipe["optimizer"]["lr"] == best(home).params["optimizer.lr"]
    assert recipe["data"]["image_size"] == [32, 32]


def test_the_best_recipe_gives_the_best_student_again(home, whole, again):
    trial = best(home)
    summary = json.loads((again / "summary.json").read_text())
    assert summary["objective"] == {"val/miou": trial.value}
    assert summary["student"]["test/miou"] == trial.user_attrs["test/miou"]
    one, other = (load_file(path / "student.safetensors") for path in (again, whole / str(trial.number)))
    assert all(one[name].equal(other[name]) for name in one)


def test_the_winners_study_trains_the_best_recipe_with_another_seed(home, whole, again):
    (trial,) = the_study(home, WINNER).get_trials(states=(TrialState.COMPLETE,))
    assert trial.params == {"seed": 1}
    config = yaml.safe_load((Path(trial.user_attrs["run_folder"]) / "config.yaml").read_text())
    original = yaml.safe_load((whole / str(best(home).number) / "config.yaml").read_text())
    assert config["seed"] == 1
    assert {key for key in original if config[key] != original[key]} == {"seed", "tracking"}


def test_plots_are_pictures_and_pages_that_open_offline(whole):
    pictures, pages = (sorted((whole / "plots").glob(f"*.{suffix}")) for suffix in ("png", "html"))
    assert {path.stem for path in pictures} == {path.stem for path in pages} - {"parallel_coordinate"}
    assert {path.stem for path in pictures} >= {"optimization_history", "timeline", "intermediate_values", "slice"}
    for path in pictures:
        with Image.open(path) as picture:
            picture.verify()
    for path in pages:
        text = path.read_text()
        assert re.findall(r'<(?:script|link)[^>]*(?:src|href)="([^"]*)"', text) == ["plotly.min.js"]
    assert (whole / "plots" / "plotly.min.js").stat().st_size


def test_nothing_unfinished_is_left_in_a_study_folder(whole):
    numbers = {str(number) for number in range(4)}
    assert {path.name for path in whole.iterdir()} == {*numbers, "trials.csv", "experiment", "sweeps", "plots"}


# kd study


def test_kd_study_shows_the_best_trials_and_what_pruning_saved(here, capsys):
    kd(["study", NAME, "--no-files"])
    shown = capsys.readouterr().out
    assert f"{best(here).value:.4f}" in shown
    trained = sum(trial.user_attrs["epochs"] for trial in the_study(here).get_trials())
    assert f"{trained} trained of 12 without pruning" in shown
    assert "2 complete, 2 pruned" in shown


def test_kd_study_without_a_name_lists_every_study(here, again, capsys):
    kd(["study"])
    shown = capsys.readouterr().out
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.count("│") > 4}
    assert lines.keys() == {NAME, WINNER}
    assert f"{best(here).value:.4f}" in lines[NAME]


def test_kd_study_compares_two_studies(here, again, capsys):
    kd(["study", NAME, "--against", WINNER, "--no-files"])
    shown = capsys.readouterr().out
    one, other = best(here).value, the_study(here, WINNER).best_value
    for figure in (f"{one:.4f}", f"{other:.4f}", f"{one - other:+.4f}"):
        assert figure in shown
    assert "differs  finished trials: 4 against 1" in shown


@pytest.mark.parametrize("asked", [["temperature_unfreze"], [NAME, "--against", "temperature_unfreze"]])
def test_kd_study_with_an_unknown_name_suggests_the_closest_in_one_line(here, again, capsys, asked):
    with pytest.raises(SystemExit) as refused:
        kd(["study", *asked])
    assert refused.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is no study 'temperature_unfreze'")
    assert f"'{NAME}'" in line


def test_kd_study_without_any_study_says_how_to_start_one(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("KD_STORAGE", raising=False)
    with pytest.raises(SystemExit) as refused:
        kd(["study", NAME])
    assert refused.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is no study yet")
    assert list(tmp_path.iterdir()) == []


def test_kd_study_restores_a_missing_or_damaged_folder(whole, again, home, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "studies").mkdir(parents=True)
    shutil.copy(home / "runs" / "studies" / "studies.db", tmp_path / "runs" / "studies")
    monkeypatch.delenv("KD_STORAGE", raising=False)
    folder = folder_of(tmp_path)
    kept = [file.relative_to(whole) for name in ("experiment", "plots") for file in (whole / name).iterdir()]
    kd(["study", NAME, "--no-files"])
    assert not folder.exists()
    kd(["study", NAME])
    assert all((folder / file).stat().st_size for file in kept)
    assert rows(folder) == rows(whole)
    for name in ("trials.csv", "experiment/best.yaml"):
        (folder / name).write_text("broken")
    kd(["study", NAME])
    for name in ("trials.csv", "experiment/best.yaml"):
        assert (folder / name).read_text() == (whole / name).read_text()


# MLflow


def test_every_trial_is_a_child_of_the_studys_run(home, whole, half):
    found = {trial.user_attrs["mlflow_run"]: trial for trial in the_study(home).get_trials()}
    children = {key: run for key, run in runs(home).items() if run.data.tags.get("mlflow.parentRunId") == half.parent}
    assert children.keys() == found.keys()
    for run_id, trial in found.items():
        assert children[run_id].data.tags["trial"] == str(trial.number)
        assert children[run_id].data.tags["state"] == trial.state.name.lower()
        last = json.loads((whole / str(trial.number) / "metrics.jsonl").read_text().splitlines()[-1])
        assert children[run_id].data.metrics["val/miou"] == last["val/miou"]


def test_all_sweepers_of_a_study_share_its_parent_run(home, whole, half):
    assert the_study(home).user_attrs["mlflow_run"] == half.parent
    assert [key for key, run in runs(home).items() if run.data.tags["role"] == "study"] == [half.parent]
    pruned = {run.info.run_id for run in runs(home).values() if run.data.tags.get("state") == "pruned"}
    assert pruned
    assert {key: run.info.status for key, run in runs(home).items()} == {
        key: "KILLED" if key in pruned else "FINISHED" for key in runs(home)
    }


def test_the_studys_run_has_a_point_for_every_finished_trial(home, whole, half):
    assert [half.complete, half.pruned] == half.expected
    assert points(home, half.parent, "val/miou") == expected_points(home, TrialState.COMPLETE)
    assert points(home, half.parent, "val/miou_pruned") == expected_points(home, TrialState.PRUNED)


def test_the_studys_run_has_its_best_trial_and_its_counts(home, whole, half):
    trials, found = the_study(home).get_trials(), runs(home)[half.parent].data.metrics
    assert (found["best/val/miou"], found["best_trial"]) == (
        the_study(home).best_value,
        the_study(home).best_trial.number,
    )
    counted = {state: sum(trial.state.name.lower() == state for trial in trials) for state in ("complete", "pruned")}
    assert counted["complete"] + counted["pruned"] == 4
    assert {name: found[f"trials/{name}"] for name in (*counted, "failed")} == {**counted, "failed": 0}
    assert points(home, half.parent, "trials/failed")[-1][0] == 4


def test_a_trials_run_is_named_by_its_number(home, whole, half):
    children = [run for run in runs(home).values() if run.data.tags.get("mlflow.parentRunId") == half.parent]
    assert sorted(run.info.run_name for run in children) == [f"trial {number}" for number in range(4)]


def test_the_studys_run_has_its_search_space_and_results(home, whole, half):
    run = runs(home)[half.parent]
    assert run.data.params["space.schedule"] == "choice(linear,cosine)"
    assert "loss=hard_only" in run.data.params["fixed"]
    kept = {artifact.path for artifact in store(home).list_artifacts(half.parent)}
    assert kept >= {"trials.csv", "best.yaml", "plots"}
    plots = {artifact.path for artifact in store(home).list_artifacts(half.parent, "plots")}
    assert plots == {f"plots/{path.name}" for path in (whole / "plots").glob("*.png")}
