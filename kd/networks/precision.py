"""Device, precision and memory layout, as one value shared by training, teacher and evaluation."""

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from kd.errors import ConfigError
from kd.networks.network import Network, Segmenter
from kd.system.launch import Rank
from kd.system.resources import cores, slot

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Placed = TypeVar("Placed", bound=Segmenter)
Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")

Backend = str | Callable[..., Any]  # of torch.compile


@dataclass(frozen=True)
class Precision:
    """A device, the precision of its matrix products (fp32, bf16, fp16), and the memory layout of images."""

    device: torch.device
    name: str = "fp32"
    channels_last: bool = True

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision; does nothing for fp32."""
        return torch.autocast(self.device.type, dtype=DTYPES[self.name], enabled=self.name != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; disabled for the others."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    def place(self, network: Placed) -> Placed:
        """Move a network to the device, in the chosen memory layout."""
        supported = self.channels_last and not (self.device.type == "cpu" and _corrupts_memory(network))
        network.layout = torch.channels_last if supported else torch.contiguous_format
        return network.to(self.device, memory_format=network.layout)  # type: ignore[call-overload]  # stubs lack it


def use_tf32() -> None:
    """Compute convolutions and products of fp32 in TF32, on GPUs that have it: 8 bits of exponent, 10 of fraction.

    torch's own defaults are TF32 for convolutions and fp32 for products. NVIDIA_TF32_OVERRIDE=0 switches it off.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def hold_memory() -> None:
    """Make glibc keep freed memory for the next tensor, unless the user has configured it.

    By default it returns each large block to the system, which hands it out again page by page, filled with zeros:
    10 to 20 % of a step on a CPU. Reference: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**30)
        mallopt(-1, 2**31 - 1)


def limit_threads() -> None:
    """Use no more threads than a container's quota of cores, which torch does not know; OMP_NUM_THREADS goes first."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def compiled(network: Network, backend: Backend = "inductor") -> Network:
    """Compile a network's body with torch.compile, again for each number of unfrozen blocks.

    Raises:
        ConfigError: the network is on the CPU, for which a C++ compiler is needed, and none is installed.
    """
    from torch._inductor import cpp_builder, exc

    if backend == "inductor" and next(network.parameters()).device.type == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise ConfigError(
                "trainer.compile=true needs a C++ compiler such as g++; install one, or set it to false"
            ) from error
    _configure_compiler()
    network.body.compile(backend=backend)
    return network


def fused(function: Callable[Inputs, Output], backend: Backend) -> Callable[Inputs, Output]:
    """A function compiled by torch.compile with `backend`, again for each shape of its inputs.

    What it computes of one shape therefore does not depend on which shapes came before.
    """
    _configure_compiler()
    return torch.compile(function, backend=backend, dynamic=False)


def _configure_compiler() -> None:
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64  # in training and eval mode, for each number of unfrozen blocks
    # Another network of the same architecture runs the same code, but its features may be watched where this one's
    # are not: by default torch would not notice the hook, and leave it out.
    torch._dynamo.config.skip_nnmodule_hook_guards = False


def choose_device(name: str, rank: Rank = Rank()) -> torch.device:  # noqa: B008 (it is frozen)
    """The requested device; `auto` takes CUDA, then MPS, then the CPU.

    If a study runs several trials at once, KD_SLOT numbers them, and `auto` distributes the GPUs among them. Processes
    that train together use the GPU of their local rank, or all of them the CPU.

    Raises:
        ConfigError: the requested device does not exist, or cannot be shared.
    """
    if rank.size > 1:
        return _local_device(name, rank)
    if name == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        name = f"cuda:{slot() % gpus}" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    available = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}[
        device.type
    ]
    if (device.index or 0) >= available:
        raise ConfigError(
            f"trainer.device={name}: this machine has {available} such device(s); use auto or cpu", page="gpus"
        )
    return device


def _local_device(name: str, rank: Rank) -> torch.device:
    """This process's device among several processes."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"trainer.device={name} is a single device, and {rank.size} processes train; use auto, cuda or cpu",
            page="gpus",
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if not rank.own_gpus or (gpus < rank.local_size and gpus != 1):  # one: the launcher may have given each its own
        raise ConfigError(
            f"trainer.device={name}: this machine has {gpus} GPU(s) for {rank.local_size} processes; start as many "
            "(--nproc-per-node), or use cpu",
            page="gpus",
        )
    return torch.device("cuda", rank.gpu(gpus))


def repeat_bit_for_bit(wanted: bool) -> None:
    """Use deterministic CUDA algorithms; torch warns about operations that have none.

    Reference: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is initialised
    torch.use_deterministic_algorithms(wanted, warn_only=True)


def _corrupts_memory(network: nn.Module) -> bool:
    """Whether channels-last training on a CPU would overrun a buffer, with or without a crash.

    In torch 2.15 the weight gradient of a strided 1 x 1 convolution with very few input channels does (3, 4 and 8
    crash, 16 does not); MobileOne's stem has one.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.in_channels < 16 for conv in convolutions)
