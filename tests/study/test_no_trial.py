"""The null object: a run outside any study is never pruned, and its reports go nowhere."""

import subprocess
import sys

import pytest

from kd.study.no_trial import NoTrial


@pytest.mark.parametrize("value", [None, float("nan"), 0.0])
def test_a_run_outside_any_study_is_never_pruned(value):
    run = NoTrial()
    assert run.report(value, 1, 3) is False
    assert not run.pruned


def test_a_run_outside_any_study_has_no_tags_and_continues_no_other():
    run = NoTrial()
    run.note({"epochs": 1})
    run.finish({"figure": float("nan")})
    assert not run.tags
    assert run.predecessor is None


def test_a_run_outside_any_study_does_not_import_optuna():
    code = "import sys, kd.study.no_trial; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
