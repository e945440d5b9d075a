"""What a run ran on: versions, machine, device. No user name, no host name, no path."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kd.system.installation import NAME
from kd.system.installation import version as version_of_ours
from kd.system.resources import cores

#: The packages whose version may change results.
PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "albumentations",
            "opencv-python-headless", "pillow", "numpy", "hydra-core", "optuna", "mlflow")  # fmt: skip


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Facts for run.json: python, system, cpu, cores, threads, device, processes, and the packages' versions."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **({"cuda": torch.version.cuda} if device.type == "cuda" else {}),
        "processes": processes,
        "packages": {NAME: version_of_ours(), **{name: found for name in PACKAGES if (found := _version(name))}},
    }


def processor() -> str:
    """The processor's name according to Linux or Python, or its architecture if neither knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
