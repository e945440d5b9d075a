"""This process's rank, from torchrun's variables, from its submitit task or from its task of a Slurm step.

Light, because composing a configuration needs it before torch is imported.
"""

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kd.errors import ConfigError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torch's env:// needs


@dataclass(frozen=True)
class Rank:
    """A process's position among those that train together.

    Attributes:
        rank: its number among `size`; process 0 decides, writes and prints.
        local_rank: its number among the `local_size` on its machine.
        own_gpus: whether each process sees a GPU that no other does; true until they have compared them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    own_gpus: bool = True

    def gpu(self, visible: int) -> int:
        """The index of this process's GPU among the visible ones; a single one is 0 (srun --gpus-per-task=1)."""
        return 0 if visible == 1 else self.local_rank


def current_rank() -> Rank:
    """This process's rank; `Rank()` if it is the only one."""
    if os.environ.get("SUBMITIT_EXECUTOR"):
        import submitit

        if submitit.JobEnvironment().num_tasks == 1:
            return Rank()
        # If every process sees all GPUs of its machine, as under torchrun, it uses the one of its local rank.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    elif tasks_of_step() > 1 and all(os.environ.get(name) for name in NEEDED[2:]):
        for name, value in _of_slurm().items():
            os.environ.setdefault(name, value)
    if not all(os.environ.get(name) for name in NEEDED):
        return Rank()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Rank(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def tasks_of_step() -> int:
    """The tasks that srun has started together with this one; 1 without srun, or if RANK or WORLD_SIZE is set."""
    if os.environ.get("RANK") or os.environ.get("WORLD_SIZE") or os.environ.get("SUBMITIT_EXECUTOR"):
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def _of_slurm() -> dict[str, str]:
    """torchrun's variables, from those of a task that srun started."""
    slurm = os.environ
    counts: list[str] = []
    for part in slurm.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):  # such as 4(x2),3
        count, _, times = part.rstrip(")").partition("(x")
        counts += [count] * int(times or 1)
    return {
        "RANK": slurm["SLURM_PROCID"], "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"], "LOCAL_WORLD_SIZE": counts[int(slurm["SLURM_NODEID"])],
    }  # fmt: skip


def folder_of_this_process(folder: str) -> str:
    """`folder` for process 0; a temporary folder of its own for any other."""
    rank = current_rank().rank
    return folder if rank == 0 else str(Path(tempfile.gettempdir()) / f"kd-process-{rank}-{os.getpid()}")


def throw_folder_away() -> None:
    """Delete the folder that Hydra made for any process but the first; its open log is discarded with it."""
    if current_rank().rank > 0:
        shutil.rmtree(folder_of_this_process(""), ignore_errors=True)


def hush() -> None:
    """Drop the output and warnings, but not the errors, of all processes but the first."""
    if current_rank().rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        warnings.simplefilter("ignore")


def refuse_separate_tasks(arguments: Sequence[str]) -> None:
    """Refuse to train once in each of the tasks that srun has started, unless they are workers of a study.

    Raises:
        ConfigError: srun has started several, and nothing says where they meet.
    """
    count = tasks_of_step()
    if count > 1 and not {"-m", "--multirun"} & set(arguments) and current_rank().size == 1:
        raise ConfigError(
            f"srun has started {count} tasks, each of which would train alone: to train together, export MASTER_ADDR "
            "(the first node) and MASTER_PORT before srun; for separate runs, export WORLD_SIZE=1",
            page="gpus",
        )


def refuse_to_resume_many(resume: str, grid: bool) -> NoReturn:
    """Refuse `resume` with -m, for a study or for Hydra's plain grid.

    Raises:
        ConfigError: always.
    """
    if grid:
        how, page = "resume a grid's runs one by one: resume=<folder>, without -m", "resume"
    else:
        how, page = "repeat a study's command to resume it", "studies"
    raise ConfigError(f"resume={resume} is for a single run; {how}", page=page)


def refuse_a_study(arguments: Sequence[str]) -> None:
    """Refuse to start one study in several processes: its launcher distributes the trials.

    Raises:
        ConfigError: several processes were started with -m.
    """
    if current_rank().size > 1 and {"-m", "--multirun"} & set(arguments):
        raise ConfigError(
            f"-m was started in {current_rank().size} processes, each of which would run the study; start it once, "
            "without torchrun, and give each trial several tasks: hydra/launcher=submitit_slurm "
            "hydra.launcher.tasks_per_node=2 (or submitit_local)",
            page="gpus",
        )
