"""Diagnostics agree with their evaluation. References: scikit-learn, a loop over images, the evaluation itself."""

import numpy as np
import pytest
import together
import torch
from sklearn.metrics import confusion_matrix, jaccard_score
from toy import CPU, hand_made

from kd.data import Shapes
from kd.data.batches.loading import EvalLoader, Loading
from kd.system.world import SOLO
from kd.training.calibration import BINS
from kd.training.diagnostics import Diagnostics, tensors
from kd.training.evaluation import evaluate

VOID = 255


def predictions(labels, seed=0, images=5, size=(6, 7), void=False):
    """Logits, predicted labels and truths of some images."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, labels, *size, generator=random)
    mask = torch.randint(0, labels, (images, *size), generator=random).to(torch.uint8)
    if void:
        mask[:, 0] = VOID
    return logits, logits.argmax(1).to(torch.uint8), mask


def diagnosed(logits, predicted, mask, labels, void=None, batch=2, **more) -> dict[str, torch.Tensor]:
    diagnostics = Diagnostics(labels, void, **more)
    for index, first in enumerate(range(0, len(mask), batch)):
        part = slice(first, first + batch)
        diagnostics.calibrate(logits[part], predicted[part], mask[part])
        diagnostics.add(index, predicted[part], mask[part])
    diagnostics.gather()
    return diagnostics.tensors()


@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("void", [None, VOID])
def test_the_confusion_is_scikit_learns(labels, void):
    logits, predicted, mask = predictions(labels, void=void is not None)
    found = diagnosed(logits, predicted, mask, labels, void)["confusion"]
    valid = mask != VOID
    expected = confusion_matrix(mask[valid], predicted[valid], labels=range(labels))
    assert np.array_equal(found.numpy(), expected)


def test_an_images_score_is_its_mean_iou_over_the_labels_it_has():
    logits, predicted, mask = predictions(4, void=True)
    mask[1, 1:], predicted[1] = 2, 2  # one label alone
    scores = diagnosed(logits, predicted, mask, 4, VOID)["scores"]
    for image, score in enumerate(scores.tolist()):
        valid = mask[image] != VOID
        truth, guess = mask[image][valid].numpy(), predicted[image][valid].numpy()
        there = sorted({*truth.tolist(), *guess.tolist()})
        assert score == pytest.approx(jaccard_score(truth, guess, labels=there, average="macro"))
    assert scores[1] == 1


def test_an_all_void_image_has_no_score():
    logits, predicted, mask = predictions(3)
    mask[2] = VOID
    assert diagnosed(logits, predicted, mask, 3, VOID)["scores"].isnan().tolist() == [False, False, True, False, False]


def test_batches_do_not_matter():
    made = predictions(3)
    one, other = diagnosed(*made, 3, batch=1), diagnosed(*made, 3, batch=5)
    assert one.keys() == other.keys() == {"confusion", "calibration", "scores"}
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_the_baseline_is_evaluated_on_the_same_masks():
    logits, predicted, mask = predictions(3, void=True)
    usual = torch.randint(0, 3, mask.shape[1:], generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    found = diagnosed(logits, predicted, mask, 3, VOID, baseline_HW=usual)["baseline"]
    valid = mask != VOID
    assert np.array_equal(found.numpy(), confusion_matrix(mask[valid], usual.expand_as(mask)[valid], labels=range(3)))


def test_teacher_and_student_are_right_together_or_alone():
    logits, predicted, mask = predictions(3, void=True)
    taught = predictions(3, seed=5)[1]
    found = diagnosed(logits, predicted, mask, 3, VOID, reference=taught.split(2))["jointly"]
    valid = mask != VOID
    expected = confusion_matrix((taught == mask)[valid], (predicted == mask)[valid], labels=[False, True])
    assert np.array_equal(found.numpy(), expected)


def test_diagnostics_count_what_the_evaluation_counts_and_do_not_change_it():
    source, network = Shapes(image_size=(32, 32), val=5), hand_made()
    diagnostics = Diagnostics(2, None)
    plain = evaluate(network, EvalLoader(source, "val", 2), CPU, None)
    with_look = evaluate(network, EvalLoader(source, "val", 2), CPU, None, diagnostics=diagnostics)
    found = tensors({"val": diagnostics}, "student")
    assert with_look.metrics(source.class_names) == plain.metrics(source.class_names)
    assert torch.equal(found["student/val/confusion"], plain.confusion.counts)
    assert found["student/val/scores"].shape == (5,)
    assert found["student/val/calibration"].shape == (BINS, 3)
    assert int(found["student/val/calibration"][:, 0].sum()) == 5 * 32 * 32


def diagnosed_together(world) -> dict[str, np.ndarray]:
    """The diagnostics of five images in batches of two, dealt out among the processes."""
    source, usual = Shapes(image_size=(32, 32), val=5), torch.zeros(32, 32, dtype=torch.uint8)
    diagnostics = Diagnostics(2, None, baseline_HW=usual, reference=torch.ones(5, 32, 32, dtype=torch.uint8).split(2))
    evaluate(hand_made(), EvalLoader(source, "val", 2, Loading(world=world)), CPU, None, diagnostics=diagnostics)
    return {name: tensor.numpy() for name, tensor in diagnostics.tensors().items()}


def test_processes_that_share_a_split_get_the_diagnostics_of_one():
    alone = diagnosed_together(SOLO)
    assert alone.keys() == {"confusion", "calibration", "scores", "baseline", "jointly"}
    for found in together.run(diagnosed_together):
        for name, expected in alone.items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)
