"""Evaluation is a function of all predictions of a split at once. References: sets of pixels, torch's cross-entropy."""

from dataclasses import dataclass

import numpy as np
import pytest
import together
import torch
import torch.nn.functional as F
from torch import nn

from kd.data import Shapes, Source
from kd.data.batches.loading import EvalLoader, Loading
from kd.networks.network import Network
from kd.networks.precision import Precision
from kd.settings import NetworkSettings
from kd.system.world import SOLO
from kd.training.evaluation import evaluate

CPU = Precision(torch.device("cpu"))
VOID = 255
BINARY = Shapes(image_size=(32, 64), val=5, test=3)
SOURCES = [
    BINARY,
    Shapes(image_size=(32, 64), val=5, test=3, ignore_index=VOID),
    Shapes(image_size=(32, 64), val=5, test=3, classes=4),
    Shapes(image_size=(32, 64), val=5, test=3, classes=4, ignore_index=7),
]


class Body(nn.Module):
    """Each pixel is independent of the others."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


def network(source: Source, seed=0) -> Network:
    torch.manual_seed(seed)
    settings = NetworkSettings(arch="unet", encoder="hand-made")
    made = Network(settings, Body(source.classes), source.classes, source.class_names)
    with torch.no_grad():
        made.body.head.weight *= 5  # so that no class is predicted everywhere
        noise = torch.randint(0, 256, (1, 3, 32, 32))
        made.body.head.bias -= made.eval()(noise).mean(dim=(0, 2, 3))
    return made.train()


def evaluated(source: Source, split="val", batch_size=2, who=None, precision=CPU, **options):
    loader = EvalLoader(source, split, batch_size)
    return evaluate(who or network(source), loader, precision, source.void, **options)


def everything(source: Source, split="val", who=None) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """All logits, predictions and truths of a split at once."""
    pairs = [source.read(split, index) for index in range(source.size(split))]
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = (who or network(source)).eval()(images)
    predicted = (logits[:, 0] > 0) if source.classes == 1 else logits.argmax(1)
    return logits, predicted.long().numpy(), np.stack([mask for _, mask in pairs])


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_metrics_are_those_of_all_predictions_at_once(source, split):
    _, predicted, truth = everything(source, split)
    pixels = np.flatnonzero(truth != source.ignore_index) if source.ignore_index else np.arange(truth.size)
    ious, dices = {}, []
    for label, name in enumerate(source.class_names):
        true = {p for p in pixels.tolist() if truth.flat[p] == label}
        guess = {p for p in pixels.tolist() if predicted.flat[p] == label}
        assert true | guess
        ious[name] = len(true & guess) / len(true | guess)
        dices.append(2 * len(true & guess) / (len(true) + len(guess)))
    found = evaluated(source, split).metrics(source.class_names)
    assert 0.01 < found["miou"] < 0.99
    assert {name: found[f"iou/{name}"] for name in ious} == pytest.approx(ious)
    assert found["miou"] == pytest.approx(np.mean(list(ious.values())))
    assert found["dice"] == pytest.approx(np.mean(dices))


@pytest.mark.parametrize("source", SOURCES)
def test_the_loss_is_torchs_cross_entropy_over_all_valid_pixels(source):
    """Invariant 1: at temperature 1; there is no other to choose."""
    logits, _, truth = everything(source)
    truth = torch.from_numpy(truth).long()
    if source.classes == 1:
        valid = truth != (-1 if source.ignore_index is None else source.ignore_index)
        expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], truth[valid].float())
    else:
        ignored = -100 if source.ignore_index is None else source.ignore_index
        expected = F.cross_entropy(logits, truth, ignore_index=ignored)
    assert evaluated(source).loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("source", SOURCES)
def test_the_batch_size_does_not_matter(source, batch_size):
    one, other = evaluated(source, batch_size=2), evaluated(source, batch_size=batch_size)
    assert torch.equal(one.confusion.counts, other.confusion.counts)
    assert other.loss == pytest.approx(one.loss, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_labels_are_the_predictions_in_the_order_of_the_split(batch_size):
    _, predicted, _ = everything(SOURCES[2])
    labels = evaluated(SOURCES[2], batch_size=batch_size, keep_labels=True).labels
    assert {tensor.dtype for tensor in labels} == {torch.uint8}
    assert np.array_equal(torch.cat(labels).numpy(), predicted)
    assert evaluated(SOURCES[2]).labels == []


# agreement


@pytest.mark.parametrize("source", SOURCES)
def test_a_network_agrees_with_itself(source):
    labels = evaluated(source, keep_labels=True).labels
    found = evaluated(source, reference=labels)
    assert found.agreement == 1.0
    assert found.metrics(source.class_names)["teacher_agreement"] == 1.0


@pytest.mark.parametrize("source", SOURCES)
def test_agreement_is_the_fraction_of_valid_pixels_with_the_same_label(source):
    _, mine, truth = everything(source)
    _, other, _ = everything(source, who=network(source, seed=1))
    valid = np.ones_like(truth, bool) if source.ignore_index is None else truth != source.ignore_index
    labels = evaluated(source, who=network(source, seed=1), keep_labels=True).labels
    expected = (mine == other)[valid].mean()
    assert 0.05 < expected < 0.95
    assert evaluated(source, reference=labels).agreement == pytest.approx(expected)


def test_without_a_reference_there_is_no_agreement():
    found = evaluated(BINARY)
    assert found.agreement is None
    assert "teacher_agreement" not in found.metrics(BINARY.class_names)


def test_the_last_of_the_most_classes_agrees_with_itself():
    source = Painted(classes=255, image_size=(32, 32))
    who = network(source)
    with torch.no_grad():
        who.body.head.bias[254] = 1e6
    labels = evaluated(source, who=who, keep_labels=True).labels
    assert {int(tensor.min()) for tensor in labels} == {254}
    assert evaluated(source, who=who, reference=labels).agreement == 1.0


# void


@dataclass(frozen=True, kw_only=True)
class Painted(Source):
    """Noise, with a frame of void around it (or void only) whose pixels differ."""

    inside: int = 0
    frame: int = 0
    all_void: bool = False

    def size(self, split):
        return 3

    def name(self, split, index):
        return f"{split}_{index}"

    def read(self, split, index):
        height, width = self.image_size
        image = np.random.default_rng([index, self.inside]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = np.random.default_rng([index, 1]).integers(0, len(self.class_names), (height, width), dtype=np.uint8)
        if self.ignore_index is not None:
            outside = np.ones((height, width), bool)
            outside[4:-4, 4:-4] = self.all_void
            image[outside] = np.random.default_rng([index, 2, self.frame]).integers(0, 256, (outside.sum(), 3))
            mask[outside] = self.ignore_index
        return image, mask

    def fingerprint(self):
        return ""

    def check(self):
        pass


@pytest.mark.parametrize("classes", [1, 3])
def test_void_pixels_change_no_metric(classes):
    """Other images under the void, hence other predictions there, change no metric."""
    one, other = (Painted(classes=classes, image_size=(32, 32), ignore_index=VOID, frame=frame) for frame in (0, 1))
    inside = Painted(classes=classes, image_size=(32, 32), ignore_index=VOID, inside=1)
    labels = evaluated(one, who=network(one, seed=1), keep_labels=True).labels
    found, same, different = (evaluated(source, reference=labels, keep_labels=True) for source in (one, other, inside))
    assert not torch.equal(torch.cat(found.labels), torch.cat(same.labels))
    assert same.metrics(one.class_names) == pytest.approx(found.metrics(one.class_names))
    assert different.metrics(one.class_names) != pytest.approx(found.metrics(one.class_names))
    assert found.confusion.counts.sum() == 3 * 24 * 24


@pytest.mark.parametrize("classes", [1, 3])
def test_an_all_void_split_has_no_metrics(classes):
    source = Painted(classes=classes, image_size=(32, 32), ignore_index=VOID, all_void=True)
    labels = evaluated(source, keep_labels=True).labels
    found = evaluated(source, reference=labels)
    assert set(found.metrics(source.class_names).values()) == {None}
    assert found.metrics(source.class_names).keys() >= {"loss", "miou", "dice", "teacher_agreement"} - {
        "teacher_agreement"
    }


# side effects


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("open_blocks", [0, 1])
def test_evaluation_restores_the_mode(training, open_blocks):
    who = network(BINARY)
    who.unfreeze(open_blocks)
    who.train(training)
    before = modes(who)
    evaluated(BINARY, who=who)
    assert modes(who) == before


def test_evaluation_changes_nothing_and_draws_nothing():
    who = network(BINARY).train()
    before, random = {name: value.clone() for name, value in who.state_dict().items()}, torch.get_rng_state()
    one, other = evaluated(BINARY, who=who), evaluated(BINARY, who=who)
    assert torch.equal(one.confusion.counts, other.confusion.counts)
    assert one.loss == other.loss
    assert all(torch.equal(before[name], value) for name, value in who.state_dict().items())
    assert all(parameter.grad is None for parameter in who.parameters())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_changes_metrics_only_slightly(name):
    half, full = (evaluated(SOURCES[3], precision=Precision(torch.device("cpu"), p)) for p in (name, "fp32"))
    assert half.loss == pytest.approx(full.loss, rel=0.05)
    assert half.confusion.accuracy() == pytest.approx(full.confusion.accuracy(), abs=0.05)


def test_metrics_are_named_after_the_classes():
    names = SOURCES[2].class_names
    assert list(evaluated(SOURCES[2]).metrics(names)) == ["loss", "miou", "dice", *(f"iou/{name}" for name in names)]


# pictures of their own sizes, and padding


@dataclass(frozen=True, kw_only=True)
class Sized(Source):
    """Noise of another size for each sample; without `fit` other than crop, all are 40 x 70."""

    sizes: tuple[tuple[int, int], ...] = ((32, 64), (40, 70), (100, 33), (20, 130), (65, 65))

    def size(self, split):
        return len(self.sizes)

    def name(self, split, index):
        return f"{split}_{index}"

    def read(self, split, index):
        random = np.random.default_rng([index, len(split)])
        image = random.integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        mask = random.integers(0, len(self.class_names), self.sizes[index], dtype=np.uint8)
        if self.ignore_index is not None:
            mask[:5] = self.ignore_index
        return self.fitted(image, mask)

    def fingerprint(self):
        return ""

    def check(self):
        pass


SIZED = [
    Sized(image_size=(32, 64), fit="crop", classes=classes, ignore_index=void)
    for classes in (1, 4)
    for void in (None, 9)
]


@pytest.mark.parametrize("source", SIZED)
def test_pictures_of_their_own_sizes_count_with_all_of_their_pixels(source):
    """Reference: a network that sees single pixels, asked about whole pictures, for which windows are invisible."""
    who, counts, losses, labels = network(source).eval(), np.zeros((len(source.class_names),) * 2, int), [], []
    for index in range(5):
        image, mask = source.read("val", index)
        with torch.no_grad():
            logits = who(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
        guess = (logits[0, 0] > 0).long() if source.classes == 1 else logits[0].argmax(0)
        labels.append(guess.numpy())
        valid = mask != 9
        np.add.at(counts, (mask[valid], guess.numpy()[valid]), 1)
        two = torch.cat([torch.zeros_like(logits), logits], dim=1) if source.classes == 1 else logits
        losses.append(F.cross_entropy(two, torch.from_numpy(mask)[None].long(), ignore_index=9, reduction="sum"))
    found = evaluated(source, who=who, keep_labels=True)
    different = sum((one != other.numpy()).sum() for one, other in zip(labels, found.pictures(), strict=True))
    assert different <= 2  # of 10,000 pixels, where two logits are equal but for rounding
    assert np.abs(found.confusion.counts.numpy() - counts).sum() <= 4
    assert found.confusion.counts.sum() == counts.sum() == sum(map(int, found.confusion.counts.flatten()))
    assert found.loss == pytest.approx((sum(losses) / counts.sum()).item(), rel=1e-5)


def test_the_number_of_windows_computed_together_does_not_matter():
    one, other = evaluated(SIZED[3], batch_size=1), evaluated(SIZED[3], batch_size=7)
    assert torch.equal(one.confusion.counts, other.confusion.counts)
    assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("source", SIZED)
def test_a_network_agrees_with_itself_at_every_size(source):
    labels = evaluated(source, keep_labels=True).labels
    assert evaluated(source, reference=labels).agreement == 1.0


def test_crops_of_the_pictures_own_size_measure_what_resizing_does():
    sources = [Sized(image_size=(32, 64), sizes=((32, 64),) * 3, fit=fit) for fit in ("resize", "letterbox", "crop")]
    found = [evaluated(source, batch_size=1) for source in sources]
    assert len({each.loss for each in found}) == 1
    assert torch.equal(found[0].confusion.counts, found[2].confusion.counts)
    assert torch.equal(found[0].confusion.counts, found[1].confusion.counts)


@pytest.mark.parametrize("void", [None, 9, 255])
def test_padding_is_not_measured(void):
    source = Sized(image_size=(64, 64), fit="letterbox", ignore_index=void)
    masks = [source.read("val", index)[1] for index in range(5)]
    valid = sum(int(((mask != source.padding) & (mask != void)).sum()) for mask in masks)
    found = evaluated(source)
    assert found.confusion.counts.sum() == valid < 5 * 64 * 64
    assert evaluated(source, batch_size=5).loss == pytest.approx(found.loss, rel=1e-5)


def measured_together(world):
    loader = EvalLoader(SIZED[3], "val", 2, Loading(world=world))
    found = evaluate(network(SIZED[3]), loader, CPU, SIZED[3].void, keep_labels=True)
    return found.loss, found.confusion.counts.tolist(), [each.tolist() for each in found.pictures()]


def test_processes_that_share_pictures_of_their_own_sizes_measure_what_one_does():
    alone = measured_together(SOLO)
    assert all(found == alone for found in together.run(measured_together))
