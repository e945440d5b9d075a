"""Where the arithmetic happens and in what precision: one value that training, teacher and evaluation share."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from kd.errors import ConfigError
from kd.networks.network import Network, Segmenter
from kd.system.launch import Rank

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Placed = TypeVar("Placed", bound=Segmenter)


@dataclass(frozen=True)
class Precision:
    """A device, the precision of its matrix products (fp32, bf16, fp16), and the memory layout of images."""

    device: torch.device
    name: str = "fp32"
    channels_last: bool = True

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, or nothing where the precision is fp32."""
        return torch.autocast(self.device.type, dtype=DTYPES[self.name], enabled=self.name != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which only fp16 needs; disabled for the others."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    def place(self, network: Placed) -> Placed:
        """Move a network to the device, in the layout."""
        fits = self.channels_last and not (self.device.type == "cpu" and _corrupts_memory(network))
        network.layout = torch.channels_last if fits else torch.contiguous_format
        return network.to(self.device, memory_format=network.layout)  # type: ignore[call-overload]  # stubs lack it


def hold_memory() -> None:
    """Let glibc keep what a tensor has freed for the next one, where the user has not said otherwise.

    By default it hands each large block back to the system, which gives it out again page by page, filled with zeros:
    a tenth to a fifth of a step on a CPU. Reference: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**30)
        mallopt(-1, 2**31 - 1)


def compiled(network: Network) -> Network:
    """Have torch compile a network's body, anew for each set of open blocks.

    Raises:
        ConfigError: a CPU's code needs a C++ compiler, and there is none.
    """
    import torch._dynamo
    from torch._inductor import cpp_builder, exc

    if next(network.parameters()).device.type == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise ConfigError(
                "trainer.compile=true needs a C++ compiler such as g++; install one, or leave it"
            ) from error
    torch._dynamo.config.recompile_limit = 64  # training and not, for each set of open blocks
    network.body.compile()
    return network


def choose_device(name: str, rank: Rank = Rank()) -> torch.device:  # noqa: B008 (it is frozen)
    """The device asked for; `auto` takes CUDA, then MPS, then the CPU.

    Where a study runs several trials at once, KD_SLOT numbers those places, and `auto` deals the GPUs out among them.
    Of several processes that train together each takes the GPU of its own number on its machine, or all a CPU.

    Raises:
        ConfigError: the device asked for is not there, or cannot be shared.
    """
    if rank.size > 1:
        return _choose_own(name, rank)
    if name == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        slot = int(os.environ.get("KD_SLOT", "0"))
        name = f"cuda:{slot % gpus}" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    there = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}[device.type]
    if (device.index or 0) >= there:
        raise ConfigError(
            f"trainer.device={name}: this machine has {there} such device(s); use auto or cpu", page="gpus"
        )
    return device


def _choose_own(name: str, rank: Rank) -> torch.device:
    """One device of those that several processes use."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"trainer.device={name} is a single device, and {rank.size} processes train; use auto, cuda or cpu",
            page="gpus",
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if gpus < rank.local_size:
        raise ConfigError(
            f"trainer.device={name}: this machine has {gpus} GPU(s) for {rank.local_size} processes; start as many "
            "(--nproc-per-node), or use cpu",
            page="gpus",
        )
    return torch.device("cuda", rank.local_rank)


def repeat_bit_for_bit(wanted: bool) -> None:
    """Ask CUDA for algorithms whose results repeat; torch warns of those that it has no such algorithm for.

    Reference: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(wanted, warn_only=True)


def _corrupts_memory(network: nn.Module) -> bool:
    """Whether channels-last training on a CPU would overrun a buffer, with a crash or without one.

    In torch 2.15 the weight gradient of a strided 1 x 1 convolution of very few channels does (3, 4 and 8 crash, 16 do
    not); the stem of MobileOne has one.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.in_channels < 16 for conv in convolutions)
