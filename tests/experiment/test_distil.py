"""One distillation end to end through train.py, with small networks, images and plans."""

import json
import re
from pathlib import Path
from subprocess import CalledProcessError, CompletedProcess

import mlflow
import program
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from kd.cli import main as kd
from kd.config.compose import compose
from kd.config.read import read
from kd.networks import saved
from kd.networks.precision import choose_device
from kd.training.evaluation import evaluate
from kd.training.quality import LEAST

SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=24", "data.val=8", "data.test=8", "trainer.batch_size=8",
    "trainer.epochs=3", "trainer.device=cpu",
]  # fmt: skip
STEPWISE = ["schedule=linear", "unfreeze.start_epoch=1", "unfreeze.rate=1", "loss=composite"]


def train(root: Path, *overrides: str, cwd: Path | None = None) -> CompletedProcess:
    done = program.train(root, *SMALL, *overrides, cwd=cwd)
    done.check_returncode()
    return done


def folder_of(done: CompletedProcess) -> Path:
    return Path(re.search(r"^run +(\S+)$", done.stdout, re.MULTILINE).group(1))


def timeless(records: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "seconds_waiting", "images_per_second", "time")}
        for record in records
    ]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def distilled(home, tmp_path_factory):
    """A first run, from a working directory that is not the project's."""
    return train(home, *STEPWISE, cwd=tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def again(home, distilled):
    """The same training again, with the teacher already trained, and without pictures."""
    return train(home, *STEPWISE, "pictures=false")


@pytest.fixture(scope="module")
def alone(home, distilled):
    """The student without a teacher, for one epoch and without pictures."""
    return train(home, "loss=hard_only", "unfreeze=all", "trainer.epochs=1", "pictures=false")


@pytest.fixture(scope="module")
def multiclass(tmp_path_factory):
    """Four classes, bf16, heavy augmentation, two loader processes, two objectives, a frozen encoder."""
    home = tmp_path_factory.mktemp("multiclass")
    return train(
        home, "data.classes=4", "trainer.precision=bf16", "augment=heavy", "trainer.workers=2", "trainer.accumulate=2",
        "unfreeze=frozen", "teacher.epochs=1", "objective=[val/dice,student/parameters]",
    )  # fmt: skip


def test_a_run_folder_holds_everything(distilled):
    names = {path.name for path in folder_of(distilled).iterdir() if path.is_file()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "summary.json", "student.safetensors", "student.json", "timeline.png",
        "curves.png", "predictions.png",
    }  # fmt: skip


def test_metrics_have_a_line_per_epoch_with_every_metric(distilled):
    records = lines(folder_of(distilled))
    assert [record["epoch"] for record in records] == [0, 1, 2]
    for record in records:
        assert record.keys() >= {
            "epoch", "temperature", "unfrozen_blocks", "lr/decoder", "train/loss", "train/kl",
            "train/mse", "train/ce", "train/dice", "val/loss", "val/miou", "val/dice", "val/iou/background",
            "val/iou/foreground", "val/teacher_agreement", "seconds", "seconds_waiting", "images_per_second", "time",
        }  # fmt: skip


def test_training_follows_the_plan_that_preview_prints(distilled, capsys):
    kd(["preview", "--json", *SMALL, *STEPWISE])
    plan = json.loads(capsys.readouterr().out)
    records = lines(folder_of(distilled))
    assert [row["unfrozen_blocks"] for row in plan] == [0, 1, 2]
    assert [(row["temperature"], row["unfrozen_blocks"], row["lr"]) for row in plan] == [
        (r["temperature"], r["unfrozen_blocks"], {"decoder": r["lr/decoder"], "encoder": r.get("lr/encoder")})
        for r in records
    ]


def test_the_loss_is_the_weighted_sum_of_its_terms(distilled):
    for record in lines(folder_of(distilled)):
        total = 0.3 * record["train/kl"] + 0.5 * record["train/mse"] + 0.5 * record["train/ce"] + record["train/dice"]
        assert record["train/loss"] == pytest.approx(total, rel=1e-5)


def test_binary_miou_is_the_mean_of_background_and_foreground(distilled):
    for record in lines(folder_of(distilled)):
        assert record["val/miou"] == pytest.approx((record["val/iou/background"] + record["val/iou/foreground"]) / 2)


def test_the_objective_is_the_best_epochs(distilled):
    folder = folder_of(distilled)
    records, summary = lines(folder), json.loads((folder / "summary.json").read_text())
    best = max(records, key=lambda record: record["val/miou"])
    assert summary["objective"] == {"val/miou": best["val/miou"]}
    assert summary["best_epoch"] == best["epoch"]


def test_the_saved_student_is_the_best_one_and_has_the_summarys_metrics(distilled):
    folder = folder_of(distilled)
    summary = json.loads((folder / "summary.json").read_text())
    data = read(compose([*SMALL, *STEPWISE])).data
    from kd.data.batches.loading import EvalLoader
    from kd.networks.precision import Precision

    student = saved.load_file(folder / "student.safetensors")
    for split in ("val", "test"):
        found = evaluate(student, EvalLoader(data, split, 8), Precision(choose_device("cpu")), data.ignore_index)
        for name, value in found.metrics(data.class_names).items():
            assert summary["student"][f"{split}/{name}"] == pytest.approx(value, rel=1e-5)


def test_the_composed_config_is_saved_with_all_interpolations_resolved(distilled):
    config = yaml.safe_load((folder_of(distilled) / "config.yaml").read_text())
    assert config["schedule"] == {"_target_": "kd.plan.Linear", "initial": 4.0, "final": 1.0}
    assert config["teacher"]["epochs"] == 3
    assert "${" not in yaml.safe_dump(config)


@pytest.mark.parametrize("name", ["timeline.png", "curves.png", "predictions.png"])
def test_image_files_are_valid(distilled, name):
    with Image.open(folder_of(distilled) / name) as picture:
        picture.verify()


def test_the_table_compares_teacher_and_student(distilled):
    for row in ("teacher", "student", "parameters", "trivial", "latency", "mIoU, val", "Dice of foreground"):
        assert row in distilled.stdout


def test_the_log_holds_what_the_console_said(distilled):
    log = (folder_of(distilled) / "train.log").read_text()
    for line in distilled.stdout.splitlines():
        if not set(line) & set("┃│━─"):  # the table may be narrower there
            assert line.rstrip() in log
    assert "IoU of foreground, test" in log
    assert "\x1b" not in log


def test_the_place_between_trivial_and_teacher_is_in_the_summary_and_in_one_sentence(distilled):
    summary = json.loads((folder_of(distilled) / "summary.json").read_text())
    assert summary["baseline"].keys() <= summary["student"].keys()
    student, trivial, teacher = (summary[who]["test/iou/foreground"] for who in ("student", "baseline", "teacher"))
    if teacher - trivial >= LEAST * (1 - trivial):
        assert summary["share_of_way"] == pytest.approx((student - trivial) / (teacher - trivial))
        assert f"came {summary['share_of_way']:.0%} of the way" in distilled.stdout
    else:
        assert "The teacher " in distilled.stdout
        assert " a trivial prediction (" in distilled.stdout


def test_the_same_settings_find_the_teacher_and_give_the_same_student(distilled, again):
    assert "trained first" in distilled.stdout
    assert "trained before" in again.stdout
    one, two = (load_file(folder_of(done) / "student.safetensors") for done in (distilled, again))
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)
    assert timeless(lines(folder_of(again))) == timeless(lines(folder_of(distilled)))


