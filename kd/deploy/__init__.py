"""What is done with a finished run: export its network, predict with it, score it, time it, register it.

A run is named by its folder, or by a .safetensors file with its .json beside it. The folder's config.yaml says which
data it was trained on, if that still exists.
"""

from kd.deploy.evaluating import Question, evaluate_run
from kd.deploy.exporting import export_run
from kd.deploy.finished import Finished, find
from kd.deploy.predicting import predict_pictures
from kd.deploy.predictor import Wanted
from kd.deploy.registering import register, register_or_warn
from kd.deploy.timing import bench

__all__ = [
    "Finished", "Question", "Wanted", "bench", "evaluate_run", "export_run", "find", "predict_pictures", "register",
    "register_or_warn",
]  # fmt: skip
