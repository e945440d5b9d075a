"""Imports what most items need, once, in the process that theirs are forked from.

Nothing here may touch CUDA, which cannot be used after a fork. What cannot be imported is left to the items that need
it: they say so, and the others still run.
"""

from contextlib import suppress
from importlib import import_module

for name in ("torch", "torchvision", "segmentation_models_pytorch", "albumentations", "benchmarks.on_gpu.setting"):
    with suppress(Exception):
        import_module(name)
