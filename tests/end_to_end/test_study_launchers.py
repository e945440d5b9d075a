"""Studies whose trials run in processes of their own: joblib, submitit and ray, with workers that die or hang.

Each process imports everything from nothing, so that most of them are slow.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import mlflow
import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from kd.config.compose import PROJECT
from kd.study import worker
from kd.study.ledger import FINISHED, failure, history

NAME = "temperature_unfreeze"
SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=16", "data.val=8", "data.test=8", "trainer.batch_size=8",
    "trainer.epochs=3", "trainer.device=cpu", "loss=hard_only", "schedule=choice(linear,cosine)", "schedule.final=1.0",
    "unfreeze.start_epoch=1", "unfreeze.rate=1", "hydra/sweeper/pruner=none", "pictures=false",
    "loss.gamma=0.5", "optimizer.lr=0.001", "optimizer.weight_decay=0.01",
]  # fmt: skip
UNSEEN = "tracking=none"
LONG = ["trainer.epochs=6", "data.train=64"]  # for trials that are to be caught in their middle
JOBLIB = ["hydra/launcher=joblib", "hydra.sweeper.n_jobs=2"]


def begin(root: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(PROJECT / "train.py"), "-m", *SMALL, *overrides]
    env = {**os.environ, "KD_ROOT": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes)


def ended(process: subprocess.Popen) -> SimpleNamespace:
    try:
        out, err = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    return SimpleNamespace(pid=process.pid, out=out, err=err)


def folder(root: Path) -> Path:
    return root / "runs" / "studies" / NAME


def the_study(root: Path) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=f"sqlite:///{root}/runs/studies/studies.db")


def trials(root: Path) -> list[FrozenTrial]:
    return the_study(root).get_trials()


def finished(root: Path) -> list[FrozenTrial]:
    return [trial for trial in trials(root) if trial.state in FINISHED]


def begun(trial: FrozenTrial) -> bool:
    return "mlflow_run" in trial.user_attrs


def pids(found: list[FrozenTrial]) -> list[int]:
    return [trial.user_attrs["worker"]["pid"] for trial in found]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_training(root: Path) -> list[FrozenTrial]:
    """The trials from a number on that are under way in the database and have an epoch in their folder."""
    if not (root / "runs" / "studies" / "studies.db").exists() or not any(folder(root).glob("*/metrics.jsonl")):
        return []
    return [
        trial
        for trial in trials(root)
        if trial.state == TrialState.RUNNING and (folder(root) / str(trial.number) / "metrics.jsonl").exists()
    ]


def another_in_training(root: Path, process: subprocess.Popen, *known: FrozenTrial) -> FrozenTrial:
    """A trial that has an epoch behind it, and most of them before it; none of those that are known."""
    found: list[FrozenTrial] = []

    def happened() -> bool:
        numbers = [trial.number for trial in known]
        found.extend(trial for trial in in_training(root) if trial.number not in numbers)
        return bool(found)

    wait_until(happened, process)
    return found[0]


def is_over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_every_failed_trial_ran_again(found: list[FrozenTrial]) -> None:
    """With its own parameters and under one new number, until it was finished."""
    repeated = [history(trial)[-1] for trial in found if history(trial)]
    assert sorted(repeated) == [trial.number for trial in found if trial.state == TrialState.FAIL]
    for trial in found:
        if history(trial):
            assert trial.params == found[history(trial)[-1]].params


# joblib


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A study in MLflow: one worker is killed in the middle of a trial, another stops, and neither ends nor answers."""
    root = tmp_path_factory.mktemp("troubled")
    silence = ["hydra.sweeper.heartbeat_interval=1", "hydra.sweeper.grace_period=20"]
    process = begin(root, *JOBLIB, *LONG, *silence, "hydra.sweeper.n_trials=2")
    lost = another_in_training(root, process)
    os.kill(lost.user_attrs["worker"]["pid"], signal.SIGKILL)
    hanging = another_in_training(root, process, lost)
    stop_between_writes(root, hanging.user_attrs["worker"]["pid"])
    return SimpleNamespace(root=root, lost=lost, hanging=hanging, done=ended(process))


def stop_between_writes(root: Path, pid: int) -> None:
    """Stop a process where it holds no lock of a database, which no other process could ever take from it."""
    databases = [root / "runs" / "studies" / "studies.db", root / "mlruns" / "mlflow.db"]
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            for path in databases:
                with closing(sqlite3.connect(path, timeout=2)) as database:
                    database.execute("BEGIN EXCLUSIVE")
            return
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_joblib_runs_trials_in_several_processes_of_its_own(troubled):
    found = pids([trial for trial in trials(troubled.root) if begun(trial)])  # a trial's own, once it has begun
    assert len({*found, troubled.done.pid}) >= 3
    assert troubled.done.pid not in found


