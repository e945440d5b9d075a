"""Studies in one process, through `python train.py -m`: resumed, killed, shared, refused, failing, of every kind."""

import csv
import hashlib
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Container, Iterable
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import program
import pytest
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from program import Program

from kd.study.ledger import FINISHED, failure, history
from kd.study.sweep import StudySweeperImpl

NAME = "temperature_unfreeze"
TRAINING = [
    "backbone=tiny", "trainer.batch_size=8", "trainer.epochs=3", "trainer.device=cpu", "loss=hard_only",
    "tracking=none", "pictures=false", "data.image_size=[32,32]",
]  # fmt: skip
SHAPES = ["data.train=16", "data.val=8", "data.test=8"]
ONE_PLAN = [
    "schedule.final=1.0", "unfreeze.start_epoch=1", "unfreeze.rate=1", "loss.gamma=0.5", "optimizer.lr=0.001",
    "optimizer.weight_decay=0.01",
]  # fmt: skip
SMALL = [*TRAINING, *SHAPES, "schedule=choice(linear,cosine)", *ONE_PLAN]
SEARCHED = {"schedule", "schedule.initial", "optimizer.encoder_lr_scale"}
NOTHING_SEARCHED = ["schedule=linear", "schedule.initial=4.0", "optimizer.encoder_lr_scale=0.3", *ONE_PLAN]
TO_THE_END = "hydra/sweeper/pruner=none"


def begin(root: Path, *overrides: str) -> Program:
    return program.begin(root, "-m", *overrides)


def ended(process: Program) -> SimpleNamespace:
    out, err = process.communicate(timeout=300)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


class Studies(dict[str, SimpleNamespace]):
    """Commands by name, each run when it is first asked for: what it said, and its root."""

    def __init__(self, commands: dict[str, tuple[Path, list[str]]]) -> None:
        self.commands = commands

    def __missing__(self, name: str) -> SimpleNamespace:
        root, overrides = self.commands[name]
        self[name] = SimpleNamespace(**vars(ended(begin(root, *overrides))), root=root)
        return self[name]


def but_slow(names: Iterable[str], quick: Container[str]) -> list:
    """The names as parameters of a test, those that are not among the quick ones marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def folder(root: Path, name: str = NAME) -> Path:
    return root / "runs" / "studies" / name


def trials(root: Path, name: str = NAME) -> list[FrozenTrial]:
    storage = f"sqlite:///{root}/runs/studies/studies.db"
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def finished(root: Path, name: str = NAME) -> list[FrozenTrial]:
    return [trial for trial in trials(root, name) if trial.state in FINISHED]


def suggested(root: Path) -> list[tuple]:
    """What the finished trials of a study searched, from its table."""
    with (folder(root) / "trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] in ("complete", "pruned")]
    return sorted(tuple(row[name] for name in sorted(SEARCHED)) for row in rows)


def contents(path: Path) -> dict[str, tuple[int, str]]:
    """When each file below `path` was written, and a digest of it."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(f.relative_to(path)): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}


def wait_until(happened: Callable[[], bool], process: Program) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_an_epoch(path: Path) -> bool:
    file = path / "metrics.jsonl"
    return file.exists() and "\n" in file.read_text()


def one_line(done: SimpleNamespace) -> str:
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("error: ")
    return done.err


# resumed


