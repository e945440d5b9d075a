"""A training that takes milliseconds: a hand-made network, its data, its teacher, its plan.

The network has what makes a loop go wrong: batch norms and dropout in every block, a layer that never runs, and three
blocks whose names are known here without asking the partition.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from kd.data import Shapes
from kd.data.batches.loading import Loading, TrainLoader
from kd.data.views.augmentation import Augmentation
from kd.distillation.features import Learner
from kd.distillation.losses import DistillationLoss
from kd.distillation.teacher import LiveTeacher
from kd.networks.network import Network
from kd.networks.partition import Partition, partition
from kd.networks.precision import Precision
from kd.plan.schedules import Linear
from kd.plan.timeline import LearningRates, Timeline
from kd.plan.unfreeze import Progressive
from kd.settings import NetworkSettings
from kd.training.loop import fit
from kd.training.step import Distillation, TrainingOptions

SOURCE = Shapes(image_size=(32, 32), train=6, val=2, test=1)
EIGHT = Shapes(image_size=(32, 32), train=8, val=2, test=1)
CPU = Precision(torch.device("cpu"), channels_last=False)
BLOCKS = ("deep", "middle", "stem")  # deepest first
ALL_TERMS = {"alpha": 0.3, "beta": 0.5, "gamma": 0.5, "delta": 1.0}
HARD = {"alpha": 0, "beta": 0, "gamma": 0.5, "delta": 1.0}
TRAINING = TrainingOptions(seed=0, weight_decay=0.1, betas=(0.9, 0.999), clip_norm=None)


class Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: bool, drop: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)).relu())


class Encoder(nn.Module):
    def __init__(self, norm: bool, drop: float) -> None:
        super().__init__()
        self.stem, self.middle = Stage(3, 4, norm, drop), Stage(4, 6, norm, drop)
        self.deep, self.spare = Stage(6, 8, norm, drop), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        features = [self.stem(x)]
        for stage in (self.middle, self.deep):
            features.append(stage(features[-1]))
        return features


class Body(nn.Module):
    def __init__(self, norm: bool, drop: float) -> None:
        super().__init__()
        self.encoder = Encoder(norm, drop)
        self.decoder, self.head = nn.Conv2d(14, 8, 3, padding=1), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        _, middle, deep = self.encoder(x)
        hidden = self.decoder(torch.cat([F.interpolate(deep, scale_factor=2), middle], 1)).relu()
        return F.interpolate(self.head(hidden), scale_factor=4)


@functools.cache
def parts(norm: bool) -> Partition:
    """The blocks of the encoder, found once: that takes longer than an epoch."""
    return partition(Encoder(norm, drop=0.0))


def hand_made(seed=0, norm=True, drop=0.2) -> Network:
    blocks = parts(norm)
    torch.manual_seed(seed)
    settings = NetworkSettings(arch="unet", encoder="hand-made")
    return Network(settings, Body(norm, drop), 1, SOURCE.class_names, parts=blocks)


def teacher(stages=()) -> LiveTeacher:
    network = hand_made(seed=99)
    with torch.no_grad():
        network.body.head.weight *= 20  # answers that are not all near 0
    return LiveTeacher(network, CPU, stages=stages)


def learner_of(student: Network) -> Learner:
    """A student that learns features of its teacher's stage 2; the projection is always the same."""
    torch.manual_seed(7)
    return Learner(student, (2,), (8,), (8,))


def loader(source=SOURCE, seed=0, batch_size=2, workers=0, transforms=()) -> TrainLoader:
    return TrainLoader(source, Augmentation(transforms, seed), batch_size, seed, Loading(workers))


def plan(policy=None, epochs=3, lr=1e-2, min_lr=1e-4, schedule=None, blocks=3, depth_decay=0.5) -> Timeline:
    rates = LearningRates(lr, min_lr, 0.3, depth_decay)
    return Timeline(schedule or Linear(4, 1), policy or Progressive(1, 1), rates, epochs, blocks)


def train(network, timeline=None, weights=ALL_TERMS, *, train=None, options=TRAINING, validate=dict, precision=CPU,
          who=teacher, **more):  # fmt: skip
    """A `fit` generator that has not started."""
    learner = learner_of(network) if "features" in weights else None
    distillation = Distillation(
        network, DistillationLoss(weights, 1), timeline or plan(), who() if who else None, learner
    )
    return fit(distillation, train or loader(), validate, options, precision, **more)


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def moved(before: dict[str, torch.Tensor], network: nn.Module) -> set[str]:
    """Names of the tensors that are no longer what they were."""
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def same(one: nn.Module, other: nn.Module) -> bool:
    return not moved(state(one), other)
