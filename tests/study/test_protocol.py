"""`kd verdict`: its commands, its price, and the whole of it on tiny data, twice."""

import math
import re
import signal
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import program
import pytest
from pairs import put

from kd.cli import main
from kd.config.hydra_errors import one_line_errors
from kd.errors import ConfigError
from kd.settings import TEACHING_TERMS
from kd.study import protocol
from kd.study.protocol import Protocol

TINY = [
    "backbone=tiny", "data.image_size=[32,32]", "trainer.batch_size=8",
    "trainer.epochs=2", "trainer.device=cpu", "unfreeze.start_epoch=1", "unfreeze.rate=1", "teacher.epochs=2",
    "pictures=false", "tracking=none", "objective=val/iou/foreground",
]  # fmt: skip


def bright_squares(root: Path) -> list[str]:
    """A data folder of 16 training pairs and 4 of each other split; returns its overrides."""
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4), ("test", 4)):
        for number in range(count):
            image, labels = random.integers(0, 120, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
            y, x = random.integers(0, 24, 2)
            image[y : y + 8, x : x + 8], labels[y : y + 8, x : x + 8] = 250, 1
            put(root, f"{split}{number}", image, labels, split)
    return ["data=folder", f"data.root={root}"]


def commands(**asked) -> tuple[list[str], list[str]]:
    """The commands of both studies."""
    made = Protocol(**{"overrides": TINY, **asked})
    settings = made.settings()
    return made.study(settings, distilled=True), made.study(settings, distilled=False)


def test_both_arms_have_the_same_budget_pruner_and_overrides():
    taught, alone = commands(trials=7)
    assert {*taught} - {*alone} == {
        "sweeps=temperature_unfreeze", "hydra.sweeper.study_name=verdict-distilled", "teacher.epochs=2",
    }  # fmt: skip
    assert {*alone} - {*taught} == {
        "sweeps=no_teacher", "hydra.sweeper.study_name=verdict-alone", "loss.delta=1.0",
        *(f"loss.{weight}=0" for weight in TEACHING_TERMS.values()),
    }  # fmt: skip
    assert "hydra.sweeper.n_trials=7" in taught


def test_the_student_alone_is_not_told_what_concerns_the_teacher_but_has_the_same_task_loss():
    overrides = [*TINY, "loss=hinton", "schedule=constant", "schedule.initial=2", "loss.gamma=0.7", "teacher.lr=0.01"]
    _, alone = commands(overrides=overrides)
    assert "loss.gamma=0.7" in alone
    assert not {"loss=hinton", "schedule=constant", "schedule.initial=2", "teacher.lr=0.01"} & {*alone}


@pytest.mark.parametrize(("price", "seeds"), [(25, 5), (14, 3), (40, 8)])
def test_the_price_bounds_both_studies_with_their_last_trials_and_all_seeds(price, seeds):
    asked = Protocol(price=price, seeds=seeds)
    assert 2 * (asked.trainings + 1) + 2 * (seeds - 1) == price


def test_the_winners_are_trained_where_the_studies_were(tmp_path):
    made = Protocol(seeds=4, overrides=["data.root=x", "optimizer.lr=1", "hydra/launcher=joblib", "tracking=none"])
    assert made.winner("verdict-alone", tmp_path) == [
        "-m", "--config-dir", str(tmp_path / "verdict-alone"), "sweeps=winner", "hydra.sweeper.n_trials=3",
        "hydra/launcher=joblib", "tracking=none",
    ]  # fmt: skip


def test_both_studies_find_recipes_of_ones_own_and_the_winners_have_them(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer: {epochs: 30}\n")
    made = Protocol(overrides=["experiment=mine"], config_dir=tmp_path)
    settings = made.settings()
    assert settings.trainer.epochs == 30
    for distilled in (True, False):
        command = made.study(settings, distilled)
        assert command[:3] == ["-m", "--config-dir", str(tmp_path)]
        assert "experiment=mine" in command
    assert made.winner("verdict-alone", tmp_path / "studies").count("--config-dir") == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"price": 9}, "--price 9 is too low for --seeds 5: should be 14 or more"),
        ({"price": math.nan}, "--price nan: should be a finite number"),
        ({"price": math.inf}, "--price inf: should be a finite number"),
        ({"least": math.nan}, "--least nan: should be a finite number"),
        ({"seeds": 1}, "--seeds 1: should be 2 or more"),
        ({"trials": 0}, "--trials 0: should be 2 or more"),
        ({"name": "a/b"}, "study_name='a/b'"),
        ({"overrides": ["seed=3"]}, "seed=3: kd verdict sets it"),
        ({"overrides": ["loss=hard_only"]}, "nothing is distilled"),
        ({"overrides": ["objective=[val/miou,val/dice]"]}, "a verdict is on one metric"),
        ({"overrides": ["trainer.epochs=0"]}, "trainer.epochs=0"),
        ({"config_dir": Path("nowhere")}, "--config-dir nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_runs(asked, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Protocol(**asked).settings()


def test_a_search_among_the_overrides_is_passed_on():
    taught, alone = commands(overrides=[*TINY, "schedule.initial=interval(1,3)", "optimizer.lr=choice(0.1,0.2)"])
    assert "schedule.initial=interval(1,3)" in taught
    assert "optimizer.lr=choice(0.1,0.2)" in alone


def test_a_step_that_is_killed_ends_the_command_as_a_shell_says_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kd", "verdict"])
    monkeypatch.setattr(protocol.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda: -signal.SIGKILL))
    with pytest.raises(SystemExit) as end:
        protocol._step("one", ["trainer.epochs=2"])
    assert end.value.code == 128 + signal.SIGKILL
    assert capsys.readouterr().out.splitlines()[-1] == "resume   kd verdict"


