"""`kd evaluate` gives the figures of the run on the run's data, and of other data at the size that was asked for."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from finished import finished
from pairs import mask, put
from PIL import Image

from kd.cli import main
from kd.config.compose import compose, plain
from kd.config.read import source
from kd.data.batches.loading import EvalLoader
from kd.deploy.evaluating import most_frequent
from kd.networks import saved
from kd.networks.precision import Precision
from kd.training.evaluation import evaluate
from kd.training.metrics import Confusion


def figures(capsys, *arguments) -> dict:
    capsys.readouterr()
    main(["evaluate", *map(str, arguments), "--device", "cpu", "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_runs_own_data_gives_the_figures_of_its_evaluation(run, split, capsys):
    data = source(
        plain(compose(["backbone=tiny", "data.image_size=[32,32]", "data.train=8", "data.val=6", "data.test=4"]))
    )
    precision = Precision(torch.device("cpu"))
    network = precision.place(saved.load_file(run / "student.safetensors"))
    expected = evaluate(network, EvalLoader(data, split, 8), precision, data.void).metrics(data.class_names)
    found = figures(capsys, run, "--split", split)
    assert found["images"] == data.size(split)
    assert {f"{split}/{name}": value for name, value in expected.items() if name != "loss"} == found["student"]


def test_without_a_split_it_is_test(run, capsys):
    assert figures(capsys, run)["split"] == "test"


def test_an_exported_file_scores_as_its_network(run, capsys):
    one, other = figures(capsys, run), figures(capsys, run / "export" / "student.onnx")
    assert one["student"] == pytest.approx(other["student"], abs=0.01)
    assert one["one_class"] == other["one_class"]


def test_the_table_names_the_size_and_the_prediction_beside_it(run, capsys):
    main(["evaluate", str(run), "--device", "cpu"])
    out = capsys.readouterr().out
    assert "results at 32 x 32 pixels" in out
    assert "one class everywhere" in " ".join(out.split())
    assert "trivial" not in out
    assert "mIoU, test" in out


def test_at_the_pictures_own_size_the_labels_are_those_of_predict(copy, tmp_path, capsys):
    """On pictures of several sizes: each pixel of what `kd predict` writes, against the mask as it is stored."""
    root = tmp_path / "cells"
    random = np.random.default_rng(0)
    for split, number in product(("train", "val", "test"), range(3)):
        image = random.integers(0, 256, (50 + 9 * number, 70, 3), np.uint8)
        put(root, f"{number}", image, mask(50 + 9 * number, 70, (0, 255)), split)
    common = ["data=folder", f"data.root={root}", "data.mask_values=[0,255]"]
    found = figures(capsys, copy, *common, "--native")
    assert found["measured_at"] == "the pictures' own size (logits resized)"
    main(["predict", str(copy), str(root / "images" / "test"), "-o", str(tmp_path / "out"), "--device", "cpu"])
    counts = Confusion(2)
    for path in sorted((root / "masks" / "test").iterdir()):
        truth, made = (np.array(Image.open(each)) for each in (path, tmp_path / "out" / path.name))
        counts.add(torch.from_numpy(made > 0).to(torch.uint8)[None], torch.from_numpy(truth > 0).to(torch.uint8)[None])
    expected = {f"test/{name}": value for name, value in counts.summary(["background", "foreground"]).items()}
    assert found["student"] == expected
    assert figures(capsys, copy, *common)["measured_at"] == "32 x 32 pixels (resized)"


def test_the_root_of_the_runs_own_data_is_read_as_a_shell_means_it(copy, tmp_path, monkeypatch, capsys):
    root = tmp_path / "cells#2"
    for split, number in product(("train", "val", "test"), range(2)):
        put(root, f"{number}", np.full((40, 40, 3), 90, np.uint8), mask(40, 40, (0, 1)), split)
    config = plain(compose(["backbone=tiny", "data=folder", "data.root=/nowhere", "data.image_size=[32,32]"]))
    (copy / "config.yaml").write_text(json.dumps(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert figures(capsys, copy, "data.root=~/cells#2")["images"] == 2


def test_a_teachers_column_is_not_called_student(copy, capsys):
    for end in ("safetensors", "json"):
        (copy / f"student.{end}").rename(copy / f"teacher.{end}")
    main(["evaluate", str(copy / "teacher.safetensors"), "--device", "cpu"])
    heading = capsys.readouterr().out.split("mIoU")[0]
    assert "teacher" in heading
    assert "student" not in heading


def test_other_names_of_the_classes_are_a_warning_beside_the_figures(tmp_path, capsys):
    finished(tmp_path / "run", "data.classes=3")
    found = figures(capsys, tmp_path / "run", "data.class_names=[sky,car,road]")
    assert "data's classes are named sky, car, road, the network's background, " in found["warnings"][0]
    assert figures(capsys, tmp_path / "run")["warnings"] == []


def test_a_part_of_the_split_and_absent_classes_are_warnings(run, tmp_path, capsys):
    assert figures(capsys, run, "data.limit=3")["warnings"][0].startswith("data.limit=3: no more pictures of the split")
    for split in ("train", "val", "test"):
        put(tmp_path, "a", np.full((32, 32, 3), 90, np.uint8), np.zeros((32, 32), np.uint8), split)
    (warning,) = figures(capsys, run, "data=folder", f"data.root={tmp_path}")["warnings"]
    assert warning.startswith("1 of 2 classes have no pixel in these masks (foreground)")


def test_one_key_of_the_data_can_be_changed_alone(run, capsys):
    assert figures(capsys, run, "data.test=2")["images"] == 2


def test_one_class_everywhere_is_the_most_frequent_class():
    truth, made = torch.randint(0, 3, (2, 1, 40, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    truth[truth == 2] = 1
    counts, slow = Confusion(3), Confusion(3)
    counts.add(made, truth)
    slow.add(torch.ones_like(truth), truth)
    assert torch.equal(most_frequent(counts).counts, slow.counts)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trainer.epochs=3"], "trainer.epochs says nothing of the data"),
        (["data.classes=3"], "data.classes=3, but student.safetensors has 1 logits"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(run, refused, arguments, part):
    assert part in refused("evaluate", run, *arguments)


def test_a_file_outside_a_run_is_refused(run, tmp_path, refused):
    copied = tmp_path / "student.onnx"
    copied.write_bytes((run / "export" / "student.onnx").read_bytes())
    assert "is not a file that kd export wrote" in refused("evaluate", copied)


def test_a_network_of_many_classes_has_a_table_of_them(tmp_path, capsys):
    finished(tmp_path / "run", "data.classes=3")
    main(["evaluate", str(tmp_path / "run"), "--device", "cpu"])
    out = capsys.readouterr().out
    assert "classes" in out
    assert "pixels" in out
