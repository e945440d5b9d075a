"""What MLflow should show of a run depends on its folder alone, in whatever state that is."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd.run.folder import RunFolder
from kd.tracking.shown import Data, files, of_folder

FACTS = {
    "id": "1", "name": "a run", "begun": 100.0, "ended": None, "status": "RUNNING", "tags": {"role": "student"},
    "choices": {"loss": "hinton"}, "parameters": {}, "tracking": {},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.identify(**FACTS)
    return folder


def epoch(folder: RunFolder, number: int, **figures) -> None:
    folder.append_metrics({"epoch": number, "val/miou": number / 4, **figures, "time": 200.25 + number})


def test_a_new_run_shows_its_identity(folder):
    shown = of_folder(folder)
    assert (shown.name, shown.status, shown.begun, shown.ended) == ("a run", "RUNNING", 100_000, None)
    assert (shown.tags, shown.parameters, shown.points) == ({"role": "student"}, {"loss": "hinton"}, {})
    assert shown.artifacts == ()


def test_every_metric_of_an_epoch_is_a_point_at_the_epochs_end(folder):
    epoch(folder, 0, loss=None)
    epoch(folder, 1, loss=2)
    assert of_folder(folder).points == {
        ("val/miou", 0): (0.0, 200_250),
        ("val/miou", 1): (0.25, 201_250),
        ("loss", 1): (2.0, 201_250),
    }


def test_an_epoch_without_a_time_has_that_of_the_run(folder):
    folder.append_metrics({"epoch": 0, "a": 1})
    assert of_folder(folder).points == {("a", 0): (1.0, 100_000)}


def test_the_configuration_is_shown_as_flat_parameters(folder):
    transforms = [{"_target_": "albumentations.HorizontalFlip", "p": 0.5}, {"_target_": "albumentations.Transpose"}]
    schedule = {"_target_": "kd.plan.Cosine", "initial": 4.0}
    folder.write_config({"seed": 0, "schedule": schedule, "augment": {"transforms": transforms}})
    assert of_folder(folder).parameters == {
        "loss": "hinton", "seed": 0, "schedule.initial": 4.0,
        "augment.transforms": "HorizontalFlip(p=0.5), Transpose()",
    }  # fmt: skip


def test_how_many_pictures_there_were_is_a_parameter(folder):
    folder.identify(pictures={"labelled": 8, "unlabelled": 5, "unlabelled_per_batch": 2})
    found = of_folder(folder).parameters
    assert (found["pictures.labelled"], found["pictures.unlabelled"]) == (8, 5)


def test_no_transform_at_all_is_a_parameter_too(folder):
    folder.write_config({"augment": {"transforms": []}})
    assert of_folder(folder).parameters["augment.transforms"] == "none"


def ended(folder: RunFolder, status: str = "FINISHED") -> None:
    folder.identify(status=status, ended=300.5)


def test_the_summary_is_shown_as_points_of_the_last_epoch(folder):
    epoch(folder, 0)
    epoch(folder, 1)
    summary = {"objective": {"val/miou": 0.25}, "student": {"val/miou": 0.5, "test/miou": None}, "state": "complete"}
    folder.write_summary(summary | {"best_epoch": 1, "baseline": {"val/miou": 0.1}, "pictures": {"val": 3}})
    assert "best_epoch" not in {name for name, _ in of_folder(folder).points}
    ended(folder)
    shown = of_folder(folder)
    closing = {key: value for key, value in shown.points.items() if key[0] not in ("val/miou",)}
    assert closing == {
        ("best/val/miou", 1): (0.25, 201_250), ("student/val/miou", 1): (0.5, 201_250), ("best_epoch", 1): (1, 201_250)
    }  # fmt: skip
    assert shown.tags == {"role": "student", "state": "complete"}
    assert (shown.status, shown.ended) == ("FINISHED", 300_500)


def test_the_mean_iou_of_the_best_epoch_is_shown_whatever_the_objective(folder):
    for number in range(3):
        epoch(folder, number)
    folder.write_summary({"objective": {"val/iou/cell": 0.75}, "best_epoch": 1})
    ended(folder)
    points = of_folder(folder).points
    assert (points["best/val/miou", 2][0], points["best/val/iou/cell", 2][0]) == (0.25, 0.75)


def test_files_are_shown_after_the_end_without_hidden_ones_and_checkpoints(folder):
    (folder / ".hydra").mkdir()
    names = [".lock", "checkpoint.safetensors", "checkpoint.before.safetensors", "summary.json", "curves.png"]
    for name in names:
        (folder / name).write_text("{}")
    assert of_folder(folder).artifacts == ()
    ended(folder, "FAILED")
    shown = of_folder(folder).artifacts
    assert shown == tuple((folder / name, None) for name in ("curves.png", "run.json", "summary.json"))
    assert files(folder.path, ".png") == [folder / "curves.png"]


def test_a_run_whose_process_died_was_killed_at_its_last_epoch(folder):
    shown = of_folder(folder, ended=True)
    assert (shown.status, shown.ended) == ("KILLED", 100_000)
    epoch(folder, 0)
    shown = of_folder(folder, ended=True)
    assert (shown.status, shown.ended) == ("KILLED", 200_250)


def test_a_pruned_run_has_the_nearest_status_that_mlflow_has(folder):
    folder.write_summary({"state": "pruned"})
    ended(folder)
    assert of_folder(folder).status == "KILLED"
    assert of_folder(folder).tags["state"] == "pruned"


def test_the_data_set_is_shown_with_its_digest_and_sizes(folder):
    folder.identify(choices={"data": "folder"}, data_fingerprint="f" * 40)
    folder.write_config({"data": {"root": "/data/my_cells"}})
    assert of_folder(folder).data is None
    folder.identify(pictures={"labelled": 8, "unlabelled": 5, "unlabelled_per_batch": 2, "val": 3, "test": 0})
    assert of_folder(folder).data == Data(
        "my_cells", "f" * 12, "/data/my_cells", {"train": 8, "unlabelled": 5, "val": 3, "test": 0}
    )


def test_the_note_has_the_command_the_figures_and_the_report(folder):
    folder.write_overrides(["backbone=b0_from_b3", "data.root=`x`"])
    epoch(folder, 0)
    assert of_folder(folder).note == ""
    figures = {"student": {"val/miou": 0.5, "test/miou": None, "val/iou/cell": 0.25}, "teacher": {"val/miou": 0.625}}
    folder.write_summary({"objective": {"val/iou/cell": 0.25}, "baseline": {"val/miou": "x"}, **figures})
    ended(folder)
    assert of_folder(folder).note.splitlines() == [
        "`python train.py backbone=b0_from_b3 data.root='x'`",
        "- val/iou/cell **0.2500**",
        "- val/miou **0.5000** (teacher 0.6250)",
        "",
        f"Report: `kd report {folder.path}`",
    ]


def test_the_command_of_a_note_has_the_folder_of_the_recipes(folder):
    folder.identify(config_dir="/recipes")
    folder.write_overrides(["experiment=mine"])
    folder.write_summary({"student": {"val/miou": 0.5}})
    ended(folder)
    assert of_folder(folder).note.startswith("`python train.py --config-dir /recipes experiment=mine`")


def test_a_teachers_note_says_where_it_is_and_how_good(folder):
    folder.write_summary({"teacher": {"val/miou": 0.5, "test/miou": 0.25}})
    ended(folder)
    assert of_folder(folder).note.splitlines() == [
        f"A teacher, kept in `{folder.path}` for every run that asks for the same one.",
        "- val/miou **0.5000**",
        "- test/miou **0.2500**",
    ]


def test_a_pruned_run_says_so_in_its_note(folder):
    folder.write_summary({"state": "pruned"})
    ended(folder)
    assert of_folder(folder).note.startswith("Pruned: it did worse")


@pytest.mark.parametrize("content", ["[unclosed", "a: mapping\n", ""])
def test_a_note_needs_no_overrides(content, folder):
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(content)
    folder.write_summary({"student": {"val/miou": 0.5}})
    ended(folder)
    assert of_folder(folder).note.startswith("- val/miou **0.5000**")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_a_recorded_status_is_kept(folder, status):
    ended(folder, status)
    assert of_folder(folder, ended=True).status == status


FIGURES = st.dictionaries(
    st.sampled_from(["a", "b", "val/iou/x"]), st.none() | st.floats(allow_nan=False, allow_infinity=False)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(FIGURES, min_size=1, max_size=5), data=st.data())
def test_a_truncated_metrics_file_shows_its_complete_epochs(records, data, tmp_path):
    folder = RunFolder(tmp_path)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    folder.identify(**FACTS)
    for number, record in enumerate(records):
        folder.append_metrics({"epoch": number, **record, "time": float(number)})
    text = (folder / "metrics.jsonl").read_bytes()
    whole = of_folder(folder).points
    cut = data.draw(st.integers(0, len(text)))
    (folder / "metrics.jsonl").write_bytes(text[:cut] + data.draw(st.sampled_from([b"", b"\0\0\0"])))
    epochs = text[:cut].count(b"\n")
    assert of_folder(folder).points == {key: value for key, value in whole.items() if key[1] < epochs}


def test_a_folder_reads_as_it_was_written(folder, tmp_path):
    assert json.loads((folder / "run.json").read_text()) == folder.identity() == FACTS
    assert RunFolder(tmp_path / "empty").identity() == {}
    assert Path(folder / "run.json").is_file()