def test_the_teachers_latency_is_that_of_the_same_moment_as_the_students(distilled, again):
    """All else of a teacher that was measured before is as it was."""
    one, two = (json.loads((folder_of(done) / "summary.json").read_text())["teacher"] for done in (distilled, again))
    assert one.pop("latency_ms") != two.pop("latency_ms")
    assert one == two


def test_pictures_without_masks_are_counted_everywhere_and_train_no_other_teacher(distilled, home):
    done = train(home, *STEPWISE, "data.unlabelled=10", "tracking=none", "pictures=false")
    folder = folder_of(done)
    assert "24 pictures with masks, 10 without: each batch has 8 with and 8 without" in done.stdout
    assert "trained before" in done.stdout
    counts = {"labelled": 24, "unlabelled": 10, "unlabelled_per_batch": 8, "val": 8, "test": 8}
    identity, summary = (json.loads((folder / name).read_text()) for name in ("run.json", "summary.json"))
    assert identity["pictures"] == summary["pictures"] == counts
    assert identity["inputs"]["the pictures without masks"]
    assert summary["teacher_answers"]["read"] + summary["teacher_answers"]["computed"] == 3 * (24 + 3 * 8)
    before = json.loads((folder_of(distilled) / "run.json").read_text())
    assert before["data_fingerprint"] == identity["data_fingerprint"]
    assert before["inputs"]["the pictures without masks"] is None
    assert before["pictures"] == {**counts, "unlabelled": 0, "unlabelled_per_batch": 0}


