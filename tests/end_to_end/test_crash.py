"""However a run ends, resuming it gives the same student; `make crash` tries this at random moments."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import optuna
import program
import pytest
from safetensors.torch import load_file, save_file

from kd.run import checkpoint
from kd.study.ledger import failure, history
from kd.training.snapshot import Snapshot

SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=24", "data.val=8", "data.test=8", "trainer.batch_size=4",
    "trainer.epochs=3", "trainer.device=cpu", "trainer.checkpoint_minutes=0.003", "tracking=none", "pictures=false",
    "unfreeze.start_epoch=1", "unfreeze.rate=1",
]  # fmt: skip
ALONE = [*SMALL, "loss=hard_only"]
SAVING = "trainer.checkpoint_minutes=1e-6"  # a checkpoint after every step
TAUGHT = [*SMALL, "teacher.epochs=2", "backbone.teacher.encoder=tu-mobilenetv3_small_050"]
TIMES = ("time", "seconds", "seconds_waiting", "images_per_second")


def outcome(folder: Path) -> dict:
    """The results of a run, without times: weights, epochs, best epoch, objective."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": {file.name: {name: value.numpy().tobytes() for name, value in load_file(file).items()}
                    for file in folder.glob("*.safetensors")},
        "epochs": [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
        "best": (summary["best_epoch"], summary.get("objective")),
    }  # fmt: skip


def run_folder(root: Path) -> Path:
    (found,) = (path.parent for path in root.glob("runs/2*/*/config.yaml"))
    return found


def teacher_folder(root: Path) -> Path:
    (found,) = root.glob("runs/teachers/*")
    return found


def interrupt(root: Path, step: int, how: int, *overrides: str) -> tuple[int, str, str]:
    """Start a run and send it a signal after so many steps, of which an epoch has 6; returns its code and output."""
    process = program.begin(root, *overrides, before=(program.stop_after, step))
    process.wait_until_stopped()
    process.send_signal(how)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate()
    return process.returncode, out, err


def go_on(root: Path, *overrides: str) -> subprocess.CompletedProcess:
    done = program.train(root, *overrides)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run, for tests to copy."""
    root = tmp_path_factory.mktemp("finished")
    go_on(root, *ALONE)
    return root


@pytest.fixture(scope="module")
def straight(finished):
    """The results of the uninterrupted run."""
    return outcome(run_folder(finished))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run killed in its second epoch, for tests to copy."""
    root = tmp_path_factory.mktemp("stopped")
    interrupt(root, 9, signal.SIGKILL, *ALONE, SAVING)
    return root


