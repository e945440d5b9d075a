"""The rank of this process, and what all but the first leave undone."""

import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from kd.errors import ConfigError
from kd.system.launch import (
    NEEDED,
    Rank,
    current_rank,
    folder_of_this_process,
    hush,
    refuse_a_study,
    refuse_separate_tasks,
    throw_folder_away,
)

SECOND_OF_FOUR = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture
def second(monkeypatch):
    for name, value in SECOND_OF_FOUR.items():
        monkeypatch.setenv(name, value)


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in NEEDED:
        monkeypatch.delenv(name, raising=False)
    assert current_rank() == Rank(0, 1, 0, 1)


def test_the_rank_is_read_from_torchruns_variables(second):
    assert current_rank() == Rank(rank=1, size=4, local_rank=1, local_size=2)


@pytest.mark.parametrize("name", NEEDED)
def test_an_incomplete_environment_means_one_process(name, second, monkeypatch):
    monkeypatch.delenv(name)
    assert current_rank() == Rank()


def test_a_submitit_job_with_one_task_ignores_torchruns_variables(second, monkeypatch):
    for name, value in {"EXECUTOR": "local", "LOCAL_NTASKS": "1", "LOCAL_JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    assert current_rank() == Rank()


def test_the_tasks_of_a_submitit_job_are_its_processes(second, monkeypatch):
    tasks = {"EXECUTOR": "local", "LOCAL_NTASKS": "3", "LOCAL_JOB_ID": "7", "LOCAL_GLOBALID": "2", "LOCAL_LOCALID": "2"}
    for name, value in tasks.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    assert current_rank() == current_rank() == Rank(rank=2, size=3, local_rank=2, local_size=3)


STEP = {
    "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x2),3", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}  # fmt: skip


@pytest.fixture
def task(monkeypatch):
    """A task of a Slurm step without a meeting point."""
    for name in NEEDED:
        monkeypatch.setenv(name, "")  # so that what is set in the test is undone
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in NEEDED:
        monkeypatch.delenv(name)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)


def test_tasks_of_srun_that_would_train_alone_are_refused(task):
    with pytest.raises(ConfigError, match=r"^srun has started 7 tasks, each of which would train alone: to train"):
        refuse_separate_tasks(["train.py"])
    refuse_separate_tasks(["train.py", "-m"])  # workers of one study


def test_tasks_of_srun_that_know_where_to_meet_train_together(task, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert current_rank() == current_rank() == Rank(rank=5, size=7, local_rank=1, local_size=3)
    refuse_separate_tasks(["train.py"])


def test_tasks_of_srun_may_be_separate_on_demand(task, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_separate_tasks(["train.py"])
    assert current_rank() == Rank()


def test_a_single_task_of_srun_is_alone(task, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    refuse_separate_tasks(["train.py"])
    assert current_rank() == Rank()


def test_only_the_first_process_uses_the_run_folder(second, monkeypatch):
    own = Path(folder_of_this_process("runs/mine"))
    assert own.parent == Path(tempfile.gettempdir())
    monkeypatch.setenv("RANK", "0")
    assert folder_of_this_process("runs/mine") == "runs/mine"


def test_the_folder_of_another_process_is_deleted(second):
    own = Path(folder_of_this_process("runs/mine"))
    own.mkdir()
    (own / "train.log").write_text("said")
    throw_folder_away()
    assert not own.exists()


def test_the_first_process_keeps_its_folder(second, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.chdir(tmp_path)
    Path(folder_of_this_process("mine")).mkdir()
    throw_folder_away()
    assert Path("mine").exists()


def test_other_processes_print_nothing(second, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with warnings.catch_warnings(record=True) as heard:
        hush()
        print("epoch 1")
        warnings.warn("slow", stacklevel=1)
        sys.stdout.close()
    assert not heard
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_study_in_several_processes_is_refused(flag, second):
    with pytest.raises(
        ConfigError, match=r"^-m was started in 4 processes.*hydra\.launcher\.tasks_per_node=2"
    ) as raised:
        refuse_a_study(["train.py", flag, "sweeps=ablation"])
    assert "\n" not in str(raised.value)


def test_several_processes_may_train_and_one_may_run_a_study(second, monkeypatch):
    refuse_a_study(["train.py", "data=folder"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_a_study(["train.py", "-m"])