def test_features_are_learnt_in_training_and_exist_nowhere_else(distilled, home):
    """Cold, then with all that the teacher says in the cache: the same student, of the same shape as any other."""
    asked = ["loss=features", "loss.feature_stages=[3,5]", "tracking=none", "pictures=false", "unfreeze=all",
             "trainer.epochs=2", "teacher.epochs=3"]  # fmt: skip
    cold, warm = train(home, *asked), train(home, *asked)
    assert "trained before" in cold.stdout
    counts = [json.loads((folder_of(done) / "summary.json").read_text())["teacher_answers"] for done in (cold, warm)]
    assert counts == [{"read": 0, "computed": 48, "not_stored": 0}, {"read": 48, "computed": 0, "not_stored": 0}]
    assert timeless(lines(folder_of(cold))) == timeless(lines(folder_of(warm)))
    distances = [record["train/features"] for record in lines(folder_of(cold))]
    assert distances[-1] < distances[0] < 4
    weights, others = (load_file(folder_of(done) / "student.safetensors") for done in (cold, distilled))
    assert {name: value.shape for name, value in weights.items()} == {name: each.shape for name, each in others.items()}


@pytest.mark.slow
def test_a_password_in_the_tracking_address_is_not_written(alone, home):
    done = train(
        home, "loss=hard_only", "unfreeze=all", "trainer.epochs=1", "tracking.uri=http://me:s3cret@127.0.0.1:9"
    )
    assert "s3cret" not in done.stdout + done.stderr
    assert "s3cret" not in (folder_of(done) / "config.yaml").read_text()
    assert "s3cret" not in (folder_of(done) / "run.json").read_text()


def test_hard_only_builds_no_teacher(alone, tmp_path):
    assert "teacher" not in alone.stdout
    record = lines(folder_of(alone))[0]
    assert record.keys() >= {"train/ce", "train/dice"}
    assert not record.keys() & {"train/kl", "train/mse", "val/teacher_agreement"}
    assert "teacher" not in json.loads((folder_of(alone) / "summary.json").read_text())


def test_a_teacher_can_be_given_as_a_file_and_must_have_the_classes(home, distilled):
    teacher = next((home / "runs" / "teachers").iterdir())
    done = train(home, "teacher=file", f"teacher.path={teacher}", *STEPWISE, "tracking=none", "pictures=false")
    one, two = (load_file(folder_of(run) / "student.safetensors") for run in (distilled, done))
    assert all(one[name].equal(two[name]) for name in one)
    with pytest.raises(CalledProcessError) as refused:
        train(home, "teacher=file", f"teacher.path={teacher}", "data.classes=3", *STEPWISE)
    assert "has 2 classes (background, foreground) and 1 logits, the data has 3" in refused.value.stderr


@pytest.mark.slow
def test_several_classes_in_mixed_precision(multiclass):
    folder = folder_of(multiclass)
    records, summary = lines(folder), json.loads((folder / "summary.json").read_text())
    names = json.loads((folder / "student.json").read_text())["class_names"]
    assert len(names) == 4
    assert {f"val/iou/{name}" for name in names} <= records[0].keys()
    assert all(record["unfrozen_blocks"] == 0 for record in records)
    assert summary["objective"] == {
        "val/dice": max(record["val/dice"] for record in records),
        "student/parameters": summary["student"]["parameters"],
    }


@pytest.fixture(scope="module")
def mirrored(home, distilled, again, alone):
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("kd-sweeper")
    runs = client.search_runs([experiment.experiment_id])
    return client, {run.data.tags.get("run_folder", "teacher"): run for run in runs}


def test_mlflow_holds_every_run_and_the_teachers(mirrored, distilled, again, alone):
    _, runs = mirrored
    assert {str(folder_of(done)) for done in (distilled, again, alone)} | {"teacher"} <= set(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_mlflow_holds_the_same_points_as_the_run_folder(mirrored, distilled):
    client, runs = mirrored
    run = runs[str(folder_of(distilled))]
    for name, value in lines(folder_of(distilled))[0].items():
        if name in ("epoch", "time"):
            continue
        history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.step)
        assert [(p.step, p.value) for p in history] == [(r["epoch"], r[name]) for r in lines(folder_of(distilled))], (
            value
        )


def test_mlflow_holds_flat_parameters_tags_and_the_files(mirrored, distilled):
    client, runs = mirrored
    run, folder = runs[str(folder_of(distilled))], folder_of(distilled)
    assert run.data.params["schedule.initial"] == "4.0"
    assert run.data.params["backbone.student.encoder"] == "tu-mobilenetv3_small_050"
    assert run.data.tags["group.schedule"] == "linear"
    kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert kept >= {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert run.info.artifact_uri.startswith((folder.parents[2] / "mlruns").as_uri())
