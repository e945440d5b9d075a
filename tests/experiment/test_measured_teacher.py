"""A teacher is measured once; its measurements are cached as `teacher.cache` says."""

import os
from pathlib import Path

import pytest
import torch

from kd.config.compose import compose
from kd.config.read import read
from kd.experiment import measured_teacher
from kd.experiment.context import RunContext
from kd.experiment.evaluator import Evaluator
from kd.experiment.measured_teacher import MeasuredTeacher
from kd.system import tensor_file

BASE = [
    "backbone=tiny", "backbone.teacher.encoder=tu-mobilenetv3_small_050", "data.image_size=[32,32]", "data.train=16",
    "data.val=8", "data.test=8", "trainer.batch_size=8", "trainer.epochs=3", "trainer.device=cpu",
    "unfreeze.start_epoch=1", "unfreeze.rate=1", "tracking=none", "teacher.epochs=1",
]  # fmt: skip


def measured(file: Path, *overrides: str) -> MeasuredTeacher:
    return measured_teacher.measured_teacher(Evaluator(RunContext.of(read(compose([*BASE, *overrides])), [])), file)


@pytest.fixture
def measurements(monkeypatch):
    """Grows by an item whenever a teacher is measured."""
    done = []
    original = measured_teacher.measure
    monkeypatch.setattr(measured_teacher, "measure", lambda *given: (done.append(1), original(*given))[1])
    return done


def alike(one: MeasuredTeacher, other: MeasuredTeacher) -> bool:
    return (one.file, one.metrics) == (other.file, other.metrics) and torch.equal(one.labels, other.labels)


def test_a_teacher_is_measured_once(file, measurements, root):
    first = measured(file)
    (kept,) = root.glob("runs/cache/figures/*")
    os.utime(kept, (0, 0))
    again = measured(file, "seed=5", "loss=soft_only")
    assert alike(first, again)
    assert len(measurements) == 1
    assert kept.stat().st_mtime > 0  # it was used


def test_damaged_measurements_are_repeated(file, measurements, root, caplog):
    first = measured(file)
    (kept,) = root.glob("runs/cache/figures/*")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = measured(file)
    assert len(measurements) == 2
    assert torch.equal(first.labels, again.labels)
    assert "is damaged (its digest does not match its content); the teacher is measured again" in caplog.text
    assert torch.equal(tensor_file.read(kept)[0]["labels"], first.labels)


def test_a_read_only_cache_is_not_written_and_one_that_is_off_is_not_read(file, measurements, root):
    for mode in ("off", "read_only"):
        measured(file, f"teacher.cache={mode}")
    assert len(measurements) == 2
    assert not (root / "runs" / "cache" / "figures").exists()
    measured(file)
    (kept,) = root.glob("runs/cache/figures/*")
    os.utime(kept, (0, 0))
    measured(file, "teacher.cache=read_only")
    assert len(measurements) == 3
    assert kept.stat().st_mtime == 0
    measured(file, "teacher.cache=off")
    assert len(measurements) == 4
