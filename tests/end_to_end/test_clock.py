"""A clock that jumps by an hour changes nothing that a run or a study computes."""

import itertools
import json
import time

import program
import pytest

pytestmark = pytest.mark.slow

TINY = [
    "backbone=tiny", "loss=hard_only", "data.image_size=[32,32]", "data.train=8", "data.val=4", "data.test=4",
    "trainer.batch_size=4", "trainer.device=cpu", "pictures=false",
]  # fmt: skip
OF_THE_CLOCK = {"time", "seconds", "seconds_waiting", "images_per_second"}


def jump() -> None:
    """Make this process's clock jump at every look at it: an hour forward, an hour back."""
    real, offsets = time.time, itertools.cycle([0, 3600, 0, -3600])
    time.time = lambda: real() + next(offsets)


def results(run):
    """A run's figures and the digest of its student."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [{name: value for name, value in line.items() if name not in OF_THE_CLOCK} for line in lines]
    return figures, (run / "student.safetensors").read_bytes()


def test_a_run_computes_the_same_whatever_the_clock_does_and_all_of_it_reaches_mlflow(tmp_path):
    from mlflow import MlflowClient

    runs = []
    for name, before in (("steady", ()), ("jumping", (jump,))):
        folder = tmp_path / "runs" / name / "run"
        options = ["unfreeze=all", "trainer.epochs=3", "trainer.checkpoint_minutes=1", f"hydra.run.dir={folder}"]
        program.train(tmp_path, *TINY, *options, before=before).check_returncode()
        runs.append(folder)
    assert results(runs[0]) == results(runs[1])

    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'kd-sweeper'")
    found = client.search_runs([experiment.experiment_id], "tags.role = 'student'")
    assert [run.info.status for run in found] == ["FINISHED"] * 2
    for run in found:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/miou")]
        assert sorted(steps) == [0, 1, 2]


def test_a_study_loses_no_trial_whatever_the_clock_does(tmp_path):
    study = ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=3"]
    plan = ["sweeps=no_teacher", "trainer.epochs=1", "unfreeze.start_epoch=0", "unfreeze.rate=1", "tracking=none"]
    done = program.train(tmp_path, "-m", *TINY, *plan, *study, before=(jump,))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("summary.json"))) == 3
    trials = next(tmp_path.rglob("trials.csv")).read_text()
    assert trials.count(",complete,") == 3
    assert "failed" not in trials
