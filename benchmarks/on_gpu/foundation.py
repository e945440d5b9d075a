"""The machine: versions, and how fast it multiplies and copies, which the other items are held against."""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from benchmarks.on_gpu.clock import least_ms
from benchmarks.on_gpu.supervise import On

LIBRARIES = (
    "torchvision", "triton", "segmentation-models-pytorch", "timm", "albumentations", "opencv-python-headless",
    "numpy", "hydra-core", "omegaconf", "pydantic", "optuna", "mlflow",
)  # fmt: skip
KINDS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def machine(on: On) -> None:
    """Versions and sizes, TFLOP/s of a matrix product in each precision, TB/s of a copy (read and written)."""
    on.note(versions=_versions(), machine=_facts())
    device = torch.device(on.device)
    side, gigabytes, times = (256, 0.01, 2) if on.small else (8192, 4, 10)
    on.note(copy_tb_s=_copied(device, gigabytes, times))
    tflops: dict[str, float] = {}
    for kind, dtype in KINDS.items():
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        tflops[kind] = 2 * side**3 / least_ms(lambda left=left, right=right: left @ right, device, times) / 1e9
        on.note(matmul_tflops=tflops)


def _copied(device: torch.device, gigabytes: float, times: int) -> float:
    source = torch.zeros(int(gigabytes * 1e9), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / least_ms(lambda: target.copy_(source), device, times) / 1e9


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _facts() -> dict[str, Any]:
    """Cores, memory, and the room for what a loader's processes hand over."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1)}
    with suppress(OSError):
        found["shared_memory_gib"] = round(shutil.disk_usage("/dev/shm").total / 2**30, 1)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu_memory_gib": round(properties.total_memory / 2**30, 1), "driver": _driver()}
    return found


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None
