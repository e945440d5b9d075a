"""Every test has its own project root, one thread (more would slow each other down), no network and no time limit."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)
gc.disable()  # until all is imported and collected: nothing of that goes again

import in_memory
import mlflow_tables
import once
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

#: The files that take longest: started first, so that no worker is left alone with them at the end.
LONGEST = [
    "test_study_launchers", "test_sweep", "test_crash", "test_study_postgres", "test_distil", "test_torchrun",
    "test_protocol", "test_installed", "test_docs",
]  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    in_memory.use()
    if folder := mlflow_tables.share():
        config.add_cleanup(folder.cleanup)
    once.use()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    gc.freeze()  # else every collection scans the libraries' objects
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.hookimpl(trylast=True)  # after pytest has collected five times
def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The project root of this test, for its runs/ and mlruns/."""
    monkeypatch.setenv("KD_ROOT", str(tmp_path))
    return tmp_path
