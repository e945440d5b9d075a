"""What is written into a run folder reads back the same, and a file is complete or absent."""

import json
import math
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from program import forked, forks

from kd.config.compose import compose, plain
from kd.errors import RunError
from kd.run.folder import LONGEST_LINE, MOST_DAMAGED, SIGNS, RunFolder, SavedRun, only_one
from kd.system.untrusted import UnreadableError


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "2026-11-21" / "08-00-00")


def files(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


class Unknown:
    """What neither JSON nor YAML can hold."""


def test_a_run_folder_is_created_with_its_parents_unless_it_exists(folder):
    assert folder.path.is_dir()
    (folder / "note.txt").write_text("mine")
    assert files(RunFolder(folder.path)) == ["note.txt"]


def test_its_files_are_found_by_name(folder):
    assert folder / "summary.json" == folder.path / "summary.json"


def test_metrics_read_back_as_written_in_order(folder):
    records = [
        {"epoch": 0, "val/miou": 0.1, "lr/decoder": 1e-3, "val/iou/Straße « \n »": 1 / 3},
        {"epoch": 1, "val/miou": None, "lr/decoder": 1e-300},
        {"epoch": 2, "val/miou": 1, "lr/decoder": 0.1 + 0.2},
    ]
    for count, record in enumerate(records, start=1):
        folder.append_metrics(record)
        assert folder.metrics() == records[:count]
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == count
    assert RunFolder(folder.path).metrics() == records


def test_a_last_line_that_was_cut_short_is_left_out(folder):
    for epoch in range(2):
        folder.append_metrics({"epoch": epoch})
    text = (folder / "metrics.jsonl").read_bytes()
    for end in range(len(text) // 2, len(text)):
        (folder / "metrics.jsonl").write_bytes(text[:end])
        assert folder.metrics() == [{"epoch": 0}]
    (folder / "metrics.jsonl").write_bytes(text[:-3] + b"\0\0\0")
    assert folder.metrics() == [{"epoch": 0}]


def test_facts_of_several_threads_are_all_kept(folder):
    assert folder.identity() == {}
    assert folder.identify(id="1", status="RUNNING") == {"id": "1", "status": "RUNNING"}
    threads = [threading.Thread(target=folder.identify, kwargs={f"fact{i}": i}) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {"id": "1", "status": "RUNNING"} | {f"fact{i}": i for i in range(8)}
    assert folder.identity() == json.loads((folder / "run.json").read_text()) == expected


def test_configuration_and_summary_are_empty_before_they_are_written(folder):
    assert folder.config() == folder.summary() == {}
    folder.write_config({"seed": 0})
    folder.write_summary({"epochs": 1})
    assert (folder.config(), folder.summary()) == ({"seed": 0}, {"epochs": 1})


def test_before_the_first_epoch_there_are_no_metrics(folder):
    assert folder.metrics() == []


def test_numbers_that_json_lacks_become_null(folder):
    folder.append_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5})
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"a": None, "b": None, "c": None, "d": 0.5}


def test_a_record_that_cannot_be_written_leaves_no_half_line(folder):
    folder.append_metrics({"epoch": 0})
    with pytest.raises(TypeError):
        folder.append_metrics({"epoch": 1, "what": Unknown()})
    assert folder.metrics() == [{"epoch": 0}]


def test_lines_from_an_epoch_on_are_dropped_and_the_others_kept(folder):
    folder.write_summary({"a": 1})
    records = [{"epoch": epoch, "x": 0.1 * epoch} for epoch in range(4)]
    for record in records:
        folder.append_metrics(record)
    assert folder.keep_metrics(2) == folder.metrics() == records[:2]
    folder.append_metrics({"epoch": 2})
    assert folder.metrics() == [*records[:2], {"epoch": 2}]
    assert folder.keep_metrics(0) == folder.metrics() == []
    assert files(folder) == ["summary.json"]


def test_overrides_are_those_of_the_first_start(folder):
    folder.write_overrides(["seed=1"])
    folder.write_overrides(["resume=auto"])
    assert yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) == ["seed=1"]


def test_a_configuration_reads_back_as_written(folder):
    config = plain(compose(["data.classes=3", 'data.class_names=["Straße","b: c","yes"]', '+tracking.tags.a="1"']))
    folder.write_config(config)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == config
    assert list(yaml.safe_load(text)) == list(config)
    assert "Straße" in text
    assert "${" not in text


def test_a_summary_reads_back_as_written(folder):
    summary = {"objective": {"val/miou": 0.5}, "student": {"parameters": 10, "val/iou/Straße": None}, "best_epoch": 3}
    folder.write_summary(summary | {"seconds": math.inf})
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == summary | {"seconds": None}


