"""Every test has a project root of its own, one thread (several would slow each other down), and no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import pytest

#: The files whose trainings take longest: begun first, so that no process is left alone with them at the end.
LONGEST = ["test_study_launchers", "test_sweep", "test_crash", "test_study_postgres", "test_distil"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The project root of this test: its runs/ and mlruns/ are made there."""
    monkeypatch.setenv("KD_ROOT", str(tmp_path))
    return tmp_path
