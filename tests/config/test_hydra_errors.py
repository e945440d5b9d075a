"""User errors as one line and an exit code, before slow imports. The catalogue is test_bad_inputs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from kd.cli import main
from kd.config.compose import CONF, PROJECT, compose
from kd.config.hydra_errors import one_line_errors
from kd.config.read import read
from kd.errors import ConfigError, UserError
from kd.system import files


def one_line(error: str) -> str:
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    return error


def train(*overrides, **env):
    environment = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *overrides],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_train_py_prints_the_same_line_and_leaves_no_folder(root):
    done = train("schedule.initial=-1")
    assert done.returncode == 2
    assert "schedule.initial must be a positive" in one_line(done.stderr)
    assert leftovers(root) == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("a=1 is wrong"), "error: a=1 is wrong (docs/configuration.md)\n"),
        (ConfigError("a=1 is wrong", page="gpus"), "error: a=1 is wrong (docs/gpus.md)\n"),
        (UserError("no place"), "error: no place\n"),
    ],
)
def test_the_line_ends_with_the_page_that_helps(error, line, capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise error
    assert capsys.readouterr().err == line


def test_hydra_full_error_shows_the_traceback():
    done = train("schedule.initial=-1", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_mistake_is_reported_before_anything_slow_is_imported(tmp_path):
    for module in ("torch", "albumentations", "mlflow", "segmentation_models_pytorch"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('imported too early')")
    done = train("trainer.epochs=0", PYTHONPATH=str(tmp_path))
    assert "trainer.epochs=0" in one_line(done.stderr)


@pytest.mark.slow
def test_a_mismatched_torchvision_is_reported_with_a_remedy(tmp_path, root):
    (tmp_path / "shadow").mkdir()
    message = "operator torchvision::nms does not exist"
    (tmp_path / "shadow" / "torchvision.py").write_text(f"raise RuntimeError({message!r})")
    done = train("trainer.epochs=1", "unfreeze=all", PYTHONPATH=str(tmp_path / "shadow"))
    assert done.returncode == 1
    assert "matching pair" in one_line(done.stderr)
    assert "requirements.lock" in done.stderr


# what hydra and the system say, in our words


def refusal(capsys, call) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        call()
    return exit_.value.code, one_line(capsys.readouterr().err)


@pytest.mark.parametrize("typed", ["root=${nothing}", "loss.alpha=${loss.beta}", "hydra.mode=foo", "seed=[1"])
def test_hydras_lines_of_keys_types_and_links_are_left_out(typed, capsys):
    code, error = refusal(capsys, lambda: read(compose([typed, "loss.beta=${loss.alpha}"])))
    assert code == 2
    assert not any(noise in error for noise in ("full_key", "object_type", "https://"))


def test_an_error_of_hydras_without_a_key_names_the_override(capsys):
    assert refusal(capsys, lambda: compose(["seed=1", "loss=5"]))[1].startswith("error: loss=5: ")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_warmup=1"], "'hydra.sweeper.pruner.n_warmup_steps'?"),
        (["hydra.sweeper.pruner.foo=1"], "hydra.sweeper.pruner has bootstrap_count, min_early_stopping_rate, min_"),
        (["hydra.sweeper.sampler.sead=1"], "did you mean 'hydra.sweeper.sampler.seed'?"),
        (["hydra.sweeper.sampler.gamma=1"], "does not exist yet; add it with a plus: +hydra.sweeper.sampler.gamma=..."),
        (["hydra.sweeper.n_trial=1"], "did you mean 'hydra.sweeper.n_trials'?"),
    ],
)
def test_an_unknown_argument_of_a_pruner_or_a_sampler_is_answered_with_its_own(typed, says, capsys):
    def composed():
        with initialize_config_dir(str(CONF)):
            hydra_compose("config", typed, return_hydra_config=True)

    code, error = refusal(capsys, composed)
    assert (code, says in error) == (2, True), error


def test_a_recipe_that_is_not_yaml_is_refused_in_one_line(capsys):
    code, error = refusal(capsys, lambda: yaml.safe_load("a: [\n1"))
    assert code == 2
    assert "expected ',' or ']'" in error


@pytest.mark.parametrize("verb", ["report", "sync", "export"])
def test_a_name_that_no_file_system_accepts_is_one_line(verb, capsys):
    with pytest.raises(SystemExit, match="1"):
        main([verb, "x" * 300])
    one_line(capsys.readouterr().err)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x")])
def test_a_bug_keeps_its_traceback(error):
    def defect(*_):
        raise error

    with pytest.raises(type(error)), one_line_errors():
        files.write_atomically(Path("/tmp/never"), defect)


def test_an_interrupt_is_reported_and_exits_with_130(capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_, one_line_errors():
        interrupt()
    assert (exit_.value.code, capsys.readouterr().err) == (130, "interrupted\n")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_only_rank_0_reports_an_error_and_all_ranks_fail(rank, lines, monkeypatch, capsys):
    several = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in several.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise ConfigError("trainer.epochs=0: should be more")
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == lines