@pytest.mark.parametrize(
    ("write", "name"), [(RunFolder.write_config, "config.yaml"), (RunFolder.write_summary, "summary.json")]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(folder, write, name):
    write(folder, {"a": 1})
    before = (folder / name).read_bytes()
    with pytest.raises((TypeError, yaml.YAMLError)):
        write(folder, {"a": 2, "b": list(range(10_000)), "what": Unknown()})
    assert (folder / name).read_bytes() == before
    assert files(folder) == [name]


@pytest.mark.parametrize(
    ("write", "name"), [(RunFolder.write_config, "config.yaml"), (RunFolder.write_summary, "summary.json")]
)
def test_writing_again_replaces_the_file(folder, write, name):
    write(folder, {"a": list(range(1000))})
    write(folder, {"a": 1})
    assert yaml.safe_load((folder / name).read_text()) == {"a": 1}  # JSON is YAML
    assert files(folder) == [name]


# one process


def _hold(path: Path, ready, done) -> None:
    with only_one(path):
        ready.set()
        done.wait(600)


def test_a_second_process_is_refused(tmp_path):
    ready, done = forks.Event(), forks.Event()
    other = forked(_hold, tmp_path, ready, done)
    assert ready.wait(600)
    with pytest.raises(RunError, match="another process is at work"), only_one(tmp_path):
        pass
    with only_one(tmp_path, on_wait=done.set):  # waits for it
        assert done.is_set()
    other.join()
    with only_one(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    ready, never = forks.Event(), forks.Event()
    other = forked(_hold, tmp_path, ready, never)
    assert ready.wait(600)
    other.kill()
    other.join()
    with only_one(tmp_path):
        pass


# a folder that somebody else wrote

READS = {
    "config.yaml": SavedRun.config, ".hydra/overrides.yaml": SavedRun.overrides, "run.json": SavedRun.identity,
    "metrics.jsonl": SavedRun.metrics, "summary.json": SavedRun.summary, "evidence.json": SavedRun.evidence,
    "evidence.safetensors": SavedRun.tensors,
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_a_missing_file_reads_as_empty_and_nothing_is_created(tmp_path, name):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert not READS[name](SavedRun(path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "outside", "damaged"])
def test_a_damaged_or_irregular_file_is_an_error_that_names_it(tmp_path, name, kind):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "outside").write_text("{}\n")
    path = tmp_path / "run" / name
    {
        "pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero"),
        "outside": lambda: path.symlink_to(tmp_path / "outside"), "damaged": lambda: path.write_bytes(b"\x00\xff{[\n"),
    }[kind]()  # fmt: skip
    with pytest.raises(UnreadableError) as caught:
        READS[name](SavedRun(tmp_path / "run"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ['{"epoch": ' + "9" * 400 + "}", '{"epoch": -1}', '{"epoch": true}', '{"epoch": 1.5}', '{"loss": 1}', "[1]", "",
     '{"epoch": 1, "loss": "x"}', '{"epoch": 1, "loss": NaN}', '{"epoch": 1, "loss": [1]}', "\xff", "{",
     '{"epoch": 1, "time": 1e300}', '{"epoch": 1, "time": -1}', '{"epoch": 1, "time": null}'],
)  # fmt: skip
def test_a_line_of_metrics_that_is_not_an_epochs_numbers_is_an_error_or_left_out(folder, line):
    folder.append_metrics({"epoch": 0})
    with (folder / "metrics.jsonl").open("a", encoding="latin-1") as file:
        file.write(f'{line}\n{{"epoch": 2}}\n')
    with pytest.raises(UnreadableError, match=r"metrics\.jsonl is damaged in line 2 "):
        folder.metrics()
    damaged = []
    assert folder.metrics(damaged) == [{"epoch": 0}, {"epoch": 2}]
    assert len(damaged) == 1


def test_lines_of_metrics_are_bounded_in_length_and_damaged_ones_in_number(folder):
    folder.append_metrics({"epoch": 0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{{"epoch": 1, "x": [{"{}," * LONGEST_LINE}0]}}\n')
    damaged = []
    assert folder.metrics(damaged) == [{"epoch": 0}]
    assert f"it has {LONGEST_LINE * 3 + 22} bytes" in damaged[0].reason
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n" * MOST_DAMAGED)
    with pytest.raises(UnreadableError, match=f"damaged in line {MOST_DAMAGED + 2} "):
        folder.metrics([])


def test_a_written_configuration_has_no_aliases(folder):
    shared = [32, 32]
    folder.write_config({"data": {"image_size": shared}, "other": shared})
    assert "&" not in (folder / "config.yaml").read_text()
    assert folder.config() == {"data": {"image_size": [32, 32]}, "other": [32, 32]}


def test_interpolations_of_a_configuration_are_not_resolved(folder):
    folder.write_config({"root": "${oc.env:HOME}"})
    assert folder.config() == {"root": "${oc.env:HOME}"}


@given(st.binary(max_size=40), st.sampled_from(sorted(READS)))
@settings(deadline=None, max_examples=200)
def test_any_content_of_any_file_is_a_value_or_an_error(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / "any" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with suppress(UnreadableError):
        READS[name](SavedRun(tmp_path_factory.getbasetemp() / "any"))


def test_a_picture_is_passed_on_only_if_it_begins_as_a_png_does(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    (tmp_path / "b.png").write_bytes(b"<svg/>")
    found = [SavedRun(tmp_path).picture(name) for name in ("a.png", "b.png", "c.png")]
    assert found == [b"\x89PNG\r\n\x1a\n...", None, None]


@pytest.mark.parametrize("name", SIGNS)
def test_any_of_its_files_makes_a_folder_one_of_a_run(tmp_path, name):
    assert not SavedRun(tmp_path).exists()
    (tmp_path / name).touch()
    assert SavedRun(tmp_path).exists()