def test_an_error_of_a_step_is_one_line(capfd):
    """The variable by which hydra raises its errors to `one_line_errors` is not inherited."""
    with pytest.raises(SystemExit) as end, one_line_errors():
        protocol._step("one", ["schedule=nope"])
    assert end.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: schedule=nope is not an option")


def test_a_step_that_fails_ends_the_command_as_it_ended(monkeypatch):
    with pytest.raises(SystemExit) as end:
        protocol._step("one", ["trainer.epochs=0"])
    assert end.value.code == 2


def forked(ran: list[list[str]], root: Path):
    """A step in a fork instead of a new interpreter, which adds its command to `ran`."""

    def step(title, arguments):
        ran.append(arguments)
        done = program.train(root, *arguments)
        assert done.returncode == 0, done.stderr

    return step


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """`kd verdict` with two seeds: its root, what it said, and how to ask again with other options."""
    root = tmp_path_factory.mktemp("judged")
    asked = ["verdict", "--trials", "2", "--price", "20", *TINY, *bright_squares(root / "squares"), "schedule=linear"]
    ran: list[list[str]] = []

    def ask(*more):
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
            patch.setenv("KD_ROOT", str(root))
            patch.setattr(protocol, "_step", forked(ran, root))
            main([*asked, *more])
        return said.getvalue()

    return SimpleNamespace(root=root, ran=ran, said=ask("--seeds", "2"), ask=ask)


def written(root) -> dict:
    """When each run of a study ended."""
    return {path: path.stat().st_mtime_ns for path in root.glob("runs/studies/*/*/summary.json")}


def test_one_command_runs_the_protocol_and_more_seeds_continue_it(judged):
    runs, first = written(judged.root), judged.said
    assert re.search(
        r"^verdict  (helped|did not help|cannot tell): test/iou/foreground .*2 paired seeds", first, re.MULTILINE
    )
    assert re.search(r"^price    \d\.\d full trainings \(\d+ epochs; and 2 of the teacher, once\)", first, re.MULTILINE)
    assert "differs" not in first
    assert "3 paired seeds" in judged.ask("--seeds", "3")
    assert runs.items() < written(judged.root).items()
    assert len(written(judged.root)) == len(runs) + 2  # the third seed of both: nothing else was left to train
    assert len(judged.ran) == 2 * 4
    assert len([*judged.root.glob("runs/teachers/*/summary.json")]) == 1  # whatever the trials search


@pytest.mark.slow
def test_an_arm_that_learnt_nothing_has_no_verdict(judged, monkeypatch, capsys):
    monkeypatch.setattr(protocol.tables, "useless", lambda results: "there is no winner")
    monkeypatch.setattr(sys, "argv", ["kd"])
    with pytest.raises(SystemExit):
        judged.ask("--seeds", "2")
    assert "study verdict-distilled: there is no winner" in capsys.readouterr().err
