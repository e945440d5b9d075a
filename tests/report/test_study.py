"""A study: its results and its winner's run in full, or its table if the database is gone."""

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from pages import SCRIPT, Parsed, figures, summary_of, write

from kd.errors import UserError
from kd.report import report
from kd.study.address import default_url
from kd.study.origin import Origin
from kd.study.space import Space
from kd.study.storage import Database


@pytest.fixture
def studied(distilled, alone, root):
    """Two studies whose winners are runs of ours."""
    storage = Database(default_url(root)).open()
    searched = {"optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True)}
    for name, folder in (("mine", distilled), ("no_teacher", alone)):
        reached = summary_of(folder)["objective"]["val/miou"]
        made = optuna.create_study(study_name=name, storage=storage, directions=["maximize"])
        Space(searched, (f"+x={SCRIPT}",), {"val/miou": "maximize"}, {}).write(made)
        for number in range(5):
            value = reached - 0.05 * abs(number - 2)
            made.add_trial(create_trial(
                state=TrialState.PRUNED if number == 4 else TrialState.COMPLETE, value=value,
                params={"optimizer.lr": 10.0 ** (-1.5 - 0.3 * number)}, distributions=searched,
                user_attrs={"epochs": 1 + number % 3, "planned_epochs": 3, "test/miou": value,
                            **({"run_folder": str(folder)} if number == 2 else {})},
                intermediate_values={1: value / 2, 2: value},
            ))  # fmt: skip
    folder = root / "runs" / "studies" / "mine"
    (folder / "plots").mkdir(parents=True)
    shutil.copyfile(distilled / "curves.png", folder / "plots" / "slice.png")
    return folder


def test_a_study_is_shown_with_its_winners_run_in_full(studied, distilled, alone):
    page = Parsed(write("mine"))
    assert page.sections[:6] == ["baseline", "question", "best", "importance", "pruning", "trials"]
    assert "Cannot tell: the arms have no seed in common" in page.text
    assert {"winner-setup", "winner-results", "winner-per-class"} <= {*page.sections}
    expected = figures(summary_of(distilled))
    assert {key: page.numbers[key] for key in expected} == {key: {value} for key, value in expected.items()}
    assert f"{summary_of(alone)['student']['test/miou']:.4f}" in page.text
    assert "student without teacher" in page.text
    assert "mine against no_teacher" in page.text  # the caption of the arms' table
    assert "script" not in page.tags
    assert (studied / "report.html").is_file()


def test_the_question_is_that_of_the_study_and_not_of_its_name(studied, root):
    asked = "How good is a student without a teacher"
    assert asked not in Parsed(write("no_teacher")).text
    study = optuna.load_study(study_name="mine", storage=Database(default_url(root)).open())
    Origin(f"{asked}?").write(study)
    assert f"{asked}?" in Parsed(write("mine")).text


def test_a_study_without_its_database_shows_its_table(tmp_path):
    folder = tmp_path / "elsewhere" / "old"
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text(f"trial,state,val/miou\n0,complete,0.5\n1,{SCRIPT},0.25\n")
    page = Parsed(write(folder))
    assert page.sections == ["missing", "trials", "location"]
    assert "0.25" in page.text
    assert SCRIPT in page.text
    assert "the database of the study" in page.text


@pytest.mark.parametrize("content", [b"\xff\xfe", b'a,b\n"' + b"x" * 200_000, None])
def test_a_damaged_table_is_listed(content, tmp_path):
    folder = tmp_path / "elsewhere" / "old"
    folder.mkdir(parents=True)
    if content is None:
        (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
        (folder / "trials.csv").symlink_to(tmp_path / "secret.csv")
    else:
        (folder / "trials.csv").write_bytes(content)
    page = Parsed(write(folder))
    assert "trials.csv is damaged" in page.text
    assert page.sections == ["missing", "location"]


def test_an_unknown_study_is_an_error_of_one_line(studied):
    with pytest.raises(UserError, match="no study 'mina'"):
        report(["mina"])


def test_a_winner_takes_part_in_a_comparison_under_the_studys_name(studied, alone):
    assert "the winner of study mine" in Parsed(write(Path("mine"), alone)).text
