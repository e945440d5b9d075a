"""`make gpu`: whatever becomes of an item, there is a line of it and the others run; every item runs on a CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import program
import psutil
import pytest

from benchmarks import gpu
from benchmarks.on_gpu import predicted, wheels
from benchmarks.on_gpu.supervise import Item, On, _function, run
from kd.config.compose import PROJECT

QUICK = ("machine", "batch_norm")  # and `teacher`, below


def settles(on: On) -> None:
    on.note(answer=42)
    on.check("it holds", True)


def is_wrong(on: On) -> None:
    on.check("it holds", True)
    on.check("this does not", False)


def fails(on: On) -> None:
    on.note(before=1)
    raise ValueError("no such number\nand more")


def crashes(on: On) -> None:
    on.note(before=1)
    os.abort()


def hangs(on: On) -> None:
    on.note(child=subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
    time.sleep(600)


def sees(on: On) -> None:
    on.note(seen=on.found["settles"]["answer"])


def over(pid: int) -> bool:
    """Whether a process has ended, or is left for its parent to take note of."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def item(function, limit: float = 60.0) -> Item:
    return Item(function.__name__, f"{__name__}:{function.__name__}", limit)


def line(function, tmp_path, limit: float = 60.0) -> dict:
    return run(item(function, limit), True, tmp_path, {}, limit)


# supervision


def test_an_item_that_comes_to_its_end_is_ok_where_all_its_checks_hold(tmp_path):
    found = line(settles, tmp_path)
    assert (found["status"], found["figures"]["answer"], found["checks"]) == ("ok", 42, {"it holds": True})
    assert line(is_wrong, tmp_path)["status"] == "wrong"


def test_what_an_item_raises_is_told_with_what_it_had_found(tmp_path):
    found = line(fails, tmp_path)
    assert (found["status"], found["error"]) == ("failed", "ValueError: no such number")
    assert found["figures"]["before"] == 1
    assert "Traceback" in found["log"]


def test_a_crash_is_told_with_what_the_item_had_found(tmp_path):
    found = line(crashes, tmp_path)
    assert (found["status"], found["error"]) == ("crashed", "its process ended with -6")
    assert found["figures"]["before"] == 1


@pytest.mark.slow
def test_an_item_that_hangs_is_cut_off_with_all_that_it_started_and_the_others_run(capsys):
    begun = time.monotonic()
    lines = gpu.measured([item(hangs, 15.0), item(settles), item(sees)], True, 400.0)
    assert [each["status"] for each in lines] == ["hung", "ok", "ok"]
    assert lines[2]["figures"]["seen"] == 42
    assert time.monotonic() - begun < 300  # and not the 600 s for which it would hang
    assert over(lines[0]["figures"]["child"])
    assert [json.loads(each)["item"] for each in capsys.readouterr().out.splitlines()] == ["hangs", "settles", "sees"]


def test_nothing_is_begun_when_the_time_is_over():
    lines = gpu.measured([item(hangs), item(settles)], True, 3.0)
    assert [each["status"] for each in lines] == ["hung", "not begun"]


def test_lines_are_written_as_they_come_and_without_the_logs(tmp_path):
    gpu.measured([item(fails), item(settles)], True, 100.0, tmp_path / "gpu.json")
    lines = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert [each["item"] for each in lines] == ["fails", "settles"]
    assert "log" not in lines[0]


def test_small_figures_are_not_written_unless_one_says_where(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "gpu.json")
    gpu.measured([item(settles)], True, 100.0)
    assert not gpu.RESULTS.exists()


def test_an_unknown_item_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--only", "fp32,speed"])
    assert "'speed' is not an item; choose from machine," in capsys.readouterr().err


# the table


@pytest.mark.parametrize(
    ("value", "flagged"), [(100, ""), (299, ""), (310, "**off by 1.6x**"), (66, "**off by 1.5x**")]
)
def test_a_figure_is_flagged_that_is_far_from_both_ends_of_its_range(value, flagged):
    assert predicted.flag(value, predicted.Predicted("images/s", "step/images_per_second", 100, 200)) == flagged


def test_the_table_says_what_was_predicted_what_was_found_and_what_does_not_hold():
    lines = [
        {"item": "step_16", "status": "ok", "figures": {"images_per_second": 200.0}, "checks": {}},
        {"item": "fp32", "status": "wrong", "figures": {}, "checks": {"first loss within 1e-5": False}},
        {"item": "layout", "status": "hung", "error": "cut off after 45 s", "figures": {}},
    ]
    told = predicted.table(lines)
    assert "| 640 px step, batch 16: images/s | 400 to 500 | 200 | **off by 2.0x** |" in told
    assert "| first loss within 1e-5 | fp32 | **no** |" in told
    assert "**hung**: cut off after 45 s" in told


def test_the_table_of_a_dry_run_flags_nothing():
    lines = [{"item": "step_16", "status": "ok", "figures": {"images_per_second": 2.0, "small": True}}]
    assert "| 2 | dry run |" in predicted.table(lines)


# what it needs


def test_every_wheel_that_is_collected_is_pinned_in_the_lock_with_its_hashes():
    entries = wheels.pinned(wheels.LOCK.read_text(), wheels.NAMES).splitlines()
    assert sum("==" in entry for entry in entries) == len(wheels.NAMES)
    assert sum("--hash" in entry for entry in entries) >= len(wheels.NAMES)
    with pytest.raises(KeyError):
        wheels.pinned("a==1 \\\n    --hash=sha256:0\n", ("b",))


def without_mlflow_and_optuna() -> None:
    for name in [*sys.modules, "mlflow", "optuna", "sqlalchemy", "alembic", "plotly"]:
        if name.partition(".")[0] in ("mlflow", "optuna", "sqlalchemy", "alembic", "plotly"):
            sys.modules[name] = None


def needs_neither(on: On) -> None:
    without_mlflow_and_optuna()
    for each in gpu.ITEMS:
        _function(each)
    _function(next(each for each in gpu.ITEMS if each.name == "teacher"))(on)


def test_no_item_needs_mlflow_or_optuna(tmp_path):
    found = line(needs_neither, tmp_path)
    assert found["status"] == "ok", found


def test_a_run_without_tracking_needs_neither_mlflow_nor_optuna(root):
    small = ["backbone=tiny", "data.image_size=[32,32]", "data.train=4", "data.val=2", "data.test=2"]
    plan = [
        "trainer.batch_size=4",
        "trainer.epochs=1",
        "unfreeze=all",
        "loss=hard_only",
        "pictures=false",
        "tracking=none",
    ]
    done = program.train(root, *small, *plan, before=(without_mlflow_and_optuna,))
    assert done.returncode == 0, done.stderr


# on a CPU


@pytest.mark.parametrize(
    "asked",
    [pytest.param(each, id=each.name, marks=() if each.name in QUICK else pytest.mark.slow) for each in gpu.ITEMS],
)
def test_every_item_runs_on_a_cpu(asked, tmp_path):
    found = run(asked, True, tmp_path, {}, 4 * asked.limit)
    assert found["status"] == "ok", found
    assert len(found["figures"]) > 2


@pytest.mark.slow
def test_the_whole_is_a_program_that_says_by_its_exit_code_whether_all_is_well(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--only", "machine,batch_norm", "--out"]
    done = subprocess.run([*command, str(tmp_path / "out.json")], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(each)["item"] for each in done.stdout.splitlines()] == ["machine", "batch_norm"]
    assert "| must hold | on | |" in done.stderr
    assert Path(tmp_path / "out.json").exists()
