"""A check tells a file with the network's logits from any other, at several shapes."""

import pytest
import torch
from exported import check_of, network

from kd.deploy.export import ExportError


def test_a_check_has_all_images_one_alone_and_a_larger_one(tiny):
    check = check_of(tiny)
    assert {tuple(batch.shape) for batch in check.batches} == {(6, 3, 64, 64), (1, 3, 64, 64), (1, 3, 96, 128)}
    assert [tuple(logits.shape) for logits in check.logits] == [
        (len(batch), 3, *batch.shape[2:]) for batch in check.batches
    ]


def test_other_logits_are_told_from_the_networks_own(tiny, tmp_path):
    check, other = check_of(tiny), network()
    other.body.segmentation_head[0].bias += 0.1
    assert check.passed(tmp_path, tiny).largest == 0
    assert check.difference(other).largest == pytest.approx(0.1, rel=1e-3)
    for wrong in (other, lambda images: tiny(images) * torch.nan, lambda images: tiny(images)[:, :1]):
        with pytest.raises(ExportError):
            check.passed(tmp_path, wrong)


def test_leniency_multiplies_the_tolerance(tiny, tmp_path):
    check, other = check_of(tiny), network()
    other.body.segmentation_head[0].bias += 0.01
    relative = check.difference(other).relative
    check.passed(tmp_path, other, leniency=1.01 * relative / check.tolerance)
    with pytest.raises(ExportError):
        check.passed(tmp_path, other, leniency=0.99 * relative / check.tolerance)