#: What a study of three trials is asked that it was not begun with, and the key that the answer should name.
ASKED = {
    "another space": (["schedule=linear"], "schedule"),
    "another range": (["schedule.initial=interval(3,4)"], "schedule.initial"),
    "another setting": (["optimizer.lr=0.002"], "optimizer.lr"),
    "another objective": (["objective=val/dice"], "val/dice"),
}
OTHER = ["schedule=linear", "hydra.sweeper.study_name=other", "hydra.sweeper.n_trials=1"]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Three trials in one go, the same ones in two goes, and what the first study refuses or does not run."""
    straight, grown = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("grown")
    command = [*SMALL, TO_THE_END]
    return Studies({
        "straight": (straight, [*command, "hydra.sweeper.n_trials=3"]),
        "a first": (grown, [*command, "hydra.sweeper.n_trials=1"]),
        "two more": (grown, [*command, "hydra.sweeper.n_trials=3", "trainer.checkpoint_minutes=7"]),
        **{name: (straight, [*command, *more, "hydra.sweeper.n_trials=4"]) for name, (more, _) in ASKED.items()},
        "fewer trials": (straight, [*command, "hydra.sweeper.n_trials=2"]),
        "another name": (straight, [*command, *OTHER]),
    })  # fmt: skip


@pytest.fixture(scope="module")
def straight(asked):
    return asked["straight"]


@pytest.fixture(scope="module")
def grown(asked):
    """The study that was first given one trial, then two more: whichever test asks, in this order."""
    return SimpleNamespace(first=asked["a first"], then=asked["two more"])


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory):
    """Three trials of one command that is killed in its second, interrupted in its third, and then given twice more."""
    root = tmp_path_factory.mktemp("broken")
    command = (root, *SMALL, TO_THE_END, "hydra.sweeper.n_trials=3")
    killed = begin(*command)
    wait_until(lambda: has_an_epoch(folder(root) / "1"), killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    after_the_kill = {number: contents(folder(root) / number) for number in ("0", "1")}
    interrupted = begin(*command)
    wait_until(lambda: has_an_epoch(folder(root) / "2"), interrupted)
    interrupted.send_signal(signal.SIGINT)
    interrupted = ended(interrupted)
    continued, last = ended(begin(*command)), ended(begin(*command))
    return SimpleNamespace(
        root=root, arguments=command[1:], after_the_kill=after_the_kill, interrupted=interrupted,
        continued=continued, last=last, trials=trials(root),
    )  # fmt: skip


def test_a_killed_study_resumes_to_exactly_its_number_of_trials(broken_off):
    assert sum(trial.state in FINISHED for trial in broken_off.trials) == 3
    assert all(trial.state in (*FINISHED, TrialState.FAIL) for trial in broken_off.trials)


def test_a_killed_trial_is_retried_under_a_new_number_with_the_same_parameters(broken_off):
    lost, again = broken_off.trials[1], broken_off.trials[2]
    assert lost.state == TrialState.FAIL
    assert failure(lost)["kind"] == "lost"
    assert history(again) == [1]
    assert again.params == lost.params


def test_ctrl_c_stops_a_study_at_once_and_its_trial_is_retried(broken_off):
    assert broken_off.interrupted.code == 130
    assert broken_off.interrupted.err.splitlines()[-1] == "interrupted"
    *_, said, resume = broken_off.interrupted.out.splitlines()
    assert said.endswith(": interrupted, 1 of 3 trials are finished; what trial 2 had trained is kept")
    assert resume.startswith("resume   python train.py -m ")
    assert shlex.split(resume)[1:] == ["python", "train.py", "-m", *broken_off.arguments]
    stopped = broken_off.trials[2]
    assert stopped.state == TrialState.FAIL
    assert failure(stopped)["kind"] == "interrupted"
    (again,) = [trial for trial in broken_off.trials if history(trial) == [1, 2]]
    assert again.state in FINISHED
    assert again.params == stopped.params


def test_no_run_folder_of_a_killed_study_is_written_to_again(broken_off):
    for number, before in broken_off.after_the_kill.items():
        assert before
        assert contents(folder(broken_off.root) / number) == before


def test_every_trial_has_the_run_folder_of_its_number(broken_off):
    for trial in broken_off.trials:
        assert trial.user_attrs["run_folder"] == str(folder(broken_off.root) / str(trial.number))
    numbers = [path.name for path in folder(broken_off.root).iterdir() if path.name.isdigit()]
    assert sorted(map(int, numbers)) == [trial.number for trial in broken_off.trials]


def test_the_command_of_a_complete_study_trains_nothing(broken_off):
    assert "(3 of 3 finished)" in broken_off.continued.out
    assert (broken_off.last.code, broken_off.last.err) == (0, "")
    assert broken_off.last.out.splitlines()[0] == f"study    {NAME}: 3 of 3 trials are finished"
    assert "trial " not in broken_off.last.out.replace("best trial", "")


def test_an_interrupted_study_suggests_the_same_points(broken_off, straight):
    assert suggested(broken_off.root) == suggested(straight.root)


def test_a_study_continues_with_more_trials_and_another_checkpoint_interval(grown):
    first, then = grown.first, grown.then
    assert (first.code, then.code) == (0, 0)
    assert "(1 of 1 finished)" in first.out
    assert "1 of 3 trials are finished" in then.out
    assert [trial.state for trial in trials(then.root)] == [TrialState.COMPLETE] * 3


def test_the_same_seed_suggests_the_same_points_in_one_command_or_several(grown, straight):
    assert [trial.params for trial in trials(grown.then.root)] == [trial.params for trial in trials(straight.root)]
    assert [trial.value for trial in trials(grown.then.root)] == [trial.value for trial in trials(straight.root)]


def test_the_command_line_fixes_or_narrows_what_is_searched(straight):
    assert all(trial.params.keys() == SEARCHED for trial in trials(straight.root))
    assert all(trial.params["schedule"] in ("linear", "cosine") for trial in trials(straight.root))
    overrides = (folder(straight.root) / "0" / ".hydra" / "overrides.yaml").read_text()
    assert "unfreeze.start_epoch=1" in overrides


@pytest.mark.parametrize("question", but_slow(ASKED, ("another space", "another objective")))
def test_a_study_refuses_to_continue_with_another_space(asked, straight, question):
    line = one_line(asked[question])
    assert asked[question].code in (1, 2)
    assert f"study {NAME} began with" in line
    assert f"{ASKED[question][1]}=" in line
    assert "hydra.sweeper.study_name" in line


def test_a_refused_command_or_fewer_trials_than_there_are_run_nothing(asked, straight):
    assert asked["another space"].code in (1, 2)
    assert (asked["fewer trials"].code, asked["fewer trials"].err) == (0, "")
    assert len(trials(straight.root)) == 3
    assert sorted(path.name for path in folder(straight.root).iterdir() if path.name.isdigit()) == ["0", "1", "2"]


def test_another_name_is_another_study_in_the_same_database(asked, straight):
    assert (asked["another name"].code, asked["another name"].err) == (0, "")
    assert len(finished(straight.root, "other")) == 1


def test_without_pictures_nothing_is_drawn(straight):
    assert (folder(straight.root) / "trials.csv").exists()
    assert list(straight.root.rglob("*.png")) == []


# several at once


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """The same command three times at once, where nothing is yet."""
    root = tmp_path_factory.mktemp("crowd")
    processes = [begin(root, *SMALL, TO_THE_END, "hydra.sweeper.n_trials=3") for _ in range(3)]
    return SimpleNamespace(root=root, done=[ended(process) for process in processes])


def test_the_same_command_started_several_times_shares_one_study(crowd):
    assert [(done.code, done.err) for done in crowd.done] == [(0, "")] * 3
    assert [trial.state for trial in trials(crowd.root)] == [TrialState.COMPLETE] * 3


def test_workers_that_start_together_never_share_a_trial_or_its_folder(crowd):
    shown = [number for done in crowd.done for number in re.findall(r"^trial +(\d+): ", done.out, re.MULTILINE)]
    assert sorted(shown) == ["0", "1", "2"]
    for number in range(3):
        assert len((folder(crowd.root) / str(number) / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_table_written_by_several_processes_has_every_trial(crowd):
    with (folder(crowd.root) / "trials.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["complete"] * 3


# refused before anything is started

REFUSED = {
    "a wrong option in the middle of a space": (["schedule=choice(linear,cosin)"], "schedule=cosin"),
    "a last epoch that a corner lacks": (
        ["trainer.epochs=range(1,3)", "unfreeze.start_epoch=1"],
        "the decoder trains alone",
    ),
    "several workers in one process": (["hydra.sweeper.n_jobs=2"], "hydra/launcher=joblib"),
    "a password on the command line": (
        ["hydra.sweeper.storage=postgresql://me:s3cret@127.0.0.1:9/studies"],
        "hydra.sweeper.storage holds a password",
    ),
    "a tracking server's password": (["tracking.uri=http://me:s3cret@host"], "tracking.uri holds a password"),
    "pruning for two objectives": (["objective=[val/miou,val/dice]"], "hydra/sweeper/pruner=none"),
    "the wrong direction": (["hydra.sweeper.direction=minimize"], "hydra.sweeper.direction"),
    "a grace period of a heartbeat": (
        ["hydra.sweeper.heartbeat_interval=9", "hydra.sweeper.grace_period=9"],
        "hydra.sweeper.grace_period=9",
    ),
    "no trials": (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0"),
    "an unknown sampler": (["hydra/sweeper/sampler=nonsense"], "hydra/sweeper/sampler=nonsense"),
    "a pruner's impossible argument": (["hydra.sweeper.pruner.reduction_factor=1"], "reduction_factor"),
    "a grid without an end": (["hydra/sweeper/sampler=grid", TO_THE_END], "schedule.initial"),
    "a name that cannot be a folder's": (["hydra.sweeper.study_name=a/b"], "hydra.sweeper.study_name='a/b'"),
    "an upside-down range": (["optimizer.lr=interval(2,1)"], "search space"),
    "an unknown study": (["sweeps=nonsense"], "nonsense"),
    "a key that one choice lacks": (["schedule=linear,cosine,constant"], "schedule.final"),
}


#: One of each place that refuses: the space, a corner of it, the sweeper's options, passwords, hydra.
QUICK = (
    "a wrong option in the middle of a space", "a last epoch that a corner lacks", "a password on the command line",
    "pruning for two objectives", "no trials", "an unknown study", "a key that one choice lacks",
)  # fmt: skip


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    space = ["schedule.final=interval(1,2)", "unfreeze.rate=1", "hydra.sweeper.n_trials=2"]
    return Studies(
        {name: (tmp_path_factory.mktemp("refused"), [*TRAINING, *SHAPES, *space, "unfreeze.start_epoch=1", *overrides])
         for name, (overrides, _) in REFUSED.items()}
    )  # fmt: skip


@pytest.mark.parametrize("what", but_slow(REFUSED, QUICK))
def test_an_invalid_study_is_refused_in_one_line_before_anything_is_written(refused, what):
    assert refused[what].code in (1, 2)
    assert REFUSED[what][1] in one_line(refused[what])
    assert "s3cret" not in refused[what].err
    assert list(refused[what].root.rglob("*")) == []


def test_a_key_that_one_choice_lacks_is_not_called_misspelt(refused):
    assert "did you mean 'schedule.final'" not in refused["a key that one choice lacks"].err


LATENCY = ("val/miou", "student/latency_ms")


@pytest.mark.parametrize(
    ("objective", "n_jobs", "launcher", "warned"),
    [
        (LATENCY, 2, "JoblibLauncher", True),
        (LATENCY, 2, "LocalLauncher", True),
        (LATENCY, 1, "JoblibLauncher", False),
        (LATENCY, 2, "SlurmLauncher", False),
        (LATENCY[:1], 2, "JoblibLauncher", False),
    ],
)
def test_a_latency_measured_beside_other_trials_is_a_warning(objective, n_jobs, launcher, warned):
    sweeper = SimpleNamespace(n_jobs=n_jobs, launcher=type(launcher, (), {})())
    line = StudySweeperImpl._competing(sweeper, SimpleNamespace(objective=objective))
    assert line.startswith("student/latency_ms is measured while 2 trials compete") is warned


# failing trials


UNLABELLED = 255


def pictures(root: Path, suffix: str = "jpg", cut: bool = False, labelled: bool = True) -> str:
    """A data folder of a few pictures; one may be cut short behind its header, validation may have no labels."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 1)):
        for index in range(count):
            image = root / "images" / split / f"{index}.{suffix}"
            mask = root / "masks" / split / f"{index}.png"
            labels = np.eye(32) if labelled or split != "val" else np.full((32, 32), UNLABELLED)
            for path, array in ((image, random.integers(0, 255, (32, 32, 3))), (mask, labels)):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
            if cut and (split, index) == ("train", 3):
                image.write_bytes(image.read_bytes()[:1000])
    return str(root)


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    good = pictures(tmp_path_factory.mktemp("good"))
    bad = pictures(tmp_path_factory.mktemp("bad"), cut=True)
    png = pictures(tmp_path_factory.mktemp("png"), suffix="png", cut=True)
    blank = pictures(tmp_path_factory.mktemp("blank"), labelled=False)
    own = [*TRAINING, "data=folder", *NOTHING_SEARCHED, TO_THE_END]
    asked = {
        "one": [
            *own, f"data.root=choice({bad},{good})", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2",
            "hydra.sweeper.max_retries=1",
        ],
        "all": [
            *own, f"data.root={bad}", "schedule.initial=interval(2,9)", "hydra.sweeper.n_trials=9",
            "hydra.sweeper.max_retries=0",
        ],
        "png": [*own, f"data.root={png}", "schedule.initial=interval(2,9)", "hydra.sweeper.max_retries=0"],
        "unlabelled": [
            *own, f"data.root={blank}", f"data.ignore_index={UNLABELLED}", "schedule.initial=interval(2,9)",
            "hydra.sweeper.n_trials=2",
        ],
        "diverged": [
            *SMALL, TO_THE_END, "optimizer.lr=1e30", "optimizer.clip_norm=null", "hydra.sweeper.n_trials=2",
        ],
    }  # fmt: skip
    return Studies({name: (tmp_path_factory.mktemp(name), overrides) for name, overrides in asked.items()})