@pytest.fixture
def killed(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


# one run


@pytest.mark.parametrize("step", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_student(straight, tmp_path, step):
    interrupt(tmp_path, step, signal.SIGKILL, *ALONE, SAVING)
    assert checkpoint.exists(run_folder(tmp_path))
    go_on(tmp_path, f"resume={run_folder(tmp_path)}")
    assert outcome(run_folder(tmp_path)) == straight
    assert not checkpoint.exists(run_folder(tmp_path))


@pytest.mark.slow
def test_a_killed_run_that_learns_features_and_has_pictures_without_masks_resumes_to_the_same_student(tmp_path):
    """Killed after the teacher's 12 steps and 9 of the student's."""
    more = [
        "loss=features",
        "loss.feature_stages=[4,5]",
        "data.unlabelled=6",
        "data.unlabelled_share=0.4",
        "unfreeze=all",
    ]
    command = [*(each for each in TAUGHT if not each.startswith("unfreeze")), *more]
    go_on(tmp_path / "straight", *command)
    interrupt(tmp_path / "killed", 21, signal.SIGKILL, *command, SAVING)
    folder = run_folder(tmp_path / "killed")
    assert checkpoint.load(folder).epoch == 1
    go_on(tmp_path / "killed", f"resume={folder}")
    assert outcome(folder) == outcome(run_folder(tmp_path / "straight"))


@pytest.mark.slow
def test_a_killed_run_of_a_recipe_of_the_literature_resumes_to_the_same_student(tmp_path):
    """SGD, polynomial decay, warm-up, averaged weights, class weights and repeated pictures."""
    command = [*ALONE, "optimizer=sgd", "optimizer.warmup=1", "optimizer.ema=0.9", "optimizer.ema_saves=average",
               "loss.class_weights=auto", "loss.focal=1", "trainer.oversample=0.9"]  # fmt: skip
    done = go_on(tmp_path / "straight", *command)
    assert "the average of the weights of epoch" in done.stdout
    interrupt(tmp_path / "killed", 9, signal.SIGKILL, *command, SAVING)
    folder = run_folder(tmp_path / "killed")
    go_on(tmp_path / "killed", f"resume={folder}")
    assert outcome(folder) == outcome(run_folder(tmp_path / "straight"))
    assert json.loads((folder / "summary.json").read_text())["averaged"]
    assert json.loads((folder / "student.json").read_text())["averaged"]


@pytest.mark.slow
def test_the_same_command_resumes_even_with_another_checkpoint_interval(straight, killed):
    go_on(killed, *ALONE, "trainer.checkpoint_minutes=7", "resume=auto")
    assert outcome(run_folder(killed)) == straight


def test_run_json_and_metrics_that_were_damaged_are_restored_and_the_student_is_the_same(straight, killed):
    folder = run_folder(killed)
    identity = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text('{"id": 5')
    (folder / "metrics.jsonl").write_bytes(b"\0" * 300 + b"\n")
    done = go_on(killed, f"resume={folder}")
    assert done.stdout.count("it is restored from the checkpoint") == 2
    assert outcome(folder) == straight
    assert json.loads((folder / "run.json").read_text())["id"] == identity["id"]


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_finishes_the_step_saves_and_prints_how_to_resume(straight, tmp_path, how):
    command = [*ALONE, "trainer.checkpoint_minutes=null", "resume=auto"]
    code, out, err = interrupt(tmp_path, 9, how, *command)
    assert code == 128 + how
    assert err == "interrupted\n"
    folder = run_folder(tmp_path)
    assert out.splitlines()[-1] == f"resume   python train.py resume={folder}"
    begun = checkpoint.load(folder)
    assert begun.epoch * 6 + begun.step >= 6
    go_on(tmp_path, *command)
    assert outcome(folder) == straight


@pytest.mark.slow
def test_a_run_with_damaged_files_resumes_with_a_message(straight, killed):
    """The last checkpoint, the last line and the best weights: the process may die between writing any two."""
    folder = run_folder(killed)
    path = folder / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-100])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "train/lo')
    (folder / "student.safetensors").write_bytes(b"anything")
    done = go_on(killed, f"resume={folder}", "trainer.workers=1")
    assert f"{checkpoint.NAME} is damaged" in done.stdout + done.stderr
    assert outcome(folder) == straight


