"""A batch: images, masks, and what identifies them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """Images, masks, and what identifies them.

    Attributes:
        images: B x channels x H x W, channels last in memory: uint8, or float32 of stored values for deeper pictures.
        masks: B x H x W uint8; 0 x H x W for pictures without masks.
        indices: B int64, of the samples in their split.
        view: the view's number; -1 without augmentation.
        answers: the teacher's logits as they are stored, then its stored features, if any are asked for; None unless
            all of them are stored. `kd.distillation.logit_codec` decodes them, on the device.
        unlabelled: the pictures without masks that come beside these samples; None for a batch without any.
        content: B x H x W bool, which pixels show something of a picture and are no padding; None if all do.
    """

    images: torch.Tensor
    masks: torch.Tensor
    indices: torch.Tensor
    view: int
    answers: tuple[torch.Tensor, ...] | None = None
    unlabelled: "Batch | None" = None
    content: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def parts(self) -> "list[Batch]":
        """These samples, then the pictures without masks beside them, if there are any."""
        return [self] if self.unlabelled is None else [self, self.unlabelled]

    def all_images(self) -> torch.Tensor:
        """The images of all parts, in their order."""
        return self.images if self.unlabelled is None else torch.cat([part.images for part in self.parts()])

    def all_content(self) -> torch.Tensor | None:
        """The `content` of all parts, in their order; None if there is no padding."""
        contents = [part.content for part in self.parts() if part.content is not None]
        return torch.cat(contents) if contents else None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`; only copies to CUDA can be `non_blocking`.

        Such a copy to MPS reads memory that may be freed by then, and silently brings other values (pytorch/pytorch
        issue 189690).
        """
        non_blocking = non_blocking and torch.device(device).type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; called by the DataLoader."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        answers = None if self.answers is None else tuple(map(change, self.answers))
        beside = None if self.unlabelled is None else self.unlabelled._each(change)
        content = None if self.content is None else change(self.content)
        return Batch(change(self.images), change(self.masks), change(self.indices), self.view, answers, beside, content)
