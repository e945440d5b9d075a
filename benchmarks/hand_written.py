"""The same distillation as the loop that one would write by hand: smp, torch's AdamW, a DataLoader, a live teacher.

Everything that costs time is done here as the libraries' own examples do it: files are decoded, resized and augmented
in a torch DataLoader with two workers, AdamW has its default settings, tensors their default layout, and the teacher
answers every batch anew. What makes the two jobs the same, and costs next to nothing, is taken from `kd`: the plan of
each epoch (temperature, unfrozen blocks, learning rates), the order of samples, their views, how a mask is resized, and
the seeds of stochastic depth. `tests/test_benchmarks.py` holds the two to the same weights.

The student is a UNet with an EfficientNet-B0 encoder, the teacher one with any encoder; no pixel is void.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kd.data.files.decode import resized_labels
from kd.data.random_streams import stream
from kd.data.views.augmentation import Augmentation
from kd.plan.timeline import EpochPlan, Timeline
from kd.training.step import step_seed

BLOCKS = ((15,), (11, 12, 13, 14), (8, 9, 10), (5, 6, 7), (3, 4), (1, 2), (0,))  # of EfficientNet-B0, deepest first
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
WORKERS = 2


@dataclass(frozen=True)
class Job:
    """What both loops are given.

    Attributes:
        train, val: (image, mask) files.
        image_size: height, width in pixels.
        mask_values: what the masks store for each class.
        views: the augmentation, by (image, mask, epoch, index).
        weights: alpha, beta, gamma, delta of the loss.
        encoder: the teacher's.
        student, teacher: the state of smp networks to begin with.
    """

    train: Sequence[tuple[Path, Path]]
    val: Sequence[tuple[Path, Path]]
    image_size: tuple[int, int]
    mask_values: Sequence[int]
    classes: int
    views: Augmentation
    timeline: Timeline
    weights: Mapping[str, float]
    batch_size: int
    betas: tuple[float, float]
    weight_decay: float
    clip_norm: float
    seed: int
    encoder: str
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]


class Pictures(Dataset):
    """Decoded, resized, augmented samples; one is asked for by (epoch, index), epoch None for no view."""

    def __init__(self, job: Job, pairs: Sequence[tuple[Path, Path]]) -> None:
        self.pairs, self.size, self.views = pairs, job.image_size, job.views
        self.values = np.zeros(256, np.uint8)
        self.values[list(job.mask_values)] = range(len(job.mask_values))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, asked: tuple[int | None, int]) -> tuple[Tensor, Tensor]:
        epoch, index = asked
        image_file, mask_file = self.pairs[index]
        image = np.array(Image.open(image_file).convert("RGB"))
        mask = self.values[np.array(Image.open(mask_file))]
        height, width = self.size
        shrinks = image.shape[0] >= height and image.shape[1] >= width
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        mask = resized_labels(mask, (height, width))
        if epoch is not None:
            image, mask = self.views(image, mask, epoch, index)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)


def total_loss(
    logits: Tensor, answers: Tensor, masks: Tensor, temperature: float, weights: Mapping[str, float]
) -> Tensor:
    """alpha T^2 CE(teacher, student at T) + beta MSE + gamma CE + delta Dice; CE is KL plus what has no gradient."""
    if logits.shape[1] == 1:
        soft = F.binary_cross_entropy_with_logits(logits / temperature, torch.sigmoid(answers / temperature))
        hard = F.binary_cross_entropy_with_logits(logits, masks[:, None].to(logits.dtype))
        dice = smp.losses.DiceLoss("binary")(logits, masks.long())
    else:
        soft = F.cross_entropy(logits / temperature, torch.softmax(answers / temperature, dim=1))
        hard = F.cross_entropy(logits, masks.long())
        dice = smp.losses.DiceLoss("multiclass")(logits, masks.long())
    soft, mse = temperature**2 * soft, F.mse_loss(logits, answers)
    return weights["alpha"] * soft + weights["beta"] * mse + weights["gamma"] * hard + weights["delta"] * dice


def epochs(job: Job, *how: Any) -> Iterator[float]:
    """A `Loop`'s epochs, for a process that has only just begun."""
    return Loop(job, *how).epochs()


