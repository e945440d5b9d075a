"""`kd train` and `python train.py` are one program: versions, help, one-line errors and completion in a shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd import cli
from kd.cli.train import COMPOSING
from kd.config.compose import PROJECT
from kd.deploy.export.check import TOLERANCE
from kd.experiment.train import task
from kd.study.protocol import Protocol
from kd.system.installation import version

SCRIPT = [sys.executable, str(PROJECT / "train.py")]
KD = [sys.executable, "-c", "import sys; sys.argv[0] = '/usr/bin/kd'; from kd.cli import main; main()"]
PROGRAMS = [pytest.param(SCRIPT, id="train.py"), pytest.param([*KD, "train"], id="kd-train")]


def run(command, **variables):
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


@pytest.mark.parametrize("program", [*PROGRAMS, pytest.param(KD, id="kd")])
def test_the_version_is_ours_and_not_hydras(program):
    done = run([*program, "--version"])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kd-sweeper {version()}\n", "")


def test_the_version_and_the_list_of_verbs_import_nothing_heavy():
    heavy = {"torch", "hydra", "omegaconf", "pydantic", "numpy"}
    for arguments in (["--version"], ["train", "--version"], ["--help"]):
        code = (
            f"import sys; from kd.cli import main\ntry: main({arguments})\n"
            f"finally: print('heavy:', sorted({heavy} & set(sys.modules)))"
        )
        assert run([sys.executable, "-c", code]).stdout.endswith("heavy: []\n")


def test_help_of_kd_lists_train():
    done = run([*KD, "--help"])
    assert "train      distil a student; with -m, run a study" in done.stdout


def test_both_programs_compose_the_same_configuration(root):
    script, kd = (run([*program, "schedule=linear", "--cfg", "job"]) for program in (SCRIPT, [*KD, "train"]))
    assert script.returncode == 0, script.stderr
    assert "_target_: kd.plan.Linear" in script.stdout
    assert script.stdout == kd.stdout == run([*SCRIPT, "--cfg", "job", "schedule=linear"]).stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_mistake_is_one_line(program):
    done = run([*program, "shedule=linear"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: shedule is not an option; did you mean 'schedule'?")


def test_the_task_is_pickled_by_name():
    """Launchers send it to other processes: a decorated function would be copied with all globals of its module."""
    assert not hasattr(task, "__wrapped__")
    assert getattr(sys.modules[task.__module__], task.__name__) is task


def test_completion_is_installed_for_one_word():
    assert run([*KD, "train", "-sc", "install=bash"]).stdout.endswith("-F hydra_bash_completion kd\n")
    assert "@hydra.main" in Path(SCRIPT[1]).read_text()  # bash and fish complete scripts with this text alone


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("kd pre", {"preview", "predict"}),
        ("kd ", {*cli.verbs(cli.parser())}),
        ("kd train sched", {"schedule=", "schedule."}),
        ("/some/where/kd preview schedule=c", {"schedule=constant", "schedule=cosine"}),
        ("kd evaluate runs/mine data=ca", {"data=camvid"}),
        ("kd export runs/", set()),
    ],
)
def test_bash_completes_verbs_and_their_overrides(typed, offered):
    done = run([*KD, "-sc", "query=bash"], COMP_LINE=typed, COMP_POINT=str(len(typed)))
    assert (set(done.stdout.split()), done.stderr) == (offered, "")


def test_verbs_that_are_completed_take_overrides():
    actions = next(action for action in cli.parser()._actions if action.choices)
    taking = [name for name, verb in actions.choices.items() if any(a.dest == "overrides" for a in verb._actions)]
    assert sorted(taking) == sorted(COMPOSING)


def test_the_defaults_that_a_verb_shows_are_those_of_what_it_calls():
    verdict, export = (vars(cli.parser().parse_args(words)) for words in (["verdict"], ["export", "run"]))
    asked = Protocol()
    assert {name: verdict[name] for name in vars(asked)} == vars(asked)
    assert export["tolerance"] == TOLERANCE
