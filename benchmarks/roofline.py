"""The operations and the memory traffic of a distillation step, counted on tensors without content: no GPU is needed.

`python -m benchmarks.roofline [side] [classes]`: the pair B3 to B0 in bf16, as PyTorch runs it op by op. Operations
are those of convolutions and matrix products, two for each multiply-add. Traffic is the bytes of every tensor that an
operation reads or writes, as if none stayed in a cache: what an eager GPU moves, and more than a compiled one does.
"""

import sys
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import COUNTED

BATCH = 4
#: Operations that hand out a tensor's memory in another shape, or without a value.
FREE = set(
    "view _unsafe_view t transpose permute expand detach alias slice select unsqueeze squeeze as_strided reshape empty "
    "empty_like split _reshape_alias unbind chunk split_with_sizes".split()
)


class Traffic(TorchDispatchMode):
    """Sums the bytes that operations read and write."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in FREE:
            tensors = [each for each in tree_leaves([args, kwargs, out]) if isinstance(each, Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in tensors)
        return out


def counted(network: nn.Module, side: int, trained: bool) -> tuple[float, float]:
    """GFLOP and GB an image: of a forward pass, and of the backward pass if the network is `trained`."""
    images = torch.empty(BATCH, 3, side, side, dtype=torch.bfloat16, device="meta")
    network.train(trained)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as operations, Traffic() as traffic:
        with torch.set_grad_enabled(trained):
            logits = network(images)
        if trained:
            logits.backward(torch.empty_like(logits))
    return operations.get_total_flops() / BATCH / 1e9, traffic.bytes / BATCH / 1e9


def main() -> None:
    """Print both networks and their sum."""
    side, classes = (int(each) for each in [*sys.argv[1:], *["640", "1"][len(sys.argv) - 1 :]])
    total = [0.0, 0.0]
    for who, encoder in (("teacher", "efficientnet-b3"), ("student", "efficientnet-b0")):
        with torch.device("meta"):
            network = smp.create_model("unet", encoder, None, in_channels=3, classes=classes).to(torch.bfloat16)
        found = counted(network, side, who == "student")
        total = [a + b for a, b in zip(total, found, strict=True)]
        print(f"{who}  {found[0]:7.1f} GFLOP  {found[1]:5.2f} GB an image")
    print(f"step     {total[0]:7.1f} GFLOP  {total[1]:5.2f} GB an image")


if __name__ == "__main__":
    main()