@pytest.mark.slow
def test_a_study_survives_the_death_of_one_of_its_workers(troubled):
    lost = trials(troubled.root)[troubled.lost.number]
    assert lost.state == TrialState.FAIL
    assert failure(lost)["kind"] == "lost"
    assert "Traceback" not in troubled.done.err


@pytest.mark.slow
def test_the_trial_of_a_hanging_worker_is_retried(troubled):
    assert trials(troubled.root)[troubled.hanging.number].state == TrialState.FAIL
    assert len(finished(troubled.root)) == 2
    assert_every_failed_trial_ran_again(trials(troubled.root))


@pytest.mark.slow
def test_a_hanging_worker_is_killed_by_its_study(troubled):
    assert is_over(troubled.hanging.user_attrs["worker"]["pid"])


@pytest.mark.slow
def test_no_trial_of_a_troubled_study_shares_a_folder(troubled):
    told = [trial.user_attrs["run_folder"] for trial in trials(troubled.root) if "run_folder" in trial.user_attrs]
    assert len(told) == len(set(told))
    assert all(
        trial.user_attrs["run_folder"] == str(folder(troubled.root) / str(trial.number))
        for trial in finished(troubled.root)
    )


@pytest.mark.slow
def test_trials_of_other_processes_are_children_of_the_study_in_mlflow(troubled):
    client = mlflow.MlflowClient(f"sqlite:///{troubled.root}/mlruns/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("kd-sweeper").experiment_id])
    parent = the_study(troubled.root).user_attrs["mlflow_run"]
    children = {run.info.run_id: run for run in runs if run.info.run_id != parent}
    by_child = {trial.user_attrs["mlflow_run"]: trial for trial in trials(troubled.root) if begun(trial)}
    assert children.keys() == by_child.keys()
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent}
    for run_id, trial in by_child.items():
        assert children[run_id].info.status == ("FINISHED" if trial.state in FINISHED else "KILLED")
    assert client.get_run(parent).info.status == "FINISHED"
    shown = sorted((point.step, point.value) for point in client.get_metric_history(parent, "val/miou"))
    assert shown == [(trial.number, trial.value) for trial in finished(troubled.root)]


# submitit and ray


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    root = tmp_path_factory.mktemp("submitted")
    tasks = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    done = ended(begin(root, *tasks, UNSEEN, "hydra.sweeper.n_trials=1"))
    return SimpleNamespace(root=root, done=done)


@pytest.mark.slow
def test_submitit_runs_a_trial_in_processes_of_its_own(submitted):
    assert [trial.state for trial in trials(submitted.root)] == [TrialState.COMPLETE]
    assert submitted.done.pid not in pids(trials(submitted.root))


@pytest.mark.slow
def test_the_tasks_of_a_trial_train_it_together(submitted):
    """Apart, each would run the trial as its own, and the second would find its folder held."""
    logs = sorted((folder(submitted.root) / ".submitit").glob("*/*_log.out"))
    assert [log.stem.split("_")[1] for log in logs] == ["0", "1"]
    for log in logs:
        assert "completed successfully" in log.read_text()
        assert ("run      " in log.read_text()) == log.stem.endswith("_0_log")


@pytest.mark.slow
def test_submitits_files_are_in_the_study_folder(submitted):
    assert {path.name for path in submitted.root.iterdir()} == {"runs"}
    numbers = [path.name for path in folder(submitted.root).iterdir() if path.name.isdigit()]
    assert numbers == ["0"]


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    root = tmp_path_factory.mktemp("remote")
    pytest.importorskip("ray")
    ray = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=1"]
    return SimpleNamespace(root=root, done=ended(begin(root, *ray, UNSEEN, "hydra.sweeper.n_trials=1")))


@pytest.mark.slow
def test_ray_runs_trials_in_processes_of_its_own(remote):
    assert [trial.state for trial in trials(remote.root)] == [TrialState.COMPLETE]
    assert remote.done.pid not in pids(trials(remote.root))


# who is dead


def test_a_change_of_the_clock_ends_no_worker(monkeypatch):
    """Start times are reckoned from the clock, which a time server moves by a second now and then."""
    known, start = worker.this_process(), psutil.Process.create_time
    for seconds in (-2, -1, 1, 2):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self, by=seconds: start(self) + by)
        assert not worker.has_ended(known)
