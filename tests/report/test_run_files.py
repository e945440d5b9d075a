"""Whatever state a run folder is in: what cannot be read is listed, and the rest is shown."""

import os

import pytest
from pages import Parsed, write

from kd.errors import RunError
from kd.report.run_files import FILES, read


def test_a_whole_folder_misses_nothing(distilled):
    assert read(distilled).missing == []


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_listed_and_the_rest_is_shown(lean, name):
    (lean / name).unlink()
    page = Parsed(write(lean))
    assert f"{name} is missing" in page.missing
    assert len(page.sections) >= 7


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"\x00\xff{[", b"[1, 2, 3]\n", b"{}\n", b"", b'{"student": 3, "epoch": {}}\n'])
def test_a_damaged_file_is_listed_and_the_rest_is_shown(lean, name, content):
    (lean / name).write_bytes(content)
    page = Parsed(write(lean))
    assert len(page.sections) >= 6
    if content == b"\x00\xff{[":
        assert name in page.missing


def put(path, kind):
    """Put something that is not a regular file of the folder in place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path, "broken": path.parent / "gone"}[kind])


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "broken"])
def test_anything_but_a_regular_file_is_listed_and_not_read(lean, kind):
    irregular = [name for name in FILES if name != "summary.json"]
    for name in (*irregular, "timeline.png", "curves.png", "error.txt"):
        put(lean / name, kind)
    run = read(lean)
    assert {line.split()[0] for line in run.missing} == {*irregular}
    assert (run.config, run.records, run.seen, run.picture("timeline.png"), run.text("error.txt")) == (
        {}, [], {}, None, None,
    )  # fmt: skip
    assert Parsed(write(lean)).sections == ["missing", "results", "per-class", "predictions", "cost"]


OUT_OF_BOUNDS = {
    "400 digits": b'{"epoch": ' + b"9" * 400 + b"}\n",
    "deep": b"[" * 10_000 + b"\n",
    "aliases": b"a: &a [1]\nb: [*a, *a]\n",
    "NaN": b'{"epoch": NaN}\n',
}


@pytest.mark.parametrize("content", OUT_OF_BOUNDS.values(), ids=OUT_OF_BOUNDS)
def test_content_out_of_bounds_is_listed(lean, content):
    names = [name for name in FILES if name.endswith(("json", "jsonl", "yaml"))]
    for name in names:
        (lean / name).write_bytes(content)
    missing = read(lean).missing
    for name in names:
        is_fine = name == "config.yaml" and b"NaN" in content  # a text in YAML
        assert any(name in line for line in missing) != is_fine
    write(lean)


def test_damaged_lines_of_metrics_are_counted_and_left_out(distilled, lean):
    lines = (lean / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    bad = [b"{\n", b'{"epoch": 1, "unfrozen_blocks": []}\n', b'{"epoch": 1}\n', b'{"epoch": 7, "cut": 0']
    (lean / "metrics.jsonl").write_bytes(b"".join([*lines, *bad]))
    run = read(lean)
    assert run.records == read(distilled).records
    assert run.missing == ["3 of 6 lines of metrics.jsonl are damaged"]


def test_interpolations_are_texts(lean, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    with (lean / "config.yaml").open("a") as file:
        file.write("extra: ${oc.env:SECRET}\n")
    assert read(lean).config["extra"] == "${oc.env:SECRET}"
    assert "hunter2" not in write(lean)


def test_a_folder_without_any_file_of_a_run_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match="not a run folder"):
        read(tmp_path)
