"""A network as files that run without this package: ONNX, torch.export, segmentation-models-pytorch's own folder.

Nothing else of the project knows ONNX. All of them take what the network takes (RGB, 0..255, uint8) and give raw
logits, except for smp's folder, whose network has no normalisation inside and says so in its README. A file is compared
with the network before it gets its name (`check`): one that answers differently never appears.
"""

from kd.deploy.export.check import TOLERANCE, Check, ExportError
from kd.deploy.export.formats import FORMATS, Wanted, export, pictures
from kd.deploy.export.onnx_file import OnnxNetwork, Session, proto

__all__ = [
    "FORMATS", "TOLERANCE", "Check", "ExportError", "OnnxNetwork", "Session", "Wanted", "export", "pictures", "proto",
]  # fmt: skip
