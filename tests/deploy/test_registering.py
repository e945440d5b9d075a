"""A student is exported before it is registered, unless it is exported already, and failures are warnings."""

import logging

import pytest

from kd import tracking
from kd.deploy import find, register, register_or_warn
from kd.errors import RunError
from kd.system.files import digest


@pytest.fixture
def registry(monkeypatch):
    """Calls of MLflow's registry: (name, bytes of the model, digest of the weights)."""
    calls = []

    def version(folder, root, name, model, weights, uri):
        calls.append((name, model.SerializeToString(), weights))
        return "7"

    monkeypatch.setattr(tracking, "register", version)
    return calls


def test_an_exported_student_is_registered_as_it_is(copy, registry, tmp_path, capsys):
    file = copy / "export" / "student.onnx"
    before = file.stat().st_mtime_ns
    register(copy, "mine", tmp_path)
    assert file.stat().st_mtime_ns == before
    ((name, model, weights),) = registry
    assert (name, len(model), weights) == ("mine", file.stat().st_size, digest(find(copy).weights))
    assert capsys.readouterr().out == "register mine, version 7\n"


def test_a_student_without_its_onnx_file_is_exported_first(copy, registry, tmp_path):
    (copy / "export" / "student.onnx").unlink()
    register(copy, "mine", tmp_path)
    assert (copy / "export" / "student.onnx").is_file()
    assert len(registry) == 1


@pytest.mark.parametrize("error", [RunError("no store"), ValueError("a bug")])
def test_a_failure_at_the_end_of_a_run_is_a_warning_with_the_way_to_retry(copy, tmp_path, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(tracking, "register", fail)
    with caplog.at_level(logging.WARNING, "kd.deploy"):
        register_or_warn(copy, "mine", tmp_path)
    (record,) = caplog.records
    assert record.getMessage() == f"could not register the student as mine ({error}); retry with `kd sync {copy}`"
    assert bool(record.exc_info) == isinstance(error, ValueError)
