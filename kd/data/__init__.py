"""Data sets, light to import: no torch, albumentations, torchvision or OpenCV until a sample is asked for.

`kd.data.views` (augmentation) and `kd.data.loading` (batches) are imported by those who train.
"""

from kd.data.folder import Folder
from kd.data.oxford_pet import OxfordPet
from kd.data.shapes import Shapes
from kd.data.source import Source

__all__ = ["Folder", "OxfordPet", "Shapes", "Source"]
