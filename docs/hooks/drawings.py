"""The figures of the documentation, drawn at build time by the code that they explain."""

import io
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from kd.config.compose import compose
from kd.config.read import block_count, read
from kd.data import Shapes
from kd.distillation.soft_targets import binary_kl, multiclass_kl
from kd.distillation.task import cross_entropy
from kd.networks import build
from kd.networks.network import Network
from kd.plan.schedules import Constant, Cosine, Exponential, Linear, Piecewise, progress
from kd.plan.unfreeze import All, AtEpoch, Frozen, Progressive
from kd.run.plots import GREY, STUDENT, WARM, draw_timeline
from kd.settings import NetworkSettings

TEMPERATURES = {1: "#3b0f70", 2: "#b73779", 4: "#fb8861", 10: "#f2c14e"}


def temperature() -> bytes:
    """Probabilities of two classes, and of five, at several temperatures."""
    figure, (two, five) = _panels(2)
    logits = torch.linspace(-10, 10, 201)
    for t, colour in TEMPERATURES.items():
        two.plot(logits.numpy(), torch.sigmoid(logits / t).numpy(), color=colour, label=f"T = {t}")
    two.set(xlabel="logit z", ylabel="probability", title="one logit: sigmoid(z / T)")
    two.legend(frameon=False)

    scores = torch.tensor([7.0, 4.0, 1.0, 0.0, -2.0])
    for place, (t, colour) in enumerate(TEMPERATURES.items()):
        five.bar(np.arange(5) + 0.2 * place - 0.3, torch.softmax(scores / t, 0).numpy(), 0.2, color=colour)
    five.set(title="five classes: softmax(z / T)", ylabel="probability", xticks=range(5))
    five.set_xticklabels([f"z = {score:g}" for score in scores])
    return _svg(figure)


def gradient() -> bytes:
    """The KL term's gradient with respect to the student's logits over temperature, with and without the factor T^2."""
    figure, panels = _panels(2)
    torch.manual_seed(0)
    for ax, kl, classes in zip(panels, (binary_kl, multiclass_kl), (1, 11), strict=True):
        student, teacher = 3 * torch.randn(2, 1, classes, 32, 32)
        temperatures = torch.logspace(0, 1.5, 25).tolist()
        sizes = np.array([_mean_gradient(kl, student, teacher, t) for t in temperatures])
        ax.loglog(temperatures, sizes, color=STUDENT, label="T² KL: the training loss")
        ax.loglog(temperatures, sizes / np.square(temperatures), color=WARM, label="KL without the factor T²")
        ax.set(xlabel="temperature", title="one logit" if classes == 1 else f"{classes} classes")
        ax.set_xticks([1, 2, 4, 10, 30], ["1", "2", "4", "10", "30"])
        ax.minorticks_off()
    panels[0].set(ylabel="mean |gradient| per pixel")
    panels[0].legend(frameon=False, loc="lower left")
    return _svg(figure)


def _mean_gradient(kl: Callable[..., Tensor], student: Tensor, teacher: Tensor, t: float) -> float:
    """The mean absolute gradient per logit, times the number of pixels that the loss averages over."""
    student = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl(student, teacher, t), student)
    return float(gradient.abs().mean()) * student[:, 0].numel()


