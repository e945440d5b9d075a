"""Data sets, light to import: no torch, albumentations, torchvision or OpenCV until a sample is read.

Only training imports `kd.data.augmentation` and `kd.data.loading` (batches).
"""

from kd.data.coco import Coco
from kd.data.folder import Folder
from kd.data.hugging_face import HuggingFace
from kd.data.oxford_pet import OxfordPet
from kd.data.shapes import Shapes
from kd.data.source import Source

__all__ = ["Coco", "Folder", "HuggingFace", "OxfordPet", "Shapes", "Source"]
