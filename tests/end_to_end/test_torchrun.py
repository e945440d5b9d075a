"""`torchrun train.py`: one run folder, one output, and runs that resume with any number of processes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import program
import pytest
from together import environments

from kd.config.compose import PROJECT
from kd.run import checkpoint
from kd.training.snapshot import Snapshot

SMALL = [
    "backbone=tiny", "data.image_size=[32,32]", "data.train=40", "data.val=12", "data.test=4", "trainer.batch_size=8",
    "trainer.epochs=3", "trainer.device=cpu", "unfreeze.start_epoch=1", "unfreeze.rate=1", "loss=hard_only",
    "tracking=none", "pictures=false",
]  # fmt: skip
CLOCK = {"time", "seconds", "seconds_waiting", "images_per_second"}


def metrics(folder):
    """A run's records without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in CLOCK} for line in lines]


def only_run(root):
    (config,) = root.glob("runs/*/*/config.yaml")
    return config.parent


def environment(root):
    (root / "tmp").mkdir(exist_ok=True)
    return {**os.environ, "KD_ROOT": str(root), "OMP_NUM_THREADS": "1", "TMPDIR": str(root / "tmp")}


def begin(root, *arguments, size=2, before=()):
    """`train.py` in `size` processes, each as torchrun would start it; the last one calls `before` first."""
    shared, envs = environment(root), environments(size)
    return [
        program.begin(root, *SMALL, *arguments, env=shared | own, before=before if own is envs[-1] else ())
        for own in envs
    ]


def ended(processes):
    """The exit codes and outputs of the processes."""
    said = [process.communicate() for process in processes]
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run by torchrun itself in two processes."""
    root = tmp_path_factory.mktemp("undisturbed")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(PROJECT / "train.py"), *SMALL], capture_output=True, text=True, timeout=program.PATIENCE,
        env=environment(root),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root, done


def test_several_processes_share_one_run_folder_and_one_output(undisturbed):
    root, done = undisturbed
    summary = json.loads((only_run(root) / "summary.json").read_text())
    assert summary["state"] == "complete"
    assert sum(line.startswith("student") for line in done.stdout.splitlines()) == 3
    assert sum(line.startswith("results at 32 x 32 pixels") for line in done.stdout.splitlines()) == 1
    assert not list((root / "tmp").glob("kd-process-*"))


def test_two_processes_train_like_one(undisturbed, root):
    """With the same plan; losses differ by rounding, which grows with each step (not in `test_distributed`)."""
    assert program.train(root, *SMALL).returncode == 0
    found, expected = metrics(only_run(undisturbed[0])), metrics(only_run(root))
    for two, one in zip(found, expected, strict=True):
        for name in ("epoch", "temperature", "unfrozen_blocks", "lr/decoder", "lr/encoder"):
            assert two.get(name) == one.get(name)
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=0.02)
    assert found[0]["train/loss"] == pytest.approx(expected[0]["train/loss"], rel=2e-3)


def test_a_run_that_was_killed_after_its_summary_is_tidied_by_several_processes(undisturbed, tmp_path):
    folder = shutil.copytree(only_run(undisturbed[0]), tmp_path / "run")
    checkpoint.save(folder, Snapshot({}, {"epoch": 0, "step": 0}))
    codes, ((out, _), (silent, _)) = ended(begin(tmp_path, f"resume={folder}", f"root={tmp_path}"))
    assert codes == [0, 0]
    assert "it was finished" in out
    assert silent == ""
    assert not checkpoint.exists(folder)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A run of 5 steps an epoch, interrupted in its second epoch, resumed, killed in its third and resumed again."""
    root = tmp_path_factory.mktemp("disturbed")
    processes = begin(root, before=(program.stop_after, 7))
    processes[1].wait_until_stopped()
    processes[1].send_signal(signal.SIGTERM)
    processes[1].send_signal(signal.SIGCONT)
    asked = ended(processes)
    resume = f"resume={only_run(root)}"
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(only_run(root), other / "run")

    processes = begin(root, resume, before=(program.stop_after, 5))
    processes[1].wait_until_stopped()
    for process in processes:
        process.kill()
    killed = ended(processes)
    last = ended(begin(root, resume))
    one = program.train(other, *SMALL, f"resume={other / 'run'}", f"root={root}")
    return {"root": root, "asked": asked, "killed": killed, "last": last, "one": one, "other": other / "run"}


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_saving(disturbed):
    codes, ((out, _), (silent, _)) = disturbed["asked"]
    assert codes == [128 + signal.SIGTERM] * 2
    assert f"resume   python train.py resume={only_run(disturbed['root'])}" in out
    assert silent == ""


@pytest.mark.slow
def test_interrupted_and_killed_processes_end_with_the_same_results(disturbed, undisturbed):
    assert disturbed["killed"][0] == [-signal.SIGKILL] * 2
    assert disturbed["last"][0] == [0, 0], disturbed["last"][1]
    assert metrics(only_run(disturbed["root"])) == metrics(only_run(undisturbed[0]))


@pytest.mark.slow
def test_one_process_resumes_a_run_of_two(disturbed, undisturbed):
    assert disturbed["one"].returncode == 0, disturbed["one"].stderr
    found, expected = metrics(disturbed["other"]), metrics(only_run(undisturbed[0]))
    assert found[0] == expected[0]
    assert [record["train/loss"] for record in found] == pytest.approx(
        [record["train/loss"] for record in expected], rel=0.02
    )
