"""What is refused before Hydra launches a job."""

import pytest

from kd.errors import ConfigError
from kd.experiment.train import _refuse_resume

STUDY, GRID = ["train.py", "-m"], ["train.py", "--multirun", "hydra/sweeper=basic", "seed=0,1"]


@pytest.mark.parametrize(
    ("typed", "advice"),
    [(STUDY, "repeat a study's command to resume it"), (GRID, "resume a grid's runs one by one: resume=<folder>")],
)
def test_resume_with_many_runs_is_refused_with_what_resumes_them(typed, advice):
    for resume in ("resume=auto", "+resume=auto"):
        with pytest.raises(ConfigError, match=f"^resume=auto is for a single run; {advice}"):
            _refuse_resume([*typed, resume])
    _refuse_resume([*typed, "resume=null"])
    _refuse_resume(["train.py", "resume=auto"])
