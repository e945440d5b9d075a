"""Validation pictures of runs: a run's own, and those of several runs side by side, if they are the same."""

import json
import shutil

import pytest
import torch
from pages import ATTRIBUTE, SCRIPT, Parsed, write

from kd.report.elements import Folded, Legend, Picture, Strip, Text
from kd.report.run_files import read
from kd.report.samples import predictions, samples, shared_predictions
from kd.system import tensor_file


def titles(section) -> list[list[str]]:
    """The captions of each row of pictures."""
    return [[title for title, _ in block.panels] for block in section.blocks if isinstance(block, Strip)]


def said(section) -> str:
    return " ".join(line for block in section.blocks if isinstance(block, Text) for line in block.lines)


@pytest.fixture
def change(lean):
    """Change the copied folder's tensors or facts by name; returns the folder."""

    def apply(tensors=lambda name, tensor: tensor, **facts):
        seen, header = tensor_file.read(lean / "evidence.safetensors")
        changed = {name: found for name, tensor in seen.items() if (found := tensors(name, tensor)) is not None}
        tensor_file.write(lean / "evidence.safetensors", changed, header)
        evidence = json.loads((lean / "evidence.json").read_text())
        (lean / "evidence.json").write_text(json.dumps(evidence | facts))
        return lean

    return apply


def test_a_run_keeps_its_worst_its_best_and_evenly_spaced_pictures(distilled):
    found = samples(read(distilled))
    assert [sample.end for sample in found] == ["worst"] * 3 + ["best"] * 3 + ["even"] * 5
    assert [sample.name for sample in found[6:]] == ["val_00000", "val_00002", "val_00004", "val_00005", "val_00007"]
    assert {name for sample in found for name in sample.arrays} == {"image", "truth", "teacher", "student"}
    seen = read(distilled).seen["student/val/scores"]
    assert [sample.miou for sample in found[6:]] == pytest.approx([float(seen[index]) for index in (0, 2, 4, 5, 7)])


def test_the_evenly_spaced_pictures_of_a_run_are_folded(distilled):
    section = predictions(read(distilled))
    assert len(titles(section)) == 6
    folded = section.blocks[-1]
    assert isinstance(folded, Folded)
    assert folded.blocks[0].title.startswith("val_00000, mIoU")
    assert section.blocks[1] == Legend(["sky", "road", "car"], ["wrong"])


def test_two_runs_stand_side_by_side_on_the_same_pictures(distilled, alone):
    runs = {"A": read(distilled), "B": read(alone)}
    section = shared_predictions(runs)
    rows = titles(section)
    assert len(rows) == 5
    scores = [{letter: sample.score for letter, run in runs.items()
               if (sample := samples(run)[6 + row]).end == "even"} for row in range(5)]  # fmt: skip
    assert rows == [
        ["image", "truth", f"A, {each['A']}", "A's errors", f"B, {each['B']}", "B's errors"] for each in scores
    ]
    assert "the same for each run" in said(section)
    assert section.brief == []


def test_pictures_that_differ_are_not_set_side_by_side_and_that_is_said(distilled, change):
    other = change(lambda name, tensor: tensor ^ 1 if name.endswith("/image") else tensor)
    section = shared_predictions({"A": read(distilled), "B": read(other)})
    assert titles(section) == []
    assert "A, B: other validation pictures than the other runs" in said(section)
    assert [block.title for block in section.blocks if isinstance(block, Folded)] == [
        "A: its own pictures", "B: its own pictures",
    ]  # fmt: skip


@pytest.mark.parametrize("facts", [{"class_names": ["sky", "road", "bus"]}, {"ignore_index": 255}])
def test_pictures_of_other_classes_are_not_the_same(distilled, alone, change, facts):
    section = shared_predictions({"A": read(distilled), "B": read(change(**facts)), "C": read(alone)})
    assert {title[0] for row in titles(section) for title in row if "mIoU" in title} == {"A", "C"}
    assert "B: other validation pictures" in said(section)


def test_void_is_in_the_legend_of_data_that_has_it(distilled, change):
    for run, expected in ((read(distilled), ["wrong"]), (read(change(ignore_index=255)), ["void", "wrong"])):
        (legend,) = (block for block in predictions(run).blocks if isinstance(block, Legend))
        assert [*legend.errors] == expected


def test_an_older_folder_shows_the_picture_that_it_has(distilled, change):
    old = change(lambda name, tensor: None if name.startswith("sample/") else tensor, samples=[])
    section = shared_predictions({"A": read(distilled), "B": read(old)})
    assert "B keeps no pictures to set beside others'" in said(section)
    assert isinstance(section.blocks[-1].blocks[0], Picture)
    assert isinstance(predictions(read(old)).blocks[-1], Picture)


@pytest.mark.parametrize(
    "damage",
    [
        lambda name, tensor: tensor[:, :-1] if name.endswith("/truth") else tensor,
        lambda name, tensor: tensor.long() if name.endswith("/student") else tensor,
        lambda name, tensor: tensor[None] if name.startswith("sample/") else tensor,
        lambda name, tensor: None if name.endswith("/student") else tensor,
        lambda name, tensor: tensor[..., :2] if name.endswith("/image") else tensor,
    ],
    ids=["another size", "another type", "more dimensions", "without labels", "two channels"],
)
def test_damaged_pictures_are_left_out_and_named(distilled, alone, change, damage):
    broken = change(damage)
    section = shared_predictions({"A": read(distilled), "B": read(broken), "C": read(alone)})
    assert len(titles(section)) == 5
    assert "B: its pictures are damaged" in said(section)
    assert "Predictions: damaged data" in Parsed(write(broken)).missing


def test_labels_beyond_the_classes_are_no_error(distilled, change):
    folder = change(lambda name, tensor: torch.full_like(tensor, 200) if name.endswith("/student") else tensor)
    assert len(titles(shared_predictions({"A": read(distilled), "B": read(folder)}))) == 5


def test_hostile_names_are_text_and_a_missing_score_is_said(distilled, lean):
    evidence = json.loads((lean / "evidence.json").read_text())
    for sample in evidence["samples"]:
        sample |= {"name": SCRIPT + ATTRIBUTE, "miou": None}
    (lean / "evidence.json").write_text(json.dumps(evidence))
    twin = shutil.copytree(lean, lean.parent / "twin")
    page = Parsed(write(lean, twin))
    assert "script" not in page.tags
    assert SCRIPT in page.text
    assert "A, mIoU unknown" in page.text
