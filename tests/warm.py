"""Imported by the process that `program` forks from: what every fork would otherwise do again, for half its time."""

import gc
from importlib import import_module

gc.disable()  # nothing that is imported goes again

import once
import torch
from mlflow.store.db.utils import _get_latest_schema_revision
from optuna.storages import RDBStorage

import kd.cli.train
import kd.experiment.distil
import kd.experiment.train
import kd.study.sweep
import kd.study.trial  # noqa: F401
from kd.config.compose import compose
from kd.config.read import read
from kd.config.transforms import build_transforms
from kd.networks.build import build
from kd.networks.cost import macs

#: What the modules above do not import before they need it.
LIBRARIES = [
    "torchvision", "segmentation_models_pytorch", "albumentations", "mlflow", "sqlalchemy", "alembic",
    "matplotlib.pyplot", "optuna", "optuna.visualization.matplotlib", "hydra.main", "rich.progress", "rich.console",
    "plotly.io", "scipy.stats", "sklearn.ensemble", "sqlalchemy.dialects.sqlite",
    "mlflow.store.tracking.sqlalchemy_store", "pytest", "hypothesis",
]  # fmt: skip
ALONE = ["backbone=tiny", "loss=hard_only", "tracking=none"]
#: Of config groups: what several tests train with. A study names the groups of hydra first.
CHOICES = [
    [],
    ALONE,
    [*ALONE, "unfreeze=all"],
    [*ALONE, "unfreeze=all", "data=folder"],
    *([*pruner, *ALONE, *schedule]
      for pruner in ([], ["hydra/sweeper/pruner=none"]) for schedule in ([], ["schedule=linear"], ["schedule=cosine"])),
]  # fmt: skip

for name in LIBRARIES:
    import_module(name)
once.use()
torch.set_num_threads(1)  # threads do not survive a fork
settings = read(compose(["backbone=tiny", "data=shapes"]))
for choices in CHOICES:
    compose(choices)
RDBStorage("sqlite://").engine.dispose()  # in memory
_get_latest_schema_revision()
build_transforms(settings.augment.transforms)
for network in (build(each, 3, ("a", "b", "c"), "") for each in (settings.backbone.student, settings.backbone.teacher)):
    macs(network, (32, 32))
    network(torch.zeros(2, 3, 32, 32)).sum().backward()
    torch.optim.AdamW(network.parameters(), fused=True).step()
gc.freeze()  # else the first collection of each fork scans all of it
gc.enable()
