"""What a student learns from the teacher's encoder: its feature maps at chosen stages.

A student has fewer channels than its teacher, so a 1 x 1 convolution maps its features to the teacher's channels. These
projections exist in training only: they belong to the `Learner`, never to the student, so no weights file has them.

Stages are numbered as in segmentation-models-pytorch: stage k is 1 / 2^k of the image's height and width, and the
deepest one is 5.

Shapes: B batch, K channels of a teacher's stage, h and w its height and width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.distillation.pixels import Total, mean_over_valid
from kd.errors import ConfigError
from kd.networks.network import Network, eval_mode

Shape = tuple[int, int, int]  # K x h x w, of one picture


class Watch:
    """Keeps the feature maps that a network's encoder returns at chosen stages, until they are taken.

    Used in a `with` statement, it ends with it; otherwise with the network.
    """

    def __init__(self, network: Network, stages: Sequence[int]) -> None:
        self.stages = tuple(stages)
        self._maps: tuple[Tensor, ...] = ()
        self._hook = _encoder(network).register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: Any, output: Any) -> None:
        maps = _maps(output)
        self._maps = tuple(maps[stage] for stage in self.stages)

    def take(self) -> tuple[Tensor, ...]:
        """The maps of the last forward pass."""
        maps, self._maps = self._maps, ()
        return maps

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()


class Learner(nn.Module):
    """A student with projections of its features to the teacher's channels; it takes the student's place in training.

    Projections start from torch's global generator, and train at the decoder's learning rate.

    Shape:
        images B x channels x H x W -> the student's logits B x C x H x W, then its projected features B x K x h x w.
    """

    def __init__(self, student: Network, stages: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.student, self.blocks = student, student.blocks
        self.projections = nn.ModuleList(nn.Conv2d(*channels, 1) for channels in zip(inputs, outputs, strict=True))
        self._watch = Watch(student, stages)
        self.to(next(student.parameters()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.student(images)
        maps = zip(self.projections, self._watch.take(), strict=True)
        return logits, *(projection(each) for projection, each in maps)

    @property
    def unfrozen_blocks(self) -> int:
        """The number of unfrozen blocks of the student's encoder."""
        return self.student.unfrozen_blocks


@torch.no_grad()
def feature_shapes(network: Network, stages: Sequence[int], image_size: tuple[int, int]) -> tuple[Shape, ...]:
    """K, h and w of an encoder's features at each stage; runs the encoder on one black picture.

    Raises:
        ConfigError: the encoder has no features at one of the stages.
    """
    black = network.black(1, image_size, next(network.parameters()).device)
    with eval_mode(network):
        maps = _maps(_encoder(network)(network.normalised(black)))
    shapes: list[Shape] = [(each.shape[1], each.shape[2], each.shape[3]) for each in maps]
    known = [stage for stage, shape in enumerate(shapes) if stage and 0 not in shape]
    if missing := [stage for stage in stages if stage not in known]:
        raise ConfigError(
            f"loss.feature_stages={list(stages)}: {network.settings.encoder} has no features at stage {missing[0]}; "
            f"choose from {', '.join(map(str, known))}",
            page="concepts",
        )
    return tuple(shapes[stage] for stage in stages)


def normalised_mse(student_BKhw: Tensor, teacher_BKhw: Tensor, total: Total = None) -> Tensor:
    """The squared distance of feature vectors of length 1, a mean over positions: 2 - 2 cos of their angle, 0 to 4.

    Lengths are left out, since a teacher's differ by orders of magnitude from stage to stage and encoder to encoder.

    Shape:
        student (projected) and teacher B x K x h x w -> a scalar.

    Reference: hints through a regressor, Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep
    Nets", arXiv 1412.6550, section 2.1, equation 3; on normalised vectors as in Grill et al., arXiv 2006.07733,
    equation 2.
    """
    s, t = (F.normalize(each.float(), dim=1) for each in (student_BKhw, teacher_BKhw))
    return mean_over_valid((s - t).square().sum(1), None, total)


def _encoder(network: Network) -> nn.Module:
    return network.body.get_submodule("encoder")


def _maps(output: Any) -> Sequence[Tensor]:
    """An encoder's feature maps; transformers for DPT return their prefix tokens, too."""
    return output[0] if isinstance(output, tuple) else output
