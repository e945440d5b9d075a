"""What is measured: the sizes of a benchmark, its data as files, and the networks that every contestant begins with.

The built-in data is written as JPEG and PNG files of twice the size, so that there is something to decode and resize.
Networks are random, with batch-norm statistics measured on the data; only speed is looked at.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from torch import Tensor

from benchmarks.hand_written import Job
from kd.config.compose import compose
from kd.config.read import read
from kd.config.transforms import build_transforms
from kd.data import Folder, Shapes
from kd.data.batches.batch import Batch
from kd.data.batches.loading import TrainLoader
from kd.data.views.augmentation import Augmentation
from kd.distillation.losses import DistillationLoss
from kd.distillation.teacher import LiveTeacher, Teacher
from kd.experiment.builders import build_network, build_options, build_train_loader
from kd.experiment.context import RunContext
from kd.networks.network import Network
from kd.plan.schedules import Constant
from kd.plan.timeline import Timeline
from kd.plan.unfreeze import All, Frozen
from kd.settings import TASK_TERMS
from kd.system.world import SOLO
from kd.training.batch_norm import measure_batch_norm
from kd.training.loop import EpochResult, fit
from kd.training.step import Distillation

#: The main pair; the time that a step takes does not depend on the weights, and random ones need no network.
PAIR = ["backbone=b0_from_b3", "backbone.student.weights=null", "backbone.teacher.weights=null"]
STATES = {"frozen": Frozen(), "unfrozen": All()}  # of the encoder, and the policy that keeps it so


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: how often each contestant has its turn, after `warm_up` more.
        steps: of one epoch, which is one turn.
        image_size: side of the square images in pixels.
        epochs: of the two trainings whose metrics are compared.
        trials, trial_epochs, trial_images, trial_side, seeds: of a study (see `benchmarks.study`).
        quick: everything is as small as it can be.
    """

    rounds: int = 7
    warm_up: int = 1
    steps: int = 5
    batch: int = 8
    image_size: int = 128
    epochs: int = 6
    trials: int = 12
    trial_epochs: int = 36
    trial_images: int = 24
    trial_side: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    precision: str = "fp32"


FULL = Sizes()
QUICK = Sizes(rounds=2, warm_up=0, steps=1, batch=2, image_size=32, epochs=2, trials=2, trial_epochs=5, trial_images=8,
              trial_side=32, seeds=(0,), quick=True)  # fmt: skip
CUDA = replace(FULL, batch=4, image_size=640, steps=32, precision="bf16")  # as experiment=b0_from_b3_temp_prog

SIZES = {"full": FULL, "quick": QUICK, "cuda": CUDA}


class Remembered:
    """The batches of a loader's first epochs, in memory; later epochs see them again."""

    world = SOLO

    def __init__(self, loader: TrainLoader, epochs: int) -> None:
        self.batches = [list(loader.epoch(epoch)) for epoch in range(epochs)]

    def steps(self) -> int:
        return len(self.batches[0])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        yield from self.batches[epoch % len(self.batches)][start:]


