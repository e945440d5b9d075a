"""Export a network to files that run without this package: ONNX, torch.export, segmentation-models-pytorch's folder.

Each file takes the network's input (RGB, 0..255, uint8) and gives raw logits. The network in smp's folder is the
exception: it does not normalise its input, as the folder's README says. A file is compared with the network before it
gets its name (`check`), so that one with other logits never appears; an 8-bit file is measured instead.
"""

from kd.deploy.export.check import TOLERANCE, Check, ExportError
from kd.deploy.export.formats import FORMATS, Wanted, export, pictures
from kd.deploy.export.onnx_file import OnnxNetwork, Session, proto

__all__ = [
    "FORMATS", "TOLERANCE", "Check", "ExportError", "OnnxNetwork", "Session", "Wanted", "export", "pictures", "proto",
]  # fmt: skip