class Loop:
    """A student that is trained by `epochs`, one epoch for each item; `channels_last` is the one improvement."""

    def __init__(self, job: Job, device: torch.device, dtype: torch.dtype | None = None, channels_last: bool = False):
        self.job, self.device, self.dtype = job, device, dtype
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.student = self._network("efficientnet-b0", job.student)
        self.teacher = self._network(job.encoder, job.teacher).requires_grad_(False).eval()
        encoder = self.student.encoder
        self.blocks = [[encoder._blocks[i] for i in numbers] for numbers in BLOCKS]
        self.blocks[-1] += [encoder._conv_stem, encoder._bn0]
        decoder = [*self.student.decoder.parameters(), *self.student.segmentation_head.parameters()]
        groups = [decoder, *([p for module in block for p in module.parameters()] for block in self.blocks)]
        self.optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups], betas=job.betas, weight_decay=job.weight_decay
        )
        self.mean, self.std = (255 * torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (MEAN, STD))
        self.order: list[tuple[int, int]] = []
        self.loader = DataLoader(
            Pictures(job, job.train), batch_size=job.batch_size, sampler=self.order, drop_last=True,
            num_workers=WORKERS, persistent_workers=True,
        )  # fmt: skip

    def _network(self, encoder: str, state: Mapping[str, Tensor]) -> nn.Module:
        network = smp.Unet(encoder, encoder_weights=None, classes=self.job.classes)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # random weights: see docs/adr/0002
        network.load_state_dict(state)
        return network.to(self.device, memory_format=self.layout)

    def _open(self, plan: EpochPlan) -> None:
        self.student.train()
        self.student.encoder.requires_grad_(False)
        for depth, block in enumerate(self.blocks):
            for module in block:
                module.requires_grad_(depth < plan.unfrozen_blocks).train(depth < plan.unfrozen_blocks)
        for group, rate in zip(self.optimizer.param_groups, (plan.lr_decoder, *plan.lr_blocks), strict=True):
            group["lr"] = rate

    def epochs(self) -> Iterator[float]:
        """The mean loss of one epoch after the other."""
        for plan in self.job.timeline:
            self._open(plan)
            count = len(self.job.train)
            order = stream("order", self.job.seed, plan.epoch).permutation(count).tolist()
            self.order[:] = [(plan.epoch, index) for index in order]
            total = 0.0
            for step, (images, masks) in enumerate(self.loader):
                torch.manual_seed(step_seed(self.job.seed, plan.epoch, step))
                total += self._step(images, masks, plan.temperature)
            yield total / (step + 1)

    def _step(self, images: Tensor, masks: Tensor, temperature: float) -> float:
        images, masks = self._normalised(images), masks.to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            with torch.no_grad():
                answers = self.teacher(images)
            logits = self.student(images)
        loss = total_loss(logits.float(), answers.float(), masks, temperature, self.job.weights)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.job.clip_norm)
        self.optimizer.step()
        return loss.item()

    def _normalised(self, images: Tensor) -> Tensor:
        pixels = (images.to(self.device, self.mean.dtype) - self.mean) / self.std
        return pixels.contiguous(memory_format=self.layout)

    @torch.no_grad()
    def miou(self) -> float:
        """Mean IoU over the validation files, from counts over all of them."""
        self.student.eval()
        labels = max(2, self.job.classes)
        counts = np.zeros((labels, labels), np.int64)
        pictures = Pictures(self.job, self.job.val)
        for image, mask in (pictures[None, index] for index in range(len(pictures))):
            logits = self.student(self._normalised(image[None]))[0]
            found = (logits[0] > 0).int() if self.job.classes == 1 else logits.argmax(0)
            np.add.at(counts, (mask.numpy(), found.cpu().numpy()), 1)
        hits, either = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
        return float(np.mean(hits[either > 0] / either[either > 0]))