def test_a_failing_trial_is_retried_and_stops_no_other(failing):
    found = failing["one"]
    assert found.code == 0
    by_state = {trial.number: trial.state for trial in trials(found.root)}
    assert by_state == {0: TrialState.FAIL, 1: TrialState.COMPLETE, 2: TrialState.FAIL}
    first, _, second = trials(found.root)
    assert history(second) == [first.number]
    assert second.params == first.params
    assert [failure(trial)["kind"] for trial in (first, second)] == ["error", "error"]


def test_a_failed_trial_says_why_in_table_and_terminal(failing):
    found = failing["one"]
    with (folder(found.root) / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    reason = rows[0]["failure"]
    assert "3.jpg" in reason
    assert f"trial    0: failed: {reason}" in found.out
    assert "Traceback" not in found.out + found.err


def test_a_study_in_which_every_trial_fails_ends_with_one_line(failing):
    found = failing["all"]
    assert found.code != 0
    assert "3.jpg" in one_line(found)
    assert {trial.state for trial in trials(found.root)} == {TrialState.FAIL}
    assert len(trials(found.root)) < 9


@pytest.mark.slow
def test_a_truncated_png_is_reported_in_one_line(failing):
    assert failing["png"].code != 0
    assert "3.png" in one_line(failing["png"])


def test_a_study_of_data_that_can_measure_nothing_ends_with_one_line(failing):
    found = failing["unlabelled"]
    assert found.code != 0
    assert "val has no valid pixel" in one_line(found)
    assert not (found.root / "runs" / "studies" / "studies.db").exists()


def test_a_diverged_training_is_a_failure_without_retry(failing):
    found = failing["diverged"]
    assert found.code != 0
    assert "optimizer.lr" in one_line(found)
    assert {trial.state for trial in trials(found.root)} == {TrialState.FAIL}
    assert all(history(trial) == [] for trial in trials(found.root))


# every form of a study

SHORT = [*TRAINING, *SHAPES, "trainer.epochs=2", *NOTHING_SEARCHED[:1], *ONE_PLAN, "hydra.sweeper.n_trials=2"]
ARMS = "experiment=choice(arm_hard_only,arm_fixed)"
FORMS = {
    "gp": [*SHORT, "hydra/sweeper/sampler=gp", "hydra/sweeper/pruner=hyperband"],
    "no_teacher": [
        *SHORT, "sweeps=no_teacher", "optimizer.encoder_lr_scale=0.3", "optimizer.lr=interval(1.0e-4,1.0e-3)",
    ],
    "ablation": [
        *[line for line in TRAINING if line != "loss=hard_only"], *SHAPES, "trainer.epochs=1", "sweeps=ablation",
        "seed=0", ARMS, "hydra.sweeper.n_trials=9",
    ],
    "pareto": [
        *SHORT, "sweeps=pareto", "backbone=tiny", "data.image_size=choice([32,32],[32,64])",
        "optimizer.encoder_lr_scale=0.3",
    ],
}  # fmt: skip
#: A grid whose second cell hardly learns.
BEHIND = [
    *NOTHING_SEARCHED, "optimizer.lr=choice(1.0e-3,1.0e-6)", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=asha",
    "hydra.sweeper.pruner.min_resource=1",
]  # fmt: skip
PLAIN = ["hydra/sweeper=basic", "trainer.epochs=1", "unfreeze=frozen", "schedule=linear,cosine"]


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    behind, plain = ([*TRAINING, *SHAPES, *more] for more in (BEHIND, PLAIN))
    commands = {**FORMS, "behind": behind, "plain": plain}
    return Studies({name: (tmp_path_factory.mktemp(name), overrides) for name, overrides in commands.items()})


@pytest.mark.parametrize("name", but_slow(FORMS, ["ablation"]))
def test_every_sampler_pruner_and_shipped_study_runs(forms, name):
    assert (forms[name].code, forms[name].err) == (0, "")
    study_name = name if name in ("no_teacher", "ablation", "pareto") else NAME
    found = trials(forms[name].root, study_name)
    assert [trial.state in FINISHED for trial in found] == [True, True]
    assert found[0].params != found[1].params


def test_a_grid_runs_every_cell_once_and_no_more_than_there_are(forms):
    arms = [trial.params["experiment"] for trial in trials(forms["ablation"].root, "ablation")]
    assert arms == ["arm_hard_only", "arm_fixed"]


def test_an_ablation_gives_each_arm_its_own_loss(forms):
    for number, has_teacher in ((0, False), (1, True)):
        line = (folder(forms["ablation"].root, "ablation") / str(number) / "metrics.jsonl").read_text()
        assert ("train/kl" in line) == has_teacher


@pytest.mark.slow
def test_several_objectives_have_a_value_each(forms):
    for trial in trials(forms["pareto"].root, "pareto"):
        assert len(trial.values) == 2
        summary = json.loads((Path(trial.user_attrs["run_folder"]) / "summary.json").read_text())
        assert trial.values == list(summary["objective"].values())


def test_a_trial_that_is_far_behind_is_pruned_and_keeps_what_it_trained(forms):
    root = forms["behind"].root
    ahead, behind = trials(root)
    assert (ahead.state, behind.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    kept = [json.loads(line) for line in (folder(root) / "1" / "metrics.jsonl").read_text().splitlines()]
    assert len(kept) == behind.user_attrs["epochs"] < behind.user_attrs["planned_epochs"] == 3
    best_so_far = accumulate((line["val/miou"] for line in kept), max)
    assert behind.intermediate_values == dict(enumerate(best_so_far, start=1))
    assert behind.value == max(line["val/miou"] for line in kept)
    assert json.loads((folder(root) / "1" / "summary.json").read_text())["state"] == "pruned"


def test_hydras_plain_grid_still_works_and_creates_no_study(forms):
    assert (forms["plain"].code, forms["plain"].err) == (0, "")
    assert len(list((forms["plain"].root / "runs" / "multirun").rglob("summary.json"))) == 2
    assert not (forms["plain"].root / "runs" / "studies").exists()
