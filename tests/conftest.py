"""Every test has a project root of its own, one thread (several would slow each other down), and no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import pytest


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The project root of this test: its runs/ and mlruns/ are made there."""
    monkeypatch.setenv("KD_ROOT", str(tmp_path))
    return tmp_path
