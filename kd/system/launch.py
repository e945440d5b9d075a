"""This process's rank, from torchrun's variables or from its submitit task.

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

from kd.errors import ConfigError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torch's env:// needs


@dataclass(frozen=True)
class Rank:
    """A process's position among those that train together.

    Attributes:
        rank: its number among `size`; process 0 decides, writes and prints.
        local_rank: its number among the `local_size` on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def current_rank() -> Rank:
    """This process's rank; `Rank()` if it is the only one."""
    if os.environ.get("SUBMITIT_EXECUTOR"):
        import submitit

        if submitit.JobEnvironment().num_tasks == 1:
            return Rank()
        # Every process sees all GPUs of its machine, as under torchrun, and uses the one of its local rank.
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if not all(os.environ.get(name) for name in NEEDED):
        return Rank()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Rank(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))


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
