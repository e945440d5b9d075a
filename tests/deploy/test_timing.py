"""Latency is measured in turns and reported in milliseconds."""

import io
import json

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from kd.cli import main
from kd.deploy import find
from kd.deploy.timing import WARM_UP, Contestant, Latency, measured, times_faster
from kd.run import console


def test_contestants_take_turns_in_every_round_and_see_every_batch():
    seen = []

    def contestant(name):
        return Contestant(name, lambda images: seen.append((name, images.shape, images.dtype)))

    seconds = measured([contestant("one"), contestant("other")], [1, 4], (32, 64), rounds=2)
    turn = [(name, (batch, 3, 32, 64), np.uint8) for batch in (1, 4) for name in ("one", "other")]
    assert seen == turn * (2 + WARM_UP)
    assert {key: len(each) for key, each in seconds.items()} == {
        (name, batch): 2 for name in ("one", "other") for batch in (1, 4)
    }


def test_percentiles_are_in_milliseconds():
    assert Latency.of([index / 1000 for index in range(101)]) == pytest.approx(Latency(50, 10, 90))


def test_a_ratio_is_taken_within_a_round():
    assert times_faster([4, 40, 6], [2, 20, 2]) == 2


# kd bench-model


def bench(folder, *options) -> None:
    main(["bench-model", str(folder), "--json", "--device", "cpu", *options])


def test_teacher_student_and_onnx_file_are_timed_with_their_size_and_quality(copy, capsys):
    figures = {"student": {"val/miou": 0.5}, "teacher": {"file_bytes": 10**6}}
    (copy / "summary.json").write_text(json.dumps(figures))
    bench(copy, "--rounds", "2", "--batch", "2")
    report = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["batch"]) for row in report["rows"]] == [
        (name, batch) for batch in (1, 2) for name in ("teacher", "student", "ONNX")
    ]
    by_name = {row["name"]: row for row in report["rows"]}
    assert by_name["student"]["parameters"] == find(copy).network.count_parameters() < by_name["teacher"]["parameters"]
    assert by_name["student"]["val/miou"] == by_name["ONNX"]["val/miou"] == 0.5
    assert by_name["teacher"]["file_bytes"] == 10**6
    assert by_name["teacher"]["times_faster"] == 1
    assert all(0 < row["p10"] <= row["median"] <= row["p90"] for row in report["rows"])
    assert report["threads"] == torch.get_num_threads()


@pytest.fixture
def table(monkeypatch):
    """Print the tables of `kd bench-model` at 80 columns; returns the first one's title and the names of its rows."""
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, width=80))

    def call(folder, *options):
        main(["bench-model", str(folder), "--rounds", "1", "--batch", "1", "--device", "cpu", *options])
        speeds, sizes = file.getvalue().split("size and quality")
        assert "times faster" in speeds
        assert "mIoU test" in sizes
        names, again = ([line.strip("│ ").split("│")[0].strip() for line in part.splitlines() if line.startswith("│")]
                        for part in (speeds, sizes))  # fmt: skip
        assert again == names
        return " ".join(speeds.partition("┏")[0].split()), names

    return call


def test_the_table_has_a_row_for_each_contestant_and_the_size_that_was_asked_for(run, table):
    title, names = table(run, "--size", "64x32")
    assert "64 x 32" in title
    assert names == ["teacher", "student", "ONNX"]


@pytest.mark.parametrize("teacher", [{"kind": "smp", "path": "my_unet"}, {"path": "gone.safetensors"}])
def test_a_teacher_that_cannot_be_built_is_left_out(copy, capsys, teacher):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, "teacher": teacher}))
    bench(copy, "--rounds", "1", "--batch", "1")
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["student", "ONNX"]


@pytest.mark.parametrize("text", ["[1]", "{", '{"student": 3, "teacher": {"file_bytes": "x", "val/miou": []}}'])
def test_a_damaged_summary_costs_its_figures_only(copy, table, text):
    (copy / "summary.json").write_text(text)
    assert table(copy)[1] == ["teacher", "student", "ONNX"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], "--device=cuda:99: this machine has"),
        (["--size", "100x64"], "--size=100x64 should be height x width"),
        (["--rounds", "0"], "--rounds=0 must be 1 or more"),
    ],
)
def test_an_impossible_measurement_is_refused_in_one_line(run, refused, options, message):
    assert message in refused("bench-model", run, *options)