def test_a_finished_run_has_no_checkpoint_and_is_not_resumed(finished):
    folder = run_folder(finished)
    assert not checkpoint.exists(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    again = program.train(finished, f"resume={folder}")
    assert again.returncode == 1
    assert re.fullmatch(rf"error: resume={folder}: this run is finished; .*\n", again.stderr)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_another_configuration_is_refused_and_changes_nothing(killed):
    folder = run_folder(killed)
    before = (folder / checkpoint.NAME).read_bytes()
    done = program.train(killed, f"resume={folder}", "optimizer.lr=0.5", "schedule=linear")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "optimizer.lr is 0.001 and not 0.5" in done.stderr
    assert "schedule._target_" in done.stderr
    assert (folder / checkpoint.NAME).read_bytes() == before


def test_a_second_process_on_the_same_run_is_refused(killed):
    folder = run_folder(killed)
    first = program.begin(killed, f"resume={folder}", before=(program.stop_after, 1))
    first.wait_until_stopped()
    second = program.train(killed, f"resume={folder}")
    assert second.returncode == 1
    assert "another process is at work on this run" in second.stderr
    assert second.stderr.count("\n") == 1
    first.send_signal(signal.SIGCONT)
    assert first.communicate()[1] == ""


# a teacher's training


@pytest.mark.slow
def test_a_killed_teacher_resumes_to_the_same_teacher(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    go_on(whole, *TAUGHT)
    interrupt(parts, 9, signal.SIGKILL, *TAUGHT, SAVING)
    assert checkpoint.load(teacher_folder(parts)) is not None
    go_on(parts, *TAUGHT, "resume=auto")
    assert outcome(teacher_folder(parts)) == outcome(teacher_folder(whole))
    assert outcome(run_folder(parts)) == outcome(run_folder(whole))
    assert not checkpoint.exists(teacher_folder(parts))


# trials


STUDY = [
    "-m", *ALONE, "schedule=cosine", "schedule.final=1.0", "optimizer.encoder_lr_scale=0.3",
    "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=1",
]  # fmt: skip


def the_trials(root: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{root}/runs/studies/studies.db"
    return optuna.load_study(study_name="temperature_unfreeze", storage=storage).get_trials()


@pytest.mark.slow
def test_an_interrupted_trial_is_resumed_and_not_restarted(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    go_on(whole, *STUDY)
    folder = Path("runs/studies/temperature_unfreeze")
    code, _, _ = interrupt(parts, 9, signal.SIGTERM, *STUDY)
    assert code == 128 + signal.SIGTERM
    done = go_on(parts, *STUDY)
    assert f"trial 1 resumes where {parts / folder / '0'} was interrupted" in done.stdout
    lost, again = the_trials(parts)
    assert failure(lost)["kind"] == "interrupted"
    assert history(again) == [0]
    (undisturbed,) = the_trials(whole)
    assert again.intermediate_values == undisturbed.intermediate_values
    assert again.value == undisturbed.value
    assert outcome(parts / folder / "1") == outcome(whole / folder / "0")


# write errors and divergence


def small_files(bytes_: int) -> None:
    """Limit the size of files, which simulates a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


@pytest.mark.slow
def test_a_run_refuses_to_resume_with_another_teacher_and_says_what_else_changed(tmp_path):
    interrupt(tmp_path, 15, signal.SIGKILL, *TAUGHT, SAVING)  # 12 steps are the teacher's
    folder, file = run_folder(tmp_path), teacher_folder(tmp_path) / "teacher.safetensors"
    facts = json.loads((folder / "run.json").read_text())
    facts["environment"]["packages"]["torch"] = "1.0"
    facts["environment"]["threads"] = 77
    (folder / "run.json").write_text(json.dumps(facts))
    before = file.read_bytes()
    save_file({name: value * 2 for name, value in load_file(file).items()}, file)
    refused = program.train(tmp_path, f"resume={folder}")
    assert refused.returncode == 2
    assert "the teacher's weights changed since this run began; restore the file" in refused.stderr
    file.write_bytes(before)
    said = go_on(tmp_path, f"resume={folder}").stdout
    assert re.search(
        r"warning  the run began with torch 1\.0, now [^;]+; threads 77, now \d+: its student may differ", said
    )


@pytest.mark.parametrize("how", ["its folder", "auto"])
def test_a_run_that_was_killed_after_its_summary_is_found_finished_and_tidied(how, finished, tmp_path):
    root = shutil.copytree(finished, tmp_path / "copy")
    folder = run_folder(root)
    before = outcome(folder)
    checkpoint.save(folder, Snapshot({}, {"epoch": 0, "step": 0}))
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"status": "KILLED", "ended": None}))
    done = go_on(root, *([f"resume={folder}"] if how == "its folder" else [*ALONE, "resume=auto"]))
    assert run_folder(root) == folder  # there is no second one
    assert outcome(folder) == before
    assert "student" not in done.stdout
    assert not checkpoint.exists(folder)
    assert json.loads((folder / "run.json").read_text())["status"] == "FINISHED"
    refused = program.train(root, f"resume={folder}")
    assert "this run is finished" in refused.stderr


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_its_last_checkpoint(straight, killed):
    folder = run_folder(killed)
    size = (folder / checkpoint.NAME).stat().st_size
    process = program.begin(killed, f"resume={folder}", before=(small_files, size // 2))
    _, err = process.communicate()
    assert process.returncode == 1
    assert re.fullmatch(r"error: .*checkpoint.*: (File too large|No space left on device).*\n", err), err
    assert not [path for path in folder.iterdir() if path.name.startswith(".checkpoint")]
    go_on(killed, f"resume={folder}")
    assert outcome(folder) == straight


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("chattr") is None, reason="root writes where it may not")
def test_an_unwritable_run_folder_is_reported_in_one_line(tmp_path):
    blocked = tmp_path / "runs"
    blocked.write_text("a file where the folder should be")
    done = program.train(tmp_path, *ALONE)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*runs.*\n", done.stderr), done.stderr


def test_a_diverging_training_reports_where_and_keeps_the_batch(tmp_path):
    done = program.train(tmp_path, *ALONE, "optimizer.lr=1e30", "optimizer.clip_norm=null")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    found = json.loads((run_folder(tmp_path) / "nonfinite.json").read_text())
    assert f"in epoch {found['epoch'] + 1}, step {found['step']}" in done.stderr
    assert len(found["samples"]) == 4
    assert found["samples"][0] in done.stderr
