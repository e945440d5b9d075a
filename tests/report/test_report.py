"""`kd report` writes one page for a run, several runs or a study, and refuses anything else in one line."""

import json
from pathlib import Path

import pytest
from pages import Parsed, summary_of, write

from kd.cli import main as kd
from kd.errors import ConfigError
from kd.report import report
from kd.report.compare import MOST


def test_a_teachers_folder_has_a_page(home, distilled):
    teacher = next(path for path in (home / "runs" / "teachers").iterdir() if path.is_dir())
    page = Parsed(write(teacher))
    assert page.numbers["teacher.val/miou"] == {summary_of(teacher)["teacher"]["val/miou"]}


def test_a_run_without_an_end_shows_its_curves_and_its_plan(copied):
    for path in copied.iterdir():
        if path.is_file() and path.name not in ("config.yaml", "run.json", "metrics.jsonl"):
            path.unlink()
    facts = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**facts, "status": "KILLED"}))
    page = Parsed(write(copied))
    assert {"setup", "results", "curves", "cost", "reproduce"} <= {*page.sections}
    assert page.tags.count("img") == 2
    assert "resume=<its folder> resumes it" in page.text
    assert "epochs trained" in page.text


def test_one_epoch_is_written_in_the_singular(copied):
    (copied / "metrics.jsonl").write_text((copied / "metrics.jsonl").read_text().partition("\n")[0] + "\n")
    summary = json.loads((copied / "summary.json").read_text()) | {"planned_epochs": 1}
    (copied / "summary.json").write_text(json.dumps(summary))
    assert "1 of 1 epoch" in (text := Parsed(write(copied)).text)
    assert "1 of 1 epochs" not in text


def test_the_page_is_written_where_the_option_says_with_the_same_content(distilled, tmp_path):
    mine = report([str(distilled)], tmp_path / "mine.html")
    assert mine == tmp_path / "mine.html"
    assert mine.read_bytes() == Path(report([str(distilled)])).read_bytes()


@pytest.mark.parametrize("name", ["", "nowhere", "a\nb", "../elsewhere"])
def test_anything_but_a_run_or_a_study_is_refused_in_one_line(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as end:
        kd(["report", name or str(tmp_path / "empty")])
    err = capsys.readouterr().err
    assert end.value.code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_more_runs_than_letters_are_refused():
    with pytest.raises(ConfigError, match=f"{MOST} runs at most, but {MOST + 1} were given"):
        report(["x"] * (MOST + 1))
