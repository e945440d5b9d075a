"""Data sets, light to import: no torch, albumentations, torchvision or OpenCV until a sample is read.

What is exported here is what `data._target_` may name; each class is imported on first use.

source      the interface of data sets
sets        the data sets: your own folder, those with a name, the built-in one
layout      which file belongs to which sample, and which sample to which split
files       one file, read safely, with the numbers that it stores
masks       what the pixels of a mask stand for
checks      what is wrong with a data set
sizing      how pictures are brought to the size that a network sees
measuring   mean and deviation of each channel, stated or measured (statistics)
views       what training shows of a picture: a crop, an augmentation
batches     which samples come together, in which order (only training imports it)
cache       samples decoded once
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd.data.sets.coco import Coco
    from kd.data.sets.folder import Folder
    from kd.data.sets.hugging_face import HuggingFace
    from kd.data.sets.oxford_pet import OxfordPet
    from kd.data.sets.shapes import Shapes
    from kd.data.source import Source

#: The module of each data set.
SETS = {
    "Coco": "sets.coco",
    "Folder": "sets.folder",
    "HuggingFace": "sets.hugging_face",
    "OxfordPet": "sets.oxford_pet",
    "Shapes": "sets.shapes",
}
if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> object:
        module = {**SETS, "Source": "source"}.get(name)
        if module is None:  # or a submodule, which the import system then looks for
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f"{__name__}.{module}"), name)
        return found


__all__ = ["Coco", "Folder", "HuggingFace", "OxfordPet", "Shapes", "Source"]