@dataclass(frozen=True)
class Case:
    """One configuration, ready to be trained in several ways."""

    sizes: Sizes
    bench: RunContext

    @classmethod
    def of(cls, sizes: Sizes, overrides: list[str]) -> "Case":
        """The case of a configuration; the batch and the precision are those of `sizes`, unless it has its own."""
        default = ["loss=soft_targets", f"trainer.precision={sizes.precision}", f"trainer.batch_size={sizes.batch}"]
        return cls(sizes, bench_of([*default, *overrides]))

    @cached_property
    def student(self) -> Network:
        """What every student begins as; never trained itself."""
        return self._built("student", self.bench.settings.seed)

    @cached_property
    def teacher(self) -> Network:
        return self._built("teacher", 1)

    def _built(self, who: str, seed: int) -> Network:
        network = build_network(self.bench, who, seed)
        measure_batch_norm(network, build_train_loader(self.bench, 0), self.bench.precision, seed=0)
        return network

    def network(self) -> Network:
        """A new student, always the same."""
        return copy.deepcopy(self.student)

    def loader(self) -> TrainLoader:
        return build_train_loader(self.bench, self.bench.settings.seed)

    @cached_property
    def remembered(self) -> Remembered:
        return Remembered(self.loader(), 2)

    def live(self) -> LiveTeacher:
        return LiveTeacher(lambda: self.teacher, self.bench.precision)

    def timeline(self, state: str | None = None) -> Timeline:
        """The configuration's plan, or an endless one with the encoder always frozen, or always unfrozen."""
        settings, blocks = self.bench.settings, len(self.student.partition.blocks)
        if state is None:
            return settings.timeline(blocks)
        return Timeline(Constant(4.0), STATES[state], settings.optimizer.rates, 10**6, blocks)

    def fit(self, loader: TrainLoader | Remembered, teacher: Teacher | None, state: str | None = None,
            network: Network | None = None) -> Iterator[EpochResult]:  # fmt: skip
        """A training without validation; without a teacher it is the student alone, by the rest of the loss."""
        network, settings = network or self.network(), self.bench.settings
        weights = settings.loss.model_dump(include=None if teacher else {*TASK_TERMS.values()})
        loss = DistillationLoss(weights, settings.data.classes, settings.data.void)
        distillation = Distillation(network, loss, self.timeline(state), teacher)
        return fit(distillation, loader, dict, build_options(self.bench, settings.seed), self.bench.precision)

    def answers(self) -> Iterator[None]:
        """The teacher alone, one epoch's batches for each item."""
        teacher, device = self.live(), self.bench.precision.device
        for epoch in count():
            for batch in self.remembered.epoch(epoch):
                logits, *_ = teacher(batch.to(device))
            yield logits.sum().item() and None  # waits for the device

    def job(self, state: str | None = None) -> Job:
        """The same for the loop that is written by hand."""
        settings, data = self.bench.settings, self.bench.settings.data
        pairs = {split: [tuple(data.files(split, i)) for i in range(data.size(split))] for split in ("train", "val")}
        return Job(
            train=pairs["train"],
            val=pairs["val"],
            image_size=data.image_size,
            mask_values=data.coding.written if isinstance(data, Folder) else range(len(data.class_names)),
            classes=data.classes,
            views=Augmentation(self.bench.transforms, settings.seed, data.void),
            timeline=self.timeline(state),
            weights=settings.loss.model_dump(),
            batch_size=settings.trainer.batch_size,
            betas=settings.optimizer.betas,
            weight_decay=settings.optimizer.weight_decay,
            clip_norm=settings.optimizer.clip_norm,
            seed=settings.seed,
            encoder=settings.backbone.teacher.encoder,
            student=_of_smp(self.student),
            teacher=_of_smp(self.teacher),
        )


def bench_of(overrides: list[str]) -> RunContext:
    settings = read(compose(overrides))
    return RunContext.of(settings, build_transforms(settings.augment.transforms))


def _of_smp(network: Network) -> dict[str, Tensor]:
    """The state of the smp network inside one of ours."""
    return {name: value.detach().cpu().clone() for name, value in network.body.state_dict().items()}


def write_shapes(root: Path, side: int, images: Mapping[str, int], classes: int = 1) -> None:
    """The built-in pictures as files: JPEG images and PNG masks, `images` of them in each split."""
    source = Shapes(image_size=(side, side), classes=classes, **images)
    for split, number in images.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            image, mask = source.read(split, index)
            Image.fromarray(image).save(root / "images" / split / f"{index:05d}.jpg", quality=95)
            Image.fromarray(mask).save(root / "masks" / split / f"{index:05d}.png")


def copy_some(root: Path, target: Path, images: Mapping[str, int], settings: list[str]) -> None:
    """The first `images` pairs of each split of a folder of somebody's own."""
    source = read(compose(["data=folder", f"data.root={root}", *settings])).data
    for split, number in images.items():
        for index in range(min(number, source.size(split))):
            for kind, file in zip(("images", "masks"), source.files(split, index), strict=True):
                place = target / kind / split
                place.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place / file.name)


@contextmanager
def folder_of(sizes: Sizes, own: Path | None = None, settings: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Overrides that name a folder of enough pictures for one epoch: built-in ones, or those of a folder, `own`."""
    images = {"train": sizes.steps * sizes.batch, "val": 2 * sizes.batch}
    with TemporaryDirectory() as place:
        if own is None:
            write_shapes(Path(place), 2 * sizes.image_size, images)
        else:
            copy_some(own, Path(place), images, list(settings))
        side = f"data.image_size=[{sizes.image_size},{sizes.image_size}]"
        root = f"root={Path(place) / 'root'}"
        yield [root, *PAIR, "data=folder", f"data.root={place}", side, "tracking=none", *settings]


def takes_by_hand(data: Folder) -> bool:
    """Whether the loop that is written by hand can train on some data: it knows no void, and one value per class."""
    coding = data.coding
    is_plain = not coding.coloured and coding.threshold is None and all(len(codes) == 1 for codes in coding.codes)
    return is_plain and coding.void is None
