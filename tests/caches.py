"""A cache folder with entries of every kind and known ages."""

import json
import os
import time
from pathlib import Path

import torch

from kd.distillation.logit_cache import LogitCache
from kd.system import tensor_file
from kd.system.cache_folder import DAY, entries
from kd.system.record_file import FileRecords, create

OLD, NEW, SAMPLES = "0123456789abcdef", "fedcba9876543210", "0" * 32


def fill(cache: Path) -> Path:
    """Two teachers' logits (10 and 2 days old), a data set's samples (5) and its files (3), a teacher's metrics (1)."""
    for name, views in ((OLD, 3), (NEW, 1)):
        folder = cache / "teacher" / name
        logit_cache = LogitCache(folder, 4, (1, 64, 64), budget=10**9)
        for view in range(views):
            logit_cache.write(view, [0, 1, 3], torch.ones(3, 1, 64, 64).half())
        (folder / "facts.json").write_text(
            json.dumps({"teacher": f"{cache.parent}/teachers/of_{name}/teacher.safetensors"})
        )
    folder = cache / "data" / SAMPLES
    create(folder / "train.records", 5, 4096)
    FileRecords(folder / "train.records").write(1, memoryview(bytes(range(256)) * 16))
    (folder / "facts.json").write_text(json.dumps({"data": "/my/[red]pictures"}))
    (cache / "figures").mkdir()
    tensor_file.write(cache / "figures" / f"{NEW}.safetensors", {"labels": torch.ones(3)}, {"teacher": "/a/teacher"})
    (cache / "files").mkdir()
    (cache / "files" / f"{OLD}.json").write_text(json.dumps({"/my/picture.png": [1, 2, 3, 4, {"digest": "ab"}]}))
    ages = {f"teacher/{OLD}": 10, f"teacher/{NEW}": 2, f"data/{SAMPLES}": 5, "figures": 1, "files": 3}
    for path, days in ages.items():
        for file in (cache / path).iterdir():
            os.utime(file, (time.time() - days * DAY,) * 2)
    return cache


def everything(folder: Path) -> dict[str, bytes | None]:
    """All files and folders, including links but not locks."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*")) if path.name != ".lock"}  # fmt: skip


def names(cache: Path) -> list[str]:
    return [f"{entry.kind}/{entry.path.stem}" for entry in entries(cache)]
