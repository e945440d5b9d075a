"""The page of a run says what the run folder says."""

import json
import subprocess

import pytest
import yaml
from pages import Parsed, figures, setup_of, summary_of, write

from kd.config.compose import PROJECT
from kd.report.run import in_short


def test_every_number_of_the_page_is_that_of_its_file(distilled):
    page, summary = Parsed(write(distilled)), summary_of(distilled)
    expected = figures(summary)
    assert len(expected) >= 2 * (4 + 2 * (2 + 3))
    assert {key: page.numbers[key] for key in expected} == {key: {value} for key, value in expected.items()}
    assert page.numbers["total_seconds"] == {summary["total_seconds"]}
    best = [json.loads(line) for line in (distilled / "metrics.jsonl").open()][summary["best_epoch"]]
    assert page.numbers["best.val/teacher_agreement"] == {best["val/teacher_agreement"]}


def test_the_page_has_every_part(distilled):
    page = Parsed(write(distilled))
    assert page.sections == [
        "setup", "results", "per-class", "curves", "predictions", "confusion", "calibration", "agreement", "cost",
        "reproduce",
    ]  # fmt: skip
    for words in ("sky", "road", "car", "trivial baseline", "backbone=tiny", "torch", "python train.py", "commit"):
        assert words in page.text


def test_a_foreign_teacher_is_not_said_to_be_the_backbones(copied):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    assert config["backbone"]["teacher"]["encoder"] in setup_of(copied)["teacher"]
    config["teacher"] = {"kind": "smp", "path": "my_unet", "class_map": None}
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    assert setup_of(copied)["teacher"] == "kind smp, path my_unet"


@pytest.mark.parametrize(
    ("beside", "says"),
    [(2, "8 with masks, 5 without (2 of them in each batch, for the teacher's terms)"),
     (0, "8 with masks, 5 without (not used: there is no teacher)")],
)  # fmt: skip
def test_the_setup_says_how_many_pictures_had_masks(copied, beside, says):
    assert "training pictures" not in setup_of(copied)
    identity = json.loads((copied / "run.json").read_text())
    identity["pictures"] = {"labelled": 8, "unlabelled": 5, "unlabelled_per_batch": beside}
    (copied / "run.json").write_text(json.dumps(identity))
    assert setup_of(copied)["training pictures"] == says


def test_a_run_has_its_commit_and_whether_files_differed_from_it(distilled):
    tags = json.loads((distilled / "run.json").read_text())["tags"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    if head.returncode:
        assert "git.dirty" not in tags
    else:
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()
        assert tags["git.dirty"] in ("true", "false")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.5, "0.5"), ("a b", "a b"), ([1, 2], "[1, 2]"), ({"a": None}, "{'a': None}")],
)
def test_a_value_is_one_line(value, text):
    assert in_short(value) == text


def test_a_long_or_deep_value_is_shortened():
    deep = [*range(10_000)]
    for _ in range(30):
        deep = [deep, "x" * 10_000]
    assert len(in_short(deep)) < 3000


def test_the_command_that_trains_it_again_has_the_folder_of_its_recipes(lean):
    assert " --config-dir " not in Parsed(write(lean)).text
    identity = json.loads((lean / "run.json").read_text())
    (lean / "run.json").write_text(json.dumps(identity | {"config_dir": "/my recipes"}))
    assert "python train.py --config-dir '/my recipes' backbone=tiny" in Parsed(write(lean)).text
