"""What is done with a finished run: its network exported, asked about pictures, timed, registered.

A run is its folder, or a .safetensors with its .json; the folder's config.yaml says which data it was trained on, as
far as that is still there.
"""

from kd.deploy.exporting import export_run
from kd.deploy.finished import Finished, find
from kd.deploy.predicting import predict_pictures
from kd.deploy.registering import register, register_or_warn
from kd.deploy.timing import bench

__all__ = ["Finished", "bench", "export_run", "find", "predict_pictures", "register", "register_or_warn"]
