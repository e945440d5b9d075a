"""A registered student loads without this package and without pickle, and no store can fail a finished run."""

import json
import logging

import mlflow
import numpy as np
import pytest
import torch
from finished import finished
from program import run_alone, train

from kd.cli import main
from kd.config.compose import compose, plain
from kd.config.read import checked
from kd.deploy import register_or_warn
from kd.errors import ConfigError
from kd.networks import saved
from kd.run.folder import RunFolder
from kd.tracking import wanted_name

SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=8", "data.val=8", "data.test=8", "trainer.batch_size=8",
    "trainer.epochs=1", "trainer.device=cpu", "unfreeze=all", "loss=hard_only", "pictures=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A root, and in it a run whose student was registered at its end."""
    root = tmp_path_factory.mktemp("root")
    done = train(root, *SMALL, "tracking.register=nuclei finder", f"hydra.run.dir={root}/runs/one/1")
    assert done.returncode == 0, done.stderr
    assert "register nuclei finder, version 1" in done.stdout
    return root, root / "runs" / "one" / "1", f"sqlite:///{root}/mlruns/mlflow.db"


def test_a_registered_model_loads_without_this_package_and_has_the_students_logits(registered, tmp_path):
    _, folder, uri = registered
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    np.save(tmp_path / "images.npy", images.numpy())
    code = (
        "import mlflow, numpy as np\n"
        f"mlflow.set_tracking_uri({uri!r})\n"
        "model = mlflow.pyfunc.load_model('models:/nuclei finder/1')\n"
        "np.save('logits.npy', model.predict(np.load('images.npy'))['logits'])\n"
    )
    run_alone(code, tmp_path)
    logits = saved.load_file(folder / "student.safetensors").eval()(images)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), logits, atol=1e-4, rtol=1e-3)


def test_no_file_of_a_registered_model_is_a_pickle(registered):
    root, folder, uri = registered
    client = mlflow.MlflowClient(uri)
    (version,) = client.search_model_versions("name = 'nuclei finder'")
    assert version.run_id == RunFolder(folder).identity()["tracking"]["run_id"]
    (logged,) = client.search_logged_models(["1"], f"source_run_id = '{version.run_id}'")
    assert (version.source, logged.status.name) == (logged.artifact_location, "READY")
    figures = {metric.key: metric.value for metric in logged.metrics}
    summary = json.loads((folder / "summary.json").read_text())["student"]
    assert figures["student/val/miou"] == summary["val/miou"]
    assert {metric.dataset_name for metric in logged.metrics} == {"shapes"}
    assert (logged.params["backbone"], logged.params["trainer.epochs"]) == ("tiny", "1")
    assert "kd report" in logged.tags["mlflow.note.content"]
    assert version.description == logged.tags["mlflow.note.content"]
    path = root / "mlruns" / "artifacts" / "models" / logged.model_id / "artifacts"
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    names.discard("registered_model_meta")  # MLflow's note on having loaded it: YAML
    assert names == {"MLmodel", "model.onnx", "conda.yaml", "python_env.yaml", "requirements.txt"}
    assert "kd" not in (path / "requirements.txt").read_text()


def test_a_registered_student_is_registered_again_only_under_another_name(registered, capsys, monkeypatch):
    root, folder, uri = registered
    monkeypatch.setenv("KD_ROOT", str(root))
    main(["sync", str(folder)])
    assert "register nuclei finder, version 1" in capsys.readouterr().out
    main(["sync", str(folder), "--register", "winner"])
    assert "register winner, version 1" in capsys.readouterr().out
    client = mlflow.MlflowClient(uri)
    assert {(each.name, each.version) for each in client.search_model_versions()} == {
        ("nuclei finder", 1), ("winner", 1),
    }  # fmt: skip
    (logged,) = client.search_logged_models(["1"])
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [
        {"name": "nuclei finder", "version": "1"}, {"name": "winner", "version": "1"},
    ]  # fmt: skip


def test_an_unreachable_store_costs_one_line_that_names_the_remedy(tmp_path, caplog):
    finished(tmp_path / "run")
    facts = {"name": "run", "begun": 0.0, "ended": 1.0, "status": "FINISHED", "tags": {}, "choices": {}}
    where = {"experiment": "e", "uri": "http://127.0.0.1:9", "root": str(tmp_path)}
    RunFolder(tmp_path / "run").identify(**facts, parameters={}, tracking=where)
    with caplog.at_level(logging.WARNING):
        register_or_warn(tmp_path / "run", "name", tmp_path)
    (told,) = [record.getMessage() for record in caplog.records if "kd.deploy" in record.name]
    assert f"kd sync {tmp_path / 'run'}" in told
    assert (tmp_path / "run" / "export" / "student.onnx").exists()


def test_a_trial_or_a_run_without_a_name_is_not_registered(tmp_path):
    for name, overrides, tags, wanted in (
        ("asked", ["tracking.register=x"], {}, "x"),
        ("silent", [], {}, None),
        ("trial", ["tracking.register=x"], {"trial": "3"}, None),
    ):
        folder = RunFolder(tmp_path / name)
        folder.write_config(plain(compose(overrides)))
        folder.identify(tags=tags)
        assert wanted_name(folder.path) == wanted


@pytest.mark.parametrize(
    "overrides", [["tracking=none", "tracking.register=x"], ["tracking.register=a/b"], ["tracking.register=.."]]
)
def test_a_name_that_cannot_be_registered_is_refused_before_the_run(overrides):
    with pytest.raises(ConfigError, match="tracking"):
        checked(plain(compose(overrides)), look_at_data=False)


@pytest.mark.parametrize("name", ["a/b", "..", "", "a:b"])
def test_a_name_that_cannot_be_registered_is_refused_before_anything_is_sent(name, root, monkeypatch, capsys):
    monkeypatch.setattr("kd.tracking.sync", lambda *_: pytest.fail("sent"))
    with pytest.raises(SystemExit):
        main(["sync", str(root), "--register", name])
    assert capsys.readouterr().err.startswith(f"error: --register={name}: a model's name has letters")


def test_a_configuration_without_the_key_register_is_valid():
    config = plain(compose([]))
    del config["tracking"]["register"]
    assert checked(json.loads(json.dumps(config)), look_at_data=False).tracking.registered_name is None
