"""A job that cannot start leaves no run folder behind, and never deletes one with results."""

import pytest

from kd.experiment.job import discard


@pytest.mark.parametrize("keep", ["metrics.jsonl", "precious.txt"])
def test_a_folder_with_results_or_unknown_files_is_never_deleted(tmp_path, keep):
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / keep).touch()
    discard(folder)
    assert (folder / keep).exists()


def test_a_folder_with_only_hydras_files_is_deleted(tmp_path):
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "train.log").touch()
    discard(folder)
    assert not folder.exists()