def targets() -> bytes:
    """An image's hard target, and soft targets of a synthetic teacher whose logits are the distance to the edge."""
    source = Shapes(image_size=(96, 96))
    image, mask = max((source.read("train", index) for index in range(20)), key=lambda sample: sample[1].sum())
    inside, outside = (cv2.distanceTransform((mask == side).astype(np.uint8), cv2.DIST_L2, 5) for side in (1, 0))
    logits = torch.from_numpy(inside - outside).clamp(-8, 8)
    figure, panels = plt.subplots(1, 5, figsize=(10, 2.3), layout="constrained")
    panels[0].imshow(image)
    panels[1].imshow(mask, cmap="magma", vmin=0, vmax=1)
    for ax, t in zip(panels[2:], (1, 4, 10), strict=True):
        shown = ax.imshow(torch.sigmoid(logits / t).numpy(), cmap="magma", vmin=0, vmax=1)
    for ax, title in zip(panels, ("image", "hard target", "soft, T = 1", "soft, T = 4", "soft, T = 10"), strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
    figure.colorbar(shown, ax=panels, label="probability")
    return _svg(figure)


def frozen() -> bytes:
    """The change of each block of an EfficientNet-B0 after three steps with the three deepest blocks unfrozen."""
    torch.manual_seed(0)
    settings = NetworkSettings(arch="unet", encoder="efficientnet-b0")
    network = build.build(settings, 1, ("background", "foreground"), "backbone.student")
    network.unfreeze(3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    images, masks = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.randint(0, 2, (2, 64, 64))
    network.train()
    for _ in range(3):
        optimiser.zero_grad()
        torch.autograd.backward(cross_entropy(network(images), masks))
        optimiser.step()

    figure, panels = _panels(2)
    after = network.state_dict()
    names = [f"{depth + 1}" for depth in range(len(network.partition.blocks))]
    titles = {"change of weights": _weights, "change of batch-norm statistics": _statistics}
    for ax, (title, kind) in zip(panels, titles.items(), strict=True):
        changes = [_relative_change(kind(network, depth), before, after) for depth in range(len(names))]
        ax.bar(names, changes, color=[STUDENT if depth < 3 else GREY for depth in range(len(names))])
        for depth, value in enumerate(changes):
            ax.text(depth, value, "" if value else "0", ha="center", va="bottom")
        ax.set(title=title, xlabel="encoder block, 1 is the deepest", ylabel="relative change")
    return _svg(figure)


def _weights(network: Network, depth: int) -> list[str]:
    return [f"body.encoder.{name}" for name in network.partition.blocks[depth].parameters]


def _statistics(network: Network, depth: int) -> list[str]:
    modules = tuple(f"body.encoder.{name}." for name in network.partition.blocks[depth].modules)
    return [name for name in network.state_dict() if name.startswith(modules) and name.endswith(("_mean", "_var"))]


def _relative_change(names: list[str], before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """The norm of the change over the norm before."""
    change = sum(float((after[name] - before[name]).square().sum()) for name in names)
    return math.sqrt(change / sum(float(before[name].square().sum()) for name in names))


def schedules() -> bytes:
    """Every schedule and every policy over a run of 50 epochs."""
    figure, (heat, blocks) = _panels(2)
    epochs = range(50)
    for schedule in (Constant(), Linear(), Cosine(), Exponential(), Piecewise()):
        heat.plot([schedule(progress(epoch, 50)) for epoch in epochs], label=type(schedule).__name__.lower())
    heat.set(xlabel="epoch", ylabel="temperature", title="schedules")
    policies = {"progressive": Progressive(), "at_epoch": AtEpoch(), "all": All(), "frozen": Frozen()}
    for name, policy in policies.items():
        blocks.step(epochs, [policy(epoch, 7) for epoch in epochs], where="post", label=name)
    blocks.set(xlabel="epoch", ylabel="unfrozen encoder blocks of 7", title="policies", ylim=(-0.3, 7.3))
    for ax in (heat, blocks):
        ax.legend(frameon=False, fontsize=8)
    return _svg(figure)


def timeline() -> bytes:
    """The figure that `kd preview --png` draws for the plan in the README."""
    settings = read(compose(["schedule=cosine", "unfreeze.rate=3", "trainer.epochs=50"]), look_at_data=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.png"
        draw_timeline(settings.timeline(block_count(settings.backbone.student)), path)
        return path.read_bytes()


#: The functions by their path in the site.
DRAWINGS: dict[str, Callable[[], bytes]] = {
    "pictures/temperature.svg": temperature,
    "pictures/gradient.svg": gradient,
    "pictures/targets.svg": targets,
    "pictures/frozen.svg": frozen,
    "pictures/schedules.svg": schedules,
    "pictures/timeline.png": timeline,
}


def _panels(count: int) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(1, count, figsize=(10, 3.6), layout="constrained")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> bytes:
    """A figure as SVG, reproducible to the byte: no date, no random ids."""
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "kd"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()
